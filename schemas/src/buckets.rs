//! Which points differ between two copies of a shard, found without sending all of them.
//!
//! A copy's digest is split into [`BUCKETS`] parts by a hash of the id. Where two copies differ in
//! a few points they differ in as few buckets, and only the ids of those have to be looked at:
//! about one in 4096 of the shard a difference.

use std::collections::BTreeMap;

use crate::{
    digest::{Digest, RowHash, contested_hash},
    point::PointId,
    version::Version,
};

/// Parts of a digest.
pub const BUCKETS: usize = 4096;

/// One part: a number below [`BUCKETS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bucket(u16);

impl Bucket {
    /// The part an id belongs to.
    pub fn of(id: &PointId) -> Self {
        let hash = blake3::hash(id.as_str().as_bytes());
        let [low, high, ..] = *hash.as_bytes();
        Self(u16::from_le_bytes([low, high]) & 0x0fff)
    }

    /// The part of that number; `None` if there is none.
    pub fn new(number: u32) -> Option<Self> {
        let number = u16::try_from(number).ok()?;
        (usize::from(number) < BUCKETS).then_some(Self(number))
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.0.into()
    }
}

/// What a copy has under an id, as far as the digest knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// A point is served.
    Served {
        /// Its version.
        version: Version,
        /// Everything of it.
        hash: RowHash,
    },
    /// The newest record was refused; what is served does not count.
    Contested,
}

impl Row {
    /// What it adds to the digest.
    pub fn hash(&self, id: &PointId) -> RowHash {
        match self {
            Self::Served { hash, .. } => *hash,
            Self::Contested => contested_hash(id),
        }
    }
}

/// A digest in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets(Box<[Digest]>);

impl Default for Buckets {
    fn default() -> Self {
        Self(vec![Digest::default(); BUCKETS].into())
    }
}

impl Buckets {
    /// Puts a row in.
    pub fn add(&mut self, id: &PointId, row: &Row) {
        let bucket = usize::from(Bucket::of(id).0);
        if let Some(digest) = self.0.get_mut(bucket) {
            digest.add(row.hash(id));
        }
    }

    /// Puts all rows of another copy's part in: shards of one collection make one digest.
    pub fn merge(&mut self, other: &Self) {
        for (part, other) in self.0.iter_mut().zip(&other.0) {
            part.merge(*other);
        }
    }

    /// The digest of all parts together.
    pub fn total(&self) -> Digest {
        let mut total = Digest::default();
        self.0.iter().for_each(|part| total.merge(*part));
        total
    }

    /// Parts in which two copies differ, in order.
    pub fn differing(&self, other: &Self) -> Vec<Bucket> {
        let pairs = self.0.iter().zip(&other.0).zip(0u16..);
        let differing = pairs.filter(|((one, other), _)| one != other);
        differing.map(|(_, number)| Bucket(number)).collect()
    }

    /// Sixteen bytes a part.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|part| part.to_bytes()).collect()
    }

    /// Reads what [`Buckets::to_bytes`] made; `None` for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (parts, rest) = bytes.as_chunks::<16>();
        let parts: Box<[Digest]> = parts.iter().map(|part| Digest::from_bytes(*part)).collect();
        (parts.len() == BUCKETS && rest.is_empty()).then_some(Self(parts))
    }
}

/// What is different about an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Only the one copy has it.
    OnlyHere,
    /// Only the other copy has it.
    OnlyThere,
    /// Its record was refused at the one copy, and not at the other.
    ContestedHere,
    /// Its record was refused at the other copy, and not at the one.
    ContestedThere,
    /// They serve two versions.
    Versions {
        /// The one's.
        here: Version,
        /// The other's.
        there: Version,
    },
    /// They serve one version with another vector, payload, model or time.
    Content {
        /// Of that version.
        version: Version,
    },
}

/// An id that two copies differ about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The id.
    pub id: PointId,
    /// What is different.
    pub how: How,
}

/// Compares what two copies have, id by id; in order of the ids.
pub fn compare(here: &BTreeMap<PointId, Row>, there: &BTreeMap<PointId, Row>) -> Vec<Difference> {
    let mut ids: Vec<&PointId> = here.keys().chain(there.keys()).collect();
    ids.sort_unstable();
    ids.dedup();
    let differences = ids.into_iter().filter_map(|id| {
        let how = how(here.get(id), there.get(id))?;
        Some(Difference {
            id: id.clone(),
            how,
        })
    });
    differences.collect()
}

