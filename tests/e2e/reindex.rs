//! A collection built anew under searches and writes: with another index over the same topic, with
//! other shards, and for another model; aborted, killed and taken over.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use bytes::Bytes;
use shoal_runtime::eventually;
use shoal_schemas::{
    Collection, CollectionName, IndexParameters, Metric, Point, PointId, Quantization, Token,
    Version,
    control::{Entry, Key, Reindex},
    route, v1,
};
use shoal_topic::{Cleanup, TopicSpec, control::ControlState};

use crate::harness::{
    DEADLINE,
    child::{self, Child},
    client,
    model::Model,
    role::{Role, Settings},
    seed::Random,
    steady::Steady,
    topic::{append, dead_letters, ends, home, point, record},
    wait, workload,
    world::{World, now_ms, publish},
};

pub(crate) const DIM: u32 = 16;

pub(crate) fn name(text: &str) -> CollectionName {
    text.parse().unwrap()
}

/// What a query node says that a name stands for.
pub(crate) fn stands_for(query: &client::Query, name: &str) -> Option<v1::Collection> {
    let ask = v1::GetCollectionRequest {
        name: name.to_owned(),
    };
    let mut client = query.collections.clone();
    wait(client.get_collection(ask))
        .ok()?
        .into_inner()
        .collection
}

/// Waits until a name's shards serve.
pub(crate) fn serves(query: &client::Query, name: &str) {
    let ask = v1::CountRequest {
        collection: name.to_owned(),
        read: client::at_least(&[]),
        ..v1::CountRequest::default()
    };
    eventually(DEADLINE, "every shard to serve", || {
        query.count(ask.clone()).ok()
    });
}

pub(crate) fn indexer(world: &World) -> Settings {
    world.indexer("indexer").small_engine()
}

pub(crate) fn query(role: &Role) -> client::Query {
    client::Query::to(role.settings.grpc, role.settings.http)
}

/// A run of `shoal reindex` that is watched.
pub(crate) fn launch(world: &World, life: &str, arguments: &[&str]) -> Child {
    let log = world.folder.join(format!("reindex-{life}.log"));
    let all = [&["reindex"], arguments].concat();
    Child::shoal("reindex", &all, &world.variables(), &log)
}

/// Waits until the control topic says so.
pub(crate) fn until(world: &World, what: &str, holds: impl Fn(&ControlState) -> bool) {
    eventually(DEADLINE, what, || {
        holds(&world.control.snapshot()).then_some(())
    });
}

