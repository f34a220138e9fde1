//! Appending, flushing, rolling to the next segment, and cutting old ones away.
//!
//! Frames gather in memory and reach the file in one write, at the offset their position gives. A disk without room
//! is no damage: what was written in part is cut off again, the frames stay in memory, and the same call succeeds once
//! there is room. Any other failed write poisons the log, as the file's state is unknown. It does not decide when to
//! flush, except when its memory is full.

use std::{io, path::PathBuf, sync::Arc};

use shoal_runtime::{ErrorKind, crash};

use super::{
    Position, Reader, Syncer, Wal,
    disk::is_full,
    frame,
    segment::{CreateFailure, HEADER_BYTES, Segment},
    sync::SyncError,
    to_u64,
};

/// Encoded frames held in memory before an append flushes by itself.
const BUFFER_BYTES: usize = 256 << 10;

/// Why a payload was not appended, or appended frames not flushed.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The payload can never be stored under this configuration.
    #[error("frame is {frame_bytes} bytes, limit is {limit_bytes}")]
    FrameTooLarge {
        /// The payload and what stands around it.
        frame_bytes: u64,
        /// What is configured.
        limit_bytes: u32,
    },
    /// The disk is full. Nothing is lost: frames appended before are still held, and the call may be repeated.
    #[error("no space for segment `{}`", .path.display())]
    NoSpace {
        /// The segment.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The disk failed; the log is poisoned.
    #[error("cannot write segment `{}`", .path.display())]
    Write {
        /// The segment.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// A full segment did not become durable; the log is poisoned.
    #[error("cannot close a full segment")]
    Sync(#[source] SyncError),
    /// An earlier write or fsync failed.
    #[error("log is poisoned by an earlier failed write or fsync")]
    Poisoned,
}

impl AppendError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::FrameTooLarge { .. } => ErrorKind::Caller,
            Self::NoSpace { .. } => ErrorKind::Retry,
            Self::Write { .. } | Self::Sync(_) | Self::Poisoned => ErrorKind::Closed,
        }
    }
}

/// Why old segments were not, or not all, cut away.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// A file could not be removed. The log is as good as before.
    #[error("cannot remove segment `{}`", .path.display())]
    Remove {
        /// The segment.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Files were removed, but perhaps not durably; the log is poisoned.
    #[error("cannot fsync directory `{}`", .path.display())]
    SyncDir {
        /// The log's directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// An earlier write or fsync failed.
    #[error("log is poisoned by an earlier failed write or fsync")]
    Poisoned,
}

impl CutError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Remove { .. } => ErrorKind::Retry,
            Self::SyncDir { .. } | Self::Poisoned => ErrorKind::Closed,
        }
    }
}

impl Wal {
    /// Appends one payload, given in parts that are stored one after the other, and returns its position.
    ///
    /// It is held in memory until [`Wal::flush`], or until that memory (256 KiB) is full. The first append after a
    /// full segment blocks for an fsync.
    ///
    /// # Errors
    /// Nothing of this payload is stored then. [`AppendError::NoSpace`] may be retried.
    pub fn append(&mut self, payload_parts: &[&[u8]]) -> Result<Position, AppendError> {
        if self.shared.group.is_poisoned() {
            return Err(AppendError::Poisoned);
        }
        let wide_bytes = frame::size(payload_parts);
        let frame_bytes = u32::try_from(wide_bytes)
            .ok()
            .filter(|frame_bytes| *frame_bytes <= self.config.max_frame_bytes)
            .ok_or(AppendError::FrameTooLarge {
                frame_bytes: wide_bytes,
                limit_bytes: self.config.max_frame_bytes,
            })?;
        let active_bytes = self.active.offset(self.end);
        let has_frames = active_bytes > HEADER_BYTES;
        if has_frames && active_bytes + wide_bytes > self.config.segment_bytes {
            self.roll()?;
        } else if to_u64(self.buffer.len()) + wide_bytes > to_u64(BUFFER_BYTES) {
            self.flush()?;
        }
        let at = self.end;
        frame::encode(at, frame_bytes, payload_parts, &mut self.buffer);
        self.end = at.plus(wide_bytes);
        Ok(at)
    }

