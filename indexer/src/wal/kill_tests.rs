//! The process itself is killed at the log's crash points: the test runs its own program again as the victim.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
};

use shoal_runtime::crash;

use super::{Config, Wal};

/// Where the victim keeps its log; unset in every other process.
const DIR_VARIABLE: &str = "SHOAL_TEST_WAL_DIR";
const SIGKILL: i32 = 9;

/// Appends, flushes and syncs one frame a round until it is killed.
fn work(dir: &Path) {
    let (mut wal, _) = Wal::open(dir, &Config::default()).unwrap();
    let syncer = wal.syncer();
    for number in 0..100_u32 {
        wal.append(&[&number.to_le_bytes().repeat(400)]).unwrap();
        wal.flush().unwrap();
        syncer.sync().unwrap();
    }
}

#[test]
fn killed_process_loses_nothing_flushed() {
    if let Some(dir) = env::var_os(DIR_VARIABLE) {
        return work(Path::new(&dir));
    }
    let (_, this_module) = module_path!().split_once("::").unwrap();
    let this_test = format!("{this_module}::killed_process_loses_nothing_flushed");
    for (point, frames) in [
        ("wal_written", 5),
        ("wal_before_sync", 5),
        ("wal_synced", 5),
    ] {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("log");
        let status = Command::new(env::current_exe().unwrap())
            .args(["--exact", &this_test])
            .env(DIR_VARIABLE, &dir)
            .env(crash::VARIABLE, format!("{point}:5"))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(SIGKILL), "{point}: {status}");

        let (wal, opened) = Wal::open(&dir, &Config::default()).unwrap();
        assert_eq!(opened.torn_bytes, 0, "{point}");
        let found = wal.reader().iterate(opened.first, opened.end);
        let numbers: Vec<_> = found.map(|frame| frame.unwrap().1).collect();
        let expected: Vec<_> = (0..frames)
            .map(|number: u32| number.to_le_bytes().repeat(400))
            .collect();
        assert!(numbers == expected, "{point}: {} frames", numbers.len());
    }
}
