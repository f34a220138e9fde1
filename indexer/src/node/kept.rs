//! Shards a node goes on with after it was killed, before the group has said a word.
//!
//! A group gives the shards of a dead member to nobody until it has missed it for the session time-out: 10 s in which
//! nobody would answer. But a shard's owner is its newest claim, and a node that was killed has not taken its claims
//! back. So one that comes back under the same name and address takes those shards at once, serves them under the old
//! claims, and makes no new ones. Once the group has spoken it keeps what it was given and lets go of the rest; as it does
//! as soon as somebody else has claimed a shard.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use shoal_schemas::{ClusterId, Partition};
use shoal_topic::TopicPartition;
use tracing::info;

use crate::node::{
    Node, NodeError, ShardKey,
    owner::{key_of, partition_of},
};

impl Node {
    /// Takes the shards whose newest claims are this node's and say that it serves them.
    pub(super) fn take_kept(
        &self,
        cluster: &ClusterId,
    ) -> Result<BTreeSet<TopicPartition>, NodeError> {
        let state = self.deps.control.snapshot();
        let mut kept = BTreeSet::new();
        for collection in state.collections.values() {
            for number in 0..collection.partitions {
                let partition = partition_of(&(collection.name.clone(), Partition(number)));
                if self.is_kept(&partition) && self.take_as(&partition, cluster, true)? {
                    kept.insert(partition);
                }
            }
        }
        if !kept.is_empty() {
            info!(
                shards = kept.len(),
                "goes on with the shards it had; the group has not given them to anybody else yet"
            );
        }
        Ok(kept)
    }

    /// Lets go of kept shards that somebody else has claimed.
    pub(super) fn drop_overtaken(&self, kept: &mut BTreeSet<TopicPartition>) {
        let lost: Vec<_> = (kept.iter().filter(|one| !self.is_kept(one)))
            .cloned()
            .collect();
        if !lost.is_empty() {
            kept.retain(|one| !lost.contains(one));
            self.let_go(&lost);
        }
    }

    /// The group has spoken: what it has given is this node's like any other shard, the rest is not.
    pub(super) fn settle_kept(
        &self,
        kept: &mut BTreeSet<TopicPartition>,
        given: &[TopicPartition],
    ) {
        for held in given.iter().filter_map(|one| self.shard(&key_of(one)?)) {
            held.is_kept.store(false, Ordering::Release);
        }
        let rest = std::mem::take(kept).into_iter();
        let rest: Vec<_> = rest.filter(|one| !given.contains(one)).collect();
        self.let_go(&rest);
    }

    fn is_kept(&self, partition: &TopicPartition) -> bool {
        let Some(key): Option<ShardKey> = key_of(partition) else {
            return false;
        };
        let state = self.deps.control.snapshot();
        self.claim_in_set(&state, &key).is_some_and(|claim| {
            claim.ready && claim.node == self.config.node && claim.address == *self.address
        })
    }
}
