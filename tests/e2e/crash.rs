//! `kill -9` of the indexer: at random moments, at every forced point, and what a disk may lose.
//!
//! The oracle is twofold: the digest recomputed from what was written, and that of an indexer
//! that nobody disturbs.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    time::Duration,
};

use shoal_runtime::eventually;
use shoal_schemas::Collection;

use crate::harness::{
    DEADLINE,
    model::Model,
    role::Role,
    seed::Random,
    state::State,
    workload::churn,
    world::{World, now_ms},
};

const DIM: u32 = 64;
const PARTITIONS: u32 = 2;
/// Few enough that most writes replace a point, so that segments die and are compacted.
const IDS: u64 = 3000;
/// About 330 bytes each in a shard's own log.
const RECORDS_TO_A_CHECKPOINT: u64 = 2 * (1 << 20) / 330;

/// Every place where the indexer can be told to die.
const POINTS: [&str; 9] = [
    "wal_written",
    "wal_before_sync",
    "wal_synced",
    "applied",
    "segment_written",
    "checkpoint_segments",
    "checkpoint_catalog",
    "checkpoint_manifest",
    "committed",
];

/// What befalls a shard's folder, in words and in deed.
type Damage = (&'static str, fn(&Path));

/// What an indexer with empty disks makes of the topic when nobody disturbs it.
fn undisturbed(world: &World, collection: &Collection) -> State {
    let calm = world.indexer("calm").start();
    let state = world.settled(&calm, collection);
    calm.had_no_errors(&[]);
    calm.child.terminate();
    state
}

/// Waits until the indexer is ready and holds everything, and checks it against both oracles.
#[track_caller]
fn holds_everything(world: &World, role: &mut Role, model: &Model) -> State {
    role.is_ready();
    let state = world.settled(role, &model.collection);
    role.had_no_errors(&[]);
    model.assert_is(&state, now_ms());
    state
}

/// Waits until each thing that a crash might interrupt has happened in one life. What the builder
/// has before it may be much when the last record is applied.
fn has_worked_hard(role: &Role) {
    eventually(
        DEADLINE,
        "segments are built and checkpoints stored",
        || {
            let metrics = role.metrics();
            let at_least = |name, least| metrics.sum(name, &[]) >= least;
            let is_done = at_least("indexer_checkpoint_seconds_count", 2.0)
                && at_least("index_build_duration_seconds_count", 1.0)
                && at_least("indexer_segments", f64::from(PARTITIONS + 1));
            is_done.then_some(())
        },
    );
}

#[test]
fn twenty_kills_at_random_moments_lose_nothing_and_double_nothing() {
    let mut random = Random::from_environment("twenty kills");
    let world = World::new("kills");
    let collection = world.collection("killed", DIM, PARTITIONS);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let settings = world.indexer("victim").small_engine();
    for kill in 0..20 {
        // Some die with a backlog before them, some while records come in.
        let records = random.below(2500);
        if kill % 2 == 0 {
            churn(&publisher, &mut model, &mut random, IDS, records);
        }
        let mut victim = settings.launch();
        if kill % 2 == 1 {
            churn(&publisher, &mut model, &mut random, IDS, records);
        }
        let moment = random.moment(Duration::from_millis(1500));
        let ended = victim.child.ends_within(moment);
        assert!(
            ended.is_none(),
            "kill {kill}: ended by itself: {}",
            victim.child.output()
        );
        victim.had_no_errors(&[]);
        victim.child.kill();
    }
    let mut survivor = settings.launch();
    holds_everything(&world, &mut survivor, &model);
    churn(
        &publisher,
        &mut model,
        &mut random,
        IDS,
        RECORDS_TO_A_CHECKPOINT * 3,
    );
    let state = holds_everything(&world, &mut survivor, &model);
    has_worked_hard(&survivor);
    survivor.child.terminate();
    assert_eq!(state, undisturbed(&world, &collection));
}

#[test]
fn a_death_at_every_forced_point_loses_nothing_and_doubles_nothing() {
    let mut random = Random::from_environment("forced points");
    let world = World::new("points");
    let collection = world.collection("forced", DIM, PARTITIONS);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let settings = world.indexer("victim").small_engine();
    for point in POINTS {
        // At the first pass, and at one in the thick of it.
        let later = match point {
            "committed" => 2,
            point if point.starts_with("checkpoint") || point == "segment_written" => 3,
            _ => 7,
        };
        for pass in [1, later] {
            let armed = settings
                .clone()
                .with("CRASH_POINT", format!("{point}:{pass}"));
            let mut victim = armed.launch();
            let mut published = 0;
            while victim.child.ended().is_none() {
                if published >= RECORDS_TO_A_CHECKPOINT * 8 {
                    // Enough is there; a slow machine takes its time to get to it.
                    let ended = victim.child.ends_within(DEADLINE);
                    assert!(ended.is_some(), "{point}:{pass} is never reached");
                    break;
                }
                churn(&publisher, &mut model, &mut random, IDS, 1000);
                published += 1000;
                victim.child.ends_within(Duration::from_millis(100));
            }
            victim.had_no_errors(&[]);
            victim.child.dies(&format!("{point}:{pass} is armed"));
        }
        // What it comes back with is right each time, not only in the end.
        let mut back = settings.launch();
        holds_everything(&world, &mut back, &model);
        back.child.kill();
    }
    let mut survivor = settings.launch();
    let state = holds_everything(&world, &mut survivor, &model);
    survivor.child.terminate();
    assert_eq!(state, undisturbed(&world, &collection));
}

#[test]
fn a_shard_comes_back_from_lost_and_damaged_files_with_the_same_digest() {
    let mut random = Random::from_environment("damage");
    let world = World::new("damage");
    let collection = world.collection("damaged", DIM, PARTITIONS);
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let settings = world.indexer("victim").small_engine();
    let shards = settings.data().join("shards").join("damaged");
    let damages: [Damage; 4] = [
        ("the catalog is gone", |shard| {
            fs::remove_dir_all(shard.join("catalog")).unwrap()
        }),
        ("a graph is damaged", |shard| {
            let graph = newest(&shard.join("segments"), "graph.bin").expect("a sealed graph");
            let mut bytes = fs::read(&graph).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle..]
                .iter_mut()
                .take(64)
                .for_each(|byte| *byte ^= 0xa5);
            fs::write(&graph, bytes).unwrap();
        }),
        ("the log's tail is torn", |shard| {
            let last = newest(&shard.join("wal"), "").expect("a file of the log");
            let file = OpenOptions::new().write(true).open(&last).unwrap();
            let length = file.metadata().unwrap().len();
            file.set_len(length - 7).unwrap();
        }),
        ("the checkpoints are gone", |shard| {
            fs::remove_dir_all(shard.join("checkpoint")).unwrap()
        }),
    ];
    for (what, damage) in damages {
        let mut victim = settings.launch();
        victim.is_ready();
        churn(
            &publisher,
            &mut model,
            &mut random,
            IDS,
            RECORDS_TO_A_CHECKPOINT * 3 / 2,
        );
        holds_everything(&world, &mut victim, &model);
        eventually(DEADLINE, "a checkpoint", || {
            let stored = victim
                .metrics()
                .sum("indexer_checkpoint_seconds_count", &[]);
            (stored >= 1.0).then_some(())
        });
        // Past the checkpoint, so that there is a tail to replay.
        churn(&publisher, &mut model, &mut random, IDS, 500);
        holds_everything(&world, &mut victim, &model);
        // More points than a growing segment takes: some of them will be in a sealed one.
        eventually(DEADLINE, "a sealed segment in each shard", || {
            let is_there = |shard: u32| {
                let segments = shards.join(shard.to_string()).join("segments");
                newest(&segments, "graph.bin").is_some()
            };
            (0..PARTITIONS).all(is_there).then_some(())
        });
        victim.child.kill();
        for shard in 0..PARTITIONS {
            damage(&shards.join(shard.to_string()));
        }
        eprintln!("{what}");
        let mut back = settings.launch();
        let state = holds_everything(&world, &mut back, &model);
        back.child.terminate();
        if what.contains("tail") {
            assert_eq!(state, undisturbed(&world, &collection));
        }
    }
}

/// The last file below a folder, in the order of names, whose name holds `part`; not in what is still being
/// written.
fn newest(folder: &Path, part: &str) -> Option<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        // One that goes away meanwhile holds nothing.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|kind| kind == "tmp") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.file_name().unwrap().to_string_lossy().contains(part) {
                files.push(path);
            }
        }
    }
    files.into_iter().max()
}
