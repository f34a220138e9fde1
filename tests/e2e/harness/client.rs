//! Clients: gRPC as generated from the published protobuf files, HTTP as anybody's.

use std::{net::SocketAddr, time::Duration};

use serde_json::Value;
use shoal_schemas::v1::{
    self, collections_client::CollectionsClient, publish_client::PublishClient,
    search_client::SearchClient, shard_client::ShardClient,
};
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

use super::{runtime, wait};

/// Longest message: a batch with vectors is larger than gRPC's default of 4 MiB.
const MAX_BYTES: usize = 64 << 20;

/// A channel that connects when it is used.
pub(crate) fn channel(to: SocketAddr) -> Channel {
    let _inside = runtime().enter();
    let endpoint = Endpoint::from_shared(format!("http://{to}")).unwrap();
    endpoint
        .connect_timeout(Duration::from_secs(5))
        .connect_lazy()
}

/// A request that has to be answered in `time`.
pub(crate) fn within<T>(time: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(time);
    request
}

/// Searches, gets, counts.
#[derive(Clone)]
pub(crate) struct Query {
    pub(crate) search: SearchClient<Channel>,
    pub(crate) collections: CollectionsClient<Channel>,
    pub(crate) http: SocketAddr,
}

impl Query {
    pub(crate) fn to(grpc: SocketAddr, http: SocketAddr) -> Self {
        let channel = channel(grpc);
        Self {
            search: SearchClient::new(channel.clone()).max_decoding_message_size(MAX_BYTES),
            collections: CollectionsClient::new(channel),
            http,
        }
    }

    pub(crate) fn search(&self, ask: v1::SearchRequest) -> Result<v1::SearchResponse, Status> {
        let mut client = self.search.clone();
        let request = within(Duration::from_secs(20), ask);
        wait(client.search(request)).map(tonic::Response::into_inner)
    }

    pub(crate) fn search_batch(
        &self,
        ask: v1::SearchBatchRequest,
    ) -> Result<v1::SearchBatchResponse, Status> {
        let mut client = self.search.clone();
        let request = within(Duration::from_secs(60), ask);
        wait(client.search_batch(request)).map(tonic::Response::into_inner)
    }

    pub(crate) fn get(&self, ask: v1::GetRequest) -> Result<v1::GetResponse, Status> {
        let mut client = self.search.clone();
        let request = within(Duration::from_secs(20), ask);
        wait(client.get(request)).map(tonic::Response::into_inner)
    }

    pub(crate) fn count(&self, ask: v1::CountRequest) -> Result<v1::CountResponse, Status> {
        let mut client = self.search.clone();
        let request = within(Duration::from_secs(20), ask);
        wait(client.count(request)).map(tonic::Response::into_inner)
    }

    /// `POST` of a JSON body; the status and the answer.
    pub(crate) fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        json(reqwest::Method::POST, self.http, path, body)
    }
}

/// Writes through the gateway.
#[derive(Clone)]
pub(crate) struct Gateway {
    pub(crate) publish: PublishClient<Channel>,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
}

impl Gateway {
    pub(crate) fn to(grpc: SocketAddr, http: SocketAddr) -> Self {
        Self {
            publish: PublishClient::new(channel(grpc)),
            grpc,
            http,
        }
    }

    pub(crate) fn upsert(
        &self,
        collection: &str,
        points: Vec<v1::Point>,
    ) -> Result<Vec<v1::Token>, Status> {
        let mut client = self.publish.clone();
        let ask = v1::UpsertRequest {
            collection: collection.to_owned(),
            points,
            conditions: Vec::new(),
        };
        let answer = wait(client.upsert(within(Duration::from_secs(20), ask)));
        answer.map(|answer| answer.into_inner().tokens)
    }

    pub(crate) fn delete(&self, collection: &str, ids: &[&str]) -> Result<Vec<v1::Token>, Status> {
        let mut client = self.publish.clone();
        let ask = v1::DeleteRequest {
            collection: collection.to_owned(),
            ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            conditions: Vec::new(),
        };
        let answer = wait(client.delete(within(Duration::from_secs(20), ask)));
        answer.map(|answer| answer.into_inner().tokens)
    }

    /// Changes part of one point; what came of it.
    pub(crate) fn patch(
        &self,
        collection: &str,
        patch: v1::PointPatch,
    ) -> Result<v1::Token, v1::WriteFailure> {
        let mut client = self.publish.clone();
        let ask = v1::PatchRequest {
            collection: collection.to_owned(),
            points: vec![patch],
        };
        let answer = wait(client.patch(within(Duration::from_secs(60), ask))).unwrap();
        let result = answer.into_inner().results.pop().unwrap();
        match result.outcome.unwrap() {
            v1::write_result::Outcome::Token(token) => Ok(token),
            v1::write_result::Outcome::Failure(failure) => Err(failure),
        }
    }
}

/// A client of an indexer's own service.
pub(crate) fn shard(grpc: SocketAddr) -> ShardClient<Channel> {
    ShardClient::new(channel(grpc)).max_decoding_message_size(MAX_BYTES)
}

fn http() -> reqwest::Client {
    // A connection of its own each time: roles come and go at an address.
    let built = reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0)
        .timeout(Duration::from_secs(30))
        .build();
    built.unwrap()
}

/// `GET`; `None` while nobody listens.
pub(crate) fn try_get(at: SocketAddr, path: &str) -> Option<(u16, String)> {
    wait(async {
        let answer = http().get(format!("http://{at}{path}")).send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.text().await.ok()?))
    })
}

/// `GET` that has to be answered.
#[track_caller]
pub(crate) fn get(at: SocketAddr, path: &str) -> (u16, String) {
    try_get(at, path).expect("the role answers")
}

/// A request with a JSON body; the status and the JSON answered.
#[track_caller]
pub(crate) fn json(
    method: reqwest::Method,
    at: SocketAddr,
    path: &str,
    body: &Value,
) -> (u16, Value) {
    json_with(method, at, path, body, &[])
}

/// The same with headers.
#[track_caller]
pub(crate) fn json_with(
    method: reqwest::Method,
    at: SocketAddr,
    path: &str,
    body: &Value,
    headers: &[(&'static str, String)],
) -> (u16, Value) {
    wait(async {
        let mut request = http()
            .request(method, format!("http://{at}{path}"))
            .header("content-type", "application/json")
            .body(body.to_string());
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        let parsed = serde_json::from_str(&text);
        (
            status,
            parsed.unwrap_or_else(|error| panic!("{error}: {text}")),
        )
    })
}

/// A search for `k` neighbours, everything else at its default.
pub(crate) fn search(collection: &str, vector: &[f32], k: u32) -> v1::SearchRequest {
    v1::SearchRequest {
        collection: collection.to_owned(),
        vector: vector.to_vec(),
        k,
        ..v1::SearchRequest::default()
    }
}

/// What the answer has to include.
pub(crate) fn at_least(tokens: &[v1::Token]) -> Option<v1::ReadOptions> {
    Some(v1::ReadOptions {
        at_least: tokens.to_vec(),
        require_all: true,
        max_staleness_ms: None,
    })
}

/// Ids of hits, in order.
pub(crate) fn ids(hits: &[v1::Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.id.as_str()).collect()
}
