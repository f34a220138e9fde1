//! What stands in the control topic: definitions and ownership, as JSON by key.
//!
//! A key is `collection/<name>`, `node/<name>`, `shard/<collection>/<shard>` or
//! `shard/<collection>/<shard>/<replica set>`; a tombstone takes the entry away. The latest claim
//! of a shard in the log owns it, and its offset is the epoch. The latest claim under a replica
//! set's key serves the shard too, but does not own it; readers that know no sets skip it. A node
//! stands there while it says again and again that it lives.
//!
//! `alias/<name>` is another name of a collection, `feed/<collection>` says that a re-indexing copies
//! its records from another collection's topic, and `reindex/<name>` is a re-indexing under way.

use serde::{Deserialize, Serialize};

use crate::{
    collection::Collection,
    log::{Offset, Partition},
    name::{CollectionName, ReplicaSet},
    placement::Labels,
};

/// Longest name of a node that announces itself.
pub const MAX_NODE_BYTES: usize = 128;

/// What a key of the control topic is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The definition of a collection.
    Collection(CollectionName),
    /// The claim of one shard by its owner.
    Shard(CollectionName, Partition),
    /// The claim of one shard by an indexer of a replica set.
    Replica(CollectionName, Partition, ReplicaSet),
    /// A node that shards can be given to.
    Node(String),
    /// Another name of a collection.
    Alias(CollectionName),
    /// The feed of a collection.
    Feed(CollectionName),
    /// The re-indexing of what a name stands for.
    Reindex(CollectionName),
}

/// Whether a node of this name can stand in a key.
pub fn is_node_name(name: &str) -> bool {
    (1..=MAX_NODE_BYTES).contains(&name.len()) && !name.contains('/')
}

impl Key {
    /// The key's text.
    pub fn encode(&self) -> String {
        match self {
            Self::Collection(name) => format!("collection/{name}"),
            Self::Shard(name, shard) => format!("shard/{name}/{shard}"),
            Self::Replica(name, shard, set) => format!("shard/{name}/{shard}/{set}"),
            Self::Node(name) => format!("node/{name}"),
            Self::Alias(name) => format!("alias/{name}"),
            Self::Feed(name) => format!("feed/{name}"),
            Self::Reindex(name) => format!("reindex/{name}"),
        }
    }

    /// Reads a key; `None` for one of a newer version, which is skipped.
    pub fn decode(key: &str) -> Option<Self> {
        let mut parts = key.split('/');
        let texts = (parts.next()?, parts.next()?, parts.next(), parts.next());
        let decoded = match texts {
            ("collection", name, None, None) => Self::Collection(name.parse().ok()?),
            ("node", name, None, None) if is_node_name(name) => Self::Node(name.to_owned()),
            ("alias", name, None, None) => Self::Alias(name.parse().ok()?),
            ("feed", name, None, None) => Self::Feed(name.parse().ok()?),
            ("reindex", name, None, None) => Self::Reindex(name.parse().ok()?),
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
    /// The first offset of the home partition that was not applied when the claim was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<Offset>,
    /// It serves although it has not caught up since it was opened, for a limit keeps it from that: to be asked where
    /// nobody else can answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub early: bool,
}

/// A node that shards can be given to. Unknown fields of newer nodes are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Where its gRPC service listens, `host:port`.
    pub address: String,
    /// The replica set it belongs to; none for those that own shards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<ReplicaSet>,
    /// What it has.
    #[serde(default)]
    pub labels: Labels,
    /// Its share beside that of others.
    pub weight: u32,
    /// So long it counts as alive when nothing more is heard of it.
    pub lease_ms: u64,
    /// How often it has announced itself.
    pub beat: u64,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The collection.
    pub collection: CollectionName,
}

/// A collection whose records are copied from another one's topic, until producers have switched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feed {
    /// Where its records come from, and where a gateway writes what is for it until that has moved.
    pub from: CollectionName,
    /// It is about to end: writes that depend on the point wait until it has.
    #[serde(default)]
    pub closing: bool,
    /// The other writes go into the collection's own topic already. Those that depend on the point go on
    /// waiting until what was written before is copied.
    #[serde(default)]
    pub moved: bool,
}

/// A re-indexing under way, so that one that was killed is found by the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reindex {
    /// The run that is at it: the latest one, as with a claim.
    pub run: String,
    /// The collection that the name stood for at the beginning.
    pub from: CollectionName,
    /// The one that it is to stand for.
    pub to: CollectionName,
    /// Whether the re-indexing has made it, so that it goes with an abort.
    pub made: bool,
}

/// The value of one control record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A definition.
    Collection(Box<Collection>),
    /// A claim.
    Shard(Claim),
    /// A node's sign of life.
    Node(Announcement),
    /// Another name.
    Alias(Alias),
    /// A feed.
    Feed(Feed),
    /// A re-indexing.
    Reindex(Reindex),
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
            Key::Node(_) => serde_json::from_slice(value).map(Self::Node),
            Key::Alias(_) => serde_json::from_slice(value).map(Self::Alias),
            Key::Feed(_) => serde_json::from_slice(value).map(Self::Feed),
            Key::Reindex(_) => serde_json::from_slice(value).map(Self::Reindex),
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
            Self::Node(announcement) => serde_json::to_vec(announcement),
            Self::Alias(alias) => serde_json::to_vec(alias),
            Self::Feed(feed) => serde_json::to_vec(feed),
            Self::Reindex(reindex) => serde_json::to_vec(reindex),
        };
        encoded.expect("maps with text keys and plain values always encode")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{Alias, Announcement, Claim, Entry, Feed, Key, Reindex};
    use crate::{Collection, Metric, Offset, Partition};

    #[test]
    fn keys_and_values_read_back() {
        let name: crate::CollectionName = "docs".parse().unwrap();
        let definition = Collection::new(name.clone(), 384.try_into().unwrap(), Metric::Cosine, 4);
        let claim = Claim {
            node: "a".into(),
            address: "127.0.0.1:1".into(),
            ready: true,
            next_offset: Some(Offset(7)),
            early: true,
        };
        let node = Announcement {
            address: "127.0.0.1:1".into(),
            set: Some("b".parse().unwrap()),
            labels: [("gpu".to_owned(), "true".to_owned())].into(),
            weight: 1,
            lease_ms: 10_000,
            beat: 3,
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
                Key::Replica(name.clone(), Partition(3), "b".parse().unwrap()),
                Entry::Shard(claim),
            ),
            (Key::Node("host.a:1".into()), Entry::Node(node)),
            (
                Key::Alias("live".parse().unwrap()),
                Entry::Alias(Alias {
                    collection: name.clone(),
                }),
            ),
            (
                Key::Feed("docs-g2".parse().unwrap()),
                Entry::Feed(Feed {
                    from: name.clone(),
                    closing: true,
                    moved: true,
                }),
            ),
            (
                Key::Reindex("live".parse().unwrap()),
                Entry::Reindex(Reindex {
                    run: "a".into(),
                    from: name,
                    to: "docs-g2".parse().unwrap(),
                    made: true,
                }),
            ),
        ] {
            assert_eq!(Key::decode(&key.encode()), Some(key.clone()));
            assert_eq!(Entry::decode(&key, &entry.encode()).unwrap(), entry);
        }
        for unknown in [
            "alias/A",
            "feed/docs/1",
            "shard/docs/-1",
            "shard/docs/1/A",
            "shard/docs/1/b/c",
            "collection/docs/1",
            "collection/A",
            "node/",
            "node/a/b",
            "",
        ] {
            assert_eq!(Key::decode(unknown), None, "{unknown}");
        }
    }
}
