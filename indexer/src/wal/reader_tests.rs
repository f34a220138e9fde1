//! Tests of reading: by position, in order, beside the writer, and of damage that comes after opening.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use shoal_runtime::ErrorKind;

use super::{
    super::{Config, Wal, disk::Disk, disk_sim::Sim, to_u64},
    Position, ReadError,
};

const DIR: &str = "/log";

fn open(disk: &Sim, segment_bytes: u64) -> Wal {
    let config = Config {
        segment_bytes,
        ..Config::default()
    };
    Wal::open_on(Arc::new(disk.clone()), Path::new(DIR), &config)
        .unwrap()
        .0
}

/// A payload that tells its number and has a length of its own, some longer than a block.
fn payload(number: u32) -> Vec<u8> {
    let length = match number % 50 {
        49 => 1_500_000,
        other => usize::try_from(other * 131).unwrap(),
    };
    let mut bytes = number.to_le_bytes().to_vec();
    bytes.resize(4 + length, number.to_le_bytes()[0]);
    bytes
}

#[test]
fn every_frame_is_found_by_its_position_and_in_order() {
    let mut wal = open(&Sim::default(), 4 << 20);
    let mut written = Vec::new();
    for number in 0..300 {
        let bytes = payload(number);
        written.push((wal.append(&[&bytes]).unwrap(), bytes));
    }
    wal.flush().unwrap();
    let reader = wal.reader();
    for (at, bytes) in &written {
        assert_eq!(reader.read(*at).unwrap(), bytes);
        // In memory that longer ones have left something in, thought to be shorter and longer.
        for guess_bytes in [0, 8, bytes.len(), 1 << 20] {
            let visited = reader.visit(*at, guess_bytes, <[u8]>::to_vec);
            assert_eq!(&visited.unwrap(), bytes);
        }
    }
    let all: Vec<_> = reader
        .iterate(Position::START, wal.end())
        .map(Result::unwrap)
        .collect();
    assert!(all == written);
    let (from, to) = (written[100].0, written[200].0);
    let some: Vec<_> = reader.iterate(from, to).map(Result::unwrap).collect();
    assert!(some == written[100..200]);
    assert_eq!(reader.iterate(to, from).count(), 0);
    assert_eq!(reader.iterate(wal.end(), wal.end()).count(), 0);
}

#[test]
fn a_break_ends_the_walk_with_its_value() {
    let mut wal = open(&Sim::default(), 100);
    for number in 0..10 {
        wal.append(&[&payload(number)]).unwrap();
    }
    wal.flush().unwrap();
    let mut seen = 0;
    let outcome = wal
        .reader()
        .for_each(Position::START, wal.end(), |at, bytes| {
            seen += 1;
            if bytes[0] == 6 {
                return ControlFlow::Break(at);
            }
            ControlFlow::Continue(())
        });
    let ControlFlow::Break(at) = outcome.unwrap() else {
        panic!("it did not break");
    };
    assert_eq!(seen, 7);
    assert_eq!(wal.reader().read(at).unwrap(), payload(6));
}

#[test]
fn what_is_not_flushed_is_not_there_yet() {
    let mut wal = open(&Sim::default(), 4 << 20);
    let reader = wal.reader();
    let at = wal.append(&[b"one"]).unwrap();
    let error = reader.read(at).unwrap_err();
    assert!(matches!(error, ReadError::NotWritten { .. }), "{error:?}");
    assert_eq!(error.kind(), ErrorKind::Retry);
    assert_eq!(reader.end(), Position::START);
    wal.flush().unwrap();
    assert_eq!(reader.read(at).unwrap(), &b"one"[..]);

    wal.append(&[b"two"]).unwrap();
    let mut frames = reader.iterate(Position::START, wal.end());
    assert_eq!(frames.next().unwrap().unwrap().1, b"one");
    let error = frames.next().unwrap().unwrap_err();
    assert!(matches!(error, ReadError::NotWritten { .. }), "{error:?}");
    assert!(frames.next().is_none());
}

