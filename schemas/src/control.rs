//! What stands in the control topic: definitions and ownership, as JSON by key.
//!
//! A key is `collection/<name>`, `shard/<collection>/<shard>` or
//! `shard/<collection>/<shard>/<replica set>`; a tombstone takes the entry away. The latest claim
//! of a shard in the log owns it, and its offset is the epoch. The latest claim under a replica
//! set's key serves the shard too, but does not own it; readers that know no sets skip it.

use serde::{Deserialize, Serialize};

use crate::{
    collection::Collection,
    log::Partition,
    name::{CollectionName, ReplicaSet},
};

/// What a key of the control topic is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The definition of a collection.
    Collection(CollectionName),
    /// The claim of one shard by its owner.
    Shard(CollectionName, Partition),
    /// The claim of one shard by an indexer of a replica set.
    Replica(CollectionName, Partition, ReplicaSet),
}

impl Key {
    /// The key's text.
    pub fn encode(&self) -> String {
        match self {
            Self::Collection(name) => format!("collection/{name}"),
            Self::Shard(name, shard) => format!("shard/{name}/{shard}"),
            Self::Replica(name, shard, set) => format!("shard/{name}/{shard}/{set}"),
        }
    }

    /// Reads a key; `None` for one of a newer version, which is skipped.
    pub fn decode(key: &str) -> Option<Self> {
        let mut parts = key.split('/');
        let texts = (parts.next()?, parts.next()?, parts.next(), parts.next());
        let decoded = match texts {
            ("collection", name, None, None) => Self::Collection(name.parse().ok()?),
            ("shard", name, Some(shard), None) => {
                Self::Shard(name.parse().ok()?, Partition(shard.parse().ok()?))
            }
            ("shard", name, Some(shard), Some(set)) => Self::Replica(
                name.parse().ok()?,
                Partition(shard.parse().ok()?),
                set.parse().ok()?,
            ),
            _ => return None,
        };
        parts.next().is_none().then_some(decoded)
    }
}

/// A node's claim to serve one shard. Unknown fields of newer nodes are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The indexer's name, unique among the nodes of a region.
    pub node: String,
    /// Where its gRPC service listens, `host:port`.
    pub address: String,
    /// Whether it serves: false while it restores and once it lets go.
    pub ready: bool,
}

/// The value of one control record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A definition.
    Collection(Box<Collection>),
    /// A claim.
    Shard(Claim),
}

/// A control record that does not read.
#[derive(Debug, thiserror::Error)]
#[error("control record `{key}` does not read")]
pub struct EntryError {
    /// Its key.
    key: String,
    #[source]
    source: serde_json::Error,
}

impl Entry {
    /// Reads the value that stands under `key`.
    ///
    /// # Errors
    /// [`EntryError`] if it is no JSON of the key's kind.
    pub fn decode(key: &Key, value: &[u8]) -> Result<Self, EntryError> {
        let decoded = match key {
            Key::Collection(_) => serde_json::from_slice(value).map(Self::Collection),
            Key::Shard(..) | Key::Replica(..) => serde_json::from_slice(value).map(Self::Shard),
        };
        decoded.map_err(|source| EntryError {
            key: key.encode(),
            source,
        })
    }

    /// The value's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let encoded = match self {
            Self::Collection(collection) => serde_json::to_vec(collection),
            Self::Shard(claim) => serde_json::to_vec(claim),
        };
        encoded.expect("maps with text keys and plain values always encode")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{Claim, Entry, Key};
    use crate::{Collection, Metric, Partition};

    #[test]
    fn keys_and_values_read_back() {
        let name: crate::CollectionName = "docs".parse().unwrap();
        let definition = Collection::new(name.clone(), 384.try_into().unwrap(), Metric::Cosine, 4);
        let claim = Claim {
            node: "a".into(),
            address: "127.0.0.1:1".into(),
            ready: true,
        };
        for (key, entry) in [
            (
                Key::Collection(name.clone()),
                Entry::Collection(Box::new(definition)),
            ),
            (
                Key::Shard(name.clone(), Partition(3)),
                Entry::Shard(claim.clone()),
            ),
            (
                Key::Replica(name, Partition(3), "b".parse().unwrap()),
                Entry::Shard(claim),
            ),
        ] {
            assert_eq!(Key::decode(&key.encode()), Some(key.clone()));
            assert_eq!(Entry::decode(&key, &entry.encode()).unwrap(), entry);
        }
        for unknown in [
            "alias/x",
            "shard/docs/-1",
            "shard/docs/1/A",
            "shard/docs/1/b/c",
            "collection/docs/1",
            "collection/A",
            "",
        ] {
            assert_eq!(Key::decode(unknown), None, "{unknown}");
        }
    }
}
