//! Reading flushed frames: one by its position, or many in order.
//!
//! Every frame's checksum is verified on every read. Readers share the open files with the owner and never block it;
//! a segment cut away while it is being read stays readable to whoever is in it. A position that is not a frame's
//! start cannot be told from damage and is reported as such.

use std::{
    cell::Cell,
    io,
    ops::{ControlFlow, Range},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use shoal_runtime::ErrorKind;

use super::{
    Position, Reader, Shared,
    frame::{self, Fault},
    scan::{Frames, ScanFailure},
    segment::{Damage, Segment},
    to_u64, to_usize,
};

/// Bytes read for one frame before its length is known: most frames take one read.
const GUESS_BYTES: u64 = 4 << 10;

/// Most memory that a thread keeps for the frames it looks at.
const KEPT_BYTES: usize = 64 << 10;

thread_local! {
    /// Where a thread's frames are read to; taken for the time that one is looked at.
    static FRAME: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Why a frame was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not flushed yet.
    #[error("position {at} is not written, the log ends at {end}")]
    NotWritten {
        /// What was asked for.
        at: Position,
        /// End of the flushed frames.
        end: Position,
    },
    /// It was cut away.
    #[error("position {at} is cut away, the log begins at {first}")]
    Cut {
        /// What was asked for.
        at: Position,
        /// The oldest position that is still there.
        first: Position,
    },
    /// There is no whole frame.
    #[error("segment `{}` is damaged at byte {offset}", .path.display())]
    Corrupt {
        /// The segment.
        path: PathBuf,
        /// Byte in the file where the frame should begin.
        offset: u64,
        /// What is wrong there.
        #[source]
        damage: Damage,
    },
    /// The disk failed.
    #[error("cannot read segment `{}`", .path.display())]
    Read {
        /// The segment.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl ReadError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotWritten { .. } | Self::Read { .. } => ErrorKind::Retry,
            Self::Cut { .. } => ErrorKind::Caller,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
        }
    }

    fn corrupt(segment: &Segment, at: Position, fault: Fault) -> Self {
        Self::Corrupt {
            path: segment.path.clone(),
            offset: segment.offset(at),
            damage: Damage::Frame(fault),
        }
    }

    fn read(segment: &Segment, source: io::Error) -> Self {
        Self::Read {
            path: segment.path.clone(),
            source,
        }
    }
}

impl Shared {
    /// The segment in which a flushed position stands, and the end of the flushed frames in it.
    fn locate(&self, at: Position) -> Result<(Arc<Segment>, Position), ReadError> {
        let end = self.flushed();
        if at >= end {
            return Err(ReadError::NotWritten { at, end });
        }
        let segments = self.segments();
        let mut from_here_down = segments.range(..=at).rev();
        let Some((_, segment)) = from_here_down.next() else {
            drop(segments);
            let first = self.first();
            return Err(ReadError::Cut { at, first });
        };
        let mut above = segments.range(at.plus(1)..);
        let limit = above.next().map_or(end, |(base, _)| end.min(*base));
        Ok((Arc::clone(segment), limit))
    }
}

impl Reader {
    /// The payload of the frame at `at`.
    ///
    /// # Errors
    /// See [`ReadError`]; a position inside a frame is `Corrupt`.
    pub fn read(&self, at: Position) -> Result<Bytes, ReadError> {
        let mut bytes = Vec::new();
        let frame_bytes = self.fill(at, GUESS_BYTES, &mut bytes)?;
        bytes.truncate(frame_bytes);
        Ok(Bytes::from(bytes).slice(frame::HEAD_BYTES..))
    }

    /// Calls `visit` with the payload of the frame at `at`, which is thought to have up to `guess_bytes`.
    ///
    /// It passes through memory that the thread keeps: what to use where one search reads many.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn visit<T>(
        &self,
        at: Position,
        guess_bytes: usize,
        visit: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, ReadError> {
        let mut bytes = FRAME.take();
        let guess_bytes = to_u64(guess_bytes + frame::HEAD_BYTES);
        let filled = self.fill(at, guess_bytes, &mut bytes);
        let visited = filled.map(|frame_bytes| {
            let payload = bytes.get(frame::HEAD_BYTES..frame_bytes);
            visit(payload.unwrap_or_default())
        });
        if bytes.len() <= KEPT_BYTES {
            FRAME.set(bytes);
        }
        visited
    }

