//! A shard that a limit keeps from catching up after a start.
//!
//! While a limit is reached searches go on, and so they do when the node starts anew meanwhile. What such a shard
//! answers with is what it had when it was stopped, and how far behind it says it is goes back to when it last held
//! everything. Only one that did hold everything once answers so: a first load that was cut short has no such time. A
//! file in its folder says that it did, written once what it speaks of is durable.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use shoal_runtime::chain;
use tracing::warn;

use crate::shard::Shared;

/// The file that says it, in the shard's folder.
const FILE: &str = "was-complete";

/// Whether a shard once held everything there was, and whether it answers because of that.
#[derive(Debug)]
pub(super) struct HeldBack {
    path: PathBuf,
    was_complete: AtomicBool,
    /// The file could not be written, and that was said.
    was_told: AtomicBool,
    answers_early: AtomicBool,
}

impl HeldBack {
    /// As the shard's folder has it; of a shard that begins with nothing the file is not true any more.
    ///
    /// # Errors
    /// If such a file cannot be removed.
    pub(super) fn of(folder: &Path, is_new: bool) -> io::Result<Self> {
        let path = folder.join(FILE);
        let was_complete = path.exists();
        if was_complete && is_new {
            fs::remove_file(&path)?;
            sync_folder(&path)?;
        }
        Ok(Self {
            path,
            was_complete: AtomicBool::new(was_complete && !is_new),
            was_told: AtomicBool::new(false),
            answers_early: AtomicBool::new(false),
        })
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().map(File::open).transpose()?;
    folder.map_or(Ok(()), |folder| folder.sync_all())
}

impl Shared {
    /// Writes down, once it is so, that the shard holds everything the broker has. If that cannot be written, it is
    /// tried again; a start before that costs answers, no more.
    pub(super) fn note_complete(&self) {
        let HeldBack {
            path,
            was_complete,
            was_told,
            ..
        } = &self.held_back;
        let is_complete = || self.lag.read().was_caught_up && self.next_offset() > 0;
        if was_complete.load(Ordering::Acquire) || !is_complete() {
            return;
        }
        // What the file speaks of has to outlast a loss of power at least as long.
        if self.sync().is_err() {
            return;
        }
        let written = File::create(path).and_then(|file| file.sync_all());
        match written.and_then(|()| sync_folder(path)) {
            Ok(()) => was_complete.store(true, Ordering::Release),
            Err(error) if !was_told.swap(true, Ordering::AcqRel) => warn!(
                path = %path.display(),
                error = %chain(&error),
                "not written down that the shard was complete, it is tried again; until then it does not answer after a start before it has caught up"
            ),
            Err(_) => {}
        }
    }

    fn next_offset(&self) -> u64 {
        let progress = self.progress.borrow();
        progress.next.first().map_or(0, |next| next.0)
    }

    /// Whether a limit keeps the shard from catching up, and it is known when it held everything before it was opened.
    pub fn is_held_back(&self) -> bool {
        let is_known = || (1..=self.clock.now_ms()).contains(&self.heard_ms());
        self.held_back.was_complete.load(Ordering::Acquire)
            && self.stopped_by().is_some()
            && !self.lag.read().was_caught_up
            && is_known()
    }

    /// From now on it is searched, although it has not caught up.
    pub fn answer_early(&self) {
        self.held_back.answers_early.store(true, Ordering::Release);
    }

    /// Whether it is searched although it had not caught up then.
    pub fn answers_early(&self) -> bool {
        self.held_back.answers_early.load(Ordering::Acquire)
    }

    /// Whether it is searched for all that its lag says: it has caught up, or does not wait for that.
    pub(super) fn is_searched(&self) -> bool {
        self.lag.read().was_caught_up || self.answers_early()
    }

    /// Time since the shard last held everything the broker had; before it was opened, if it has not since and was
    /// complete then, else since it was opened.
    pub fn behind(&self) -> Duration {
        let reading = self.lag.read();
        let was_complete = self.held_back.was_complete.load(Ordering::Acquire);
        match self.heard_ms() {
            heard_ms if heard_ms > 0 && was_complete && !reading.was_caught_up => {
                let since_ms = self.clock.now_ms().saturating_sub(heard_ms);
                reading.behind.max(Duration::from_millis(since_ms))
            }
            _ => reading.behind,
        }
    }
}

#[cfg(test)]
#[path = "held_back_tests.rs"]
mod tests;
