//! Writes over one stream: sent in the order of the requests, answered in it, so many at once.
//!
//! A request is begun when the one before it is with the log's client, so no write overtakes an
//! earlier one of the same id; what is waited for side by side is only the log's acknowledgement. What
//! another region writes is written when the next request is begun.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _};
use shoal_runtime::chain;
use shoal_schemas::{
    Token,
    headers::TraceParent,
    v1::{self, write_stream_request::Call as Wanted, write_stream_response::Outcome},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    CallError,
    calls::{Calls, To},
    grpc::{conditions, written},
    http::measured,
    residency::Said,
    resolve::Deadline,
    sending::Sent,
    status,
};
use crate::trace;

/// What a stream answers.
pub(super) type Answers =
    Pin<Box<dyn Stream<Item = Result<v1::WriteStreamResponse, Status>> + Send>>;

/// What all streams have in common.
pub(super) struct Streams {
    /// Requests of one stream that wait for the log at once.
    pub(super) most: usize,
    /// When the gateway stops, what was read is still answered, and the stream ends.
    pub(super) cancel: CancellationToken,
}

/// A request that is begun.
enum Begun {
    Sent(Sent),
    Done(v1::Written),
}

impl Streams {
    /// The answers to these requests, in order.
    pub(super) fn answers(
        &self,
        calls: Arc<Calls>,
        requests: impl Stream<Item = Result<v1::WriteStreamRequest, Status>> + Send + 'static,
        said: Said,
        parent: Option<TraceParent>,
    ) -> Answers {
        let requests = requests.take_until(self.cancel.clone().cancelled_owned());
        let ends = Arc::clone(&calls);
        let begun = requests.then(move |request| {
            let (calls, said) = (Arc::clone(&calls), said.clone());
            async move {
                let request = request?;
                let id = request.request_id;
                let begun = trace::scope(parent, calls.begin(request, said));
                Ok((id, begun.await))
            }
        });
        let answers = begun.map(move |begun: Result<(u64, _), Status>| {
            let calls = Arc::clone(&ends);
            async move {
                let (request_id, begun) = begun?;
                let ended = measured("write_stream", calls.end(begun)).await;
                let outcome = match ended {
                    Ok(written) => Outcome::Written(written),
                    Err(error) => Outcome::Refusal(refusal(&error)),
                };
                Ok(v1::WriteStreamResponse {
                    request_id,
                    outcome: Some(outcome),
                })
            }
        });
        answers.buffered(self.most).boxed()
    }
}

impl Calls {
    async fn begin(&self, request: v1::WriteStreamRequest, said: Said) -> Result<Begun, CallError> {
        let deadline = Deadline::within(self.deadline);
        let to = |collection| To::new(collection, Ok(said), deadline);
        let batch = match request.call {
            Some(Wanted::Upsert(wanted)) if wanted.conditions.is_empty() => {
                let to = to(&wanted.collection)?;
                self.prepared_upsert(&to, wanted.points).await?
            }
            Some(Wanted::Delete(wanted)) if wanted.conditions.is_empty() => {
                let to = to(&wanted.collection)?;
                self.prepared_delete(&to, &wanted.ids).await?
            }
            Some(Wanted::Upsert(wanted)) => {
                let v1::UpsertRequest {
                    collection,
                    points,
                    conditions: wanted,
                } = wanted;
                let (to, wanted) = (to(&collection)?, conditions(&wanted));
                return self.upsert_if(&to, points, &wanted).await.map(done);
            }
            Some(Wanted::Delete(wanted)) => {
                let v1::DeleteRequest {
                    collection,
                    ids,
                    conditions: wanted,
                } = wanted;
                let (to, wanted) = (to(&collection)?, conditions(&wanted));
                return self.delete_if(&to, &ids, &wanted).await.map(done);
            }
            None => return Err(CallError::Empty { what: "points" }),
        };
        let mut sent = self.send_waiting(&batch.publisher, &batch.here).await?;
        // Done before the next request is begun: nothing else keeps their order on the way there.
        sent.add(self.elsewhere(batch.there, deadline).await?);
        Ok(Begun::Sent(sent))
    }

    async fn end(&self, begun: Result<Begun, CallError>) -> Result<v1::Written, CallError> {
        match begun? {
            Begun::Done(written) => Ok(written),
            Begun::Sent(sent) => {
                let tokens = self.settle(sent).await?;
                Ok(v1::Written {
                    tokens: tokens.iter().map(Token::to_proto).collect(),
                    results: Vec::new(),
                })
            }
        }
    }
}

fn done(results: Vec<v1::WriteResult>) -> Begun {
    Begun::Done(v1::Written {
        tokens: written(&results),
        results,
    })
}

fn refusal(error: &CallError) -> v1::WriteRefusal {
    let retry_after = status::retry_after(error);
    v1::WriteRefusal {
        code: status::code(error).into(),
        message: chain(error).to_string(),
        retry_after_ms: retry_after.and_then(|after| u64::try_from(after.as_millis()).ok()),
    }
}
