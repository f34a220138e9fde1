//! Records that are delivered again after newer ones of their ids, to a shard that has lost its catalog and the head of
//! its own log: what its sealed segments say has to do.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, sync::Arc};

use bytesize::ByteSize;
use shoal_runtime::{clock::System, eventually};
use shoal_schemas::Offset;

use super::Applied;
use crate::{
    config::EngineConfig,
    entry::Draft,
    node::alone::DEADLINE,
    shard::{
        Progress, Shared, Spec,
        by_hand::{self, SOURCE, delete, deliver, id, stamp, vector},
        recover,
    },
    wal::Position,
};

/// Records in all: of several segments, and of several files of the own log.
const RECORDS: u16 = 300;

fn upsert(offset: u16, name: &str) -> Draft {
    by_hand::upsert(offset, name, offset, None)
}

/// The first records, which come once more in the end.
fn old() -> [Draft; 3] {
    [
        upsert(0, "deleted"),
        upsert(1, "changed"),
        upsert(2, "refused"),
    ]
}

fn progress(shared: &Shared) -> Progress {
    let progress = Arc::clone(&shared.progress().borrow());
    (*progress).clone()
}

/// Whether every segment but the growing one is sealed.
fn is_sealed(shared: &Shared) -> bool {
    let view = shared.view.load();
    let (_, others) = view.segments.split_last().unwrap();
    !others.is_empty() && others.iter().all(|one| one.as_sealed().is_some())
}

/// Applies all records, until they lie in sealed segments and the head of the own log is cut away.
fn fill(spec: &Spec) -> Progress {
    let opened = by_hand::open(spec, System::shared(), |writer| {
        let shared = writer.shared.clone();
        for draft in old() {
            assert_eq!(deliver(writer, draft), Applied::Upsert);
        }
        assert_eq!(deliver(writer, delete(3, "deleted")), Applied::Delete);
        assert_eq!(deliver(writer, upsert(4, "changed")), Applied::Upsert);
        let refused = deliver(writer, Draft::Contest(stamp(5), id("refused")));
        assert_eq!(refused, Applied::Contested);
        for offset in 6..RECORDS {
            deliver(writer, upsert(offset, &format!("id-{offset}")));
        }
        writer
            .append_progress(SOURCE, Offset(RECORDS.into()))
            .unwrap();
        writer.flush().unwrap();
        writer.publish();
        eventually(DEADLINE, "segments are sealed and the log is cut", || {
            writer.tend().unwrap();
            writer.maybe_checkpoint(u64::MAX).unwrap();
            let is_cut = shared.log.first() > Position::START;
            (is_sealed(&shared) && is_cut && !writer.is_checkpointing()).then_some(())
        });
    });
    let shared = &opened.writer.shared;
    shared.sync().unwrap();
    progress(shared)
}

#[test]
fn an_old_record_that_is_delivered_again_brings_nothing_back() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineConfig {
        seal_rows: 64,
        wal_segment_bytes: ByteSize::kib(4),
        ..EngineConfig::default()
    };
    let spec = by_hand::spec(&folder.path().join("shard"), engine);
    let before = fill(&spec);
    assert_eq!((before.points, before.contested), (296, 1));

    fs::remove_dir_all(spec.catalog_folder()).unwrap();
    let mut opened = recover::open(spec, System::shared()).unwrap();
    opened.replay(|| false).unwrap();
    let writer = &mut opened.writer;
    let shared = writer.shared.clone();
    assert_eq!(progress(&shared), before);
    // No frame of these records is there any more, nor what was known of their ids.
    assert!(shared.log.first() > Position::START);
    for draft in old() {
        let name = draft.id().clone();
        assert_eq!(deliver(writer, draft), Applied::Stale, "{name}");
    }
    assert_eq!(deliver(writer, delete(3, "deleted")), Applied::Stale);
    assert_eq!(progress(&shared), before, "the digest, for one");

    let names = ["deleted", "changed", "refused"].map(str::to_owned);
    let served = shared.points(&names, true).unwrap().into_iter();
    let served = served.filter_map(|one| one.point);
    let served: Vec<_> = served.map(|point| (point.id, point.vector)).collect();
    let expected = [("changed", 4), ("refused", 2)];
    assert_eq!(
        served,
        expected.map(|(name, offset)| (name.to_owned(), vector(offset)))
    );
    let hits = by_hand::served(&shared);
    assert_eq!(hits.len(), 296);
    assert!(!hits.contains(&"deleted".to_owned()));
}
