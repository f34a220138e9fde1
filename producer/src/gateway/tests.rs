//! Tests of the gateway over real sockets, on the log in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value as Json, json};
use shoal_runtime::{clock::System, eventually, http::Readiness, tasks::Tasks};
use shoal_schemas::{
    Collection, Point, PointId, Token,
    avro::NoRegistry,
    event,
    headers::Meta,
    v1::{DeleteRequest, UpsertRequest, publish_client::PublishClient},
};
use shoal_topic::{
    Deps, collections,
    control::{ControlHandle, ControlLog},
    memory::MemoryLog,
    registry::Registry,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt as _;

use super::{Addresses, Config, start};
use crate::publisher::tests::{collection, id, point, records};

const DEADLINE: Duration = Duration::from_secs(20);
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

pub(super) struct World {
    pub(super) log: MemoryLog,
    pub(super) control: ControlHandle,
    deps: Deps,
    at: Addresses,
    pub(super) docs: Collection,
}

impl World {
    pub(super) async fn start(config: Config) -> Self {
        Self::start_with(config, None).await
    }

    pub(super) async fn start_with(config: Config, registry: Option<Arc<Registry>>) -> Self {
        Self::start_on("memory", config, registry).await
    }

    /// On a cluster of this name.
    pub(super) async fn start_at(cluster: &str, config: Config) -> Self {
        Self::start_on(cluster, config, None).await
    }

    async fn start_on(cluster: &str, mut config: Config, registry: Option<Arc<Registry>>) -> Self {
        let log = MemoryLog::new(cluster, System::shared());
        ControlLog::ensure(&log.cluster(), None).unwrap();
        let tasks = Tasks::new(CancellationToken::new());
        let clock = System::shared();
        let control = ControlLog::spawn(&log.cluster(), &tasks, clock.clone()).unwrap();
        let docs = collection(2);
        collections::create(&log.cluster(), &control, docs.clone())
            .await
            .unwrap();
        let deps = Deps {
            cluster: log.cluster(),
            control: control.clone(),
            clock,
            schemas: Arc::new(NoRegistry),
            readiness: Readiness::default(),
            metrics: PrometheusBuilder::new().build_recorder().handle(),
            tasks,
        };
        let any = "127.0.0.1:0".parse().unwrap();
        (config.grpc_listen, config.http_listen) = (any, any);
        let at = start(&config, &deps, registry).await.unwrap();
        Self {
            log,
            control,
            deps,
            at,
            docs,
        }
    }

    /// A further collection, whose ids have tenants.
    pub(super) async fn with_tenants(&self, name: &str) {
        let shop = Collection {
            name: name.parse().unwrap(),
            route_by_key_prefix: true,
            ..collection(2)
        };
        collections::create(&self.log.cluster(), &self.control, shop)
            .await
            .unwrap();
    }

    /// Where its gRPC is.
    pub(super) fn grpc_address(&self) -> String {
        self.at.grpc.to_string()
    }

    pub(super) fn stop(&self) {
        self.deps.tasks.cancel().cancel();
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.at.http)
    }

    pub(super) async fn grpc(&self) -> PublishClient<Channel> {
        PublishClient::connect(format!("http://{}", self.at.grpc))
            .await
            .unwrap()
    }

    pub(super) async fn http(
        &self,
        method: &str,
        path: &str,
        body: impl Into<String>,
    ) -> (u16, Json) {
        let method = method.parse().unwrap();
        let request = reqwest::Client::new()
            .request(method, format!("http://{}{path}", self.at.http))
            .header("traceparent", TRACE)
            .body(body.into());
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (
            status,
            serde_json::from_str(&text).unwrap_or(Json::String(text)),
        )
    }

    pub(super) fn found(&self) -> Vec<shoal_schemas::Record> {
        self.found_in("docs")
    }

    pub(super) fn found_in(&self, collection: &str) -> Vec<shoal_schemas::Record> {
        let found = records(&self.log, &format!("embeddings.{collection}"), 2);
        found.into_iter().map(|(_, _, record)| record).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.deps.tasks.cancel().cancel();
    }
}

