//! Rows are found by searches for themselves: a graph is mended before it is sealed, and a growing one once it is at
//! rest.

use std::time::Duration;

use shoal_indexer::shard::search::Ask;
use shoal_runtime::eventually;
use shoal_schemas::IndexParameters;

use crate::world::{DEADLINE, Live, World, vector};

/// Enough for a walk to be cheaper than a scan.
const ROWS: u64 = 4096;
/// Somewhat wider than what graphs are mended for.
const BEAM: usize = 32;
/// Of these rows so many may not find themselves; without mending a hundred do not.
const MOST_LOST: usize = 2;

/// Of so few edges, chosen with so little effort, that many rows are in hardly any list.
fn sparse(idle_seal_after: Duration) -> World {
    let mut world = World::new();
    world.collection.index = IndexParameters {
        m: 4,
        ef_construction: 8,
        ..world.collection.index
    };
    world.engine.memtable_rows = 1024;
    world.engine.idle_seal_rows = 1 << 20;
    world.engine.idle_seal_after = idle_seal_after;
    world
}

fn fill(world: &World, live: &Live) {
    for number in 0..ROWS {
        world.upsert(&format!("p{number}"), number);
    }
    world.caught_up(live);
    eventually(DEADLINE, "all rows are in graphs", || {
        let (view, _) = live.shared.moment();
        let mut segments = view.segments.iter();
        segments.all(|one| one.folded() == one.len()).then_some(())
    });
}

/// How many rows a search for their own vector does not find.
fn lost(live: &Live) -> usize {
    let is_lost = |number: &u64| {
        let ask = Ask {
            beam: Some(BEAM),
            ..Ask::nearest(vector(*number), 1)
        };
        let hits = live.shared.search(&ask).unwrap();
        hits.first()
            .is_none_or(|hit| hit.id != format!("p{number}"))
    };
    (0..ROWS).filter(is_lost).count()
}

#[test]
fn a_growing_graph_at_rest_finds_its_rows() {
    let mut world = sparse(Duration::from_millis(200));
    world.engine.seal_rows = 1 << 20;
    let live = world.open();
    fill(&world, &live);
    eventually(DEADLINE, "rows find themselves", || {
        (lost(&live) <= MOST_LOST).then_some(())
    });
    live.close();
}

#[test]
fn a_sealed_graph_finds_its_rows() {
    // Not at rest before it is sealed.
    let mut world = sparse(Duration::from_secs(3600));
    world.engine.seal_rows = u32::try_from(ROWS).unwrap();
    let live = world.open();
    fill(&world, &live);
    let before = lost(&live);
    assert!(before > 80, "nothing to mend: {before}");
    // One row more, that the segment is full.
    world.upsert("last", ROWS);
    world.caught_up(&live);
    eventually(DEADLINE, "the segment is sealed", || {
        let (view, _) = live.shared.moment();
        let mut segments = view.segments.iter();
        segments.any(|one| one.as_sealed().is_some()).then_some(())
    });
    let after = lost(&live);
    assert!(after <= MOST_LOST, "{after}, before it was sealed {before}");
    live.close();
}
