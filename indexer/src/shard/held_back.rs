//! A shard that a limit keeps from catching up after a start.
//!
//! While a limit is reached searches go on, and so they do when the node starts anew meanwhile. What such a shard
//! answers with is what it had when it was stopped, and how far behind it says it is goes back to when it last held
//! everything. Only one that did hold everything once answers so: a first load that was cut short has no such time. A
//! file in its folder says that it did.

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

/// Whether a shard once held everything there was.
#[derive(Debug)]
pub(super) struct Complete {
    path: PathBuf,
    was_complete: AtomicBool,
}

impl Complete {
    /// As the shard's folder has it; of a shard that begins with nothing the file says nothing.
    pub(super) fn of(folder: &Path, is_new: bool) -> Self {
        let path = folder.join(FILE);
        Self {
            was_complete: AtomicBool::new(!is_new && path.exists()),
            path,
        }
    }

    /// Notes that it holds everything. A file that cannot be written costs a later start its answers, no more.
    fn note(&self) {
        if self.was_complete.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = written(&self.path) {
            warn!(
                path = %self.path.display(),
                error = %chain(&error),
                "not written down that the shard was complete; after a start it answers once it has caught up"
            );
        }
    }
}

fn written(path: &Path) -> io::Result<()> {
    File::create(path)?.sync_all()?;
    let folder = path.parent().map(fs::File::open).transpose()?;
    folder.map_or(Ok(()), |folder| folder.sync_all())
}

impl Shared {
    /// Notes, once it is so, that the shard holds everything the broker has.
    pub(super) fn note_complete(&self) {
        if !self.complete.was_complete.load(Ordering::Acquire) && self.lag.read().was_caught_up {
            self.complete.note();
        }
    }

    /// Whether a limit keeps the shard from catching up, and it held everything before it was opened.
    pub fn is_held_back(&self) -> bool {
        self.complete.was_complete.load(Ordering::Acquire) && self.stopped_by().is_some()
    }

    /// Time since the shard last held everything the broker had, before it was opened if not since; since it was opened if
    /// it never did, or nobody knows when.
    pub fn behind(&self) -> Duration {
        let reading = self.lag.read();
        if reading.was_caught_up || !self.complete.was_complete.load(Ordering::Acquire) {
            return reading.behind;
        }
        match self.heard_ms() {
            0 => reading.behind,
            heard_ms => {
                let since_ms = self.clock.now_ms().saturating_sub(heard_ms);
                reading.behind.max(Duration::from_millis(since_ms))
            }
        }
    }
}
