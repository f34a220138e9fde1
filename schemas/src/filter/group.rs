//! Into which groups a payload's value puts a hit.

use super::compare::as_whole;
use crate::{FieldKind, payload::Value};

impl FieldKind {
    /// The groups of a record's value, each once and in one form: equal values are one group.
    ///
    /// A list of texts is in the group of each item. A float that is a whole number is in that
    /// number's group. A value of another kind than declared is in none.
    pub fn groups(self, value: &Value) -> Vec<Value> {
        if !self.holds(value) {
            return Vec::new();
        }
        match value {
            Value::Strings(items) => {
                let mut items = items.clone();
                items.sort_unstable();
                items.dedup();
                items.into_iter().map(Value::String).collect()
            }
            Value::Float(number) => match as_whole(*number) {
                Some(whole) => vec![Value::Integer(whole)],
                None => vec![Value::Float(*number)],
            },
            other => vec![other.clone()],
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{FieldKind, payload::Value};

    #[test]
    fn equal_values_are_in_one_group_whatever_their_form() {
        let text = |text: &str| Value::String(text.to_owned());
        let list = Value::Strings(["b", "a", "b"].map(str::to_owned).into());
        assert_eq!(FieldKind::Keyword.groups(&list), [text("a"), text("b")]);
        assert_eq!(FieldKind::Keyword.groups(&text("a")), [text("a")]);
        for zero in [Value::Integer(0), Value::Float(0.0), Value::Float(-0.0)] {
            assert_eq!(FieldKind::Integer.groups(&zero), [Value::Integer(0)]);
        }
        for odd in [0.5, 1e300] {
            assert_eq!(
                FieldKind::Float.groups(&Value::Float(odd)),
                [Value::Float(odd)]
            );
        }
        assert!(FieldKind::Integer.groups(&text("3")).is_empty());
        assert!(
            FieldKind::Keyword
                .groups(&Value::Strings(Vec::new()))
                .is_empty()
        );
    }
}
