//! A filter as the protobuf API carries it.

use std::ops::Bound;

use super::{Bounds, Filter, FilterError};
use crate::{
    payload::Value,
    v1::{self, filter::Condition},
};

const CONDITIONS: &str = "set one of all, any, not, in, range, exists, prefix";

impl Filter {
    /// The filter as a message.
    pub fn to_proto(&self) -> v1::Filter {
        let list = |parts: &[Self]| v1::FilterList {
            parts: parts.iter().map(Self::to_proto).collect(),
        };
        let condition = match self {
            Self::All(parts) => Condition::All(list(parts)),
            Self::Any(parts) => Condition::Any(list(parts)),
            Self::Not(part) => Condition::Not(Box::new(part.to_proto())),
            Self::In { field, values } => Condition::In(v1::FieldIn {
                field: field.clone(),
                values: values.iter().map(Value::to_proto).collect(),
            }),
            Self::Range { field, bounds } => Condition::Range(bounds.to_proto(field)),
            Self::Exists { field } => Condition::Exists(v1::FieldExists {
                field: field.clone(),
            }),
            Self::Prefix { field, prefix } => Condition::Prefix(v1::FieldPrefix {
                field: field.clone(),
                prefix: prefix.clone(),
            }),
        };
        v1::Filter {
            condition: Some(condition),
        }
    }

    /// Reads a message. What it says is checked by [`Filter::resolve`].
    ///
    /// # Errors
    /// [`FilterError::Shape`] for a message without a condition, as a newer client may send it,
    /// a value without a kind, and two bounds on one side.
    pub fn from_proto(filter: v1::Filter) -> Result<Self, FilterError> {
        read(filter, &mut String::from("filter"))
    }
}

impl Bounds {
    fn to_proto(&self, field: &str) -> v1::FieldRange {
        let mut range = v1::FieldRange {
            field: field.to_owned(),
            ..v1::FieldRange::default()
        };
        match &self.lower {
            Bound::Included(value) => range.gte = Some(value.to_proto()),
            Bound::Excluded(value) => range.gt = Some(value.to_proto()),
            Bound::Unbounded => {}
        }
        match &self.upper {
            Bound::Included(value) => range.lte = Some(value.to_proto()),
            Bound::Excluded(value) => range.lt = Some(value.to_proto()),
            Bound::Unbounded => {}
        }
        range
    }
}

fn shape(path: &str, what: impl Into<String>) -> FilterError {
    FilterError::Shape {
        path: path.to_owned(),
        what: what.into(),
    }
}

fn read(filter: v1::Filter, path: &mut String) -> Result<Filter, FilterError> {
    let Some(condition) = filter.condition else {
        return Err(shape(
            path,
            format!("has no condition, or one this version does not know; {CONDITIONS}"),
        ));
    };
    Ok(match condition {
        Condition::All(list) => Filter::All(read_parts(list, "all", path)?),
        Condition::Any(list) => Filter::Any(read_parts(list, "any", path)?),
        Condition::Not(part) => {
            let len = path.len();
            path.push_str(".not");
            let part = read(*part, path)?;
            path.truncate(len);
            Filter::Not(Box::new(part))
        }
        Condition::In(v1::FieldIn { field, values }) => {
            let values = values.into_iter().map(|value| read_value(value, path));
            Filter::In {
                values: values.collect::<Result<_, _>>()?,
                field,
            }
        }
        Condition::Range(range) => Filter::Range {
            bounds: Bounds {
                lower: read_bound(range.gte, range.gt, "gte and gt", path)?,
                upper: read_bound(range.lte, range.lt, "lte and lt", path)?,
            },
            field: range.field,
        },
        Condition::Exists(v1::FieldExists { field }) => Filter::Exists { field },
        Condition::Prefix(v1::FieldPrefix { field, prefix }) => Filter::Prefix { field, prefix },
    })
}

fn read_parts(
    list: v1::FilterList,
    word: &str,
    path: &mut String,
) -> Result<Vec<Filter>, FilterError> {
    let len = path.len();
    let mut parts = Vec::with_capacity(list.parts.len());
    for (at, part) in list.parts.into_iter().enumerate() {
        path.push_str(&format!(".{word}[{at}]"));
        parts.push(read(part, path)?);
        path.truncate(len);
    }
    Ok(parts)
}

fn read_value(value: v1::Value, path: &str) -> Result<Value, FilterError> {
    let kind = value.kind.ok_or_else(|| {
        shape(
            path,
            "a value is empty or of a kind this version does not know",
        )
    })?;
    Ok(Value::from_proto(kind))
}

fn read_bound(
    included: Option<v1::Value>,
    excluded: Option<v1::Value>,
    both: &str,
    path: &str,
) -> Result<Bound<Value>, FilterError> {
    match (included, excluded) {
        (None, None) => Ok(Bound::Unbounded),
        (Some(value), None) => read_value(value, path).map(Bound::Included),
        (None, Some(value)) => read_value(value, path).map(Bound::Excluded),
        (Some(_), Some(_)) => Err(shape(path, format!("range says {both}; set one of them"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::arbitrary, Filter};
    use crate::v1::{self, filter::Condition};

    #[test]
    fn a_part_without_a_condition_is_refused_with_its_place() {
        let empty = v1::Filter { condition: None };
        let all = Condition::All(v1::FilterList {
            parts: vec![
                Filter::Any(Vec::new()).to_proto(),
                v1::Filter {
                    condition: Some(Condition::Not(Box::new(empty))),
                },
            ],
        });
        let refused = Filter::from_proto(v1::Filter {
            condition: Some(all),
        });
        let refused = refused.unwrap_err().to_string();
        assert!(refused.starts_with("filter.all[1].not: "), "{refused}");
        assert!(refused.contains("exists"), "{refused}");
    }

    #[test]
    fn two_bounds_on_one_side_are_refused() {
        let value = |number| crate::Value::Integer(number).to_proto();
        let range = v1::FieldRange {
            field: "year".to_owned(),
            gte: Some(value(1)),
            gt: Some(value(1)),
            ..v1::FieldRange::default()
        };
        let refused = Filter::from_proto(v1::Filter {
            condition: Some(Condition::Range(range)),
        });
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("gte and gt"), "{refused}");
    }

    proptest! {
        #[test]
        fn messages_read_back(filter in arbitrary::filter()) {
            prop_assert_eq!(Filter::from_proto(filter.to_proto()).unwrap(), filter);
        }
    }
}
