//! Random clients, random kills, and a checker that looks at the history afterwards.
//!
//! `SEED=` repeats a run's choices, `SHOAL_HISTORY_SECONDS=` makes it longer (`make history`). The history lies in the
//! test's folder as `history.jsonl`; what is promised, and how it is checked, is in `tests/checker/`.

mod clients;
mod liar;
mod nemesis;
mod recorder;

use std::{
    collections::BTreeSet,
    fs::File,
    io::{BufReader, BufWriter},
    path::Path,
    sync::Arc,
    time::Duration,
};

use shoal_runtime::eventually;
use shoal_schemas::{Collection, v1};

use crate::ring::on_ring;
use crate::{
    checker::{self, Promise, history::History, mark},
    harness::{
        DEADLINE, client, place,
        role::{Role, Settings},
        seed::Random,
        state,
        world::World,
    },
};
use clients::{Clients, Targets};
use liar::Liar;
use nemesis::{Cast, pass};
use recorder::{METRIC, Recorder};

const PARTITIONS: u32 = 4;
const KEYS: usize = 32;
/// How long processes are troubled, unless the environment says otherwise.
const SECONDS: u64 = 25;

/// What a run has to have seen so many times.
const ENOUGH: usize = 50;
const WANTED: [(&str, &str); 5] = [
    ("upsert", "written"),
    ("patch", "written"),
    ("search", "answered"),
    ("get", "answered"),
    ("count", "answered"),
];

fn collection(world: &World, name: &str) -> Collection {
    let dim = u32::try_from(mark::DIM).unwrap().try_into().unwrap();
    world.create(Collection::new(
        name.parse().unwrap(),
        dim,
        METRIC,
        PARTITIONS,
    ))
}

fn targets(
    world: &World,
    collection: &Collection,
    gateways: &[&Settings],
    queries: &[&Settings],
) -> Targets {
    let owned = |settings: &[&Settings]| settings.iter().map(|one| (*one).clone()).collect();
    Targets {
        collection: collection.name.to_string(),
        topic: collection.name.topic(),
        cluster_id: world.cluster.admin.cluster_id().unwrap().to_string(),
        gateways: owned(gateways),
        queries: owned(queries),
    }
}

/// Waits until a node knows the collection and every shard answers.
fn all_is_served(targets: &Targets) {
    for role in &targets.queries {
        let query = client::Query::to(role.grpc, role.http);
        let ask = v1::CountRequest {
            collection: targets.collection.clone(),
            read: client::at_least(&[]),
            ..v1::CountRequest::default()
        };
        eventually(DEADLINE, "every shard to serve", || {
            query.count(ask.clone()).ok()
        });
    }
    for role in &targets.gateways {
        let gateway = client::Gateway::to(role.grpc, role.http);
        eventually(DEADLINE, "the gateway to know the collection", || {
            let told = gateway.delete(&targets.collection, &[]).err()?;
            (told.code() != tonic::Code::NotFound).then_some(())
        });
    }
}

/// Writes it down, and reads it again: what is checked is what a person finds.
fn kept(history: &History, folder: &Path) -> History {
    let path = folder.join("history.jsonl");
    history
        .write(BufWriter::new(File::create(&path).unwrap()))
        .unwrap();
    eprintln!("history: {}", path.display());
    History::read(BufReader::new(File::open(&path).unwrap())).unwrap()
}

#[track_caller]
fn is_right(history: &History) {
    let found = checker::check(history);
    let troubles = &history.troubles;
    assert!(
        found.is_empty(),
        "{}after {troubles:?}",
        checker::report(history, &found)
    );
}

/// Who takes part in a run.
struct Parts {
    /// Those that have every shard between them, and those of a replica set, which have them once more.
    owners: Vec<Settings>,
    copies: Vec<Settings>,
    /// An edge node, and not only the query nodes it forwards to, is asked.
    has_edge: bool,
}

fn seconds() -> u64 {
    let seconds = std::env::var("SHOAL_HISTORY_SECONDS");
    seconds.map_or(SECONDS, |text| text.parse().unwrap())
}

#[test]
fn histories_of_random_operations_under_random_kills_are_right() {
    let world = World::new("history");
    let indexer = |name: &str| {
        let settings = world.group_indexer(name).small_engine();
        let settings = settings.with("KAFKA__SESSION_TIMEOUT", "6s");
        settings.with("INDEXER__DRAIN_TIMEOUT", "5s")
    };
    let copy = indexer("copy").with("INDEXER__REPLICA_SET", "b");
    let parts = Parts {
        owners: vec![indexer("one"), indexer("two")],
        copies: vec![copy],
        has_edge: false,
    };
    is_right_under_kills(&world, "history", parts);
}

#[test]
fn histories_of_shards_on_a_ring_and_through_an_edge_are_right() {
    let world = World::new("history-ring");
    let copy = on_ring(&world, "copy").with("INDEXER__REPLICA_SET", "b");
    let parts = Parts {
        owners: vec![on_ring(&world, "one"), on_ring(&world, "two")],
        copies: vec![copy],
        has_edge: true,
    };
    is_right_under_kills(&world, "history-ring", parts);
}

