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
    calls::Calls,
    http::measured,
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
        let deadline = self.deadline(&request);
        let UpsertRequest {
            collection,
            points,
            conditions: wanted,
        } = request.into_inner();
        if !wanted.is_empty() {
            let wanted = conditions(&wanted);
            let call = self.calls.upsert_if(&collection, points, &wanted, deadline);
            let results = measured("upsert", trace::scope(parent, call)).await;
            let results = results.map_err(|error| status(&error))?;
            let tokens = written(&results);
            return Ok(Response::new(UpsertResponse { tokens, results }));
        }
        let call = trace::scope(parent, self.calls.upsert(&collection, points));
        let tokens = measured("upsert", call)
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
        let calls = Arc::clone(&self.calls);
        let answers = self.streams.answers(calls, request.into_inner(), parent);
        Ok(Response::new(answers))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let parent = traceparent(&request);
        let deadline = self.deadline(&request);
        let DeleteRequest {
            collection,
            ids,
            conditions: wanted,
        } = request.into_inner();
        if !wanted.is_empty() {
            let wanted = conditions(&wanted);
            let call = self.calls.delete_if(&collection, &ids, &wanted, deadline);
            let results = measured("delete", trace::scope(parent, call)).await;
            let results = results.map_err(|error| status(&error))?;
            let tokens = written(&results);
            return Ok(Response::new(DeleteResponse { tokens, results }));
        }
        let call = trace::scope(parent, self.calls.delete(&collection, &ids));
        let tokens = measured("delete", call)
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
        let deadline = self.deadline(&request);
        let PatchRequest { collection, points } = request.into_inner();
        let call = self.calls.patch(&collection, points, deadline);
        let results = measured("patch", trace::scope(parent, call)).await;
        let results = results.map_err(|error| status(&error))?;
        Ok(Response::new(PatchResponse { results }))
    }
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
