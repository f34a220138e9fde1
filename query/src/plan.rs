//! Which node is asked for which shards: pure. One call a node, however many shards it has.

use std::collections::BTreeMap;

use shoal_schemas::Partition;

use crate::shard_map::{Owner, Shards};

/// What one node is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAsk {
    /// The node's name.
    pub node: String,
    /// Its gRPC address.
    pub address: String,
    /// The shards, in the order they were wanted.
    pub shards: Vec<Partition>,
}

/// A shard that nobody can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// The shard.
    pub shard: Partition,
    /// The node that has it but does not serve it; empty if there is none.
    pub node: String,
    /// Why, and what would help.
    pub why: String,
}

/// Who is asked for what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// One ask a node.
    pub asks: Vec<NodeAsk>,
    /// Shards without an owner that serves.
    pub orphans: Vec<Orphan>,
}

/// Groups the wanted shards by the node that serves them.
pub fn plan(shards: &Shards, wanted: impl IntoIterator<Item = Partition>) -> Plan {
    let mut plan = Plan::default();
    let mut places: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for shard in wanted {
        let owner = match shards.owner(shard) {
            Some(owner) if owner.claim.ready => owner,
            not_serving => {
                plan.orphans.push(orphan(shards, shard, not_serving));
                continue;
            }
        };
        let (node, address) = (owner.claim.node.as_str(), owner.claim.address.as_str());
        let place = *places.entry((node, address)).or_insert_with(|| {
            plan.asks.push(NodeAsk {
                node: node.to_owned(),
                address: address.to_owned(),
                shards: Vec::new(),
            });
            plan.asks.len() - 1
        });
        if let Some(ask) = plan.asks.get_mut(place) {
            ask.shards.push(shard);
        }
    }
    plan
}

fn orphan(shards: &Shards, shard: Partition, owner: Option<&Owner>) -> Orphan {
    let collection = &shards.collection.name;
    match owner {
        Some(Owner { claim, .. }) => Orphan {
            shard,
            node: claim.node.clone(),
            why: format!(
                "node `{}` has the shard but does not serve it now: it restores it or hands it over",
                claim.node
            ),
        },
        None => Orphan {
            shard,
            node: String::new(),
            why: format!("no indexer has claimed this shard of `{collection}`; is one running?"),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::{collection::vec, prelude::*};
    use shoal_schemas::{Collection, Metric, Offset, Partition, control::Claim};

    use super::plan;
    use crate::shard_map::{Owner, Shards};

    fn shards(owners: &[Option<(u8, bool)>]) -> Shards {
        let count = u32::try_from(owners.len()).unwrap();
        let owner = |(node, ready): (u8, bool)| Owner {
            claim: Claim {
                node: format!("n{node}"),
                address: format!("n{node}:1"),
                ready,
            },
            epoch: Offset(0),
        };
        Shards {
            collection: Collection::new(
                "docs".parse().unwrap(),
                3.try_into().unwrap(),
                Metric::L2,
                count,
            ),
            owners: owners.iter().map(|held| held.map(owner)).collect(),
        }
    }

    #[test]
    fn a_node_is_asked_once_for_all_its_shards() {
        let shards = shards(&[Some((1, true)), Some((2, true)), Some((1, true))]);
        let plan = plan(&shards, shards.numbers());
        let asked: Vec<_> = plan
            .asks
            .iter()
            .map(|ask| (ask.node.as_str(), ask.shards.clone()))
            .collect();
        assert_eq!(
            asked,
            [
                ("n1", vec![Partition(0), Partition(2)]),
                ("n2", vec![Partition(1)])
            ]
        );
    }

    #[test]
    fn a_shard_without_a_serving_owner_says_why() {
        let shards = shards(&[None, Some((1, false))]);
        let plan = plan(&shards, shards.numbers());
        assert!(plan.asks.is_empty());
        let [free, restoring] = plan.orphans.as_slice() else {
            panic!("{plan:?}");
        };
        assert!(free.why.contains("no indexer has claimed") && free.node.is_empty());
        assert!(restoring.why.contains("does not serve it now") && restoring.node == "n1");
    }

    proptest! {
        #[test]
        fn every_wanted_shard_is_asked_once_or_named(
            owners in vec(proptest::option::of((0u8..3, any::<bool>())), 1..30)
        ) {
            let shards = shards(&owners);
            let plan = plan(&shards, shards.numbers());
            let mut seen: Vec<Partition> = plan.asks.iter().flat_map(|ask| ask.shards.clone())
                .chain(plan.orphans.iter().map(|orphan| orphan.shard))
                .collect();
            seen.sort();
            prop_assert_eq!(seen, shards.numbers().collect::<Vec<_>>());
            let mut nodes: Vec<_> = plan.asks.iter().map(|ask| &ask.node).collect();
            nodes.sort();
            nodes.dedup();
            prop_assert_eq!(nodes.len(), plan.asks.len());
        }
    }
}
