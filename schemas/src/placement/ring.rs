//! A consistent-hash ring with virtual nodes, labels and a bound on each node's load.
//!
//! Every node stands on the ring at many points, a shard at one. A shard is given to the first node
//! clockwise that may serve it and has room. So a node that comes or goes moves about its own share
//! and leaves the rest where it is. Room is bounded: among nodes that may serve the same shards none
//! is given more than a quarter above the mean, weights counted, however the points fall.
//!
//! # Source
//! Karger et al., *Consistent hashing and random trees*, 1997; Mirrokni, Thorup and Zadimoghaddam,
//! *Consistent hashing with bounded loads*, 2016, of which this is the variant that places all
//! shards anew, in the order of their hashes.

use std::collections::BTreeMap;

use super::{Labels, fits};
use crate::{log::Partition, name::CollectionName};

/// Points of a node of weight one. More makes shares more even and the ring slower to build.
const POINTS: u32 = 128;

/// A node that shards can be given to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name; two nodes never share one.
    pub name: String,
    /// What it has.
    pub labels: Labels,
    /// Its share beside that of others; 0 takes nothing.
    pub weight: u32,
}

/// A shard to be given to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its collection.
    pub collection: CollectionName,
    /// Its number.
    pub shard: Partition,
    /// What its node has to have.
    pub required: Labels,
}

/// Gives each shard to a node, by name; `None` where no node may serve it.
///
/// The order in which nodes and shards are given does not matter.
pub fn assign(
    members: &[Member],
    wanted: &[Wanted],
) -> BTreeMap<(CollectionName, Partition), Option<String>> {
    let mut points: Vec<(u64, &str, usize)> = Vec::new();
    for (at, member) in members.iter().enumerate() {
        let of_member = 0..POINTS.saturating_mul(member.weight);
        points.extend(of_member.map(|point| {
            let place = hash(&[b"node", member.name.as_bytes(), &point.to_le_bytes()]);
            (place, member.name.as_str(), at)
        }));
    }
    // Names part equal places, so that the order of members decides nothing.
    points.sort_unstable();

    // Shards that the same nodes may serve share one bound.
    let mut classes: BTreeMap<Vec<usize>, Vec<(u64, &Wanted)>> = BTreeMap::new();
    for one in wanted {
        let may = |(_, member): &(usize, &Member)| {
            member.weight > 0 && fits(&one.required, &member.labels)
        };
        let eligible = members.iter().enumerate().filter(may);
        let eligible: Vec<usize> = eligible.map(|(at, _)| at).collect();
        let shard = one.shard.0.to_le_bytes();
        let place = hash(&[b"shard", one.collection.as_str().as_bytes(), &shard]);
        classes.entry(eligible).or_default().push((place, one));
    }
    let mut given = BTreeMap::new();
    for (eligible, mut shards) in classes {
        shards.sort_unstable_by_key(|(place, one)| (*place, &one.collection, one.shard));
        let mut room = bounds(members, &eligible, shards.len());
        for (place, one) in shards {
            let owner = first_with_room(&points, place, &mut room);
            let name = owner.and_then(|at| members.get(at));
            let key = (one.collection.clone(), one.shard);
            given.insert(key, name.map(|member| member.name.clone()));
        }
    }
    given
}

/// How many shards of a class each member may be given; members outside of it are not there.
fn bounds(members: &[Member], eligible: &[usize], shards: usize) -> BTreeMap<usize, u64> {
    let weight = |at: &usize| {
        members
            .get(*at)
            .map_or(0, |member| u64::from(member.weight))
    };
    let all: u64 = eligible.iter().map(weight).sum();
    let shards = u64::try_from(shards).unwrap_or(u64::MAX);
    let bound = |at: &usize| (5 * shards * weight(at)).div_ceil(4 * all.max(1));
    eligible.iter().map(|at| (*at, bound(at))).collect()
}

fn first_with_room(
    points: &[(u64, &str, usize)],
    place: u64,
    room: &mut BTreeMap<usize, u64>,
) -> Option<usize> {
    let from = points.partition_point(|(point, ..)| *point < place);
    let (before, behind) = points.split_at(from);
    let mut clockwise = behind.iter().chain(before).map(|(_, _, at)| *at);
    let found = clockwise.find(|at| room.get(at).is_some_and(|left| *left > 0))?;
    if let Some(left) = room.get_mut(&found) {
        *left -= 1;
    }
    Some(found)
}

fn hash(parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        // Lengths first, so that no two lists of parts feed equal bytes.
        let len = u64::try_from(part.len()).unwrap_or(u64::MAX);
        hasher.update(&len.to_le_bytes());
        hasher.update(part);
    }
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
