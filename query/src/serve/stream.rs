//! Searches over one stream: read, answered as they end, at most so many at once.
//!
//! A caller who takes no answers is asked for nothing more, and what has begun comes to its end; one who goes away
//! takes what is under way with it.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt as _};
use shoal_schemas::v1::{
    self, search_stream_request::Call as Wanted, search_stream_response::Outcome,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    call::Call,
    front::Searches,
    serve::{driven::driven, status::Refusal},
};

/// What a stream answers.
pub(crate) type Answers =
    Pin<Box<dyn Stream<Item = Result<v1::SearchStreamResponse, Status>> + Send>>;

/// What all streams have in common.
#[derive(Clone)]
pub(crate) struct Streams {
    /// Searches of one stream, those under way and those whose answers nobody has taken yet.
    pub(crate) most: usize,
    /// When the node stops, what was read is still answered, and the stream ends.
    pub(crate) cancel: CancellationToken,
}

/// Who answers the searches of one stream.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) coordinator: Searches,
    pub(crate) default_deadline: Duration,
    /// The stream's `traceparent`, which each search continues.
    pub(crate) trace: Option<String>,
}

impl Streams {
    /// The answers to these requests, in the order in which they are done.
    pub(crate) fn answers(
        &self,
        requests: impl Stream<Item = Result<v1::SearchStreamRequest, Status>> + Send + 'static,
        asker: Asker,
    ) -> Answers {
        let requests = requests.take_until(self.cancel.clone().cancelled_owned());
        let answers = requests.map(move |request| {
            let asker = asker.clone();
            async move {
                match request {
                    Ok(request) => Ok(asker.answer(request).await),
                    Err(status) => Err(status),
                }
            }
        });
        driven(self.most, answers).boxed()
    }
}

impl Asker {
    /// What a request is answered, whatever becomes of it.
    pub(crate) async fn answer(
        &self,
        request: v1::SearchStreamRequest,
    ) -> v1::SearchStreamResponse {
        let v1::SearchStreamRequest {
            request_id,
            call: wanted,
            timeout_ms,
        } = request;
        let budget = match timeout_ms {
            0 => self.default_deadline,
            millis => Duration::from_millis(millis.into()),
        };
        let call = Call::within(budget).traced(self.trace.as_deref());
        let answered = match wanted {
            Some(Wanted::Search(search)) => self.coordinator.search(search, call).await,
            Some(Wanted::Recommend(wanted)) => self.coordinator.recommend(wanted, call).await,
            None => {
                let refusal = Refusal::invalid("request holds neither a search nor a recommend");
                return failed(request_id, &refusal);
            }
        };
        match answered {
            Ok(response) => v1::SearchStreamResponse {
                request_id,
                outcome: Some(Outcome::Response(response)),
            },
            Err(error) => failed(request_id, &Refusal::from(error)),
        }
    }
}

fn failed(request_id: u64, refusal: &Refusal) -> v1::SearchStreamResponse {
    let failure = v1::SearchFailure {
        code: refusal.number(),
        message: refusal.message().to_owned(),
    };
    v1::SearchStreamResponse {
        request_id,
        outcome: Some(Outcome::Failure(failure)),
    }
}
