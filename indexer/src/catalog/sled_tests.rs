//! sled on a disk that is full: the test runs its own program again where it has a small disk of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    env,
    fs::{self, File},
    io::Write as _,
    ops::Range,
    path::Path,
    process::Command,
};

use shoal_runtime::ErrorKind;
use shoal_schemas::{Offset, PointId, Version};

use super::{SPARE_BYTES, Sled, Store};
use crate::{
    catalog::{CatalogError, IdState},
    pressure,
    rule::{Latest, Says, SourceIndex},
    wal::Position,
};

/// The small disk; unset in the process that makes it.
const DISK_VARIABLE: &str = "SHOAL_TEST_SMALL_DISK";

fn changes(numbers: Range<u64>) -> HashMap<PointId, IdState> {
    let scattered = numbers.map(|number| number * 7919 % 1_000_003);
    let all = scattered.map(|number| {
        let latest = Latest {
            source: SourceIndex(0),
            offset: Offset(number),
            version: Version::from_raw(number),
            says: Says::Live(Position::new(number)),
        };
        let state = IdState {
            known: vec![latest],
            place: None,
        };
        let id = PointId::new(&format!("an-id-of-some-length-{number}")).unwrap();
        (id, state)
    });
    all.collect()
}

fn holds(store: &Sled, expected: &HashMap<PointId, IdState>) {
    for (id, state) in expected {
        assert_eq!(store.read(id.as_str()).unwrap().as_ref(), Some(state));
    }
}

/// Leaves so many bytes of the disk free.
fn fill_up(disk: &Path, left_bytes: u64) {
    let mut ballast = File::create(disk.join("ballast")).unwrap();
    while pressure::free_bytes(disk).unwrap() > left_bytes {
        ballast.write_all(&[0; 4096]).unwrap();
    }
}

fn has_no_room(outcome: Result<(), CatalogError>) {
    let error = outcome.unwrap_err();
    assert!(matches!(error, CatalogError::NoRoom { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Retry);
}

fn on_a_small_disk(disk: &Path) {
    let folder = disk.join("catalog");
    let mut store = Sled::open(&folder).unwrap();
    let early = changes(0..30_000);
    store.write(&early, 1).unwrap();

    // A write that is not begun leaves everything as it was.
    fill_up(disk, SPARE_BYTES);
    has_no_room(store.write(&changes(30_000..60_000), 2));
    assert_eq!(store.checkpoint().unwrap(), Some(1));
    holds(&store, &early);

    // One that is begun and fails takes reads with it, until there is room. What sled has outdated so far it
    // writes over first, and how much that is differs from run to run: so it is written until there is none.
    store.free_bytes = |_| None;
    fill_up(disk, 1 << 20);
    let mut held = early;
    let mut checkpoint = 1;
    let late = loop {
        let begin = u64::try_from(held.len()).unwrap();
        let late = changes(begin..begin + 30_000);
        match store.write(&late, checkpoint + 1) {
            Ok(()) => {
                held.extend(late);
                checkpoint += 1;
            }
            failed => {
                has_no_room(failed);
                break late;
            }
        }
    };
    store.free_bytes = pressure::free_bytes;
    has_no_room(store.write(&late, checkpoint + 1));
    fs::remove_file(disk.join("ballast")).unwrap();
    store.write(&late, checkpoint + 1).unwrap();
    assert_eq!(store.checkpoint().unwrap(), Some(checkpoint + 1));
    holds(&store, &held);
    holds(&store, &late);
    drop(store);

    // Nor does a full disk make an open store look like a damaged one.
    let store = Sled::open(&folder).unwrap();
    assert_eq!(store.checkpoint().unwrap(), Some(checkpoint + 1));
    holds(&store, &held);
    holds(&store, &late);
}

#[test]
fn a_full_disk_costs_the_catalog_nothing_it_had() {
    if let Some(disk) = env::var_os(DISK_VARIABLE) {
        return on_a_small_disk(Path::new(&disk));
    }
    let (_, this_module) = module_path!().split_once("::").unwrap();
    let this_test = format!("{this_module}::a_full_disk_costs_the_catalog_nothing_it_had");
    let disk = tempfile::tempdir().unwrap();
    let inside = "mount -t tmpfs -o size=96m tmpfs \"$1\" || exit 77; shift; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", inside])
        .arg("sh")
        .arg(disk.path())
        .arg(env::current_exe().unwrap())
        .args(["--exact", &this_test])
        .env(DISK_VARIABLE, disk.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) || errors.contains("unshare failed") {
        assert!(
            env::var_os("SHOAL_TEST_WITHOUT_MOUNTS").is_some(),
            "this machine lets no test mount a disk: {errors}\n\
             run it as root, or set SHOAL_TEST_WITHOUT_MOUNTS=1 to go without the tests of a full disk"
        );
        return;
    }
    assert!(output.status.success(), "{told}\n{errors}");
    assert!(told.contains("1 passed"), "{told}");
}
