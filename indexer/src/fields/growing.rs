//! The payload index of the segment that takes new rows: one thread adds, any number evaluate.
//!
//! New rows lie in a short tail as they came and are asked one by one. A full tail is sealed into
//! an immutable part, and eight parts of a size are merged into one, by another thread than the
//! writer's if that calls [`Growing::merge`]. All three are published as one immutable value, so
//! nobody waits: a reader takes the value of a moment and reads on in it. The writer's longest
//! pause is the sealing of a tail.
//!
//! # Units
//! A row costs what it does in the sealed form (see [`super`]); a row of the tail also a map of
//! its declared fields, for at most [`TAIL_ROWS`] rows.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use shoal_schemas::{
    filter::{Fields, Filter},
    payload::Payload,
};

use super::{
    Estimate,
    columns::Columns,
    rows::{RowSet, Span, at, row},
    sealed::{ReadError, Sealed},
};

/// Rows of a tail.
pub const TAIL_ROWS: u32 = 256;
/// Neighbours of a size that are merged into one.
const MERGED: usize = 8;
/// A filter that names more values than this is not asked row by row: the tail is sealed for it.
const ASKED_VALUES: usize = 64;

type Part = Arc<Sealed<Vec<u8>>>;

/// A payload index that takes rows.
pub struct Growing {
    fields: Fields,
    state: ArcSwap<State>,
    merging: Mutex<()>,
}

/// The rows of a moment. Later rows of the same tail show too.
#[derive(Clone)]
struct State {
    /// One behind the other, from row 0.
    parts: Vec<Part>,
    tail_first: u32,
    /// Declared fields with values of the declared kinds, and no others.
    tail: Arc<boxcar::Vec<Payload>>,
}

impl Growing {
    /// An index without rows.
    pub fn new(fields: Fields) -> Self {
        Self::with_parts(fields, Vec::new())
    }

    /// An index that goes on where a sealed one ends.
    ///
    /// # Errors
    /// [`ReadError::NotIndexed`] if that one was made for other fields.
    pub fn resume(fields: Fields, sealed: Sealed<Vec<u8>>) -> Result<Self, ReadError> {
        for (name, kind) in &fields {
            sealed.column(name, Some(*kind))?;
        }
        Ok(Self::with_parts(fields, vec![Arc::new(sealed)]))
    }

    fn with_parts(fields: Fields, parts: Vec<Part>) -> Self {
        let state = State {
            tail_first: parts.last().map_or(0, |part| part.end_row()),
            parts,
            tail: Arc::default(),
        };
        Self {
            fields,
            state: ArcSwap::from_pointee(state),
            merging: Mutex::new(()),
        }
    }

    /// Adds the next row. Only the shard's writer; before it makes the row visible.
    ///
    /// A number that is passed over counts as a row without fields; one that was there already
    /// is a mistake of the caller's and changes nothing.
    pub fn push(&self, row: u32, payload: &Payload) {
        debug_assert!(row >= self.end_row(), "rows come in rising order");
        while self.end_row() < row {
            self.push_next(Payload::default());
        }
        if self.end_row() == row {
            let declared = self.fields.iter().filter_map(|(name, kind)| {
                let value = payload.0.get(name).filter(|value| kind.holds(value))?;
                Some((name.clone(), value.clone()))
            });
            self.push_next(Payload(declared.collect()));
        }
    }

    fn push_next(&self, payload: Payload) {
        let state = self.state.load();
        if state.tail.push(payload) + 1 < at(TAIL_ROWS) {
            return;
        }
        let part = Arc::new(state.seal_tail(&self.fields));
        self.state.rcu(|state| {
            let mut parts = state.parts.clone();
            parts.push(Arc::clone(&part));
            State {
                parts,
                tail_first: part.end_row(),
                tail: Arc::default(),
            }
        });
    }

    /// The row behind the last one.
    pub fn end_row(&self) -> u32 {
        self.state.load().end_row()
    }

    /// Memory of the sealed parts. The tail's is small and not counted.
    pub fn bytes(&self) -> usize {
        let state = self.state.load();
        state.parts.iter().map(|part| part.as_bytes().len()).sum()
    }

