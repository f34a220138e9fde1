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
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
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
    /// It was written down in this run, or could not be.
    is_noted: AtomicBool,
    early: OnceLock<Early>,
}

/// Since when a shard answers although it has not caught up.
#[derive(Clone, Copy, Debug)]
struct Early {
    /// By the monotonic clock.
    at: Duration,
    /// How far behind it was then.
    behind: Duration,
}

impl HeldBack {
    /// As the shard's folder has it; of a shard that begins with nothing the file is not true any more.
    ///
    /// # Errors
    /// If such a file cannot be removed: which, and the system's own.
    pub(super) fn of(folder: &Path, is_new: bool) -> Result<Self, (PathBuf, io::Error)> {
        let path = folder.join(FILE);
        let was_complete = path.exists();
        if was_complete && is_new {
            let removed = fs::remove_file(&path).and_then(|()| sync_folder(&path));
            removed.map_err(|source| (path.clone(), source))?;
        }
        let was_complete = was_complete && !is_new;
        Ok(Self {
            path,
            was_complete: AtomicBool::new(was_complete),
            is_noted: AtomicBool::new(was_complete),
            early: OnceLock::new(),
        })
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().map(File::open).transpose()?;
    folder.map_or(Ok(()), |folder| folder.sync_all())
}

impl Shared {
    /// Writes down, once it is so, that the shard holds everything there is, and something. It is tried once a run: where
    /// that fails a start costs answers, no more.
    pub(super) fn note_complete(&self) {
        let held_back = &self.held_back;
        if held_back.is_noted.load(Ordering::Acquire) || !self.lag.read().has_held_something {
            return;
        }
        held_back.is_noted.store(true, Ordering::Release);
        // What the file speaks of has to outlast a loss of power at least as long.
        if let Err(error) = self.sync() {
            warn!(shard = %self.spec.label(), error = %chain(&error), "own log is not durable");
            return;
        }
        let path = &held_back.path;
        let written = File::create(path).and_then(|file| file.sync_all());
        match written.and_then(|()| sync_folder(path)) {
            Ok(()) => held_back.was_complete.store(true, Ordering::Release),
            Err(error) => warn!(
                path = %path.display(),
                error = %chain(&error),
                "not written down that the shard was complete; if a limit is reached at its next start, it does not answer before it has caught up"
            ),
        }
    }

    /// Whether a limit keeps the shard from catching up, and it is known when it held everything before it was opened.
    pub fn is_held_back(&self) -> bool {
        self.held_back.was_complete.load(Ordering::Acquire)
            && self.stopped_by().is_some()
            && !self.lag.read().was_caught_up
            && self.next_offset() > 0
            && (1..=self.clock.now_ms()).contains(&self.heard_ms())
    }

    /// The first offset of the home topic that is not applied.
    pub fn next_offset(&self) -> u64 {
        let progress = self.progress.borrow();
        progress.next.first().map_or(0, |next| next.0)
    }

    /// From now on it is searched, although it has not caught up.
    pub fn answer_early(&self) {
        let since_ms = self.clock.now_ms().saturating_sub(self.heard_ms());
        let early = Early {
            at: self.lag.now(),
            behind: self.lag.read().behind.max(Duration::from_millis(since_ms)),
        };
        self.held_back.early.get_or_init(|| early);
    }

    /// Whether it is searched although it had not caught up then.
    pub fn answers_early(&self) -> bool {
        self.held_back.early.get().is_some()
    }

    /// Whether it is searched: it has caught up, or does not wait for that.
    pub(super) fn is_searched(&self) -> bool {
        self.answers_early() || self.lag.read().was_caught_up
    }

    /// Time since the shard last held everything the broker had; if it has not since it was opened, since then, or since
    /// before if it answers all the same.
    pub fn behind(&self) -> Duration {
        let reading = self.lag.read();
        match self.held_back.early.get() {
            Some(early) if !reading.was_caught_up => {
                early.behind + self.lag.now().saturating_sub(early.at)
            }
            _ => reading.behind,
        }
    }
}

#[cfg(test)]
#[path = "held_back_tests.rs"]
mod tests;
