//! A point: an id, a vector and what is known about it.

use std::{borrow::Borrow, fmt, sync::Arc};

use crate::{collection::Collection, payload::Payload, reject::Rejection, v1, vector::Vector};

/// Longest id, in bytes.
pub const MAX_ID_BYTES: usize = 512;

/// Id of a point, and the key of its records. UTF-8, 1 to 512 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointId(Arc<str>);

/// Why an id is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The record has no key at all.
    #[error("record has no key; the key is the point's id")]
    Missing,
    /// A key of no bytes.
    #[error("id is empty")]
    Empty,
    /// Over the limit.
    #[error("id has {id_bytes} bytes, allowed are {MAX_ID_BYTES}")]
    TooLong {
        /// Its length.
        id_bytes: usize,
    },
    /// Not UTF-8.
    #[error("id is not UTF-8 after {valid_bytes} bytes")]
    NotUtf8 {
        /// Length of the valid part.
        valid_bytes: usize,
    },
}

impl PointId {
    /// Checks a record's key.
    ///
    /// # Errors
    /// [`IdError`], saying what is wrong with it.
    pub fn from_key(key: Option<&[u8]>) -> Result<Self, IdError> {
        let key = key.ok_or(IdError::Missing)?;
        let id = std::str::from_utf8(key).map_err(|error| IdError::NotUtf8 {
            valid_bytes: error.valid_up_to(),
        })?;
        Self::new(id)
    }

    /// Checks an id that is text already.
    ///
    /// # Errors
    /// [`IdError::Empty`] and [`IdError::TooLong`].
    pub fn new(id: &str) -> Result<Self, IdError> {
        match id.len() {
            0 => Err(IdError::Empty),
            id_bytes if id_bytes > MAX_ID_BYTES => Err(IdError::TooLong { id_bytes }),
            _ => Ok(Self(id.into())),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for PointId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A complete point without its id, as an upsert carries it.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The embedding.
    pub vector: Vector,
    /// Typed fields for filters and answers.
    pub payload: Payload,
    /// Name of the model that made the embedding, if the writer says.
    pub model: Option<String>,
    /// When the thing embedded happened, milliseconds since the Unix epoch.
    pub event_time_ms: Option<i64>,
    /// From then on the point is hidden, milliseconds since the Unix epoch.
    pub expires_at_ms: Option<i64>,
}

impl Point {
    /// The point as the protobuf API carries it. A time of 0 and a model without a
    /// name read back as not set.
    pub fn to_proto(&self, id: &PointId) -> v1::Point {
        v1::Point {
            id: id.as_str().to_owned(),
            vector: self.vector.as_slice().to_vec(),
            payload: self.payload.to_proto(),
            model: self.model.clone().unwrap_or_default(),
            event_time_ms: self.event_time_ms.unwrap_or(0),
            expires_at_ms: self.expires_at_ms.unwrap_or(0),
        }
    }

    /// Checks a point that came over the protobuf API. A time of 0 is not set, nor is an
    /// empty model.
    ///
    /// # Errors
    /// [`Rejection`], naming what of it is refused.
    pub fn from_proto(
        point: v1::Point,
        collection: &Collection,
    ) -> Result<(PointId, Self), Rejection> {
        let id = PointId::new(&point.id)?;
        let vector = Vector::new(&point.vector, collection.dim, collection.metric)?;
        let set = |millis: i64| (millis != 0).then_some(millis);
        let checked = Self {
            vector,
            payload: Payload::from_proto(point.payload)?,
            model: (!point.model.is_empty()).then_some(point.model),
            event_time_ms: set(point.event_time_ms),
            expires_at_ms: set(point.expires_at_ms),
        };
        Ok((id, checked))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{Point, PointId};
    use crate::{Collection, Metric, Payload, Reason, Value, Vector, v1};

    fn collection() -> Collection {
        let dim = 2.try_into().unwrap();
        Collection::new("docs".parse().unwrap(), dim, Metric::Cosine, 1)
    }

    #[test]
    fn a_point_reads_back_from_its_message() {
        let collection = collection();
        let id = PointId::new("a").unwrap();
        let point = Point {
            vector: Vector::new(&[1.0, -2.5], collection.dim, collection.metric).unwrap(),
            payload: Payload([("n".to_owned(), Value::Integer(1))].into()),
            model: Some("mini".to_owned()),
            event_time_ms: Some(-5),
            expires_at_ms: None,
        };
        let read = Point::from_proto(point.to_proto(&id), &collection).unwrap();
        assert_eq!(read, (id, point));
    }

    #[test]
    fn each_fault_of_a_message_has_its_reason() {
        let good = v1::Point {
            id: "a".to_owned(),
            vector: vec![1.0, 0.0],
            ..v1::Point::default()
        };
        let with = |change: fn(&mut v1::Point)| {
            let mut point = good.clone();
            change(&mut point);
            Point::from_proto(point, &collection()).map_err(|refused| refused.reason)
        };
        assert!(with(|_| ()).is_ok());
        assert_eq!(with(|p| p.id.clear()), Err(Reason::BadKey));
        assert_eq!(with(|p| p.vector.push(0.0)), Err(Reason::WrongDimension));
        assert_eq!(with(|p| p.vector[0] = f32::NAN), Err(Reason::NotFinite));
        assert_eq!(with(|p| p.vector[0] = 0.0), Err(Reason::ZeroVector));
        let unset = v1::Value { kind: None };
        let mut odd = good.clone();
        odd.payload.insert("x".to_owned(), unset);
        let refused = Point::from_proto(odd, &collection()).unwrap_err();
        assert_eq!(refused.reason, Reason::BadPayload);
    }
}
