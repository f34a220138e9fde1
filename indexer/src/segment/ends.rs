//! Which of a segment's rows a moment sees, for 64 rows at a time.
//!
//! A search looks at many rows and answers with few, and where rows are replaced all the time most have ended. So what
//! a row says of its life is said once more, for a block of rows in a few words that stay near: which
//! have ended, when the last of them did, and when the last of its rows was born. Where nothing of that came after the
//! moment of a search, no row has to be looked at.
//!
//! Only the shard's writer changes a block, while any number look. It says when before it says which, so that who sees
//! that a row has ended sees an end no earlier than that one's.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::segment::Sequence;

/// Rows of a block.
pub(super) const BLOCK_ROWS: u32 = u64::BITS;

/// The lives of so many rows that follow each other.
#[derive(Default)]
pub(super) struct Block {
    /// A bit a row, set once it has ended.
    ended: AtomicU64,
    last_end: AtomicU64,
    last_birth: AtomicU64,
}

/// What a block says of a row, for one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It is born and has not ended.
    Lives,
    /// It had ended.
    Ended,
    /// The row itself has to be asked: something changed here after the moment.
    Unknown,
}

impl Block {
    /// Notes a birth, before the row is there.
    pub(super) fn note_birth(&self, at: Sequence) {
        self.last_birth.fetch_max(at.0, Ordering::AcqRel);
    }

    /// Notes the end of a row, after the row says it and before a search of that moment is there.
    pub(super) fn note_end(&self, row: u32, at: Sequence) {
        self.last_end.fetch_max(at.0, Ordering::AcqRel);
        self.ended.fetch_or(bit(row), Ordering::AcqRel);
    }

    /// What is known of a row that is there.
    #[inline]
    pub(super) fn life(&self, row: u32, at: Sequence) -> Life {
        let has_ended = self.ended.load(Ordering::Acquire) & bit(row) != 0;
        let (last, sure) = match has_ended {
            true => (&self.last_end, Life::Ended),
            false => (&self.last_birth, Life::Lives),
        };
        match last.load(Ordering::Acquire) <= at.0 {
            true => sure,
            false => Life::Unknown,
        }
    }

    /// A bit a row, set where it lives, if that is known of all of them. Bits of rows that are not there are set, too.
    #[inline]
    pub(super) fn living(&self, at: Sequence) -> Option<u64> {
        let ended = self.ended.load(Ordering::Acquire);
        let last_end = self.last_end.load(Ordering::Acquire);
        let last_birth = self.last_birth.load(Ordering::Acquire);
        (last_end <= at.0 && last_birth <= at.0).then_some(!ended)
    }
}

fn bit(row: u32) -> u64 {
    1 << (row % BLOCK_ROWS)
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_ROWS, Block, Life};
    use crate::segment::Sequence;

    #[test]
    fn what_changed_after_a_moment_is_not_known_of_it() {
        let block = Block::default();
        block.note_birth(Sequence(3));
        block.note_birth(Sequence(7));
        block.note_end(BLOCK_ROWS + 1, Sequence(9));
        let lives = |at| [0, 1].map(|row| block.life(row, Sequence(at)));
        assert_eq!(lives(6), [Life::Unknown, Life::Unknown]);
        assert_eq!(lives(7), [Life::Lives, Life::Unknown]);
        assert_eq!(lives(8), [Life::Lives, Life::Unknown]);
        assert_eq!(lives(9), [Life::Lives, Life::Ended]);
        assert_eq!(block.living(Sequence(8)), None);
        assert_eq!(block.living(Sequence(9)), Some(!2));
    }
}
