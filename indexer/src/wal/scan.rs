//! Walking over the frames of one segment in order, in blocks: what recovery and sequential reads share.
//!
//! All frames pass through one block of memory that its user takes along from segment to segment. A frame larger than
//! the block makes it grow. It does not judge a broken frame: the caller knows whether a torn tail may be there.

use std::{io, ops::Range, sync::Arc};

use super::{
    Position,
    frame::{self, Fault},
    segment::Segment,
    to_u64, to_usize,
};

/// Bytes read at once.
const BLOCK_BYTES: u64 = 1 << 20;

/// Why the next frame of a segment could not be had.
pub(super) enum ScanFailure {
    /// The disk failed.
    Read(io::Error),
    /// There is no frame at this position.
    Broken(Position, Fault),
}

/// Frames of one segment in order, read in blocks.
pub(super) struct Frames {
    segment: Arc<Segment>,
    /// `block[used..filled]` was read and not yet walked over; it begins at `next`.
    block: Vec<u8>,
    used: usize,
    filled: usize,
    /// The frame stepped onto: where it stands, and its bytes in the block.
    current: Option<(Position, Range<usize>)>,
    next: Position,
    /// End of the frames that may be read.
    limit: Position,
}

impl Frames {
    /// Frames from the one at `from` up to `limit`, where the last one has to end. `block` is room to use again.
    pub(super) fn new(
        segment: Arc<Segment>,
        from: Position,
        limit: Position,
        block: Vec<u8>,
    ) -> Self {
        Self {
            segment,
            block,
            used: 0,
            filled: 0,
            current: None,
            next: from,
            limit,
        }
    }

    pub(super) fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Where the next frame stands, or the limit.
    pub(super) fn position(&self) -> Position {
        self.next
    }

    pub(super) fn is_at_limit(&self) -> bool {
        self.next >= self.limit
    }

    /// Gives the room back.
    pub(super) fn into_block(self) -> Vec<u8> {
        self.block
    }

    /// The position and payload of the frame stepped onto; `None` before the first and at the limit.
    pub(super) fn current(&self) -> Option<(Position, &[u8])> {
        let (at, range) = self.current.as_ref()?;
        let payload_start = range.start + frame::HEAD_BYTES;
        Some((*at, self.block.get(payload_start..range.end)?))
    }

    /// Steps onto the next frame. After a failure it stays before the frame that failed.
    pub(super) fn advance(&mut self) -> Result<(), ScanFailure> {
        self.current = None;
        let at = self.next;
        let left_bytes = self.limit.bytes_since(at);
        if left_bytes == 0 {
            return Ok(());
        }
        let broken = |fault| ScanFailure::Broken(at, fault);
        self.fill(frame::HEAD_BYTES, left_bytes)?;
        let frame_bytes = frame::decode_length(self.unread(), left_bytes).map_err(broken)?;
        self.fill(frame_bytes, left_bytes)?;
        frame::decode(at, self.unread()).map_err(broken)?;
        self.current = Some((at, self.used..self.used + frame_bytes));
        self.used += frame_bytes;
        self.next = at.plus(to_u64(frame_bytes));
        Ok(())
    }

    fn unread(&self) -> &[u8] {
        self.block.get(self.used..self.filled).unwrap_or_default()
    }

    /// Has at least `wanted` unread bytes in the block, or all that are left if those are fewer.
    fn fill(&mut self, wanted: usize, left_bytes: u64) -> Result<(), ScanFailure> {
        let has_bytes = self.unread().len();
        let wanted = to_u64(wanted).min(left_bytes);
        if to_u64(has_bytes) >= wanted {
            return Ok(());
        }
        self.block.copy_within(self.used..self.filled, 0);
        self.used = 0;
        self.filled = has_bytes;
        let target = to_usize(wanted.max(BLOCK_BYTES).min(left_bytes));
        if self.block.len() < target {
            self.block.resize(target, 0);
        }
        let from = self.next.plus(to_u64(has_bytes));
        let room = self.block.get_mut(has_bytes..target).unwrap_or_default();
        self.segment.read(from, room).map_err(ScanFailure::Read)?;
        self.filled = target;
        Ok(())
    }
}
