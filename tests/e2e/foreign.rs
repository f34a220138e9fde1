//! Clients that know nothing of Shoal: Python with fastavro, and kcat.
//!
//! Written with the partitioner that the collection declares, their records are indexed and
//! deleted like our own. With the other one, every stray is in the dead letters with a text that
//! names the setting, and no point is doubled or beyond deleting.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use shoal_schemas::{Collection, Metric, Partition, Partitioner, PointId, Reason, route, v1};

use crate::harness::{
    client::{self, ids},
    python, root, topic,
    world::{Shared, shared},
};

const DIM: u32 = 8;
const PARTITIONS: u32 = 4;
const MURMUR2: Option<&str> = Some("murmur2_random");
/// What a librdkafka client does by itself.
const DEFAULT: Option<&str> = None;

fn collection(name: &str, partitioner: Partitioner) -> Collection {
    let dim = DIM.try_into().unwrap();
    let mut wanted = Collection::new(name.parse().unwrap(), dim, Metric::Cosine, PARTITIONS);
    wanted.partitioner = partitioner;
    shared().create(wanted)
}

/// The client's vector of a number.
fn vector(number: u32) -> Vec<f32> {
    let component = |at: u32| {
        let part = u16::try_from((number * 31 + at * 7) % 64).unwrap();
        f32::from(part) / 64.0 + if at == 0 { 1.0 } else { 0.0 }
    };
    (0..DIM).map(component).collect()
}

/// Where a client's records went: (key, partition, offset).
type Written = Vec<(String, u32, u64)>;

fn python(collection: &Collection, partitioner: Option<&str>, more: &[&str]) -> Written {
    let shared = shared();
    let mut command = python::client("avro_producer.py");
    command
        .args(["--bootstrap", &shared.world.kafka.bootstrap()])
        .args(["--topic", &collection.name.topic()])
        .arg("--schema")
        .arg(root().join("schemas/avro/point.avsc"))
        .args(["--dim", &DIM.to_string()])
        .args(more);
    if let Some(partitioner) = partitioner {
        command.args(["--partitioner", partitioner]);
    }
    let output = python::succeed(command);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::from_value(told["written"].clone()).unwrap()
}

