//! A payload field that a collection declares, so that searches can filter and group by it.
//!
//! Only declared fields are indexed, and only values of the declared kind: a record may carry
//! anything in its payload, and what does not fit its declaration is kept, is given back, and
//! counts as absent wherever a filter asks. A bad value therefore hides one field, never a point.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::DefinitionError;
use crate::payload::{MAX_NAME_BYTES, Value};

/// Most fields that a collection declares.
pub const MAX_DECLARED_FIELDS: usize = 64;

/// What a declared field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldKind {
    /// A text or a list of texts, compared by their bytes.
    Keyword,
    /// Whole numbers; a float in a record counts too.
    Integer,
    /// Numbers; a whole number in a record counts too.
    Float,
    /// True or false.
    Boolean,
    /// Milliseconds since the Unix epoch.
    Timestamp,
}

/// Every kind, in the order of the documentation.
pub const FIELD_KINDS: [FieldKind; 5] = [
    FieldKind::Keyword,
    FieldKind::Integer,
    FieldKind::Float,
    FieldKind::Boolean,
    FieldKind::Timestamp,
];

impl FieldKind {
    /// Its word in a definition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keyword => "keyword",
            Self::Integer => "integer",
            Self::Float => "float",
            Self::Boolean => "boolean",
            Self::Timestamp => "timestamp",
        }
    }

    /// Whether a record's value is of this kind; one that is not counts as absent.
    ///
    /// Both number kinds hold both kinds of numbers.
    pub fn holds(self, value: &Value) -> bool {
        match self {
            Self::Keyword => matches!(value, Value::String(_) | Value::Strings(_)),
            Self::Integer | Self::Float => matches!(value, Value::Integer(_) | Value::Float(_)),
            Self::Boolean => matches!(value, Value::Boolean(_)),
            Self::Timestamp => matches!(value, Value::Timestamp(_)),
        }
    }
}

impl fmt::Display for FieldKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no kind of field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no kind of field; kinds are keyword, integer, float, boolean, timestamp")]
pub struct FieldKindError(String);

impl FromStr for FieldKind {
    type Err = FieldKindError;

    fn from_str(word: &str) -> Result<Self, FieldKindError> {
        let kind = FIELD_KINDS.into_iter().find(|kind| kind.as_str() == word);
        kind.ok_or_else(|| FieldKindError(word.chars().take(32).collect()))
    }
}

/// Checks count and names of declared fields.
pub(super) fn check(fields: &BTreeMap<String, FieldKind>) -> Result<(), DefinitionError> {
    if fields.len() > MAX_DECLARED_FIELDS {
        return Err(DefinitionError::Fields {
            found: fields.len(),
        });
    }
    let wrong = |name: &&String| !(1..=MAX_NAME_BYTES).contains(&name.len());
    match fields.keys().find(wrong) {
        Some(name) => Err(DefinitionError::FieldName {
            name_start: name.chars().take(32).collect(),
            name_bytes: name.len(),
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{FIELD_KINDS, FieldKind};
    use crate::payload::Value;

    #[test]
    fn every_kind_reads_back_from_its_word() {
        for kind in FIELD_KINDS {
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        let refused = "text".parse::<FieldKind>().unwrap_err().to_string();
        assert!(refused.contains("`text`"), "{refused}");
        assert!(refused.contains("keyword"), "{refused}");
    }

    #[test]
    fn only_the_number_kinds_share_their_values() {
        let values = [
            (FieldKind::Keyword, Value::Strings(Vec::new())),
            (FieldKind::Integer, Value::Float(0.5)),
            (FieldKind::Float, Value::Integer(1)),
            (FieldKind::Boolean, Value::Boolean(true)),
            (FieldKind::Timestamp, Value::Timestamp(1)),
        ];
        let number = |kind| matches!(kind, FieldKind::Integer | FieldKind::Float);
        for (of, value) in &values {
            for kind in FIELD_KINDS {
                let expected = kind == *of || (number(kind) && number(*of));
                assert_eq!(kind.holds(value), expected, "{kind} {value:?}");
            }
        }
    }
}
