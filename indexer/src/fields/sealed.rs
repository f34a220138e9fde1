//! A sealed payload index, used where its bytes lie: a mapped file, or memory.
//!
//! A filter is first *resolved*: every condition becomes ranges of keys, with bounds of how many
//! rows have them, at the price of some binary searches. Then it is evaluated, narrowest part of
//! an `All` first, each part within the rows that are left: a part that many rows match is looked
//! up for the few that are left rather than written out.

use shoal_runtime::ErrorKind;
use shoal_schemas::{FieldKind, filter::Filter};

use super::{
    Estimate,
    columns::Told,
    keyed::{Damage, KeyRanges, View, add_words},
    layout::{Column, Directory, Exists, OpenError, Section},
    rows::{Bits, RowSet, Span, at},
};

/// Looking a row up costs as much as writing this many out.
const PROBE_COST: usize = 4;

/// Why a payload index does not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The segment was made before the collection declared the field so.
    #[error("field `{field}` is not in the payload index of the segment{}", wanted(.kind))]
    NotIndexed {
        /// The field's name.
        field: String,
        /// The kind that was asked for, if one was.
        kind: Option<FieldKind>,
    },
    /// The bytes contradict themselves.
    #[error("payload index of field `{field}` is damaged: {what}")]
    Damaged {
        /// The field's name.
        field: String,
        /// What is wrong.
        what: &'static str,
    },
}

impl ReadError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotIndexed { .. } => ErrorKind::Bug,
            Self::Damaged { .. } => ErrorKind::Corrupt,
        }
    }
}

fn wanted(kind: &Option<FieldKind>) -> String {
    kind.map_or_else(String::new, |kind| format!(" as {kind}"))
}

/// The payload index of a segment that takes no more rows.
///
/// Bytes that are damaged give errors or other rows, never a panic; only a checksum over all of
/// them, which the caller keeps, tells the latter.
#[derive(Debug)]
pub struct Sealed<B> {
    bytes: B,
    directory: Directory,
    body_at: usize,
}

/// A filter's condition as keys of this index.
struct Resolved<'a> {
    node: Node<'a>,
    estimate: Estimate,
}

