//! Reading the values of one form that a field has, in place: which keys a condition takes, how
//! many rows they have, and which.
//!
//! A condition becomes ranges of keys by binary search; the rows of a range of keys are a slice
//! of `rows` and the bits of the frequent keys among them. Nothing here trusts the sections:
//! whatever contradicts itself is [`Damage`], never a panic.

use std::{
    cmp::Ordering,
    ops::{Bound, Range},
};

use shoal_schemas::{
    FieldKind,
    filter::{Bounds, compare::compare},
    payload::Value,
};

use super::{
    layout::{Form, Keyed, Section},
    ranks::Ranks,
    rows::{Bits, RowSet, Span, at},
};

/// A list of rows of several keys has to be sorted, so it pays only below one row in this many.
const SORT_SHARE: usize = 1024;
/// From one row in this many on, reading every rank is cheaper than a slice in no order.
const RANKS_SHARE: usize = 8;

/// A section that contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damage(pub(super) &'static str);

/// Ranges of keys, rising, apart from each other.
pub(super) type KeyRanges = Vec<Range<usize>>;

/// The sections of a [`Keyed`].
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    span: Span,
    kind: FieldKind,
    several: bool,
    distinct: usize,
    keys: Keys<'a>,
    starts: &'a [[u8; 4]],
    rows: &'a [[u8; 4]],
    frequents: &'a [[u8; 8]],
    bits: &'a [[u8; 8]],
    ranks: Ranks<'a>,
}

