//! A set of rows: what a filter's evaluation gives, and what a scan or a walk asks.
//!
//! Few rows are a rising list, many are bits over the rows there are: a list of more than one
//! row in 32 would be the larger of the two. Bits answer `contains` by one load, which a walk
//! asks thousands of times, and two sets of a million rows meet in some microseconds. Compressed
//! bitmaps, as roaring's, would halve the lists; but they are decoded before they are used, and
//! two searches for every `contains`.

/// A set of more than one row in this many is kept as bits.
const DENSE_SHARE: usize = 32;
/// Rows of one word.
const WORD_ROWS: usize = 64;

/// Consecutive row numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// The first of them.
    pub(super) first: u32,
    /// The one behind the last.
    pub(super) end: u32,
}

impl Span {
    pub(super) fn len(self) -> usize {
        at(self.end.saturating_sub(self.first))
    }

    /// Where a row stands in it.
    pub(super) fn place(self, row: u32) -> Option<usize> {
        (row < self.end)
            .then(|| row.checked_sub(self.first))
            .flatten()
            .map(at)
    }

    /// Words that cover it, the first one cut to a whole word.
    pub(super) fn words(self) -> usize {
        let first_word = at(self.first) / WORD_ROWS;
        at(self.end).div_ceil(WORD_ROWS).saturating_sub(first_word)
    }
}

/// A number of rows as an index.
pub(super) fn at(number: u32) -> usize {
    usize::try_from(number).expect("an address has at least 32 bits")
}

/// An index as a row number.
pub(super) fn row(index: usize) -> u32 {
    u32::try_from(index).expect("rows are numbered by 32 bits")
}

/// Rows of one segment.
#[derive(Clone, Debug)]
pub struct RowSet {
    form: Form,
    len: usize,
}

#[derive(Clone, Debug)]
enum Form {
    /// Strictly rising.
    List(Vec<u32>),
    Bits(Bits),
}

/// One bit a row, from a whole word on.
#[derive(Clone, Debug)]
pub(super) struct Bits {
    first_word: usize,
    words: Vec<u64>,
}

impl RowSet {
    /// The empty set.
    pub fn none() -> Self {
        Self::list(Vec::new())
    }

    /// Takes rows in rising order; any that is not above the one before is left out.
    pub fn from_rising(rows: impl IntoIterator<Item = u32>) -> Self {
        let mut list: Vec<u32> = Vec::new();
        for row in rows {
            if list.last().is_none_or(|last| *last < row) {
                list.push(row);
            }
        }
        let Some((first, last)) = list.first().zip(list.last()) else {
            return Self::none();
        };
        let span = Span {
            first: *first,
            end: last.saturating_add(1),
        };
        Self::fitting(list, span)
    }

    pub(super) fn all(span: Span) -> Self {
        let mut bits = Bits::empty(span);
        bits.words.fill(u64::MAX);
        if let Some(word) = bits.words.first_mut() {
            *word &= u64::MAX << (span.first % 64);
        }
        if let Some(word) = bits.words.last_mut()
            && !span.end.is_multiple_of(64)
        {
            *word &= u64::MAX >> (64 - span.end % 64);
        }
        Self::bits(bits)
    }

    /// Strictly rising rows, in the form that suits their number in `span`.
    pub(super) fn fitting(list: Vec<u32>, span: Span) -> Self {
        if list.len().saturating_mul(DENSE_SHARE) <= span.len() {
            return Self::list(list);
        }
        let mut bits = Bits::empty(span);
        for row in &list {
            bits.set(*row);
        }
        Self::bits(bits)
    }

    /// Strictly rising rows.
    pub(super) fn list(list: Vec<u32>) -> Self {
        Self {
            len: list.len(),
            form: Form::List(list),
        }
    }

    pub(super) fn bits(bits: Bits) -> Self {
        let counts = bits.words.iter().map(|word| at(word.count_ones()));
        Self {
            len: counts.sum(),
            form: Form::Bits(bits),
        }
    }

