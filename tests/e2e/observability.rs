//! What an operator sees: numbers, readiness, and a trace from the publish to the search.

use serde_json::json;
use shoal_runtime::eventually;
use shoal_schemas::v1;

use crate::harness::{
    DEADLINE,
    client::{self, at_least},
    model::Model,
    role::Metrics,
    seed::Random,
    wait, workload,
    world::{self, World, shared},
};

const DIM: u32 = 8;
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A trace context of that trace.
fn traceparent(parent: &str) -> String {
    format!("00-{TRACE}-{parent}-01")
}

#[test]
fn the_promised_numbers_are_shown_and_move() {
    let shared = shared();
    let collection = shared.collection("measured", DIM, 2);
    let publisher = shared.world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::of(41);
    let points = workload::points(&model, &mut random, "m", 100);
    world::publish(&publisher, &mut model, points.clone());
    let bad = shared.world.cluster.clone();
    let to = crate::harness::topic::home(&collection, "bad");
    let garbage =
        crate::harness::topic::record("bad", Some(b"x".as_slice().into()), world::now_ms());
    crate::harness::topic::append(&bad, &to, &garbage);
    let state = shared.settled(&collection);
    assert_eq!(state.contested, 1);
    for _ in 0..5 {
        shared
            .query
            .search(client::search("measured", points[0].1.vector.as_slice(), 3))
            .unwrap();
    }

    let own = ["shard=\"measured/"];
    // The gauges are told about once a second.
    let indexer = eventually(DEADLINE, "the gauges to show the points", || {
        let metrics = shared.indexer.metrics();
        let points = metrics.sum("indexer_points", &own);
        let contested = metrics.sum("indexer_contested_ids", &own);
        (points > 99.5 && contested > 0.5).then_some(metrics)
    });
    let is = |name: &str, labels: &[&str], expected: f64| {
        let found = indexer.sum(name, &[&own[..], labels].concat());
        assert!(
            (found - expected).abs() < 0.5,
            "{name} {labels:?} is {found}, not {expected}"
        );
    };
    is("indexer_records_in_total", &[], 101.0);
    is(
        "indexer_records_applied_total",
        &["outcome=\"upsert\""],
        100.0,
    );
    is(
        "indexer_records_applied_total",
        &["outcome=\"contested\""],
        1.0,
    );
    is(
        "indexer_records_rejected_total",
        &["reason=\"undecodable\""],
        1.0,
    );
    is("indexer_event_to_searchable_seconds_count", &[], 100.0);
    is("indexer_contested_ids", &[], 1.0);
    is("indexer_lag_records", &[], 0.0);
    is("indexer_searches_total", &[], 10.0);
    for name in ["indexer_wal_bytes", "indexer_index_bytes"] {
        assert!(indexer.sum(name, &own) > 0.0, "{name}");
    }
    for name in ["indexer_lag_seconds", "shard_cpu_utilization"] {
        let samples = indexer.samples(name, &own);
        assert!(
            samples.len() >= 2 && samples.iter().all(|value| *value >= 0.0),
            "{name}: {samples:?}"
        );
    }

    let query: Metrics = shared.query_role.metrics();
    for name in ["vector_search_latency_seconds_count", "query_vectors_total"] {
        assert!(query.sum(name, &[]) >= 5.0, "{name}\n{}", query.0);
    }
    assert!(
        query.sum(
            "query_requests_total",
            &["verb=\"search\"", "outcome=\"ok\""]
        ) >= 5.0
    );
    // Latency is told in buckets, so that a quantile can be asked for.
    assert!(
        !query
            .samples("vector_search_latency_seconds_bucket", &["le="])
            .is_empty()
    );
}

#[test]
fn a_role_is_ready_only_when_it_has_caught_up() {
    let world = World::new("readiness");
    let collection = world.collection("behind", 64, 2);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::of(42);
    let points = workload::points(&model, &mut random, "r", 6000);
    world::publish(&publisher, &mut model, points);

    let mut indexer = world.indexer("indexer").launch();
    let mut refused = None;
    eventually(DEADLINE, "the indexer to be ready", || {
        indexer.child.lives();
        let (status, text) = client::try_get(indexer.settings.http, "/readyz")?;
        if status == 200 {
            return Some(());
        }
        assert_eq!(
            (status, client::get(indexer.settings.http, "/healthz").0),
            (503, 200)
        );
        refused = Some(text);
        None
    });
    // Ready at once means: everything that was published is there.
    let statuses = crate::harness::state::statuses(indexer.settings.grpc, &collection).unwrap();
    let state = crate::harness::state::sum(&statuses, &collection).expect("every shard serves");
    assert_eq!(state.points, 6000);
    let told = refused.expect("it was asked before it had caught up");
    assert!(!told.trim().is_empty(), "it says what it waits for");
}

#[test]
fn a_trace_goes_from_the_publish_through_kafka_into_the_shard() {
    let shared = shared();
    let collection = shared.collection("traced", DIM, 2);
    let vector = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];

    // Published over HTTP with a trace: the record carries it, and the shard that applies says so.
    let body = json!({"points": [{"id": "t", "vector": vector}]});
    let headers = [("traceparent", traceparent("00f067aa0ba902b7"))];
    let (status, answer) = client::json_with(
        reqwest::Method::PUT,
        shared.gateway.http,
        "/v1/collections/traced/points",
        &body,
        &headers,
    );
    assert_eq!(status, 200, "{answer}");
    let at = crate::harness::topic::home(&collection, "t");
    let written = crate::harness::topic::read(&shared.world.cluster, &at);
    let header = written[0]
        .1
        .header("traceparent")
        .expect("the record carries the trace");
    assert!(String::from_utf8_lossy(header).contains(TRACE));
    shared.settled(&collection);
    eventually(
        DEADLINE,
        "the indexer to log the trace of the record",
        || {
            let lines = shared.indexer.child.logged();
            lines.into_iter().find(|line| {
                line["message"] == "record is searchable" && line.to_string().contains(TRACE)
            })
        },
    );

    // A search with a trace: the shard's own spans are in it.
    let mut request = client::within(
        std::time::Duration::from_secs(20),
        v1::SearchRequest {
            read: at_least(&[]),
            ..client::search("traced", &vector, 1)
        },
    );
    let trace = traceparent("b7ad6b7169203331").replace("4bf9", "5bf9");
    request
        .metadata_mut()
        .insert("traceparent", trace.parse().unwrap());
    let mut search = shared.query.search.clone();
    wait(search.search(request)).unwrap();
    let id = TRACE.replace("4bf9", "5bf9");
    eventually(DEADLINE, "the shard to log the search in its trace", || {
        let lines = shared.indexer.child.logged();
        lines
            .into_iter()
            .find(|line| line.to_string().contains(&id))
    });
}
