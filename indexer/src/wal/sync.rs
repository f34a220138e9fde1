//! Group fsync: whoever wants frames durable while an fsync runs waits for the next one, and all share it.
//!
//! Only the active segment ever needs it, because a segment is synced before its successor takes frames. The owner
//! changes the active segment under the same lock under which a syncer takes it together with the flushed end, so a
//! sync never claims frames of a file it did not sync.
//!
//! A failed fsync is never tried again: the kernel may have dropped the pages it could not write and then report
//! success. The log is poisoned for ever; opening it anew tells what the disk holds.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use shoal_runtime::{ErrorKind, crash};

use super::{Position, Shared, Syncer, segment::Segment};

/// Why frames did not become durable.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The disk failed. This caller ran the fsync; all others hear `Poisoned`.
    #[error("cannot fsync segment `{}`", .path.display())]
    Fsync {
        /// The segment.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// An earlier write or fsync failed.
    #[error("log is poisoned by an earlier failed write or fsync")]
    Poisoned,
}

impl SyncError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Fsync { .. } | Self::Poisoned => ErrorKind::Closed,
        }
    }
}

/// The state of a log's fsyncs.
pub(super) struct Group {
    state: Mutex<State>,
    ended: Condvar,
    is_poisoned: AtomicBool,
}

struct State {
    active: Arc<Segment>,
    durable: Position,
    is_syncing: bool,
}

impl Group {
    /// A log of which everything below `durable` is on disk.
    pub(super) fn new(active: Arc<Segment>, durable: Position) -> Self {
        Self {
            state: Mutex::new(State {
                active,
                durable,
                is_syncing: false,
            }),
            ended: Condvar::new(),
            is_poisoned: AtomicBool::new(false),
        }
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.is_poisoned.load(Ordering::Acquire)
    }

    pub(super) fn poison(&self) {
        self.is_poisoned.store(true, Ordering::Release);
    }

    /// Makes `segment` the one to sync. The one before it is durable to its end.
    pub(super) fn set_active(&self, segment: Arc<Segment>) {
        let mut state = self.lock();
        debug_assert_eq!(state.durable, segment.base);
        state.active = segment;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds this lock")
    }
}

impl Shared {
    /// See [`Syncer::sync`].
    pub(super) fn sync(&self) -> Result<Position, SyncError> {
        let wanted = self.flushed();
        let mut state = self.group.lock();
        loop {
            if self.group.is_poisoned() {
                return Err(SyncError::Poisoned);
            }
            if state.durable >= wanted {
                return Ok(state.durable);
            }
            if !state.is_syncing {
                break;
            }
            state = self
                .group
                .ended
                .wait(state)
                .expect("nothing panics while it holds this lock");
        }
        state.is_syncing = true;
        let covered = self.flushed();
        let segment = Arc::clone(&state.active);
        drop(state);

        crash::point("wal_before_sync");
        let outcome = segment.file.sync();
        if outcome.is_ok() {
            crash::point("wal_synced");
        }

        let mut state = self.group.lock();
        state.is_syncing = false;
        let answer = match outcome {
            Ok(()) => {
                state.durable = covered;
                Ok(covered)
            }
            Err(source) => {
                self.group.poison();
                Err(SyncError::Fsync {
                    path: segment.path.clone(),
                    source,
                })
            }
        };
        drop(state);
        self.group.ended.notify_all();
        answer
    }
}

impl Syncer {
    /// Makes everything flushed before this call durable, and returns the position below which everything is.
    ///
    /// Blocks for an fsync, or two if one is under way; returns at once if there is nothing to do.
    ///
    /// # Errors
    /// [`SyncError::Fsync`] if the disk fails; from then on every call, and every append, answers `Poisoned`.
    pub fn sync(&self) -> Result<Position, SyncError> {
        self.shared.sync()
    }

    /// Below this everything survives the loss of power. Never goes back.
    pub fn durable(&self) -> Position {
        self.shared.group.lock().durable
    }
}

#[cfg(test)]
#[path = "sync_tests.rs"]
mod tests;
