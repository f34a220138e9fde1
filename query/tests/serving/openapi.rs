//! The document at `/openapi.json` and the server say the same, in both directions.
//!
//! Paths are held against the routes beside these (`http/mod.rs`); here every example is sent, every
//! answer is checked against its schema, and the server is asked which fields and methods it knows.

use std::{collections::BTreeSet, time::Duration};

use reqwest::Method;
use serde_json::{Value as Json, json};
use shoal_runtime::openapi::{Document, Operation, expected_fields};
use shoal_schemas::{Collection, FieldKind, Payload, Point, PointId, Value, Vector};
use tonic::Code;

use crate::{
    console::EmbeddingEndpoint,
    edge::{Edge, keeping},
    indexer::{Behaviour, Indexer},
    world::{PATIENCE, World, collection, point},
};

/// A field and a parameter that nobody has.
const NOBODYS: &str = "zz_nobodys";
const ERROR: &str = "/components/schemas/Error";
const METHODS: [&str; 5] = ["get", "put", "post", "patch", "delete"];
/// Those of every role; they answer whatever the query string says.
const OPS: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

fn shop() -> Collection {
    let mut shop = collection("shop", 2);
    shop.route_by_key_prefix = true;
    shop
}

/// The collection of the document's examples, with points that have everything a point can have.
async fn opened(endpoint: &EmbeddingEndpoint) -> (World, Vec<Indexer>) {
    let world = endpoint.world(None).await;
    let mut shop = shop();
    // Never both in life; here it shows all that an answer can have.
    shop.reads = Some("older".parse().unwrap());
    shop.fed_by = Some("oldest".parse().unwrap());
    shop.fields = [
        ("category", FieldKind::Integer),
        ("words", FieldKind::Keyword),
        ("year", FieldKind::Integer),
    ]
    .map(|(name, kind)| (name.to_owned(), kind))
    .into();
    let indexers = world.spread(&shop).await;
    // A further one, which has what excludes that.
    let mut areas = collection("areas", 2);
    let label = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
    areas.split_keys = vec!["m".to_owned()];
    areas.placement = label("region", "eu");
    areas.tenant_placement = [("hot".to_owned(), label("gpu", "true"))].into();
    world.define(&areas).await;
    world.claim_in(&shop, 0, Some("second"), &indexers[0]).await;
    world.alias("live", &shop).await;
    for n in 0..40u16 {
        let words = ["red", "blue"].map(str::to_owned).to_vec();
        let point = Point {
            vector: Vector::new(&[f32::from(n), 0.0, 0.0], shop.dim, shop.metric).unwrap(),
            payload: Payload(
                [
                    ("category".to_owned(), Value::Integer(3)),
                    ("words".to_owned(), Value::Strings(words)),
                    ("year".to_owned(), Value::Integer(2000 + i64::from(n))),
                ]
                .into(),
            ),
            model: Some("tiny".into()),
            event_time_ms: Some(1_700_000_000_000),
            expires_at_ms: Some(4_000_000_000_000),
        };
        let id = PointId::new(&format!("acme/{n}")).unwrap();
        let mut put = (indexers.iter()).map(|one| one.node.upsert(&shop, &id, &point));
        assert!(put.any(|put| put.is_some()));
    }
    (world, indexers)
}

async fn document(world: &World) -> Document {
    let answer = world
        .http
        .get(world.url("/openapi.json"))
        .send()
        .await
        .unwrap();
    Document::parse(&answer.text().await.unwrap()).unwrap()
}

/// The bodies of an operation's examples; one `None` where it takes none.
fn bodies(document: &Document, operation: &Operation) -> Vec<Option<Json>> {
    let bodies = operation.bodies(document).into_iter();
    let bodies: Vec<_> = bodies.map(|(_, body)| Some(body)).collect();
    if bodies.is_empty() {
        vec![None]
    } else {
        bodies
    }
}

