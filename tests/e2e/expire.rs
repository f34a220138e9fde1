//! Points that expired are deleted by a command, and their records leave the topic.

use std::collections::BTreeMap;

use serde_json::Value;
use shoal_schemas::PointId;

use crate::harness::{
    child,
    model::Model,
    seed::Random,
    topic::{partition, read},
    workload,
    world::{now_ms, publish, shared},
};

const COLLECTION: &str = "lent";
const LONG_AGO: i64 = 1_600_000_000_000;

#[test]
fn what_has_expired_is_deleted_and_nothing_else() {
    let shared = shared();
    let collection = shared.collection(COLLECTION, 8, 3);
    let publisher = shared.world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::from_environment("expire");
    let mut points = workload::points(&model, &mut random, "e", 80);
    for (number, (_, point)) in points.iter_mut().enumerate() {
        point.expires_at_ms = match number {
            0..30 => Some(LONG_AGO),
            30..40 => Some(now_ms() + 3_600_000),
            _ => None,
        };
    }
    publish(&publisher, &mut model, points.clone());
    // Lent once, and then for good.
    let kept = &mut points[0];
    kept.1.expires_at_ms = None;
    publish(&publisher, &mut model, vec![kept.clone()]);
    let gone: Vec<PointId> = points[1..30].iter().map(|(id, _)| id.clone()).collect();
    model.assert_is(&shared.settled(&collection), now_ms());

    let query = shared.query_role.settings.grpc.to_string();
    let gateway = shared.gateway.grpc.to_string();
    let variables = shared.world.variables();
    let expire = |more: &[&str]| {
        let all = [
            "expire",
            COLLECTION,
            "--query",
            &query,
            "--gateway",
            &gateway,
        ];
        child::run(&[&all[..], more].concat(), &variables)
    };
    let sums = |more: &[&str]| {
        let (status, out, told) = expire(&[&["--json"], more].concat());
        assert!(status.success(), "{out}{told}");
        let answer: Value = serde_json::from_str(&out).unwrap();
        let shards = answer["shards"].as_array().unwrap().clone();
        ["expired", "deleted", "written_again", "failed"].map(|what| {
            shards
                .iter()
                .map(|one| one[what].as_u64().unwrap())
                .sum::<u64>()
        })
    };
    assert_eq!(sums(&["--dry-run"]), [29, 0, 0, 0]);
    assert_eq!(
        sums(&["--older-than", "100years", "--dry-run"]),
        [0, 0, 0, 0]
    );
    model.assert_is(&shared.settled(&collection), now_ms());
    let in_one = sums(&["--shard", "1"]);
    assert_eq!(in_one[0], in_one[1]);
    assert!((1..29).contains(&in_one[0]), "{in_one:?}");
    let left = 29 - in_one[0];
    assert_eq!(sums(&[]), [left, left, 0, 0]);
    assert_eq!(sums(&[]), [0, 0, 0, 0]);
    for id in &gone {
        model.delete(id);
    }
    model.assert_is(&shared.settled(&collection), now_ms());
    // What compaction keeps of these ids is the delete.
    let mut last = BTreeMap::new();
    for number in 0..collection.partitions {
        for (_, record) in read(&shared.world.cluster, &partition(&collection.name, number)) {
            let key = record.key.unwrap();
            last.insert(key, record.value.is_some());
        }
    }
    assert_eq!(last.values().filter(|is_there| **is_there).count(), 51);
    for id in &gone {
        assert_eq!(last.get(id.as_str().as_bytes()), Some(&false), "{id:?}");
    }

    let (status, _, told) = expire(&["--shard", "9"]);
    assert_eq!(status.code(), Some(2), "{told}");
    assert!(told.contains("`lent` has no shard 9"), "{told}");
}
