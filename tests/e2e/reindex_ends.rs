//! How a re-indexing may end but for the usual way: its time is over, it is told to end or taken back, what it has built
//! finds too little, and what becomes of the old collection.

use shoal_runtime::eventually;

use crate::{
    harness::{
        DEADLINE, child, client,
        model::Model,
        seed::Random,
        topic::ends,
        workload,
        world::{World, now_ms},
    },
    reindex::{DIM, indexer, is_as_before, launch, name, query, serves, until},
};

#[test]
fn a_run_that_ends_early_tells_so_by_its_code_and_is_taken_back() {
    let world = World::new("reindex-early");
    let docs = world.collection("docs", DIM, 2);
    let mut model = Model::new(&docs);
    let mut random = Random::from_environment("reindex");
    workload::churn(&world.publisher(&docs), &mut model, &mut random, 50, 100);
    let abort = || child::succeed(&["reindex", "docs", "--abort"], &world.variables());
    let is_noted = |what| {
        until(&world, what, |state| {
            state.reindexes.contains_key(&docs.name)
        });
    };

    // Without an indexer nothing gets ready.
    for wish in [["--partitions", "3"], ["--m", "8"]] {
        let [option, value] = wish;
        let wish = ["reindex", "docs", option, value, "--timeout", "2s"];
        let (status, told, err) = child::run(&wish, &world.variables());
        assert_eq!(status.code(), Some(3), "{told}{err}");
        assert!(told.contains("`shoal reindex docs --abort`"), "{told}");
        is_noted("the run to be noted still");
        abort();
        is_as_before(&world, &docs);
    }

    // As an orchestrator ends a pod.
    let mut run = launch(&world, "told-to-end", &["docs", "--partitions", "3"]);
    is_noted("the run to be noted");
    run.request_end();
    assert_eq!(run.end().code(), Some(130), "{}", run.output());
    is_as_before(&world, &docs);

    // Nobody is left who could take it back, but for the next call.
    let run = launch(&world, "killed", &["docs", "--partitions", "3"]);
    until(&world, "the feed to be noted", |state| {
        state.feeds.contains_key(&name("docs-g2"))
    });
    run.kill();
    abort();
    is_as_before(&world, &docs);

    // One that lives is taken back, too, and says that it was overtaken.
    let mut run = launch(&world, "taken-back", &["docs", "--partitions", "3"]);
    until(&world, "the feed to be noted", |state| {
        state.feeds.contains_key(&name("docs-g2"))
    });
    abort();
    assert_eq!(run.end().code(), Some(4), "{}", run.output());
    is_as_before(&world, &docs);
}

#[test]
fn a_collection_that_finds_too_little_is_not_moved_to_and_the_old_one_stays_where_it_is_to() {
    let world = World::new("reindex-recall");
    let docs = world.collection("docs", DIM, 1);
    let mut model = Model::new(&docs);
    let mut random = Random::from_environment("reindex");
    workload::churn(&world.publisher(&docs), &mut model, &mut random, 6000, 6000);
    let indexer = indexer(&world)
        .with("INDEXER__ENGINE__SEAL_ROWS", 100_000)
        .start();
    world.settled(&indexer, &docs);

    // Hardly an edge, hardly a beam, hardly a bit: it misses some, by far.
    let poor = [
        "--m",
        "4",
        "--ef-construction",
        "8",
        "--ef-search",
        "1",
        "--quantization",
        "i4",
        "--linger",
        "1s",
    ];
    let all = [&["reindex", "docs"], &poor[..], &["--recall", "1"]].concat();
    let (status, out, told) = child::run(&all, &world.variables());
    assert_eq!(status.code(), Some(1), "{out}{told}");
    assert!(told.contains("points looked for"), "{told}");
    let state = world.control.snapshot();
    assert!(state.aliases.is_empty(), "the name stays where it was");
    assert_eq!(state.collections[&docs.name], docs);

    // Whoever wants it all the same gets it, beside the old one.
    let all = [
        &["reindex", "docs"],
        &poor[..],
        &["--recall", "0", "--keep-old"],
    ]
    .concat();
    let told = child::succeed(&all, &world.variables());
    assert!(told.contains("done: `docs` stands for `docs-g"), "{told}");
    let state = world.control.snapshot();
    let new = state.collections[&state.aliases[&docs.name]].clone();
    assert_eq!((new.index.m, new.index.ef_search), (4, 1));
    assert_eq!(state.collections[&docs.name], docs, "it was to be kept");
    model.assert_is(&world.settled(&indexer, &new), now_ms());
    model.assert_is(&world.settled(&indexer, &docs), now_ms());
    indexer.had_no_errors(&[]);
}

#[test]
fn an_old_topic_goes_where_it_is_told_to_and_the_new_one_holds_everything() {
    let world = World::new("reindex-topic");
    let docs = world.collection("docs", DIM, 1);
    let mut model = Model::new(&docs);
    let mut random = Random::from_environment("reindex");
    workload::churn(&world.publisher(&docs), &mut model, &mut random, 100, 300);
    let indexer = indexer(&world).start();
    world.settled(&indexer, &docs);
    let wish = [
        "reindex",
        "docs",
        "--partitions",
        "3",
        "--linger",
        "1s",
        "--delete-topic",
    ];
    let told = child::succeed(&wish, &world.variables());
    assert!(told.contains("done: `docs` stands for `docs-g2`"), "{told}");
    eventually(DEADLINE, "the old topic to be gone", || {
        let topics = world.cluster.admin.list_topics().unwrap();
        (!topics.contains(&docs.name.topic())).then_some(())
    });
    let new = world.control.snapshot().collections[&name("docs-g2")].clone();
    assert!(ends(&world.cluster, &new).iter().sum::<u64>() > 0);
    model.assert_is(&world.settled(&indexer, &new), now_ms());
    let query_role = world.query("query").start();
    let query = query(&query_role);
    serves(&query, "docs");
    let (id, (_, point)) = model.points().iter().next().unwrap();
    let ask = client::search("docs", point.vector.as_slice(), 1);
    assert_eq!(client::ids(&query.search(ask).unwrap().hits), [id.as_str()]);
}
