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
    time::Duration,
};

use shoal_runtime::clock::Clock;

use crate::{
    config::EngineConfig,
    entry::Draft,
    shard::{
        by_hand::{self, WRITTEN_MS, deliver, first, nearest, served},
        compact,
        recover::Opened,
    },
    view::Moment,
};

const HOUR_MS: u64 = 60 * 60 * 1000;
/// More than are moved at once.
const POINTS: u16 = 700;
/// One of the last that are moved.
const LATE: u16 = 99;

/// A clock that may be set to any time.
#[derive(Debug)]
struct Wall(AtomicU64);

impl Wall {
    fn set(&self, now_ms: u64) {
        self.0.store(now_ms, Ordering::SeqCst);
    }
}

impl Clock for Wall {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }
}

fn name(number: u16) -> String {
    format!("id-{number}")
}

/// Record `offset` of a point that lies where its number says, and expires after an hour.
fn lent(offset: u16, number: u16) -> Draft {
    by_hand::upsert(offset, &name(number), number, Some(WRITTEN_MS + HOUR_MS))
}

fn deleted(offset: u16, number: u16) -> Draft {
    by_hand::delete(offset, &name(number))
}

/// A shard with one sealed segment of points that are to expire, and one such point that is in none.
fn sealed(folder: &Path) -> (Opened, Arc<Wall>) {
    sealed_of(folder, lent)
}

/// The same of other points.
fn sealed_of(folder: &Path, record: impl Fn(u16, u16) -> Draft) -> (Opened, Arc<Wall>) {
    let engine = EngineConfig {
        seal_rows: u32::from(POINTS),
        compact_dead_rows: 16,
        ..EngineConfig::default()
    };
    let clock = Arc::new(Wall(AtomicU64::new(WRITTEN_MS)));
    let spec = by_hand::spec(&folder.join("shard"), engine);
    let opened = by_hand::open(&spec, clock.clone(), |writer| {
        for number in 0..=POINTS {
            deliver(writer, record(number, number));
        }
        by_hand::first_is_sealed(writer);
    });
    (opened, clock)
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
    by_hand::compact(opened, &inputs);
}

/// Record `offset`, of a point among others that expire together, one after the other, or some of them not at all.
fn mixed(offset: u16, number: u16) -> Draft {
    let until_ms = match (number / 64 % 4, number) {
        (0, _) => Some(WRITTEN_MS + HOUR_MS),
        (1, number) => Some(WRITTEN_MS + u64::from(number)),
        (2, _) => None,
        (_, number) => number.is_multiple_of(2).then_some(WRITTEN_MS + HOUR_MS),
    };
    by_hand::upsert(offset, &name(number), number, until_ms)
}

#[test]
fn a_sealed_segment_tells_of_rows_together_what_each_of_them_tells() {
    let folder = tempfile::tempdir().unwrap();
    let (mut opened, _clock) = sealed_of(folder.path(), mixed);
    for number in (0..POINTS).step_by(7) {
        deliver(&mut opened.writer, deleted(POINTS + 1 + number, number));
    }
    let shared = opened.writer.shared.clone();
    let (_, sequence) = shared.moment();
    let segment = first(&shared);
    assert_eq!(segment.len() % 64, 60, "the last ones are no whole block");
    let hour = WRITTEN_MS + HOUR_MS;
    for now_ms in [hour, hour - 1, WRITTEN_MS, WRITTEN_MS + 100, hour + 1] {
        let now_ms = i64::try_from(now_ms).unwrap();
        let moment = Moment { sequence, now_ms };
        let each = segment
            .rows()
            .filter(|(_, row)| row.is_visible(sequence, now_ms));
        let each: Vec<u32> = each.map(|(number, _)| number).collect();
        let together: Vec<u32> = segment.visible(u32::MAX, moment).collect();
        assert_eq!(together, each, "{now_ms}");
        let asked = (0..segment.len()).filter(|row| segment.is_visible(*row, moment));
        assert_eq!(asked.collect::<Vec<u32>>(), each, "{now_ms}");
    }
}

#[test]
fn what_is_reclaimed_stays_away_when_the_clock_is_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let (mut opened, clock) = sealed(folder.path());
    clock.set(WRITTEN_MS + 2 * HOUR_MS);
    compacted(&opened);
    while opened.writer.tend().unwrap() {}
    let shared = opened.writer.shared.clone();
    clock.set(WRITTEN_MS);
    // The one point that is in no sealed segment had expired, and has not now.
    assert_eq!(served(&shared), [name(POINTS)]);
    assert_eq!(shared.live_points(), 1);
    let gone = shared.points(&[name(3)], true).unwrap();
    assert!(gone.is_empty());
    shared.buckets().unwrap();
    deliver(&mut opened.writer, lent(POINTS + 1, 3));
    assert_eq!(served(&shared).len(), 2);
}

#[test]
fn a_compaction_that_took_a_point_for_expired_which_is_renewed_comes_to_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (mut opened, clock) = sealed(folder.path());
    let shared = opened.writer.shared.clone();
    clock.set(WRITTEN_MS + 2 * HOUR_MS);
    compacted(&opened);
    clock.set(WRITTEN_MS);
    // It rides on the node of before, which the new segment has not.
    deliver(&mut opened.writer, lent(POINTS + 1, 3));
    assert!(shared.view.load().growing().rides.has_riders());
    while opened.writer.tend().unwrap() {}
    assert!(!shared.work().compacting, "another one may begin");
    let folders = fs::read_dir(shared.spec.segments_root()).unwrap();
    assert_eq!(folders.count(), 1, "what is of no use is not kept");
    assert_eq!(served(&shared).len(), usize::from(POINTS) + 1);
    assert_eq!(nearest(&shared, 3), name(3));
}

#[test]
fn a_point_that_is_renewed_while_its_row_is_moved_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (mut opened, clock) = sealed(folder.path());
    let shared = opened.writer.shared.clone();
    clock.set(WRITTEN_MS + 2 * HOUR_MS);
    compacted(&opened);
    assert!(opened.writer.tend().unwrap(), "some are moved, not all");
    clock.set(WRITTEN_MS);
    deliver(&mut opened.writer, lent(POINTS + 1, LATE));
    while opened.writer.tend().unwrap() {}
    assert_eq!(first(&shared).live(), u32::from(POINTS) - 1);
    assert_eq!(nearest(&shared, LATE), name(LATE));
}

#[test]
fn a_row_that_ends_while_a_node_for_it_is_moved_leaves_nothing_that_carries() {
    let folder = tempfile::tempdir().unwrap();
    let (mut opened, _) = sealed(folder.path());
    let shared = opened.writer.shared.clone();
    // All but the first hundred ride on the nodes of before, and these end.
    for number in 0..100 {
        deliver(&mut opened.writer, deleted(1000 + number, 600 + number));
    }
    for number in 0..600 {
        deliver(&mut opened.writer, lent(2000 + number, number));
    }
    assert_eq!(first(&shared).rides.carrying(), 600);
    by_hand::compact(&opened, &[first(&shared)]);
    assert!(opened.writer.tend().unwrap(), "some are moved, not all");
    deliver(&mut opened.writer, deleted(3000, LATE));
    // One that rides again, on the new node.
    deliver(&mut opened.writer, lent(3001, LATE - 1));
    while opened.writer.tend().unwrap() {}
    assert_eq!(first(&shared).rides.carrying(), 1);
    assert_eq!(first(&shared).wear(i64::MIN)[0], (1, 600));
    assert_eq!(served(&shared).len(), 600);
}
