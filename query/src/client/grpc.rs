//! The indexers over gRPC: one HTTP/2 connection an address, opened when first needed.
//!
//! Many calls share a connection. It is kept alive by pings ([`shoal_runtime::grpc`]), so that a
//! dead peer is noticed while nothing is asked, and let go when no claim names its address any
//! more. It is driven by the runtime of the call that opened it, so calls of different runtimes
//! have [`Channels`] of their own.

use std::{
    collections::{BTreeSet, HashMap},
    error::Error as _,
    future::Future,
    iter,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use futures::future::BoxFuture;
use shoal_runtime::{chain, grpc::Link};
use shoal_schemas::{headers::TRACEPARENT, v1};
use tonic::{Code, Request, Response, Status, TimeoutExpired, metadata::MetadataValue};
use tracing::debug;

use crate::client::{CallError, ShardCall, ShardClient};

/// The generated client.
type Stub = v1::shard_client::ShardClient<Link>;

/// Connections to indexers, by address.
#[derive(Debug)]
pub struct Channels {
    open: RwLock<HashMap<String, Stub>>,
    connect_timeout: Duration,
    max_message_bytes: usize,
}

impl Channels {
    /// No connection yet.
    pub fn new(connect_timeout: Duration, max_message_bytes: usize) -> Self {
        Self {
            open: RwLock::default(),
            connect_timeout,
            max_message_bytes,
        }
    }

    /// Number of addresses with a connection.
    pub fn open(&self) -> usize {
        self.open
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    fn stub(&self, address: &str) -> Result<Stub, CallError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(stub) = open.get(address) {
            return Ok(stub.clone());
        }
        drop(open);
        let link = Link::to(address, self.connect_timeout);
        let link = link.map_err(|error| CallError::Unreachable {
            address: address.to_owned(),
            detail: format!("its claim names no address that reads: {error}"),
        })?;
        let origin = link.origin().clone();
        let stub = Stub::with_origin(link, origin)
            .max_decoding_message_size(self.max_message_bytes)
            .max_encoding_message_size(self.max_message_bytes);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        // Another call may have been faster; then its connection serves both.
        Ok(open.entry(address.to_owned()).or_insert(stub).clone())
    }

    async fn call<T, U, F>(
        &self,
        address: &str,
        message: T,
        call: ShardCall,
        send: impl FnOnce(Stub, Request<T>) -> F,
    ) -> Result<U, CallError>
    where
        F: Future<Output = Result<Response<U>, Status>>,
    {
        let stub = self.stub(address)?;
        let mut request = Request::new(message);
        request.set_timeout(call.timeout);
        if let Some(trace) = call.trace
            && let Ok(value) = MetadataValue::try_from(trace.to_string())
        {
            request.metadata_mut().insert(TRACEPARENT, value);
        }
        match tokio::time::timeout(call.timeout, send(stub, request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(refusal(address, &status, call.timeout)),
            Err(_elapsed) => Err(timed_out(address, call.timeout)),
        }
    }
}

fn timed_out(address: &str, timeout: Duration) -> CallError {
    CallError::TimedOut {
        address: address.to_owned(),
        waited_ms: timeout.as_millis(),
    }
}

fn refusal(address: &str, status: &Status, timeout: Duration) -> CallError {
    let address = address.to_owned();
    // What the transport itself failed with has a source; a node that dies while it answers shows
    // as all kinds of codes.
    if let Some(detail) = broken(status) {
        return CallError::Unreachable { address, detail };
    }
    match status.code() {
        Code::Unavailable => CallError::Unreachable {
            address,
            detail: status.message().to_owned(),
        },
        Code::DeadlineExceeded | Code::Cancelled => timed_out(&address, timeout),
        code => CallError::Refused {
            address,
            code: i32::from(code),
            detail: status.message().to_owned(),
        },
    }
}

/// What the transport failed with, if it did: not because time was over, nor because our own
/// message cannot be sent.
pub(super) fn broken(status: &Status) -> Option<String> {
    let first = status.source()?;
    let mut sources = iter::successors(Some(first), |error| (**error).source());
    let is_other = sources.any(|error| error.is::<TimeoutExpired>() || error.is::<Status>());
    (!is_other).then(|| chain(first).to_string())
}

/// A verb of the service, put over the connection to an address.
macro_rules! verb {
    ($method:ident, $request:ident, $response:ident) => {
        fn $method<'a>(
            &'a self,
            address: &'a str,
            request: v1::$request,
            call: ShardCall,
        ) -> BoxFuture<'a, Result<v1::$response, CallError>> {
            Box::pin(
                self.call(address, request, call, |mut stub, request| async move {
                    stub.$method(request).await
                }),
            )
        }
    };
}

impl ShardClient for Channels {
    verb!(search_shards, SearchShardsRequest, SearchShardsResponse);
    verb!(get_points, GetPointsRequest, GetPointsResponse);
    verb!(shard_status, ShardStatusRequest, ShardStatusResponse);
    verb!(count_points, CountPointsRequest, CountPointsResponse);
    verb!(shard_scroll, ShardScrollRequest, ShardScrollResponse);

    fn retain(&self, addresses: &BTreeSet<String>) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.retain(|address, _| {
            let is_claimed = addresses.contains(address);
            if !is_claimed {
                debug!(address, "connection to an indexer let go");
            }
            is_claimed
        });
    }
}
