//! What the writer does between turns: take what the builder hands over, begin checkpoints.

use std::time::Duration;

use shoal_runtime::clock::Stopwatch;

use crate::shard::{
    checkpoint::{Job, SourceState},
    compact::{Compacted, Moving},
    lock,
    writer::{WriteError, Writer},
};

/// How long a checkpoint that failed rests.
const RETRY_AFTER: Duration = Duration::from_secs(2);

impl Writer {
    /// Does what the builder handed over: a slice a turn. True while there is more.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn tend(&mut self) -> Result<bool, WriteError> {
        let (done, compacted, seal) = {
            let mut work = self.shared.work();
            let seal = std::mem::take(&mut work.seal_wanted);
            // A second compaction waits until the rows of the first are moved over.
            let compacted = match self.moving {
                None => work.compacted.take(),
                Some(_) => None,
            };
            (work.checkpoint_done.take(), compacted, seal)
        };
        if let Some(done) = done {
            self.checkpoint_running = false;
            if done.stored {
                self.checkpoint_position = done.position;
                self.checkpoint_failed = None;
            } else {
                self.checkpoint_failed = Some(Stopwatch::start());
            }
        }
        if seal && !self.shared.view.load().growing().is_empty() {
            self.begin_segment()?;
        }
        if let Some(compacted) = compacted {
            self.start_moving(compacted);
        }
        if let Some(mut moving) = self.moving.take() {
            if moving.advance(&self.shared)? {
                moving.finish(&self.shared);
                self.shared.work().compacting = false;
            } else {
                self.moving = Some(moving);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn start_moving(&mut self, compacted: Compacted) {
        self.moving = Some(Moving::start(&self.shared, compacted, self.sequence));
    }

    /// Begins a checkpoint of this moment, if enough was written and none is under way.
    ///
    /// # Errors
    /// [`WriteError::Append`].
    pub fn maybe_checkpoint(&mut self, grown_bytes: u64) -> Result<bool, WriteError> {
        let grown = self.wal.end().as_u64() - self.checkpoint_position.as_u64();
        let rests = |failed: &Stopwatch| failed.elapsed() < RETRY_AFTER;
        if grown < grown_bytes
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
            .map(|segment| (segment.clone(), segment.len()))
            .collect();
        if let Some((growing, rows)) = segments.last() {
            *lock(&self.shared.fold_limit) = Some((growing.id, *rows));
        }
        self.checkpoint_number += 1;
        self.checkpoint_running = true;
        let sources = self.shared.sources.iter().zip(&self.next);
        work.checkpoint = Some(Job {
            number: self.checkpoint_number,
            position: self.wal.end(),
            taken_ms: self.shared.heard_ms(),
            sequence: self.sequence,
            sources: sources
                .map(|(spec, next)| SourceState {
                    source: spec.source.clone(),
                    region: spec.region.clone(),
                    next: *next,
                })
                .collect(),
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
