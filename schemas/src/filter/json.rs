//! A filter as JSON, as a person writes it in a body or on a command line.
//!
//! ```json
//! {"all": [
//!   {"field": "category", "equals": 3},
//!   {"field": "words", "in": ["a", "b"]},
//!   {"not": {"field": "year", "range": {"gte": 1990, "lt": 2000}}},
//!   {"field": "seen_at", "exists": true},
//!   {"any": [{"field": "text", "prefix": "ab"}, {"field": "hot", "equals": true}]}
//! ]}
//! ```
//! A part is `all`, `any` or `not`, or a field with one condition: two conditions are two parts.
//! Values are a payload's: a timestamp may be `{"timestamp_ms": n}`, milliseconds or RFC 3339.

use std::ops::Bound;

use serde_json::{Map, Value as Json, json};

use super::{Bounds, Filter, FilterError};
use crate::payload::Value;

/// What a part may look like, for an error's text.
const PARTS: &str = "write {\"all\": [..]}, {\"any\": [..]}, {\"not\": {..}} or {\"field\": \"name\", ..} with one of equals, in, range, exists, prefix";
/// What a field's condition may look like.
const CONDITIONS: &str = "equals, in, range, exists, prefix";

impl Filter {
    /// Reads a filter. What it says is checked by [`Filter::resolve`].
    ///
    /// # Errors
    /// [`FilterError::Shape`], naming the place and what may stand there.
    pub fn from_json(json: &Json) -> Result<Self, FilterError> {
        read(json, &mut String::from("filter"))
    }

    /// The filter as [`Filter::from_json`] reads it.
    pub fn to_json(&self) -> Json {
        let list = |parts: &[Self]| -> Vec<Json> { parts.iter().map(Self::to_json).collect() };
        match self {
            Self::All(parts) => json!({ "all": list(parts) }),
            Self::Any(parts) => json!({ "any": list(parts) }),
            Self::Not(part) => json!({ "not": part.to_json() }),
            Self::In { field, values } => match values.as_slice() {
                [value] => json!({ "field": field, "equals": value.to_json() }),
                values => {
                    let values: Vec<Json> = values.iter().map(Value::to_json).collect();
                    json!({ "field": field, "in": values })
                }
            },
            Self::Range { field, bounds } => {
                json!({ "field": field, "range": bounds.to_json() })
            }
            Self::Exists { field } => json!({ "field": field, "exists": true }),
            Self::Prefix { field, prefix } => json!({ "field": field, "prefix": prefix }),
        }
    }
}

impl Bounds {
    fn to_json(&self) -> Json {
        let mut ends = Map::new();
        let sides = [(&self.lower, "gte", "gt"), (&self.upper, "lte", "lt")];
        for (end, included, excluded) in sides {
            let (word, value) = match end {
                Bound::Included(value) => (included, value),
                Bound::Excluded(value) => (excluded, value),
                Bound::Unbounded => continue,
            };
            ends.insert(word.to_owned(), value.to_json());
        }
        Json::Object(ends)
    }
}

fn shape(path: &str, what: impl Into<String>) -> FilterError {
    FilterError::Shape {
        path: path.to_owned(),
        what: what.into(),
    }
}

fn read(json: &Json, path: &mut String) -> Result<Filter, FilterError> {
    let Json::Object(part) = json else {
        return Err(shape(path, format!("is no object; {PARTS}")));
    };
    if part.contains_key("field") {
        return read_field(part, path);
    }
    let mut keys = part.iter();
    let (Some((word, inner)), None) = (keys.next(), keys.next()) else {
        let found: Vec<&str> = part.keys().map(String::as_str).take(8).collect();
        return Err(shape(
            path,
            format!("has the keys [{}]; {PARTS}", found.join(", ")),
        ));
    };
    match word.as_str() {
        "all" => read_parts(inner, "all", path).map(Filter::All),
        "any" => read_parts(inner, "any", path).map(Filter::Any),
        "not" => {
            let len = path.len();
            path.push_str(".not");
            let inner = read(inner, path)?;
            path.truncate(len);
            Ok(Filter::Not(Box::new(inner)))
        }
        other => {
            let other: String = other.chars().take(40).collect();
            Err(shape(path, format!("has the key `{other}`; {PARTS}")))
        }
    }
}

