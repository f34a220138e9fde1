//! Logs once written by a released format still open, and today's writer still writes them byte for byte.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{Config, Position, Wal};

fn fixture(name: &str) -> PathBuf {
    // Asked when it runs: clones that share what was built lie in different folders.
    Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap())
        .join("tests/fixtures/wal-v1")
        .join(name)
}

fn config() -> Config {
    Config {
        segment_bytes: 256,
        ..Config::default()
    }
}

/// What the fixtures hold: frame `n` is `n` bytes long, byte `i` of it is `7 n + i`.
fn payloads() -> Vec<Vec<u8>> {
    let lengths = [0_u8, 1, 2, 30, 100, 60, 120, 200, 5];
    let payload = |n: u8| (0..n).map(move |i| n.wrapping_mul(7).wrapping_add(i));
    lengths.iter().map(|n| payload(*n).collect()).collect()
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// Opens a copy of a fixture, so that the fixture stays as it is.
fn opened(name: &str) -> (tempfile::TempDir, Wal, u64) {
    let copy = tempfile::tempdir().unwrap();
    for (file, bytes) in files(&fixture(name)) {
        fs::write(copy.path().join(file), bytes).unwrap();
    }
    let (wal, opened) = Wal::open(copy.path(), &config()).unwrap();
    (copy, wal, opened.torn_bytes)
}

fn frames(wal: &Wal) -> Vec<Vec<u8>> {
    let all = wal.reader().iterate(wal.first(), wal.end());
    all.map(|frame| frame.unwrap().1).collect()
}

#[test]
fn whole_log_of_format_1_opens() {
    let (_copy, wal, torn_bytes) = opened("whole");
    assert_eq!(torn_bytes, 0);
    assert_eq!(frames(&wal), payloads());
    assert_eq!(wal.reader().read(Position::new(65)).unwrap(), payloads()[4]);
}

#[test]
fn cut_log_with_a_torn_tail_of_format_1_opens() {
    let (_copy, wal, torn_bytes) = opened("cut-and-torn");
    assert_eq!(torn_bytes, 11);
    assert_eq!(wal.first(), Position::new(173));
    assert_eq!(frames(&wal), payloads()[5..8]);
}

#[test]
fn todays_writer_still_writes_format_1() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = Wal::open(dir.path(), &config()).unwrap();
    for payload in payloads() {
        wal.append(&[&payload]).unwrap();
    }
    wal.flush().unwrap();
    assert_eq!(files(dir.path()), files(&fixture("whole")));
}
