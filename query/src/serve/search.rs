//! The gRPC service `Search`: metadata in, messages through, codes out.

use std::time::Duration;

use shoal_schemas::{headers::TRACEPARENT, v1};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    call::{Call, parse_grpc_timeout},
    coordinator::QueryError,
    front::Searches,
    serve::{
        status::Refusal,
        stream::{Answers, Asker, Streams},
    },
};

/// The metadata that says how long a caller waits.
const GRPC_TIMEOUT: &str = "grpc-timeout";

/// Serves searches.
pub(crate) struct SearchService {
    coordinator: Searches,
    default_deadline: Duration,
    streams: Streams,
}

impl SearchService {
    pub(crate) fn new(coordinator: Searches, default_deadline: Duration, streams: Streams) -> Self {
        Self {
            coordinator,
            default_deadline,
            streams,
        }
    }

    fn call<T>(&self, request: &Request<T>) -> Result<Call, QueryError> {
        let text = |name| {
            request
                .metadata()
                .get(name)
                .map(|value| value.to_str().unwrap_or("?"))
        };
        let timeout = text(GRPC_TIMEOUT).map(parse_grpc_timeout).transpose()?;
        let call = Call::within(timeout.unwrap_or(self.default_deadline));
        Ok(call.traced(text(TRACEPARENT)))
    }
}

fn answer<T>(answered: Result<T, QueryError>) -> Result<Response<T>, Status> {
    match answered {
        Ok(message) => Ok(Response::new(message)),
        Err(error) => Err(Refusal::from(error).into()),
    }
}

#[tonic::async_trait]
impl v1::search_server::Search for SearchService {
    async fn search(
        &self,
        request: Request<v1::SearchRequest>,
    ) -> Result<Response<v1::SearchResponse>, Status> {
        let call = self.call(&request).map_err(Refusal::from)?;
        answer(self.coordinator.search(request.into_inner(), call).await)
    }

    async fn search_batch(
        &self,
        request: Request<v1::SearchBatchRequest>,
    ) -> Result<Response<v1::SearchBatchResponse>, Status> {
        let call = self.call(&request).map_err(Refusal::from)?;
        answer(
            self.coordinator
                .search_batch(request.into_inner(), call)
                .await,
        )
    }

    type SearchStreamStream = Answers;

    async fn search_stream(
        &self,
        request: Request<Streaming<v1::SearchStreamRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let trace = request.metadata().get(TRACEPARENT);
        let asker = Asker {
            coordinator: self.coordinator.clone(),
            default_deadline: self.default_deadline,
            trace: trace
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned),
        };
        let answers = self.streams.answers(request.into_inner(), asker);
        Ok(Response::new(answers))
    }

    async fn recommend(
        &self,
        request: Request<v1::RecommendRequest>,
    ) -> Result<Response<v1::SearchResponse>, Status> {
        let call = self.call(&request).map_err(Refusal::from)?;
        answer(self.coordinator.recommend(request.into_inner(), call).await)
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let call = self.call(&request).map_err(Refusal::from)?;
        answer(self.coordinator.get(request.into_inner(), call).await)
    }

    async fn scroll(
        &self,
        request: Request<v1::ScrollRequest>,
    ) -> Result<Response<v1::ScrollResponse>, Status> {
        let call = self.call(&request).map_err(Refusal::from)?;
        answer(self.coordinator.scroll(request.into_inner(), call).await)
    }

    async fn shards(
        &self,
        request: Request<v1::ShardsRequest>,
    ) -> Result<Response<v1::ShardsResponse>, Status> {
        let call = self.call(&request).map_err(Refusal::from)?;
        answer(self.coordinator.shards_of(request.into_inner(), call).await)
    }

    async fn count(
        &self,
        request: Request<v1::CountRequest>,
    ) -> Result<Response<v1::CountResponse>, Status> {
        let call = self.call(&request).map_err(Refusal::from)?;
        answer(self.coordinator.count(request.into_inner(), call).await)
    }
}
