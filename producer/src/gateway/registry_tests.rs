//! Tests of the gateway's schema ids: a subject a collection, and a registry that is away.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};

use axum::{Json as JsonBody, extract::Path, routing::post};
use serde_json::json;
use shoal_runtime::{clock::System, http::bind, tasks::Tasks};
use shoal_schemas::Collection;
use shoal_topic::{collections, registry::Registry};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::{
    Config,
    tests::{World, upsert},
};
use crate::publisher::tests::{collection, point, records};

/// A schema registry that gives each subject an id of its own.
async fn registry() -> (String, Arc<Mutex<Vec<String>>>) {
    let subjects: Arc<Mutex<Vec<String>>> = Arc::default();
    let known = Arc::clone(&subjects);
    let register = move |Path(subject): Path<String>| async move {
        let mut known = known.lock().unwrap();
        let at = known.iter().position(|one| *one == subject);
        let at = at.unwrap_or_else(|| {
            known.push(subject);
            known.len() - 1
        });
        JsonBody(json!({ "id": at + 1 }))
    };
    let router = axum::Router::new().route("/subjects/{subject}/versions", post(register));
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let tasks = Tasks::new(CancellationToken::new());
    tasks.spawn(
        "registry",
        async move { axum::serve(listener, router).await },
    );
    // It ends with the test's runtime.
    std::mem::forget(tasks);
    (url, subjects)
}

#[tokio::test]
async fn each_collection_has_a_subject_of_its_own_in_the_registry() {
    let (url, subjects) = registry().await;
    let client = Registry::new(&url, System::shared()).unwrap();
    let world = World::start_with(Config::default(), Some(Arc::new(client))).await;
    let other = Collection {
        name: "other".parse().unwrap(),
        ..collection(2)
    };
    collections::create(&world.log.cluster(), &world.control, other)
        .await
        .unwrap();
    let mut client = world.grpc().await;
    for name in ["docs", "other", "docs"] {
        client
            .upsert(upsert(name, &[("a", &point(1.0))]))
            .await
            .unwrap();
    }
    let framed = |topic: &str| -> Vec<Vec<u8>> {
        let found = records(&world.log, topic, 2).into_iter();
        found
            .map(|(_, _, record)| record.value.unwrap()[..5].to_vec())
            .collect()
    };
    assert_eq!(
        framed("embeddings.docs"),
        [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    );
    assert_eq!(framed("embeddings.other"), [[0, 0, 0, 0, 2]]);
    let subjects = subjects.lock().unwrap().clone();
    assert_eq!(
        subjects,
        ["embeddings.docs-value", "embeddings.other-value"]
    );
}

#[tokio::test]
async fn a_registry_that_is_away_fails_the_call_and_not_the_gateway() {
    let client = Registry::new("http://127.0.0.1:9", System::shared()).unwrap();
    let world = World::start_with(Config::default(), Some(Arc::new(client))).await;
    let mut client = world.grpc().await;
    let refused = client.upsert(upsert("docs", &[("a", &point(1.0))])).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(world.found().is_empty());
}
