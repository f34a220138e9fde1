//! What a filter means: the definition that every faster evaluation has to agree with.

use std::cmp::Ordering;

use super::{Fields, Filter, compare::compare};
use crate::payload::{Payload, Value};

impl Filter {
    /// Whether a payload matches, where a value of another kind than declared counts as absent.
    ///
    /// This is what a search means. It differs from [`Filter::matches`] in `Exists` alone: every
    /// other condition names values of the declared kind, so no other kind can meet it.
    pub fn matches_declared(&self, payload: &Payload, fields: &Fields) -> bool {
        self.decide(&|field| {
            let value = payload.0.get(field)?;
            fields.get(field)?.holds(value).then_some(value)
        })
    }

    /// Whether a payload matches as it stands, whatever the collection declares.
    pub fn matches(&self, payload: &Payload) -> bool {
        self.decide(&|field| payload.0.get(field))
    }

    fn decide<'p>(&self, value_of: &dyn Fn(&str) -> Option<&'p Value>) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.decide(value_of)),
            Self::Any(parts) => parts.iter().any(|part| part.decide(value_of)),
            Self::Not(part) => !part.decide(value_of),
            Self::In { field, values } => any_item(value_of(field), &|item| {
                let mut orders = values.iter().map(|value| compare(item, value));
                orders.any(|order| order == Some(Ordering::Equal))
            }),
            Self::Range { field, bounds } => {
                any_item(value_of(field), &|item| bounds.contain(item))
            }
            Self::Exists { field } => value_of(field).is_some(),
            Self::Prefix { field, prefix } => any_item(value_of(field), &|item| match item {
                Value::String(text) => text.starts_with(prefix.as_str()),
                _ => false,
            }),
        }
    }
}

/// Whether the value, or an item of it if it is a list, meets a condition.
fn any_item(value: Option<&Value>, meets: &dyn Fn(&Value) -> bool) -> bool {
    match value {
        None => false,
        Some(Value::Strings(items)) => items.iter().any(|item| meets(&Value::String(item.clone()))),
        Some(value) => meets(value),
    }
}
