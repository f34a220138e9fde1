//! The filter language: which points a search, a count or a scroll is about.
//!
//! A filter is a tree over the fields that a collection declares. What it means is
//! [`Filter::matches_declared`] and nothing else: whatever evaluates filters faster has to agree
//! with it on every payload. A filter from outside goes through [`Filter::resolve`] once, at the
//! edge; past that every field is declared and every value fits its field.

mod check;
pub mod compare;
mod group;
mod json;
mod matches;
mod proto;

use std::{collections::BTreeMap, ops::Bound};

use crate::{FieldKind, payload::Value};

/// Deepest nesting of `All`, `Any` and `Not`; a filter without any of them is 1 deep.
pub const MAX_DEPTH: usize = 32;
/// Most nodes of one filter.
pub const MAX_NODES: usize = 1024;
/// Most values that all `In` of one filter name together.
pub const MAX_VALUES: usize = 65_536;

/// Declared fields of a collection by name.
pub type Fields = BTreeMap<String, FieldKind>;

/// A condition on a point's payload.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Every part matches; without parts, everything does.
    All(Vec<Filter>),
    /// At least one part matches; without parts, nothing does.
    Any(Vec<Filter>),
    /// The part does not match: also where the field is absent.
    Not(Box<Filter>),
    /// The field equals one of the values; a list of texts does if one of its items does.
    In {
        /// The field's name.
        field: String,
        /// Texts, numbers, booleans or timestamps; none matches nothing.
        values: Vec<Value>,
    },
    /// The field lies within the bounds; of a list of texts, one of its items does.
    Range {
        /// The field's name.
        field: String,
        /// At least one of the two bounds is set.
        bounds: Bounds,
    },
    /// The field is there; also if it is an empty list.
    Exists {
        /// The field's name.
        field: String,
    },
    /// The text, or an item of the list of texts, begins with these bytes.
    Prefix {
        /// The field's name.
        field: String,
        /// How it begins; empty matches every text.
        prefix: String,
    },
}

/// The ends of a range. Numbers compare exactly with numbers, timestamps with timestamps, texts
/// with texts by their bytes; anything else is outside.
#[derive(Clone, Debug, PartialEq)]
pub struct Bounds {
    /// From where.
    pub lower: Bound<Value>,
    /// Up to where.
    pub upper: Bound<Value>,
}

/// Why a filter is refused. Every case says where: `all[1].not` is the part of the second part
/// of the outermost `all`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// A field that the collection does not declare.
    #[error("{path}: field `{field}` is not declared; declared are {}", listed(.declared))]
    Undeclared {
        /// Where in the filter.
        path: String,
        /// The field's name.
        field: String,
        /// Every field there is, with its kind.
        declared: Vec<(String, FieldKind)>,
    },
    /// A condition that fields of this kind do not have.
    #[error(
        "{path}: `{condition}` does not work on field `{field}`, which is of kind {kind}; it works on {works_on}"
    )]
    Condition {
        /// Where in the filter.
        path: String,
        /// Its word.
        condition: &'static str,
        /// The field's name.
        field: String,
        /// As declared.
        kind: FieldKind,
        /// Kinds that have it.
        works_on: &'static str,
    },
    /// A value of another kind than the field.
    #[error(
        "{path}: field `{field}` is of kind {kind} and compares with {wanted}, not with {found}"
    )]
    Value {
        /// Where in the filter.
        path: String,
        /// The field's name.
        field: String,
        /// As declared.
        kind: FieldKind,
        /// What it compares with.
        wanted: &'static str,
        /// What was given.
        found: String,
    },
    /// A range without ends.
    #[error(
        "{path}: range on field `{field}` has no bound; set gte, gt, lte or lt, or ask whether it exists"
    )]
    NoBound {
        /// Where in the filter.
        path: String,
        /// The field's name.
        field: String,
    },
    /// Too deeply nested.
    #[error(
        "{path}: filter is nested more than {MAX_DEPTH} deep; join parts into one list of all or any"
    )]
    TooDeep {
        /// Where in the filter.
        path: String,
    },
    /// Too many parts.
    #[error("filter has more than {MAX_NODES} parts; name values of one field in one list of in")]
    TooManyNodes,
    /// Too many values.
    #[error("filter names more than {MAX_VALUES} values; split the search")]
    TooManyValues,
    /// It does not read as a filter.
    #[error("{path}: {what}")]
    Shape {
        /// Where in the filter.
        path: String,
        /// What is wrong and what may stand there.
        what: String,
    },
}

/// Declared fields for an error's text, at most twenty.
fn listed(declared: &[(String, FieldKind)]) -> String {
    const SHOWN: usize = 20;
    if declared.is_empty() {
        return "none: a collection says its fields when it is created".to_owned();
    }
    let shown = declared.iter().take(SHOWN);
    let shown: Vec<String> = shown
        .map(|(name, kind)| format!("{name} ({kind})"))
        .collect();
    match declared.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

impl Filter {
    /// Every field that the filter names, as often as it names it.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        let mut left = vec![self];
        std::iter::from_fn(move || {
            loop {
                match left.pop()? {
                    Self::All(parts) | Self::Any(parts) => left.extend(parts.iter().rev()),
                    Self::Not(part) => left.push(part),
                    Self::In { field, .. }
                    | Self::Range { field, .. }
                    | Self::Exists { field }
                    | Self::Prefix { field, .. } => return Some(field.as_str()),
                }
            }
        })
    }
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;

#[cfg(test)]
pub(crate) mod arbitrary;
