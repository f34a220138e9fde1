//! Tests of opening: every truncation, every flipped byte, zeros, missing and foreign files.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use proptest::{collection::vec, prelude::*};
use shoal_runtime::ErrorKind;

use super::{
    super::{Config, Damage, Opened, Position, Wal, disk_sim::Sim, to_usize},
    OpenError,
};

const DIR: &str = "/log";
const HEADER: usize = 24;

type Files = BTreeMap<PathBuf, Vec<u8>>;
type Written = Vec<(Position, Vec<u8>)>;

fn config() -> Config {
    Config {
        segment_bytes: 150,
        ..Config::default()
    }
}

fn open(files: Files) -> Result<(Wal, Opened), OpenError> {
    Wal::open_on(Arc::new(Sim::with_files(files)), Path::new(DIR), &config())
}

fn frames(wal: &Wal) -> Written {
    let reader = wal.reader();
    let all = reader.iterate(reader.first(), reader.end());
    all.map(Result::unwrap).collect()
}

/// A log of these payloads, and its files.
fn written(payloads: &[Vec<u8>]) -> (Written, Files) {
    let disk = Sim::default();
    let (mut wal, _) = Wal::open_on(Arc::new(disk.clone()), Path::new(DIR), &config()).unwrap();
    let mut frames = Vec::new();
    for payload in payloads {
        frames.push((wal.append(&[payload]).unwrap(), payload.clone()));
    }
    wal.flush().unwrap();
    (frames, disk.files())
}

/// Payloads without zeros: a frame cut short and filled with zeros is never by chance what it was.
fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(vec(1..=u8::MAX, 1..60), 1..12)
}

fn last_path(files: &Files) -> PathBuf {
    files.keys().next_back().unwrap().clone()
}

