//! An order-free digest of a shard's points.
//!
//! Every point contributes one 128-bit row hash, and a digest is their wrapping sum: adding and
//! removing rows in any order, or merging the digests of parts, gives the same 16 bytes. Equal
//! digests at equal checkpoints mean equal replicas. It guards against accidents, not against
//! somebody who crafts points so that sums collide.
//!
//! A row's hash is the first half of a BLAKE3 over the length-prefixed parts, in a mode of its
//! own for points and for contested ids, so that no two different rows feed it equal bytes.

use std::{fmt, sync::LazyLock};

use blake3::Hasher;

use crate::{point::PointId, vector::Vector, version::Version};

static POINT: LazyLock<Hasher> =
    LazyLock::new(|| Hasher::new_derive_key("shoal v1 digest: row of a point"));
static CONTESTED: LazyLock<Hasher> =
    LazyLock::new(|| Hasher::new_derive_key("shoal v1 digest: row of a contested id"));

/// Components turned into bytes at a time.
const CHUNK: usize = 256;

/// What one row adds to the digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct RowHash(u128);

impl RowHash {
    /// The hash's bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// Reads what [`RowHash::to_bytes`] made.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }
}

/// The sum of some rows' hashes. The default is that of no rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest(u128);

impl Digest {
    /// Puts a row in.
    pub fn add(&mut self, row: RowHash) {
        self.0 = self.0.wrapping_add(row.0);
    }

    /// Takes a row out that was put in before.
    pub fn remove(&mut self, row: RowHash) {
        self.0 = self.0.wrapping_sub(row.0);
    }

    /// Puts all rows of another digest in.
    pub fn merge(&mut self, other: Self) {
        self.0 = self.0.wrapping_add(other.0);
    }

    /// The digest's bytes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// Reads what [`Digest::to_bytes`] made.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The hash of a point as it is served.
///
/// `canonical_payload` is what [`crate::Payload::encode_canonical`] makes. Times are
/// milliseconds since the Unix epoch.
pub fn row_hash(
    id: &PointId,
    version: Version,
    vector: &Vector,
    canonical_payload: &[u8],
    model: Option<&str>,
    event_time: Option<i64>,
    expires_at: Option<i64>,
) -> RowHash {
    let mut hasher = POINT.clone();
    part(&mut hasher, id.as_str().as_bytes());
    hasher.update(&version.raw().to_le_bytes());
    let components = vector.as_slice();
    length(&mut hasher, components.len());
    for chunk in components.chunks(CHUNK) {
        let mut bytes = [[0; 4]; CHUNK];
        for (to, from) in bytes.iter_mut().zip(chunk) {
            *to = from.to_le_bytes();
        }
        hasher.update(bytes.as_flattened().split_at(chunk.len() * 4).0);
    }
    part(&mut hasher, canonical_payload);
    match model {
        None => hasher.update(&[0]),
        Some(model) => {
            hasher.update(&[1]);
            part(&mut hasher, model.as_bytes());
            &mut hasher
        }
    };
    for time in [event_time, expires_at] {
        hasher.update(&[u8::from(time.is_some())]);
        hasher.update(&time.unwrap_or(0).to_le_bytes());
    }
    finish(&hasher)
}

/// The hash of an id whose newest record was refused: nothing else of it counts.
pub fn contested_hash(id: &PointId) -> RowHash {
    let mut hasher = CONTESTED.clone();
    part(&mut hasher, id.as_str().as_bytes());
    finish(&hasher)
}

fn length(hasher: &mut Hasher, len: usize) {
    let len = u64::try_from(len).expect("a length fits 64 bits");
    hasher.update(&len.to_le_bytes());
}

fn part(hasher: &mut Hasher, bytes: &[u8]) {
    length(hasher, bytes.len());
    hasher.update(bytes);
}

fn finish(hasher: &Hasher) -> RowHash {
    let mut half = [0; 16];
    hasher.finalize_xof().fill(&mut half);
    RowHash(u128::from_le_bytes(half))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::{Digest, RowHash, contested_hash, row_hash};
    use crate::{Metric, PointId, Vector, Version};

    fn vector(values: &[f32]) -> Vector {
        let dim = u32::try_from(values.len()).unwrap().try_into().unwrap();
        Vector::new(values, dim, Metric::L2).unwrap()
    }

    #[test]
    fn every_part_of_a_row_changes_its_hash() {
        let id = PointId::new("a").unwrap();
        let version = Version::from_raw(7);
        let v = vector(&[1.0, 2.0]);
        let rows = [
            row_hash(&id, version, &v, b"p", None, None, None),
            row_hash(
                &PointId::new("b").unwrap(),
                version,
                &v,
                b"p",
                None,
                None,
                None,
            ),
            row_hash(&id, Version::from_raw(8), &v, b"p", None, None, None),
            row_hash(&id, version, &vector(&[1.0, 2.5]), b"p", None, None, None),
            row_hash(&id, version, &v, b"q", None, None, None),
            row_hash(&id, version, &v, b"p", Some(""), None, None),
            row_hash(&id, version, &v, b"p", None, Some(0), None),
            row_hash(&id, version, &v, b"p", None, None, Some(0)),
            contested_hash(&id),
        ];
        let distinct: HashSet<RowHash> = rows.into_iter().collect();
        assert_eq!(distinct.len(), rows.len());
    }

    #[test]
    fn bytes_once_digested_keep_their_digest() {
        let values: Vec<f32> = (0..600u16).map(f32::from).collect();
        let row = row_hash(
            &PointId::new("café").unwrap(),
            Version::from_parts(1_700_000_000_000, 3),
            &vector(&values),
            b"payload",
            Some("mini"),
            Some(-1),
            None,
        );
        let mut digest = Digest::default();
        digest.add(row);
        digest.add(contested_hash(&PointId::new("x").unwrap()));
        assert_eq!(digest.to_string(), "8204569079fe1aafe14831897609196a");
    }

    proptest! {
        #[test]
        fn order_and_grouping_do_not_matter(rows in proptest::collection::vec(any::<[u8; 16]>(), 0..20), split in 0usize..20) {
            let rows: Vec<RowHash> = rows.into_iter().map(RowHash::from_bytes).collect();
            let mut forward = Digest::default();
            rows.iter().for_each(|row| forward.add(*row));
            let (left, right) = rows.split_at(split.min(rows.len()));
            let (mut a, mut b) = (Digest::default(), Digest::default());
            right.iter().rev().for_each(|row| a.add(*row));
            left.iter().rev().for_each(|row| b.add(*row));
            a.merge(b);
            prop_assert_eq!(a, forward);
            prop_assert_eq!(Digest::from_bytes(a.to_bytes()), forward);
            rows.iter().for_each(|row| a.remove(*row));
            prop_assert_eq!(a, Digest::default());
        }
    }
}
