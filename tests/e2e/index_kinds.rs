//! A collection whose searches look at every point, and the way from there to a graph and back, while searches go on.

use shoal_runtime::eventually;
use shoal_schemas::{Collection, v1};

use crate::{
    harness::{
        DEADLINE, child, client, model::Model, seed::Random, steady::Steady, workload, world::World,
    },
    reindex::{DIM, indexer, name, query, serves, stands_for, until},
};

/// Narrow enough that a graph of some hundred rows is walked.
const BEAM: u32 = 12;

/// What each shard did, and the hits.
fn asked(query: &client::Query, exact: bool) -> (Vec<v1::SearchPlan>, Vec<v1::Hit>) {
    let ask = v1::SearchRequest {
        ef: BEAM,
        exact,
        explain: true,
        read: client::at_least(&[]),
        ..client::search("docs", &[0.5; 16], 10)
    };
    let found = query.search(ask).unwrap();
    let plans = found.explain.iter().map(v1::ShardExplain::plan).collect();
    (plans, found.hits)
}

#[test]
fn an_index_of_another_kind_takes_over_and_no_search_fails() {
    let world = World::new("index-kinds");
    let variables = world.variables();
    let create = |more: &[&str]| {
        let docs = ["collection", "create", "docs", "--dim", "16"];
        let all = [
            &docs[..],
            &["--metric", "cosine", "--partitions", "2"],
            more,
        ]
        .concat();
        child::run(&all, &variables)
    };
    let (status, _, told) = create(&["--index", "flat", "--ef-search", "200"]);
    assert_eq!(status.code(), Some(2), "{told}");
    let refused = "index.ef_search is not the default, and a flat index has no graph";
    assert!(told.contains(refused), "{told}");
    let (status, out, told) = create(&["--index", "flat"]);
    assert!(status.success(), "{out}{told}");
    until(&world, "the definition", |state| {
        state.collections.contains_key(&name("docs"))
    });
    let docs = world.control.snapshot().collections[&name("docs")].clone();
    let (status, _, told) = create(&[]);
    assert_eq!(status.code(), Some(1), "{told}");
    let differs = "index.kind is flat, asked for was hnsw";
    assert!(told.contains(differs), "{told}");

    let publisher = world.publisher(&docs);
    let mut model = Model::new(&docs);
    let mut random = Random::from_environment("index kinds");
    workload::churn(&publisher, &mut model, &mut random, 4000, 8000);
    // Of so many rows that nobody would scan them who has a graph.
    let indexer = indexer(&world)
        .with("INDEXER__ENGINE__SEAL_ROWS", 8192)
        .start();
    let query_role = world.query("query").start();
    let query = query(&query_role);
    serves(&query, "docs");
    world.settled(&indexer, &docs);
    let (plans, found) = asked(&query, false);
    assert_eq!(plans, [v1::SearchPlan::Exact; 2]);
    assert_eq!(found, asked(&query, true).1);

    let steady = Steady::asking(&query, "docs", DIM, None);
    steady.more(50);
    let graph: &[&str] = &["hnsw", "--m", "8"];
    for (kind, expected) in [
        (graph, v1::SearchPlan::Graph),
        // The edges are forgotten.
        (&["flat"], v1::SearchPlan::Exact),
    ] {
        let wish = ["reindex", "docs", "--linger", "1s", "--index"];
        let told = child::succeed(&[&wish, kind].concat(), &variables);
        assert!(told.contains("both hold the same points"), "{told}");
        steady.more(50);
        let new = eventually(DEADLINE, "the query node to know", || {
            let stands = stands_for(&query, "docs")?;
            let stands = Collection::from_proto(stands).unwrap();
            (stands.index.kind.as_str() == kind[0]).then_some(stands)
        });
        world.settled(&indexer, &new);
        // Rows are in the graph a while after they are applied.
        eventually(DEADLINE, "both shards to go by their index", || {
            (asked(&query, false).0 == [expected; 2]).then_some(())
        });
    }
    steady.stop();
    assert_eq!(asked(&query, false).1, asked(&query, true).1);
    indexer.had_no_errors(&[]);
    query_role.had_no_errors(&[]);
}