fn base(path: &Path) -> usize {
    path.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

/// Byte in its file where the last frame begins.
fn last_frame_offset(frames: &Written, files: &Files) -> usize {
    let at = to_usize(frames.last().unwrap().0.as_u64());
    HEADER + at - base(&last_path(files))
}

/// The frames that end at or below byte `kept` of the last file.
fn wholly_below(frames: &Written, files: &Files, kept: usize) -> Written {
    let end = base(&last_path(files)) + kept.saturating_sub(HEADER);
    let is_below =
        |(at, payload): &(Position, Vec<u8>)| to_usize(at.as_u64()) + 8 + payload.len() <= end;
    let kept_of_last = frames.iter().filter(|frame| is_below(frame));
    kept_of_last.cloned().collect()
}

#[test]
fn new_log_is_empty_and_takes_frames() {
    let (mut wal, opened) = open(Files::new()).unwrap();
    assert_eq!(
        opened,
        Opened {
            torn_bytes: 0,
            first: Position::START,
            end: Position::START
        }
    );
    assert_eq!(wal.append(&[b"one"]).unwrap(), Position::START);
    wal.flush().unwrap();
    assert_eq!(frames(&wal), [(Position::START, b"one".to_vec())]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn tail_cut_at_any_byte_keeps_exactly_the_frames_wholly_below(payloads in payloads(), is_zeroed: bool) {
        let (frames_before, files) = written(&payloads);
        let path = last_path(&files);
        let bytes = files[&path].clone();
        for kept in 0..=bytes.len() {
            let mut torn = bytes[..kept].to_vec();
            if is_zeroed && kept >= HEADER {
                torn.resize(bytes.len() + 30, 0);
            }
            let expected = wholly_below(&frames_before, &files, kept);
            let torn_bytes = torn.len();
            let mut files = files.clone();
            files.insert(path.clone(), torn);
            let (mut wal, opened) = open(files).unwrap();
            prop_assert_eq!(&frames(&wal), &expected, "kept {} bytes", kept);
            prop_assert_eq!(opened.end, wal.end());
            let whole_bytes = HEADER + to_usize(opened.end.as_u64()) - base(&path);
            let cut = if kept < HEADER { kept } else { torn_bytes - whole_bytes };
            prop_assert_eq!(to_usize(opened.torn_bytes), cut);
            prop_assert_eq!(wal.syncer().durable(), opened.end);

            // It goes on from there, and opens without a tear.
            let at = wal.append(&[b"next"]).unwrap();
            wal.flush().unwrap();
            prop_assert_eq!(at, opened.end);
            prop_assert_eq!(frames(&wal).len(), expected.len() + 1);
        }
    }

    #[test]
    fn flipped_byte_is_damage_or_a_torn_last_frame_and_never_wrong_data(
        payloads in payloads(),
        flip in 1..=u8::MAX,
    ) {
        let (frames_before, files) = written(&payloads);
        let last = last_path(&files);
        let tail = last_frame_offset(&frames_before, &files);
        for (path, bytes) in &files {
            for offset in 0..bytes.len() {
                let mut flipped = files.clone();
                flipped.get_mut(path).unwrap()[offset] ^= flip;
                match open(flipped) {
                    Ok((wal, opened)) => {
                        prop_assert!(*path == last && offset >= tail, "{:?} {}", path, offset);
                        let all_but_one = &frames_before[..frames_before.len() - 1];
                        prop_assert_eq!(&frames(&wal), all_but_one);
                        prop_assert_eq!(to_usize(opened.torn_bytes), bytes.len() - tail);
                    }
                    Err(OpenError::Corrupt { path: named, offset: found, .. }) => {
                        prop_assert!(*path != last || offset < tail, "{:?} {}", path, offset);
                        prop_assert_eq!(&named, path);
                        prop_assert!(to_usize(found) <= offset);
                    }
                    Err(other) => prop_assert!(false, "{:?} {}: {:?}", path, offset, other),
                }
            }
        }
    }
}

fn payloads_of(count: u8) -> Vec<Vec<u8>> {
    (1..=count).map(|number| vec![number; 40]).collect()
}

#[track_caller]
fn assert_corrupt(files: Files, path: &Path, offset: usize) -> Damage {
    let before = files.clone();
    let disk = Sim::with_files(files);
    let outcome = Wal::open_on(Arc::new(disk.clone()), Path::new(DIR), &config());
    let error = outcome.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let OpenError::Corrupt {
        path: named,
        offset: found,
        damage,
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!((named.as_path(), to_usize(found)), (path, offset));
    assert!(disk.files() == before, "a damaged log was changed");
    damage
}

#[test]
fn shortened_segment_that_has_a_successor_is_damage() {
    let (_, files) = written(&payloads_of(7));
    let path = files.keys().next().unwrap().clone();
    let whole = files[&path].len();
    for kept in HEADER..whole {
        let mut files = files.clone();
        files.get_mut(&path).unwrap().truncate(kept);
        let frames_kept = (kept - HEADER) / 48;
        let damage = assert_corrupt(files, &path, HEADER + frames_kept * 48);
        let is_at_frame = (kept - HEADER).is_multiple_of(48);
        assert_eq!(matches!(damage, Damage::Gap { .. }), is_at_frame);
    }
    let mut zeroed = files.clone();
    zeroed.get_mut(&path).unwrap().extend([0; 10]);
    assert_corrupt(zeroed, &path, whole);
}

#[test]
fn missing_segment_is_damage_of_the_one_before() {
    let (_, mut files) = written(&payloads_of(7));
    let paths: Vec<_> = files.keys().cloned().collect();
    files.remove(&paths[1]);
    let damage = assert_corrupt(files.clone(), &paths[0], files[&paths[0]].len());
    let Damage::Gap { end, next } = damage else {
        panic!("{damage:?}");
    };
    assert_eq!((end, next), (Position(96), Position(192)));
}

#[test]
fn renamed_segment_is_damage() {
    let (_, mut files) = written(&payloads_of(7));
    let first = files.keys().next().unwrap().clone();
    let bytes = files.remove(&first).unwrap();
    let renamed = Path::new(DIR).join("00000000000000000001.wal");
    files.insert(renamed.clone(), bytes);
    let damage = assert_corrupt(files, &renamed, 0);
    assert!(matches!(damage, Damage::Base { .. }), "{damage:?}");
}

#[test]
fn broken_header_before_frames_is_damage_not_a_tear() {
    let (_, mut files) = written(&payloads_of(1));
    let path = last_path(&files);
    let bytes = files.get_mut(&path).unwrap();
    bytes.truncate(HEADER + 3);
    bytes[0] ^= 1;
    assert_eq!(assert_corrupt(files, &path, 0), Damage::Magic);
}

#[test]
fn segment_begun_but_without_its_header_is_begun_again() {
    let (before, mut files) = written(&payloads_of(2));
    let empty = Path::new(DIR).join("00000000000000000096.wal");
    files.insert(empty, vec![0; 10]);
    let (mut wal, opened) = open(files).unwrap();
    assert_eq!(opened.torn_bytes, 10);
    assert_eq!(frames(&wal), before);
    wal.append(&[b"next"]).unwrap();
    wal.flush().unwrap();
    assert_eq!(frames(&wal).len(), 3);
}

#[test]
fn large_zeroed_tail_is_a_tear() {
    let (before, mut files) = written(&payloads_of(5));
    let path = last_path(&files);
    files.get_mut(&path).unwrap().extend(vec![0; 3 << 20]);
    let (wal, opened) = open(files).unwrap();
    assert_eq!(opened.torn_bytes, 3 << 20);
    assert_eq!(frames(&wal), before);
}

#[test]
fn planted_frame_in_a_torn_payload_does_not_pass_for_a_whole_one() {
    let (_, donor) = written(&[b"planted".to_vec()]);
    let planted = donor.values().next().unwrap()[HEADER..].to_vec();
    let mut payload = planted;
    payload.extend([7; 40]);
    let (_, mut files) = written(&[b"first".to_vec(), payload]);
    let path = last_path(&files);
    let bytes = files.get_mut(&path).unwrap();
    bytes.truncate(bytes.len() - 5);
    let (wal, opened) = open(files).unwrap();
    assert!(opened.torn_bytes > 0);
    assert_eq!(frames(&wal), [(Position::START, b"first".to_vec())]);
}

#[test]
fn newer_format_is_refused_and_left_alone() {
    let (_, mut files) = written(&payloads_of(1));
    let path = last_path(&files);
    let bytes = files.get_mut(&path).unwrap();
    bytes[8] = 2;
    let checksum = crc32fast::hash(&bytes[..20]);
    bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
    let error = open(files).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Caller);
    let OpenError::Version { found, known, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!((found, known), (2, 1));
}

#[test]
fn stray_log_file_is_refused_and_other_files_are_ignored() {
    let (before, mut files) = written(&payloads_of(3));
    files.insert(Path::new(DIR).join("checkpoint.json"), b"{}".to_vec());
    assert_eq!(frames(&open(files.clone()).unwrap().0), before);
    files.insert(Path::new(DIR).join("old.wal"), Vec::new());
    let error = open(files).err().unwrap();
    assert!(matches!(error, OpenError::Stray { .. }), "{error:?}");
}

#[test]
fn log_on_the_file_system_opens_again_after_a_tear() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("shard").join("log");
    let (mut wal, _) = Wal::open(&dir, &config()).unwrap();
    for payload in payloads_of(5) {
        wal.append(&[&payload]).unwrap();
    }
    wal.flush().unwrap();
    let before = frames(&wal);
    let second = Wal::open(&dir, &config()).err().unwrap();
    assert!(matches!(second, OpenError::Held { .. }), "{second:?}");
    drop(wal);

    let path = dir.join("00000000000000000192.wal");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    let (wal, opened) = Wal::open(&dir, &config()).unwrap();
    assert_eq!(opened.torn_bytes, 47);
    assert_eq!(frames(&wal), before[..4]);
}
