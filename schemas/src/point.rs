//! A point: an id, a vector and what is known about it.

use std::{borrow::Borrow, fmt, sync::Arc};

use crate::{payload::Payload, vector::Vector};

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
