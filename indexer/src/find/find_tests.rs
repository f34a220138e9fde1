//! Searches of rows that no graph has yet.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use crate::{config::Ownership, node::alone::Alone, shard::search::Ask};

/// Points: many more than a search keeps while it looks.
const POINTS: u16 = 900;
/// Places: each has several points, so that where an answer ends others are as near.
const PLACES: u16 = POINTS / 4;
const K: usize = 10;
const BEAM: usize = 4;

#[test]
fn rows_that_no_graph_has_are_found_as_a_look_at_each_finds_them() {
    let alone = Alone::new(Ownership::Static { shards: Vec::new() });
    let docs = alone.define("docs", &[]);
    let mut placed = BTreeMap::new();
    let put = |number: u16, at: u16, placed: &mut BTreeMap<String, u16>| {
        alone.publish_at(&docs, number, at);
        placed.insert(format!("id-{number}"), at);
    };
    for number in 0..POINTS {
        put(number, number % PLACES, &mut placed);
    }
    for number in (0..POINTS).step_by(3) {
        put(number, (number + 100) % PLACES, &mut placed);
    }
    let key = alone.take(&docs);
    alone.node.let_go(&[key]);

    // Read back from its log, by nobody who would make a graph of it.
    let shared = alone.offline(&docs);
    let rows = shared.moment().0.memtable_rows();
    assert_eq!(rows, u32::from(POINTS + POINTS / 3));
    for asked in (0..PLACES).step_by(7) {
        let ask = Ask {
            beam: Some(BEAM),
            ..Ask::nearest(vec![1.0, f32::from(asked), 2.0], K)
        };
        let found = shared.search(&ask).unwrap();
        let found: Vec<(f32, String)> = found
            .into_iter()
            .map(|hit| (hit.distance, hit.id))
            .collect();
        let mut all: Vec<(f32, String)> = placed
            .iter()
            .map(|(id, at)| (f32::from(at.abs_diff(asked)).powi(2), id.clone()))
            .collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        all.truncate(K);
        assert_eq!(found, all, "nearest to {asked}");
    }
}