/// Fails unless nothing of a re-indexing is left and `docs` is as it was.
pub(crate) fn is_as_before(world: &World, docs: &Collection) {
    // What the run has taken back has to be read here first, and claims go with their indexer.
    until(world, "nothing to be left of the run", |state| {
        let is_only = state.collections.values().eq([docs]);
        let is_clean =
            state.aliases.is_empty() && state.feeds.is_empty() && state.reindexes.is_empty();
        is_only && is_clean && state.shards.keys().all(|(of, _)| *of == docs.name)
    });
    let topics = world.cluster.admin.list_topics().unwrap();
    let left: Vec<_> = topics
        .iter()
        .filter(|topic| topic.contains("-g2"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Writes through the gateway under one name until it is stopped: upserts, deletes, and patches that
/// count. What was acknowledged last of each id is noted.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Written>,
}

struct Written {
    points: BTreeMap<PointId, Option<(Version, Point)>>,
    tokens: Vec<v1::Token>,
    patches: i64,
}

impl Writer {
    fn start(gateway: &client::Gateway, name: &'static str, collection: &Collection) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (gateway, collection) = (gateway.clone(), collection.clone());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut random = Random::from_environment("reindex writer");
            let model = Model::new(&collection);
            let mut written = Written {
                points: BTreeMap::new(),
                tokens: Vec::new(),
                patches: 0,
            };
            let counter = |n: i64| v1::PointPatch {
                id: "counter".to_owned(),
                set: [(
                    "n".to_owned(),
                    v1::Value {
                        kind: Some(v1::value::Kind::Integer(n)),
                    },
                )]
                .into(),
                ..v1::PointPatch::default()
            };
            while !stopped.load(Ordering::Relaxed) {
                let id = PointId::new(&format!("w-{}", random.below(300))).unwrap();
                let (tokens, noted) = if random.below(5) == 0 {
                    (gateway.delete(name, &[id.as_str()]).unwrap(), None)
                } else {
                    let point = workload::point(&model, &mut random);
                    let sent = gateway.upsert(name, vec![point.to_proto(&id)]).unwrap();
                    (sent, Some(point))
                };
                let token = Token::from_proto(tokens[0].clone()).unwrap();
                let noted = noted.map(|point| (token.version, point));
                written.points.insert(id, noted);
                written.tokens.extend(tokens);
                if random.below(10) == 0 {
                    // Answered once it is applied, or nothing was written: never unknown here.
                    let patched = gateway.patch(name, counter(written.patches + 1));
                    if patched.is_ok() {
                        written.patches += 1;
                    }
                }
            }
            written
        });
        Self { stop, thread }
    }

    fn end(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// The point that is patched, published as every other one.
fn counter(collection: &Collection) -> (PointId, Point) {
    let id = PointId::new("counter").unwrap();
    (id, point(collection, &[1.0; 16]))
}

/// Fails unless the counter says how often it was patched.
fn counted(query: &client::Query, name: &str, patches: i64) {
    let get = v1::GetRequest {
        collection: name.to_owned(),
        ids: vec!["counter".to_owned()],
        read: client::at_least(&[]),
        ..v1::GetRequest::default()
    };
    let found = query.get(get).unwrap().points.pop().unwrap();
    let payload = found.point.unwrap().payload;
    let n = payload.get("n").and_then(|value| value.kind.clone());
    assert_eq!(n, Some(v1::value::Kind::Integer(patches)));
}

/// The last token of each partition.
fn last_of_each(tokens: &[v1::Token]) -> Vec<v1::Token> {
    let places = tokens.iter().map(|token| {
        let place = (token.topic.clone(), token.partition);
        (place, token.clone())
    });
    let last: BTreeMap<_, _> = places.collect();
    last.into_values().collect()
}

/// Every id that a name holds once these writes are in, with its version.
fn versions(query: &client::Query, name: &str, tokens: &[v1::Token]) -> BTreeMap<String, u64> {
    let scroll = v1::ScrollRequest {
        collection: name.to_owned(),
        limit: 10_000,
        read: client::at_least(&last_of_each(tokens)),
        ..v1::ScrollRequest::default()
    };
    let mut client = query.search.clone();
    let page = wait(client.scroll(scroll)).unwrap().into_inner();
    let points = page.points.into_iter();
    points
        .map(|stored| (stored.point.unwrap().id, stored.version))
        .collect()
}

/// Fails unless a name holds exactly what was published before and what the writer wrote.
fn holds(query: &client::Query, name: &str, model: &Model, written: &Written) {
    let mut expected: BTreeMap<String, u64> = (model.points().iter())
        .map(|(id, (version, _))| (id.as_str().to_owned(), version.raw()))
        .collect();
    for (id, noted) in &written.points {
        match noted {
            Some((version, _)) => expected.insert(id.as_str().to_owned(), version.raw()),
            None => expected.remove(id.as_str()),
        };
    }
    // Its versions are the owner's; what it says is looked at by itself.
    let mut found = versions(query, name, &written.tokens);
    assert!(found.remove("counter").is_some());
    expected.remove("counter");
    assert_eq!(found, expected);
}

#[test]
fn another_index_over_the_same_topic_takes_over_and_no_search_fails() {
    let world = World::new("reindex-index");
    let docs = world.collection("docs", DIM, 3);
    let publisher = world.publisher(&docs);
    let mut model = Model::new(&docs);
    let mut random = Random::from_environment("reindex");
    workload::churn(&publisher, &mut model, &mut random, 600, 1500);
    publish(&publisher, &mut model, vec![counter(&docs)]);
    let bad = |id: &str| {
        let bad = record(id, Some(Bytes::from_static(b"{")), now_ms());
        append(&world.cluster, &home(&docs, id), &bad);
    };
    bad("bad-1");
    let indexer = indexer(&world).start();
    let query_role = world.query("query").start();
    let gateway_role = world.gateway("gateway").start();
    let query = query(&query_role);
    let gateway = client::Gateway::to(gateway_role.settings.grpc, gateway_role.settings.http);
    serves(&query, "docs");
    assert_eq!(dead_letters(&world.cluster, &docs).len(), 1);
    let writer = Writer::start(&gateway, "docs", &docs);
    let steady = Steady::asking(&query, "docs", DIM, None);
    steady.more(100);

    let wish = [
        "reindex",
        "docs",
        "--m",
        "24",
        "--quantization",
        "f32",
        "--linger",
        "3s",
    ];
    let told = child::succeed(&wish, &world.variables());
    for line in [
        "both hold the same points",
        " points looked for ",
        "`docs` stands for `docs-g2` now",
        "topic `embeddings.docs` is read by the new collection",
        "done: `docs` stands for `docs-g2`",
    ] {
        assert!(told.contains(line), "{told}");
    }
    steady.more(100);
    let answered = steady.answered();
    steady.stop();
    println!("{answered} searches were answered while it went on");
    let written = writer.end();
    let new = stands_for(&query, "docs").unwrap();
    assert_eq!((new.name.as_str(), new.reads.as_str()), ("docs-g2", "docs"));
    assert_eq!(new.index.unwrap().m, 24);
    let state = world.control.snapshot();
    let names: Vec<_> = state.collections.keys().collect();
    assert_eq!(names, [&name("docs-g2")]);
    assert_eq!(state.aliases[&name("docs")], name("docs-g2"));
    assert!(state.reindexes.is_empty() && state.feeds.is_empty());
    holds(&query, "docs", &model, &written);
    counted(&query, "docs", written.patches);
    // Tokens from before are of the topic that is read now, too.
    let ask = v1::SearchRequest {
        read: client::at_least(&[
            written.tokens[0].clone(),
            written.tokens.last().unwrap().clone(),
        ]),
        ..client::search("docs", &[0.5; 16], 1)
    };
    let found = query.search(ask).unwrap();
    assert_eq!(found.coverage.unwrap().collection, "docs-g2");

    // What was refused once stands there once, and the new one goes on writing it down.
    assert_eq!(dead_letters(&world.cluster, &docs).len(), 1);
    bad("bad-2");
    eventually(DEADLINE, "the new collection to write dead letters", || {
        (dead_letters(&world.cluster, &docs).len() == 2).then_some(())
    });
    let shards = indexer.settings.data().join("shards");
    eventually(DEADLINE, "the old folder to be gone", || {
        (!shards.join("docs").exists()).then_some(())
    });
    assert!(shards.join("docs-g2").exists());

    // What is so already is left alone, unless it is to be built anew all the same.
    let told = child::succeed(&wish, &world.variables());
    assert!(told.contains("is like that already"), "{told}");
    let anew = ["reindex", "docs", "--anew", "--linger", "1s"];
    child::succeed(&anew, &world.variables());
    eventually(DEADLINE, "the query node to know", || {
        (stands_for(&query, "docs")?.name == "docs-g3").then_some(())
    });
    holds(&query, "docs", &model, &written);
    indexer.had_no_errors(&[]);
    query_role.had_no_errors(&[]);
    gateway_role.had_no_errors(&[]);
}

#[test]
fn another_number_of_shards_takes_over_under_writes_and_loses_none() {
    let world = World::new("reindex-shards");
    let docs = world.collection("docs", DIM, 2);
    let publisher = world.publisher(&docs);
    let mut model = Model::new(&docs);
    let mut random = Random::from_environment("reindex");
    workload::churn(&publisher, &mut model, &mut random, 600, 1500);
    publish(&publisher, &mut model, vec![counter(&docs)]);
    let indexer = indexer(&world).start();
    let query_role = world.query("query").start();
    let gateway_role = world.gateway("gateway").start();
    let query = query(&query_role);
    let gateway = client::Gateway::to(gateway_role.settings.grpc, gateway_role.settings.http);
    serves(&query, "docs");
    let writer = Writer::start(&gateway, "docs", &docs);
    let steady = Steady::asking(&query, "docs", DIM, None);
    steady.more(100);

    let wish = ["reindex", "docs", "--partitions", "5", "--linger", "2s"];
    let told = child::succeed(&wish, &world.variables());
    for line in [
        "both hold the same points",
        "the new one is behind the old one with no point",
        "gateways write to `embeddings.docs-g2` now",
        "topic `embeddings.docs` is still there",
    ] {
        assert!(told.contains(line), "{told}");
    }
    steady.more(100);
    steady.stop();
    let written = writer.end();
    let new = stands_for(&query, "docs").unwrap();
    assert_eq!((new.partitions, new.fed_by.as_str()), (5, "docs"));
    let (first, last) = (&written.tokens[0], written.tokens.last().unwrap());
    assert_eq!(first.topic, "embeddings.docs");
    assert_eq!(last.topic, "embeddings.docs-g2");
    let ask = v1::SearchRequest {
        read: client::at_least(&[first.clone(), last.clone()]),
        ..client::search("docs", &[0.5; 16], 1)
    };
    query.search(ask).unwrap();
    holds(&query, "docs", &model, &written);
    counted(&query, "docs", written.patches);
    assert!(written.patches > 0);
    // Every record is where the new routing wants it.
    let collection = world.control.snapshot().collections[&name("docs-g2")].clone();
    assert!(dead_letters(&world.cluster, &collection).is_empty());
    assert!(ends(&world.cluster, &collection).iter().all(|end| *end > 0));
    let lives = route::partition_of(&collection, &PointId::new("counter").unwrap());
    assert!(lives.0 < 5);
    indexer.had_no_errors(&[]);
    query_role.had_no_errors(&[]);
    gateway_role.had_no_errors(&[]);
}

#[test]
fn what_is_aborted_leaves_nothing_behind() {
    let world = World::new("reindex-abort");
    let docs = world.collection("docs", DIM, 2);
    let publisher = world.publisher(&docs);
    let mut model = Model::new(&docs);
    let mut random = Random::from_environment("reindex");
    workload::churn(&publisher, &mut model, &mut random, 100, 300);
    let indexer = indexer(&world).start();
    world.settled(&indexer, &docs);
    // It cannot get further than its indexer.
    let folder = indexer.settings.data().join("shards/docs-g2");
    for (life, wish) in [
        ("index", ["docs", "--m", "8"]),
        ("shards", ["docs", "--partitions", "3"]),
    ] {
        let mut run = launch(&world, life, &wish);
        eventually(DEADLINE, "the new shards to be taken", || {
            run.lives();
            folder.exists().then_some(())
        });
        indexer.child.pause();
        until(&world, "the run to be noted", |state| {
            state.reindexes.contains_key(&docs.name)
        });
        if world.control.snapshot().aliases.is_empty() {
            run.interrupt();
            assert_eq!(run.end().code(), Some(130), "{}", run.output());
        } else {
            // Faster than the pause: taken back by a call.
            drop(run);
            indexer.child.resume();
            child::succeed(&["reindex", "docs", "--abort"], &world.variables());
        }
        indexer.child.resume();
        is_as_before(&world, &docs);
        eventually(DEADLINE, "the new folder to be gone", || {
            (!folder.exists()).then_some(())
        });
    }
    model.assert_is(&world.settled(&indexer, &docs), now_ms());
    // A topic that was there before is nobody's to take, so that no abort deletes it.
    let kept = TopicSpec {
        name: "embeddings.docs-kept".to_owned(),
        partitions: 3,
        replication_factor: None,
        cleanup: Cleanup::Compact,
        settings: [].into(),
    };
    world.cluster.admin.create_topic(&kept).unwrap();
    let wish = ["reindex", "docs", "--partitions", "3", "--as", "docs-kept"];
    let (status, _, told) = child::run(&wish, &world.variables());
    assert_eq!(status.code(), Some(2), "{told}");
    assert!(
        told.contains("`embeddings.docs-kept` is there already"),
        "{told}"
    );
    is_as_before(&world, &docs);
    let topics = world.cluster.admin.list_topics().unwrap();
    assert!(topics.contains(&kept.name));
    let told = child::succeed(&["reindex", "docs", "--abort"], &world.variables());
    assert!(
        told.contains("no re-indexing of `docs` is under way"),
        "{told}"
    );
    indexer.had_no_errors(&[]);
}

#[test]
fn a_run_that_was_killed_is_gone_on_with_and_one_that_lives_is_taken_over() {
    let world = World::new("reindex-killed");
    let docs = world.collection("docs", DIM, 2);
    let publisher = world.publisher(&docs);
    let mut model = Model::new(&docs);
    let mut random = Random::from_environment("reindex");
    workload::churn(&publisher, &mut model, &mut random, 200, 800);
    let records: u64 = ends(&world.cluster, &docs).iter().sum();
    // Without an indexer nothing gets ready, and all there is is copied.
    let wish = ["docs", "--partitions", "3", "--linger", "1s"];
    let first = launch(&world, "first", &wish);
    until(&world, "the feed to be noted", |state| {
        state.feeds.contains_key(&name("docs-g2"))
    });
    let new = world.control.snapshot().collections[&name("docs-g2")].clone();
    eventually(DEADLINE, "everything to be copied", || {
        (ends(&world.cluster, &new).iter().sum::<u64>() == records).then_some(())
    });
    first.kill();
    workload::churn(&publisher, &mut model, &mut random, 200, 50);
    let mut second = launch(&world, "second", &wish);
    eventually(DEADLINE, "the rest to be copied", || {
        second.lives();
        (ends(&world.cluster, &new).iter().sum::<u64>() == records + 50).then_some(())
    });
    let mut third = launch(&world, "third", &["docs", "--linger", "1s"]);
    assert_eq!(second.end().code(), Some(4), "{}", second.output());
    // One after the other: nothing is copied twice.
    let indexer = indexer(&world).start();
    assert!(third.end().success(), "{}", third.output());
    assert_eq!(ends(&world.cluster, &new).iter().sum::<u64>(), records + 50);
    let state = world.control.snapshot();
    assert_eq!(state.aliases[&docs.name], new.name);
    assert!(state.reindexes.is_empty() && !state.collections.contains_key(&docs.name));
    model.assert_is(&world.settled(&indexer, &new), now_ms());

    // As if it had been killed before its last step: the same command ends as it would have.
    let left = Reindex {
        run: "killed".to_owned(),
        from: docs.name.clone(),
        to: new.name.clone(),
        made: true,
    };
    let key = Key::Reindex(docs.name.clone());
    let control = &world.control;
    wait(control.put(&key, &Entry::Reindex(left))).unwrap();
    let wish = [&["reindex"], wish.as_slice()].concat();
    let told = child::succeed(&wish, &world.variables());
    assert!(told.contains("done: `docs` stands for `docs-g2`"), "{told}");
    until(&world, "the run to be forgotten", |state| {
        state.reindexes.is_empty() && state.collections.len() == 1
    });
    indexer.had_no_errors(&[]);
}

#[test]
fn of_two_that_begin_at_once_one_ends_and_the_other_makes_what_it_wants() {
    let world = World::new("reindex-two");
    let docs = world.collection("docs", DIM, 2);
    let publisher = world.publisher(&docs);
    let mut model = Model::new(&docs);
    let mut random = Random::from_environment("reindex");
    workload::churn(&publisher, &mut model, &mut random, 100, 300);
    let wishes = [("one", "24"), ("other", "8")];
    let mut runs = wishes.map(|(life, m)| {
        let wish = ["docs", "--m", m, "--linger", "1s"];
        (m, launch(&world, life, &wish))
    });
    // Without an indexer none of them gets to its end, so whichever began later has the other one end.
    let ended = eventually(DEADLINE, "one of them to end", || {
        let mut all = runs.iter_mut();
        all.position(|(_, run)| run.ended().is_some())
    });
    let (_, run) = &mut runs[ended];
    assert_eq!(run.end().code(), Some(4), "{}", run.output());
    let indexer = indexer(&world).start();
    let (m, run) = &mut runs[1 - ended];
    assert!(run.end().success(), "{}", run.output());
    let state = world.control.snapshot();
    let new = &state.collections[&state.aliases[&docs.name]];
    assert_eq!(new.index.m.to_string(), *m);
    assert_eq!(state.collections.len(), 1, "nothing of the other is left");
    assert!(state.reindexes.is_empty());
    model.assert_is(&world.settled(&indexer, new), now_ms());
    indexer.had_no_errors(&[]);
}

#[test]
fn a_name_moves_to_another_models_embeddings_once_they_are_of_the_same_ids() {
    let world = World::new("reindex-model");
    let docs = world.collection("docs", DIM, 2);
    let mut other = Collection::new(name("docs-e5"), 8.try_into().unwrap(), Metric::Cosine, 3);
    other.index = IndexParameters {
        quantization: Some(Quantization::F16),
        ..IndexParameters::default()
    };
    let other = world.create(other);
    let (publisher, re_embedded) = (world.publisher(&docs), world.publisher(&other));
    let (mut model, mut next) = (Model::new(&docs), Model::new(&other));
    let mut random = Random::from_environment("reindex");
    let points = workload::points(&model, &mut random, "p", 200);
    publish(&publisher, &mut model, points);
    let mut points = workload::points(&next, &mut random, "p", 200);
    let late = points.split_off(199);
    publish(&re_embedded, &mut next, points);
    let indexer = indexer(&world).start();
    world.settled(&indexer, &other);

    let wish = ["reindex", "docs", "--to", "docs-e5", "--linger", "1s"];
    let (status, out, told) = child::run(&wish, &world.variables());
    assert_eq!(status.code(), Some(1), "{out}{told}");
    assert!(told.contains("1 ids differ (p-199: version"), "{told}");
    let state = world.control.snapshot();
    assert!(state.aliases.is_empty() && state.reindexes.is_empty());
    assert_eq!(state.collections.len(), 2, "neither is dropped");

    publish(&re_embedded, &mut next, late);
    let query_role = world.query("query").start();
    let query = query(&query_role);
    serves(&query, "docs");
    // The one model's vectors have other dimensions than the other's, the ids are the same.
    let steady = Steady::recommending(&query, "docs", &["p-1", "p-20", "p-150"]);
    steady.more(100);
    let told = child::succeed(&wish, &world.variables());
    steady.more(100);
    steady.stop();
    assert!(told.contains("both hold the same ids"), "{told}");
    let state = world.control.snapshot();
    assert_eq!(state.aliases[&docs.name], other.name);
    assert!(!state.collections.contains_key(&docs.name));
    let found = query.search(client::search("docs", &[0.5; 8], 3)).unwrap();
    assert_eq!(found.hits.len(), 3);
    let told = child::succeed(&wish, &world.variables());
    assert!(told.contains("stands for `docs-e5` already"), "{told}");
    indexer.had_no_errors(&[]);
}
