//! Which of a segment's rows a moment sees, for 64 rows at a time.
//!
//! A search looks at many rows and answers with few, and where rows are replaced all the time most have ended. So what
//! a row says of its life is said once more, for a block of rows in a few words that stay near: which
//! have ended, when the last of them did, and when the last of its rows was born. Where nothing of that came after the
//! moment of a search, no row has to be looked at.
//!
//! The same of their age: when the first of them expires, and when the last. Rows that were written together
//! mostly expire together, so that most blocks are before the one or behind the other.
//!
//! Only the shard's writer changes a block, while any number look. It says when before it says which, so that who sees
//! that a row has ended sees an end no earlier than that one's.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::segment::{NEVER, Sequence};

/// Rows of a block.
pub(super) const BLOCK_ROWS: u32 = u64::BITS;

/// The expiries of a block's rows were not looked at yet. No row's expiry is that: such a record is refused.
const UNREAD: i64 = i64::MIN;

/// The lives of so many rows that follow each other.
pub(super) struct Block {
    /// A bit a row, set once it has ended.
    ended: AtomicU64,
    last_end: AtomicU64,
    last_birth: AtomicU64,
    first_expiry: AtomicI64,
    last_expiry: AtomicI64,
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

/// What a block says of how old its rows are, for one time. Of those that have ended, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// None has expired.
    Fresh,
    /// All have.
    Expired,
    /// Some may have: each has to be asked.
    Mixed,
}

impl Block {
    /// No rows.
    pub(super) fn empty() -> Self {
        Self {
            ended: AtomicU64::new(0),
            last_end: AtomicU64::new(0),
            last_birth: AtomicU64::new(0),
            first_expiry: AtomicI64::new(NEVER),
            last_expiry: AtomicI64::new(UNREAD),
        }
    }

    /// Rows that are all there and were born before everything.
    pub(super) fn full() -> Self {
        Self {
            first_expiry: AtomicI64::new(UNREAD),
            ..Self::empty()
        }
    }

    /// Notes a birth, before the row is there.
    pub(super) fn note_birth(&self, at: Sequence, expires_at_ms: Option<i64>) {
        self.last_birth.fetch_max(at.0, Ordering::AcqRel);
        self.note_expiry(expires_at_ms.unwrap_or(NEVER));
    }

    fn note_expiry(&self, at_ms: i64) {
        // The first comes last: who sees one that was read sees what the last is.
        self.last_expiry.fetch_max(at_ms, Ordering::AcqRel);
        self.first_expiry.fetch_min(at_ms, Ordering::AcqRel);
    }

    /// How old its rows are. Those of a block that was [`Block::full`] say when they expire at the first look.
    #[inline]
    pub(super) fn age<R>(&self, now_ms: i64, expiries: impl FnOnce() -> R) -> Age
    where
        R: Iterator<Item = Option<i64>>,
    {
        let mut first = self.first_expiry.load(Ordering::Acquire);
        if first == UNREAD {
            first = self.read_expiries(expiries());
        }
        match now_ms {
            now if now < first => Age::Fresh,
            now if now >= self.last_expiry.load(Ordering::Acquire) => Age::Expired,
            _ => Age::Mixed,
        }
    }

    /// Whoever else does so meanwhile comes to the same.
    #[cold]
    fn read_expiries(&self, expiries: impl Iterator<Item = Option<i64>>) -> i64 {
        let (mut first, mut last) = (NEVER, UNREAD);
        for expiry in expiries {
            let expiry = expiry.unwrap_or(NEVER);
            first = first.min(expiry);
            last = last.max(expiry);
        }
        self.last_expiry.store(last, Ordering::Release);
        self.first_expiry.store(first, Ordering::Release);
        first
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
    use super::{Age, BLOCK_ROWS, Block, Life};
    use crate::segment::Sequence;

    #[test]
    fn what_changed_after_a_moment_is_not_known_of_it() {
        let block = Block::empty();
        block.note_birth(Sequence(3), None);
        block.note_birth(Sequence(7), None);
        block.note_end(BLOCK_ROWS + 1, Sequence(9));
        let lives = |at| [0, 1].map(|row| block.life(row, Sequence(at)));
        assert_eq!(lives(6), [Life::Unknown, Life::Unknown]);
        assert_eq!(lives(7), [Life::Lives, Life::Unknown]);
        assert_eq!(lives(8), [Life::Lives, Life::Unknown]);
        assert_eq!(lives(9), [Life::Lives, Life::Ended]);
        assert_eq!(block.living(Sequence(8)), None);
        assert_eq!(block.living(Sequence(9)), Some(!2));
    }

    #[test]
    fn rows_are_asked_for_their_age_between_the_first_expiry_and_the_last() {
        let ages = |block: &Block| [9, 10, 19, 20].map(|now_ms| age(block, now_ms));
        let full = Block::full();
        let expiries = || [Some(20), Some(10)].into_iter();
        assert_eq!(full.age(0, expiries), Age::Fresh);
        let both = [Age::Fresh, Age::Mixed, Age::Mixed, Age::Expired];
        assert_eq!(ages(&full), both, "looked at once");
        let growing = Block::empty();
        growing.note_birth(Sequence(1), Some(10));
        let [before, after @ ..] = ages(&growing);
        assert_eq!((before, after), (Age::Fresh, [Age::Expired; 3]));
        growing.note_birth(Sequence(2), Some(20));
        assert_eq!(ages(&growing), both);
        growing.note_birth(Sequence(3), None);
        assert_eq!(ages(&growing)[3], Age::Mixed, "one never does");
    }

    fn age(block: &Block, now_ms: i64) -> Age {
        block.age(now_ms, || -> std::iter::Empty<Option<i64>> {
            panic!("its rows were looked at")
        })
    }
}