/// Has clients work while processes are killed, and checks what they saw.
fn is_right_under_kills(world: &World, name: &str, parts: Parts) {
    let mut random = Random::from_environment(name);
    let collection = collection(world, name);
    // One of them keeps answers, which shards have to say still hold.
    let keeping = world.query("query-b").with("QUERY__CACHE__MEMORY", "8MiB");
    let queries = [world.query("query-a"), keeping];
    let gateway = world.gateway("gateway");
    let regions = queries
        .each_ref()
        .map(|one| format!("{{name = \"{}\", address = \"{}\"}}", one.name, one.grpc));
    let edge = Settings::query("edge", &world.folder, "127.0.0.1:1")
        .with("QUERY__EDGE__REGIONS", format!("[{}]", regions.join(", ")))
        .with("QUERY__EDGE__PROBE_INTERVAL", "100ms")
        .with("QUERY__CACHE__MEMORY", "8MiB");
    let mut asked: Vec<&Settings> = queries.iter().collect();
    asked.extend(parts.has_edge.then_some(&edge));
    let targets = targets(world, &collection, &[&gateway], &asked);
    let mut settings: Vec<Settings> = [&parts.owners[..], &parts.copies].concat();
    settings.extend(asked.into_iter().cloned());
    settings.push(gateway.clone());
    let mut cast = Cast::start(settings);
    all_is_served(&targets);

    let recorder = Arc::new(Recorder::new(random.next(), &collection, KEYS));
    let clients = Clients::start(&recorder, &targets, &mut random, 0..6);
    pass(Duration::from_secs(2));
    cast.trouble(&recorder, &mut random, Duration::from_secs(seconds()));
    // Clients see it heal; and a history has to have something to say, of kept answers as well: since the node that keeps
    // them began last.
    cast.is_ready();
    let lookups = |outcome| {
        let metrics = cast.role("query-b").metrics();
        metrics.sum("query_cache_lookups_total", &[outcome])
    };
    eventually(DEADLINE, "enough of each operation", || {
        let tally = recorder.tally();
        let is_enough = |done| tally.get(done).is_some_and(|count| *count >= ENOUGH);
        let is_kept = ["\"unchanged\"", "\"changed\""].map(|outcome| lookups(outcome) > 0.0);
        (WANTED.iter().all(is_enough) && is_kept == [true; 2]).then_some(())
    });
    clients.stop();
    // What it still had to send is sent.
    cast.terminate("gateway");
    let groups = [&parts.owners, &parts.copies].map(|group| {
        let roles = group.iter().map(|one| cast.role(&one.name));
        roles.collect::<Vec<_>>()
    });
    let [held, copied] = groups.each_ref().map(|group| {
        let addresses: Vec<_> = group.iter().map(|role| role.settings.grpc).collect();
        state::settled(&addresses, &world.cluster, &collection)
    });
    assert_eq!(copied, held);
    let history = recorder.history(
        world,
        &collection,
        &groups.each_ref().map(|group| &group[..]),
    );
    let history = kept(&history, &world.folder);
    eprintln!(
        "{:?}; {} troubles",
        recorder.tally(),
        history.troubles.len()
    );
    is_right(&history);
}

#[test]
fn a_replica_that_answers_from_an_old_state_under_a_new_offset_is_caught() {
    let mut random = Random::from_environment("liar");
    let world = World::new("liar");
    let collection = collection(&world, "liar");
    let listen = place::free();
    let indexer = world.indexer("indexer").with("INDEXER__ADVERTISE", listen);
    let liar = Liar::start(listen, indexer.grpc);
    let (query, gateway) = (world.query("query"), world.gateway("gateway"));
    let targets = targets(&world, &collection, &[&gateway], &[&query]);
    let roles: Vec<Role> = [&indexer, &query, &gateway].map(Settings::start).into();
    all_is_served(&targets);

    let recorder = Arc::new(Recorder::new(random.next(), &collection, KEYS));
    let work = |random: &mut Random, processes: std::ops::Range<u32>| {
        let clients = Clients::start(&recorder, &targets, random, processes);
        pass(Duration::from_secs(2));
        clients.stop();
        state::settled(&[indexer.grpc], &world.cluster, &collection);
        recorder.history(&world, &collection, &[&[&roles[0]]])
    };
    is_right(&work(&mut random, 0..3));
    liar.lie(&collection);
    let history = kept(&work(&mut random, 3..6), &world.folder);
    let broken: BTreeSet<Promise> = checker::check(&history)
        .iter()
        .map(|anomaly| anomaly.promise)
        .collect();
    let expected = [
        Promise::Tokens,
        Promise::Sessions,
        Promise::Freshness,
        Promise::Coverage,
    ];
    assert_eq!(broken, expected.into());
    // What it shows is old, but whole; and what is written is right all along.
    for role in &roles {
        role.had_no_errors(&[]);
    }
}
