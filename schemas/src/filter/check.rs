//! Whether a filter fits the fields that a collection declares.

use std::ops::Bound;

use super::{Bounds, Fields, Filter, FilterError, MAX_DEPTH, MAX_NODES, MAX_VALUES};
use crate::{FieldKind, json::time, payload::Value};

impl Filter {
    /// Fits a filter from outside to the declared fields and checks it.
    ///
    /// A whole number and an RFC 3339 text that meet a field of timestamps become timestamps, for
    /// JSON has no other way to write one without an object.
    ///
    /// # Errors
    /// [`FilterError`] for the first fault, from left to right.
    pub fn resolve(mut self, fields: &Fields) -> Result<Self, FilterError> {
        self.check_size()?;
        self.read_timestamps(fields);
        self.check(fields)?;
        Ok(self)
    }

    /// Checks that every field is declared, that conditions and values fit its kind, and that
    /// the filter is within its limits of depth and size.
    ///
    /// # Errors
    /// [`FilterError`] for the first fault, from left to right.
    pub fn check(&self, fields: &Fields) -> Result<(), FilterError> {
        self.check_size()?;
        self.check_at(fields, &mut String::from("filter"))
    }

    /// Depth first, so that nothing below recurses without an end.
    fn check_size(&self) -> Result<(), FilterError> {
        let (mut nodes, mut values) = (0_usize, 0_usize);
        self.measure(1, &mut nodes, &mut values, &mut String::from("filter"))
    }

    fn measure(
        &self,
        depth: usize,
        nodes: &mut usize,
        values: &mut usize,
        path: &mut String,
    ) -> Result<(), FilterError> {
        if depth > MAX_DEPTH {
            return Err(FilterError::TooDeep { path: path.clone() });
        }
        *nodes += 1;
        if *nodes > MAX_NODES {
            return Err(FilterError::TooManyNodes);
        }
        if let Self::In { values: named, .. } = self {
            *values += named.len();
            if *values > MAX_VALUES {
                return Err(FilterError::TooManyValues);
            }
        }
        self.each_part(path, &mut |part, path| {
            part.measure(depth + 1, nodes, values, path)
        })
    }

    /// Calls `visit` with every direct part and its path.
    fn each_part(
        &self,
        path: &mut String,
        visit: &mut dyn FnMut(&Self, &mut String) -> Result<(), FilterError>,
    ) -> Result<(), FilterError> {
        let len = path.len();
        match self {
            Self::All(parts) | Self::Any(parts) => {
                let word = if matches!(self, Self::All(_)) {
                    "all"
                } else {
                    "any"
                };
                for (at, part) in parts.iter().enumerate() {
                    path.push_str(&format!(".{word}[{at}]"));
                    visit(part, path)?;
                    path.truncate(len);
                }
                Ok(())
            }
            Self::Not(part) => {
                path.push_str(".not");
                visit(part, path)?;
                path.truncate(len);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn check_at(&self, fields: &Fields, path: &mut String) -> Result<(), FilterError> {
        match self {
            Self::All(_) | Self::Any(_) | Self::Not(_) => {
                return self.each_part(path, &mut |part, path| part.check_at(fields, path));
            }
            Self::In { field, values } => {
                let kind = declared(fields, field, path)?;
                for value in values {
                    fits(kind, field, value, path)?;
                }
            }
            Self::Range { field, bounds } => {
                let kind = declared(fields, field, path)?;
                if kind == FieldKind::Boolean {
                    return Err(FilterError::Condition {
                        path: path.clone(),
                        condition: "range",
                        field: field.clone(),
                        kind,
                        works_on: "integer, float, timestamp and keyword fields",
                    });
                }
                let mut ends = bounds.ends().peekable();
                if ends.peek().is_none() {
                    return Err(FilterError::NoBound {
                        path: path.clone(),
                        field: field.clone(),
                    });
                }
                for end in ends {
                    fits(kind, field, end, path)?;
                }
            }
            Self::Exists { field } => {
                declared(fields, field, path)?;
            }
            Self::Prefix { field, .. } => {
                let kind = declared(fields, field, path)?;
                if kind != FieldKind::Keyword {
                    return Err(FilterError::Condition {
                        path: path.clone(),
                        condition: "prefix",
                        field: field.clone(),
                        kind,
                        works_on: "keyword fields",
                    });
                }
            }
        }
        Ok(())
    }

    fn read_timestamps(&mut self, fields: &Fields) {
        let is_time = |field: &String| fields.get(field) == Some(&FieldKind::Timestamp);
        match self {
            Self::All(parts) | Self::Any(parts) => {
                for part in parts {
                    part.read_timestamps(fields);
                }
            }
            Self::Not(part) => part.read_timestamps(fields),
            Self::In { field, values } if is_time(field) => {
                values.iter_mut().for_each(read_timestamp);
            }
            Self::Range { field, bounds } if is_time(field) => {
                for end in [&mut bounds.lower, &mut bounds.upper] {
                    if let Bound::Included(value) | Bound::Excluded(value) = end {
                        read_timestamp(value);
                    }
                }
            }
            Self::In { .. } | Self::Range { .. } | Self::Exists { .. } | Self::Prefix { .. } => {}
        }
    }
}

impl Bounds {
    /// The values of the bounds that are set.
    fn ends(&self) -> impl Iterator<Item = &Value> {
        [&self.lower, &self.upper]
            .into_iter()
            .filter_map(|end| match end {
                Bound::Included(value) | Bound::Excluded(value) => Some(value),
                Bound::Unbounded => None,
            })
    }
}

/// Turns what stands for a timestamp into one; anything else is left for the check to refuse.
fn read_timestamp(value: &mut Value) {
    let millis = match value {
        Value::Integer(millis) => Some(*millis),
        Value::String(text) => time::rfc3339(text.as_bytes()),
        _ => None,
    };
    if let Some(millis) = millis {
        *value = Value::Timestamp(millis);
    }
}

fn declared(fields: &Fields, field: &str, path: &str) -> Result<FieldKind, FilterError> {
    fields
        .get(field)
        .copied()
        .ok_or_else(|| FilterError::Undeclared {
            path: path.to_owned(),
            field: field.chars().take(80).collect(),
            declared: fields
                .iter()
                .map(|(name, kind)| (name.clone(), *kind))
                .collect(),
        })
}

/// Passes if a field of this kind compares with the value.
fn fits(kind: FieldKind, field: &str, value: &Value, path: &str) -> Result<(), FilterError> {
    let finite = !matches!(value, Value::Float(number) if !number.is_finite());
    if kind.holds(value) && finite && !matches!(value, Value::Strings(_)) {
        return Ok(());
    }
    Err(FilterError::Value {
        path: path.to_owned(),
        field: field.to_owned(),
        kind,
        wanted: match kind {
            FieldKind::Keyword => "a text",
            FieldKind::Integer | FieldKind::Float => "a finite number",
            FieldKind::Boolean => "true or false",
            FieldKind::Timestamp => {
                "a time: whole milliseconds since 1970, an RFC 3339 text or a timestamp"
            }
        },
        found: described(value),
    })
}

/// A value for an error's text.
fn described(value: &Value) -> String {
    match value {
        Value::String(text) => format!("the text `{}`", text.chars().take(40).collect::<String>()),
        Value::Integer(number) => format!("the number {number}"),
        Value::Float(number) => format!("the number {number}"),
        Value::Boolean(truth) => truth.to_string(),
        Value::Timestamp(millis) => format!("the timestamp {millis}"),
        Value::Strings(_) => "a list; name its items as values of their own".to_owned(),
    }
}
