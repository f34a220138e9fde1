//! Which partition a key belongs to.
//!
//! Two hashes are known: the Java client's murmur2 and librdkafka's CRC-32. A collection declares
//! one of them, or split keys between ranges of ids; every producer of its topic has to go by the
//! same, because a tombstone that lands in another partition than its upsert deletes nothing. A
//! stray record is therefore refused with a text that says how it was routed and what to set.

use std::ops::RangeInclusive;

use crate::{
    collection::{Collection, Partitioner},
    log::Partition,
    point::PointId,
    reject::{Reason, Rejection},
};

/// Ends the part of a key that routes, where a collection routes by prefix.
pub const PREFIX_END: char = '/';

/// The character behind [`PREFIX_END`]: ids with a prefix are below the prefix with this one.
const PAST_PREFIX: char = '0';

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
    if !collection.split_keys.is_empty() {
        return range_of(collection, id.as_str());
    }
    let key = routed_part(collection.route_by_key_prefix, id.as_str());
    place(collection.partitioner, key, collection.partitions)
}

/// The partitions that can hold ids with this part before their first `/`: one where a collection
/// routes by prefix, neighbours where it routes by range.
pub fn partitions_of_prefix(collection: &Collection, prefix: &str) -> RangeInclusive<Partition> {
    let splits = &collection.split_keys;
    if splits.is_empty() {
        let key = prefix.as_bytes();
        let one = place(collection.partitioner, key, collection.partitions);
        return one..=one;
    }
    let first = range_of(collection, &format!("{prefix}{PREFIX_END}"));
    let past = format!("{prefix}{PAST_PREFIX}");
    first..=numbered(splits.partition_point(|split| *split < past))
}

/// The first partition that can hold an id behind this one, in the order of ids.
pub fn first_partition_after(collection: &Collection, id: &str) -> Partition {
    range_of(collection, id)
}

/// The partition whose range holds a key; the first where there are no ranges.
fn range_of(collection: &Collection, key: &str) -> Partition {
    let splits = &collection.split_keys;
    numbered(splits.partition_point(|split| split.as_str() <= key))
}

fn numbered(range: usize) -> Partition {
    // A checked collection has at most 4096 ranges.
    Partition(u32::try_from(range).unwrap_or(u32::MAX))
}

/// Refuses a record found in another partition than [`partition_of`] names.
///
/// The text says which rule the record seems to have been routed by, if one fits, and what to set.
pub fn explain_mismatch(collection: &Collection, id: &PointId, found: Partition) -> Rejection {
    if !collection.split_keys.is_empty() {
        return explain_range(collection, id, found);
    }
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

fn explain_range(collection: &Collection, id: &PointId, found: Partition) -> Rejection {
    let expected = partition_of(collection, id);
    let partitions = collection.partitions;
    let lands = |partitioner| place(partitioner, id.as_str().as_bytes(), partitions) == found;
    let how = if lands(Partitioner::Murmur2) {
        "the record seems to be routed with murmur2"
    } else if lands(Partitioner::Crc32) {
        "the record seems to be routed with crc32"
    } else {
        "no hash of the key puts it there"
    };
    let index = usize::try_from(expected.0).unwrap_or(usize::MAX);
    let (from, to) = (
        index
            .checked_sub(1)
            .and_then(|at| collection.split_keys.get(at)),
        collection.split_keys.get(index),
    );
    let shown = |key: &String| key.chars().take(80).collect::<String>();
    let range = match (from.map(shown), to.map(shown)) {
        (Some(from), Some(to)) => format!("from `{from}` up to `{to}`"),
        (Some(from), None) => format!("from `{from}` on"),
        (None, Some(to)) => format!("below `{to}`"),
        (None, None) => "all of them".to_owned(),
    };
    Rejection::new(
        Reason::WrongPartition,
        format_args!(
            "record is in partition {found}, its key belongs into {expected}, which holds keys \
             {range}; {how}: this collection routes by split_keys, so count those that are not \
             above the key, byte by byte, and name that partition when producing"
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
