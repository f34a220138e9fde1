//! Which node is asked for which shards: pure. One call a node, however many shards it has.
//!
//! Where a shard has several replicas, the nodes are picked one after the other: of those that
//! serve most of what is still wanted one by chance, and any other by chance beside it; the other
//! one is taken only if it is clearly less loaded for each shard it would answer. So few calls are
//! made while load is even, load is spread where it is not, and many query nodes that see the same
//! do not all run to the same place.

use std::collections::BTreeMap;

use shoal_schemas::{Partition, placement};

use crate::shard_map::{Replica, Shards};

/// A node has to have less than this part of another's load to be taken in its place: what is
/// less than that is noise.
const CLEARLY_LESS: f64 = 0.75;

/// What one node is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAsk {
    /// The node's name.
    pub node: String,
    /// Its gRPC address.
    pub address: String,
    /// The shards, in the order they were wanted.
    pub shards: Vec<Partition>,
    /// What speaks against asking it for any of them.
    pub rank: Rank,
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
    /// Shards that nobody can be asked for.
    pub orphans: Vec<Orphan>,
}

/// Whether a node should be asked, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// It failed a while ago and is to be tried once now.
    Due,
    /// Nothing speaks against it.
    Fit,
    /// It is known to be further behind than the caller accepts, or has not caught up since it was opened.
    Behind,
    /// It failed a moment ago: only where there is no other.
    Out,
}

/// What is known of a node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// Whether it should be asked.
    pub rank: Rank,
    /// How long one more call would take: larger is worse.
    pub load: f64,
}

/// What a plan goes by.
pub struct Choice<'a> {
    /// Whether a replica may be asked for a shard at all.
    pub may_ask: &'a dyn Fn(Partition, &Replica) -> bool,
    /// What is known of the node at an address.
    pub standing: &'a dyn Fn(&str) -> Standing,
    /// A number below the one given, by chance.
    pub chance: &'a dyn Fn(usize) -> usize,
}

/// A node that could be asked.
struct Candidate<'a> {
    node: &'a str,
    address: &'a str,
    standing: Standing,
    /// How many shards it could answer of those still wanted.
    covers: u32,
}

/// A shard for which nobody was picked yet.
struct Open {
    shard: Partition,
    /// Who could be: places in the list of candidates.
    by: Vec<usize>,
    /// What they are, each as good as the others.
    rank: Rank,
}

impl Candidate<'_> {
    fn load_a_shard(&self) -> f64 {
        self.standing.load / f64::from(self.covers.max(1))
    }
}

/// Groups the wanted shards by the nodes that are to be asked for them.
pub fn plan(
    shards: &Shards,
    wanted: impl IntoIterator<Item = Partition>,
    choice: &Choice<'_>,
) -> Plan {
    let mut plan = Plan::default();
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    let mut places: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut open: Vec<Open> = Vec::new();
    for shard in wanted {
        let replicas = shards.replicas(shard);
        let may_ask = |replica: &&Replica| replica.claim.ready && (choice.may_ask)(shard, replica);
        let mut found: Vec<(usize, bool)> = Vec::new();
        for replica in replicas.iter().filter(may_ask) {
            let (node, address) = (replica.claim.node.as_str(), replica.claim.address.as_str());
            let at = *places.entry((node, address)).or_insert_with(|| {
                candidates.push(Candidate {
                    node,
                    address,
                    standing: (choice.standing)(address),
                    covers: 0,
                });
                candidates.len() - 1
            });
            found.push((at, replica.claim.early));
        }
        let rank = |(at, is_early): &(usize, bool)| {
            let rank = candidates.get(*at).map(|one| one.standing.rank);
            // What has not caught up is known to be behind, whatever the caller accepts.
            rank.map(|rank| {
                if *is_early {
                    rank.max(Rank::Behind)
                } else {
                    rank
                }
            })
        };
        let best = found.iter().filter_map(rank).min();
        found.retain(|one| rank(one) == best);
        let by = found.into_iter().map(|(at, _)| at).collect();
        match best {
            None => plan.orphans.push(orphan(shards, shard)),
            Some(rank) => open.push(Open { shard, by, rank }),
        }
    }
    while let Some(taken) = pick(&mut candidates, &open, choice.chance) {
        let Some(candidate) = candidates.get(taken) else {
            break;
        };
        let mut ask = NodeAsk {
            node: candidate.node.to_owned(),
            address: candidate.address.to_owned(),
            shards: Vec::new(),
            rank: Rank::Due,
        };
        open.retain(|Open { shard, by, rank }| {
            let is_taken = by.contains(&taken);
            if is_taken {
                ask.shards.push(*shard);
                ask.rank = ask.rank.max(*rank);
            }
            !is_taken
        });
        plan.asks.push(ask);
    }
    plan
}

/// The next node to ask; `None` once every shard has one.
fn pick(
    candidates: &mut [Candidate<'_>],
    open: &[Open],
    chance: &dyn Fn(usize) -> usize,
) -> Option<usize> {
    for candidate in candidates.iter_mut() {
        candidate.covers = 0;
    }
    for at in open.iter().flat_map(|one| &one.by) {
        if let Some(candidate) = candidates.get_mut(*at) {
            candidate.covers += 1;
        }
    }
    let most = candidates.iter().map(|one| one.covers).max()?;
    if most == 0 {
        return None;
    }
    let by_chance = |of: Vec<usize>| match of.len() {
        0 | 1 => of.first().copied(),
        several => of.get(chance(several)).copied(),
    };
    let where_it = |holds: &dyn Fn(usize, &Candidate<'_>) -> bool| {
        let found = candidates.iter().enumerate();
        let found = found.filter(|(at, one)| holds(*at, one));
        by_chance(found.map(|(at, _)| at).collect())
    };
    let first = where_it(&|_, one| one.covers == most)?;
    let second = where_it(&|at, one| at != first && one.covers > 0);
    let load = |at: usize| candidates.get(at).map(Candidate::load_a_shard);
    match second {
        Some(second) if load(second)? < load(first)? * CLEARLY_LESS => Some(second),
        _ => Some(first),
    }
}

fn orphan(shards: &Shards, shard: Partition) -> Orphan {
    match shards.replicas(shard).first() {
        Some(Replica { claim, .. }) => Orphan {
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
            why: nobody(shards, shard),
        },
    }
}

/// Why no node has claimed a shard, and what would help.
pub(crate) fn nobody(shards: &Shards, shard: Partition) -> String {
    let collection = &shards.collection.name;
    let required = placement::required(&shards.collection, shard);
    if required.is_empty() {
        return format!("no indexer has claimed this shard of `{collection}`; is one running?");
    }
    let needs = placement::told(&required);
    let nodes = shards.nodes();
    if nodes
        .values()
        .any(|labels| placement::fits(&required, labels))
        || nodes.is_empty()
    {
        return format!(
            "no indexer has claimed this shard of `{collection}`, which needs {needs}; is one with \
             these labels running?"
        );
    }
    format!(
        "no indexer may serve this shard of `{collection}`: it needs {needs}, which none of the {} \
         that announced themselves has; set indexer.labels of one",
        nodes.len()
    )
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
