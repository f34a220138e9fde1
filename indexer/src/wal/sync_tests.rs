//! Tests of group fsync: sharing, covering, poisoning.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::ErrorKind as Io,
    path::Path,
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

use shoal_runtime::ErrorKind;

use super::{
    super::{
        AppendError, Config, Wal,
        disk_sim::{Call, Sim},
    },
    Position, SyncError,
};

const DEADLINE: Duration = Duration::from_secs(20);

fn open(disk: &Sim, segment_bytes: u64) -> Wal {
    let config = Config {
        segment_bytes,
        ..Config::default()
    };
    Wal::open_on(Arc::new(disk.clone()), Path::new("/log"), &config)
        .unwrap()
        .0
}

/// Lets fsyncs through only while it is open, and tells how many wait.
#[derive(Default)]
struct Gate {
    state: Mutex<(bool, u32)>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        while !state.0 {
            state = self.changed.wait(state).unwrap();
        }
        state.1 -= 1;
    }

    fn open(&self) {
        self.state.lock().unwrap().0 = true;
        self.changed.notify_all();
    }

    /// Opens before it panics, so that a failing test ends.
    fn wait_for_one(&self) {
        let state = self.state.lock().unwrap();
        let (state, waited) = self
            .changed
            .wait_timeout_while(state, DEADLINE, |(_, waiting)| *waiting == 0)
            .unwrap();
        drop(state);
        if waited.timed_out() {
            self.open();
            panic!("no fsync came to the gate in {DEADLINE:?}");
        }
    }
}

fn gated(disk: &Sim) -> Arc<Gate> {
    let gate = Arc::new(Gate::default());
    let passed = Arc::clone(&gate);
    disk.set_before_sync(move || passed.pass());
    gate
}

#[test]
fn sync_covers_what_was_flushed_and_not_more() {
    let disk = Sim::default();
    let mut wal = open(&disk, 1 << 20);
    let syncer = wal.syncer();
    wal.append(&[b"flushed"]).unwrap();
    wal.flush().unwrap();
    let flushed = wal.end();
    wal.append(&[b"only appended"]).unwrap();
    assert_eq!(syncer.durable(), Position::START);
    assert_eq!(syncer.sync().unwrap(), flushed);
    assert_eq!(syncer.durable(), flushed);
    let fsyncs = disk.count(Call::Sync);
    assert_eq!(syncer.sync().unwrap(), flushed);
    assert_eq!(disk.count(Call::Sync), fsyncs, "nothing was to be synced");
}

#[test]
fn callers_during_an_fsync_share_the_next_one() {
    let disk = Sim::default();
    let mut wal = open(&disk, 1 << 20);
    let fsyncs = disk.count(Call::Sync);
    let gate = gated(&disk);
    wal.append(&[b"one"]).unwrap();
    wal.flush().unwrap();
    let first_end = wal.end();
    thread::scope(|scope| {
        let (first, others) = (wal.syncer(), wal.syncer());
        let first = scope.spawn(move || first.sync().unwrap());
        gate.wait_for_one();
        let flushed = wal.append(&[b"two"]).and_then(|_| wal.flush());
        let end = wal.end();
        let others: Vec<_> = (0..8)
            .map(|_| {
                let syncer = others.clone();
                scope.spawn(move || syncer.sync().unwrap())
            })
            .collect();
        gate.open();
        flushed.unwrap();
        assert_eq!(first.join().unwrap(), first_end);
        for other in others {
            assert_eq!(other.join().unwrap(), end);
        }
    });
    assert_eq!(disk.count(Call::Sync), fsyncs + 2);
}

#[test]
fn next_segment_waits_for_the_fsync_of_the_full_one() {
    let disk = Sim::default();
    let mut wal = open(&disk, 100);
    let gate = gated(&disk);
    wal.append(&[&[1; 70]]).unwrap();
    wal.flush().unwrap();
    let full = wal.end();
    let syncer = wal.syncer();
    thread::scope(|scope| {
        let rolled = scope.spawn(|| wal.append(&[&[2; 70]]).unwrap());
        gate.wait_for_one();
        let files = disk.files();
        gate.open();
        assert_eq!(files.len(), 1, "a successor before the fsync");
        assert_eq!(rolled.join().unwrap(), full);
    });
    assert_eq!(disk.files().len(), 2);
    assert_eq!(syncer.durable(), full);
    wal.flush().unwrap();
    assert_eq!(syncer.sync().unwrap(), wal.end());
}

#[test]
fn failed_fsync_poisons_for_ever() {
    let disk = Sim::default();
    let mut wal = open(&disk, 1 << 20);
    let syncer = wal.syncer();
    wal.append(&[b"durable"]).unwrap();
    wal.flush().unwrap();
    let durable = syncer.sync().unwrap();
    let at = wal.append(&[b"lost"]).unwrap();
    wal.flush().unwrap();
    disk.fail(Call::Sync, 1, Io::Other);
    let error = syncer.sync().unwrap_err();
    assert!(matches!(error, SyncError::Fsync { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Closed);
    let fsyncs = disk.count(Call::Sync);
    for _ in 0..2 {
        assert!(matches!(syncer.sync(), Err(SyncError::Poisoned)));
        let refused = wal.append(&[b"more"]).unwrap_err();
        assert!(matches!(refused, AppendError::Poisoned), "{refused:?}");
        assert!(matches!(wal.flush(), Err(AppendError::Poisoned)));
    }
    assert_eq!(disk.count(Call::Sync), fsyncs, "the fsync was tried again");
    assert_eq!(syncer.durable(), durable);
    // What was flushed can still be read: search goes on.
    assert_eq!(wal.reader().read(at).unwrap(), &b"lost"[..]);
}

#[test]
fn everybody_who_waits_for_a_failing_fsync_hears_of_it() {
    let disk = Sim::default();
    let mut wal = open(&disk, 1 << 20);
    let gate = gated(&disk);
    wal.append(&[b"one"]).unwrap();
    wal.flush().unwrap();
    disk.fail(Call::Sync, 1, Io::Other);
    let syncer = wal.syncer();
    thread::scope(|scope| {
        let callers: Vec<_> = (0..5)
            .map(|_| {
                let syncer = syncer.clone();
                scope.spawn(move || syncer.sync())
            })
            .collect();
        gate.wait_for_one();
        gate.open();
        let failed = callers
            .into_iter()
            .map(|caller| caller.join().unwrap().unwrap_err());
        let ran = failed.filter(|error| matches!(error, SyncError::Fsync { .. }));
        assert_eq!(ran.count(), 1);
    });
}