pub(super) fn upsert(collection: &str, points: &[(&str, &Point)]) -> UpsertRequest {
    UpsertRequest {
        collection: collection.into(),
        points: points
            .iter()
            .map(|(name, point)| point.to_proto(&id(name)))
            .collect(),
        conditions: Vec::new(),
    }
}

#[tokio::test]
async fn grpc_upserts_and_deletes_and_answers_tokens_in_order() {
    let world = World::start(Config::default()).await;
    let mut client = world.grpc().await;
    let points: Vec<(String, Point)> = (0..50_u8)
        .map(|n| (format!("id-{n}"), point(n.into())))
        .collect();
    let named: Vec<(&str, &Point)> = points.iter().map(|(id, p)| (id.as_str(), p)).collect();
    let mut request = Request::new(upsert("docs", &named));
    request
        .metadata_mut()
        .insert("traceparent", TRACE.parse().unwrap());
    let tokens = client.upsert(request).await.unwrap().into_inner().tokens;
    let keys: Vec<&str> = tokens.iter().map(|token| token.key.as_str()).collect();
    assert_eq!(keys, named.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    assert_eq!(tokens[0].cluster_id, "memory");
    let found = world.found();
    assert_eq!(found.len(), 50);
    for record in &found {
        assert_eq!(
            Meta::decode(record).unwrap().trace.unwrap().to_string(),
            TRACE
        );
        let id = PointId::from_key(record.key.as_deref()).unwrap();
        let value = record.value.as_ref().unwrap();
        let read = event::decode_value(&id, value, &world.docs, &NoRegistry).unwrap();
        let expected = points.iter().find(|(name, _)| name == id.as_str()).unwrap();
        assert_eq!(read, expected.1);
    }
    let request = DeleteRequest {
        collection: "docs".into(),
        ids: vec!["id-3".into(), "never-there".into()],
        conditions: Vec::new(),
    };
    let tokens = client.delete(request).await.unwrap().into_inner().tokens;
    assert_eq!(tokens.len(), 2);
    let deletes = world
        .found()
        .into_iter()
        .filter(|record| record.value.is_none());
    assert_eq!(deletes.count(), 2);
}

#[tokio::test]
async fn one_bad_point_fails_the_call_before_anything_is_published() {
    let world = World::start(Config::default()).await;
    let mut client = world.grpc().await;
    let good = point(1.0);
    let mut calls = Vec::new();
    let mut with = |told: &'static str, change: &dyn Fn(&mut shoal_schemas::v1::Point)| {
        let mut request = upsert("docs", &[("a", &good), ("b", &good), ("c", &good)]);
        change(&mut request.points[1]);
        calls.push((request, told));
    };
    with(
        "point 1 (id `b`) is refused, nothing was published: wrong_dimension",
        &|p| {
            p.vector.pop();
        },
    );
    with(
        "point 1 (id `b`) is refused, nothing was published: not_finite",
        &|p| {
            p.vector[2] = f32::NAN;
        },
    );
    with(
        "point 1 (id `b`) is refused, nothing was published: zero_vector",
        &|p| p.vector.fill(0.0),
    );
    with(
        "point 1 (id ``) is refused, nothing was published: bad_key",
        &|p| p.id.clear(),
    );
    with("record of `b` has", &|p| p.model = "m".repeat(2 << 20));
    for (request, told) in calls {
        let refused = client.upsert(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(
            refused.message().contains(told),
            "{told}: {}",
            refused.message()
        );
    }
    let request = DeleteRequest {
        collection: "docs".into(),
        ids: vec!["a".into(), String::new()],
        conditions: Vec::new(),
    };
    let refused = client.delete(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("id 1 is refused"), "{refused}");
    assert!(world.found().is_empty());
}

#[tokio::test]
async fn a_call_of_no_or_too_many_points_or_an_unknown_collection_is_refused() {
    let world = World::start(Config::default()).await;
    let mut client = world.grpc().await;
    let good = point(1.0);
    let many = vec![("a", &good); 1001];
    for (request, code, told) in [
        (
            upsert("docs", &[]),
            Code::InvalidArgument,
            "allowed are 1 to 1000",
        ),
        (
            upsert("docs", &many),
            Code::InvalidArgument,
            "call has 1001 points",
        ),
        (
            upsert("dosc", &[("a", &good)]),
            Code::NotFound,
            "`dosc` does not exist; there are: docs",
        ),
        (
            upsert("Docs", &[("a", &good)]),
            Code::InvalidArgument,
            "collection name is refused",
        ),
    ] {
        let refused = client.upsert(request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(
            refused.message().contains(told),
            "{told}: {}",
            refused.message()
        );
    }
}

#[tokio::test]
async fn json_over_http_does_the_same() {
    let world = World::start(Config::default()).await;
    let body = json!({ "points": [
        { "id": "a", "vector": [1, 2, 3, 4], "payload": { "title": "x" } },
        { "id": "b/c", "vector": [0.1, 0, 0, 0], "expires_at": "2030-01-01T00:00:00Z" },
    ]});
    let (status, answer) = world
        .http("PUT", "/v1/collections/docs/points", body.to_string())
        .await;
    assert_eq!(status, 200, "{answer}");
    let tokens = answer["tokens"].as_array().unwrap();
    let keys: Vec<PointId> = tokens
        .iter()
        .map(|token| token.as_str().unwrap().parse::<Token>().unwrap().key)
        .collect();
    assert_eq!(keys, [id("a"), id("b/c")]);
    assert_eq!(
        Meta::decode(&world.found()[0])
            .unwrap()
            .trace
            .unwrap()
            .to_string(),
        TRACE
    );

    for (method, path, body) in [
        ("DELETE", "/v1/collections/docs/points/a", String::new()),
        ("DELETE", "/v1/collections/docs/points/b/c", String::new()),
        ("DELETE", "/v1/collections/docs/points/b%2Fc", String::new()),
        (
            "DELETE",
            "/v1/collections/docs/points/delete",
            String::new(),
        ),
        (
            "POST",
            "/v1/collections/docs/points/delete",
            json!({ "ids": ["a"] }).to_string(),
        ),
    ] {
        let (status, answer) = world.http(method, path, body).await;
        assert_eq!(status, 200, "{path} {answer}");
    }
    let mut deleted: Vec<String> = world
        .found()
        .into_iter()
        .filter(|record| record.value.is_none())
        .map(|record| String::from_utf8(record.key.unwrap().to_vec()).unwrap())
        .collect();
    deleted.sort();
    assert_eq!(deleted, ["a", "a", "b/c", "b/c", "delete"]);
}

#[tokio::test]
async fn http_faults_have_a_code_a_status_and_a_reason() {
    let config = Config {
        max_body: bytesize::ByteSize::kib(64),
        ..Config::default()
    };
    let world = World::start(config).await;
    let put = "/v1/collections/docs/points";
    let huge = "x".repeat(65 << 10);
    for (method, path, body, status, code, told) in [
        (
            "PUT",
            put,
            "{\"points\"",
            400,
            "INVALID_ARGUMENT",
            "body does not read",
        ),
        (
            "PUT",
            put,
            r#"{"points":[],"x":1}"#,
            400,
            "INVALID_ARGUMENT",
            "unknown field `x`",
        ),
        (
            "PUT",
            put,
            r#"{"points":[]}"#,
            400,
            "INVALID_ARGUMENT",
            "allowed are 1 to 1000",
        ),
        (
            "PUT",
            put,
            r#"{"points":[{"id":"a","vector":[1]}]}"#,
            400,
            "INVALID_ARGUMENT",
            "point 0 (id `a`) is refused, nothing was published: wrong_dimension",
        ),
        (
            "PUT",
            put,
            r#"{"points":[{"vector":[1,2,3,4]}]}"#,
            400,
            "INVALID_ARGUMENT",
            "line has no `id`",
        ),
        (
            "PUT",
            put,
            &huge,
            413,
            "INVALID_ARGUMENT",
            "body is over 65536 bytes",
        ),
        (
            "PUT",
            "/v1/collections/nope/points",
            r#"{"points":[{"id":"a","vector":[1]}]}"#,
            404,
            "NOT_FOUND",
            "there are: docs",
        ),
        ("GET", put, "", 405, "UNIMPLEMENTED", "method"),
        ("GET", "/nowhere", "", 404, "NOT_FOUND", "no such path"),
    ] {
        let (found, answer) = world.http(method, path, body).await;
        let error = &answer["error"];
        let message = error["message"].as_str().unwrap_or_default();
        assert_eq!(
            (found, error["code"].as_str()),
            (status, Some(code)),
            "{path} {answer}"
        );
        assert!(message.contains(told), "{told}: {answer}");
    }
    assert!(world.found().is_empty());
}

#[tokio::test]
async fn while_the_broker_is_away_calls_say_so_and_work_again_afterwards() {
    let config = Config {
        deadline: Duration::from_millis(50),
        ..Config::default()
    };
    let world = World::start(config).await;
    let mut client = world.grpc().await;
    let good = point(1.0);
    client
        .upsert(upsert("docs", &[("first", &good)]))
        .await
        .unwrap();
    world.log.set_down(true);
    let refused = client
        .upsert(upsert("docs", &[("a", &good)]))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("repeat the call"), "{refused}");
    let body = json!({ "points": [{ "id": "a", "vector": [1, 2, 3, 4] }] }).to_string();
    let (status, answer) = world.http("PUT", "/v1/collections/docs/points", body).await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (503, &json!("UNAVAILABLE"))
    );

    // The log in memory queues 1,024 records, then its queue is full.
    let many = vec![("b", &good); 1000];
    let mut last = client.upsert(upsert("docs", &many)).await.unwrap_err();
    if last.code() != Code::ResourceExhausted {
        last = client.upsert(upsert("docs", &many)).await.unwrap_err();
    }
    assert_eq!(last.code(), Code::ResourceExhausted, "{last}");
    let retry = last.get_details_retry_info().unwrap();
    assert!(retry.retry_delay.is_some(), "{last}");

    world.log.set_down(false);
    let tokens = client
        .upsert(upsert("docs", &[("a", &good)]))
        .await
        .unwrap()
        .into_inner()
        .tokens;
    assert_eq!(tokens.len(), 1);
}

