//! Why a record is refused: stable codes for machines, a sentence for people.

use std::{fmt, str::FromStr};

use crate::{payload::PayloadError, point::IdError, vector::VectorError};

/// The class of a refusal. Its code is a label, a header and part of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// No key, an empty key, too long, or not UTF-8.
    BadKey,
    /// The key belongs into another partition.
    WrongPartition,
    /// The record is over the collection's size limit.
    TooLarge,
    /// The value is neither known Avro nor JSON, or is cut short.
    Undecodable,
    /// The value names a writer schema nobody knows.
    UnknownSchema,
    /// The vector has another length than the collection.
    WrongDimension,
    /// The vector holds NaN or infinity.
    NotFinite,
    /// The vector is all zeros under cosine.
    ZeroVector,
    /// The payload is not flat and typed, or holds NaN.
    BadPayload,
    /// A Shoal header does not parse.
    BadHeader,
    /// The record is tagged for another region.
    Residency,
}

impl Reason {
    /// Every reason, in the order of the docs.
    pub const ALL: [Self; 11] = [
        Self::BadKey,
        Self::WrongPartition,
        Self::TooLarge,
        Self::Undecodable,
        Self::UnknownSchema,
        Self::WrongDimension,
        Self::NotFinite,
        Self::ZeroVector,
        Self::BadPayload,
        Self::BadHeader,
        Self::Residency,
    ];

    /// The stable code.
    pub fn code(self) -> &'static str {
        match self {
            Self::BadKey => "bad_key",
            Self::WrongPartition => "wrong_partition",
            Self::TooLarge => "too_large",
            Self::Undecodable => "undecodable",
            Self::UnknownSchema => "unknown_schema",
            Self::WrongDimension => "wrong_dimension",
            Self::NotFinite => "not_finite",
            Self::ZeroVector => "zero_vector",
            Self::BadPayload => "bad_payload",
            Self::BadHeader => "bad_header",
            Self::Residency => "residency",
        }
    }

    /// Whether the refusal leaves the shard's point of that id contested.
    ///
    /// Compaction may keep the refused record alone, so the point's fate is unknown until a good
    /// record comes. A key that has no point here, because it is no id or belongs elsewhere,
    /// contests nothing.
    pub fn contests(self) -> bool {
        !matches!(self, Self::BadKey | Self::WrongPartition)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A code that names no reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no rejection reason is called `{0}`")]
pub struct UnknownReason(pub String);

impl FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(code: &str) -> Result<Self, UnknownReason> {
        let found = Self::ALL.into_iter().find(|reason| reason.code() == code);
        found.ok_or_else(|| UnknownReason(code.to_owned()))
    }
}

/// One record's refusal: the class, and a sentence that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct Rejection {
    /// The class.
    pub reason: Reason,
    /// What was found, what was expected, what to set.
    pub detail: String,
}

impl Rejection {
    /// Joins class and sentence.
    pub fn new(reason: Reason, detail: impl fmt::Display) -> Self {
        Self {
            reason,
            detail: detail.to_string(),
        }
    }
}

impl From<VectorError> for Rejection {
    fn from(error: VectorError) -> Self {
        let reason = match &error {
            VectorError::WrongDim { .. } => Reason::WrongDimension,
            VectorError::NotFinite { .. } => Reason::NotFinite,
            VectorError::Zero => Reason::ZeroVector,
        };
        Self::new(reason, error)
    }
}

impl From<PayloadError> for Rejection {
    fn from(error: PayloadError) -> Self {
        Self::new(Reason::BadPayload, error)
    }
}

impl From<IdError> for Rejection {
    fn from(error: IdError) -> Self {
        Self::new(Reason::BadKey, error)
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn every_code_reads_back_as_its_reason() {
        for reason in Reason::ALL {
            assert_eq!(reason.code().parse(), Ok(reason));
        }
    }
}