fn read_parts(json: &Json, word: &str, path: &mut String) -> Result<Vec<Filter>, FilterError> {
    let len = path.len();
    path.push_str(&format!(".{word}"));
    let Json::Array(parts) = json else {
        return Err(shape(path, "is no list; write [{..}, {..}]"));
    };
    let below = path.len();
    let mut read_so_far = Vec::with_capacity(parts.len());
    for (at, part) in parts.iter().enumerate() {
        path.push_str(&format!("[{at}]"));
        read_so_far.push(read(part, path)?);
        path.truncate(below);
    }
    path.truncate(len);
    Ok(read_so_far)
}

fn read_field(part: &Map<String, Json>, path: &str) -> Result<Filter, FilterError> {
    let Some(Json::String(field)) = part.get("field") else {
        return Err(shape(path, "`field` is no text; write the field's name"));
    };
    let field = field.clone();
    let mut conditions = part.iter().filter(|(key, _)| *key != "field");
    let (word, value) = match (conditions.next(), conditions.next()) {
        (Some(only), None) => only,
        (None, _) => {
            return Err(shape(
                path,
                format!("says nothing about field `{field}`; add one of {CONDITIONS}"),
            ));
        }
        (Some((first, _)), Some((second, _))) => {
            return Err(shape(
                path,
                format!(
                    "says `{first}` and `{second}` of field `{field}`; write one condition a part, joined by all"
                ),
            ));
        }
    };
    match (word.as_str(), value) {
        ("equals", value) => Ok(Filter::In {
            values: vec![read_value(value, &field, path)?],
            field,
        }),
        ("in", Json::Array(values)) => {
            let values = values.iter().map(|value| read_value(value, &field, path));
            Ok(Filter::In {
                values: values.collect::<Result<_, _>>()?,
                field,
            })
        }
        ("in", _) => Err(shape(path, "`in` is no list; write [value, value]")),
        ("range", Json::Object(ends)) => Ok(Filter::Range {
            bounds: read_bounds(ends, &field, path)?,
            field,
        }),
        ("range", _) => Err(shape(
            path,
            "`range` is no object; write {\"gte\": value, \"lt\": value}",
        )),
        ("exists", Json::Bool(true)) => Ok(Filter::Exists { field }),
        ("exists", Json::Bool(false)) => Ok(Filter::Not(Box::new(Filter::Exists { field }))),
        ("exists", _) => Err(shape(path, "`exists` is neither true nor false")),
        ("prefix", Json::String(prefix)) => Ok(Filter::Prefix {
            prefix: prefix.clone(),
            field,
        }),
        ("prefix", _) => Err(shape(path, "`prefix` is no text")),
        (other, _) => {
            let other: String = other.chars().take(40).collect();
            Err(shape(
                path,
                format!("has the condition `{other}`; conditions are {CONDITIONS}"),
            ))
        }
    }
}

fn read_value(json: &Json, field: &str, path: &str) -> Result<Value, FilterError> {
    Value::from_json(json.clone()).map_err(|found| {
        let or = if json.is_null() {
            "; ask whether it exists instead"
        } else {
            ""
        };
        shape(
            path,
            format!("field `{field}` cannot compare with {found}{or}"),
        )
    })
}

