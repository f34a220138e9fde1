//! What the console stands on: its page and scripts, texts as vectors, shards as they are served.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::post,
};
use reqwest::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use serde_json::{Value, json};
use shoal_query::{Config, config::EmbeddingConfig};
use shoal_runtime::{http::bind, tasks::Tasks};
use tokio_util::sync::CancellationToken;

use crate::{
    indexer::Behaviour,
    world::{World, collection, fill},
};

/// An endpoint that speaks OpenAI's `/v1/embeddings`: a text's vector is `(its length, 0, 0)`.
pub struct EmbeddingEndpoint {
    address: SocketAddr,
    state: Arc<Mutex<Endpoint>>,
    tasks: Tasks,
}

#[derive(Default)]
struct Endpoint {
    /// What it answers in place of a vector.
    instead: Option<(u16, String)>,
    hangs: bool,
    /// Authorization and body of each request.
    seen: Vec<(Option<String>, Value)>,
}

impl Drop for EmbeddingEndpoint {
    fn drop(&mut self) {
        self.tasks.cancel().cancel();
    }
}

impl EmbeddingEndpoint {
    pub async fn start() -> Self {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<Mutex<Endpoint>>::default();
        let router = Router::new()
            .route("/v1/embeddings", post(embed))
            .with_state(state.clone());
        let tasks = Tasks::new(CancellationToken::new());
        let cancel = tasks.cancel().clone();
        tasks.spawn("embedding endpoint", async move {
            tokio::select! {
                () = cancel.cancelled() => Ok(()),
                ended = async { axum::serve(listener, router).await } => ended,
            }
        });
        Self {
            address,
            state,
            tasks,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1/embeddings", self.address)
    }

    fn answer_instead(&self, status: u16, body: &str) {
        self.state.lock().unwrap().instead = Some((status, body.to_owned()));
    }

    fn hang(&self) {
        self.state.lock().unwrap().hangs = true;
    }

    pub fn seen(&self) -> Vec<(Option<String>, Value)> {
        self.state.lock().unwrap().seen.clone()
    }

    /// A node that asks it.
    pub async fn world(&self, api_key: Option<&str>) -> World {
        let config = Config {
            embedding: EmbeddingConfig {
                url: Some(self.url()),
                model: Some("tiny".into()),
                api_key: api_key.map(str::to_owned),
                ..EmbeddingConfig::default()
            },
            ..Config::default()
        };
        World::start_with(config, true).await
    }
}

async fn embed(
    State(state): State<Arc<Mutex<Endpoint>>>,
    headers: HeaderMap,
    Json(asked): Json<Value>,
) -> Response {
    let key = headers.get("authorization");
    let key = key.map(|value| value.to_str().unwrap().to_owned());
    let length = asked["input"][0].as_str().unwrap().len();
    let (instead, hangs) = {
        let mut state = state.lock().unwrap();
        state.seen.push((key, asked));
        (state.instead.clone(), state.hangs)
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    if let Some((status, body)) = instead {
        return (StatusCode::from_u16(status).unwrap(), body).into_response();
    }
    let embedding = json!({"object": "embedding", "index": 0, "embedding": [length, 0, 0]});
    Json(json!({"object": "list", "data": [embedding], "model": "tiny"})).into_response()
}

async fn post_text(world: &World, query: &str, text: &str) -> (u16, Value) {
    let sent = world.http.post(world.url(&format!("/v1/embed{query}")));
    let answer = sent.json(&json!({ "text": text })).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn get(world: &World, path: &str) -> Value {
    let answer = world.http.get(world.url(path)).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    answer.json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_becomes_the_vector_that_the_endpoint_makes_of_it() {
    let endpoint = EmbeddingEndpoint::start().await;
    let world = endpoint.world(Some("sesame")).await;
    let (status, told) = post_text(&world, "", "seven b").await;
    let expected = json!({"vector": [7.0, 0.0, 0.0], "model": "tiny"});
    assert_eq!((status, told), (200, expected));
    let [(key, asked)] = &endpoint.seen()[..] else {
        panic!("{:?}", endpoint.seen());
    };
    assert_eq!(key.as_deref(), Some("Bearer sesame"));
    let wanted = json!({"model": "tiny", "input": ["seven b"], "encoding_format": "float"});
    assert_eq!(*asked, wanted);
    let node = get(&world, "/v1/node").await;
    assert_eq!(node["embedding_model"], "tiny");
    let metrics = world.http.get(world.url("/metrics")).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let mut lines = metrics.lines();
    assert!(lines.any(|line| line.starts_with("query_embed_seconds") && line.contains("\"ok\"")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_fails_is_told_apart() {
    let endpoint = EmbeddingEndpoint::start().await;
    let world = endpoint.world(None).await;
    let code = |told: &Value| told["error"]["code"].as_str().unwrap().to_owned();
    for (status, body, http, expected) in [
        (401, "no key", 400, "FAILED_PRECONDITION"),
        (429, "slowly", 503, "UNAVAILABLE"),
        (502, "", 503, "UNAVAILABLE"),
        (302, "", 400, "FAILED_PRECONDITION"),
        (200, "{}", 400, "FAILED_PRECONDITION"),
        (200, r#"{"data":[]}"#, 400, "FAILED_PRECONDITION"),
    ] {
        endpoint.answer_instead(status, body);
        let (found, told) = post_text(&world, "", "x").await;
        assert_eq!(
            (found, code(&told).as_str()),
            (http, expected),
            "{status} {body}: {told}"
        );
        let message = told["error"]["message"].as_str().unwrap();
        assert!(status == 200 || message.contains(body), "{message}");
    }
    let long = "x".repeat((64 << 10) + 1);
    for text in ["", &long] {
        let (found, told) = post_text(&world, "", text).await;
        assert_eq!(
            (found, code(&told).as_str()),
            (400, "INVALID_ARGUMENT"),
            "{told}"
        );
    }
    endpoint.hang();
    let (found, told) = post_text(&world, "?timeout_ms=50", "x").await;
    assert_eq!(
        (found, code(&told).as_str()),
        (504, "DEADLINE_EXCEEDED"),
        "{told}"
    );

    let gone = EmbeddingEndpoint::start().await;
    let world = gone.world(None).await;
    drop(gone);
    world
        .until("the endpoint to be gone", async || {
            let (found, told) = post_text(&world, "", "x").await;
            (found == 503 && code(&told) == "UNAVAILABLE").then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_endpoint_texts_are_refused_with_what_to_set() {
    let world = World::start().await;
    let (status, told) = post_text(&world, "", "x").await;
    assert_eq!(status, 400);
    let message = told["error"]["message"].as_str().unwrap();
    assert!(message.contains("query.embedding.url"), "{message}");
    assert_eq!(
        get(&world, "/v1/node").await["embedding_model"],
        Value::Null
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shard_is_listed_whether_it_answers_or_not() {
    let world = World::start().await;
    let docs = collection("docs", 3);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 30);
    world.claim(&docs, 2, &indexers[2], false).await;
    indexers[1].behave(Behaviour::Fails(tonic::Code::Internal));
    let told = get(&world, "/v1/collections/docs/shards").await;
    let shards = told["shards"].as_array().unwrap();
    let states: Vec<_> = shards
        .iter()
        .map(|shard| {
            (
                shard["shard"].as_u64(),
                shard["ready"] == true,
                shard["answered"] == true,
            )
        })
        .collect();
    let expected = [
        (Some(0), true, true),
        (Some(1), true, false),
        // Who is not ready is not searched, and asked all the same how far it is.
        (Some(2), false, true),
    ];
    assert_eq!(states, expected, "{told}");
    assert_eq!(shards[0]["node"], "node-0");
    assert_eq!(shards[0]["digest"].as_str().unwrap().len(), 32);
    assert!(shards[0]["points"].as_u64().unwrap() > 0);
    assert!(shards[1]["error"].as_str().unwrap().contains("planted"));
    assert_eq!(shards[1].get("points"), None);
    assert!(shards[2]["points"].as_u64().unwrap() > 0);
    world.define(&collection("orphaned", 1)).await;
    let told = get(&world, "/v1/collections/orphaned/shards").await;
    let shard = &told["shards"][0];
    assert_eq!(
        (&shard["node"], &shard["answered"]),
        (&json!(""), &json!(false))
    );
    assert!(
        shard["error"]
            .as_str()
            .unwrap()
            .contains("no indexer has claimed")
    );

    let request = shoal_schemas::v1::ShardsRequest {
        collection: "docs".into(),
    };
    let over_grpc = world.search().shards(request).await.unwrap().into_inner();
    let live: Vec<u64> = over_grpc
        .shards
        .iter()
        .map(|shard| shard.live_points)
        .collect();
    let of = |shard: usize| shards[shard]["points"].as_u64().unwrap();
    assert_eq!(live, [of(0), 0, of(2)]);
    let missing = world.http.get(world.url("/v1/collections/nothing/shards"));
    assert_eq!(missing.send().await.unwrap().status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_loads_nothing_from_elsewhere() {
    let world = World::start().await;
    let fetch = async |path: &str| {
        let answer = world.http.get(world.url(path)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        let header = |name| answer.headers()[&name].to_str().unwrap().to_owned();
        let (policy, kind) = (header(CONTENT_SECURITY_POLICY), header(CONTENT_TYPE));
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        (kind, answer.text().await.unwrap())
    };
    let (kind, page) = fetch("/").await;
    assert!(kind.starts_with("text/html"), "{kind}");
    assert!(
        !page.contains("<script>") && !page.contains("style=\""),
        "the policy forbids both"
    );
    let mut loads: Vec<String> = Vec::new();
    for attribute in ["src=\"/", "href=\"/console"] {
        let found = page
            .split(attribute)
            .skip(1)
            .filter_map(|rest| rest.split('"').next());
        let root = attribute.split('"').nth(1).unwrap();
        loads.extend(found.map(|rest| format!("{root}{rest}")));
    }
    assert!(loads.len() >= 2, "{loads:?}");
    let mut scripts = 0;
    while let Some(path) = loads.pop() {
        let (kind, text) = fetch(&path).await;
        assert!(
            !text.contains("http://") || path.ends_with("plot.js"),
            "{path}"
        );
        assert!(!text.contains("https://"), "{path}");
        if kind.starts_with("text/javascript") {
            scripts += 1;
            let imports = text
                .split("from \"./")
                .skip(1)
                .filter_map(|rest| rest.split('"').next());
            loads.extend(imports.map(|name| format!("/console/{name}")));
        }
    }
    assert!(scripts >= 4, "{scripts}");
}

/// Deadlines of the shards' own list, so that a console never waits for a dead node.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hangs_is_listed_in_time() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    indexers[0].behave(Behaviour::Hangs);
    let asked = get(&world, "/v1/collections/docs/shards?timeout_ms=300");
    let told = tokio::time::timeout(Duration::from_secs(30), asked).await;
    let told = told.expect("in time");
    assert_eq!(told["shards"][0]["answered"], false);
    assert_eq!(told["shards"][1]["answered"], true);
}
