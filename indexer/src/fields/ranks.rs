//! Which key each row has: the way from a row to its value, where the postings lead from values
//! to rows.
//!
//! Ranks answer for some rows at some nanoseconds each, and for all rows at a fraction of one:
//! with many matches they are read in order, which the rows of a range of keys are not in.

use std::ops::Range;

use super::rows::{Bits, Span, at, row};

/// A key's place for every row; all ones for none.
#[derive(Clone, Copy)]
pub(super) enum Ranks<'a> {
    Missing,
    Byte(&'a [u8]),
    Two(&'a [[u8; 2]]),
    Four(&'a [[u8; 4]]),
}

impl<'a> Ranks<'a> {
    /// Ranks of so many bytes each.
    pub(super) fn new(bytes: &'a [u8], width: usize) -> Self {
        match width {
            1 => Self::Byte(bytes),
            2 => Self::Two(bytes.as_chunks().0),
            4 => Self::Four(bytes.as_chunks().0),
            _ => Self::Missing,
        }
    }

    pub(super) fn are_missing(&self) -> bool {
        matches!(self, Self::Missing)
    }

    /// The key of the row at a place of the span, if it has one.
    pub(super) fn key(&self, place: usize) -> Option<usize> {
        match self {
            Self::Missing => None,
            Self::Byte(ranks) => {
                let rank = ranks.get(place).filter(|rank| **rank != u8::MAX);
                rank.map(|rank| usize::from(*rank))
            }
            Self::Two(ranks) => {
                let rank = ranks.get(place).map(|rank| u16::from_le_bytes(*rank));
                rank.filter(|rank| *rank != u16::MAX).map(usize::from)
            }
            Self::Four(ranks) => {
                let rank = ranks.get(place).map(|rank| u32::from_le_bytes(*rank));
                rank.filter(|rank| *rank != u32::MAX).map(at)
            }
        }
    }

    /// The rows with a key of the range, which the mark for none never is. Free of branches, so
    /// that it becomes vector instructions.
    pub(super) fn scan(&self, keys: &Range<usize>, span: Span) -> Bits {
        let mut bits = Bits::empty(span);
        let (from, len) = (row(keys.start), row(keys.len()));
        let skew = at(span.first % 64);
        let words = bits.words_mut();
        match self {
            Self::Missing => {}
            Self::Byte(ranks) => mark(words, skew, ranks, |rank| {
                u32::from(*rank).wrapping_sub(from) < len
            }),
            Self::Two(ranks) => mark(words, skew, ranks, |rank| {
                u32::from(u16::from_le_bytes(*rank)).wrapping_sub(from) < len
            }),
            Self::Four(ranks) => mark(words, skew, ranks, |rank| {
                u32::from_le_bytes(*rank).wrapping_sub(from) < len
            }),
        }
        bits
    }
}

/// Sets the bits of the ranks that pass; the first rank is bit `skew` of the first word.
fn mark<T>(words: &mut [u64], skew: usize, ranks: &[T], passes: impl Fn(&T) -> bool) {
    let pack = |ranks: &[T], from: usize| {
        let bits = ranks.iter().enumerate();
        bits.fold(0_u64, |word, (bit, rank)| {
            word | u64::from(passes(rank)) << (from + bit)
        })
    };
    let (head, rest) = ranks.split_at(ranks.len().min((64 - skew) % 64));
    let mut words = words.iter_mut();
    if !head.is_empty()
        && let Some(word) = words.next()
    {
        *word = pack(head, skew);
    }
    let (whole, tail) = rest.as_chunks::<64>();
    for (ranks, word) in whole.iter().zip(words.by_ref()) {
        let mut flags = [0_u8; 64];
        for (flag, rank) in flags.iter_mut().zip(ranks) {
            *flag = u8::from(passes(rank));
        }
        *word = word_of(&flags);
    }
    if let Some(word) = words.next() {
        *word = pack(tail, 0);
    }
}

/// Bit `n` is flag `n`, each of which is 0 or 1: the factor brings eight flags together in the
/// highest byte.
fn word_of(flags: &[u8; 64]) -> u64 {
    const TOGETHER: u64 = 0x0102_0408_1020_4080;
    let (eights, _) = flags.as_chunks::<8>();
    let bytes = eights
        .iter()
        .map(|eight| u64::from_le_bytes(*eight).wrapping_mul(TOGETHER) >> 56);
    bytes.rev().fold(0, |word, byte| word << 8 | byte)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{super::rows::RowSet, Ranks, Span};

    proptest! {
        #[test]
        fn reading_all_ranks_equals_asking_for_each(
            ranks in vec(prop_oneof![0u8..9, Just(u8::MAX)], 0..400),
            first in 0u32..200,
            from in 0usize..9,
            len in 0usize..9,
        ) {
            let wide = |width: usize| -> Vec<u8> {
                let bytes = ranks.iter().flat_map(|rank| {
                    let filler = if *rank == u8::MAX { u8::MAX } else { 0 };
                    let mut bytes = vec![filler; width];
                    bytes[0] = *rank;
                    bytes
                });
                bytes.collect()
            };
            let span = Span { first, end: first + u32::try_from(ranks.len()).unwrap() };
            let keys = from..(from + len).min(9).max(from);
            for width in [1, 2, 4] {
                let bytes = wide(width);
                let read = Ranks::new(&bytes, width);
                let rows = (first..).zip(0..ranks.len());
                let asked = rows.filter(|(_, place)| read.key(*place).is_some_and(|key| keys.contains(&key)));
                let asked = RowSet::list(asked.map(|(row, _)| row).collect());
                prop_assert_eq!(RowSet::bits(read.scan(&keys, span)), asked);
            }
        }
    }
}
