//! A payload as the protobuf API carries it.

use std::collections::HashMap;

use super::{Payload, PayloadError, Value};
use crate::v1::{self, value::Kind as Proto};

impl Payload {
    /// The fields as messages.
    pub fn to_proto(&self) -> HashMap<String, v1::Value> {
        let fields = self.0.iter();
        fields
            .map(|(name, value)| (name.clone(), value.to_proto()))
            .collect()
    }

    /// Checks fields that came as messages.
    ///
    /// # Errors
    /// [`PayloadError`]; a message without a kind, as a newer client may send it, is
    /// [`PayloadError::Kind`].
    pub fn from_proto(fields: HashMap<String, v1::Value>) -> Result<Self, PayloadError> {
        let mut payload = Self::default();
        for (name, value) in fields {
            let Some(kind) = value.kind else {
                return Err(PayloadError::Kind {
                    field: name,
                    found: "empty or of a kind this version does not know",
                });
            };
            payload.0.insert(name, Value::from_proto(kind));
        }
        payload.check()?;
        Ok(payload)
    }
}

impl Value {
    /// The value as a message.
    pub fn to_proto(&self) -> v1::Value {
        let kind = match self {
            Self::String(text) => Proto::String(text.clone()),
            Self::Integer(number) => Proto::Integer(*number),
            Self::Float(number) => Proto::Float(*number),
            Self::Boolean(truth) => Proto::Boolean(*truth),
            Self::Timestamp(millis) => Proto::TimestampMs(*millis),
            Self::Strings(texts) => Proto::Strings(v1::StringList {
                items: texts.clone(),
            }),
        };
        v1::Value { kind: Some(kind) }
    }

    pub(crate) fn from_proto(kind: Proto) -> Self {
        match kind {
            Proto::String(text) => Self::String(text),
            Proto::Integer(number) => Self::Integer(number),
            Proto::Float(number) => Self::Float(number),
            Proto::Boolean(truth) => Self::Boolean(truth),
            Proto::TimestampMs(millis) => Self::Timestamp(millis),
            Proto::Strings(texts) => Self::Strings(texts.items),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::super::{Payload, PayloadError, arbitrary};
    use crate::v1;

    #[test]
    fn a_value_without_a_kind_is_refused_by_name() {
        let fields = [("odd".to_owned(), v1::Value { kind: None })].into();
        let refused = Payload::from_proto(fields).unwrap_err();
        assert!(matches!(refused, PayloadError::Kind { field, .. } if field == "odd"));
    }

    proptest! {
        #[test]
        fn messages_read_back(payload in arbitrary::payload()) {
            prop_assert_eq!(Payload::from_proto(payload.to_proto()).unwrap(), payload);
        }
    }
}
