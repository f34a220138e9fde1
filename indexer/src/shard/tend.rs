//! What the writer does between turns: take what the builder hands over, begin checkpoints.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use shoal_runtime::{ErrorKind, chain, clock::Stopwatch};
use tracing::warn;

use crate::{
    segment::{Segment, Sequence, growing::CHUNK_ROWS},
    shard::{
        checkpoint::{Job, SourceState},
        compact::{Compacted, Moving},
        lock,
        save::{Point, Save},
        writer::{WriteError, Writer},
    },
    view::View,
    wal::Position,
};

/// How long a checkpoint that failed rests.
const RETRY_AFTER: Duration = Duration::from_secs(2);

impl Writer {
    /// Does what the builder handed over: a slice a turn. True while there is more.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn tend(&mut self) -> Result<bool, WriteError> {
        let (done, compacted, sealed, seal) = {
            let mut work = self.shared.work();
            let seal = std::mem::take(&mut work.seal_wanted);
            // A second compaction waits until the rows of the first are moved over.
            let compacted = match self.moving {
                None => work.compacted.take(),
                Some(_) => None,
            };
            (
                work.checkpoint_done.take(),
                compacted,
                work.sealed.take(),
                seal,
            )
        };
        if let Some(done) = done {
            self.checkpoint_running = false;
            if done.stored {
                self.checkpoint_position = done.position;
                self.checkpoint_failed = None;
                self.cut(done.needed_from)?;
            } else {
                self.checkpoint_failed = Some(Stopwatch::start());
            }
        }
        let rows = self.shared.view.load().growing().len();
        if rows > 0 && (seal || self.is_idle(rows)) {
            self.begin_segment(self.wal.end());
        }
        if let Some(sealed) = sealed {
            self.take_sealed(&sealed);
        }
        self.maybe_save()?;
        if let Some(compacted) = compacted {
            self.start_moving(compacted);
        }
        if let Some(mut moving) = self.moving.take() {
            if moving.advance(&self.shared)? {
                self.sequence.0 += u64::from(moving.ends_others());
                moving.finish(&self.shared, self.sequence);
                let shown = &self.shared.applied;
                shown.store(self.sequence.0, Ordering::Release);
                self.checkpoint_wanted = true;
                self.shared.work().compacting = false;
            } else {
                self.moving = Some(moving);
                return Ok(true);
            }
        }
        self.let_links_go();
        Ok(false)
    }

    fn start_moving(&mut self, compacted: Compacted) {
        self.moving = Moving::start(&self.shared, compacted, self.sequence);
        if self.moving.is_none() {
            self.shared.work().compacting = false;
        }
    }

    /// Makes the moment that a copy waits for, unless rows are being moved.
    fn maybe_save(&mut self) -> Result<(), WriteError> {
        if !matches!(*lock(&self.shared.save), Save::Wanted) || self.moving.is_some() {
            return Ok(());
        }
        self.flush()?;
        // Held, so that the builder begins nothing meanwhile.
        let shared = self.shared.clone();
        let work = shared.work();
        if work.compacting {
            return Ok(());
        }
        if !shared.view.load().growing().is_empty() {
            self.begin_segment(self.wal.end());
        }
        let view = shared.view.load();
        let growing = view.growing();
        let entries = growing.as_growing().map_or(0, |rows| rows.entry_count());
        let before = view.segments.iter().map(|segment| segment.id);
        self.checkpoint_number += 1;
        let point = Point {
            number: self.checkpoint_number,
            position: self.wal.end(),
            taken_ms: shared.heard_ms(),
            sequence: self.sequence,
            sources: self.source_states(),
            digest: self.digest,
            contested: self.contested,
            points: self.points,
            segments: before.filter(|id| *id != growing.id).collect(),
            growing: (growing.id, entries),
            next_segment: self.numbers.peek(),
        };
        *lock(&shared.save) = Save::Made(Arc::new(point));
        drop(work);
        shared.work_changed.notify_all();
        Ok(())
    }

    fn source_states(&self) -> Vec<SourceState> {
        let topics = self.shared.topics.noted();
        let sources = self.shared.sources.iter().zip(topics.iter());
        let states = sources
            .zip(&self.next)
            .map(|((spec, topic), next)| SourceState {
                source: spec.source.clone(),
                region: spec.region.clone(),
                topic_id: topic.clone(),
                next: *next,
            });
        states.collect()
    }

    /// Asks for the growing segment to be sealed, if it is large enough for that to free memory.
    pub fn seal_soon(&self) {
        let view = self.shared.view.load();
        let growing = view.growing();
        if growing.len() >= CHUNK_ROWS && growing.folded() == growing.len() {
            self.shared.work().seal_wanted = true;
        }
    }

    /// Whether the growing segment has enough rows, all folded, and no new one for a while.
    fn is_idle(&self, rows: u32) -> bool {
        let engine = &self.shared.spec.engine;
        rows >= engine.idle_seal_rows
            && self.quiet.elapsed() >= engine.idle_seal_after
            && self.shared.view.load().growing().folded() == rows
    }

    /// Puts a sealed segment into the place of the growing one it was made of.
    fn take_sealed(&mut self, sealed: &Arc<Segment>) {
        let view = self.shared.view.load_full();
        if let Some(growing) = view.segment(sealed.id) {
            // The writer is the only one that ends rows, so none ends meanwhile.
            for row in 0..growing.len() {
                if let Some(at) = growing.end_of(row) {
                    sealed.end(row, at);
                }
            }
            self.take_rides(sealed, growing);
        }
        let complete_from = Sequence(self.shared.applied.load(Ordering::Acquire));
        self.shared.change_view(|view| {
            let swapped = view.segments.iter().map(|old| {
                let is_it = old.id == sealed.id;
                if is_it { sealed.clone() } else { old.clone() }
            });
            View {
                segments: swapped.collect(),
                chunks: view.chunks.clone(),
                complete_from,
            }
        });
        self.checkpoint_wanted = true;
        self.shared.work().compacting = false;
    }

    /// Lets go of the own log below a position that nothing needs any more.
    fn cut(&mut self, needed_from: Position) -> Result<(), WriteError> {
        // A record that lost against another region's may win again, and then it is read from
        // the log.
        if self.shared.sources.len() > 1 {
            return Ok(());
        }
        if let Err(error) = self.wal.cut_below(needed_from) {
            if error.kind() != ErrorKind::Retry {
                return Err(error.into());
            }
            warn!(
                shard = %self.shared.spec.label(),
                error = %chain(&error),
                "the shard's log could not be cut; it is tried again after the next checkpoint"
            );
        }
        self.shared
            .wal_bytes
            .store(self.wal.bytes_on_disk(), Ordering::Relaxed);
        Ok(())
    }

    /// Begins a checkpoint of this moment, if enough was written and none is under way.
    ///
    /// # Errors
    /// [`WriteError::Append`].
    pub fn maybe_checkpoint(&mut self, grown_bytes: u64) -> Result<bool, WriteError> {
        let grown = self.wal.end().as_u64() - self.checkpoint_position.as_u64();
        let rests = |failed: &Stopwatch| failed.elapsed() < RETRY_AFTER;
        if (grown < grown_bytes && !self.checkpoint_wanted)
            || self.checkpoint_running
            || self.moving.is_some()
            || self.checkpoint_failed.as_ref().is_some_and(rests)
        {
            return Ok(false);
        }
        self.flush()?;
        let mut work = self.shared.work();
        if work.compacting {
            return Ok(false);
        }
        let view = self.shared.view.load();
        let segments: Vec<_> = view
            .segments
            .iter()
            .map(|segment| {
                let entries = segment.as_growing().map_or(0, |rows| rows.entry_count());
                (segment.clone(), segment.len(), entries)
            })
            .collect();
        if let Some((growing, rows, _)) = segments.last() {
            *lock(&self.shared.fold_limit) = Some((growing.id, *rows));
        }
        let growing = segments
            .iter()
            .filter_map(|(segment, ..)| segment.as_growing());
        let needed_from = growing
            .map(|growing| growing.from)
            .chain([self.wal.end()])
            .min();
        self.checkpoint_number += 1;
        self.checkpoint_running = true;
        self.checkpoint_wanted = false;
        let sources = self.source_states();
        work.checkpoint = Some(Job {
            number: self.checkpoint_number,
            position: self.wal.end(),
            needed_from: needed_from.unwrap_or_default(),
            taken_ms: self.shared.heard_ms(),
            sequence: self.sequence,
            sources,
            digest: self.digest,
            contested: self.contested,
            points: self.points,
            segments,
            next_segment: self.numbers.peek(),
        });
        self.shared.catalog.freeze();
        drop(work);
        self.shared.work_changed.notify_all();
        Ok(true)
    }

    /// Whether a checkpoint is being stored.
    pub fn is_checkpointing(&self) -> bool {
        self.checkpoint_running
    }
}
