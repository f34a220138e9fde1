//! A memory budget that the data does not fit: ingest stops and says so, searches go on, the memory
//! stays where it is, and a larger budget takes the rest. So it is where the data comes by and by, and where all of it
//! waits already.

use std::fmt::Display;

use bytesize::ByteSize;
use shoal_runtime::eventually;
use shoal_schemas::v1;

use crate::harness::{
    DEADLINE, child, client,
    model::Model,
    role::{Metrics, Role},
    seed::Random,
    state, workload,
    world::{self, World, now_ms},
};

const DIM: u32 = 4096;
/// So many that none has a segment of 256 rows, which would be sealed and give memory back.
const PARTITIONS: u32 = 16;
const COLLECTION: &str = "large";
/// Points that are there before the budget is reached.
const EARLY: usize = 160;
/// About 20 KiB each in memory: the vector as it came, and its code in the graph.
const LATE: usize = 3400;
/// Points of another collection, and its shards: none of them is sealed either.
const SPARE: usize = 1400;
const SPARE_PARTITIONS: u32 = 8;
/// A shard fetches a whole batch at least, and so many shards share a small budget.
const BATCH_BYTES: u32 = 32 << 10;
const BUDGET: ByteSize = ByteSize::mib(112);
/// Percent of the budget that may be held above it. Ingest stops at nine tenths, and what is under way by then fits what
/// is left; an allocator that rounds up, and whoever measures, may be a little off.
const OVERSHOOT: u64 = 10;

/// The most an indexer has held, as often as it was looked at.
#[derive(Default)]
struct Peak(u64);

impl Peak {
    fn look(&mut self, indexer: &Role) {
        self.0 = self.0.max(indexer.child.memory_bytes());
    }

    /// The budget was kept.
    fn keeps_to_the_budget(self, held: impl Display, all: impl Display) {
        eprintln!(
            "budget {BUDGET} with {held} of {all} points: {} at the most",
            ByteSize(self.0)
        );
        let most = BUDGET.as_u64() * (100 + OVERSHOOT) / 100;
        assert!(self.0 <= most, "{} held", ByteSize(self.0));
    }
}

