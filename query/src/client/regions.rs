//! Query nodes of other regions over gRPC: probes, and calls that are passed on as they are.

use std::{future::Future, time::Duration};

use shoal_runtime::{clock::Stopwatch, grpc::endpoint};
use shoal_schemas::{
    headers::TRACEPARENT,
    v1::{self, collections_client::CollectionsClient, search_client::SearchClient},
};
use tonic::{Code, Request, Response, Status, metadata::MetadataValue, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_types::StatusExt as _;

use crate::client::{ShardCall, grpc::broken};

/// One region's query nodes.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    channel: Channel,
    max_message_bytes: usize,
}

/// Why a region gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RegionError {
    /// It cannot be reached.
    Unreachable {
        /// What the transport says.
        detail: String,
    },
    /// Not in the time it had.
    TimedOut,
    /// It answered with an error.
    Refused {
        /// A `google.rpc.Code` number.
        code: i32,
        /// What it says.
        message: String,
        /// When to try again, if it says so.
        retry_after: Option<Duration>,
    },
}

impl RegionError {
    /// Whether another region may do better.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut => true,
            Self::Refused { code, .. } => Self::is_passing(*code),
        }
    }

    /// Whether a `google.rpc.Code` says something of the region now, and not of the call.
    pub(crate) fn is_passing(code: i32) -> bool {
        // DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
        matches!(code, 4 | 8 | 13 | 14 | 15)
    }

    /// What happened, for a person.
    pub(crate) fn told(&self) -> String {
        match self {
            Self::Unreachable { detail } => format!("does not answer: {detail}"),
            Self::TimedOut => "did not answer in time".to_owned(),
            Self::Refused { message, .. } => message.clone(),
        }
    }
}

impl Region {
    /// The query nodes at an address, `host:port`; nothing is connected yet.
    ///
    /// # Errors
    /// What is wrong with the address.
    pub(crate) fn new(
        address: &str,
        connect_timeout: Duration,
        max_message_bytes: usize,
    ) -> Result<Self, String> {
        let endpoint = endpoint(address, connect_timeout).map_err(|error| error.to_string())?;
        let channel = endpoint.connect_lazy();
        Ok(Self {
            channel,
            max_message_bytes,
        })
    }

    /// How long a question that is answered at once takes there and back.
    ///
    /// # Errors
    /// [`RegionError`], also if it answers that it does not serve.
    pub(crate) async fn probe(&self, timeout: Duration) -> Result<Duration, RegionError> {
        let mut health = HealthClient::new(self.channel.clone());
        let request = HealthCheckRequest {
            service: v1::search_server::SERVICE_NAME.to_owned(),
        };
        let watch = Stopwatch::start();
        match tokio::time::timeout(timeout, health.check(request)).await {
            Err(_) => Err(RegionError::TimedOut),
            Ok(Err(status)) => Err(refusal(&status)),
            Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => {
                Ok(watch.elapsed())
            }
            Ok(Ok(_)) => Err(RegionError::Unreachable {
                detail: "it says that it does not serve now".to_owned(),
            }),
        }
    }

    /// Puts a call to its searches.
    ///
    /// # Errors
    /// [`RegionError`].
    pub(crate) async fn search<T, U, F>(
        &self,
        message: T,
        call: ShardCall,
        send: impl FnOnce(SearchClient<Channel>, Request<T>) -> F,
    ) -> Result<U, RegionError>
    where
        F: Future<Output = Result<Response<U>, Status>>,
    {
        let client = SearchClient::new(self.channel.clone())
            .max_decoding_message_size(self.max_message_bytes)
            .max_encoding_message_size(self.max_message_bytes);
        let mut request = Request::new(message);
        request.set_timeout(call.timeout);
        if let Some(trace) = call.trace
            && let Ok(value) = MetadataValue::try_from(trace.to_string())
        {
            request.metadata_mut().insert(TRACEPARENT, value);
        }
        answered(call.timeout, send(client, request)).await
    }

    /// Puts a call to its collections.
    ///
    /// # Errors
    /// [`RegionError`].
    pub(crate) async fn collections<T, U, F>(
        &self,
        message: T,
        timeout: Duration,
        send: impl FnOnce(CollectionsClient<Channel>, Request<T>) -> F,
    ) -> Result<U, RegionError>
    where
        F: Future<Output = Result<Response<U>, Status>>,
    {
        let client = CollectionsClient::new(self.channel.clone());
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        answered(timeout, send(client, request)).await
    }
}

async fn answered<U>(
    timeout: Duration,
    sent: impl Future<Output = Result<Response<U>, Status>>,
) -> Result<U, RegionError> {
    match tokio::time::timeout(timeout, sent).await {
        Err(_) => Err(RegionError::TimedOut),
        Ok(Err(status)) => Err(refusal(&status)),
        Ok(Ok(answer)) => Ok(answer.into_inner()),
    }
}

fn refusal(status: &Status) -> RegionError {
    if let Some(detail) = broken(status) {
        return RegionError::Unreachable { detail };
    }
    match status.code() {
        // tonic's own time limit shows as CANCELLED.
        Code::Cancelled => RegionError::TimedOut,
        code => RegionError::Refused {
            code: i32::from(code),
            message: status.message().to_owned(),
            retry_after: status
                .get_details_retry_info()
                .and_then(|info| info.retry_delay),
        },
    }
}
