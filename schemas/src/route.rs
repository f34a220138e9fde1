//! Which partition a key belongs to.
//!
//! Two hashes are known: the Java client's murmur2 and librdkafka's CRC-32. A collection declares
//! one of them, and every producer of its topic has to use the same, because a tombstone that
//! lands in another partition than its upsert deletes nothing. A stray record is therefore
//! refused with a text that says how it was routed and what to set.

use crate::{
    collection::{Collection, Partitioner},
    log::Partition,
    point::PointId,
    reject::{Reason, Rejection},
};

/// Ends the part of a key that routes, where a collection routes by prefix.
pub const PREFIX_END: char = '/';

const MURMUR2_SEED: u32 = 0x9747_b28c;
const MURMUR2_M: u32 = 0x5bd1_e995;
/// Java clears the sign bit before it takes the remainder.
const JAVA_POSITIVE: u32 = 0x7fff_ffff;

/// The Java client's hash of a key, before its sign bit is cleared.
///
/// # Source
/// `org.apache.kafka.common.utils.Utils.murmur2`: 32-bit MurmurHash2 with a fixed seed.
pub fn murmur2(key: &[u8]) -> u32 {
    // Java's length is an `int`; a key is far below that.
    let len = u32::try_from(key.len()).unwrap_or(u32::MAX);
    let (words, tail) = key.as_chunks::<4>();
    let mut hash = words.iter().fold(MURMUR2_SEED ^ len, |hash, word| {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(MURMUR2_M);
        k ^= k >> 24;
        hash.wrapping_mul(MURMUR2_M) ^ k.wrapping_mul(MURMUR2_M)
    });
    if !tail.is_empty() {
        let mut last = [0; 4];
        for (to, from) in last.iter_mut().zip(tail) {
            *to = *from;
        }
        hash = (hash ^ u32::from_le_bytes(last)).wrapping_mul(MURMUR2_M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MURMUR2_M);
    hash ^ hash >> 15
}

/// librdkafka's hash of a key: plain CRC-32 (IEEE).
pub fn crc32(key: &[u8]) -> u32 {
    crc32fast::hash(key)
}

/// The partition that holds every record of `id`.
pub fn partition_of(collection: &Collection, id: &PointId) -> Partition {
    let key = routed_part(collection.route_by_key_prefix, id.as_str());
    place(collection.partitioner, key, collection.partitions)
}

/// The partition of every id with this part before its first `/`, where a collection routes by
/// prefix.
pub fn partition_of_prefix(collection: &Collection, prefix: &str) -> Partition {
    place(
        collection.partitioner,
        prefix.as_bytes(),
        collection.partitions,
    )
}

/// Refuses a record found in another partition than [`partition_of`] names.
///
/// The text says which rule the record seems to have been routed by, if one fits, and what to set.
pub fn explain_mismatch(collection: &Collection, id: &PointId, found: Partition) -> Rejection {
    let expected = partition_of(collection, id);
    let declared = collection.partitioner;
    let other = match declared {
        Partitioner::Murmur2 => Partitioner::Crc32,
        Partitioner::Crc32 => Partitioner::Murmur2,
    };
    let by_prefix = collection.route_by_key_prefix;
    let lands = |partitioner, by_prefix| {
        let key = routed_part(by_prefix, id.as_str());
        place(partitioner, key, collection.partitions) == found
    };
    let advice = if lands(other, by_prefix) || lands(other, !by_prefix) {
        match declared {
            Partitioner::Murmur2 => {
                "the record seems to be routed with crc32, librdkafka's default: set \
                 `partitioner=murmur2_random` in the client, or declare the collection with crc32"
            }
            Partitioner::Crc32 => {
                "the record seems to be routed with murmur2, the Java client's default: set \
                 `partitioner=consistent_random` in librdkafka clients (Java needs a partitioner \
                 class), or declare the collection with murmur2"
            }
        }
    } else if lands(declared, !by_prefix) {
        if by_prefix {
            "the record seems to be routed by its whole key: this collection routes by the part \
             of the key before the first `/`, so hash only that part and send to the partition \
             it gives"
        } else {
            "the record seems to be routed by the part of its key before the first `/`: this \
             collection routes by the whole key"
        }
    } else {
        "no known partitioner puts it there: let the client choose the partition by the key, \
         with the collection's partitioner and partition count"
    };
    let name = match declared {
        Partitioner::Murmur2 => "murmur2",
        Partitioner::Crc32 => "crc32",
    };
    Rejection::new(
        Reason::WrongPartition,
        format_args!(
            "record is in partition {found}, {name} over {} partitions puts its key into \
             {expected}; {advice}",
            collection.partitions
        ),
    )
}

fn routed_part(by_prefix: bool, key: &str) -> &[u8] {
    match key.split_once(PREFIX_END) {
        Some((prefix, _)) if by_prefix => prefix.as_bytes(),
        _ => key.as_bytes(),
    }
}

fn place(partitioner: Partitioner, key: &[u8], partitions: u32) -> Partition {
    let hash = match partitioner {
        Partitioner::Murmur2 => murmur2(key) & JAVA_POSITIVE,
        Partitioner::Crc32 => crc32(key),
    };
    // A checked collection has at least one partition.
    Partition(hash % partitions.max(1))
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