fn how(here: Option<&Row>, there: Option<&Row>) -> Option<How> {
    let (here, there) = match (here, there) {
        (None, None) => return None,
        (Some(_), None) => return Some(How::OnlyHere),
        (None, Some(_)) => return Some(How::OnlyThere),
        (Some(here), Some(there)) => (*here, *there),
    };
    match (here, there) {
        _ if here == there => None,
        (Row::Contested, _) => Some(How::ContestedHere),
        (_, Row::Contested) => Some(How::ContestedThere),
        (Row::Served { version: here, .. }, Row::Served { version: there, .. }) => {
            Some(if here == there {
                How::Content { version: here }
            } else {
                How::Versions { here, there }
            })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::{BUCKETS, Bucket, Buckets, Difference, How, Row, compare};
    use crate::{PointId, RowHash, Version};

    type Rows = BTreeMap<PointId, Row>;

    fn id(number: u16) -> PointId {
        PointId::new(&format!("id-{number}")).unwrap()
    }

    fn row() -> impl Strategy<Value = Row> {
        let served = (any::<u64>(), any::<[u8; 16]>()).prop_map(|(version, hash)| Row::Served {
            version: Version::from_raw(version),
            hash: RowHash::from_bytes(hash),
        });
        prop_oneof![5 => served, 1 => Just(Row::Contested)]
    }

    fn rows() -> impl Strategy<Value = Rows> {
        let entries = proptest::collection::btree_map(0u16..500, row(), 0..60);
        entries.prop_map(|all| all.into_iter().map(|(n, row)| (id(n), row)).collect())
    }

    fn buckets(rows: &Rows) -> Buckets {
        let mut buckets = Buckets::default();
        rows.iter().for_each(|(id, row)| buckets.add(id, row));
        buckets
    }

    /// What `shoal verify` does: only ids of buckets that differ are looked at.
    fn found(here: &Rows, there: &Rows) -> Vec<Difference> {
        let differing = buckets(here).differing(&buckets(there));
        let of = |rows: &Rows| -> Rows {
            let of = rows
                .iter()
                .filter(|(id, _)| differing.contains(&Bucket::of(id)));
            of.map(|(id, row)| (id.clone(), *row)).collect()
        };
        compare(&of(here), &of(there))
    }

    #[test]
    fn an_id_once_in_a_bucket_stays_in_it() {
        assert_eq!(Bucket::of(&id(1)).number(), 832);
        assert_eq!(Bucket::of(&PointId::new("café").unwrap()).number(), 1508);
        assert_eq!(Bucket::new(4096), None);
        let spread: std::collections::BTreeSet<_> =
            (0..20_000).map(|n| Bucket::of(&id(n))).collect();
        assert!(spread.len() > BUCKETS * 9 / 10);
    }

    #[test]
    fn a_contested_id_is_equal_to_itself_whatever_is_served() {
        let contested: Rows = [(id(1), Row::Contested)].into();
        assert_eq!(found(&contested, &contested), []);
        let served = Row::Served {
            version: Version::from_raw(1),
            hash: RowHash::default(),
        };
        let how = |found: Vec<Difference>| found.into_iter().map(|one| one.how).collect::<Vec<_>>();
        let served: Rows = [(id(1), served)].into();
        assert_eq!(how(found(&contested, &served)), [How::ContestedHere]);
        assert_eq!(how(found(&served, &contested)), [How::ContestedThere]);
    }

    proptest! {
        #[test]
        fn equal_copies_have_no_difference_and_add_up(rows in rows()) {
            prop_assert_eq!(found(&rows, &rows), []);
            let mut digest = crate::Digest::default();
            rows.iter().for_each(|(id, row)| digest.add(row.hash(id)));
            prop_assert_eq!(buckets(&rows).total(), digest);
            let bytes = buckets(&rows).to_bytes();
            prop_assert_eq!(Buckets::from_bytes(&bytes), Some(buckets(&rows)));
        }

        #[test]
        fn every_difference_is_found_and_named(here in rows(), there in rows()) {
            let named: Vec<PointId> = found(&here, &there).into_iter().map(|one| one.id).collect();
            let mut wanted: Vec<PointId> = here.keys().chain(there.keys()).cloned().collect();
            wanted.sort();
            wanted.dedup();
            wanted.retain(|id| here.get(id) != there.get(id));
            prop_assert_eq!(named, wanted);
        }

        #[test]
        fn a_single_change_is_found_and_named(rows in rows(), at in 0u16..500, new in proptest::option::of(row())) {
            let id = id(at);
            let mut changed = rows.clone();
            match new {
                Some(new) => changed.insert(id.clone(), new),
                None => changed.remove(&id),
            };
            let found = found(&rows, &changed);
            let named: Vec<&PointId> = found.iter().map(|one| &one.id).collect();
            let differs = rows.get(&id) != changed.get(&id);
            prop_assert_eq!(named, if differs { vec![&id] } else { vec![] });
            for one in &found {
                let fits = match (rows.get(&id), changed.get(&id)) {
                    (Some(_), None) => one.how == How::OnlyHere,
                    (None, Some(_)) => one.how == How::OnlyThere,
                    (Some(Row::Contested), _) => one.how == How::ContestedHere,
                    (_, Some(Row::Contested)) => one.how == How::ContestedThere,
                    (Some(Row::Served { version: here, .. }), Some(Row::Served { version: there, .. })) => {
                        let (here, there) = (*here, *there);
                        one.how == if here == there { How::Content { version: here } } else { How::Versions { here, there } }
                    }
                    (None, None) => false,
                };
                prop_assert!(fits, "{:?}", one);
            }
        }
    }
}
