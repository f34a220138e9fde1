//! A memory budget that the data does not fit: ingest stops and says so, searches go on, the memory
//! stays where it is, and a larger budget takes the rest.

use bytesize::ByteSize;
use shoal_runtime::eventually;
use shoal_schemas::v1;

use crate::harness::{
    DEADLINE, client,
    model::Model,
    role::Role,
    seed::Random,
    state, workload,
    world::{self, World, now_ms},
};

const DIM: u32 = 4096;
/// So many that none has a segment large enough to be sealed, which would give memory back.
const PARTITIONS: u32 = 16;
const COLLECTION: &str = "large";
/// Points that are there before the budget is reached.
const EARLY: usize = 160;
/// About 20 KiB each in memory: the vector as it came, and its code in the graph.
const LATE: usize = 2900;
const BUDGET: ByteSize = ByteSize::mib(112);
/// Percent of the budget that may be held above it for a moment. Ingest stops at nine tenths; by the time that is seen
/// every one of 16 shards may have a turn of large records in hand, and more of them fetched ahead.
const OVERSHOOT: u64 = 50;
/// The same for as long as it lasts: what was applied by then is still added to graphs, a quarter of its size.
const OVERSHOOT_AT_REST: u64 = 10;

/// The most an indexer has held, as often as it was looked at.
#[derive(Default)]
struct Peak(u64);

impl Peak {
    fn look(&mut self, indexer: &Role) {
        self.0 = self.0.max(indexer.child.memory_bytes());
    }
}

#[test]
fn a_budget_that_is_reached_stops_ingest_and_not_searches_until_there_is_a_larger_one() {
    let world = World::new("budget");
    let collection = world.collection(COLLECTION, DIM, PARTITIONS);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::of(64);
    let settings = world.indexer("frugal");
    let indexer = settings
        .clone()
        .with("INDEXER__MEMORY_BUDGET", BUDGET)
        .start();
    let query_role = world.query("query").start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
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
    let held: u64 = stopped.iter().map(|status| status.live_points).sum();
    let all = u64::try_from(EARLY + LATE).unwrap();
    assert!(held < all, "{held} points fit the budget");
    // What was fetched ahead is let go of, what was applied is added to graphs, and nothing new comes.
    let percent_of_budget = |percent: u64| BUDGET.as_u64() * percent / 100;
    eventually(DEADLINE, "every row to be in a graph", || {
        peak.look(&indexer);
        let statuses = state::statuses(indexer.settings.grpc, &collection).ok()?;
        let is_folded = |one: &v1::ShardStatus| one.graph_rows >= one.live_points;
        statuses.iter().all(is_folded).then_some(())
    });
    let mut resting = Peak::default();
    for (id, point) in &early {
        resting.look(&indexer);
        let ask = v1::SearchRequest {
            read: client::at_least(&[]),
            ..client::search(COLLECTION, point.vector.as_slice(), 1)
        };
        let answer = query.search(ask).unwrap();
        assert_eq!(client::ids(&answer.hits), [id.as_str()]);
    }
    eprintln!(
        "budget {BUDGET} with {held} of {all} points: {} held while searched, {} at the most",
        ByteSize(resting.0),
        ByteSize(peak.0)
    );
    let most_at_rest = percent_of_budget(100 + OVERSHOOT_AT_REST);
    assert!(resting.0 <= most_at_rest, "{} held", ByteSize(resting.0));
    let most = percent_of_budget(100 + OVERSHOOT);
    assert!(peak.0 <= most, "{} held", ByteSize(peak.0));
    indexer.had_no_errors(&[]);
    indexer.child.terminate();

    let mut larger = settings.with("INDEXER__MEMORY_BUDGET", "2GiB").launch();
    larger.is_ready();
    model.assert_is(&world.settled(&larger, &collection), now_ms());
    let status = state::statuses(larger.settings.grpc, &collection).unwrap();
    assert!(status.iter().all(|status| status.ingest_stopped.is_empty()));
    larger.had_no_errors(&[]);
}