/// Sends, and gives the status and the body as JSON, or as a JSON text where it is none.
async fn send(
    world: &World,
    method: &str,
    path: &str,
    query: &str,
    body: Option<&Json>,
) -> (u16, Json) {
    let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
    let url = format!("{}?{query}", world.url(path));
    let mut request = world.http.request(method, url);
    if let Some(body) = body {
        request = request.json(body);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap();
    let json = serde_json::from_str(&text).unwrap_or(Json::String(text));
    (status, json)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_is_answered_as_the_document_says() {
    let endpoint = EmbeddingEndpoint::start().await;
    let (world, indexers) = opened(&endpoint).await;
    let mut document = document(&world).await;
    let shop = shop();
    let mut answers = BTreeSet::new();
    for operation in document.operations() {
        let (path, query) = operation.target(&document);
        for body in bodies(&document, &operation) {
            if let Some(body) = &body {
                let schema = operation.body_schema(&document);
                let checked = document.check(&schema, body);
                checked.unwrap_or_else(|fault| panic!("example of {operation:?}: {fault}"));
            }
            let (status, told) =
                send(&world, &operation.method, &path, &query, body.as_ref()).await;
            assert!(status < 300, "{operation:?} {body:?}: {status} {told}");
            let schema = operation.answer_schema(&document, status);
            let checked = document.check(&schema, &told);
            checked.unwrap_or_else(|fault| panic!("answer of {operation:?}: {fault} in {told}"));
            answers.insert(schema);
            if operation.method == "put" {
                world
                    .until("the collection to be known", async || {
                        let (status, _) = send(&world, "get", &path, "", None).await;
                        (status == 200).then_some(())
                    })
                    .await;
            }
        }
    }
    // What only a search for very many groups answers.
    for n in 0..700u16 {
        let mut alone = point(&shop, f32::from(n));
        let year = Value::Integer(3000 + i64::from(n));
        alone.payload.0.insert("year".to_owned(), year);
        let id = PointId::new(&format!("tenant-{n}/alone")).unwrap();
        let mut put = (indexers.iter()).map(|one| one.node.upsert(&shop, &id, &alone));
        assert!(put.any(|put| put.is_some()));
    }
    let group_by = json!({"field": "year", "group_size": 2});
    let many = json!({"vector": [0, 0, 0], "k": 300, "group_by": group_by});
    let path = "/v1/collections/shop/search";
    let (status, told) = send(&world, "post", path, "", Some(&many)).await;
    assert_eq!(status, 200);
    document
        .check("/components/schemas/SearchResponse", &told)
        .unwrap();
    // What only an edge node answers, the second time from what it keeps.
    let region = ("near", world.addresses.grpc);
    let edge = Edge::start(&[region], keeping(PATIENCE), Duration::ZERO).await;
    let search = json!({"vector": [0, 0, 0], "k": 1});
    for _ in 0..2 {
        let told = edge.told("post", path, Some(&search)).await;
        let checked = document.check("/components/schemas/SearchResponse", &told);
        checked.unwrap();
    }
    let told = edge.told("get", "/v1/node", None).await;
    let checked = document.check("/components/schemas/NodeResponse", &told);
    checked.unwrap();
    // What only a cluster in trouble answers: a shard that is silent, and nothing at all.
    indexers[0].behave(Behaviour::Fails(Code::Unavailable));
    let (status, told) = send(&world, "post", path, "", Some(&search)).await;
    assert_eq!(status, 200);
    document
        .check("/components/schemas/SearchResponse", &told)
        .unwrap();
    let (_, told) = send(&world, "get", "/v1/collections/shop/shards", "", None).await;
    document
        .check("/components/schemas/ShardsResponse", &told)
        .unwrap();
    indexers[1].behave(Behaviour::Fails(Code::Unavailable));
    let (status, told) = send(&world, "post", path, "", Some(&search)).await;
    assert_eq!(status, 503);
    document.check(ERROR, &told).unwrap();
    let unseen = document.unseen(answers.iter().map(String::as_str));
    assert_eq!(unseen, BTreeSet::new(), "answers never had these");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_takes_the_fields_of_the_document_and_no_others() {
    let endpoint = EmbeddingEndpoint::start().await;
    let (world, _) = opened(&endpoint).await;
    let mut document = document(&world).await;
    let mut asked = BTreeSet::new();
    for operation in document.operations() {
        if OPS.contains(&operation.path.as_str()) {
            continue;
        }
        let (path, query) = operation.target(&document);
        // Parameters of the query string.
        let with_nobodys = format!("{query}&{NOBODYS}=1");
        let body = bodies(&document, &operation).swap_remove(0);
        let (status, told) = send(
            &world,
            &operation.method,
            &path,
            &with_nobodys,
            body.as_ref(),
        )
        .await;
        let of_query = operation.query_names(&document);
        let known = told["error"]["message"].as_str().and_then(expected_fields);
        assert_eq!(known.unwrap_or_default(), of_query, "{operation:?}: {told}");
        if !of_query.is_empty() {
            assert_eq!(status, 400, "{operation:?}");
        }
        // Fields of the body, at every place where the examples have an object.
        for body in bodies(&document, &operation).into_iter().flatten() {
            // A filter names its words in its own way: its examples are sent, and that is all that
            // is known of it here.
            for (place, schema) in operation.objects(&document, &body, &["Filter"]) {
                let mut probe = body.clone();
                probe.pointer_mut(&place).unwrap()[NOBODYS] = json!(1);
                let (status, told) = send(&world, &operation.method, &path, "", Some(&probe)).await;
                assert_eq!(status, 400, "{operation:?} took {probe}");
                document.check(ERROR, &told).unwrap();
                let message = told["error"]["message"].as_str().unwrap();
                let known = expected_fields(message).unwrap_or_else(|| panic!("{message}"));
                let written = document.properties(&schema).unwrap();
                assert_eq!(known, written, "{operation:?} at `{place}`");
                asked.insert(document.resolved(&schema));
            }
            // A field can be left out unless the document says that it cannot.
            let schema = document.resolved(&operation.body_schema(&document));
            let required = document.at(&schema).clone();
            let required = required["required"].as_array().cloned().unwrap_or_default();
            for name in required {
                let mut probe = body.clone();
                probe
                    .as_object_mut()
                    .unwrap()
                    .remove(name.as_str().unwrap());
                let (status, told) = send(&world, &operation.method, &path, "", Some(&probe)).await;
                assert_eq!(status, 400, "{operation:?} without {name}: {told}");
            }
        }
    }
    let names = ["GroupBy", "After", "Query", "IndexParameters", "Definition"];
    for name in names {
        let schema = format!("/components/schemas/{name}");
        assert!(asked.contains(&schema), "no example has a {name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_takes_the_methods_of_the_document_and_no_others() {
    let endpoint = EmbeddingEndpoint::start().await;
    let (world, _) = opened(&endpoint).await;
    let document = document(&world).await;
    let operations = document.operations();
    for path in document.paths() {
        if OPS.contains(&path.as_str()) {
            continue;
        }
        let of_path = || operations.iter().filter(|one| one.path == path);
        let (sent_to, _) = of_path().next().unwrap().target(&document);
        for method in METHODS {
            let (status, told) = send(&world, method, &sent_to, "", None).await;
            let is_written = of_path().any(|one| one.method == method);
            assert_eq!(status != 405, is_written, "{method} {path}: {told}");
        }
    }
}