fn read_bounds(ends: &Map<String, Json>, field: &str, path: &str) -> Result<Bounds, FilterError> {
    let mut bounds = Bounds {
        lower: Bound::Unbounded,
        upper: Bound::Unbounded,
    };
    for (word, value) in ends {
        let value = read_value(value, field, path)?;
        let (side, end) = match word.as_str() {
            "gte" => (&mut bounds.lower, Bound::Included(value)),
            "gt" => (&mut bounds.lower, Bound::Excluded(value)),
            "lte" => (&mut bounds.upper, Bound::Included(value)),
            "lt" => (&mut bounds.upper, Bound::Excluded(value)),
            other => {
                let other: String = other.chars().take(40).collect();
                return Err(shape(
                    path,
                    format!("range has the bound `{other}`; bounds are gte, gt, lte, lt"),
                ));
            }
        };
        if *side != Bound::Unbounded {
            return Err(shape(path, "range has two bounds on one side"));
        }
        *side = end;
    }
    Ok(bounds)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{super::arbitrary, Filter};

    #[test]
    fn every_form_of_the_documentation_reads() {
        let filter = json!({"all": [
            {"field": "category", "equals": 3},
            {"field": "words", "in": ["a", "b"]},
            {"not": {"field": "year", "range": {"gte": 1990, "lt": 2000}}},
            {"field": "seen_at", "exists": true},
            {"any": [{"field": "text", "prefix": "ab"}, {"field": "hot", "equals": true}]},
        ]});
        let read = Filter::from_json(&filter).unwrap();
        assert_eq!(read.to_json(), filter);
        let named: Vec<&str> = read.fields().collect();
        assert_eq!(
            named,
            ["category", "words", "year", "seen_at", "text", "hot"]
        );
        let absent = Filter::from_json(&json!({"field": "x", "exists": false})).unwrap();
        assert_eq!(
            absent.to_json(),
            json!({"not": {"field": "x", "exists": true}})
        );
    }

    #[test]
    fn what_does_not_read_is_refused_with_its_place_and_what_may_stand_there() {
        for (filter, place, hint) in [
            (json!([]), "filter: ", "\"all\""),
            (json!({}), "filter: ", "\"all\""),
            (json!({"and": []}), "filter: ", "`and`"),
            (json!({"all": {}}), "filter.all: ", "is no list"),
            (json!({"all": [], "any": []}), "filter: ", "all, any"),
            (
                json!({"all": [{"not": 3}]}),
                "filter.all[0].not: ",
                "no object",
            ),
            (json!({"field": 3, "equals": 3}), "filter: ", "no text"),
            (json!({"field": "x"}), "filter: ", "equals, in, range"),
            (
                json!({"field": "x", "equals": 1, "in": []}),
                "filter: ",
                "one condition a part",
            ),
            (json!({"field": "x", "like": "a"}), "filter: ", "`like`"),
            (json!({"field": "x", "equals": null}), "filter: ", "exists"),
            (
                json!({"field": "x", "equals": {"a": 1}}),
                "filter: ",
                "an object",
            ),
            (json!({"field": "x", "in": 3}), "filter: ", "[value, value]"),
            (
                json!({"field": "x", "range": {"from": 3}}),
                "filter: ",
                "gte, gt, lte, lt",
            ),
            (
                json!({"field": "x", "range": {"gte": 3, "gt": 3}}),
                "filter: ",
                "two bounds",
            ),
            (json!({"field": "x", "range": 3}), "filter: ", "\"gte\""),
            (
                json!({"field": "x", "exists": 1}),
                "filter: ",
                "true nor false",
            ),
            (
                json!({"any": [{"field": "x", "prefix": 1}]}),
                "filter.any[0]: ",
                "no text",
            ),
        ] {
            let refused = Filter::from_json(&filter).unwrap_err().to_string();
            assert!(refused.starts_with(place), "{filter}: {refused}");
            assert!(refused.contains(hint), "{filter}: {refused}");
        }
    }

    proptest! {
        #[test]
        fn json_reads_back(filter in arbitrary::filter()) {
            let text = filter.to_json().to_string();
            let json = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(Filter::from_json(&json).unwrap(), filter);
        }
    }
}
