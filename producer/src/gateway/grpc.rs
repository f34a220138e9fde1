//! The gRPC service `shoal.v1.Publish`.

use std::sync::Arc;

use shoal_runtime::timeout::grpc_timeout;
use shoal_schemas::{
    Condition, Token,
    headers::{TRACEPARENT, TraceParent},
    v1::{
        self, DeleteRequest, DeleteResponse, PatchRequest, PatchResponse, UpsertRequest,
        UpsertResponse, WriteStreamRequest, publish_server::Publish, write_result::Outcome,
    },
};
use tonic::{Request, Response, Status, Streaming};

use super::{
    CallError, ResidencyError,
    calls::{Calls, To},
    http::measured,
    residency::Said,
    resolve::Deadline,
    status::status,
    stream::{Answers, Streams},
};
use crate::trace;

pub(super) struct Service {
    calls: Arc<Calls>,
    streams: Streams,
}

impl Service {
    pub(super) fn new(calls: Arc<Calls>, streams: Streams) -> Self {
        Self { calls, streams }
    }

    /// The gateway's own deadline, or the caller's shorter one.
    fn deadline<T>(&self, request: &Request<T>) -> Deadline {
        let told = request.metadata().get("grpc-timeout");
        let told = told.and_then(|value| grpc_timeout(value.to_str().ok()?));
        let own = self.calls.deadline;
        Deadline::within(told.map_or(own, |told| told.min(own)))
    }
}

pub(super) fn conditions(conditions: &[v1::Condition]) -> Vec<Condition> {
    let wanted = conditions.iter();
    wanted
        .map(|one| Condition::from_wire(one.if_version))
        .collect()
}

/// The tokens of what was written.
pub(super) fn written(results: &[v1::WriteResult]) -> Vec<v1::Token> {
    let tokens = results.iter().filter_map(|result| match &result.outcome {
        Some(Outcome::Token(token)) => Some(token.clone()),
        _ => None,
    });
    tokens.collect()
}

#[tonic::async_trait]
impl Publish for Service {
    async fn upsert(
        &self,
        request: Request<UpsertRequest>,
    ) -> Result<Response<UpsertResponse>, Status> {
        let parent = traceparent(&request);
        let (said, deadline) = (said(&request), self.deadline(&request));
        let UpsertRequest {
            collection,
            points,
            conditions: wanted,
        } = request.into_inner();
        if !wanted.is_empty() {
            let wanted = conditions(&wanted);
            let call = async {
                let to = To::new(&collection, said, deadline)?;
                self.calls.upsert_if(&to, points, &wanted).await
            };
            let results = measured("upsert", trace::scope(parent, call)).await;
            let results = results.map_err(|error| status(&error))?;
            let tokens = written(&results);
            return Ok(Response::new(UpsertResponse { tokens, results }));
        }
        let call = async {
            let to = To::new(&collection, said, deadline)?;
            self.calls.upsert(&to, points).await
        };
        let tokens = measured("upsert", trace::scope(parent, call))
            .await
            .map_err(|error| status(&error))?;
        let tokens = tokens.iter().map(Token::to_proto).collect();
        let results = Vec::new();
        Ok(Response::new(UpsertResponse { tokens, results }))
    }

    type WriteStreamStream = Answers;

    async fn write_stream(
        &self,
        request: Request<Streaming<WriteStreamRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let parent = traceparent(&request);
        // Of all its requests: they have no headers of their own.
        let said = said(&request).map_err(CallError::from);
        let said = said.map_err(|error| status(&error))?;
        let calls = Arc::clone(&self.calls);
        let answers = self
            .streams
            .answers(calls, request.into_inner(), said, parent);
        Ok(Response::new(answers))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let parent = traceparent(&request);
        let (said, deadline) = (said(&request), self.deadline(&request));
        let DeleteRequest {
            collection,
            ids,
            conditions: wanted,
        } = request.into_inner();
        if !wanted.is_empty() {
            let wanted = conditions(&wanted);
            let call = async {
                let to = To::new(&collection, said, deadline)?;
                self.calls.delete_if(&to, &ids, &wanted).await
            };
            let results = measured("delete", trace::scope(parent, call)).await;
            let results = results.map_err(|error| status(&error))?;
            let tokens = written(&results);
            return Ok(Response::new(DeleteResponse { tokens, results }));
        }
        let call = async {
            let to = To::new(&collection, said, deadline)?;
            self.calls.delete(&to, &ids).await
        };
        let tokens = measured("delete", trace::scope(parent, call))
            .await
            .map_err(|error| status(&error))?;
        let tokens = tokens.iter().map(Token::to_proto).collect();
        let results = Vec::new();
        Ok(Response::new(DeleteResponse { tokens, results }))
    }

    async fn patch(
        &self,
        request: Request<PatchRequest>,
    ) -> Result<Response<PatchResponse>, Status> {
        let parent = traceparent(&request);
        let (said, deadline) = (said(&request), self.deadline(&request));
        let PatchRequest { collection, points } = request.into_inner();
        let call = async {
            let to = To::new(&collection, said, deadline)?;
            self.calls.patch(&to, points).await
        };
        let results = measured("patch", trace::scope(parent, call)).await;
        let results = results.map_err(|error| status(&error))?;
        Ok(Response::new(PatchResponse { results }))
    }
}

/// What a call says of where its records have to stay.
fn said<T>(request: &Request<T>) -> Result<Said, ResidencyError> {
    Said::of(request.metadata().as_ref())
}

/// The caller's trace; one that does not read is no reason to refuse a write.
fn traceparent<T>(request: &Request<T>) -> Option<TraceParent> {
    request
        .metadata()
        .get(TRACEPARENT)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}