    /// Merges eight parts of a size into one, if there are; false if there are not. Call it until
    /// then, every some thousand rows, from any thread but the writer's: a merge of n rows takes
    /// about n / 4 microseconds a field.
    ///
    /// # Errors
    /// [`ReadError`], which would be a bug: the parts were made here, but for what an index
    /// was resumed with.
    pub fn merge(&self) -> Result<bool, ReadError> {
        let _one_at_a_time = self.merging.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state.load_full();
        let Some(from) = mergeable(&state.parts) else {
            return Ok(false);
        };
        let merged = &state.parts[from..from + MERGED];
        let first = merged.first().map_or(0, |part| part.span().first);
        let mut columns = Columns::from_row(&self.fields, first);
        for part in merged {
            columns.absorb(part, Some)?;
        }
        let part = Arc::new(open(columns.seal()));
        // Meanwhile the writer may have added parts behind these, and nothing else.
        self.state.rcu(|state| {
            let mut state = State::clone(state);
            state.parts.splice(from..from + MERGED, [Arc::clone(&part)]);
            state
        });
        Ok(true)
    }

    /// The rows so far that match.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn evaluate(&self, filter: &Filter) -> Result<RowSet, ReadError> {
        self.check(filter)?;
        let state = self.state.load();
        let parts = state.parts.iter().map(|part| part.evaluate(filter));
        let mut found = parts.collect::<Result<Vec<_>, _>>()?;
        found.push(state.evaluate_tail(filter, &self.fields)?);
        let end = state.end_row();
        Ok(RowSet::join(found, Span { first: 0, end }))
    }

    /// How many rows match at least and at most; any of the tail may.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn estimate(&self, filter: &Filter) -> Result<Estimate, ReadError> {
        self.check(filter)?;
        let state = self.state.load();
        let mut estimate = Estimate {
            lower: 0,
            upper: state.tail.count(),
        };
        for part in &state.parts {
            estimate = estimate.plus(part.estimate(filter)?);
        }
        Ok(estimate)
    }

    /// The sealed form of the rows so far.
    ///
    /// # Errors
    /// As for [`Growing::merge`].
    pub fn seal(&self) -> Result<Vec<u8>, ReadError> {
        let state = self.state.load();
        let mut columns = Columns::new(&self.fields);
        for part in &state.parts {
            columns.absorb(part, Some)?;
        }
        state.gather_tail(&mut columns);
        Ok(columns.seal())
    }

    fn check(&self, filter: &Filter) -> Result<(), ReadError> {
        let unknown = filter
            .fields()
            .find(|name| !self.fields.contains_key(*name));
        unknown.map_or(Ok(()), |name| {
            Err(ReadError::NotIndexed {
                field: name.to_owned(),
                kind: None,
            })
        })
    }
}

impl State {
    fn end_row(&self) -> u32 {
        self.tail_first + row(self.tail.count())
    }

    fn evaluate_tail(&self, filter: &Filter, fields: &Fields) -> Result<RowSet, ReadError> {
        if values(filter) > ASKED_VALUES {
            return self.seal_tail(fields).evaluate(filter);
        }
        let matching = self.tail.iter().filter(|(_, row)| filter.matches(row));
        Ok(RowSet::from_rising(
            matching.map(|(place, _)| self.tail_first + row(place)),
        ))
    }

    fn seal_tail(&self, fields: &Fields) -> Sealed<Vec<u8>> {
        let mut columns = Columns::from_row(fields, self.tail_first);
        self.gather_tail(&mut columns);
        open(columns.seal())
    }

    fn gather_tail(&self, columns: &mut Columns) {
        for (place, payload) in self.tail.iter() {
            columns.push(self.tail_first + row(place), payload);
        }
    }
}

fn open(bytes: Vec<u8>) -> Sealed<Vec<u8>> {
    Sealed::open(bytes).expect("what was sealed this moment opens")
}

/// Where the last eight neighbours of a size begin, a size being a power of eight tails.
fn mergeable(parts: &[Part]) -> Option<usize> {
    let size = |part: &Part| (part.span().len() / at(TAIL_ROWS)).max(1).ilog(MERGED);
    let sizes: Vec<u32> = parts.iter().map(size).collect();
    let alike = |sizes: &[u32]| sizes.iter().all(|size| sizes.first() == Some(size));
    sizes.windows(MERGED).rposition(alike)
}

/// Values that the filter names.
fn values(filter: &Filter) -> usize {
    match filter {
        Filter::All(parts) | Filter::Any(parts) => parts.iter().map(values).sum(),
        Filter::Not(part) => values(part),
        Filter::In { values, .. } => values.len(),
        Filter::Range { .. } | Filter::Exists { .. } | Filter::Prefix { .. } => 1,
    }
}

#[cfg(test)]
#[path = "growing_tests.rs"]
mod tests;
