//! What the control topic says, as a map.

use std::{collections::BTreeMap, time::Duration};

use shoal_schemas::{
    Collection, CollectionName, Offset, Partition, Record, ReplicaSet,
    control::{Alias, Announcement, Claim, Entry, Feed, Key, Reindex},
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
    /// Nodes that announce themselves, by name, with when each was last heard of, by the clock's
    /// monotonic time. It was not heard of again since; whether it lives is for the reader to say.
    pub nodes: BTreeMap<String, (Announcement, Duration)>,
    /// Behind the last record that was more than a node's sign of life.
    pub changed_at: Offset,
    /// What each alias stands for.
    pub aliases: BTreeMap<CollectionName, CollectionName>,
    /// Collections whose records are copied from another one's topic.
    pub feeds: BTreeMap<CollectionName, Feed>,
    /// Re-indexings under way, by the name they are for.
    pub reindexes: BTreeMap<CollectionName, Reindex>,
    /// Where the record of each re-indexing stands, which is the epoch of the run that wrote it; and the
    /// record that it came in place of, as far as this reader has read that.
    pub reindexed_at: BTreeMap<CollectionName, (Offset, Option<Reindex>)>,
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

    /// The collection that a name stands for: an alias goes before a collection of its name.
    pub fn resolve(&self, name: &CollectionName) -> Option<&Collection> {
        let aliased = (self.aliases.get(name)).and_then(|target| self.collections.get(target));
        aliased.or_else(|| self.collections.get(name))
    }

    /// The collection into whose topic a write for this name goes: while what it stands for is fed,
    /// and writes have not moved, the one it is fed from.
    pub fn written(&self, name: &CollectionName) -> Option<&Collection> {
        let found = self.resolve(name)?;
        let feed = self.feeds.get(&found.name).filter(|feed| !feed.moved);
        let fed_from = feed.and_then(|feed| self.collections.get(&feed.from));
        Some(fed_from.unwrap_or(found))
    }

    /// Whether what a name stands for is fed, or another collection from it, and that is about to end:
    /// until it has, it is not sure in which topic the newest record of a point is.
    pub fn is_moving(&self, name: &CollectionName) -> bool {
        let Some(found) = self.resolve(name) else {
            return false;
        };
        let mut feeds = self.feeds.iter();
        feeds.any(|(fed, feed)| feed.closing && (*fed == found.name || feed.from == found.name))
    }

    /// The collections that read the topic of this one's records, in the order of their definitions.
    pub fn readers(&self, home: &CollectionName) -> Vec<&Collection> {
        let all = self.collections.values();
        let mut readers: Vec<_> = all.filter(|one| one.home() == home).collect();
        readers.sort_by_key(|one| self.defined_at.get(&one.name));
        readers
    }

    /// Applies one record, read at `now`. One that does not read is skipped and named.
    pub(super) fn apply(&mut self, offset: Offset, record: &Record, now: Duration) {
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
            self.changed_at = self.next_offset;
            match key {
                Key::Node(name) => {
                    self.nodes.remove(&name);
                }
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
                Key::Alias(name) => {
                    self.aliases.remove(&name);
                }
                Key::Feed(name) => {
                    self.feeds.remove(&name);
                }
                Key::Reindex(name) => {
                    self.reindexes.remove(&name);
                    self.reindexed_at.remove(&name);
                }
            }
            return;
        };
        let decoded = Entry::decode(&key, value);
        if let Ok(Entry::Node(announced)) = decoded {
            self.hear(key, announced, now);
            return;
        }
        self.changed_at = self.next_offset;
        if let Ok(Entry::Shard(claim)) = &decoded
            && let Some((_, heard_at)) = self.nodes.get_mut(&claim.node)
        {
            // A claim is as good a sign of life.
            *heard_at = now;
        }
        match (decoded, key) {
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
            (Ok(Entry::Alias(Alias { collection })), Key::Alias(name)) => {
                self.aliases.insert(name, collection);
            }
            (Ok(Entry::Feed(feed)), Key::Feed(name)) => {
                self.feeds.insert(name, feed);
            }
            (Ok(Entry::Reindex(reindex)), Key::Reindex(name)) => {
                let before = self.reindexes.insert(name.clone(), reindex);
                self.reindexed_at.insert(name, (offset, before));
            }
            (Ok(_), _) => skipped(&text, offset, &"its value is of another key"),
            (Err(error), _) => skipped(&text, offset, &shoal_runtime::chain(&error)),
        }
    }

    fn hear(&mut self, key: Key, announced: Announcement, now: Duration) {
        let Key::Node(name) = key else { return };
        let known = self.nodes.get(&name).map(|(known, _)| known);
        let is_the_same = known.is_some_and(|known| {
            let beat = announced.beat;
            Announcement {
                beat,
                ..known.clone()
            } == announced
        });
        if !is_the_same {
            self.changed_at = self.next_offset;
        }
        self.nodes.insert(name, (announced, now));
    }
}

fn skipped(key: &str, offset: Offset, why: &dyn std::fmt::Display) {
    metrics::counter!(CONTROL_SKIPPED).increment(1);
    warn!(key, %offset, %why, "control record is skipped");
}
