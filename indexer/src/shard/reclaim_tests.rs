//! What a clock that is set back does to points that expire, and what is written while rows are moved: none that is
//! reclaimed comes back, and none that is written again is lost to a compaction that took it for expired.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use shoal_runtime::{clock::Clock, eventually};
use shoal_schemas::{
    ClusterId, Collection, Dim, Metric, Offset, Partition, Payload, Point, PointId, Vector, Version,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::EngineConfig,
    entry::{Draft, Stamp},
    node::alone::DEADLINE,
    rule::SourceIndex,
    shard::{
        Shared, Spec, builder, compact,
        recover::{self, Opened},
        search::Ask,
        writer::Writer,
    },
};

const BEGIN_MS: u64 = 1_700_000_000_000;
const HOUR_MS: u64 = 60 * 60 * 1000;
/// More than are moved at once.
const POINTS: u16 = 700;
/// One of the last that are moved.
const LATE: u16 = 99;

/// A clock that may be set to any time.
#[derive(Debug)]
struct Wall(AtomicU64);

impl Clock for Wall {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

fn spec(folder: &Path) -> Spec {
    let dim = Dim::try_from(3).unwrap();
    let docs = Collection::new("docs".parse().unwrap(), dim, Metric::L2, 1);
    Spec::of_home(
        Arc::new(docs),
        Partition(0),
        ClusterId::from("test-cluster"),
        "local".parse().unwrap(),
        folder.to_owned(),
        EngineConfig {
            seal_rows: u32::from(POINTS),
            compact_dead_rows: 16,
            ..EngineConfig::default()
        },
    )
}

/// Record `offset` of a point that lies where its number says, and expires after an hour.
fn lent(offset: u16, number: u16) -> Draft {
    let vector = [1.0, f32::from(number), 2.0];
    let stamp = Stamp {
        source: SourceIndex(0),
        offset: Offset(offset.into()),
        version: Version::from_parts(BEGIN_MS, offset),
    };
    let point = Point {
        vector: Vector::new(&vector, Dim::try_from(3).unwrap(), Metric::L2).unwrap(),
        payload: Payload::default(),
        model: None,
        event_time_ms: None,
        expires_at_ms: i64::try_from(BEGIN_MS + HOUR_MS).ok(),
    };
    Draft::Upsert(stamp, name(number), point)
}

/// Record `offset`, of a point that is deleted.
fn deleted(offset: u16, number: u16) -> Draft {
    let stamp = Stamp {
        source: SourceIndex(0),
        offset: Offset(offset.into()),
        version: Version::from_parts(BEGIN_MS, offset),
    };
    Draft::Delete(stamp, name(number))
}

fn name(number: u16) -> PointId {
    PointId::new(&format!("id-{number}")).unwrap()
}

fn deliver(writer: &mut Writer, draft: Draft) {
    let appended = writer.append(&draft).unwrap();
    writer.flush().unwrap();
    writer.apply(appended, draft).unwrap();
    writer.publish();
}

/// A shard with one sealed segment of points that are to expire.
fn sealed(spec: &Spec, clock: &Arc<Wall>) -> Opened {
    let mut opened = recover::open(spec.clone(), clock.clone()).unwrap();
    opened.replay(|| false).unwrap();
    let storer = std::mem::take(&mut opened.storer);
    let numbers = opened.numbers.clone();
    let writer = &mut opened.writer;
    let shared = writer.shared.clone();
    let cancel = CancellationToken::new();
    thread::scope(|scope| {
        let _end = cancel.clone().drop_guard();
        scope.spawn(|| builder::run(&shared, storer, || numbers.take(), &cancel).unwrap());
        for number in 0..=POINTS {
            deliver(writer, lent(number, number));
        }
        eventually(DEADLINE, "the first segment is sealed", || {
            writer.tend().unwrap();
            let view = shared.view.load();
            view.segments.first().unwrap().as_sealed().map(drop)
        });
    });
    opened
}

/// Compacts what is worn, and hands it to the writer.
fn compacted(opened: &Opened) {
    let shared = &opened.writer.shared;
    let inputs = compact::choose(shared, &shared.view.load());
    assert_eq!(
        inputs.len(),
        1,
        "a segment of which everything expired is worn"
    );
    let built = compact::build(shared, || opened.numbers.take(), &inputs, || Ok(true));
    let mut work = shared.work();
    work.compacting = true;
    work.compacted = built.unwrap();
}

fn served(shared: &Shared) -> Vec<String> {
    let all = Ask {
        exact: true,
        ..Ask::nearest(vec![1.0, 0.0, 2.0], 2 * usize::from(POINTS))
    };
    let hits = shared.search(&all).unwrap();
    hits.into_iter().map(|hit| hit.id).collect()
}

#[test]
fn what_is_reclaimed_stays_away_when_the_clock_is_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(Wall(AtomicU64::new(BEGIN_MS)));
    let mut opened = sealed(&spec(&folder.path().join("shard")), &clock);
    clock.0.store(BEGIN_MS + 2 * HOUR_MS, Ordering::SeqCst);
    compacted(&opened);
    while opened.writer.tend().unwrap() {}
    let shared = opened.writer.shared.clone();
    clock.0.store(BEGIN_MS, Ordering::SeqCst);
    // The one point that is in no sealed segment had expired, and has not now.
    assert_eq!(served(&shared), [name(POINTS).as_str()]);
    assert_eq!(shared.live_points(), 1);
    let gone = shared.points(&[name(3).as_str().to_owned()], true).unwrap();
    assert!(gone.is_empty());
    shared.buckets().unwrap();
    deliver(&mut opened.writer, lent(POINTS + 1, 3));
    assert_eq!(served(&shared).len(), 2);
}

