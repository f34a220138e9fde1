//! Searches under a filter in a sealed segment whose graph is large enough to be walked: how they go about it follows
//! from how many rows match, and what they find does not.

use std::collections::{BTreeMap, BTreeSet};

use shoal_indexer::shard::search::Ask;
use shoal_runtime::eventually;
use shoal_schemas::{FieldKind, Filter, Payload, Value, v1};

use crate::world::{DEADLINE, Live, World, vector};

/// Rows of the sealed segment: a walk among half of so many is cheaper than a look at each of these, by a good part
/// (`shoal_indexer::fields::plan`).
const ROWS: u64 = 8192;
/// As wide a walk as makes it so.
const BEAM: usize = 48;
const K: usize = 10;
const QUERIES: u64 = 40;

fn name(number: u64) -> String {
    format!("p{number}")
}

fn payload(half: u64, number: u64) -> Payload {
    let value = |of: u64| Value::Integer(of as i64);
    Payload(BTreeMap::from([
        ("half".to_owned(), value(half)),
        ("hundredth".to_owned(), value(number % 100)),
    ]))
}

fn is(field: &str, value: i64) -> Filter {
    Filter::In {
        field: field.to_owned(),
        values: vec![Value::Integer(value)],
    }
}

/// A shard of one sealed segment, and a growing one of a row that no filter matches.
fn filled() -> (World, Live) {
    let mut world = World::new();
    let field = |name: &str| (name.to_owned(), FieldKind::Integer);
    world.collection.fields = BTreeMap::from(["half", "hundredth"].map(field));
    world.engine.memtable_rows = 1024;
    world.engine.seal_rows = u32::try_from(ROWS).unwrap();
    let live = world.open();
    for number in 0..ROWS {
        world.upsert_with(&name(number), number, payload(number % 2, number));
    }
    // One row more, that the segment is full.
    world.upsert("last", ROWS);
    world.caught_up(&live);
    eventually(DEADLINE, "the full segment is sealed", || {
        let (view, _) = live.shared.moment();
        let (_, others) = view.segments.split_last().unwrap();
        let sealed = others.iter().all(|one| one.as_sealed().is_some());
        (others.len() == 1 && sealed).then_some(())
    });
    (world, live)
}

/// What a search under a filter did and found, and what a look at every row finds.
struct Looked {
    explain: v1::ShardExplain,
    found: Vec<v1::Hit>,
    truth: Vec<v1::Hit>,
}

fn look(live: &Live, seed: u64, filter: &Filter) -> Looked {
    let ask = Ask {
        beam: Some(BEAM),
        filter: Some(filter.clone()),
        explain: true,
        ..Ask::nearest(vector(900_000 + seed), K)
    };
    let answer = live.shared.answer(&ask, &|| false).unwrap();
    let truth = live.shared.search(&Ask { exact: true, ..ask });
    Looked {
        explain: *answer.explain.first().unwrap(),
        found: answer.hits,
        truth: truth.unwrap(),
    }
}

/// Searches under the filter walk the graph to the end, and find next to everything; nothing else is found.
#[track_caller]
fn assert_walked(live: &Live, filter: &Filter, matching: &BTreeSet<String>) {
    let (mut hits, mut wanted) = (0, 0);
    for seed in 0..QUERIES {
        let Looked {
            explain,
            found,
            truth,
        } = look(live, seed, filter);
        assert_eq!(explain.plan(), v1::SearchPlan::FilteredGraph);
        // A walk that is given up ends in a look at each row that matches.
        let (distances, matches) = (explain.rows_scanned, explain.matches.unwrap());
        assert!(
            distances < matches,
            "{distances} distances, {matches} match"
        );
        assert_eq!((found.len(), truth.len()), (K, K));
        for hit in found.iter().chain(&truth) {
            assert!(matching.contains(&hit.id), "{} does not match", hit.id);
        }
        hits += found.iter().filter(|hit| truth.contains(hit)).count();
        wanted += K;
    }
    assert!(hits * 100 >= wanted * 98, "{hits} of {wanted} are found");
}

#[test]
fn a_filter_that_half_of_the_rows_match_is_searched_by_a_walk_of_the_graph_among_them() {
    let (world, live) = filled();
    let filter = is("half", 1);
    let mut matching: BTreeSet<String> = (1..ROWS).step_by(2).map(name).collect();
    assert_walked(&live, &filter, &matching);
    // What has ended is a node still.
    for number in (1..ROWS).step_by(20) {
        world.delete(&name(number));
        matching.remove(&name(number));
    }
    // So is what carries another payload from now on: one that matches, or one that does no longer.
    for number in (2..ROWS).step_by(40) {
        world.upsert_with(&name(number), number, payload(1, number));
        matching.insert(name(number));
    }
    for number in (3..ROWS).step_by(40) {
        world.upsert_with(&name(number), number, payload(0, number));
        matching.remove(&name(number));
    }
    world.caught_up(&live);
    assert_walked(&live, &filter, &matching);
    live.close();
}

#[test]
fn a_filter_that_few_rows_match_is_searched_by_a_look_at_each_of_them() {
    let (_world, live) = filled();
    let filter = is("hundredth", 7);
    let matching: BTreeSet<String> = (7..ROWS).step_by(100).map(name).collect();
    for seed in 0..QUERIES {
        let Looked {
            explain,
            found,
            truth,
        } = look(&live, seed, &filter);
        assert_eq!(explain.plan(), v1::SearchPlan::Exact);
        assert_eq!(explain.matches, Some(matching.len() as u64));
        assert_eq!(Some(explain.rows_scanned), explain.matches);
        assert_eq!(found.len(), K);
        assert_eq!(found, truth);
        assert!(found.iter().all(|hit| matching.contains(&hit.id)));
    }
    live.close();
}
