//! As much of an etcd as is called, in memory: keys with revisions, transactions on them, and leases that
//! never end by themselves.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, time::Duration};

use tokio::{sync::watch, task::JoinSet};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

use super::{
    Config,
    api::{
        KeyValue, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest,
        LeaseKeepAliveResponse, LeaseRevokeRequest, LeaseRevokeResponse, RangeRequest,
        RangeResponse, ResponseHeader, TxnRequest, TxnResponse, WatchRequest, WatchResponse,
        compare::TargetUnion,
        kv_server::{Kv, KvServer},
        lease_server::{Lease, LeaseServer},
        request_op,
        watch_server::{Watch, WatchServer},
    },
};

const DEADLINE: Duration = Duration::from_secs(20);

/// What it holds and what was asked of it.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    revision: i64,
    keys: BTreeMap<Vec<u8>, KeyValue>,
    /// Times that a lease was kept.
    pub(super) kept: u64,
    /// Watches that end when their member knows no leader.
    pub(super) watches_with_leader: u64,
    /// No transaction on a definition is answered.
    pub(super) is_held: bool,
}

impl State {
    /// The value of a key behind the prefix.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        let found = self.keys.get(format!("/shoal/{key}").as_bytes())?;
        Some(std::str::from_utf8(&found.value).unwrap())
    }
}

#[derive(Clone)]
pub(super) struct Fake(watch::Sender<State>);

impl Fake {
    /// Starts to answer, until the tasks are dropped.
    pub(super) fn start(tasks: &mut JoinSet<()>) -> (Self, Config) {
        let fake = Self(watch::channel(State::default()).0);
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = incoming.local_addr().unwrap();
        let server = Server::builder()
            .add_service(KvServer::new(fake.clone()))
            .add_service(LeaseServer::new(fake.clone()))
            .add_service(WatchServer::new(fake.clone()))
            .serve_with_incoming(incoming);
        tasks.spawn(async move { server.await.unwrap() });
        let config = Config {
            endpoints: vec![format!("http://{at}")],
            ..Config::default()
        };
        (fake, config)
    }

    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.0.borrow().text(key).map(str::to_owned)
    }

    pub(super) fn hold(&self, is_held: bool) {
        self.0.send_modify(|state| state.is_held = is_held);
    }

    /// Waits for a state.
    pub(super) async fn until(&self, what: &str, holds: impl FnMut(&State) -> bool) {
        let mut states = self.0.subscribe();
        let waited = tokio::time::timeout(DEADLINE, states.wait_for(holds)).await;
        waited.unwrap_or_else(|_| panic!("{what}")).unwrap();
    }
}

#[tonic::async_trait]
impl Kv for Fake {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let RangeRequest { key, range_end } = request.into_inner();
        let state = self.0.borrow();
        let kvs = match range_end.is_empty() {
            true => state.keys.get(&key).cloned().into_iter().collect(),
            false => (state.keys.range(key..range_end))
                .map(|(_, found)| found.clone())
                .collect(),
        };
        let revision = state.revision;
        Ok(Response::new(RangeResponse {
            header: Some(ResponseHeader { revision }),
            kvs,
        }))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let asked = request.into_inner();
        let is_of_definition =
            (asked.compare.iter()).any(|compare| compare.key.starts_with(b"/shoal/collection/"));
        if is_of_definition {
            let mut states = self.0.subscribe();
            let released = states.wait_for(|state| !state.is_held).await;
            released.map_err(|_| Status::unavailable("it ends"))?;
        }
        let mut succeeded = false;
        self.0.send_modify(|state| {
            succeeded = asked.compare.iter().all(|compare| {
                let found = state.keys.get(&compare.key);
                let revision = found.map_or(0, |found| found.mod_revision);
                compare.target_union == Some(TargetUnion::ModRevision(revision))
            });
            if !succeeded {
                return;
            }
            state.revision += 1;
            for op in asked.success {
                match op.request.unwrap() {
                    request_op::Request::RequestPut(put) => {
                        let pair = KeyValue {
                            key: put.key.clone(),
                            value: put.value,
                            lease: put.lease,
                            mod_revision: state.revision,
                            ..KeyValue::default()
                        };
                        state.keys.insert(put.key, pair);
                    }
                    request_op::Request::RequestDeleteRange(delete) => {
                        state.keys.remove(&delete.key);
                    }
                }
            }
        });
        Ok(Response::new(TxnResponse { succeeded }))
    }
}

#[tonic::async_trait]
impl Lease for Fake {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let ttl = request.into_inner().ttl;
        Ok(Response::new(LeaseGrantResponse { id: 7, ttl }))
    }

    async fn lease_revoke(
        &self,
        _request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        Ok(Response::new(LeaseRevokeResponse {}))
    }

    type LeaseKeepAliveStream = tokio_stream::Once<Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let asked = request.into_inner().message().await?.unwrap();
        self.0.send_modify(|state| state.kept += 1);
        let kept = LeaseKeepAliveResponse {
            id: asked.id,
            ttl: 10,
        };
        Ok(Response::new(tokio_stream::once(Ok(kept))))
    }
}

#[tonic::async_trait]
impl Watch for Fake {
    type WatchStream = tokio_stream::Pending<Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let wants_leader = request.metadata().get("hasleader");
        if wants_leader.is_some_and(|value| value == "true") {
            self.0.send_modify(|state| state.watches_with_leader += 1);
        }
        Ok(Response::new(tokio_stream::pending()))
    }
}
