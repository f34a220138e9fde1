//! What the control topic says, as a map.

use std::{collections::BTreeMap, time::Duration};

use shoal_schemas::{
    Collection, CollectionName, Offset, Partition, Record, ReplicaSet,
    control::{Claim, Entry, Key},
};
use tracing::warn;

use crate::metrics::CONTROL_SKIPPED;

/// Everything that holds, up to one offset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ControlState {
    /// Definitions by name.
    pub collections: BTreeMap<CollectionName, Collection>,
    /// Where each definition stands: its incarnation. One that was dropped and made again has another.
    pub defined_at: BTreeMap<CollectionName, Offset>,
    /// The latest claim of each shard, with its offset, which is its epoch.
    pub shards: BTreeMap<(CollectionName, Partition), (Claim, Offset)>,
    /// The latest claim of each shard by each replica set, with its offset.
    pub replicas: BTreeMap<(CollectionName, Partition, ReplicaSet), (Claim, Offset)>,
    /// The first offset not read.
    pub next_offset: Offset,
    /// When it was last known that nothing newer exists, by the clock's monotonic time.
    ///
    /// `None` until the end was reached once. Stands still while no broker answers.
    pub caught_up_at: Option<Duration>,
    /// Whether the follower has ended: nothing changes any more.
    pub stopped: bool,
}

impl ControlState {
    /// Whose shard it is, with the epoch.
    pub fn owner(&self, collection: &CollectionName, shard: Partition) -> Option<&(Claim, Offset)> {
        self.shards.get(&(collection.clone(), shard))
    }

    /// Who of a replica set serves a shard, with the claim's offset; the owner for no set.
    pub fn claim(
        &self,
        collection: &CollectionName,
        shard: Partition,
        set: Option<&ReplicaSet>,
    ) -> Option<&(Claim, Offset)> {
        match set {
            None => self.owner(collection, shard),
            Some(set) => (self.replicas).get(&(collection.clone(), shard, set.clone())),
        }
    }

    /// Applies one record. One that does not read is skipped and named.
    pub(super) fn apply(&mut self, offset: Offset, record: &Record) {
        self.next_offset = offset.next();
        let text = record
            .key
            .as_deref()
            .map(String::from_utf8_lossy)
            .unwrap_or_default();
        let Some(key) = Key::decode(&text) else {
            skipped(&text, offset, &"its key is not known here");
            return;
        };
        let Some(value) = record.value.as_deref() else {
            match key {
                Key::Collection(name) => {
                    self.collections.remove(&name);
                    self.defined_at.remove(&name);
                }
                Key::Shard(name, shard) => {
                    self.shards.remove(&(name, shard));
                }
                Key::Replica(name, shard, set) => {
                    self.replicas.remove(&(name, shard, set));
                }
            }
            return;
        };
        match (Entry::decode(&key, value), key) {
            (Ok(Entry::Collection(found)), Key::Collection(name)) if found.name == name => {
                self.defined_at.insert(name.clone(), offset);
                self.collections.insert(name, *found);
            }
            (Ok(Entry::Shard(claim)), Key::Shard(name, shard)) => {
                self.shards.insert((name, shard), (claim, offset));
            }
            (Ok(Entry::Shard(claim)), Key::Replica(name, shard, set)) => {
                self.replicas.insert((name, shard, set), (claim, offset));
            }
            (Ok(_), _) => skipped(&text, offset, &"its value is of another key"),
            (Err(error), _) => skipped(&text, offset, &shoal_runtime::chain(&error)),
        }
    }
}

fn skipped(key: &str, offset: Offset, why: &dyn std::fmt::Display) {
    metrics::counter!(CONTROL_SKIPPED).increment(1);
    warn!(key, %offset, %why, "control record is skipped");
}
