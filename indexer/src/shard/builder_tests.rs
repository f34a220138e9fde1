//! The look at sealed files beside everything else.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, sync::Arc};

use bytesize::ByteSize;
use shoal_runtime::eventually;

use super::check;
use crate::{
    config::{EngineConfig, Ownership},
    node::alone::{Alone, DEADLINE},
    segment::Segment,
    shard::{Shared, lock},
    view::View,
};

/// Shows a view of these segments, as a compaction does that takes some away.
fn show(shared: &Shared, keep: impl Fn(&Segment) -> bool) {
    shared.change_view(|view| {
        let kept = view.segments.iter().filter(|segment| keep(segment));
        View {
            segments: kept.cloned().collect(),
            chunks: view.chunks.clone(),
            complete_from: view.complete_from,
        }
    });
}

fn is_damaged(shared: &Shared) -> bool {
    lock(&shared.unfit).is_some()
}

#[test]
fn a_damaged_file_is_noticed_unless_its_segment_was_compacted_away_meanwhile() {
    let engine = EngineConfig {
        memtable_rows: 256,
        seal_rows: 512,
        checkpoint_bytes: ByteSize::kib(16),
        ..EngineConfig::default()
    };
    let alone = Alone::with_engine(Ownership::Static { shards: Vec::new() }, engine);
    let docs = alone.define("docs", &[]);
    for number in 0..1200 {
        alone.publish(&docs, number);
    }
    let key = alone.take(&docs);
    let held = alone.node.shard(&key).unwrap();
    eventually(DEADLINE, "a segment to be sealed", || {
        let view = held.opened()?.view.load_full();
        let mut segments = view.segments.iter();
        segments.any(|one| one.as_sealed().is_some()).then_some(())
    });
    drop(held);
    alone.node.let_go(&[key]);

    // As an opening has it, without a builder that would look by itself.
    let shared = alone.offline(&docs);
    let before = shared.view.load_full();
    let mut segments = before.segments.iter();
    let opened: Arc<Segment> = segments
        .find(|one| one.as_sealed().is_some())
        .cloned()
        .unwrap();
    check(&shared, &opened);
    assert!(!is_damaged(&shared));

    let file = opened.as_sealed().unwrap().folder().join("graph.bin");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 0x40;
    // Another file of that name: what is mapped stays as it is.
    fs::remove_file(&file).unwrap();
    fs::write(&file, bytes).unwrap();
    show(&shared, |segment| segment.id != opened.id);
    check(&shared, &opened);
    assert!(!is_damaged(&shared), "nobody reads it any more");

    shared.view.store(before.clone());
    check(&shared, &opened);
    assert!(is_damaged(&shared));
}
