//! The shard map as a file: what `shoal map export` writes and a query node reads.
//!
//! JSON with the definitions and the claims, and the cluster's id, which tokens are checked against.
//! A file is taken as a whole or not at all, so a fault names its place and changes nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_schemas::{
    ClusterId, Collection, CollectionName, Offset, Partition, ReplicaSet,
    collection::DefinitionError, control::Claim, placement::Labels,
};
use shoal_topic::control::ControlState;

use crate::shard_map::{Replica, ShardMap};

/// The only form there is so far.
const FORMAT: u32 = 1;

/// A shard map as it stands in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// 1.
    pub format: u32,
    /// The id of the Kafka cluster; without it searches with tokens are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterId>,
    /// Definitions.
    pub collections: Vec<Collection>,
    /// What other names stand for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<CollectionName, CollectionName>,
    /// Who serves which shard. A later one of the same shard and set counts.
    pub claims: Vec<ClaimLine>,
    /// Labels of indexers, by name; only to say why a shard has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<String, Labels>,
}

/// Who serves a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimLine {
    /// The collection.
    pub collection: CollectionName,
    /// The shard.
    pub shard: Partition,
    /// The replica set; none for the owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<ReplicaSet>,
    /// The indexer's name.
    pub node: String,
    /// Where its gRPC service listens, `host:port`.
    pub address: String,
    /// Whether it serves.
    #[serde(default = "yes")]
    pub ready: bool,
    /// Whether it serves although it has not caught up: to be asked where nobody else can answer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub early: bool,
    /// The claim's offset in the control topic.
    #[serde(default)]
    pub epoch: Offset,
}

fn yes() -> bool {
    true
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is no such JSON.
    #[error("shard map does not read")]
    Json(#[from] serde_json::Error),
    /// It is of another version.
    #[error("shard map has format {found}, known is {FORMAT}")]
    Format {
        /// As given.
        found: u32,
    },
    /// A definition.
    #[error("shard map has a collection `{name}` that is refused")]
    Definition {
        /// Its name.
        name: CollectionName,
        /// Why.
        #[source]
        source: DefinitionError,
    },
    /// Two definitions of one name.
    #[error("shard map defines collection `{name}` twice")]
    Twice {
        /// The name.
        name: CollectionName,
    },
    /// A claim of nothing.
    #[error(
        "claim {at} of the shard map is of shard {collection}/{shard}, which it does not define"
    )]
    Claim {
        /// Its place, from 0.
        at: usize,
        /// The collection.
        collection: CollectionName,
        /// The shard.
        shard: Partition,
    },
}

impl Document {
    /// What holds in the control topic.
    pub fn of(state: &ControlState, cluster: Option<ClusterId>) -> Self {
        let line =
            |name: &CollectionName, shard: Partition, set, (claim, epoch): &(Claim, Offset)| {
                ClaimLine {
                    collection: name.clone(),
                    shard,
                    set,
                    node: claim.node.clone(),
                    address: claim.address.clone(),
                    ready: claim.ready,
                    early: claim.early,
                    epoch: *epoch,
                }
            };
        let owners = state.shards.iter();
        let owners = owners.map(|((name, shard), claim)| line(name, *shard, None, claim));
        let others = state.replicas.iter();
        let others =
            others.map(|((name, shard, set), claim)| line(name, *shard, Some(set.clone()), claim));
        let is_defined = |line: &ClaimLine| {
            let found = state.collections.get(&line.collection);
            found.is_some_and(|found| line.shard.0 < found.partitions)
        };
        let nodes = state.nodes.iter();
        Self {
            format: FORMAT,
            cluster,
            collections: state.collections.values().cloned().collect(),
            aliases: state.aliases.clone(),
            claims: owners.chain(others).filter(is_defined).collect(),
            nodes: nodes
                .map(|(name, (node, _))| (name.clone(), node.labels.clone()))
                .collect(),
        }
    }

