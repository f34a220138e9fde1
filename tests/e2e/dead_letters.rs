//! `shoal dlq`: what was refused is listed, shown, and put back once its cause is gone.

use std::{fs, path::Path};

use bytes::Bytes;
use serde_json::{Value, json};
use shoal_schemas::{Collection, Record, avro::SCHEMA_JSON, v1};

use crate::harness::{
    child, client,
    model::Model,
    seed::Random,
    topic::{self, append, home, record, value},
    world::{self, Shared, now_ms, shared},
};

const DIM: u32 = 8;

fn dlq(arguments: &[&str]) -> String {
    let shared = shared();
    let mut variables = shared.world.variables();
    variables.push(("SHOAL_REGISTRY__URL".to_owned(), shared.registry.url()));
    child::succeed(&[&["dlq"], arguments].concat(), &variables)
}

fn refused(arguments: &[&str]) -> String {
    let shared = shared();
    let mut variables = shared.world.variables();
    variables.push(("SHOAL_REGISTRY__URL".to_owned(), shared.registry.url()));
    let (status, _, told) = child::run(&[&["dlq"], arguments].concat(), &variables);
    assert!(!status.success(), "{arguments:?} succeeds");
    told
}

fn list(arguments: &[&str]) -> Vec<Value> {
    let told = dlq(&[&["list", "--json"], arguments].concat());
    told.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn contested(shared: &Shared, collection: &Collection) -> u64 {
    shared.settled(collection);
    let ask = v1::CountRequest {
        collection: collection.name.to_string(),
        read: client::at_least(&[]),
        ..v1::CountRequest::default()
    };
    shared.query.count(ask).unwrap().contested
}

#[test]
fn a_refused_record_is_listed_shown_corrected_and_its_contested_id_settles() {
    let shared = shared();
    let collection = shared.collection("letters", DIM, 4);
    let mut random = Random::of(51);
    let mut model = Model::new(&collection);
    let publisher = shared.world.publisher(&collection);
    let points = crate::harness::workload::points(&model, &mut random, "d", 6);
    world::publish(&publisher, &mut model, points);

    // Two ids get a bad record over their good one.
    let cluster = &shared.world.cluster;
    let bad = |id: &str, bytes: &'static [u8]| {
        let to = home(&collection, id);
        let offset = append(
            cluster,
            &to,
            &record(id, Some(Bytes::from_static(bytes)), now_ms()),
        );
        format!("{}/{offset}", to.partition)
    };
    let cut = bad("d-1", br#"{"vector": [1, 2"#);
    let short = bad("d-2", br#"{"vector": [1, 2, 3]}"#);
    assert_eq!(contested(shared, &collection), 2);
    // The old points are still served meanwhile.
    let ask = v1::CountRequest {
        collection: "letters".to_owned(),
        read: None,
        ..v1::CountRequest::default()
    };
    assert_eq!(shared.query.count(ask).unwrap().points, 6);

    let all = list(&["letters"]);
    assert_eq!(all.len(), 2);
    let by_reason = list(&["letters", "--reason", "wrong_dimension"]);
    assert_eq!(by_reason.len(), 1);
    assert_eq!(by_reason[0]["record"], short.as_str());
    assert_eq!(by_reason[0]["id"], "d-2");
    assert!(
        by_reason[0]["detail"]
            .as_str()
            .unwrap()
            .contains("3 components"),
        "{by_reason:?}"
    );
    let by_id = list(&["letters", "--id", "d-1"]);
    assert_eq!(by_id[0]["reason"], "undecodable");
    assert_eq!(by_id[0]["record"], cut.as_str());
    let table = dlq(&["list", "letters"]);
    assert!(
        table.contains("wrong_dimension") && table.contains("d-2"),
        "{table}"
    );
    let shown = dlq(&["show", "letters", &short]);
    assert!(
        shown.contains("wrong_dimension") && shown.contains("[1, 2, 3]"),
        "{shown}"
    );

    // As it was it would be refused again, and says so; nothing is sent.
    let ends = topic::ends(cluster, &collection);
    let told = refused(&["retry", "letters", &short]);
    assert!(
        told.contains("would be refused again") && told.contains("3 components"),
        "{told}"
    );
    assert_eq!(topic::ends(cluster, &collection), ends);
    assert!(refused(&["show", "letters", "0/987654"]).contains("no refused record"));

    // Corrected, it settles.
    let file = shared.world.folder.join("corrected.json");
    fs::write(
        &file,
        json!({"vector": [1, 2, 3, 4, 5, 6, 7, 8]}).to_string(),
    )
    .unwrap();
    dlq(&["retry", "letters", &short, "--value", text(&file)]);
    assert_eq!(contested(shared, &collection), 1);
    assert_eq!(
        vector(shared, "letters", "d-2"),
        Some(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    );
    // Deleted instead, it settles too.
    dlq(&["retry", "letters", &cut, "--delete"]);
    assert_eq!(contested(shared, &collection), 0);
    assert_eq!(vector(shared, "letters", "d-1"), None);
    assert_eq!(shared.settled(&collection).points, 5);
    // What was put back is listed on demand, as a record of what happened.
    assert_eq!(list(&["letters"]).len(), 0);
    let done = list(&["letters", "--retried"]);
    assert_eq!(done.len(), 2);
    assert!(
        done.iter().all(|entry| entry["is_retried"] == true),
        "{done:?}"
    );
}

#[test]
fn a_record_is_put_back_unchanged_once_its_cause_is_gone() {
    let shared = shared();
    let collection = shared.collection("causes", DIM, 4);
    let cluster = &shared.world.cluster;
    let mut random = Random::of(52);
    let vectors: Vec<Vec<f32>> = (0..8).map(|_| random.vector(DIM)).collect();

    // Strays: the cause is the partition, which a retry chooses anew.
    for (number, vector) in vectors.iter().enumerate().take(6) {
        let id = format!("stray-{number}");
        let belongs = home(&collection, &id).partition;
        let to = topic::partition(&collection.name, (belongs.0 + 1) % 4);
        let bytes = value(&collection, vector);
        append(cluster, &to, &record(&id, Some(bytes), now_ms()));
    }
    // A schema that the registry does not have yet: its next id, for a subject of its own.
    let id = shared_schema_id(shared);
    let unknown = id + 1;
    let mut bytes = vec![0];
    bytes.extend(unknown.to_be_bytes());
    bytes.extend(&value(&collection, &vectors[6])[10..]);
    let late = Record {
        value: Some(bytes.into()),
        ..record("late", None, now_ms())
    };
    append(cluster, &home(&collection, "late"), &late);

    // A schema id may become known a moment later, so it is asked for again until it is told
    // for certain that there is none.
    let state = shared.settled(&collection);
    assert_eq!((state.points, state.contested), (0, 1));
    let listed = list(&["causes"]);
    assert_eq!(listed.len(), 7);
    let reasons = |reason: &str| {
        listed
            .iter()
            .filter(|entry| entry["reason"] == reason)
            .count()
    };
    assert_eq!(
        (reasons("wrong_partition"), reasons("unknown_schema")),
        (6, 1)
    );

    // All strays at once.
    dlq(&["retry", "causes", "--all", "--reason", "wrong_partition"]);
    let state = shared.settled(&collection);
    assert_eq!((state.points, state.contested), (6, 1));
    for (number, expected) in vectors.iter().enumerate().take(6) {
        let id = format!("stray-{number}");
        assert_eq!(
            vector(shared, "causes", &id).as_ref(),
            Some(expected),
            "{id}"
        );
    }

    // The schema comes: the very bytes that were refused are good now.
    let registered = register(shared, "late-value", &evolved());
    assert_eq!(registered, unknown, "the registry counts its ids up");
    let record = listed
        .iter()
        .find(|entry| entry["reason"] == "unknown_schema")
        .unwrap();
    let at = record["record"].as_str().unwrap();
    dlq(&["retry", "causes", at]);
    let state = shared.settled(&collection);
    assert_eq!((state.points, state.contested), (7, 0));
    assert_eq!(vector(shared, "causes", "late"), Some(vectors[6].clone()));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn vector(shared: &Shared, collection: &str, id: &str) -> Option<Vec<f32>> {
    let ask = v1::GetRequest {
        collection: collection.to_owned(),
        ids: vec![id.to_owned()],
        with_vector: true,
        read: None,
        ..v1::GetRequest::default()
    };
    let got = shared.query.get(ask).unwrap();
    got.points
        .into_iter()
        .next()
        .map(|stored| stored.point.unwrap().vector)
}

/// A schema that reads as ours does and is another one all the same: the registry gives it an id.
fn evolved() -> String {
    let mut schema: Value = serde_json::from_str(SCHEMA_JSON).unwrap();
    schema["doc"] = "The same with another text.".into();
    schema.to_string()
}

fn shared_schema_id(shared: &Shared) -> u32 {
    register(shared, "some-value", SCHEMA_JSON)
}

fn register(shared: &Shared, subject: &str, schema: &str) -> u32 {
    let url = shared.registry.url();
    let (host, path) = url
        .strip_prefix("http://")
        .unwrap()
        .split_once('/')
        .unwrap();
    let body = json!({"schema": schema});
    let (status, answer) = client::json(
        reqwest::Method::POST,
        host.parse().unwrap(),
        &format!("/{path}/subjects/{subject}/versions"),
        &body,
    );
    assert_eq!(status, 200, "{answer}");
    u32::try_from(answer["id"].as_u64().unwrap()).unwrap()
}