#[derive(Clone, Copy)]
enum Keys<'a> {
    Whole(&'a [[u8; 8]]),
    Float(&'a [[u8; 8]]),
    Text {
        starts: &'a [[u8; 8]],
        texts: &'a [u8],
    },
}

/// A key as it is stored.
#[derive(Clone, Copy)]
pub(super) enum Key<'a> {
    Whole(i64),
    Float(f64),
    Text(&'a [u8]),
}

impl<'a> View<'a> {
    /// The directory was checked against the length of the body.
    pub(super) fn new(keyed: &Keyed, kind: FieldKind, span: Span, body: &'a [u8]) -> Self {
        let section = |section: &Section| body.get(section.clone()).unwrap_or_default();
        let (keys, ranks) = (section(&keyed.keys), section(&keyed.ranks));
        let (keys, _) = keys.as_chunks();
        Self {
            span,
            kind,
            several: keyed.several,
            distinct: keyed.distinct(),
            keys: match keyed.form {
                Form::Whole => Keys::Whole(keys),
                Form::Float => Keys::Float(keys),
                Form::Text => Keys::Text {
                    starts: keys,
                    texts: section(&keyed.texts),
                },
            },
            starts: section(&keyed.starts).as_chunks().0,
            rows: section(&keyed.rows).as_chunks().0,
            frequents: section(&keyed.frequents).as_chunks().0,
            bits: section(&keyed.bits).as_chunks().0,
            ranks: Ranks::new(ranks, keyed.rank_width(span)),
        }
    }

    /// Whether no row has two of these keys.
    pub(super) fn is_single(&self) -> bool {
        !self.several
    }

    /// Whether [`View::probe`] works.
    pub(super) fn has_ranks(&self) -> bool {
        !self.ranks.are_missing()
    }

    /// A key by its place.
    pub(super) fn key(&self, place: usize) -> Result<Key<'a>, Damage> {
        Ok(match self.keys {
            Keys::Whole(keys) => Key::Whole(i64::from_le_bytes(keys[place])),
            Keys::Float(keys) => Key::Float(f64::from_le_bytes(keys[place])),
            Keys::Text { starts, texts } => {
                let start = |place: usize| usize::try_from(u64::from_le_bytes(starts[place])).ok();
                let range = start(place).zip(start(place + 1));
                let text = range.and_then(|(start, end)| texts.get(start..end));
                Key::Text(text.ok_or(Damage("a text lies outside of its section"))?)
            }
        })
    }

    /// The keys that one of the values equals.
    pub(super) fn keys_in(&self, values: &[Value]) -> Result<KeyRanges, Damage> {
        let mut places = Vec::new();
        for value in values {
            // Keys are distinct, so that one of them at most equals a value.
            if let (Some(from), Some(to)) = (self.below(value, false)?, self.below(value, true)?) {
                places.extend((from < to).then_some(from));
            }
        }
        places.sort_unstable();
        places.dedup();
        let mut ranges = KeyRanges::new();
        for place in places {
            match ranges.last_mut() {
                Some(last) if last.end == place => last.end += 1,
                _ => ranges.push(place..place + 1),
            }
        }
        Ok(ranges)
    }

    /// The keys within bounds.
    pub(super) fn keys_within(&self, bounds: &Bounds) -> Result<KeyRanges, Damage> {
        let from = match &bounds.lower {
            Bound::Unbounded => Some(0),
            Bound::Included(end) => self.below(end, false)?,
            Bound::Excluded(end) => self.below(end, true)?,
        };
        let to = match &bounds.upper {
            Bound::Unbounded => Some(self.distinct),
            Bound::Included(end) => self.below(end, true)?,
            Bound::Excluded(end) => self.below(end, false)?,
        };
        let has_ranges = self.kind != FieldKind::Boolean;
        let range = from.zip(to).filter(|(from, to)| has_ranges && from < to);
        Ok(range.map(|(from, to)| from..to).into_iter().collect())
    }

    /// The texts that begin with these bytes.
    pub(super) fn keys_from(&self, prefix: &[u8]) -> Result<KeyRanges, Damage> {
        let text = |place| match self.key(place)? {
            Key::Text(text) => Ok(Some(text)),
            Key::Whole(_) | Key::Float(_) => Ok(None),
        };
        let from = self.search(|place| Ok(text(place)?.is_none_or(|text| text < prefix)))?;
        let to = self.search(|place| {
            Ok(text(place)?.is_none_or(|text| text < prefix || text.starts_with(prefix)))
        })?;
        let range = Some(from..to).filter(|keys| !keys.is_empty());
        Ok(range.into_iter().collect())
    }

    /// Number of keys below a value, or up to it; `None` if they do not compare with it.
    fn below(&self, value: &Value, up_to: bool) -> Result<Option<usize>, Damage> {
        if self.distinct == 0 {
            return Ok(None);
        }
        if self.order(self.key(0)?, value).is_none() {
            return Ok(None);
        }
        let place = self.search(|place| {
            let order = self.order(self.key(place)?, value);
            Ok(order == Some(Ordering::Less) || (up_to && order == Some(Ordering::Equal)))
        })?;
        Ok(Some(place))
    }

    fn order(&self, key: Key<'_>, value: &Value) -> Option<Ordering> {
        match (key, self.kind, value) {
            (Key::Whole(key), FieldKind::Timestamp, Value::Timestamp(value)) => {
                Some(key.cmp(value))
            }
            (Key::Whole(key), FieldKind::Boolean, Value::Boolean(value)) => {
                Some(key.cmp(&i64::from(*value)))
            }
            (Key::Whole(key), FieldKind::Integer | FieldKind::Float, _) => {
                compare(&Value::Integer(key), value)
            }
            (Key::Float(key), _, _) => compare(&Value::Float(key), value),
            (Key::Text(key), _, Value::String(value)) => Some(key.cmp(value.as_bytes())),
            (Key::Whole(_) | Key::Text(_), _, _) => None,
        }
    }

    /// Number of keys at the beginning that all pass `is_before`.
    fn search(&self, is_before: impl Fn(usize) -> Result<bool, Damage>) -> Result<usize, Damage> {
        let (mut from, mut to) = (0, self.distinct);
        while from < to {
            let middle = from.midpoint(to);
            if is_before(middle)? {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        Ok(from)
    }

    /// The rows in `rows` of a range of keys.
    fn slice(&self, keys: &Range<usize>) -> Result<&'a [[u8; 4]], Damage> {
        let start = |place: usize| match self.starts {
            [] => place,
            starts => at(u32::from_le_bytes(starts[place])),
        };
        let rows = self.rows.get(start(keys.start)..start(keys.end));
        rows.ok_or(Damage("rows of a key lie outside of their section"))
    }

    /// The frequent keys of a range: their number among the frequent ones, and their rows.
    fn frequents(&self, keys: &Range<usize>) -> impl Iterator<Item = (usize, usize)> + use<'a> {
        let key = |entry: &[u8; 8]| {
            let [a, b, c, d, ..] = *entry;
            at(u32::from_le_bytes([a, b, c, d]))
        };
        let (start, end) = (keys.start, keys.end);
        let from = self.frequents.partition_point(|entry| key(entry) < start);
        let frequents: &'a [[u8; 8]] = self.frequents;
        let entries = frequents.iter().enumerate().skip(from);
        entries
            .take_while(move |(_, entry)| key(entry) < end)
            .map(|(number, [.., a, b, c, d])| (number, at(u32::from_le_bytes([*a, *b, *c, *d]))))
    }

    /// Rows that have keys of the ranges, those with several counted as often, and the most that
    /// one key has for sure.
    pub(super) fn count(&self, ranges: &[Range<usize>]) -> Result<(usize, usize), Damage> {
        let (mut total, mut most) = (0_usize, 0);
        for keys in ranges {
            let rows = self.slice(keys)?.len();
            total = total.saturating_add(rows);
            // Of the keys of a slice one has its share at least.
            most = most.max(rows.div_ceil(keys.len().max(1)));
            for (_, count) in self.frequents(keys) {
                total = total.saturating_add(count);
                most = most.max(count);
            }
        }
        Ok((total, most))
    }

    /// The rows that have a key of the ranges.
    pub(super) fn rows(&self, ranges: &[Range<usize>]) -> Result<RowSet, Damage> {
        let mut listed = 0;
        let mut has_frequent = false;
        for keys in ranges {
            listed += self.slice(keys)?.len();
            has_frequent |= self.frequents(keys).next().is_some();
        }
        let is_one_key = matches!(ranges, [keys] if keys.len() == 1);
        let share = if is_one_key { RANKS_SHARE } else { SORT_SHARE };
        if !has_frequent && listed.saturating_mul(share) <= self.span.len() {
            return self.list(ranges);
        }
        if let [keys] = ranges
            && self.has_ranks()
            && listed.saturating_mul(RANKS_SHARE) > self.span.len()
        {
            return Ok(RowSet::bits(self.ranks.scan(keys, self.span)));
        }
        let mut bits = Bits::empty(self.span);
        for keys in ranges {
            for row in self.slice(keys)? {
                let row = u32::from_le_bytes(*row);
                self.check(row)?;
                bits.set(row);
            }
            for (number, _) in self.frequents(keys) {
                self.add_frequent(number, &mut bits)?;
            }
        }
        Ok(RowSet::bits(bits))
    }

    fn check(&self, row: u32) -> Result<(), Damage> {
        let place = self.span.place(row);
        place
            .map(|_| ())
            .ok_or(Damage("a row is none of the segment"))
    }

    fn list(&self, ranges: &[Range<usize>]) -> Result<RowSet, Damage> {
        let mut list = Vec::new();
        for keys in ranges {
            let rows = self.slice(keys)?.iter();
            list.extend(rows.map(|row| u32::from_le_bytes(*row)));
        }
        list.sort_unstable();
        list.dedup();
        list.iter().try_for_each(|row| self.check(*row))?;
        Ok(RowSet::list(list))
    }

    /// Those of `within` that have a key of the ranges, by looking each one up.
    pub(super) fn probe(&self, ranges: &[Range<usize>], within: &RowSet) -> RowSet {
        let has = |row: &u32| {
            let Some(key) = self
                .span
                .place(*row)
                .and_then(|place| self.ranks.key(place))
            else {
                return false;
            };
            let before = ranges.partition_point(|keys| keys.end <= key);
            ranges.get(before).is_some_and(|keys| keys.contains(&key))
        };
        RowSet::fitting(within.iter().filter(has).collect(), self.span)
    }

    fn add_frequent(&self, number: usize, bits: &mut Bits) -> Result<(), Damage> {
        add_words(self.bits, number, self.span, bits)
    }

    /// Calls `each` with every key and its rows.
    pub(super) fn for_each(&self, mut each: impl FnMut(Key<'a>, &RowSet)) -> Result<(), Damage> {
        for place in 0..self.distinct {
            let keys = place..place + 1;
            let frequent = self.frequents(&keys).next();
            let rows = match frequent {
                None => self.list(&[keys])?,
                Some((number, _)) => {
                    let mut bits = Bits::empty(self.span);
                    self.add_frequent(number, &mut bits)?;
                    RowSet::bits(bits)
                }
            };
            each(self.key(place)?, &rows);
        }
        Ok(())
    }
}

/// Adds the `number`th run of words that cover the span; bits of no row are damage.
pub(super) fn add_words(
    from: &[[u8; 8]],
    number: usize,
    span: Span,
    bits: &mut Bits,
) -> Result<(), Damage> {
    let words = span.words();
    let start = number.saturating_mul(words);
    let from = from.get(start..start.saturating_add(words));
    let from = from.ok_or(Damage("bits lie outside of their section"))?;
    let bytes = from.iter().map(|word| u64::from_le_bytes(*word));
    let ends = |word: Option<&[u8; 8]>| word.map_or(0, |word| u64::from_le_bytes(*word));
    let before = ends(from.first()) & !(u64::MAX << (span.first % 64));
    let behind = match span.end % 64 {
        0 => 0,
        end => ends(from.last()) & (u64::MAX << end),
    };
    if before | behind != 0 {
        return Err(Damage("bits are set for rows that are none"));
    }
    for (word, more) in bits.words_mut().iter_mut().zip(bytes) {
        *word |= more;
    }
    Ok(())
}
