//! A node that lost its disk comes back from its snapshots and what Kafka holds since, and from
//! nothing else: the topic's head is gone by then.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use shoal_runtime::eventually;
use shoal_schemas::{Collection, Payload, Point, PointId, v1};

use crate::{
    harness::{
        DEADLINE, child, client, folder,
        model::Model,
        python,
        role::{Role, SET_ASIDE, Settings},
        topic,
        world::{self, World, now_ms},
    },
    wordnet,
};

const PARTITIONS: u32 = 2;
const COLLECTION: &str = "kept";
/// Enough for several sealed segments a shard.
const POINTS: usize = 3600;

/// An indexer that keeps snapshots in this folder. Nothing is compacted, so that a segment once
/// sent stays as it is.
fn settings(world: &World, name: &str, store: &Path) -> Settings {
    world
        .indexer(name)
        .small_engine()
        .with("INDEXER__ENGINE__COMPACT_DEAD_ROWS", 100_000)
        .with("INDEXER__SNAPSHOT__URL", store.display())
}

/// Real embeddings, by row, as points of an id each.
fn rows(collection: &Collection, rows: std::ops::Range<usize>) -> Vec<(PointId, Point)> {
    let all = wordnet::halves("w_base_f16.npy");
    let vectors = all.chunks(wordnet::DIM).enumerate();
    let wanted = vectors.skip(rows.start).take(rows.len());
    let points = wanted.map(|(row, vector)| (id(row), topic::point(collection, vector)));
    points.collect()
}

fn id(row: usize) -> PointId {
    PointId::new(&format!("row-{row}")).unwrap()
}

/// The same point with something said about it.
fn updated(point: Point) -> Point {
    let payload = [(
        "seen".to_owned(),
        shoal_schemas::Value::String("again".to_owned()),
    )];
    Point {
        payload: Payload(payload.into()),
        ..point
    }
}

/// `shoal snapshot create`: what it says of each shard.
fn take(query: &Role) -> Vec<Value> {
    let address = query.settings.grpc.to_string();
    let create = [
        "snapshot", "create", COLLECTION, "--json", "--query", &address,
    ];
    let told: Value = serde_json::from_str(&child::succeed(&create, &[])).unwrap();
    let shards = told["shards"].as_array().unwrap().clone();
    assert_eq!(shards.len(), 2, "{told}");
    shards
}

fn sum(shards: &[Value], field: &str) -> u64 {
    shards
        .iter()
        .map(|shard| shard[field].as_u64().unwrap())
        .sum()
}

/// The next offset of each shard in its newest snapshot.
fn positions(store: &Path) -> Vec<u64> {
    let url = store.to_str().unwrap();
    let list = ["snapshot", "list", COLLECTION, "--json", "--store", url];
    let told: Value = serde_json::from_str(&child::succeed(&list, &[])).unwrap();
    let mut newest = vec![0; 2];
    for one in told["snapshots"].as_array().unwrap() {
        let shard = usize::try_from(one["shard"].as_u64().unwrap()).unwrap();
        newest[shard] = one["positions"][0]["next_offset"].as_u64().unwrap();
    }
    newest
}

