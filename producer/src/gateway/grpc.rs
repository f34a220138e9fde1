//! The gRPC service `shoal.v1.Publish`.

use std::sync::Arc;

use shoal_schemas::{
    Token,
    headers::{TRACEPARENT, TraceParent},
    v1::{DeleteRequest, DeleteResponse, UpsertRequest, UpsertResponse, publish_server::Publish},
};
use tonic::{Request, Response, Status};

use super::{calls::Calls, http::measured, status::status};
use crate::trace;

pub(super) struct Service {
    calls: Arc<Calls>,
}

impl Service {
    pub(super) fn new(calls: Arc<Calls>) -> Self {
        Self { calls }
    }
}

#[tonic::async_trait]
impl Publish for Service {
    async fn upsert(
        &self,
        request: Request<UpsertRequest>,
    ) -> Result<Response<UpsertResponse>, Status> {
        let parent = traceparent(&request);
        let UpsertRequest { collection, points } = request.into_inner();
        let call = trace::scope(parent, self.calls.upsert(&collection, points));
        let tokens = measured("upsert", call)
            .await
            .map_err(|error| status(&error))?;
        let tokens = tokens.iter().map(Token::to_proto).collect();
        Ok(Response::new(UpsertResponse { tokens }))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let parent = traceparent(&request);
        let DeleteRequest { collection, ids } = request.into_inner();
        let call = trace::scope(parent, self.calls.delete(&collection, &ids));
        let tokens = measured("delete", call)
            .await
            .map_err(|error| status(&error))?;
        let tokens = tokens.iter().map(Token::to_proto).collect();
        Ok(Response::new(DeleteResponse { tokens }))
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
