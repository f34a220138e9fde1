//! A change of part of a point, and the condition a write may carry.
//!
//! Neither ever stands in the log: a patch is applied to the point as it is, by [`Patch::apply`],
//! and the complete point that comes out is published. What a patch does not name stays as it
//! was, the vector to its last bit. Pure.

use std::collections::BTreeSet;

use crate::{
    collection::Collection,
    payload::{Payload, PayloadError},
    point::{IdError, Point, PointId},
    reject::Rejection,
    v1,
    vector::Vector,
    version::Version,
};

/// What has to hold of a point for a write to happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    #[default]
    Always,
    /// There is no such point.
    Absent,
    /// The point has this version.
    Version(Version),
}

impl Condition {
    /// Reads the form that goes over the wire: 0 means that there must be no such point.
    pub fn from_wire(if_version: Option<u64>) -> Self {
        match if_version {
            None => Self::Always,
            Some(0) => Self::Absent,
            Some(raw) => Self::Version(Version::from_raw(raw)),
        }
    }

    /// The form that goes over the wire.
    pub fn to_wire(self) -> Option<u64> {
        match self {
            Self::Always => None,
            Self::Absent => Some(0),
            Self::Version(version) => Some(version.raw()),
        }
    }

    /// Whether it holds where the point has this version, or is not there.
    pub fn holds(self, current: Option<Version>) -> bool {
        match self {
            Self::Always => true,
            Self::Absent => current.is_none(),
            Self::Version(version) => current == Some(version),
        }
    }
}

/// What a patch does to a part that need not be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Assign<T> {
    /// It stays as it is.
    #[default]
    Keep,
    /// It is taken away.
    Clear,
    /// It is this from now on.
    To(T),
}

impl<T: Clone> Assign<T> {
    fn onto(&self, old: Option<&T>) -> Option<T> {
        match self {
            Self::Keep => old.cloned(),
            Self::Clear => None,
            Self::To(new) => Some(new.clone()),
        }
    }

    fn is_keep(&self) -> bool {
        matches!(self, Self::Keep)
    }
}

/// A change of part of a point.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch {
    /// Payload fields to add or replace.
    pub set: Payload,
    /// Payload fields to take away.
    pub unset: BTreeSet<String>,
    /// The new vector.
    pub vector: Option<Vector>,
    /// The new model's name.
    pub model: Assign<String>,
    /// The new expiry, milliseconds since the Unix epoch.
    pub expires_at_ms: Assign<i64>,
}

/// Why a patch is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The id is none.
    #[error("id is refused")]
    Id(#[from] IdError),
    /// It says nothing.
    #[error("patch changes nothing: say set, unset, vector, model or expires_at")]
    Empty,
    /// It contradicts itself.
    #[error("patch both sets and unsets payload field `{field}`")]
    SetAndUnset {
        /// The field.
        field: String,
    },
    /// It wants a point not to be there.
    #[error("patch has if_version 0, but there has to be a point to change; upsert it instead")]
    Absent,
    /// A value in it is refused.
    #[error("patch is refused")]
    Rejected(#[from] Rejection),
    /// It does not read as JSON.
    #[error("patch does not read: {detail}")]
    Json {
        /// Where it stops reading.
        detail: String,
    },
}

impl Patch {
    /// The point as it is afterwards.
    ///
    /// # Errors
    /// [`PayloadError::TooManyFields`] if the payload grows past its limit.
    pub fn apply(&self, point: &Point) -> Result<Point, PayloadError> {
        let mut payload = point.payload.clone();
        payload.0.retain(|name, _| !self.unset.contains(name));
        let new = self.set.0.iter();
        let new = new.map(|(name, value)| (name.clone(), value.clone()));
        payload.0.extend(new);
        payload.check()?;
        Ok(Point {
            vector: self.vector.as_ref().unwrap_or(&point.vector).clone(),
            payload,
            model: self.model.onto(point.model.as_ref()),
            event_time_ms: point.event_time_ms,
            expires_at_ms: self.expires_at_ms.onto(point.expires_at_ms.as_ref()),
        })
    }

    /// Checks what no single value shows: that it says something, and one thing only.
    ///
    /// # Errors
    /// [`PatchError::Empty`], [`PatchError::SetAndUnset`], [`PatchError::Absent`].
    pub fn check(&self, condition: Condition) -> Result<(), PatchError> {
        if condition == Condition::Absent {
            return Err(PatchError::Absent);
        }
        if let Some(field) = self
            .unset
            .iter()
            .find(|name| self.set.0.contains_key(*name))
        {
            return Err(PatchError::SetAndUnset {
                field: field.clone(),
            });
        }
        let says_nothing = self.set.0.is_empty()
            && self.unset.is_empty()
            && self.vector.is_none()
            && self.model.is_keep()
            && self.expires_at_ms.is_keep();
        if says_nothing {
            return Err(PatchError::Empty);
        }
        Ok(())
    }

    /// The patch as the protobuf API carries it.
    pub fn to_proto(&self, id: &PointId, condition: Condition) -> v1::PointPatch {
        let components = self
            .vector
            .as_ref()
            .map(|vector| vector.as_slice().to_vec());
        v1::PointPatch {
            id: id.as_str().to_owned(),
            set: self.set.to_proto(),
            unset: self.unset.iter().cloned().collect(),
            vector: components.unwrap_or_default(),
            model: match &self.model {
                Assign::Keep => None,
                Assign::Clear => Some(String::new()),
                Assign::To(name) => Some(name.clone()),
            },
            expires_at_ms: match self.expires_at_ms {
                Assign::Keep => None,
                Assign::Clear => Some(0),
                Assign::To(millis) => Some(millis),
            },
            if_version: condition.to_wire(),
        }
    }

    /// Checks a patch that came over the protobuf API.
    ///
    /// # Errors
    /// [`PatchError`].
    pub fn from_proto(
        patch: v1::PointPatch,
        collection: &Collection,
    ) -> Result<(PointId, Self, Condition), PatchError> {
        let id = PointId::new(&patch.id)?;
        let vector = if patch.vector.is_empty() {
            None
        } else {
            let checked = Vector::new(&patch.vector, collection.dim, collection.metric);
            Some(checked.map_err(Rejection::from)?)
        };
        let checked = Self {
            set: Payload::from_proto(patch.set).map_err(Rejection::from)?,
            unset: patch.unset.into_iter().collect(),
            vector,
            model: match patch.model {
                None => Assign::Keep,
                Some(name) if name.is_empty() => Assign::Clear,
                Some(name) => Assign::To(name),
            },
            expires_at_ms: match patch.expires_at_ms {
                None => Assign::Keep,
                Some(0) => Assign::Clear,
                Some(millis) => Assign::To(millis),
            },
        };
        let condition = Condition::from_wire(patch.if_version);
        checked.check(condition)?;
        Ok((id, checked, condition))
    }
}

#[cfg(test)]
#[path = "patch_tests.rs"]
mod tests;
