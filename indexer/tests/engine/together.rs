//! Searches of several sealed segments: their graphs are walked as if they were one.

use std::collections::BTreeMap;

use bytes::Bytes;
use shoal_indexer::{
    index::{distance::Query, packed::MENDED_BEAM},
    segment::Segment,
    shard::search::Ask,
};
use shoal_runtime::eventually;
use shoal_schemas::{
    Metric, Payload, Point, Record, Vector,
    avro::{self, Framing},
    v1,
};

use crate::world::{DEADLINE, Live, World, vector};

/// Rows of a sealed segment: enough for a walk to be cheaper than a scan.
const ROWS: u64 = 4096;
const SEGMENTS: u64 = 3;
const K: usize = 10;
const BEAM: usize = 32;
/// Wide enough for a share of it to be more than every walk goes at least.
const WIDE: usize = 96;

/// Points of three segments. Where they are in regions, each segment has one to itself.
fn filled(in_regions: bool) -> (World, Live, BTreeMap<String, Vec<f32>>) {
    written(ROWS, SEGMENTS * ROWS, in_regions)
}

/// So many points, and one; a segment is sealed when it has `seal_rows` of them.
fn written(
    seal_rows: u64,
    rows: u64,
    in_regions: bool,
) -> (World, Live, BTreeMap<String, Vec<f32>>) {
    let mut world = World::new();
    world.engine.memtable_rows = 1024;
    world.engine.seal_rows = u32::try_from(seal_rows).unwrap();
    let live = world.open();
    let mut points = BTreeMap::new();
    for number in 0..rows {
        let vector = placed(number, in_regions);
        let id = format!("p{number}");
        world.send(&record(&world, &id, &vector));
        points.insert(id, vector);
    }
    // One row more, that the last segment is full.
    world.upsert("last", 1);
    points.insert("last".into(), vector(1));
    world.caught_up(&live);
    eventually(DEADLINE, "the full segments are sealed", || {
        let (view, _) = live.shared.moment();
        let (_, others) = view.segments.split_last().unwrap();
        let sealed = others.iter().filter(|one| one.as_sealed().is_some());
        (sealed.count() as u64 == rows / seal_rows).then_some(())
    });
    (world, live, points)
}

fn placed(number: u64, in_regions: bool) -> Vec<f32> {
    let own = vector(number + 7);
    if !in_regions {
        return own;
    }
    let region = vector(100_000 + number / ROWS);
    let both = region.iter().zip(&own);
    both.map(|(region, own)| region + 0.3 * own).collect()
}

fn record(world: &World, id: &str, vector: &[f32]) -> Record {
    let point = Point {
        vector: Vector::new(vector, world.collection.dim, Metric::Cosine).unwrap(),
        payload: Payload::default(),
        model: None,
        event_time_ms: None,
        expires_at_ms: None,
    };
    let mut value = Vec::new();
    avro::encode(&point, Framing::SingleObject, &mut value);
    Record {
        key: Some(Bytes::copy_from_slice(id.as_bytes())),
        value: Some(value.into()),
        timestamp_ms: 1_700_000_000_000,
        ..Record::default()
    }
}

/// The share of the true nearest that searches find, and how many distances one takes.
fn look(live: &Live, beam: usize, queries: impl Iterator<Item = Vec<f32>>) -> (f64, u64) {
    let (mut found, mut wanted, mut distances, mut searches) = (0, 0, 0, 0);
    for query in queries {
        let ask = Ask {
            beam: Some(beam),
            explain: true,
            ..Ask::nearest(query.clone(), K)
        };
        let answer = live.shared.answer(&ask, &|| false).unwrap();
        let explain = answer.explain.first().unwrap();
        assert_eq!(explain.plan(), v1::SearchPlan::Graph);
        let truth = live.shared.search(&Ask {
            exact: true,
            ..Ask::nearest(query, K)
        });
        let truth: Vec<v1::Hit> = truth.unwrap();
        let is_true = |hit: &&v1::Hit| truth.iter().any(|one| one.id == hit.id);
        found += answer.hits.iter().filter(is_true).count();
        wanted += K;
        distances += explain.rows_scanned;
        searches += 1;
    }
    (found as f64 / wanted as f64, distances / searches)
}

#[test]
fn segments_with_a_share_of_the_nearest_each_are_walked_with_narrower_beams() {
    let (_world, live, _) = filled(false);
    let queries = || (0..100).map(|seed| vector(900_000 + seed));
    let (recall, _) = look(&live, BEAM, queries());
    assert!(recall > 0.98, "{recall}");
    let (_, distances) = look(&live, WIDE, queries());
    // A beam of that width in each takes about as many again.
    let apart = distances_apart(&live);
    assert!(distances * 4 < apart * 3, "{distances} beside {apart}");
    live.close();
}