/// Writes lines `key|value` with kcat; an empty value is a tombstone.
fn kcat(collection: &Collection, partitioner: Option<&str>, lines: &[String]) {
    let mut command = Command::new("kcat");
    command.args([
        "-P",
        "-q",
        "-Z",
        "-K",
        "|",
        "-b",
        &shared().world.kafka.bootstrap(),
    ]);
    command.args(["-t", &collection.name.topic()]);
    if let Some(partitioner) = partitioner {
        command.args(["-X", &format!("partitioner={partitioner}")]);
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("setup/packages installs kcat");
    let mut input = child.stdin.take().unwrap();
    input
        .write_all((lines.join("\n") + "\n").as_bytes())
        .unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn json_lines(prefix: &str, numbers: std::ops::Range<u32>) -> Vec<String> {
    let line = |number: u32| {
        let point = json!({
            "vector": vector(number),
            "payload": {"number": number, "title": format!("title {number}")},
        });
        format!("{prefix}-{number}|{point}")
    };
    numbers.map(line).collect()
}

fn tombstones(prefix: &str, numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers
        .map(|number| format!("{prefix}-{number}|"))
        .collect()
}

fn get(collection: &Collection, ids: Vec<String>) -> BTreeMap<String, v1::StoredPoint> {
    let ask = v1::GetRequest {
        collection: collection.name.to_string(),
        ids,
        with_vector: true,
        read: None,
        ..v1::GetRequest::default()
    };
    let got = shared().query.get(ask).unwrap();
    let coverage = got.coverage.unwrap();
    assert_eq!(coverage.shards_answered, coverage.shards_asked);
    let by_id = got
        .points
        .into_iter()
        .map(|stored| (stored.point.as_ref().unwrap().id.clone(), stored));
    by_id.collect()
}

fn names(prefix: &str, numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| format!("{prefix}-{number}")).collect()
}

/// Everything of these numbers is served, once each, as it was written.
fn are_served(collection: &Collection, prefix: &str, numbers: std::ops::Range<u32>) {
    let got = get(collection, names(prefix, numbers.clone()));
    for number in numbers {
        let id = format!("{prefix}-{number}");
        let stored = got.get(&id).unwrap_or_else(|| panic!("{id} is not served"));
        let point = stored.point.as_ref().unwrap();
        assert_eq!(point.vector, vector(number), "{id}");
        let title = point.payload["title"].kind.clone().unwrap();
        assert_eq!(title, v1::value::Kind::String(format!("title {number}")));
        let count = point.payload["number"].kind.clone().unwrap();
        assert_eq!(count, v1::value::Kind::Integer(number.into()));
    }
}

/// All ids of a search that asks for everything, each of them once.
fn found(shared: &Shared, collection: &Collection) -> BTreeSet<String> {
    let ask = client::search(collection.name.as_str(), &vector(1), 10_000);
    let answer = shared.query.search(ask).unwrap();
    let found: BTreeSet<String> = ids(&answer.hits).into_iter().map(str::to_owned).collect();
    assert_eq!(found.len(), answer.hits.len(), "no id twice");
    found
}

/// Records that the declared partitioner would have put elsewhere.
fn strays(collection: &Collection, written: &Written) -> BTreeSet<(u32, u64)> {
    let strays = written.iter().filter(|(key, partition, _)| {
        let id = PointId::new(key).unwrap();
        route::partition_of(collection, &id) != Partition(*partition)
    });
    strays
        .map(|(_, partition, offset)| (*partition, *offset))
        .collect()
}

fn work_like_our_own(name: &str, declared: Partitioner, right: Option<&str>) {
    let shared = shared();
    let collection = collection(name, declared);
    let registry = shared.registry.url();

    // Python in single-object encoding, Python through the registry, kcat in JSON.
    let plain = python(&collection, right, &["--prefix", "plain", "--count", "60"]);
    let framed = [
        "--prefix",
        "framed",
        "--count",
        "60",
        "--registry",
        &registry,
    ];
    let framed = python(&collection, right, &framed);
    kcat(&collection, right, &json_lines("kcat", 0..60));
    let partitions: BTreeSet<u32> = plain
        .iter()
        .chain(&framed)
        .map(|(_, partition, _)| *partition)
        .collect();
    assert_eq!(partitions.len(), 4);
    let state = shared.settled(&collection);
    assert_eq!((state.points, state.contested), (180, 0));
    for prefix in ["plain", "framed", "kcat"] {
        are_served(&collection, prefix, 0..60);
    }
    // The first few records of the Avro clients hold every kind of value.
    let first = &get(&collection, vec!["framed-3".to_owned()])["framed-3"];
    let payload = &first.point.as_ref().unwrap().payload;
    assert_eq!(payload["score"].kind, Some(v1::value::Kind::Float(0.875)));
    assert_eq!(payload["even"].kind, Some(v1::value::Kind::Boolean(false)));
    let tags = v1::StringList {
        items: vec!["python".to_owned(), "avro".to_owned()],
    };
    assert_eq!(payload["tags"].kind, Some(v1::value::Kind::Strings(tags)));

    // Each client replaces and deletes what another one wrote; so does the gateway.
    kcat(&collection, right, &json_lines("plain", 30..40));
    kcat(&collection, right, &tombstones("framed", 0..30));
    python(
        &collection,
        right,
        &["--prefix", "kcat", "--count", "30", "--delete"],
    );
    let deleted: Vec<String> = names("plain", 0..30);
    let deleted: Vec<&str> = deleted.iter().map(String::as_str).collect();
    shared
        .gateway
        .delete(collection.name.as_str(), &deleted)
        .unwrap();
    let state = shared.settled(&collection);
    assert_eq!((state.points, state.contested), (90, 0));
    let expected: BTreeSet<String> = ["plain", "framed", "kcat"]
        .into_iter()
        .flat_map(|prefix| names(prefix, 30..60))
        .collect();
    assert_eq!(found(shared, &collection), expected);
    assert_eq!(get(&collection, names("framed", 0..30)), BTreeMap::new());
    assert_eq!(topic::dead_letters(&shared.world.cluster, &collection), []);
}

#[test]
fn foreign_clients_with_murmur2_are_indexed_and_deleted_like_our_own() {
    work_like_our_own("foreign-murmur2", Partitioner::Murmur2, MURMUR2);
}

#[test]
fn foreign_clients_with_crc32_are_indexed_and_deleted_like_our_own() {
    work_like_our_own("foreign-crc32", Partitioner::Crc32, DEFAULT);
}

fn go_to_the_dead_letters(
    name: &str,
    declared: Partitioner,
    (right, wrong): (Option<&str>, Option<&str>),
    setting: &str,
) {
    let shared = shared();
    let collection = collection(name, declared);
    // Good points first, then the same ids and new ones by a client that is set wrong.
    python(&collection, right, &["--prefix", "s", "--count", "80"]);
    shared.settled(&collection);
    let misled = ["--prefix", "s", "--first", "40", "--count", "80"];
    let upserts = python(&collection, wrong, &misled);
    let deletes = python(
        &collection,
        wrong,
        &["--prefix", "s", "--count", "20", "--delete"],
    );
    let state = shared.settled(&collection);

    let strayed: Written = upserts.iter().chain(&deletes).cloned().collect();
    let strays = strays(&collection, &strayed);
    assert!(
        strays.len() > 40,
        "about three of four go astray: {}",
        strays.len()
    );
    let entries = topic::dead_letters(&shared.world.cluster, &collection);
    let told: BTreeSet<(u32, u64)> = entries
        .iter()
        .map(|entry| (entry.source.partition.0, entry.offset.0))
        .collect();
    assert_eq!(told, strays, "each stray is told, and nothing else");
    assert_eq!(entries.len(), strays.len(), "and told once");
    for entry in &entries {
        assert_eq!(entry.rejection.reason, Reason::WrongPartition);
        assert!(
            entry.rejection.detail.contains(setting),
            "{}",
            entry.rejection.detail
        );
        assert_eq!(*entry.source.topic, *collection.name.topic());
    }
    let tombstones = entries
        .iter()
        .filter(|entry| entry.record.value.is_none())
        .count();
    assert!(tombstones > 0, "a stray delete is kept as a delete");

    // No id twice, nothing contested, and what strays wanted to delete is still there.
    let lands = |key: &str, partition: u32| topic::home(&collection, key).partition.0 == partition;
    let mut expected: BTreeSet<String> = names("s", 0..80).into_iter().collect();
    expected.extend(
        upserts
            .iter()
            .filter(|(key, at, _)| lands(key, *at))
            .map(|(key, ..)| key.clone()),
    );
    for (key, ..) in deletes.iter().filter(|(key, at, _)| lands(key, *at)) {
        expected.remove(key);
    }
    assert_eq!(found(shared, &collection), expected);
    assert_eq!(state.contested, 0);
    assert_eq!(state.points, u64::try_from(expected.len()).unwrap());

    // Nothing is beyond deleting by a client that is set right.
    python(
        &collection,
        right,
        &["--prefix", "s", "--count", "120", "--delete"],
    );
    let state = shared.settled(&collection);
    assert_eq!((state.points, state.contested), (0, 0));
    assert_eq!(found(shared, &collection), BTreeSet::new());
    assert_eq!(
        topic::dead_letters(&shared.world.cluster, &collection).len(),
        entries.len()
    );
}

#[test]
fn strays_of_a_client_that_needs_murmur2_are_told_what_to_set() {
    go_to_the_dead_letters(
        "stray-murmur2",
        Partitioner::Murmur2,
        (MURMUR2, DEFAULT),
        "partitioner=murmur2_random",
    );
}

#[test]
fn strays_of_a_client_that_needs_crc32_are_told_what_to_set() {
    go_to_the_dead_letters(
        "stray-crc32",
        Partitioner::Crc32,
        (DEFAULT, MURMUR2),
        "partitioner=consistent_random",
    );
}
