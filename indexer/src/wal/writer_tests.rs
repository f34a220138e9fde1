//! Tests of the writer: rolling, cutting, a full disk, a broken disk.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{io::ErrorKind as Io, ops::ControlFlow, path::Path, sync::Arc};

use shoal_runtime::ErrorKind;

use super::{
    super::{
        Config, OpenError, Reader, Syncer, Wal,
        disk_sim::{Call, Sim},
    },
    AppendError, CutError, Position,
};

const DIR: &str = "/log";

fn small() -> Config {
    Config {
        segment_bytes: 200,
        max_frame_bytes: 1 << 10,
        ..Config::default()
    }
}

fn open(disk: &Sim) -> Wal {
    Wal::open_on(Arc::new(disk.clone()), Path::new(DIR), &small())
        .unwrap()
        .0
}

fn payload(number: u8) -> Vec<u8> {
    vec![number; 40]
}

/// The first byte of every frame.
fn numbers(reader: &Reader) -> Vec<u8> {
    let mut found = Vec::new();
    let outcome = reader.for_each(reader.first(), reader.end(), |_, bytes| {
        assert_eq!(bytes, payload(bytes[0]));
        found.push(bytes[0]);
        ControlFlow::<()>::Continue(())
    });
    assert!(outcome.unwrap().is_continue());
    found
}

#[test]
fn frames_roll_over_segments_and_all_come_back() {
    let disk = Sim::default();
    let mut wal = open(&disk);
    let mut positions = Vec::new();
    for number in 0..20 {
        let (front, back) = (payload(number), [number; 7]);
        positions.push(wal.append(&[&front[..33], &back]).unwrap());
    }
    wal.flush().unwrap();
    let files = disk.files();
    assert_eq!(files.len(), 7);
    assert!(files.values().all(|bytes| bytes.len() <= 200));
    let total: usize = files.values().map(Vec::len).sum();
    assert_eq!(wal.bytes_on_disk(), u64::try_from(total).unwrap());
    assert_eq!(positions[3], Position(3 * 48));

    drop(wal);
    let wal = open(&disk);
    assert_eq!(numbers(&wal.reader()), (0..20).collect::<Vec<u8>>());
    assert_eq!(wal.end(), Position(20 * 48));
}

#[test]
fn frame_larger_than_a_segment_has_one_of_its_own() {
    let disk = Sim::default();
    let mut wal = open(&disk);
    wal.append(&[b"small"]).unwrap();
    let at = wal.append(&[&[9; 500]]).unwrap();
    wal.append(&[b"small"]).unwrap();
    wal.flush().unwrap();
    assert_eq!(disk.files().len(), 3);
    assert_eq!(*wal.reader().read(at).unwrap(), [9; 500]);
}