#[test]
fn a_compaction_that_took_a_point_for_expired_which_is_renewed_comes_to_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(Wall(AtomicU64::new(BEGIN_MS)));
    let mut opened = sealed(&spec(&folder.path().join("shard")), &clock);
    let shared = opened.writer.shared.clone();
    clock.0.store(BEGIN_MS + 2 * HOUR_MS, Ordering::SeqCst);
    compacted(&opened);
    clock.0.store(BEGIN_MS, Ordering::SeqCst);
    // It rides on the node of before, which the new segment has not.
    deliver(&mut opened.writer, lent(POINTS + 1, 3));
    assert!(shared.view.load().growing().rides.has_riders());
    while opened.writer.tend().unwrap() {}
    assert!(!shared.work().compacting, "another one may begin");
    let folders = fs::read_dir(shared.spec.segments_root()).unwrap();
    assert_eq!(folders.count(), 1, "what is of no use is not kept");
    assert_eq!(served(&shared).len(), usize::from(POINTS) + 1);
    let nearest = shared
        .search(&Ask::nearest(vec![1.0, 3.0, 2.0], 1))
        .unwrap();
    assert_eq!(nearest.first().unwrap().id, name(3).as_str());
}

#[test]
fn a_point_that_is_renewed_while_its_row_is_moved_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(Wall(AtomicU64::new(BEGIN_MS)));
    let mut opened = sealed(&spec(&folder.path().join("shard")), &clock);
    let shared = opened.writer.shared.clone();
    clock.0.store(BEGIN_MS + 2 * HOUR_MS, Ordering::SeqCst);
    compacted(&opened);
    assert!(opened.writer.tend().unwrap(), "some are moved, not all");
    clock.0.store(BEGIN_MS, Ordering::SeqCst);
    deliver(&mut opened.writer, lent(POINTS + 1, LATE));
    while opened.writer.tend().unwrap() {}
    assert_eq!(shared.view.load().segments[0].live(), u32::from(POINTS) - 1);
    let nearest = Ask::nearest(vec![1.0, f32::from(LATE), 2.0], 1);
    let nearest = shared.search(&nearest).unwrap();
    assert_eq!(nearest.first().unwrap().id, name(LATE).as_str());
}

#[test]
fn a_row_that_ends_while_a_node_for_it_is_moved_leaves_nothing_that_carries() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(Wall(AtomicU64::new(BEGIN_MS)));
    let mut opened = sealed(&spec(&folder.path().join("shard")), &clock);
    let shared = opened.writer.shared.clone();
    // All but the first hundred ride on the nodes of before, and these end.
    for number in 0..100 {
        deliver(&mut opened.writer, deleted(1000 + number, 600 + number));
    }
    for number in 0..600 {
        deliver(&mut opened.writer, lent(2000 + number, number));
    }
    let inputs = vec![shared.view.load().segments[0].clone()];
    assert_eq!(inputs[0].rides.carrying(), 600);
    let built = compact::build(&shared, || opened.numbers.take(), &inputs, || Ok(true));
    shared.work().compacting = true;
    shared.work().compacted = built.unwrap();
    assert!(opened.writer.tend().unwrap(), "some are moved, not all");
    deliver(&mut opened.writer, deleted(3000, LATE));
    // One that rides again, on the new node.
    deliver(&mut opened.writer, lent(3001, LATE - 1));
    while opened.writer.tend().unwrap() {}
    let view = shared.view.load();
    assert_eq!(view.segments[0].rides.carrying(), 1);
    assert_eq!(view.segments[0].wear(i64::MIN)[0], (1, 600));
    assert_eq!(served(&shared).len(), 600);
}
