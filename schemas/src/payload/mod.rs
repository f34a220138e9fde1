//! Typed, flat payload, and its canonical bytes.
//!
//! The canonical form is what the digest hashes and what the shard's own log keeps: two equal
//! payloads have equal bytes, whatever order or encoding they arrived in. A payload is flat on
//! purpose: every field can be filtered on, and none hides a document.

mod canonical;
mod json;
mod proto;
mod selection;

use std::collections::BTreeMap;

pub use selection::Selection;

/// Most fields of one payload.
pub const MAX_FIELDS: usize = 256;
/// Longest field name, in bytes.
pub const MAX_NAME_BYTES: usize = 256;

/// One field's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text.
    String(String),
    /// A whole number.
    Integer(i64),
    /// A finite number.
    Float(f64),
    /// True or false.
    Boolean(bool),
    /// Milliseconds since the Unix epoch.
    Timestamp(i64),
    /// Several texts, in the writer's order.
    Strings(Vec<String>),
}

/// Field name to value, sorted by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Payload(pub BTreeMap<String, Value>);

/// Why a payload is refused, or its canonical bytes do not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// Too many fields.
    #[error("payload has {found} fields, allowed are {MAX_FIELDS}")]
    TooManyFields {
        /// As given.
        found: usize,
    },
    /// An empty or overlong name.
    #[error(
        "payload field `{name_start}` has a name of {name_bytes} bytes, allowed are 1 to {MAX_NAME_BYTES}"
    )]
    NameLength {
        /// The name's first characters.
        name_start: String,
        /// Its length.
        name_bytes: usize,
    },
    /// NaN or infinity.
    #[error("payload field `{field}` is {value}, numbers have to be finite")]
    NotFinite {
        /// The field's name.
        field: String,
        /// Its value, as text.
        value: String,
    },
    /// A value of a kind that no payload holds.
    #[error(
        "payload field `{field}` is {found}; allowed are a text, a number, true or false, a timestamp and a list of texts"
    )]
    Kind {
        /// The field's name.
        field: String,
        /// What was found.
        found: &'static str,
    },
    /// The canonical bytes end too early.
    #[error("canonical payload ends after {len} bytes, {missing} more are needed")]
    Short {
        /// Bytes there are.
        len: usize,
        /// Bytes that lack at least.
        missing: usize,
    },
    /// The bytes are not what [`Payload::encode_canonical`] makes.
    #[error("canonical payload is not canonical at byte {at}: {what}")]
    NotCanonical {
        /// Where.
        at: usize,
        /// What stands there.
        what: &'static str,
    },
}

impl Payload {
    /// Checks names, count of fields, and that every number is finite.
    ///
    /// # Errors
    /// The first fault, in the order of the fields' names.
    pub fn check(&self) -> Result<(), PayloadError> {
        if self.0.len() > MAX_FIELDS {
            return Err(PayloadError::TooManyFields {
                found: self.0.len(),
            });
        }
        for (name, value) in &self.0 {
            check_name(name)?;
            if let Value::Float(number) = value {
                check_finite(name, *number)?;
            }
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), PayloadError> {
    if (1..=MAX_NAME_BYTES).contains(&name.len()) {
        return Ok(());
    }
    Err(PayloadError::NameLength {
        name_start: name.chars().take(32).collect(),
        name_bytes: name.len(),
    })
}

fn check_finite(field: &str, number: f64) -> Result<(), PayloadError> {
    if number.is_finite() {
        return Ok(());
    }
    Err(PayloadError::NotFinite {
        field: field.to_owned(),
        value: number.to_string(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{Payload, PayloadError, Value};

    fn one(name: &str, value: Value) -> Payload {
        Payload([(name.to_owned(), value)].into())
    }

    #[test]
    fn each_limit_is_named() {
        let many = (0..257).map(|n| (format!("f{n}"), Value::Integer(n)));
        let many = Payload(many.collect());
        assert_eq!(
            many.check(),
            Err(PayloadError::TooManyFields { found: 257 })
        );
        for name in [String::new(), "é".repeat(129)] {
            let refused = one(&name, Value::Boolean(true)).check().unwrap_err();
            assert!(matches!(refused, PayloadError::NameLength { .. }));
        }
        assert_eq!(one(&"é".repeat(128), Value::Boolean(true)).check(), Ok(()));
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let refused = one("score", Value::Float(number)).check().unwrap_err();
            assert!(refused.to_string().contains("`score`"), "{refused}");
        }
    }
}

#[cfg(test)]
pub(crate) mod arbitrary {
    //! Payloads for property tests.

    use proptest::prelude::*;

    use super::{Payload, Value};

    pub(crate) fn value() -> impl Strategy<Value = Value> {
        let finite = any::<f64>().prop_filter("finite", |number| number.is_finite());
        prop_oneof![
            "\\PC{0,12}".prop_map(Value::String),
            any::<i64>().prop_map(Value::Integer),
            finite.prop_map(Value::Float),
            any::<bool>().prop_map(Value::Boolean),
            any::<i64>().prop_map(Value::Timestamp),
            proptest::collection::vec("\\PC{0,6}", 0..4).prop_map(Value::Strings),
        ]
    }

    pub(crate) fn payload() -> impl Strategy<Value = Payload> {
        proptest::collection::btree_map("\\PC{1,8}", value(), 0..6).prop_map(Payload)
    }
}
