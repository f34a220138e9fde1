//! Vectors that have been checked once, at the edge.
//!
//! A [`Vector`] is the proof: right length, all finite, and under cosine not all zero. Nothing
//! further in checks again.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::collection::Metric;

/// The exponent of a component.
const EXPONENT: u32 = 0x7f80_0000;
const LOWEST_EXPONENT_BIT: u32 = 0x0080_0000;

/// Number of components of a collection's vectors, 2 to 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Dim(u16);

impl Dim {
    /// The smallest dimension.
    pub const MIN: u32 = 2;
    /// The largest dimension.
    pub const MAX: u32 = 4096;

    /// The number of components.
    pub fn len(self) -> usize {
        usize::from(self.0)
    }

    /// Never: a dimension is at least 2.
    pub fn is_empty(self) -> bool {
        false
    }
}

/// A dimension outside 2 to 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("dimension is {0}, allowed are 2 to 4096")]
pub struct DimError(pub u32);

impl TryFrom<u32> for Dim {
    type Error = DimError;

    fn try_from(dim: u32) -> Result<Self, DimError> {
        match u16::try_from(dim) {
            Ok(small) if (Self::MIN..=Self::MAX).contains(&dim) => Ok(Self(small)),
            _ => Err(DimError(dim)),
        }
    }
}

impl From<Dim> for u32 {
    fn from(dim: Dim) -> Self {
        Self::from(dim.0)
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a vector is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum VectorError {
    /// Another length than the collection's.
    #[error("vector has {found} components, the collection has {expected}")]
    WrongDim {
        /// Length as given.
        found: usize,
        /// The collection's dimension.
        expected: Dim,
    },
    /// NaN or infinity.
    #[error("vector component {at} is {value}, every component has to be finite")]
    NotFinite {
        /// Index of the first such component.
        at: usize,
        /// Its value.
        value: f32,
    },
    /// All components zero; it has no direction, so no cosine.
    #[error("vector is all zeros, which has no cosine")]
    Zero,
}

/// A checked vector. Cloning shares it.
#[derive(Clone, Debug, PartialEq)]
pub struct Vector(Arc<[f32]>);

impl Vector {
    /// Checks `values` against the collection.
    ///
    /// # Errors
    /// The first fault found, in the order of [`VectorError`]'s cases.
    pub fn new(values: &[f32], dim: Dim, metric: Metric) -> Result<Self, VectorError> {
        if values.len() != dim.len() {
            return Err(VectorError::WrongDim {
                found: values.len(),
                expected: dim,
            });
        }
        Self::check(values, metric)?;
        Ok(Self(values.into()))
    }

    /// Checks components that stand in a record as little-endian bytes, and copies them once.
    ///
    /// # Errors
    /// As [`Vector::new`].
    pub fn from_le_bytes(words: &[[u8; 4]], dim: Dim, metric: Metric) -> Result<Self, VectorError> {
        if words.len() != dim.len() {
            return Err(VectorError::WrongDim {
                found: words.len(),
                expected: dim,
            });
        }
        let values: Arc<[f32]> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        Self::check(&values, metric)?;
        Ok(Self(values))
    }

    fn check(values: &[f32], metric: Metric) -> Result<(), VectorError> {
        // A pass without branches, in operations every CPU has for several components at once,
        // finds whether there is a fault; only then is it looked for.
        let mut exponents = 0;
        let mut magnitudes = 0;
        for value in values {
            let bits = value.to_bits();
            // NaN and infinity have all exponent bits set, so the carry reaches the top bit.
            exponents |= (bits & EXPONENT).wrapping_add(LOWEST_EXPONENT_BIT);
            magnitudes |= bits << 1;
        }
        let all_finite = exponents >> 31 == 0;
        let any_set = magnitudes != 0;
        if !all_finite {
            let (at, value) = values
                .iter()
                .copied()
                .enumerate()
                .find(|(_, value)| !value.is_finite())
                .expect("the pass above found one");
            return Err(VectorError::NotFinite { at, value });
        }
        if metric == Metric::Cosine && !any_set {
            return Err(VectorError::Zero);
        }
        Ok(())
    }

    /// The components.
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::{Dim, Vector, VectorError};
    use crate::collection::Metric;

    #[test]
    fn each_fault_is_named() {
        let dim = Dim::try_from(3).unwrap();
        let new = |values: &[f32]| Vector::new(values, dim, Metric::Cosine);
        assert_eq!(
            new(&[1.0]),
            Err(VectorError::WrongDim {
                found: 1,
                expected: dim
            })
        );
        assert_eq!(
            new(&[0.0, f32::INFINITY, 0.0]),
            Err(VectorError::NotFinite {
                at: 1,
                value: f32::INFINITY
            })
        );
        assert!(matches!(
            new(&[0.0, 0.0, f32::NAN]),
            Err(VectorError::NotFinite { at: 2, .. })
        ));
        assert_eq!(new(&[0.0, -0.0, 0.0]), Err(VectorError::Zero));
        assert!(Vector::new(&[0.0; 3], dim, Metric::L2).is_ok());
    }

    proptest! {
        #[test]
        fn any_fault_among_any_bits_is_found(bits in proptest::collection::vec(any::<u32>(), 2..40)) {
            let values: Vec<f32> = bits.iter().map(|bits| f32::from_bits(*bits)).collect();
            let words: Vec<[u8; 4]> = bits.iter().map(|bits| bits.to_le_bytes()).collect();
            let dim = Dim::try_from(u32::try_from(values.len()).unwrap()).unwrap();
            let first_bad = values.iter().position(|value| !value.is_finite());
            for checked in [
                Vector::new(&values, dim, Metric::Cosine),
                Vector::from_le_bytes(&words, dim, Metric::Cosine),
            ] {
                match (checked, first_bad) {
                    (Err(VectorError::NotFinite { at, .. }), Some(bad)) => prop_assert_eq!(at, bad),
                    (Ok(vector), None) => prop_assert_eq!(vector.as_slice(), &values[..]),
                    (checked, _) => prop_assert!(false, "{checked:?}"),
                }
            }
        }
    }

    #[test]
    fn the_smallest_component_makes_a_vector() {
        let dim = Dim::try_from(3).unwrap();
        for tiny in [
            f32::from_bits(1),
            f32::from_bits(0x8000_0001),
            f32::MAX,
            f32::MIN,
        ] {
            assert!(Vector::new(&[0.0, tiny, -0.0], dim, Metric::Cosine).is_ok());
        }
    }

    #[test]
    fn dimensions_stay_between_2_and_4096() {
        assert!(Dim::try_from(1).is_err());
        assert!(Dim::try_from(2).is_ok());
        assert!(Dim::try_from(4096).is_ok());
        assert!(Dim::try_from(4097).is_err());
        assert!(Dim::try_from(65_538).is_err());
    }
}
