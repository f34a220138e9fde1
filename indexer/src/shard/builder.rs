//! The builder: one thread a shard that folds, stores checkpoints and compacts.
//!
//! Folding comes first: every search scans what is not folded, and a full memtable holds up
//! ingest. It is the only thread that adds to the growing graph, and it does not while that graph
//! is being stored.

use std::sync::Arc;

use metrics::{counter, gauge, histogram};
use shoal_runtime::{chain, clock::Stopwatch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    index::IndexError,
    metrics as names,
    segment::{Segment, SegmentId},
    shard::{
        Shared,
        checkpoint::{Done, Job, Storer},
        compact,
        cpu::CpuMeter,
        lock,
    },
    view::View,
};

/// Rows of a segment folded before the builder looks at anything else.
const FOLD_ROWS: u32 = 64;
/// Rows folded for each row that a compaction moves: ingest at full speed holds neither up.
const FOLD_ROWS_COMPACTING: u32 = 2;
/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// Yes.
    On,
    /// The shard is closing.
    Stop,
}

/// Runs until cancelled.
///
/// # Errors
/// [`IndexError`] if a graph refuses a row: the shard cannot go on then.
pub fn run(
    shared: &Arc<Shared>,
    mut storer: Storer,
    next_segment: impl Fn() -> SegmentId,
    cancel: &CancellationToken,
) -> Result<(), IndexError> {
    let mut cpu = CpuMeter::start(shared.spec.label(), "builder");
    loop {
        cpu.tick();
        if fold(shared, FOLD_ROWS)? {
            if cancel.is_cancelled() && shared.work().checkpoint.is_none() {
                return Ok(());
            }
            continue;
        }
        let job = shared.work().checkpoint.take();
        if let Some(job) = job {
            let stored = store(shared, &mut storer, &job);
            *lock(&shared.fold_limit) = None;
            shared.work().checkpoint_done = Some(Done {
                position: job.position,
                stored,
            });
            continue;
        }
        if cancel.is_cancelled() {
            return Ok(());
        }
        if !compact_once(shared, &next_segment, cancel)? {
            shared.wait_for_work();
        }
    }
}

/// Stores one checkpoint; false if it failed, which the writer tries again later.
fn store(shared: &Shared, storer: &mut Storer, job: &Job) -> bool {
    let watch = Stopwatch::start();
    match storer.store(shared, job) {
        Ok(()) => {
            histogram!(names::CHECKPOINT_SECONDS).record(watch.seconds());
            info!(
                shard = %shared.spec.label(),
                checkpoint = job.number,
                points = job.points,
                seconds = watch.seconds(),
                "checkpoint stored"
            );
            true
        }
        Err(error) => {
            warn!(
                shard = %shared.spec.label(),
                checkpoint = job.number,
                error = %chain(&error),
                "checkpoint failed, it is tried again"
            );
            false
        }
    }
}

/// Folds some rows; false if there are none that may be folded now.
fn fold(shared: &Shared, most: u32) -> Result<bool, IndexError> {
    let view = shared.view.load_full();
    let mut folded_any = false;
    for segment in &view.segments {
        let folded = fold_segment(shared, &view, segment, most)?;
        if folded > 0 {
            folded_any = true;
            counter!(names::ROWS_FOLDED_TOTAL, "shard" => shared.spec.label())
                .increment(u64::from(folded));
            drop_folded_chunks(shared);
            shared.room.notify_all();
        }
    }
    Ok(folded_any)
}

fn fold_segment(
    shared: &Shared,
    view: &View,
    segment: &Segment,
    most: u32,
) -> Result<u32, IndexError> {
    let start = segment.folded();
    // Read before the limit: a checkpoint that begins in between limits to no fewer rows.
    let rows = segment.len();
    let limit = match *lock(&shared.fold_limit) {
        Some((limited, limit)) if limited == segment.id => limit,
        _ => u32::MAX,
    };
    let end = rows.min(limit).min(start.saturating_add(most));
    let mut row = start;
    while row < end {
        let vector = view
            .chunks
            .iter()
            .filter(|chunk| chunk.segment == segment.id)
            .find_map(|chunk| chunk.vector(row));
        // The writer pushes a row before its vector, and a chunk newer than this view.
        let Some(vector) = vector else { break };
        segment.graph.add(row, vector.as_slice())?;
        row += 1;
        segment.set_folded(row);
    }
    Ok(row - start)
}

/// Takes chunks out of the view whose rows are all in the graph.
fn drop_folded_chunks(shared: &Shared) {
    let is_done = |view: &View, chunk: &crate::segment::Chunk| {
        let growing = view.growing().id == chunk.segment;
        let folded = view.segment(chunk.segment).map_or(u32::MAX, |s| s.folded());
        chunk.end_row() <= folded && (chunk.is_full() || !growing)
    };
    let view = shared.view.load();
    if !view.chunks.iter().any(|chunk| is_done(&view, chunk)) {
        return;
    }
    shared.change_view(|view| View {
        segments: view.segments.clone(),
        chunks: view
            .chunks
            .iter()
            .filter(|chunk| !is_done(view, chunk))
            .cloned()
            .collect(),
        complete_from: view.complete_from,
    });
}

/// Compacts once if it is worth it and nothing else of the kind is under way.
fn compact_once(
    shared: &Arc<Shared>,
    next_segment: &impl Fn() -> SegmentId,
    cancel: &CancellationToken,
) -> Result<bool, IndexError> {
    let view = shared.view.load_full();
    if compact::is_worn(&shared.spec.engine, view.growing()) {
        shared.work().seal_wanted = true;
    }
    let inputs = compact::choose(shared, &view);
    if inputs.is_empty() {
        return Ok(false);
    }
    {
        let mut work = shared.work();
        // Set until the writer has moved the rows of an earlier one over, or it came to nothing.
        if work.checkpoint.is_some() || work.compacting {
            return Ok(false);
        }
        work.compacting = true;
    }
    let watch = Stopwatch::start();
    let meanwhile = || {
        if cancel.is_cancelled() {
            return Ok(Go::Stop);
        }
        fold(shared, FOLD_ROWS_COMPACTING)?;
        Ok(Go::On)
    };
    let built = compact::build(shared, next_segment(), &inputs, meanwhile)?;
    let rows = {
        let mut work = shared.work();
        work.compacted = built;
        match &work.compacted {
            Some(compacted) => compacted.output.len(),
            None => {
                work.compacting = false;
                return Ok(true);
            }
        }
    };
    histogram!(names::INDEX_BUILD_SECONDS).record(watch.seconds());
    info!(
        shard = %shared.spec.label(),
        segments = inputs.len(),
        rows,
        seconds = watch.seconds(),
        "segments compacted"
    );
    gauge!(names::SEGMENTS, "shard" => shared.spec.label()).set(f64::from(
        u32::try_from(view.segments.len()).unwrap_or(u32::MAX),
    ));
    Ok(true)
}
