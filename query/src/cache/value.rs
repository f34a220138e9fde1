//! What is kept, as bytes: a version, a checksum, and a message.
//!
//! A Redis is not ours alone, so what comes out of one is believed only if its checksum, which has
//! the key in it, says that it was put there under this name. Another version than ours, or
//! anything that does not read, is nothing.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;
use shoal_schemas::v1;

use super::Key;

/// Of the bytes' form. What an older or newer node kept is nothing to this one.
const VERSION: u8 = 1;
/// Bytes of the checksum.
const CHECKSUM: usize = 8;

/// One shard's answer to some queries.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeptShard {
    /// What the shard called the content that it searched.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) version: Bytes,
    /// One a query.
    #[prost(message, repeated, tag = "2")]
    pub(crate) lists: Vec<v1::HitList>,
    /// What the shard said of itself then, its number too.
    #[prost(message, required, tag = "3")]
    pub(crate) coverage: v1::ShardCoverage,
    /// Wall time before it was asked, milliseconds since the Unix epoch.
    #[prost(uint64, tag = "4")]
    pub(crate) asked_ms: u64,
}

impl KeptShard {
    /// No point of it expires before; 0 if none ever does.
    pub(crate) fn expires_at_ms(&self) -> i64 {
        soonest(self.lists.iter().map(|list| list.expires_at_ms))
    }
}

/// What the shards answered to some queries.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeptShards {
    /// By shard, each once.
    #[prost(message, repeated, tag = "1")]
    pub(crate) shards: Vec<KeptShard>,
}

/// A whole answer of another node.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct KeptAnswer {
    /// The message.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) message: Bytes,
    /// Wall time before it was asked, less the age it had already.
    #[prost(uint64, tag = "2")]
    pub(crate) asked_ms: u64,
    /// No point of it expires before; 0 if none ever does.
    #[prost(int64, tag = "3")]
    pub(crate) expires_at_ms: i64,
    /// How far behind its shards were at most, milliseconds.
    #[prost(uint64, tag = "4")]
    pub(crate) lag_ms: u64,
}

/// What is kept under one name in two places, one of which may be newer.
pub(crate) trait Dated: Message + Default {
    /// Takes over what is newer in another one; says whether anything is. What lies ahead, by
    /// another node's clock, is older than all else: its age is not known.
    fn take_newer(&mut self, other: Self, now_ms: u64) -> bool;
}

impl Dated for KeptAnswer {
    fn take_newer(&mut self, other: Self, now_ms: u64) -> bool {
        let is_newer = is_newer(other.asked_ms, self.asked_ms, now_ms);
        if is_newer {
            *self = other;
        }
        is_newer
    }
}

impl Dated for KeptShards {
    fn take_newer(&mut self, other: Self, now_ms: u64) -> bool {
        let mut is_newer_somewhere = false;
        for theirs in other.shards {
            let shard = theirs.coverage.shard;
            let mut own = self.shards.iter_mut();
            match own.find(|own| own.coverage.shard == shard) {
                Some(own) if !is_newer(theirs.asked_ms, own.asked_ms, now_ms) => continue,
                Some(own) => *own = theirs,
                None => self.shards.push(theirs),
            }
            is_newer_somewhere = true;
        }
        is_newer_somewhere
    }
}

fn is_newer(theirs_ms: u64, own_ms: u64, now_ms: u64) -> bool {
    let known = |asked_ms: u64| (asked_ms <= now_ms).then_some(asked_ms);
    known(theirs_ms) > known(own_ms)
}

/// The first of some moments at which something expires, 0 if nothing ever does.
pub(crate) fn soonest(moments: impl Iterator<Item = i64>) -> i64 {
    moments.filter(|at| *at != 0).min().unwrap_or(0)
}

/// The bytes of a message that is kept under a name.
pub(super) fn encode(key: &Key, message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + CHECKSUM + message.encoded_len());
    bytes.put_u8(VERSION);
    bytes.put_bytes(0, CHECKSUM);
    message
        .encode(&mut bytes)
        .expect("a buffer that grows has room");
    let checksum = bytes.get(1 + CHECKSUM..).map(|body| checksum(key, body));
    if let (Some(place), Some(checksum)) = (bytes.get_mut(1..=CHECKSUM), checksum) {
        place.copy_from_slice(&checksum);
    }
    bytes.freeze()
}

/// The message in those bytes; `None` if they are anything else.
pub(super) fn decode<M: Message + Default>(key: &Key, bytes: &Bytes) -> Option<M> {
    let (version, rest) = bytes.split_first()?;
    let (found, body) = rest.split_at_checked(CHECKSUM)?;
    if *version != VERSION || *found != checksum(key, body) {
        return None;
    }
    M::decode(bytes.slice_ref(body)).ok()
}

fn checksum(key: &Key, body: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = blake3::Hasher::new_keyed(key.bytes());
    hasher.update(body);
    let mut sum = [0; CHECKSUM];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use bytes::Bytes;
    use shoal_schemas::v1;

    use super::{Dated as _, KeptAnswer, KeptShard, KeptShards, decode, encode, soonest};
    use crate::cache::KeyOf;

    #[test]
    fn what_was_kept_under_another_name_or_is_damaged_is_nothing() {
        let key = |name: &str| KeyOf::new("test").with(name).finish();
        let kept = KeptAnswer {
            message: Bytes::from_static(b"answer"),
            asked_ms: 7,
            expires_at_ms: 8,
            lag_ms: 9,
        };
        let bytes = encode(&key("a"), &kept);
        assert_eq!(decode(&key("a"), &bytes), Some(kept));
        assert_eq!(decode::<KeptAnswer>(&key("b"), &bytes), None);
        for at in 0..bytes.len() {
            assert_eq!(decode::<KeptAnswer>(&key("a"), &bytes.slice(..at)), None);
            let mut damaged = bytes.to_vec();
            damaged[at] ^= 1;
            assert_eq!(
                decode::<KeptAnswer>(&key("a"), &Bytes::from(damaged)),
                None,
                "{at}"
            );
        }
    }

    #[test]
    fn of_each_shard_the_newer_part_stays_and_what_lies_ahead_is_newer_than_nothing() {
        let kept = |parts: &[(u32, u64)]| KeptShards {
            shards: (parts.iter())
                .map(|(shard, asked_ms)| KeptShard {
                    coverage: v1::ShardCoverage {
                        shard: *shard,
                        ..v1::ShardCoverage::default()
                    },
                    asked_ms: *asked_ms,
                    ..KeptShard::default()
                })
                .collect(),
        };
        let mut own = kept(&[(0, 5), (1, 5), (2, 5), (4, 60)]);
        let theirs = kept(&[(1, 7), (2, 3), (0, 60), (3, 1), (4, 2)]);
        assert!(own.take_newer(theirs.clone(), 50));
        assert_eq!(own, kept(&[(0, 5), (1, 7), (2, 5), (4, 2), (3, 1)]));
        assert!(!own.take_newer(theirs, 50));
    }

    #[test]
    fn the_soonest_moment_is_the_first_that_is_one() {
        assert_eq!(soonest([0, 5, 3, 0].into_iter()), 3);
        assert_eq!(soonest([0, 0].into_iter()), 0);
    }
}
