//! A payload as JSON: texts, numbers, booleans, lists of texts, and timestamps as
//! `{"timestamp_ms": n}`, which no other value looks like.
//!
//! A number with a fraction or an exponent is a float, any other an integer. A null field says
//! nothing and is dropped.

use serde_json::{Map, Value as Json};

use super::{Payload, PayloadError, Value};

/// The only key of a timestamp's object.
const TIMESTAMP_MS: &str = "timestamp_ms";

impl Payload {
    /// The payload as a JSON object.
    pub fn to_json(&self) -> Map<String, Json> {
        let fields = self.0.iter();
        fields
            .map(|(name, value)| (name.clone(), value.to_json()))
            .collect()
    }

    /// Checks a JSON object.
    ///
    /// # Errors
    /// [`PayloadError`], naming the first field that is refused.
    pub fn from_json(fields: Map<String, Json>) -> Result<Self, PayloadError> {
        let mut payload = Self::default();
        for (name, value) in fields {
            if value.is_null() {
                continue;
            }
            match Value::from_json(value) {
                Ok(value) => payload.0.insert(name, value),
                Err(found) => return Err(PayloadError::Kind { field: name, found }),
            };
        }
        payload.check()?;
        Ok(payload)
    }
}

impl Value {
    /// The value as JSON. A float that is not finite, which no checked payload holds, is null.
    pub fn to_json(&self) -> Json {
        match self {
            Self::String(text) => Json::from(text.as_str()),
            Self::Integer(number) => Json::from(*number),
            Self::Float(number) => Json::from(*number),
            Self::Boolean(truth) => Json::from(*truth),
            Self::Timestamp(millis) => serde_json::json!({ TIMESTAMP_MS: millis }),
            Self::Strings(texts) => Json::from(texts.as_slice()),
        }
    }

    /// Reads a JSON value.
    ///
    /// # Errors
    /// What was found instead of a value that a payload holds.
    pub(crate) fn from_json(json: Json) -> Result<Self, &'static str> {
        match json {
            Json::Null => Err("null"),
            Json::Bool(truth) => Ok(Self::Boolean(truth)),
            Json::String(text) => Ok(Self::String(text)),
            Json::Number(number) => match (number.as_i64(), number.is_f64(), number.as_f64()) {
                (Some(whole), _, _) => Ok(Self::Integer(whole)),
                (None, true, Some(float)) => Ok(Self::Float(float)),
                _ => Err("a whole number that does not fit 64 bits with a sign"),
            },
            Json::Array(items) => {
                let texts = items.into_iter().map(|item| match item {
                    Json::String(text) => Ok(text),
                    _ => Err("a list that holds other things than texts"),
                });
                texts.collect::<Result<_, _>>().map(Self::Strings)
            }
            Json::Object(object) => match (object.len(), object.get(TIMESTAMP_MS)) {
                (1, Some(millis)) => match millis.as_i64() {
                    Some(millis) => Ok(Self::Timestamp(millis)),
                    None => Err("a timestamp whose `timestamp_ms` is no whole number"),
                },
                _ => Err("an object"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;
    use serde_json::{Value as Json, json};

    use super::super::{Payload, PayloadError, Value, arbitrary};

    fn from(json: Json) -> Result<Payload, PayloadError> {
        let Json::Object(fields) = json else {
            panic!("{json} is no object");
        };
        Payload::from_json(fields)
    }

    #[test]
    fn every_kind_is_told_apart() {
        let payload = from(json!({
            "text": "a", "whole": -3, "float": 1.0, "truth": true, "at": {"timestamp_ms": 5},
            "list": ["x", "y"], "none": null, "empty": [],
        }))
        .unwrap();
        let expected = [
            ("text", Value::String("a".to_owned())),
            ("whole", Value::Integer(-3)),
            ("float", Value::Float(1.0)),
            ("truth", Value::Boolean(true)),
            ("at", Value::Timestamp(5)),
            ("list", Value::Strings(vec!["x".to_owned(), "y".to_owned()])),
            ("empty", Value::Strings(Vec::new())),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(payload, Payload(expected.into()));
    }

    #[test]
    fn what_is_not_flat_and_typed_is_refused_by_name() {
        for odd in [
            json!({"a": 1}),
            json!({"timestamp_ms": 1, "zone": "x"}),
            json!({"timestamp_ms": "1"}),
            json!([1]),
            json!([["a"]]),
            json!(u64::MAX),
        ] {
            let refused = from(json!({ "odd": odd })).unwrap_err();
            assert!(
                matches!(&refused, PayloadError::Kind { field, .. } if field == "odd"),
                "{refused}"
            );
        }
    }

    proptest! {
        #[test]
        fn json_reads_back(payload in arbitrary::payload()) {
            let text = serde_json::to_string(&payload.to_json()).unwrap();
            let back = from(serde_json::from_str(&text).unwrap()).unwrap();
            prop_assert_eq!(back.0.len(), payload.0.len());
            for ((name, value), (back_name, back_value)) in payload.0.iter().zip(&back.0) {
                prop_assert_eq!(name, back_name);
                prop_assert_eq!(value, back_value);
            }
        }
    }
}