enum Node<'a> {
    /// Narrowest part first.
    All(Vec<Resolved<'a>>),
    Any(Vec<Resolved<'a>>),
    Not(Box<Resolved<'a>>),
    Exists(&'a Column),
    Keys(&'a Column, Vec<(View<'a>, KeyRanges)>),
}

impl<B: AsRef<[u8]>> Sealed<B> {
    /// Reads the header and the directory, not the sections.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(bytes: B) -> Result<Self, OpenError> {
        let (directory, body_at) = Directory::decode(bytes.as_ref())?;
        Ok(Self {
            bytes,
            directory,
            body_at,
        })
    }

    /// The bytes as they lie.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// The row behind the last one.
    pub fn end_row(&self) -> u32 {
        self.directory.span.end
    }

    /// The declared fields it was made for, by name.
    pub fn fields(&self) -> impl Iterator<Item = (&str, FieldKind)> {
        let columns = self.directory.columns.iter();
        columns.map(|column| (column.name.as_str(), column.kind))
    }

    /// The rows that match.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn evaluate(&self, filter: &Filter) -> Result<RowSet, ReadError> {
        let resolved = self.resolve(filter)?;
        self.find(&resolved, None)
    }

    /// How many rows match at least and at most, at the price of looking the filter's values up.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn estimate(&self, filter: &Filter) -> Result<Estimate, ReadError> {
        Ok(self.resolve(filter)?.estimate)
    }

    pub(super) fn span(&self) -> Span {
        self.directory.span
    }

    fn body(&self) -> &[u8] {
        let bytes = self.bytes.as_ref();
        bytes.get(self.body_at..).unwrap_or_default()
    }

    pub(super) fn column(&self, name: &str, kind: Option<FieldKind>) -> Result<&Column, ReadError> {
        let columns = &self.directory.columns;
        let place = columns.binary_search_by(|column| column.name.as_str().cmp(name));
        let column = place.ok().and_then(|place| columns.get(place));
        column
            .filter(|column| kind.is_none_or(|kind| column.kind == kind))
            .ok_or_else(|| ReadError::NotIndexed {
                field: name.to_owned(),
                kind,
            })
    }

    /// Tells everything that is known of a field.
    pub(super) fn read_column(
        &self,
        name: &str,
        mut tell: impl FnMut(Told<'_>, &RowSet),
    ) -> Result<(), ReadError> {
        let column = self.column(name, None)?;
        let damaged = |damage| damaged(column, damage);
        tell(Told::Exists, &self.exists(column).map_err(damaged)?);
        for view in self.views(column) {
            view.for_each(|key, rows| tell(Told::Key(key), rows))
                .map_err(damaged)?;
        }
        Ok(())
    }

    fn views<'a>(&'a self, column: &'a Column) -> impl Iterator<Item = View<'a>> {
        let (span, body) = (self.directory.span, self.body());
        let keyed = column.keyed.iter();
        keyed.map(move |keyed| View::new(keyed, column.kind, span, body))
    }

    fn resolve<'a>(&'a self, filter: &Filter) -> Result<Resolved<'a>, ReadError> {
        let rows = self.directory.span.len();
        let parts = |parts: &[Filter]| -> Result<Vec<Resolved<'a>>, ReadError> {
            parts.iter().map(|part| self.resolve(part)).collect()
        };
        Ok(match filter {
            Filter::All(of) => {
                let mut parts = parts(of)?;
                parts.sort_by_key(|part| part.estimate.upper);
                let estimates = parts.iter().map(|part| part.estimate);
                Resolved {
                    estimate: Estimate::all(estimates, rows),
                    node: Node::All(parts),
                }
            }
            Filter::Any(of) => {
                let parts = parts(of)?;
                let estimates = parts.iter().map(|part| part.estimate);
                Resolved {
                    estimate: Estimate::any(estimates, rows),
                    node: Node::Any(parts),
                }
            }
            Filter::Not(of) => {
                let part = self.resolve(of)?;
                Resolved {
                    estimate: part.estimate.not(rows),
                    node: Node::Not(Box::new(part)),
                }
            }
            Filter::Exists { field } => {
                let column = self.column(field, None)?;
                Resolved {
                    estimate: Estimate::exactly(self.count_exists(column)),
                    node: Node::Exists(column),
                }
            }
            Filter::In { field, values } => self.keys(field, |view| view.keys_in(values))?,
            Filter::Range { field, bounds } => self.keys(field, |view| view.keys_within(bounds))?,
            Filter::Prefix { field, prefix } => {
                self.keys(field, |view| view.keys_from(prefix.as_bytes()))?
            }
        })
    }

    fn keys<'a>(
        &'a self,
        field: &str,
        select: impl Fn(&View<'a>) -> Result<KeyRanges, Damage>,
    ) -> Result<Resolved<'a>, ReadError> {
        let column = self.column(field, None)?;
        let (mut estimate, mut keys) = (Estimate::default(), Vec::new());
        for view in self.views(column) {
            let selected = select(&view).and_then(|ranges| {
                let count = view.count(&ranges)?;
                Ok((ranges, count))
            });
            let (ranges, (total, most)) = selected.map_err(|damage| damaged(column, damage))?;
            // The forms of one field share no rows: a row has one value, or a list of texts.
            let one = Estimate {
                lower: if view.is_single() { total } else { most },
                upper: total,
            };
            estimate = estimate.plus(one);
            if total > 0 {
                keys.push((view, ranges));
            }
        }
        Ok(Resolved {
            estimate: estimate.at_most(self.count_exists(column)),
            node: Node::Keys(column, keys),
        })
    }

    /// The rows that match; within a set, those of it.
    fn find(&self, part: &Resolved<'_>, within: Option<&RowSet>) -> Result<RowSet, ReadError> {
        if part.estimate.upper == 0 || within.is_some_and(RowSet::is_empty) {
            return Ok(RowSet::none());
        }
        let every = || within.map_or_else(|| RowSet::all(self.directory.span), RowSet::clone);
        match &part.node {
            Node::All(parts) => {
                let mut left: Option<RowSet> = None;
                for part in parts {
                    left = Some(self.find(part, left.as_ref().or(within))?);
                }
                Ok(left.unwrap_or_else(every))
            }
            Node::Any(parts) => {
                let mut found = RowSet::none();
                for part in parts {
                    found = found.or(self.find(part, within)?);
                }
                Ok(found)
            }
            Node::Not(part) => Ok(every().minus(&self.find(part, within)?)),
            Node::Exists(column) => {
                let rows = self
                    .exists(column)
                    .map_err(|damage| damaged(column, damage))?;
                Ok(narrow(rows, within))
            }
            Node::Keys(column, keys) => {
                let mut found = RowSet::none();
                for (view, ranges) in keys {
                    let rows = match within {
                        Some(within) if pays_to_probe(view, within, part.estimate) => {
                            view.probe(ranges, within)
                        }
                        _ => {
                            let rows = view.rows(ranges);
                            narrow(rows.map_err(|damage| damaged(column, damage))?, within)
                        }
                    };
                    found = found.or(rows);
                }
                Ok(found)
            }
        }
    }

    fn count_exists(&self, column: &Column) -> usize {
        let rows = self.directory.span.len();
        match &column.exists {
            Exists::None => 0,
            Exists::All => rows,
            Exists::List(section) => (section.len() / 4).min(rows),
            Exists::Bits(count, _) => at(*count).min(rows),
        }
    }

    fn exists(&self, column: &Column) -> Result<RowSet, Damage> {
        let span = self.directory.span;
        let section = |section: &Section| self.body().get(section.clone()).unwrap_or_default();
        match &column.exists {
            Exists::None => Ok(RowSet::none()),
            Exists::All => Ok(RowSet::all(span)),
            Exists::List(rows) => {
                let (rows, _) = section(rows).as_chunks();
                let list: Vec<u32> = rows.iter().map(|row| u32::from_le_bytes(*row)).collect();
                let rises = list.is_sorted_by(|a, b| a < b);
                let lies_within = list.iter().all(|row| span.place(*row).is_some());
                match rises && lies_within {
                    true => Ok(RowSet::list(list)),
                    false => Err(Damage("rows that have the field do not rise")),
                }
            }
            Exists::Bits(_, words) => {
                let mut bits = Bits::empty(span);
                let (words, _) = section(words).as_chunks();
                add_words(words, 0, span, &mut bits)?;
                Ok(RowSet::bits(bits))
            }
        }
    }
}

fn damaged(column: &Column, Damage(what): Damage) -> ReadError {
    ReadError::Damaged {
        field: column.name.clone(),
        what,
    }
}

fn narrow(rows: RowSet, within: Option<&RowSet>) -> RowSet {
    match within {
        Some(within) => rows.and(within),
        None => rows,
    }
}

fn pays_to_probe(view: &View<'_>, within: &RowSet, matches: Estimate) -> bool {
    view.has_ranks() && within.len().saturating_mul(PROBE_COST) <= matches.upper
}

#[cfg(test)]
#[path = "sealed_tests.rs"]
mod tests;
