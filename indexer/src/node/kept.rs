//! Shards that a node serves under its own newest claim although the group or the ring has not given them to it: after a
//! kill, and while they move.
//!
//! *After a kill.* A group gives the shards of a dead member to nobody until it has missed it for the session time-out:
//! 10 s in which nobody would answer. But a shard's owner is its newest claim, and a node that was killed has not taken its
//! claims back. So one that comes back under the same name and address takes those shards at once.
//!
//! *While they move.* A shard that the group takes away, or that the ring gives to another node, is answered for here until
//! that one has claimed it as ready, so that no search finds it unserved; a seat in a group is given up at once.
//!
//! Both ways the node serves under the old claim and makes no new one. It lets go a moment after somebody else's claim says
//! that they serve the shard, or when the collection is gone; what the group or the ring gives it is its like any other
//! shard.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{ClusterId, Partition};
use shoal_topic::TopicPartition;
use tracing::info;

use crate::node::{Node, NodeError, ShardKey};

/// How long a shard is served on after somebody else has claimed it: query nodes may have read less of the control topic
/// than this node has.
const LINGER: Duration = Duration::from_secs(1);

/// The kept shards, each with the time since it was seen that another node serves it.
pub(super) type Kept = BTreeMap<ShardKey, Option<Stopwatch>>;

impl Node {
    /// Takes the shards whose newest claims are this node's and say that it serves them.
    pub(super) fn take_kept(&self, cluster: &ClusterId) -> Result<Kept, NodeError> {
        let state = self.deps.control.snapshot();
        let mut kept = Kept::new();
        for collection in state.collections.values() {
            for number in 0..collection.partitions {
                let key = (collection.name.clone(), Partition(number));
                if self.is_claimed(&key) && self.take_as(&key, cluster, true)? {
                    kept.insert(key, None);
                }
            }
        }
        if !kept.is_empty() {
            info!(
                shards = kept.len(),
                "goes on with the shards it had; they were not given to anybody else yet"
            );
        }
        Ok(kept)
    }

    /// Keeps those shards of these partitions that this node serves, until somebody else does. Returns the others, which
    /// have to be let go.
    pub(super) fn hand_over(
        &self,
        kept: &mut Kept,
        partitions: &[TopicPartition],
    ) -> Vec<ShardKey> {
        let mut going = Vec::new();
        for key in self.keys_of(partitions) {
            let held = self.shard(&key);
            match held.filter(|held| held.answering().is_ok() && self.is_claimed(&key)) {
                Some(held) => {
                    held.is_kept.store(true, Ordering::Release);
                    info!(
                        shard = %format!("{}/{}", key.0, key.1),
                        "shard is handed over; it is served here until another node serves it"
                    );
                    kept.insert(key, None);
                }
                None => going.push(key),
            }
        }
        going
    }

    /// Lets go of kept shards that somebody else serves by now, and of those whose collection is gone.
    pub(super) fn drop_overtaken(&self, kept: &mut Kept) {
        let mut lost = Vec::new();
        for (key, since) in kept.iter_mut() {
            let is_defined = self.is_defined(key);
            if is_defined && !self.is_served_elsewhere(key) {
                *since = None;
                continue;
            }
            let watch = since.get_or_insert_with(Stopwatch::start);
            if watch.elapsed() >= LINGER || !is_defined {
                lost.push(key.clone());
            }
        }
        if !lost.is_empty() {
            kept.retain(|one, _| !lost.contains(one));
            self.let_go(&lost);
        }
    }

    /// The group has spoken: what it has given is this node's like any other shard.
    pub(super) fn settle_kept(&self, kept: &mut Kept, given: &[TopicPartition]) {
        let given = self.keys_of(given);
        for held in given.iter().filter_map(|key| self.shard(key)) {
            held.is_kept.store(false, Ordering::Release);
        }
        kept.retain(|one, _| !given.contains(one));
    }

    /// Whether the newest claim in this node's set is its own and says that it serves the shard.
    fn is_claimed(&self, key: &ShardKey) -> bool {
        let state = self.deps.control.snapshot();
        self.claim_in_set(&state, key).is_some_and(|claim| {
            claim.ready && claim.node == self.config.node && claim.address == *self.address
        })
    }
}