#[test]
fn frame_over_the_limit_is_refused_and_harms_nothing() {
    let disk = Sim::default();
    let mut wal = open(&disk);
    wal.append(&[&payload(1)]).unwrap();
    let error = wal.append(&[&[0; 1017]]).unwrap_err();
    let AppendError::FrameTooLarge {
        frame_bytes: 1025,
        limit_bytes: 1024,
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(error.kind(), ErrorKind::Caller);
    wal.append(&[&payload(2)]).unwrap();
    wal.flush().unwrap();
    assert_eq!(numbers(&wal.reader()), [1, 2]);
}

#[test]
fn cutting_removes_whole_segments_below_the_position_only() {
    let disk = Sim::default();
    let mut wal = open(&disk);
    let positions: Vec<_> = (0..9)
        .map(|number| wal.append(&[&payload(number)]).unwrap())
        .collect();
    wal.flush().unwrap();
    // Three frames a segment: position 5 is inside the second.
    wal.cut_below(positions[5]).unwrap();
    assert_eq!(wal.first(), positions[3]);
    assert_eq!(numbers(&wal.reader()), [3, 4, 5, 6, 7, 8]);
    wal.cut_below(positions[6]).unwrap();
    assert_eq!(numbers(&wal.reader()), [6, 7, 8]);
    wal.cut_below(Position(u64::MAX)).unwrap();
    assert_eq!(numbers(&wal.reader()), [6, 7, 8]);
    assert_eq!(wal.bytes_on_disk(), 24 + 3 * 48);

    drop(wal);
    let mut wal = open(&disk);
    assert_eq!((wal.first(), wal.end()), (positions[6], Position(9 * 48)));
    wal.append(&[&payload(9)]).unwrap();
    wal.flush().unwrap();
    assert_eq!(numbers(&wal.reader()), [6, 7, 8, 9]);
}

#[test]
fn failed_removal_leaves_a_log_that_can_be_cut_again() {
    let disk = Sim::default();
    let mut wal = open(&disk);
    for number in 0..9 {
        wal.append(&[&payload(number)]).unwrap();
    }
    wal.flush().unwrap();
    disk.fail(Call::Remove, 2, Io::PermissionDenied);
    let error = wal.cut_below(wal.end()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Retry);
    assert_eq!(numbers(&wal.reader()), [3, 4, 5, 6, 7, 8]);
    wal.cut_below(wal.end()).unwrap();
    assert_eq!(numbers(&wal.reader()), [6, 7, 8]);
}

#[test]
fn failed_fsync_of_the_directory_after_a_cut_poisons() {
    let disk = Sim::default();
    let mut wal = open(&disk);
    for number in 0..9 {
        wal.append(&[&payload(number)]).unwrap();
    }
    disk.fail(Call::SyncDir, 1, Io::Other);
    let error = wal.cut_below(wal.end()).unwrap_err();
    assert!(matches!(error, CutError::SyncDir { .. }), "{error:?}");
    assert_poisoned(&mut wal);
}

#[test]
fn log_has_one_owner() {
    let disk = Sim::default();
    let wal = open(&disk);
    let again = Wal::open_on(Arc::new(disk.clone()), Path::new(DIR), &small());
    let error = again.err().unwrap();
    assert!(matches!(error, OpenError::Held { .. }), "{error:?}");
    drop(wal);
    open(&disk);
}

fn assert_poisoned(wal: &mut Wal) {
    let syncer: Syncer = wal.syncer();
    assert!(matches!(wal.append(&[b"more"]), Err(AppendError::Poisoned)));
    assert!(matches!(wal.flush(), Err(AppendError::Poisoned)));
    assert!(matches!(
        wal.cut_below(Position::START),
        Err(CutError::Poisoned)
    ));
    assert_eq!(syncer.sync().unwrap_err().kind(), ErrorKind::Closed);
}

#[test]
fn full_disk_loses_no_frame_whatever_room_it_left() {
    for room in 0..400 {
        let disk = Sim::default();
        let mut wal = open(&disk);
        disk.set_room(Some(room));
        let mut refused = 0;
        for number in 0..12 {
            while let Err(error) = wal
                .append(&[&payload(number)])
                .and_then(|_| flush_every_fourth(&mut wal, number))
            {
                assert_eq!(error.kind(), ErrorKind::Retry, "room {room}: {error:?}");
                refused += 1;
                // What is on disk by now is well-formed: it opens to a prefix.
                let copy = Sim::with_files(disk.files());
                let (found, opened) =
                    Wal::open_on(Arc::new(copy), Path::new(DIR), &small()).unwrap();
                assert_eq!(opened.torn_bytes, 0, "room {room}");
                let found = numbers(&found.reader());
                assert!((0..=number).collect::<Vec<_>>().starts_with(&found));
                disk.set_room(None);
                if wal.end() == Position((u64::from(number) + 1) * 48) {
                    break;
                }
            }
        }
        assert_eq!(refused, 1, "room {room}");
        wal.flush().unwrap();
        assert_eq!(numbers(&wal.reader()), (0..12).collect::<Vec<u8>>());
        let end = wal.end();
        assert_eq!(wal.syncer().sync().unwrap(), end);
        drop(wal);
        assert_eq!(numbers(&open(&disk).reader()), (0..12).collect::<Vec<u8>>());
    }
}

fn flush_every_fourth(wal: &mut Wal, number: u8) -> Result<(), AppendError> {
    if number % 4 == 3 { wal.flush() } else { Ok(()) }
}

#[test]
fn full_disk_that_cannot_be_cut_back_poisons() {
    let disk = Sim::default();
    let mut wal = open(&disk);
    wal.append(&[&payload(1)]).unwrap();
    disk.set_room(Some(10));
    disk.fail(Call::SetBytes, 1, Io::Other);
    assert_eq!(wal.flush().unwrap_err().kind(), ErrorKind::Closed);
    assert_poisoned(&mut wal);
    drop(wal);
    // The half frame is a torn tail.
    assert!(numbers(&open(&disk).reader()).is_empty());
}

#[test]
fn failed_write_poisons_and_flushed_frames_stay_readable() {
    let disk = Sim::default();
    let mut wal = open(&disk);
    wal.append(&[&payload(1)]).unwrap();
    wal.flush().unwrap();
    disk.fail(Call::Write, 1, Io::Other);
    wal.append(&[&payload(2)]).unwrap();
    let error = wal.flush().unwrap_err();
    assert!(matches!(error, AppendError::Write { .. }), "{error:?}");
    assert_poisoned(&mut wal);
    assert_eq!(numbers(&wal.reader()), [1]);
}

#[test]
fn interrupted_writes_go_on() {
    let disk = Sim::default();
    let mut wal = open(&disk);
    disk.fail(Call::Write, 1, Io::Interrupted);
    wal.append(&[&payload(1)]).unwrap();
    wal.flush().unwrap();
    assert_eq!(numbers(&wal.reader()), [1]);
}

#[test]
fn next_segment_that_cannot_be_made_is_retried_only_for_want_of_room() {
    for (call, nth, kind, is_retried) in [
        (Call::Create, 1, Io::StorageFull, true),
        (Call::Create, 1, Io::QuotaExceeded, true),
        (Call::Write, 2, Io::StorageFull, true),
        (Call::Create, 1, Io::PermissionDenied, false),
        (Call::Sync, 1, Io::StorageFull, false),
        (Call::Sync, 2, Io::StorageFull, false),
        (Call::SyncDir, 1, Io::StorageFull, false),
    ] {
        let disk = Sim::default();
        let mut wal = open(&disk);
        for number in 0..3 {
            wal.append(&[&payload(number)]).unwrap();
        }
        disk.fail(call, nth, kind);
        let error = wal.append(&[&payload(3)]).unwrap_err();
        let expected = if is_retried {
            ErrorKind::Retry
        } else {
            ErrorKind::Closed
        };
        assert_eq!(error.kind(), expected, "{call:?} {nth} {kind:?}: {error:?}");
        if is_retried {
            wal.append(&[&payload(3)]).unwrap();
            wal.flush().unwrap();
            assert_eq!(numbers(&wal.reader()), [0, 1, 2, 3]);
        } else {
            assert_poisoned(&mut wal);
        }
        let reopened = Sim::with_files(disk.files());
        assert!(numbers(&open(&reopened).reader()).starts_with(&[0, 1, 2]));
    }
}