#[test]
fn the_segment_that_holds_all_of_the_nearest_is_walked_with_the_whole_beam() {
    let (_world, live, _) = filled(true);
    for segment in 0..SEGMENTS {
        let queries = (0..40).map(|seed| placed_query(segment, seed));
        let (recall, _) = look(&live, BEAM, queries);
        assert!(recall > 0.98, "segment {segment}: {recall}");
    }
    live.close();
}

#[test]
fn a_small_graph_beside_a_large_one_gives_its_part_of_the_nearest() {
    for in_regions in [false, true] {
        let few = ROWS * 3 / 4;
        let (_world, live, _) = written(SEGMENTS * ROWS, SEGMENTS * ROWS + few, in_regions);
        eventually(DEADLINE, "the rows after those are in a graph", || {
            let (view, _) = live.shared.moment();
            let last = view.segments.last().unwrap();
            (u64::from(last.folded()) > few).then_some(())
        });
        for segment in 0..=SEGMENTS {
            let queries = (0..40).map(|seed| match in_regions {
                true => placed_query(segment, seed),
                false => vector(900_000 + segment * 40 + seed),
            });
            let (recall, _) = look(&live, BEAM, queries);
            assert!(recall > 0.99, "{in_regions}, segment {segment}: {recall}");
        }
        if in_regions {
            // Where the small one has none of the nearest it costs less than coming near to all of its rows does.
            let queries = || (0..40).map(|seed| placed_query(0, seed));
            let (_, distances) = look(&live, WIDE, queries());
            let [large, small] = [(0, WIDE), (1, MENDED_BEAM + 4)].map(|(at, beam)| {
                let (view, _) = live.shared.moment();
                mean_of_walks(&view.segments[at], beam, queries())
            });
            assert!(
                distances < large + small * 3 / 4,
                "{distances}, {large} and {small}"
            );
        }
        live.close();
    }
}

#[test]
fn live_points_amid_deleted_ones_are_found() {
    let (world, live, points) = filled(true);
    let query = placed_query(0, 3);
    // A quarter of the segment, the nearest, but for every fortieth.
    let mut order: Vec<(f32, &String)> = points
        .iter()
        .filter(|(id, _)| id[1..].parse::<u64>().is_ok_and(|number| number < ROWS))
        .map(|(id, vector)| (cosine(&query, vector), id))
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (place, (_, id)) in order.iter().enumerate().take(order.len() / 4) {
        if !place.is_multiple_of(40) {
            world.delete(id);
        }
    }
    world.caught_up(&live);
    let (recall, _) = look(&live, BEAM, std::iter::once(query));
    assert!(recall > 0.95, "{recall}");
    live.close();
}

#[test]
fn points_behind_deleted_ones_are_found() {
    for in_regions in [false, true] {
        let (world, live, points) = filled(in_regions);
        let query = match in_regions {
            true => placed_query(0, 3),
            false => vector(900_003),
        };
        // All of the nearest: more than a beam of each segment, or of the one that holds them.
        let mut order: Vec<(f32, &String)> = points
            .iter()
            .map(|(id, vector)| (cosine(&query, vector), id))
            .collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        let count = usize::try_from(SEGMENTS).unwrap() * 2 * BEAM;
        for (_, id) in order.iter().take(count) {
            world.delete(id);
        }
        world.caught_up(&live);
        let (recall, _) = look(&live, BEAM, std::iter::once(query));
        assert!(recall > 0.95, "in regions: {in_regions}, {recall}");
        live.close();
    }
}

fn placed_query(segment: u64, seed: u64) -> Vec<f32> {
    let region = vector(100_000 + segment);
    let own = vector(700_000 + seed);
    let both = region.iter().zip(&own);
    both.map(|(region, own)| region + 0.3 * own).collect()
}

/// How many distances walks of each graph by itself take.
fn distances_apart(live: &Live) -> u64 {
    let (view, _) = live.shared.moment();
    let (_, sealed) = view.segments.split_last().unwrap();
    let queries = || (0..100).map(|seed| vector(900_000 + seed));
    let each = sealed.iter();
    each.map(|one| mean_of_walks(one, WIDE, queries())).sum()
}

/// How many distances a walk of a graph takes, so wide.
fn mean_of_walks(segment: &Segment, beam: usize, queries: impl Iterator<Item = Vec<f32>>) -> u64 {
    let (mut distances, mut walks) = (0, 0);
    for query in queries {
        let query = Query::new(Metric::Cosine, &query);
        distances += segment.walk(&query, beam, beam, None).distances as u64;
        walks += 1;
    }
    distances / walks
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
