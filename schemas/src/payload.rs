//! Typed, flat payload, and its canonical bytes.
//!
//! The canonical form is what the digest hashes and what the shard's own log keeps: two equal
//! payloads have equal bytes, whatever order or encoding they arrived in.

use std::collections::BTreeMap;

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