/// Answers of every kind a lost or doubled point would change.
fn answers(query: &client::Query) -> Vec<Vec<(String, u32)>> {
    let asked = wordnet::halves("w_queries_f16.npy");
    let asked = asked.chunks(wordnet::DIM).take(20);
    let answers = asked.map(|vector| {
        let ask = v1::SearchRequest {
            exact: true,
            read: client::at_least(&[]),
            ..client::search(COLLECTION, vector, 50)
        };
        let answer = query.search(ask).unwrap();
        assert_eq!(answer.hits.len(), 50);
        let hits = answer.hits.into_iter();
        hits.map(|hit| (hit.id, hit.distance.to_bits())).collect()
    });
    answers.collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Changes one byte of the largest object of each shard, and names those objects.
fn damage(store: &Path) -> Vec<String> {
    let made = fs::read_dir(store.join(COLLECTION)).unwrap().flatten();
    let made: Vec<PathBuf> = made.map(|entry| entry.path()).collect();
    assert_eq!(made.len(), 1, "{made:?}");
    let shards = (0..PARTITIONS).map(|shard| made[0].join(shard.to_string()).join("objects"));
    let damaged = shards.map(|objects| {
        let files = fs::read_dir(objects).unwrap().flatten();
        let largest = files.max_by_key(|file| file.metadata().unwrap().len());
        let largest = largest.unwrap();
        let mut bytes = fs::read(largest.path()).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(largest.path(), bytes).unwrap();
        largest.file_name().into_string().unwrap()
    });
    damaged.collect()
}

#[test]
fn a_lost_disk_is_restored_from_snapshots_and_the_tail_of_the_topic_alone() {
    let world = World::new("restored");
    let store = folder::fresh("restored-store");
    let collection = world.collection(COLLECTION, 384, PARTITIONS);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let lost = settings(&world, "lost", &store);
    let mut owner = lost.start();
    let query_role = world.query("query").start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);

    world::publish(&publisher, &mut model, rows(&collection, 0..POINTS));
    let again = rows(&collection, 0..300).into_iter();
    let again = again.map(|(id, point)| (id, updated(point)));
    world::publish(&publisher, &mut model, again.collect());
    let gone: Vec<PointId> = (300..500).map(id).collect();
    world::delete(&publisher, &mut model, &gone);
    world.settled(&owner, &collection);
    let first = take(&query_role);
    assert_eq!(sum(&first, "sent_bytes"), sum(&first, "bytes"));

    // Its folder as it is now comes back at the very end.
    owner.child.terminate();
    let stale = settings(&world, "stale", &store);
    copy(&lost.data(), &stale.data());
    owner = lost.start();

    // What the second one has to send is what came since.
    world::publish(
        &publisher,
        &mut model,
        rows(&collection, POINTS..POINTS + 300),
    );
    let gone: Vec<PointId> = (500..550).map(id).collect();
    world::delete(&publisher, &mut model, &gone);
    world.settled(&owner, &collection);
    let second = take(&query_role);
    let (bytes, sent) = (sum(&second, "bytes"), sum(&second, "sent_bytes"));
    assert!(bytes > sum(&first, "bytes"), "{first:?} {second:?}");
    assert!(sent * 4 < bytes, "{sent} of {bytes} bytes were sent");
    let url = store.to_str().unwrap();
    let verify = ["snapshot", "verify", COLLECTION, "--store", url];
    child::succeed(&verify, &[]);

    // The tail: new points, replaced ones and deletes, of which no snapshot knows.
    let tail_from = topic::ends(&world.cluster, &collection);
    assert_eq!(positions(&store), tail_from);
    world::publish(&publisher, &mut model, rows(&collection, 4000..4200));
    let again = rows(&collection, 550..650).into_iter();
    let again = again.map(|(id, point)| (id, updated(point)));
    world::publish(&publisher, &mut model, again.collect());
    let gone: Vec<PointId> = (650..700).map(id).collect();
    world::delete(&publisher, &mut model, &gone);
    let before = world.settled(&owner, &collection);
    model.assert_is(&before, now_ms());
    let answered = answers(&query);
    owner.had_no_errors(&[]);
    owner.child.kill();
    fs::rename(lost.data(), world.folder.join("lost-aside")).unwrap();

    // A store with a damaged file is told of, and the whole topic is read instead.
    let broken = folder::fresh("restored-damaged");
    copy(&store, &broken);
    let damaged = damage(&broken);
    let url = broken.to_str().unwrap();
    let (status, _, told) = child::run(&["snapshot", "verify", COLLECTION, "--store", url], &[]);
    assert!(!status.success(), "{told}");
    assert!(damaged.iter().all(|name| told.contains(name)), "{told}");
    let careful = settings(&world, "careful", &broken).start();
    assert_eq!(world.settled(&careful, &collection), before);
    let passed_over = "snapshot cannot be restored, the shard is read from its topic";
    assert_eq!(careful.said(passed_over), 2);
    assert_eq!(careful.said("shard restored from a snapshot"), 0);
    careful.child.terminate();

    // From here on only the snapshots know what came before them.
    let mut cut = python::client("cut_topic.py");
    cut.args(["--bootstrap", &world.kafka.bootstrap()])
        .args(["--topic", &collection.name.topic()]);
    cut.args(
        (0..)
            .zip(&tail_from)
            .map(|(shard, next)| format!("{shard}={next}")),
    );
    python::succeed(cut);
    let mut back = lost.start();
    assert_eq!(world.settled(&back, &collection), before);
    assert_eq!(back.said("shard restored from a snapshot"), 2);
    let read = back.metrics().sum("indexer_records_in_total", &[]);
    let ends = topic::ends(&world.cluster, &collection);
    let tail: u64 = ends
        .iter()
        .zip(&tail_from)
        .map(|(end, from)| end - from)
        .sum();
    assert_eq!(read, f64::from(u32::try_from(tail).unwrap()));
    eventually(DEADLINE, "the query node to find the shards again", || {
        let ask = v1::CountRequest {
            collection: COLLECTION.to_owned(),
            read: client::at_least(&[]),
            ..v1::CountRequest::default()
        };
        query.count(ask).ok()
    });
    assert_eq!(answers(&query), answered);
    back.child.lives();
    back.had_no_errors(&[]);

    // And it goes on: its next snapshot is the third, and holds all of it.
    let third = take(&query_role);
    assert!(third.iter().all(|shard| shard["number"] == 3), "{third:?}");
    world::publish(&publisher, &mut model, rows(&collection, 4200..4300));
    model.assert_is(&world.settled(&back, &collection), now_ms());

    // A folder that is older than what is left of the topic, and than the snapshots, gives way to the newest of these.
    back.child.terminate();
    let late = stale.start();
    model.assert_is(&world.settled(&late, &collection), now_ms());
    assert_eq!(late.said(SET_ASIDE), 2);
    assert_eq!(late.said("shard restored from a snapshot"), 2);
}
