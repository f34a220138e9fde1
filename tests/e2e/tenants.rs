//! Many small tenants in one collection: each sees its own points and pays for no others.

use std::collections::BTreeSet;

use shoal_runtime::{clock::Stopwatch, eventually};
use shoal_schemas::{Collection, Metric, PointId, v1};

use crate::harness::{
    DEADLINE, client,
    model::Model,
    seed::Random,
    topic,
    world::{self, World, now_ms},
};

const DIM: u32 = 16;
const PARTITIONS: u32 = 4;
const COLLECTION: &str = "many";
const TENANTS: usize = 10_000;
const POINTS_EACH: usize = 10;
/// Queries sent at a time.
const BATCH: usize = 500;
/// Of all 100,000 points: vectors, graphs, ids, the catalog's cache. Several times what was found,
/// far below what a graph or a bitmap a tenant would take.
const MOST_BYTES: u64 = 512 << 20;

/// The same queries, each for a tenant or for everybody.
fn ask(vectors: &[(usize, Vec<f32>)], for_tenants: bool) -> v1::SearchBatchRequest {
    let queries = vectors.iter().map(|(tenant, vector)| v1::Query {
        vector: vector.clone(),
        // More than a tenant has.
        k: 15,
        explain: true,
        tenant: if for_tenants {
            format!("t{tenant}")
        } else {
            String::new()
        },
        ..v1::Query::default()
    });
    v1::SearchBatchRequest {
        collection: COLLECTION.to_owned(),
        queries: queries.collect(),
        read: None,
    }
}

/// Microseconds that a shard took by itself.
fn own_micros(told: &v1::ShardExplain) -> u64 {
    told.plan_us + told.search_us + told.rescore_us + told.payload_us
}

/// Rows compared and microseconds taken in the shards, over all answers.
#[derive(Default)]
struct Cost {
    rows: u64,
    micros: u64,
    queries: u32,
}

impl Cost {
    fn add(&mut self, list: &v1::HitList) {
        for one in &list.explain {
            self.rows += one.rows_scanned;
            self.micros += own_micros(one);
        }
        self.queries += 1;
    }

    fn text(&self) -> String {
        let each = |count: u64| f64::from(u32::try_from(count).unwrap()) / f64::from(self.queries);
        format!(
            "{:.1} rows compared, {:.1} us in the shards",
            each(self.rows),
            each(self.micros)
        )
    }
}

#[test]
fn ten_thousand_tenants_of_ten_points_each_see_their_own_alone() {
    let world = World::new("tenants");
    let dim = DIM.try_into().unwrap();
    let mut wanted = Collection::new(COLLECTION.parse().unwrap(), dim, Metric::Cosine, PARTITIONS);
    wanted.route_by_key_prefix = true;
    let collection = world.create(wanted);
    let indexer = world.indexer("indexer").start();
    let before_bytes = indexer.child.memory_bytes();
    let query_role = world.query("query").start();
    let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::of(10_000);
    let watch = Stopwatch::start();
    for point in 0..POINTS_EACH {
        let points = (0..TENANTS).map(|tenant| {
            let id = PointId::new(&format!("t{tenant}/{point}")).unwrap();
            (id, topic::point(&collection, &random.vector(DIM)))
        });
        world::publish(&publisher, &mut model, points.collect());
    }
    model.assert_is(&world.settled(&indexer, &collection), now_ms());
    let applied = watch.elapsed();
    eventually(DEADLINE, "every row to be in a graph", || {
        let waiting = indexer.metrics().sum("indexer_memtable_rows", &[]);
        (waiting < 1.0).then_some(())
    });
    let held_bytes = indexer.child.memory_bytes().saturating_sub(before_bytes);

    let vectors: Vec<_> = (0..TENANTS).map(|one| (one, random.vector(DIM))).collect();
    let (mut own, mut everybody) = (Cost::default(), Cost::default());
    for asked in vectors.chunks(BATCH) {
        let answer = query.search_batch(ask(asked, true)).unwrap();
        for ((tenant, _), list) in asked.iter().zip(&answer.results) {
            let found: BTreeSet<&str> = client::ids(&list.hits).into_iter().collect();
            let expected = (0..POINTS_EACH).map(|point| format!("t{tenant}/{point}"));
            let expected: BTreeSet<String> = expected.collect();
            assert!(found.iter().copied().eq(&expected), "t{tenant}: {found:?}");
            assert_eq!(list.hits.len(), POINTS_EACH);
            let compared = list.explain.iter().map(|shard| shard.rows_scanned);
            assert_eq!(compared.sum::<u64>(), 10, "t{tenant}: {:?}", list.explain);
            own.add(list);
        }
    }
    // Alone, not in a batch of many tenants, it is asked of its own shard alone.
    for (tenant, vector) in vectors.iter().step_by(500) {
        let ask = v1::SearchRequest {
            tenant: format!("t{tenant}"),
            ..client::search(COLLECTION, vector, 15)
        };
        let answer = query.search(ask).unwrap();
        assert_eq!(answer.hits.len(), POINTS_EACH);
        assert_eq!(answer.coverage.unwrap().shards_asked, 1);
    }
    for asked in vectors.chunks(BATCH).take(4) {
        let answer = query.search_batch(ask(asked, false)).unwrap();
        let shards = answer.coverage.unwrap().shards;
        assert!(shards.iter().all(|shard| shard.shard_us > 0), "{shards:?}");
        for list in &answer.results {
            assert_eq!(list.hits.len(), 15);
            assert_eq!(list.explain.len(), 4);
            // Each walks a graph of thousands of rows.
            let takes_time = list.explain.iter().all(|shard| own_micros(shard) > 0);
            assert!(takes_time, "{:?}", list.explain);
            everybody.add(list);
        }
    }
    // One of ten rows alone may take less than a microsecond a step.
    assert!(own.micros > 0, "no shard says how long it took");
    eprintln!(
        "100,000 points of 10,000 tenants: applied in {:.1} s, {} KiB held; \
         a query of a tenant: {}; of everybody: {}",
        applied.as_secs_f64(),
        held_bytes >> 10,
        own.text(),
        everybody.text()
    );
    assert!(held_bytes < MOST_BYTES, "{held_bytes} bytes");
    indexer.had_no_errors(&[]);
}
