//! The builder: one thread a shard that folds, stores checkpoints and compacts.
//!
//! Folding comes first: every search scans what is not folded, and a full memtable holds up
//! ingest. It is the only thread that adds to the growing graph, and it does not while that graph
//! is being stored.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use metrics::{counter, histogram};
use shoal_runtime::{
    ErrorKind, chain,
    clock::Stopwatch,
    priority::{Breath, give_way, giving_way},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    dlq, metrics as names,
    segment::{
        PointError, Segment, SegmentId,
        growing::{Chunk, Growing},
        seal::SealError,
    },
    shard::{
        Shared, behind,
        checkpoint::{Done, Job, Storer},
        compact,
        cpu::CpuMeter,
        lock,
        mending::{Mending, vector_of},
    },
    view::View,
};

/// How many steps building gives way to everything else, as `nice` counts.
const STEPS: i32 = 5;
/// How far the builder's breaths are from each other at least: what a search has to wait for it in
/// most cases where they share a processor.
const BREATH: Duration = Duration::from_micros(500);
/// Rows of a segment folded before the builder looks at anything else, and for which it is woken.
pub(super) const FOLD_ROWS: u32 = 64;
/// Rows folded for each row that a compaction inserts: ingest at full speed holds neither up.
const FOLD_ROWS_COMPACTING: u32 = 2;
/// How long a segment that could not be written rests.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Why the builder, and with it the shard, cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A segment cannot be made.
    #[error("cannot make a segment")]
    Seal(#[from] SealError),
}

/// Runs until cancelled.
///
/// # Errors
/// [`BuildError`]: the shard cannot go on then.
pub fn run(
    shared: &Arc<Shared>,
    storer: Storer,
    next_segment: impl Fn() -> SegmentId + Sync,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    // Searches come first where processors are short.
    if let Err(error) = give_way(STEPS) {
        debug!(%error, "the builder runs at the same priority as searches");
    }
    let mut rounds = Rounds {
        shared,
        storer,
        unchecked: shared.view.load().segments.clone(),
        rest: None,
        breath: Breath::every(BREATH),
        cancel,
    };
    loop {
        if !shared.is_far_behind.load(Ordering::Acquire) {
            if rounds.run(&next_segment, false)? {
                return Ok(());
            }
            continue;
        }
        let name = behind::thread_name(&shared.spec.label());
        let far = || rounds.run(&next_segment, true);
        let ended = match giving_way(&name, behind::STEPS - STEPS, far) {
            Ok(ended) => ended?,
            Err(error) => {
                warn!(%error, name, "no thread for what gives way, it is built as ever");
                rounds.run(&next_segment, true)?
            }
        };
        if ended {
            return Ok(());
        }
    }
}

/// The builder's work, as it goes from one thread to the other.
struct Rounds<'a> {
    shared: &'a Arc<Shared>,
    storer: Storer,
    /// What an earlier process wrote; what this one writes it has just had in its hands.
    unchecked: Vec<Arc<Segment>>,
    rest: Option<Rest>,
    breath: Breath,
    cancel: &'a CancellationToken,
}