#[test]
fn a_budget_that_is_reached_stops_ingest_and_not_searches_until_there_is_a_larger_one() {
    let world = World::new("budget");
    let collection = world.collection(COLLECTION, DIM, PARTITIONS);
    let publisher = world.publisher_in_batches(&collection, BATCH_BYTES);
    let mut model = Model::new(&collection);
    let mut random = Random::of(64);
    let settings = world.indexer("frugal");
    let indexer = settings
        .clone()
        .with("INDEXER__MEMORY_BUDGET", BUDGET)
        .start();
    let query_role = world.query("query").start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
    // What another collection takes is missing here, and is given back when it goes.
    let spare = world.collection("spare", DIM, SPARE_PARTITIONS);
    let mut spare_model = Model::new(&spare);
    let points = workload::points(&spare_model, &mut random, "spare", SPARE);
    world::publish(
        &world.publisher_in_batches(&spare, BATCH_BYTES),
        &mut spare_model,
        points,
    );
    world.settled(&indexer, &spare);
    let early = workload::points(&model, &mut random, "early", EARLY);
    world::publish(&publisher, &mut model, early.clone());
    world.settled(&indexer, &collection);
    let late = workload::points(&model, &mut random, "late", LATE);
    world::publish(&publisher, &mut model, late);

    let mut peak = Peak::default();
    eventually(DEADLINE, "ingest to stop", || {
        peak.look(&indexer);
        let stopped = indexer.metrics().sum("indexer_ingest_stopped", &[]);
        (stopped > 0.0).then_some(())
    });
    let told = "memory budget is reached: ingest stops, searches go on; raise indexer.memory_budget or move shards to another node";
    let lines = indexer.child.logged();
    assert!(lines.iter().any(|line| line["message"] == told));
    let stopped = state::statuses(indexer.settings.grpc, &collection).unwrap();
    let why = stopped.iter().map(|status| status.ingest_stopped.as_str());
    assert!(
        why.clone().all(|why| why == "the memory budget is reached"),
        "{stopped:?}"
    );
    // What was fetched ahead is let go of, what was applied is added to graphs, and nothing new comes.
    let held: u64 = eventually(DEADLINE, "every row to be in a graph", || {
        peak.look(&indexer);
        let statuses = state::statuses(indexer.settings.grpc, &collection).ok()?;
        let is_folded = |one: &v1::ShardStatus| one.graph_rows >= one.live_points;
        let points = statuses.iter().map(|one| one.live_points);
        statuses.iter().all(is_folded).then(|| points.sum())
    });
    let all = u64::try_from(EARLY + LATE).unwrap();
    assert!(held < all, "{held} points fit the budget");
    for (id, point) in &early {
        peak.look(&indexer);
        let ask = v1::SearchRequest {
            read: client::at_least(&[]),
            ..client::search(COLLECTION, point.vector.as_slice(), 1)
        };
        let answer = query.search(ask).unwrap();
        assert_eq!(client::ids(&answer.hits), [id.as_str()]);
    }
    assert_eq!(indexer.said("segment sealed"), 0);
    child::succeed(&["collection", "drop", "spare"], &world.variables());
    eventually(DEADLINE, "ingest to go on", || {
        peak.look(&indexer);
        let statuses = state::statuses(indexer.settings.grpc, &collection).ok()?;
        let points = statuses.iter().map(|status| status.live_points);
        let goes_on = indexer.said("ingest goes on, no limit is reached any more") > 0;
        (goes_on && points.sum::<u64>() > held).then_some(())
    });
    peak.keeps_to_the_budget(held, all);
    indexer.had_no_errors(&[]);
    indexer.child.terminate();

    let mut larger = settings.with("INDEXER__MEMORY_BUDGET", "2GiB").launch();
    larger.is_ready();
    model.assert_is(&world.settled(&larger, &collection), now_ms());
    let status = state::statuses(larger.settings.grpc, &collection).unwrap();
    assert!(status.iter().all(|status| status.ingest_stopped.is_empty()));
    larger.had_no_errors(&[]);
}

#[test]
fn a_budget_is_kept_by_an_indexer_for_which_all_of_it_waits() {
    let world = World::new("waiting");
    let collection = world.collection(COLLECTION, DIM, PARTITIONS);
    let publisher = world.publisher_in_batches(&collection, BATCH_BYTES);
    let mut model = Model::new(&collection);
    let mut random = Random::of(65);
    let points = workload::points(&model, &mut random, "point", EARLY + LATE);
    world::publish(&publisher, &mut model, points);
    let all = EARLY + LATE;
    let settings = world.indexer("late");
    let indexer = settings
        .clone()
        .with("INDEXER__MEMORY_BUDGET", BUDGET)
        .launch();
    // It is not ready, for it has not held everything, but tells what it has.
    let metrics = || {
        let (status, text) = client::try_get(indexer.settings.http, "/metrics")?;
        (status == 200).then_some(Metrics(text))
    };
    let mut peak = Peak::default();
    eventually(DEADLINE, "ingest to stop", || {
        peak.look(&indexer);
        let stopped = metrics()?.sum("indexer_ingest_stopped", &[]);
        (stopped > 0.0).then_some(())
    });
    let held = eventually(DEADLINE, "every row to be in a graph", || {
        peak.look(&indexer);
        let metrics = metrics()?;
        let folded = metrics.sum("indexer_rows_folded_total", &[]);
        let held = metrics.sum("indexer_records_in_total", &[]);
        (folded >= held).then_some(held)
    });
    assert!(
        held < f64::from(u32::try_from(all).unwrap()),
        "{held} points fit the budget"
    );
    peak.keeps_to_the_budget(held, all);
    indexer.child.terminate();
    let mut larger = settings.with("INDEXER__MEMORY_BUDGET", "2GiB").launch();
    larger.is_ready();
    model.assert_is(&world.settled(&larger, &collection), now_ms());
    larger.had_no_errors(&[]);
}
