//! The owners of shards, over gRPC: one connection an address, opened when first needed.
//!
//! What matters of a failed call is whether the owner may have got it: only one that it cannot have
//! got may be made again somewhere else.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Mutex,
    time::Duration,
};

use shoal_runtime::grpc;
use shoal_schemas::{headers::TRACEPARENT, v1};
use tokio::runtime::Handle;
use tonic::{Code, ConnectError, Request, Status, metadata::MetadataValue, transport::Channel};

use crate::trace;

type Stub = v1::shard_client::ShardClient<Channel>;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);

/// Connections by address, shared by all threads.
pub(super) struct Owners {
    open: Mutex<HashMap<String, Stub>>,
    /// What drives them.
    runtime: Handle,
}

/// Why an owner gave no answer.
#[derive(Debug)]
pub(super) enum AskError {
    /// It has not got the call.
    NotSent(String),
    /// It may have got it.
    Lost(String),
}

impl Owners {
    /// No connection yet; they will be driven by the runtime that this is called in.
    pub(super) fn new() -> Self {
        Self {
            open: Mutex::default(),
            runtime: Handle::current(),
        }
    }

    /// Has the owner at an address make changes.
    pub(super) async fn resolve(
        &self,
        address: &str,
        changes: v1::ResolveRequest,
        timeout: Duration,
    ) -> Result<v1::ResolveResponse, AskError> {
        let mut stub = self.stub(address).map_err(AskError::NotSent)?;
        let mut request = Request::new(changes);
        request.set_timeout(timeout);
        if let Some(trace) = trace::current()
            && let Ok(value) = MetadataValue::try_from(trace.to_string())
        {
            request.metadata_mut().insert(TRACEPARENT, value);
        }
        match tokio::time::timeout(timeout, stub.resolve(request)).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(failed(address, &status)),
            Err(_elapsed) => Err(AskError::Lost(format!(
                "indexer at {address} did not answer within {timeout:?}"
            ))),
        }
    }

    /// Lets go of connections to addresses that are not among these.
    pub(super) fn retain(&self, addresses: &BTreeSet<&str>) {
        let mut open = self.lock();
        open.retain(|address, _| addresses.contains(address.as_str()));
    }

    fn stub(&self, address: &str) -> Result<Stub, String> {
        let mut open = self.lock();
        if let Some(stub) = open.get(address) {
            return Ok(stub.clone());
        }
        let endpoint = grpc::endpoint(address, CONNECT)
            .map_err(|error| format!("claim names no address that reads, `{address}`: {error}"))?;
        // Whoever asks first may be a thread that ends before the others' answers are here.
        let _shared = self.runtime.enter();
        let channel = endpoint.connect_lazy();
        let stub = Stub::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        open.insert(address.to_owned(), stub.clone());
        Ok(stub)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Stub>> {
        self.open
            .lock()
            .expect("nothing panics while it holds this lock")
    }
}

fn failed(address: &str, status: &Status) -> AskError {
    let text = format!("indexer at {address}: {}", status.message());
    let mut cause = std::error::Error::source(status);
    // What the other side said itself of a call it made nothing of; OUT_OF_RANGE is too large.
    let refused = [Code::InvalidArgument, Code::Unimplemented, Code::OutOfRange];
    if cause.is_none() && refused.contains(&status.code()) {
        return AskError::NotSent(text);
    }
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return AskError::NotSent(text);
        }
        cause = error.source();
    }
    AskError::Lost(text)
}