#[tokio::test]
async fn a_collection_made_anew_is_published_as_it_is_defined_now() {
    let world = World::start(Config::default()).await;
    let mut client = world.grpc().await;
    let good = point(1.0);
    client
        .upsert(upsert("docs", &[("a", &good)]))
        .await
        .unwrap();
    let cluster = world.log.cluster();
    collections::drop(&cluster, &world.control, &world.docs.name, true)
        .await
        .unwrap();
    let refused = client
        .upsert(upsert("docs", &[("a", &good)]))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().contains("there is none yet"), "{refused}");
    let mut other = world.docs.clone();
    other.partitions = 7;
    collections::create(&cluster, &world.control, other)
        .await
        .unwrap();
    for n in 0..20 {
        let name = format!("{n}");
        let tokens = client
            .upsert(upsert("docs", &[(&name, &good)]))
            .await
            .unwrap();
        assert!(tokens.into_inner().tokens[0].partition < 7);
    }
    assert_eq!(records(&world.log, "embeddings.docs", 7).len(), 20);
}

#[tokio::test]
async fn health_and_readiness_say_whether_the_definitions_are_known() {
    let world = World::start(Config::default()).await;
    let (status, _) = world.http("GET", "/healthz", "").await;
    assert_eq!(status, 200);
    assert_eq!(world.http("GET", "/readyz", "").await.0, 200);
    assert_eq!(world.http("GET", "/metrics", "").await.0, 200);
    let channel = Channel::from_shared(format!("http://{}", world.at.grpc)).unwrap();
    let mut health = HealthClient::new(channel.connect().await.unwrap());
    let request = HealthCheckRequest {
        service: "shoal.v1.Publish".into(),
    };
    let answer = health.check(request).await.unwrap().into_inner();
    assert_eq!(answer.status, 1);
    world
        .deps
        .readiness
        .set("planted", || Err("not yet".into()));
    assert_eq!(world.http("GET", "/readyz", "").await.0, 503);
}

#[tokio::test]
async fn it_ends_with_the_tasks() {
    let world = World::start(Config::default()).await;
    world.deps.tasks.cancel().cancel();
    world.deps.tasks.finish(DEADLINE).await.unwrap();
    let at = world.at.http;
    eventually(DEADLINE, "the port to be free", || {
        std::net::TcpListener::bind(at).ok()
    });
}
