//! When a shard's folder says that it once held everything.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use shoal_runtime::clock::System;
use shoal_schemas::Offset;

use crate::{
    config::EngineConfig,
    shard::by_hand::{self, SOURCE, deliver, upsert},
};

#[test]
fn only_a_shard_that_has_read_something_was_complete_and_one_that_lost_all_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let spec = by_hand::spec(&folder.path().join("shard"), EngineConfig::default());
    let said = spec.folder.join("was-complete");
    by_hand::open(&spec, System::shared(), |writer| {
        let shared = writer.shared.clone();
        shared.lag.heard(0, shared.lag.now(), Offset(0));
        assert!(shared.lag.read().was_caught_up);
        // It held all there was when there was nothing: whatever came since it lacks.
        shared.note_complete();
        assert!(!said.exists());
        deliver(writer, upsert(0, "a", 1, None));
        writer.append_progress(SOURCE, Offset(1)).unwrap();
        writer.flush().unwrap();
        writer.publish();
        shared.note_complete();
        assert!(!said.exists(), "nobody has said that this is all");
        shared.lag.heard(0, shared.lag.now(), Offset(1));
        shared.note_complete();
        assert!(said.exists());
    });
    let again = by_hand::open(&spec, System::shared(), |_| {});
    assert!(said.exists() && !again.writer.shared.is_searched());
    drop(again);
    // Somebody has made room.
    for entry in fs::read_dir(&spec.folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        }
    }
    by_hand::open(&spec, System::shared(), |_| assert!(!said.exists()));
}
