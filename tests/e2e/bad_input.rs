//! Records that are wrong are named, kept and harm nobody.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};
use shoal_schemas::{Collection, Metric, PointId, Reason, Record, Version};

use crate::{
    compaction::not_finite,
    harness::{
        model::Model,
        seed::Random,
        topic::{self, append, home, record, value, versioned},
        world::{now_ms, shared},
    },
};

const DIM: u32 = 8;

/// One kind of bad record.
struct Bad {
    what: &'static str,
    record: Record,
    reason: Reason,
    /// What its explanation has to name.
    names: &'static str,
    contests: bool,
}

#[test]
fn each_kind_of_bad_record_is_named_and_harms_no_neighbour() {
    let shared = shared();
    let mut wanted = Collection::new(
        "bad".parse().unwrap(),
        DIM.try_into().unwrap(),
        Metric::Cosine,
        4,
    );
    wanted.max_record_bytes = 600;
    let collection = shared.create(wanted);
    let mut random = Random::of(11);
    let good = value(&collection, &random.vector(DIM));
    let of_dim = |dim: u32, metric: Metric, vector: &[f32]| {
        let other = Collection::new("bad".parse().unwrap(), dim.try_into().unwrap(), metric, 4);
        value(&other, vector)
    };
    let upsert = |key: &str, bytes: Bytes| record(key, Some(bytes), now_ms());
    let mut infinite = not_finite(&good).to_vec();
    infinite[12..16].copy_from_slice(&f32::INFINITY.to_le_bytes());
    let mut schema_of_nobody = vec![0];
    schema_of_nobody.extend(987_654_u32.to_be_bytes());
    schema_of_nobody.extend(&good[10..]);
    let mut fingerprint_of_nobody = good.to_vec();
    fingerprint_of_nobody[2..10].fill(7);
    let case = |what, record, reason, names, contests| Bad {
        what,
        record,
        reason,
        names,
        contests,
    };
    let ones = vec![1.0; 8];
    let text = |body: Value| Bytes::from(body.to_string());
    let cases = [
        case(
            "a component too many",
            upsert(
                "dim",
                of_dim(DIM + 1, Metric::Cosine, &random.vector(DIM + 1)),
            ),
            Reason::WrongDimension,
            "9 components",
            true,
        ),
        case(
            "NaN",
            upsert("nan", not_finite(&good)),
            Reason::NotFinite,
            "NaN",
            true,
        ),
        case(
            "infinity",
            upsert("inf", infinite.into()),
            Reason::NotFinite,
            "inf",
            true,
        ),
        case(
            "infinity in single precision",
            upsert(
                "inf-f32",
                Bytes::from_static(br#"{"vector": [1e39,0,0,0,0,0,0,0]}"#),
            ),
            Reason::NotFinite,
            "inf",
            true,
        ),
        case(
            "a number that JSON cannot hold",
            upsert(
                "inf-json",
                Bytes::from_static(br#"{"vector": [1e999,0,0,0,0,0,0,0]}"#),
            ),
            Reason::Undecodable,
            "out of range",
            true,
        ),
        case(
            "all zeros",
            upsert("zero", of_dim(DIM, Metric::L2, &[0.0; 8])),
            Reason::ZeroVector,
            "zero",
            true,
        ),
        case(
            "cut short",
            upsert("cut", good.slice(..good.len() - 5)),
            Reason::Undecodable,
            "",
            true,
        ),
        case(
            "neither Avro nor JSON",
            upsert("noise", Bytes::from_static(b"\x07hello")),
            Reason::Undecodable,
            "",
            true,
        ),
        case(
            "an empty value",
            upsert("empty", Bytes::new()),
            Reason::Undecodable,
            "",
            true,
        ),
        case(
            "a schema id nobody knows",
            upsert("schema", schema_of_nobody.into()),
            Reason::UnknownSchema,
            "987654",
            true,
        ),
        case(
            "a fingerprint nobody knows",
            upsert("finger", fingerprint_of_nobody.into()),
            Reason::UnknownSchema,
            "",
            true,
        ),
        case(
            "JSON of another shape",
            upsert("shape", text(json!({"vektor": [1.0]}))),
            Reason::Undecodable,
            "vektor",
            true,
        ),
        case(
            "a nested payload",
            upsert(
                "nested",
                text(json!({"vector": ones, "payload": {"a": {"b": 1}}})),
            ),
            Reason::BadPayload,
            "a",
            true,
        ),
        case(
            "JSON for another id",
            upsert("other", text(json!({"id": "somebody", "vector": ones}))),
            Reason::Undecodable,
            "somebody",
            true,
        ),
        case(
            "over the shard's own limit",
            upsert(
                "large",
                text(json!({"vector": ones, "payload": {"text": "x".repeat(700)}})),
            ),
            Reason::TooLarge,
            "600",
            true,
        ),
        case(
            "a version that does not read",
            Record {
                headers: vec![("shoal-version".to_owned(), Bytes::from_static(b"soon"))],
                ..upsert("version", good.clone())
            },
            Reason::BadHeader,
            "shoal-version",
            true,
        ),
        case(
            "tagged for elsewhere",
            Record {
                headers: vec![("shoal-residency".to_owned(), Bytes::from_static(b"eu"))],
                ..upsert("resident", good.clone())
            },
            Reason::Residency,
            "eu",
            true,
        ),
        case(
            "a key without bytes",
            upsert("", good.clone()),
            Reason::BadKey,
            "empty",
            false,
        ),
        case(
            "a key that is too long",
            upsert(&"k".repeat(513), good.clone()),
            Reason::BadKey,
            "513",
            false,
        ),
        case(
            "a key that is no text",
            Record {
                key: Some(Bytes::from_static(b"\xff\xfe")),
                ..upsert("", good.clone())
            },
            Reason::BadKey,
            "UTF-8",
            false,
        ),
    ];

    // Good neighbours right before and right after each bad one, in the same partition.
    let mut model = Model::new(&collection);
    let mut neighbour = |at: u32, number: usize| {
        let mut names = (0..).map(|attempt| format!("good-{number}-{attempt}"));
        let id = names
            .find(|name| home(&collection, name).partition.0 == at)
            .unwrap();
        let vector = random.vector(DIM);
        let bytes = value(&collection, &vector);
        append(
            &shared.world.cluster,
            &home(&collection, &id),
            &versioned(&id, Some(bytes), 9),
        );
        let point = topic::point(&collection, &vector);
        model.upsert(&PointId::new(&id).unwrap(), Version::from_raw(9), &point);
    };
    let mut expected = BTreeMap::new();
    let mut contested = Vec::new();
    for (number, bad) in cases.iter().enumerate() {
        let key = bad.record.key.clone().unwrap();
        let id = std::str::from_utf8(&key)
            .ok()
            .and_then(|key| PointId::new(key).ok());
        let to = match &id {
            Some(id) => home(&collection, id.as_str()),
            None => topic::partition(&collection.name, 2),
        };
        neighbour(to.partition.0, number * 2);
        let offset = append(&shared.world.cluster, &to, &bad.record);
        neighbour(to.partition.0, number * 2 + 1);
        expected.insert((to.partition.0, offset.0), bad);
        contested.extend(id.filter(|_| bad.contests));
    }
    for id in &contested {
        model.contest(id);
    }
    let state = shared.settled(&collection);

    let entries = topic::dead_letters(&shared.world.cluster, &collection);
    let places: Vec<_> = entries
        .iter()
        .map(|entry| (entry.source.partition.0, entry.offset.0))
        .collect();
    let missing: Vec<&str> = expected
        .iter()
        .filter(|(place, _)| !places.contains(place))
        .map(|(_, bad)| bad.what)
        .collect();
    assert_eq!(missing, [""; 0], "each is told");
    assert_eq!(
        places,
        expected.keys().copied().collect::<Vec<_>>(),
        "once, and nothing else is"
    );
    let cluster = shared.world.cluster.admin.cluster_id().unwrap();
    for entry in &entries {
        let bad = expected[&(entry.source.partition.0, entry.offset.0)];
        assert_eq!(
            entry.rejection.reason, bad.reason,
            "{}: {}",
            bad.what, entry.rejection
        );
        assert!(
            entry.rejection.detail.contains(bad.names),
            "{}: {}",
            bad.what,
            entry.rejection
        );
        assert_eq!(entry.source.cluster, cluster);
        assert_eq!(*entry.source.topic, *collection.name.topic());
        if bad.reason == Reason::Residency {
            // Its content stays where it belongs.
            assert_ne!(entry.record.key, bad.record.key);
            assert_eq!(entry.record.value.as_deref(), Some(&b""[..]));
        } else {
            assert_eq!(entry.record, bad.record, "{}: kept as it was", bad.what);
        }
    }

    // The neighbours are all there, and nothing of the bad ones is.
    model.assert_is(&state, now_ms());

    // Every refusal is counted under its reason.
    let metrics = shared.indexer.metrics();
    for reason in expected.values().map(|bad| bad.reason) {
        let label = format!("reason=\"{}\"", reason.code());
        let shard = "shard=\"bad/";
        let counted = metrics.sum("indexer_records_rejected_total", &[&label, shard]);
        let same = expected.values().filter(|bad| bad.reason == reason).count();
        assert!(
            (counted - f64::from(u32::try_from(same).unwrap())).abs() < 0.5,
            "{label}: {counted}"
        );
    }
    shared.indexer.had_no_errors(&[]);
}

#[test]
fn a_record_without_a_key_is_refused_by_the_compacted_topic_itself() {
    let shared = shared();
    let collection = shared.collection("keyless", DIM, 1);
    let good = value(&collection, &[1.0; 8]);
    let keyless = Record {
        key: None,
        ..record("", Some(good.clone()), now_ms())
    };
    let to = topic::partition(&collection.name, 0);
    let sent = shared.world.cluster.writer.send(&to, &keyless).unwrap();
    let refused = crate::harness::wait(sent).unwrap_err();
    assert!(
        refused.to_string().contains(&*collection.name.topic()),
        "{refused}"
    );
    append(
        &shared.world.cluster,
        &to,
        &record("next", Some(good), now_ms()),
    );
    assert_eq!(shared.settled(&collection).points, 1);
}