#[test]
fn position_inside_a_frame_is_refused_even_if_its_bytes_look_like_a_frame() {
    let mut other = open(&Sim::default(), 4 << 20);
    let disk = Sim::default();
    let mut wal = open(&disk, 4 << 20);
    other.append(&[b"planted"]).unwrap();
    other.flush().unwrap();
    let other_disk = other.shared.disk.clone();
    let mut planted = vec![0; 15];
    let path = other_disk.list(Path::new(DIR)).unwrap().remove(0);
    let file = other_disk.open(&Path::new(DIR).join(path)).unwrap();
    assert_eq!(file.read_at(&mut planted, 24).unwrap(), 15);

    let at = wal.append(&[&planted]).unwrap();
    wal.flush().unwrap();
    assert_eq!(wal.reader().read(at).unwrap(), planted);
    let error = wal.reader().read(at.plus(8)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn cut_frames_are_refused_by_name_and_a_walk_in_them_ends_so() {
    let disk = Sim::default();
    let mut wal = open(&disk, 100);
    let positions: Vec<_> = (0..10)
        .map(|number| wal.append(&[&[number; 40]]).unwrap())
        .collect();
    wal.flush().unwrap();
    let reader = wal.reader();
    let mut walk = reader.iterate(Position::START, wal.end());
    assert_eq!(walk.next().unwrap().unwrap().1, [0; 40]);
    wal.cut_below(positions[8]).unwrap();
    let error = reader.read(positions[3]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Caller);
    let ReadError::Cut { at, first } = error else {
        panic!("{error:?}");
    };
    assert_eq!((at, first), (positions[3], wal.first()));
    let error = walk.next().unwrap().unwrap_err();
    assert!(matches!(error, ReadError::Cut { .. }), "{error:?}");
    assert_eq!(reader.read(positions[9]).unwrap(), &[9; 40][..]);
}

#[test]
fn damage_after_opening_is_found_on_every_read() {
    let disk = Sim::default();
    let mut wal = open(&disk, 4 << 20);
    let at: Vec<_> = (0..3)
        .map(|number| wal.append(&[&payload(number)]).unwrap())
        .collect();
    wal.flush().unwrap();
    let path = Path::new(DIR).join("00000000000000000000.wal");
    let offset = 24 + at[1].as_u64();
    let file = disk.open(&path).unwrap();
    file.write_at(b"X", offset + 20).unwrap();
    let error = wal.reader().read(at[1]).unwrap_err();
    let ReadError::Corrupt {
        path: named,
        offset: found,
        ..
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!((named, *found), (&path, offset));
    let walked: Vec<_> = wal.reader().iterate(Position::START, wal.end()).collect();
    assert_eq!(walked.len(), 2);
    let error = walked[1].as_ref().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(wal.reader().read(at[2]).unwrap(), payload(2));

    // A file that lost its end under us.
    file.set_bytes(offset).unwrap();
    assert!(matches!(
        wal.reader().read(at[2]),
        Err(ReadError::Read { .. })
    ));
}

/// Ends the readers also when the writer panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn readers_beside_the_writer_see_whole_frames_in_order() {
    const FRAMES: u32 = 4_000;
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        segment_bytes: 64 << 10,
        ..Config::default()
    };
    let (mut wal, _) = Wal::open(&dir.path().join("log"), &config).unwrap();
    let is_done = AtomicBool::new(false);
    let reader = wal.reader();
    let syncer = wal.syncer();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                let reader = reader.clone();
                scope.spawn(|| {
                    let reader = reader;
                    let (mut next, mut number) = (Position::START, 0_u32);
                    loop {
                        let was_done = is_done.load(Ordering::SeqCst);
                        let end = reader.end();
                        let outcome = reader.for_each(next, end, |at, bytes| {
                            assert_eq!(bytes, number.to_le_bytes().repeat(30));
                            if number.is_multiple_of(64) {
                                assert_eq!(reader.read(at).unwrap(), bytes);
                            }
                            number += 1;
                            ControlFlow::<()>::Continue(())
                        });
                        assert!(outcome.unwrap().is_continue());
                        next = end;
                        if was_done {
                            break number;
                        }
                    }
                })
            })
            .collect();
        let syncs = scope.spawn(|| {
            let mut durable = Position::START;
            while !is_done.load(Ordering::SeqCst) {
                let reached = syncer.sync().unwrap();
                assert!(reached >= durable);
                durable = reached;
            }
        });
        let done = SetOnDrop(&is_done);
        for number in 0..FRAMES {
            wal.append(&[&number.to_le_bytes().repeat(30)]).unwrap();
            if number % 7 == 0 {
                wal.flush().unwrap();
            }
        }
        wal.flush().unwrap();
        drop(done);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), FRAMES);
        }
        syncs.join().unwrap();
    });
    assert_eq!(wal.syncer().sync().unwrap(), wal.end());
    assert_eq!(wal.end().as_u64(), u64::from(FRAMES) * to_u64(8 + 4 * 30));
}