    /// Hands all appended frames to the operating system: from then on readers see them, and a killed process loses
    /// none of them.
    ///
    /// # Errors
    /// [`AppendError::NoSpace`] leaves the frames in memory for the next call; any other poisons the log.
    pub fn flush(&mut self) -> Result<(), AppendError> {
        if self.shared.group.is_poisoned() {
            return Err(AppendError::Poisoned);
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        let from = self.shared.flushed();
        if let Err(source) = self.active.write(from, &self.buffer) {
            let is_retried = is_full(&source) && self.active.cut(from).is_ok();
            let path = self.active.path.clone();
            return Err(self.write_failed(path, source, is_retried));
        }
        crash::point("wal_written");
        self.shared.set_flushed(self.end);
        self.buffer.clear();
        // A giant frame does not keep its room.
        self.buffer.shrink_to(BUFFER_BYTES);
        Ok(())
    }

    /// Closes the full segment durably and begins the next.
    fn roll(&mut self) -> Result<(), AppendError> {
        self.flush()?;
        self.shared.sync().map_err(AppendError::Sync)?;
        let next = Segment::create(&*self.shared.disk, &self.shared.dir, self.end);
        let next = match next {
            Ok(next) => Arc::new(next),
            Err(CreateFailure {
                path,
                source,
                is_clean,
            }) => {
                let is_retried = is_clean && is_full(&source);
                return Err(self.write_failed(path, source, is_retried));
            }
        };
        self.shared
            .segments_mut()
            .insert(next.base, Arc::clone(&next));
        self.shared.group.set_active(Arc::clone(&next));
        self.active = next;
        Ok(())
    }

    fn write_failed(&self, path: PathBuf, source: io::Error, is_retried: bool) -> AppendError {
        if is_retried {
            return AppendError::NoSpace { path, source };
        }
        self.shared.group.poison();
        AppendError::Write { path, source }
    }

    /// After the last appended frame, flushed or not.
    pub fn end(&self) -> Position {
        self.end
    }

    /// Where the oldest frame that is still there stands, or would.
    pub fn first(&self) -> Position {
        self.shared.first()
    }

    /// A handle that makes flushed frames durable.
    pub fn syncer(&self) -> Syncer {
        Syncer {
            shared: Arc::clone(&self.shared),
        }
    }

    /// A handle that reads flushed frames.
    pub fn reader(&self) -> Reader {
        Reader {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Bytes of all segment files, headers included; what is only in memory does not count.
    pub fn bytes_on_disk(&self) -> u64 {
        let segments = self.shared.segments();
        let first = segments.keys().next().copied().unwrap_or_default();
        let headers = to_u64(segments.len()) * HEADER_BYTES;
        headers + self.shared.flushed().bytes_since(first)
    }

    /// Removes, oldest first, the segments that end at or below `position`. The segment that takes frames stays.
    ///
    /// # Errors
    /// Some of them may be removed all the same.
    pub fn cut_below(&mut self, position: Position) -> Result<(), CutError> {
        if self.shared.group.is_poisoned() {
            return Err(CutError::Poisoned);
        }
        let mut is_any_removed = false;
        let outcome = loop {
            let Some(oldest) = self.oldest_below(position) else {
                break Ok(());
            };
            match self.shared.disk.remove(&oldest.path) {
                Ok(()) => {}
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    break Err(CutError::Remove {
                        path: oldest.path.clone(),
                        source,
                    });
                }
            }
            self.shared.segments_mut().remove(&oldest.base);
            is_any_removed = true;
        };
        if is_any_removed && let Err(source) = self.shared.disk.sync_dir(&self.shared.dir) {
            self.shared.group.poison();
            return Err(CutError::SyncDir {
                path: self.shared.dir.clone(),
                source,
            });
        }
        outcome
    }

    /// The oldest segment, if it is whole and ends at or below `position`.
    fn oldest_below(&self, position: Position) -> Option<Arc<Segment>> {
        let segments = self.shared.segments();
        let mut in_order = segments.values();
        let oldest = in_order.next()?;
        let end = in_order.next()?.base;
        (end <= position).then(|| Arc::clone(oldest))
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