    /// The union of sets, none of which begins before the one before it ends.
    pub(super) fn join(mut parts: Vec<Self>, span: Span) -> Self {
        parts.retain(|part| !part.is_empty());
        if parts.len() <= 1 {
            return parts.pop().unwrap_or_else(Self::none);
        }
        let len: usize = parts.iter().map(Self::len).sum();
        if len.saturating_mul(DENSE_SHARE) <= span.len() {
            let mut list = Vec::with_capacity(len);
            for part in &parts {
                list.extend(part.iter());
            }
            return Self::list(list);
        }
        let mut bits = Bits::empty(span);
        for part in &parts {
            bits.add(part);
        }
        Self::bits(bits)
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a row is in it: one load for bits, a binary search for a list. See
    /// [`RowSet::for_walk`].
    pub fn contains(&self, row: u32) -> bool {
        match &self.form {
            Form::List(list) => list.binary_search(&row).is_ok(),
            Form::Bits(bits) => bits.has(row),
        }
    }

    /// The rows, rising.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (list, bits) = match &self.form {
            Form::List(list) => (list.as_slice(), None),
            Form::Bits(bits) => ([].as_slice(), Some(bits)),
        };
        let bits = bits.into_iter().flat_map(Bits::iter);
        list.iter().copied().chain(bits)
    }

    /// The rows that `keep` takes: the living ones, say.
    pub fn retain(self, keep: impl Fn(u32) -> bool) -> Self {
        match self.form {
            Form::List(mut list) => {
                list.retain(|row| keep(*row));
                Self::list(list)
            }
            Form::Bits(mut bits) => {
                bits.retain(keep);
                Self::bits(bits)
            }
        }
    }

    /// The same rows as bits, so that `contains` costs one load however few they are.
    pub fn for_walk(self) -> Self {
        let Form::List(list) = &self.form else {
            return self;
        };
        let Some((first, last)) = list.first().zip(list.last()) else {
            return self;
        };
        let mut bits = Bits::empty(Span {
            first: *first,
            end: last.saturating_add(1),
        });
        bits.add(&self);
        Self::bits(bits)
    }

    /// Rows of both.
    pub fn and(self, other: &Self) -> Self {
        match (self.form, &other.form) {
            (Form::List(list), _) => Self::list(list).retain(|row| other.contains(row)),
            (Form::Bits(bits), Form::List(list)) => {
                let both = list.iter().copied().filter(|row| bits.has(*row));
                Self::list(both.collect())
            }
            (Form::Bits(mut bits), Form::Bits(others)) => {
                bits.each_word(others, |word, other| *word &= other);
                Self::bits(bits)
            }
        }
    }

    /// Rows of either.
    pub fn or(self, other: Self) -> Self {
        match (self.form, other.form) {
            (Form::List(mut list), Form::List(others)) => {
                list.extend(others);
                // Two runs: the stable sort merges them.
                list.sort();
                list.dedup();
                Self::list(list)
            }
            (Form::Bits(mut bits), form) | (form, Form::Bits(mut bits)) => {
                let len = other.len;
                bits.add(&Self { form, len });
                Self::bits(bits)
            }
        }
    }

    /// Rows that the other set does not hold.
    pub fn minus(self, other: &Self) -> Self {
        match (self.form, &other.form) {
            (Form::List(list), _) => Self::list(list).retain(|row| !other.contains(row)),
            (Form::Bits(mut bits), Form::List(list)) => {
                for row in list {
                    bits.unset(*row);
                }
                Self::bits(bits)
            }
            (Form::Bits(mut bits), Form::Bits(others)) => {
                bits.each_word(others, |word, other| *word &= !other);
                Self::bits(bits)
            }
        }
    }
}

impl PartialEq for RowSet {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl Bits {
    pub(super) fn empty(span: Span) -> Self {
        Self {
            first_word: at(span.first) / WORD_ROWS,
            words: vec![0; span.words()],
        }
    }

    /// The words, the first one for the span's first row.
    pub(super) fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    fn place(&self, row: u32) -> Option<(usize, u64)> {
        let word = (at(row) / WORD_ROWS).checked_sub(self.first_word)?;
        (word < self.words.len()).then_some((word, 1 << (row % 64)))
    }

    fn has(&self, row: u32) -> bool {
        self.place(row)
            .is_some_and(|(word, bit)| self.words[word] & bit != 0)
    }

    /// Adds a row; does nothing for one that is outside.
    pub(super) fn set(&mut self, row: u32) {
        if let Some((word, bit)) = self.place(row) {
            self.words[word] |= bit;
        }
    }

    fn unset(&mut self, row: u32) {
        if let Some((word, bit)) = self.place(row) {
            self.words[word] &= !bit;
        }
    }

    fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let words = self
            .words
            .iter()
            .enumerate()
            .filter(|(_, bits)| **bits != 0);
        words.flat_map(|(word, bits)| {
            let first = row((self.first_word + word) * WORD_ROWS);
            let mut left = *bits;
            std::iter::from_fn(move || {
                (left != 0).then(|| {
                    let bit = left.trailing_zeros();
                    left &= left - 1;
                    first + bit
                })
            })
        })
    }

    fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        for (word, bits) in self.words.iter_mut().enumerate() {
            let first = row((self.first_word + word) * WORD_ROWS);
            let mut left = *bits;
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                if !keep(first + bit) {
                    *bits &= !(1 << bit);
                }
            }
        }
    }

    /// Meets every word with the other's word for the same rows, 0 where that has none.
    fn each_word(&mut self, other: &Self, meet: impl Fn(&mut u64, u64)) {
        let skipped = self.first_word.checked_sub(other.first_word);
        let (zeros, from) = match skipped {
            Some(from) => (0, from),
            None => (other.first_word - self.first_word, 0),
        };
        let others = other.words.get(from..).unwrap_or_default();
        let others = std::iter::repeat_n(&0, zeros).chain(others);
        let others = others.chain(std::iter::repeat(&0));
        for (word, other) in self.words.iter_mut().zip(others) {
            meet(word, *other);
        }
    }

    fn add(&mut self, other: &RowSet) {
        match &other.form {
            Form::List(list) => {
                if let Some((first, last)) = list.first().zip(list.last()) {
                    self.cover(at(*first) / WORD_ROWS, at(*last) / WORD_ROWS + 1);
                }
                list.iter().for_each(|row| self.set(*row));
            }
            Form::Bits(others) => {
                let first = others.first_word;
                self.cover(first, first + others.words.len());
                let from = first - self.first_word;
                let words = self.words.iter_mut().skip(from);
                words
                    .zip(&others.words)
                    .for_each(|(word, other)| *word |= other);
            }
        }
    }

    /// Makes room for words that it does not cover yet.
    fn cover(&mut self, first: usize, end: usize) {
        if first < self.first_word {
            let new = std::iter::repeat_n(0, self.first_word - first);
            self.words.splice(0..0, new);
            self.first_word = first;
        }
        let words = end.saturating_sub(self.first_word);
        if words > self.words.len() {
            self.words.resize(words, 0);
        }
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
