//! Records that are delivered again after newer ones of their ids, to a shard that has lost its catalog and the head of
//! its own log: what its sealed segments say has to do.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, sync::Arc, thread};

use bytesize::ByteSize;
use shoal_runtime::{clock::System, eventually};
use shoal_schemas::{
    ClusterId, Collection, Dim, Metric, Offset, Partition, Payload, Point, PointId, Vector, Version,
};
use tokio_util::sync::CancellationToken;

use super::{Applied, Writer};
use crate::{
    config::EngineConfig,
    entry::{Draft, Stamp},
    node::alone::DEADLINE,
    rule::SourceIndex,
    shard::{Progress, Shared, Spec, builder, recover, search::Ask},
    wal::Position,
};

const SOURCE: SourceIndex = SourceIndex(0);
/// Records in all: of several segments, and of several files of the own log.
const RECORDS: u16 = 300;

fn spec(folder: &Path) -> Spec {
    let dim = Dim::try_from(3).unwrap();
    let docs = Collection::new("docs".parse().unwrap(), dim, Metric::L2, 1);
    Spec::of_home(
        Arc::new(docs),
        Partition(0),
        ClusterId::from("test-cluster"),
        "local".parse().unwrap(),
        folder.to_owned(),
        EngineConfig {
            seal_rows: 64,
            wal_segment_bytes: ByteSize::kib(4),
            ..EngineConfig::default()
        },
    )
}

fn stamp(offset: u16) -> Stamp {
    Stamp {
        source: SOURCE,
        offset: Offset(offset.into()),
        version: Version::from_parts(1_700_000_000_000, offset),
    }
}

fn id(id: &str) -> PointId {
    PointId::new(id).unwrap()
}

/// Where the point of a record lies.
fn vector(offset: u16) -> Vec<f32> {
    vec![1.0, f32::from(offset), 2.0]
}

fn upsert(offset: u16, name: &str) -> Draft {
    let dim = Dim::try_from(3).unwrap();
    let point = Point {
        vector: Vector::new(&vector(offset), dim, Metric::L2).unwrap(),
        payload: Payload::default(),
        model: None,
        event_time_ms: None,
        expires_at_ms: None,
    };
    Draft::Upsert(stamp(offset), id(name), point)
}

/// The first records, which come once more in the end.
fn old() -> [Draft; 3] {
    [
        upsert(0, "deleted"),
        upsert(1, "changed"),
        upsert(2, "refused"),
    ]
}

/// Has the writer take a record.
fn deliver(writer: &mut Writer, draft: Draft) -> Applied {
    let appended = writer.append(&draft).unwrap();
    writer.flush().unwrap();
    let applied = writer.apply(appended, draft).unwrap();
    writer.publish();
    applied
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
    let mut opened = recover::open(spec.clone(), System::shared()).unwrap();
    opened.replay(|| false).unwrap();
    let storer = std::mem::take(&mut opened.storer);
    let numbers = opened.numbers.clone();
    let writer = &mut opened.writer;
    let shared = writer.shared.clone();
    let cancel = CancellationToken::new();
    thread::scope(|scope| {
        // Whatever becomes of the test.
        let _end = cancel.clone().drop_guard();
        scope.spawn(|| builder::run(&shared, storer, || numbers.take(), &cancel).unwrap());
        for draft in old() {
            assert_eq!(deliver(writer, draft), Applied::Upsert);
        }
        let deleted = deliver(writer, Draft::Delete(stamp(3), id("deleted")));
        assert_eq!(deleted, Applied::Delete);
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
    shared.sync().unwrap();
    progress(&shared)
}

#[test]
fn an_old_record_that_is_delivered_again_brings_nothing_back() {
    let folder = tempfile::tempdir().unwrap();
    let spec = spec(&folder.path().join("shard"));
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
    let tombstone = Draft::Delete(stamp(3), id("deleted"));
    assert_eq!(deliver(writer, tombstone), Applied::Stale);
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
    let nearest = Ask {
        exact: true,
        ..Ask::nearest(vector(0), usize::from(RECORDS))
    };
    let hits = shared.search(&nearest).unwrap();
    assert_eq!(hits.len(), 296);
    assert!(hits.iter().all(|hit| hit.id != "deleted"));
}