    /// Reads the frame at `at` into `bytes`, which becomes longer if need be; gives how long the frame is.
    fn fill(
        &self,
        at: Position,
        guess_bytes: u64,
        bytes: &mut Vec<u8>,
    ) -> Result<usize, ReadError> {
        let (segment, limit) = self.shared.locate(at)?;
        let left_bytes = limit.bytes_since(at);
        let failed = |source| ReadError::read(&segment, source);
        let corrupt = |fault| ReadError::corrupt(&segment, at, fault);
        let first_bytes = to_usize(left_bytes.min(guess_bytes));
        let first = part(bytes, 0..first_bytes);
        segment.read(at, first).map_err(failed)?;
        let frame_bytes = frame::decode_length(first, left_bytes).map_err(corrupt)?;
        if frame_bytes > first_bytes {
            let rest = part(bytes, first_bytes..frame_bytes);
            let at = at.plus(to_u64(first_bytes));
            segment.read(at, rest).map_err(failed)?;
        }
        frame::decode(at, part(bytes, 0..frame_bytes)).map_err(corrupt)?;
        Ok(frame_bytes)
    }

    /// The frames that start at or after `from` and before `to`, in order, each in memory of its own.
    ///
    /// `from` is a frame's start or the end. After an error the iterator is at its end.
    pub fn iterate(&self, from: Position, to: Position) -> Iterate {
        Iterate {
            cursor: Some(Cursor::new(Arc::clone(&self.shared), from, to)),
        }
    }

    /// Calls `visit` with each frame's position and payload, as [`Reader::iterate`] would give them, until it breaks.
    ///
    /// All payloads pass through one block of memory: the way to read many.
    ///
    /// # Errors
    /// See [`ReadError`]; `to` beyond the flushed end is `NotWritten`, after the frames that are.
    pub fn for_each<B>(
        &self,
        from: Position,
        to: Position,
        mut visit: impl FnMut(Position, &[u8]) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, ReadError> {
        let mut cursor = Cursor::new(Arc::clone(&self.shared), from, to);
        while let Some((at, payload)) = cursor.next_frame()? {
            if let ControlFlow::Break(found) = visit(at, payload) {
                return Ok(ControlFlow::Break(found));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Where the oldest frame that is still there stands, or would.
    pub fn first(&self) -> Position {
        self.shared.first()
    }

    /// End of the flushed frames: up to here there is something to read.
    pub fn end(&self) -> Position {
        self.shared.flushed()
    }
}

/// A part of memory that becomes as long as it takes.
fn part(bytes: &mut Vec<u8>, range: Range<usize>) -> &mut [u8] {
    if bytes.len() < range.end {
        bytes.resize(range.end, 0);
    }
    bytes.get_mut(range).unwrap_or_default()
}

/// Frames in order; see [`Reader::iterate`].
pub struct Iterate {
    cursor: Option<Cursor>,
}

impl Iterator for Iterate {
    type Item = Result<(Position, Vec<u8>), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.cursor.as_mut()?.next_frame();
        let item = next.map(|frame| frame.map(|(at, payload)| (at, payload.to_vec())));
        if !matches!(item, Ok(Some(_))) {
            self.cursor = None;
        }
        item.transpose()
    }
}

/// Walks over the frames of all segments.
struct Cursor {
    shared: Arc<Shared>,
    /// The segment being read; none before the first and between two.
    frames: Option<Frames>,
    block: Vec<u8>,
    next: Position,
    to: Position,
}

impl Cursor {
    fn new(shared: Arc<Shared>, from: Position, to: Position) -> Self {
        Self {
            shared,
            frames: None,
            block: Vec::new(),
            next: from,
            to,
        }
    }

    fn next_frame(&mut self) -> Result<Option<(Position, &[u8])>, ReadError> {
        if self.next >= self.to {
            return Ok(None);
        }
        if let Some(frames) = self.frames.take_if(|frames| frames.is_at_limit()) {
            self.block = frames.into_block();
        }
        let frames = match &mut self.frames {
            Some(frames) => frames,
            none => {
                let (segment, limit) = self.shared.locate(self.next)?;
                let block = std::mem::take(&mut self.block);
                none.insert(Frames::new(segment, self.next, limit, block))
            }
        };
        frames.advance().map_err(|failure| match failure {
            ScanFailure::Read(source) => ReadError::read(frames.segment(), source),
            ScanFailure::Broken(at, fault) => ReadError::corrupt(frames.segment(), at, fault),
        })?;
        self.next = frames.position();
        Ok(frames.current())
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
