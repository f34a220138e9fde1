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

    use super::{KeptAnswer, decode, encode, soonest};
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
    fn the_soonest_moment_is_the_first_that_is_one() {
        assert_eq!(soonest([0, 5, 3, 0].into_iter()), 3);
        assert_eq!(soonest([0, 0].into_iter()), 0);
    }
}
