//! What records without a row said: deletes, and refusals of an id.
//!
//! A catalog that is lost is rebuilt from rows and from these, so a deleted point does not come
//! back when an old record of it is delivered again. An entry is of no use once its tombstone may
//! be gone from the topic as well; compaction leaves it out then.
//!
//! As bytes, little-endian, one after the other: kind u8 (1 deleted, 2 contested), source u16,
//! offset u64, version u64, wall time i64, length of the id u16, the id.

use shoal_schemas::{Offset, PointId, Version};

use crate::rule::{Latest, Says, SourceIndex};

const DELETED: u8 = 1;
const CONTESTED: u8 = 2;

/// A record that left no row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The id it is about.
    pub id: PointId,
    /// What it said, and where. Never [`Says::Live`].
    pub latest: Latest,
    /// Wall time when it was applied, milliseconds since the Unix epoch.
    pub applied_ms: i64,
}

impl Entry {
    /// Appends its bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let kind = match self.latest.says {
            Says::Contested => CONTESTED,
            Says::Deleted | Says::Live(_) => DELETED,
        };
        out.push(kind);
        out.extend_from_slice(&self.latest.source.0.to_le_bytes());
        out.extend_from_slice(&self.latest.offset.0.to_le_bytes());
        out.extend_from_slice(&self.latest.version.raw().to_le_bytes());
        out.extend_from_slice(&self.applied_ms.to_le_bytes());
        let id = self.id.as_str().as_bytes();
        let length = u16::try_from(id.len()).expect("a point id has at most 512 bytes");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(id);
    }

    /// Reads the first entry of `rest` and leaves what follows; `None` if the bytes are no entry.
    pub fn decode(rest: &mut &[u8]) -> Option<Self> {
        let kind = u8::from_le_bytes(word(rest)?);
        let latest = Latest {
            source: SourceIndex(u16::from_le_bytes(word(rest)?)),
            offset: Offset(u64::from_le_bytes(word(rest)?)),
            version: Version::from_raw(u64::from_le_bytes(word(rest)?)),
            says: match kind {
                DELETED => Says::Deleted,
                CONTESTED => Says::Contested,
                _ => return None,
            },
        };
        let applied_ms = i64::from_le_bytes(word(rest)?);
        let length = usize::from(u16::from_le_bytes(word(rest)?));
        let (id, after) = rest.split_at_checked(length)?;
        *rest = after;
        Some(Self {
            id: PointId::new(std::str::from_utf8(id).ok()?).ok()?,
            latest,
            applied_ms,
        })
    }

    /// Reads entries to the end; `None` if the bytes are anything else.
    pub fn decode_all(mut bytes: &[u8]) -> Option<Vec<Self>> {
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            entries.push(Self::decode(&mut bytes)?);
        }
        Some(entries)
    }
}

fn word<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;
    use shoal_schemas::{Offset, PointId, Version};

    use super::Entry;
    use crate::rule::{Latest, Says, SourceIndex};

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let one = (
            "[a-zé/]{1,12}",
            0u16..3,
            any::<u64>(),
            any::<bool>(),
            any::<i64>(),
        );
        let one = one.prop_map(|(id, source, number, contested, applied_ms)| Entry {
            id: PointId::new(&id).unwrap(),
            latest: Latest {
                source: SourceIndex(source),
                offset: Offset(number),
                version: Version::from_raw(number.rotate_left(7)),
                says: if contested {
                    Says::Contested
                } else {
                    Says::Deleted
                },
            },
            applied_ms,
        });
        proptest::collection::vec(one, 0..8)
    }

    proptest! {
        #[test]
        fn entries_read_back_and_a_cut_one_does_not_read(entries in entries(), cut in 1usize..20) {
            let mut bytes = Vec::new();
            for entry in &entries {
                entry.encode(&mut bytes);
            }
            prop_assert_eq!(Entry::decode_all(&bytes), Some(entries.clone()));
            if let Some(last) = entries.last() {
                let cut = cut.min(20 + last.id.as_str().len());
                prop_assert_eq!(Entry::decode_all(&bytes[..bytes.len() - cut]), None);
            }
        }
    }
}
