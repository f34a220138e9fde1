//! The gateway's `/openapi.json` and the gateway say the same, in both directions.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};
use shoal_runtime::openapi::{Document, Operation, expected_fields};
use tokio::task::JoinSet;

use super::{
    Config,
    resolve_tests::{Owner, claim},
    tests::World,
};

/// A field and a parameter that nobody has.
const NOBODYS: &str = "zz_nobodys";
const METHODS: [&str; 5] = ["get", "put", "post", "patch", "delete"];
/// Those of every role; they answer whatever the query string says.
const OPS: [&str; 3] = ["/healthz", "/readyz", "/metrics"];
/// What a point has beside the fields of a record: taken off before the rest is read.
const CONDITIONS: [&str; 2] = ["if_version", "if_absent"];

async fn opened(tasks: &mut JoinSet<()>) -> (World, Document) {
    let world = World::start(Config::default()).await;
    for shard in 0..2 {
        let at = Owner::willing().start(tasks);
        claim(&world, shard, at, true).await;
    }
    let (status, told) = world.http("GET", "/openapi.json", "").await;
    assert_eq!(status, 200);
    (world, Document::parse(&told.to_string()).unwrap())
}

/// The bodies of an operation's examples as they are sent; one that is empty where it takes none.
fn bodies(document: &Document, operation: &Operation) -> Vec<Option<Json>> {
    let bodies = operation.bodies(document).into_iter();
    let bodies: Vec<_> = bodies.map(|(_, body)| Some(body)).collect();
    if bodies.is_empty() {
        vec![None]
    } else {
        bodies
    }
}

async fn send(
    world: &World,
    operation: &Operation,
    target: &str,
    body: Option<&Json>,
) -> (u16, Json) {
    let body = body.map(Json::to_string).unwrap_or_default();
    world
        .http(&operation.method.to_uppercase(), target, body)
        .await
}

#[tokio::test]
async fn every_example_is_answered_as_the_document_says() {
    let mut tasks = JoinSet::new();
    let (world, mut document) = opened(&mut tasks).await;
    let mut answers = BTreeSet::new();
    for operation in document.operations() {
        let (path, query) = operation.target(&document);
        for body in bodies(&document, &operation) {
            if let Some(body) = &body {
                let schema = operation.body_schema(&document);
                let checked = document.check(&schema, body);
                checked.unwrap_or_else(|fault| panic!("example of {operation:?}: {fault}"));
            }
            // With and without what only a conditional write says.
            for query in [query.as_str(), ""] {
                let target = format!("{path}?{query}");
                let (status, told) = send(&world, &operation, &target, body.as_ref()).await;
                assert_eq!(status, 200, "{operation:?} {body:?}: {told}");
                let schema = operation.answer_schema(&document, status);
                let checked = document.check(&schema, &told);
                checked.unwrap_or_else(|fault| panic!("{operation:?}: {fault} in {told}"));
                answers.insert(schema);
            }
        }
    }
    let (status, told) = world.http("POST", "/v1/collections/docs/points", "{").await;
    assert_eq!(status, 400);
    document
        .check("/components/schemas/LinesError", &told)
        .unwrap();
    answers.insert("/components/schemas/LinesError".to_owned());
    // A version that is not the one asked for, by an owner that says so.
    let failed = json!({"results": [
        {"error": {"code": "ABORTED", "message": "no", "current_version": "8"}}]});
    document
        .check("/components/schemas/ResultsResponse", &failed)
        .unwrap();
    let unseen = document.unseen(answers.iter().map(String::as_str));
    assert_eq!(unseen, BTreeSet::new(), "answers never had these");
}

#[tokio::test]
async fn the_gateway_takes_the_fields_of_the_document_and_no_others() {
    let mut tasks = JoinSet::new();
    let (world, mut document) = opened(&mut tasks).await;
    for operation in document.operations() {
        if OPS.contains(&operation.path.as_str()) {
            continue;
        }
        let (path, query) = operation.target(&document);
        let of_query = operation.query_names(&document);
        if !of_query.is_empty() {
            let body = bodies(&document, &operation).swap_remove(0);
            let target = format!("{path}?{query}&{NOBODYS}=1");
            let (status, told) = send(&world, &operation, &target, body.as_ref()).await;
            assert_eq!(status, 400, "{operation:?}");
            let message = told["error"]["message"].as_str().unwrap();
            let known = expected_fields(message).unwrap_or_else(|| panic!("{message}"));
            assert_eq!(known, of_query, "{operation:?}");
        }
        for body in bodies(&document, &operation).into_iter().flatten() {
            for (place, schema) in operation.objects(&document, &body, &[]) {
                let mut probe = body.clone();
                probe.pointer_mut(&place).unwrap()[NOBODYS] = json!(1);
                let (status, told) = send(&world, &operation, &path, Some(&probe)).await;
                assert_eq!(status, 400, "{operation:?} took {probe}");
                let answer = operation.answer_schema(&document, status);
                document.check(&answer, &told).unwrap();
                let message = told["error"]["message"].as_str().unwrap();
                let mut known = expected_fields(message).unwrap_or_else(|| panic!("{message}"));
                if schema.ends_with("/Point") {
                    known.extend(CONDITIONS.map(str::to_owned));
                }
                let written = document.properties(&schema).unwrap();
                assert_eq!(known, written, "{operation:?} at `{place}`");
            }
            let schema = document.resolved(&operation.body_schema(&document));
            let required = document.at(&schema).clone();
            let required = required["required"].as_array().cloned().unwrap_or_default();
            for name in required {
                let mut probe = body.clone();
                probe
                    .as_object_mut()
                    .unwrap()
                    .remove(name.as_str().unwrap());
                let (status, told) = send(&world, &operation, &path, Some(&probe)).await;
                assert_eq!(status, 400, "{operation:?} without {name}: {told}");
            }
        }
    }
}

#[tokio::test]
async fn a_path_takes_the_methods_of_the_document_and_no_others() {
    let mut tasks = JoinSet::new();
    let (world, document) = opened(&mut tasks).await;
    let operations = document.operations();
    for path in document.paths() {
        if OPS.contains(&path.as_str()) {
            continue;
        }
        let of_path = || operations.iter().filter(|one| one.path == path);
        let (target, _) = of_path().next().unwrap().target(&document);
        for method in METHODS {
            let (status, told) = world.http(&method.to_uppercase(), &target, "").await;
            // A point may be called `delete`.
            let is_of_a_point = path.ends_with("/delete") && ["patch", "delete"].contains(&method);
            let is_written = of_path().any(|one| one.method == method) || is_of_a_point;
            assert_eq!(status != 405, is_written, "{method} {path}: {told}");
        }
    }
}