impl Rounds<'_> {
    /// Builds while the shard is far behind, or while it is not; true once cancelled.
    fn run(
        &mut self,
        next_segment: &impl Fn() -> SegmentId,
        far_behind: bool,
    ) -> Result<bool, BuildError> {
        let (shared, cancel) = (self.shared, self.cancel);
        let mut cpu = CpuMeter::start(shared.spec.label(), "builder");
        while shared.is_far_behind.load(Ordering::Acquire) == far_behind {
            cpu.tick();
            if fold(shared, FOLD_ROWS, &mut self.breath) {
                if cancel.is_cancelled() && shared.work().checkpoint.is_none() {
                    return Ok(true);
                }
                continue;
            }
            let job = shared.work().checkpoint.take();
            if let Some(job) = job {
                let stored = store(shared, &mut self.storer, &job);
                *lock(&shared.fold_limit) = None;
                shared.work().checkpoint_done = Some(Done {
                    position: job.position,
                    needed_from: job.needed_from,
                    stored,
                });
                continue;
            }
            if cancel.is_cancelled() {
                return Ok(true);
            }
            match make_segment(shared, next_segment, cancel) {
                Ok(true) => {}
                Ok(false) => match self.unchecked.pop() {
                    Some(segment) => check(shared, &segment),
                    None => {
                        shared.wait_for_work();
                        self.mend();
                    }
                },
                // A full disk for one: searches and ingest go on without the new segment.
                Err(BuildError::Seal(error)) if error.kind() == ErrorKind::Retry => {
                    warn!(
                        shard = %shared.spec.label(),
                        error = %chain(&error),
                        "segment could not be written, it is tried again"
                    );
                    shared.work().compacting = false;
                    dlq::wait(cancel, RETRY_AFTER);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// A growing segment that gets no rows.
struct Rest {
    segment: SegmentId,
    rows: u32,
    since: Stopwatch,
    is_mended: bool,
}

impl Rounds<'_> {
    /// Mends the growing graph once nothing was added for as long as makes a larger one be sealed: too
    /// small for that, it may stay as it is for long.
    fn mend(&mut self) {
        let view = self.shared.view.load_full();
        let segment = view.growing();
        let Some(growing) = segment.as_growing() else {
            return;
        };
        let (id, rows) = (segment.id, segment.len());
        let rest = match &mut self.rest {
            Some(rest) if (rest.segment, rest.rows) == (id, rows) => rest,
            other => other.insert(Rest {
                segment: id,
                rows,
                since: Stopwatch::start(),
                is_mended: false,
            }),
        };
        let is_at_rest = rest.since.elapsed() >= self.shared.spec.engine.idle_seal_after;
        if rows == 0 || growing.folded() < rows || rest.is_mended || !is_at_rest {
            return;
        }
        let mended = growing.graph.mend(&mut Mending {
            goes_on: || {
                self.breath.take();
                Ok::<_, PointError>(segment.len() == rows && !self.cancel.is_cancelled())
            },
            // The code of one that cannot be read has to do.
            vector: |row: u32, out: &mut Vec<f32>| {
                Ok(vector_of::<PointError>(self.shared, segment, row, out).unwrap_or(false))
            },
        });
        rest.is_mended = mended.is_ok_and(|is_mended| is_mended);
    }
}

/// Reads a sealed segment's files whole, beside everything else: opening looked at lengths only.
fn check(shared: &Shared, segment: &Segment) {
    // One that was compacted away since it was opened has no files any more, by this same thread.
    let view = shared.view.load();
    let kept = view.segment(segment.id);
    let Some(sealed) = kept.and_then(|segment| segment.as_sealed()) else {
        return;
    };
    if let Err(error) = sealed.manifest.verify(sealed.folder()) {
        let why = chain(&error).to_string();
        *lock(&shared.unfit) = Some(why);
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
fn fold(shared: &Shared, most: u32, breath: &mut Breath) -> bool {
    let view = shared.view.load_full();
    let mut folded_any = false;
    for segment in &view.segments {
        let Some(growing) = segment.as_growing() else {
            continue;
        };
        let folded = fold_segment(shared, &view, segment, growing, most, breath);
        // Small parts of the payload index make every filter look at each of them.
        if folded > 0
            && let Err(error) = growing.fields.merge()
        {
            warn!(shard = %shared.spec.label(), %error, "payload index is not merged");
        }
        if folded > 0 {
            folded_any = true;
            counter!(names::ROWS_FOLDED_TOTAL, "shard" => shared.spec.label())
                .increment(u64::from(folded));
            drop_folded_chunks(shared);
            shared.room.notify_all();
        }
    }
    folded_any
}

fn fold_segment(
    shared: &Shared,
    view: &View,
    segment: &Segment,
    growing: &Growing,
    most: u32,
    breath: &mut Breath,
) -> u32 {
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
        let held = view
            .chunks
            .iter()
            .filter(|chunk| chunk.segment == segment.id)
            .find_map(|chunk| chunk.row(row));
        // The writer pushes a row before its vector, and a chunk newer than this view.
        let Some(held) = held else { break };
        if let Some(vector) = held {
            growing.graph.add(row, vector.as_slice());
        }
        row += 1;
        growing.set_folded(row);
        breath.take();
    }
    row - start
}

/// Takes chunks out of the view whose rows are all in the graph.
fn drop_folded_chunks(shared: &Shared) {
    let is_done = |view: &View, chunk: &Chunk| {
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

/// Seals or compacts once if it is worth it and nothing else of the kind is under way.
fn make_segment(
    shared: &Arc<Shared>,
    next_segment: &impl Fn() -> SegmentId,
    cancel: &CancellationToken,
) -> Result<bool, BuildError> {
    let view = shared.view.load_full();
    let expired_by_ms = compact::expired_by_ms(shared);
    if compact::is_worn(&shared.spec.engine, view.growing(), expired_by_ms) {
        shared.work().seal_wanted = true;
    }
    let (_, others) = view
        .segments
        .split_last()
        .expect("a view keeps a growing segment");
    let full = others.iter().find(|segment| {
        let growing = segment.as_growing();
        growing.is_some_and(|growing| growing.folded() == growing.len())
    });
    let inputs = match full {
        Some(_) => Vec::new(),
        None => compact::choose(shared, &view),
    };
    if full.is_none() && inputs.is_empty() {
        return Ok(false);
    }
    {
        let mut work = shared.work();
        // Set until the writer has taken over an earlier one, or it came to nothing.
        let changes_old = full.is_none() && shared.is_saving();
        if work.checkpoint.is_some() || work.compacting || changes_old {
            return Ok(false);
        }
        work.compacting = true;
    }
    match full {
        Some(segment) => seal(shared, segment, cancel)?,
        None => compact(shared, next_segment, &inputs, cancel)?,
    }
    shared.work_changed.notify_all();
    Ok(true)
}

fn seal(
    shared: &Arc<Shared>,
    segment: &Arc<Segment>,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let watch = Stopwatch::start();
    let sealed = compact::seal(shared, segment, meanwhile(shared, cancel))?;
    let mut work = shared.work();
    let Some(sealed) = sealed else {
        work.compacting = false;
        return Ok(());
    };
    info!(
        shard = %shared.spec.label(),
        segment = sealed.id.0,
        rows = sealed.len(),
        seconds = watch.seconds(),
        "segment sealed"
    );
    work.sealed = Some(sealed);
    Ok(())
}

fn compact(
    shared: &Arc<Shared>,
    next_segment: &impl Fn() -> SegmentId,
    inputs: &[Arc<Segment>],
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let watch = Stopwatch::start();
    // As they are now that nothing takes their place meanwhile.
    let inputs = inputs.iter().filter_map(|chosen| shared.segment(chosen.id));
    let inputs: Vec<_> = inputs.collect();
    let built = compact::build(shared, next_segment, &inputs, meanwhile(shared, cancel))?;
    let mut work = shared.work();
    let Some(compacted) = built else {
        work.compacting = false;
        return Ok(());
    };
    histogram!(names::INDEX_BUILD_SECONDS).record(watch.seconds());
    info!(
        shard = %shared.spec.label(),
        segments = inputs.len(),
        rows = compacted.origins.len(),
        seconds = watch.seconds(),
        "segments compacted"
    );
    work.compacted = Some(compacted);
    Ok(())
}

/// What is done between rows of a new segment: some of the memtable is folded, and the shard's end
/// is looked for.
fn meanwhile<'a>(
    shared: &'a Shared,
    cancel: &'a CancellationToken,
) -> impl FnMut() -> Result<bool, SealError> + 'a {
    // What was begun at low priority is begun anew once the shard is searched and has to be fresh.
    let far_behind = shared.is_far_behind.load(Ordering::Acquire);
    let mut breath = Breath::every(BREATH);
    move || {
        let has_caught_up = far_behind && !shared.is_far_behind.load(Ordering::Acquire);
        if cancel.is_cancelled() || has_caught_up {
            return Ok(false);
        }
        fold(shared, FOLD_ROWS_COMPACTING, &mut breath);
        breath.take();
        Ok(true)
    }
}

#[cfg(test)]
#[path = "builder_tests.rs"]
mod tests;
