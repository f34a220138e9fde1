//! A shard that a test writes to by hand, record after record, and whose segments it merges itself.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::Path, sync::Arc, thread};

use shoal_runtime::{clock::Clock, eventually};
use shoal_schemas::{
    ClusterId, Collection, Dim, Metric, Offset, Partition, Payload, Point, PointId, Vector, Version,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::EngineConfig,
    entry::{Draft, Stamp},
    node::alone::DEADLINE,
    rule::SourceIndex,
    segment::Segment,
    shard::{
        Shared, Spec, builder, compact,
        recover::{self, Opened},
        search::Ask,
        writer::{Applied, Writer},
    },
};

/// Where all records come from.
pub(super) const SOURCE: SourceIndex = SourceIndex(0);
/// When all of them were written.
pub(super) const WRITTEN_MS: u64 = 1_700_000_000_000;

/// A collection of three components.
pub(super) fn spec(folder: &Path, engine: EngineConfig) -> Spec {
    let dim = Dim::try_from(3).unwrap();
    let docs = Collection::new("docs".parse().unwrap(), dim, Metric::L2, 1);
    Spec::of_home(
        Arc::new(docs),
        Partition(0),
        ClusterId::from("test-cluster"),
        "local".parse().unwrap(),
        folder.to_owned(),
        engine,
    )
}

/// What a record of that offset says of itself.
pub(super) fn stamp(offset: u16) -> Stamp {
    Stamp {
        source: SOURCE,
        offset: Offset(offset.into()),
        version: Version::from_parts(WRITTEN_MS, offset),
    }
}

/// An id.
pub(super) fn id(id: &str) -> PointId {
    PointId::new(id).unwrap()
}

/// Where a point lies that is told by a number.
pub(super) fn vector(number: u16) -> Vec<f32> {
    vec![1.0, f32::from(number), 2.0]
}

/// Record `offset`, of a point that lies where `number` says.
pub(super) fn upsert(offset: u16, name: &str, number: u16, until_ms: Option<u64>) -> Draft {
    let dim = Dim::try_from(3).unwrap();
    let point = Point {
        vector: Vector::new(&vector(number), dim, Metric::L2).unwrap(),
        payload: Payload::default(),
        model: None,
        event_time_ms: None,
        expires_at_ms: until_ms.map(|until_ms| until_ms.try_into().unwrap()),
    };
    Draft::Upsert(stamp(offset), id(name), point)
}

/// Record `offset`, of a point that is deleted.
pub(super) fn delete(offset: u16, name: &str) -> Draft {
    Draft::Delete(stamp(offset), id(name))
}

/// Has the writer take a record.
pub(super) fn deliver(writer: &mut Writer, draft: Draft) -> Applied {
    let appended = writer.append(&draft).unwrap();
    writer.flush().unwrap();
    let applied = writer.apply(appended, draft).unwrap();
    writer.publish();
    applied
}

/// Opens a shard, and has `then` do something while there is a builder.
pub(super) fn open(spec: &Spec, clock: Arc<dyn Clock>, then: impl FnOnce(&mut Writer)) -> Opened {
    let mut opened = recover::open(spec.clone(), clock).unwrap();
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
        then(writer);
    });
    opened
}

/// Waits until a shard's first segment is sealed.
pub(super) fn first_is_sealed(writer: &mut Writer) {
    let shared = writer.shared.clone();
    eventually(DEADLINE, "the first segment is sealed", || {
        writer.tend().unwrap();
        first(&shared).as_sealed().map(drop)
    });
}

/// A shard's first segment.
pub(super) fn first(shared: &Shared) -> Arc<Segment> {
    shared.view.load().segments.first().unwrap().clone()
}

/// Compacts segments, and hands what comes of it to the writer.
pub(super) fn compact(opened: &Opened, inputs: &[Arc<Segment>]) {
    let shared = &opened.writer.shared;
    let built = compact::build(shared, || opened.numbers.take(), inputs, || Ok(true));
    let mut work = shared.work();
    work.compacting = true;
    work.compacted = built.unwrap();
}

/// The ids of all that is served, the nearest to the point of number 0 first.
pub(super) fn served(shared: &Shared) -> Vec<String> {
    let all = Ask {
        exact: true,
        ..Ask::nearest(vector(0), 1 << 16)
    };
    let hits = shared.search(&all).unwrap();
    hits.into_iter().map(|hit| hit.id).collect()
}

/// The id of the point that is nearest to where a number says.
pub(super) fn nearest(shared: &Shared, number: u16) -> String {
    let hits = shared.search(&Ask::nearest(vector(number), 1)).unwrap();
    hits.into_iter().next().unwrap().id
}
