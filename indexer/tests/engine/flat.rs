//! An index without a graph: every search looks at all rows, and finds what is there through updates, restarts, seals
//! and compactions.

use std::{collections::BTreeMap, fs};

use shoal_indexer::shard::search::Ask;
use shoal_runtime::eventually;
use shoal_schemas::{FieldKind, Filter, IndexKind, Payload, Quantization, Value, v1};

use crate::world::{DEADLINE, Live, World, assert_coded, components};

const DIM: u32 = 48;
const IDS: u64 = 3000;
const TURNS: u64 = 5;
const K: usize = 5;
/// So narrow that a graph would be walked.
const BEAM: usize = 1;

fn flat(kind: IndexKind) -> World {
    let mut world = World::new();
    world.collection.dim = DIM.try_into().unwrap();
    world.collection.index.kind = kind;
    world.collection.index.quantization = Some(Quantization::I4);
    world.collection.fields = [("group".to_owned(), FieldKind::Integer)].into();
    world.collection.check().unwrap();
    world.engine.seal_rows = 4096;
    world
}

fn payload(id: u64) -> Payload {
    Payload([("group".to_owned(), Value::Integer((id % 4) as i64))].into())
}

/// Updates every id again and again, now and then with the vector that it has; of the last round some are deleted.
/// Gives the seeds of those that are left.
fn fill(world: &World) -> BTreeMap<String, u64> {
    let mut left = BTreeMap::new();
    for turn in 0..TURNS {
        for id in 0..IDS {
            let name = format!("id-{id}");
            let kept = left.get(&name).filter(|_| (id + turn).is_multiple_of(5));
            let seed = kept.copied().unwrap_or(turn * IDS + id);
            let record = world.record_of(&name, &components(seed, DIM), payload(id + turn));
            world.send(&record);
            left.insert(name, seed);
        }
    }
    for id in (0..IDS).step_by(9) {
        let name = format!("id-{id}");
        world.delete(&name);
        left.remove(&name);
    }
    left
}

/// Waits until most rows are sealed, and those that ended compacted away.
fn settled(live: &Live) {
    eventually(DEADLINE, "segments are sealed and compacted", || {
        let (view, _) = live.shared.moment();
        let rows: u32 = view.segments.iter().map(|one| one.len()).sum();
        let is_sealed = view.segments.iter().any(|one| one.as_sealed().is_some());
        (is_sealed && u64::from(rows) < IDS * 2).then_some(())
    });
}

/// Fails unless a search finds exactly what a scan of the exact vectors does.
fn finds_all(live: &Live, filter: Option<Filter>) {
    for seed in 0..60 {
        let ask = Ask {
            filter: filter.clone(),
            beam: Some(BEAM),
            explain: true,
            ..Ask::nearest(components(1_000_000 + seed, DIM), K)
        };
        let found = live.shared.answer(&ask, &|| false).unwrap();
        let exact = Ask { exact: true, ..ask };
        let exact = live.shared.answer(&exact, &|| false).unwrap();
        let explain = found.explain.first().unwrap();
        assert_eq!(explain.plan(), v1::SearchPlan::Exact);
        assert_eq!(found.hits.len(), K);
        assert_eq!(found.hits, exact.hits, "query {seed}");
    }
}

fn edges(live: &Live) -> usize {
    let (view, _) = live.shared.moment();
    let sealed = view.segments.iter().filter_map(|one| one.as_sealed());
    let degrees = sealed.map(|one| one.graph().degrees().0);
    degrees.max().unwrap()
}

fn group(wanted: i64) -> Option<Filter> {
    Some(Filter::In {
        field: "group".to_owned(),
        values: vec![Value::Integer(wanted)],
    })
}

#[test]
fn every_search_finds_what_there_is_whatever_became_of_the_rows() {
    let world = flat(IndexKind::Flat);
    let live = world.open();
    let left = fill(&world);
    let before = world.caught_up(&live);
    assert_eq!(before.points, left.len() as u64);
    settled(&live);
    let check = |live: &Live| {
        assert_eq!(edges(live), 0);
        assert!(assert_coded(live) > 0);
        finds_all(live, None);
        finds_all(live, group(3));
        for (id, seed) in left.iter().step_by(40) {
            let hits = live.shared.search(&Ask::nearest(components(*seed, DIM), 1));
            assert_eq!(hits.unwrap()[0].id, *id);
        }
    };
    check(&live);
    live.close();
    // What was in memory is read back, and what is derived is made anew.
    fs::remove_dir_all(world.folder.path().join("live/catalog")).unwrap();
    let live = world.open();
    assert_eq!(world.caught_up(&live), before);
    check(&live);
    live.close();
}

#[test]
fn it_holds_what_one_with_a_graph_holds_in_less_memory() {
    let kinds = [IndexKind::Flat, IndexKind::Hnsw];
    let [flat, graph] = kinds.map(|kind| {
        let world = flat(kind);
        let live = world.open();
        fill(&world);
        let digest = world.caught_up(&live).digest;
        settled(&live);
        let is_walked = edges(&live) > 0;
        let (view, _) = live.shared.moment();
        let rows: u64 = view.segments.iter().map(|one| u64::from(one.nodes())).sum();
        let bytes = view.graph_bytes() / rows;
        drop(view);
        live.close();
        (digest, is_walked, bytes)
    });
    assert_eq!(flat.0, graph.0);
    assert_eq!((flat.1, graph.1), (false, true));
    // At level 0 alone 32 edges of four bytes.
    assert!(flat.2 + 128 <= graph.2, "{} and {} bytes", flat.2, graph.2);
}
