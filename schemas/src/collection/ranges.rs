//! Split keys: where one shard's range of ids ends and the next one's begins.
//!
//! `n` shards have `n - 1` split keys in ascending order. A shard holds the ids from the split key
//! before it, included, up to the one behind it, left out; ids compare byte by byte, as Kafka
//! clients in any language can. A collection without split keys routes by hash.

use crate::{
    collection::{Collection, Partitioner},
    point::MAX_ID_BYTES,
};

/// All split keys together, so that a definition stays far below Kafka's usual largest message.
const MAX_TOTAL_BYTES: usize = 256 << 10;

/// Why split keys are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// Too few or too many for the shards.
    #[error("{found} split keys make {} shards, partitions is {partitions}", .found + 1)]
    Count {
        /// Split keys given.
        found: usize,
        /// Shards.
        partitions: u32,
    },
    /// One that no id can begin with.
    #[error("split key {at} has {bytes} bytes, allowed are 1 to {MAX_ID_BYTES}")]
    Length {
        /// Its place, from 0.
        at: usize,
        /// Its length.
        bytes: usize,
    },
    /// Out of order, or twice.
    #[error(
        "split key {at}, `{key}`, is not above the one before it; they have to ascend byte by byte"
    )]
    Order {
        /// Its place, from 0.
        at: usize,
        /// Its first characters.
        key: String,
    },
    /// More than a control record should hold.
    #[error("split keys have {bytes} bytes together, allowed are {MAX_TOTAL_BYTES}")]
    Total {
        /// Their lengths together.
        bytes: usize,
    },
    /// Another rule that would have to route, too.
    #[error("split_keys and {other} are both set; a key has one way to its shard")]
    Together {
        /// The other rule.
        other: &'static str,
    },
}

pub(super) fn check(collection: &Collection) -> Result<(), SplitError> {
    let keys = &collection.split_keys;
    if keys.is_empty() {
        return Ok(());
    }
    if collection.route_by_key_prefix {
        return Err(SplitError::Together {
            other: "route_by_key_prefix",
        });
    }
    if collection.partitioner != Partitioner::Murmur2 {
        return Err(SplitError::Together {
            other: "partitioner crc32",
        });
    }
    if u32::try_from(keys.len() + 1) != Ok(collection.partitions) {
        return Err(SplitError::Count {
            found: keys.len(),
            partitions: collection.partitions,
        });
    }
    let mut before = "";
    for (at, key) in keys.iter().enumerate() {
        if !(1..=MAX_ID_BYTES).contains(&key.len()) {
            return Err(SplitError::Length {
                at,
                bytes: key.len(),
            });
        }
        if key.as_str() <= before {
            return Err(SplitError::Order {
                at,
                key: key.chars().take(80).collect(),
            });
        }
        before = key;
    }
    let bytes = keys.iter().map(String::len).sum();
    if bytes > MAX_TOTAL_BYTES {
        return Err(SplitError::Total { bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::SplitError;
    use crate::{Collection, Metric, Partitioner, collection::DefinitionError};

    fn split_at(keys: &[&str], change: fn(&mut Collection)) -> Option<SplitError> {
        let dim = 3.try_into().unwrap();
        let shards = u32::try_from(keys.len() + 1).unwrap();
        let mut docs = Collection::new("docs".parse().unwrap(), dim, Metric::L2, shards);
        docs.split_keys = keys.iter().map(|key| (*key).to_owned()).collect();
        change(&mut docs);
        match docs.check() {
            Ok(()) => None,
            Err(DefinitionError::Splits(error)) => Some(error),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn split_keys_ascend_and_are_one_less_than_the_shards() {
        assert_eq!(split_at(&["b", "ba", "é"], |_| {}), None);
        assert_eq!(split_at(&[], |docs| docs.partitions = 9), None);
        let wrong = [
            split_at(&["b"], |docs| docs.partitions = 3),
            split_at(&["b", "b"], |_| {}),
            split_at(&["b", "a"], |_| {}),
            split_at(&["", "a"], |_| {}),
            split_at(&["b"], |docs| docs.split_keys = vec!["x".repeat(513)]),
        ];
        let told = wrong.map(|error| error.unwrap().to_string());
        let parts = [
            "make 2 shards, partitions is 3",
            "`b`",
            "`a`",
            "0 bytes",
            "513 bytes",
        ];
        for (told, part) in told.iter().zip(parts) {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn ranges_are_no_second_rule_beside_another_one() {
        let by_prefix = split_at(&["b"], |docs| docs.route_by_key_prefix = true);
        let by_crc = split_at(&["b"], |docs| docs.partitioner = Partitioner::Crc32);
        for refused in [by_prefix, by_crc] {
            assert!(
                matches!(refused, Some(SplitError::Together { .. })),
                "{refused:?}"
            );
        }
    }
}