    /// Reads and checks a file's content.
    ///
    /// # Errors
    /// [`DocumentError`] for the first fault.
    pub fn read(bytes: &[u8]) -> Result<Self, DocumentError> {
        let document: Self = serde_json::from_slice(bytes)?;
        if document.format != FORMAT {
            return Err(DocumentError::Format {
                found: document.format,
            });
        }
        let mut shards = BTreeMap::new();
        for collection in &document.collections {
            let name = &collection.name;
            let refused = |source| DocumentError::Definition {
                name: name.clone(),
                source,
            };
            collection.check().map_err(refused)?;
            if shards.insert(name, collection.partitions).is_some() {
                return Err(DocumentError::Twice { name: name.clone() });
            }
        }
        for (at, line) in document.claims.iter().enumerate() {
            let defined = shards.get(&line.collection);
            if defined.is_none_or(|shards| line.shard.0 >= *shards) {
                return Err(DocumentError::Claim {
                    at,
                    collection: line.collection.clone(),
                    shard: line.shard,
                });
            }
        }
        Ok(document)
    }

    /// The map it says.
    pub fn into_map(self) -> ShardMap {
        let claims = self.claims.into_iter().map(|line| {
            let claim = Claim {
                node: line.node,
                address: line.address,
                ready: line.ready,
                next_offset: None,
                early: line.early,
            };
            let (set, epoch) = (line.set, line.epoch);
            (line.collection, line.shard, Replica { set, claim, epoch })
        });
        ShardMap::with_nodes(self.collections, claims, self.nodes, true).aliased(self.aliases)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use shoal_schemas::{Collection, Metric, Offset, Partition, control::Claim};
    use shoal_topic::control::ControlState;

    use super::Document;
    use crate::shard_map::ShardMap;

    fn state() -> ControlState {
        let mut state = ControlState::default();
        let dim = 3.try_into().unwrap();
        let docs = Collection::new("docs".parse().unwrap(), dim, Metric::L2, 2);
        let claim = |node: &str| Claim {
            node: node.into(),
            address: format!("{node}:1"),
            ready: true,
            next_offset: None,
            early: false,
        };
        let name = docs.name.clone();
        for shard in 0..3 {
            // The last one is of a shard that there is not any more.
            let at = (name.clone(), Partition(shard));
            state.shards.insert(at, (claim("a"), Offset(7)));
        }
        let replica = (name.clone(), Partition(1), "b".parse().unwrap());
        state.replicas.insert(replica, (claim("b1"), Offset(9)));
        state.collections.insert(name, docs);
        state.aliases = [("live".parse().unwrap(), "docs".parse().unwrap())].into();
        state.caught_up_at = Some(std::time::Duration::ZERO);
        state
    }

    #[test]
    fn what_is_exported_reads_back_as_the_map_it_was() {
        let state = state();
        let document = Document::of(&state, Some("cluster".into()));
        let bytes = serde_json::to_vec_pretty(&document).unwrap();
        let read = Document::read(&bytes).unwrap();
        assert_eq!(read, document);
        assert_eq!(read.into_map(), ShardMap::of(&state));
    }

    #[test]
    fn a_fault_is_named() {
        let good = serde_json::to_value(Document::of(&state(), None)).unwrap();
        let told = |change: fn(&mut serde_json::Value)| {
            let mut document = good.clone();
            change(&mut document);
            let refused = Document::read(document.to_string().as_bytes()).unwrap_err();
            shoal_runtime::chain(&refused).to_string()
        };
        let cases = [
            (told(|d| d["format"] = 2.into()), "format 2"),
            (told(|d| d["claims"][0]["shard"] = 2.into()), "claim 0"),
            (told(|d| d["claims"][1]["colour"] = 2.into()), "colour"),
            (
                told(|d| d["collections"][0]["partitions"] = 0.into()),
                "partitions is 0",
            ),
            (
                told(|d| d["collections"] = vec![d["collections"][0].clone(); 2].into()),
                "twice",
            ),
        ];
        for (told, part) in cases {
            assert!(told.contains(part), "{told}");
        }
        let broken = Document::read(b"{\"format\": 1, \"coll").unwrap_err();
        assert!(broken.to_string().contains("does not read"), "{broken}");
    }
}
