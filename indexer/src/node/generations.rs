//! Several collections that read one topic: generations, while a re-indexing goes on.
//!
//! A node that has a partition has the shard of every collection that reads it. One of them writes dead
//! letters, the one that was defined first; when it is dropped, the next one does. A shard whose
//! collection is no longer defined goes with its folder: the topic has all of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::PathBuf,
    sync::atomic::Ordering,
};

use shoal_runtime::chain;
use shoal_schemas::{
    Collection, CollectionName, Offset,
    control::{Claim, Key},
};
use shoal_topic::control::ControlState;
use tracing::{info, warn};

use crate::node::{Node, ShardKey};

impl Node {
    /// Lets go of shards of collections that were dropped, and says who writes dead letters, if the
    /// control topic has moved since `seen`.
    pub(super) fn follow_generations(&self, seen: &mut Option<Offset>) {
        let state = self.deps.control.snapshot();
        if state.caught_up_at.is_none() || *seen == Some(state.next_offset) {
            return;
        }
        *seen = Some(state.next_offset);
        self.forget_claims(&state);
        let followers = followers(&state);
        let mut dropped = Vec::new();
        for (key, held) in self.lock().iter() {
            if state.collections.contains_key(&key.0) {
                let follows = followers.contains(&key.0);
                held.is_follower.store(follows, Ordering::Relaxed);
            } else {
                dropped.push((key.clone(), held.clone()));
            }
        }
        let keys: Vec<ShardKey> = dropped.iter().map(|(key, _)| key.clone()).collect();
        self.let_go(&keys);
        // A control topic without a single definition was lost rather than emptied.
        if state.collections.is_empty() {
            return;
        }
        for (key, held) in dropped {
            if held.ended.load(Ordering::Acquire) {
                self.remove_folder(&key);
            }
        }
    }

    /// Whether a shard's collection is there.
    pub(super) fn is_defined(&self, key: &ShardKey) -> bool {
        let state = self.deps.control.snapshot();
        state.collections.contains_key(&key.0)
    }

    /// Takes this node's claims back that were written while their collection was being dropped.
    fn forget_claims(&self, state: &ControlState) {
        let is_ours = |claim: &Claim| claim.node == self.config.node;
        let is_gone = |name: &CollectionName| !state.collections.contains_key(name);
        let owned = (state.shards.iter())
            .filter(|((name, _), (claim, _))| is_gone(name) && is_ours(claim))
            .map(|((name, shard), _)| Key::Shard(name.clone(), *shard));
        let replicas = (state.replicas.iter())
            .filter(|((name, ..), (claim, _))| is_gone(name) && is_ours(claim))
            .map(|((name, shard, set), _)| Key::Replica(name.clone(), *shard, set.clone()));
        for key in owned.chain(replicas) {
            if let Err(error) = self.deps.control.remove_blocking(&key) {
                warn!(error = %chain(&error), "claim of a dropped collection stays");
            }
        }
    }

    /// Where a shard keeps its files.
    pub(super) fn folder_of(&self, (collection, shard): &ShardKey) -> PathBuf {
        let shards = self.config.data_dir.join("shards");
        shards.join(collection.as_str()).join(shard.to_string())
    }

    fn remove_folder(&self, key: &ShardKey) {
        let folder = self.folder_of(key);
        match fs::remove_dir_all(&folder) {
            Ok(()) => info!(folder = %folder.display(), "folder of a dropped shard removed"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                warn!(folder = %folder.display(), %error, "folder of a dropped shard stays");
                return;
            }
        }
        // The collection's own goes with its last shard; until then it is not empty.
        if let Some(parent) = folder.parent() {
            drop(fs::remove_dir(parent));
        }
    }
}

/// The collections whose topic another one was the first to read.
pub(super) fn followers(state: &ControlState) -> BTreeSet<CollectionName> {
    let mut firsts: BTreeMap<&CollectionName, &Collection> = BTreeMap::new();
    let defined_at = |one: &Collection| state.defined_at.get(&one.name);
    for one in state.collections.values() {
        let first = firsts.entry(one.home()).or_insert(one);
        if defined_at(one) < defined_at(first) {
            *first = one;
        }
    }
    let is_first = |one: &&Collection| firsts.get(one.home()).is_some_and(|first| first == one);
    let followers = state.collections.values().filter(|one| !is_first(one));
    followers.map(|one| one.name.clone()).collect()
}

/// The collections that read each topic.
pub(super) fn by_topic(state: &ControlState) -> BTreeMap<String, Vec<CollectionName>> {
    let mut all: BTreeMap<String, Vec<CollectionName>> = BTreeMap::new();
    for one in state.collections.values() {
        all.entry(one.topic()).or_default().push(one.name.clone());
    }
    all
}

/// Whether a collection is being built by a re-indexing, so that no name stands for it yet.
pub(super) fn is_built(state: &ControlState, collection: &CollectionName) -> bool {
    let mut reindexes = state.reindexes.iter();
    reindexes.any(|(name, one)| {
        one.made && one.to == *collection && state.aliases.get(name) != Some(collection)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use shoal_schemas::{Collection, Metric, Offset};
    use shoal_topic::control::ControlState;

    use super::{by_topic, followers};

    #[test]
    fn the_collection_defined_first_follows_none_and_its_end_makes_the_next_the_first() {
        let named = |name: &str, reads: Option<&str>| Collection {
            reads: reads.map(|other| other.parse().unwrap()),
            ..Collection::new(name.parse().unwrap(), 3.try_into().unwrap(), Metric::L2, 1)
        };
        // By name the newer one would come first.
        let (older, newer) = (named("docs", None), named("a-docs", Some("docs")));
        let other = named("other", None);
        let mut state = ControlState::default();
        for (at, one) in [(1, &older), (2, &newer), (0, &other)] {
            state.defined_at.insert(one.name.clone(), Offset(at));
            state.collections.insert(one.name.clone(), one.clone());
        }
        assert_eq!(followers(&state), [newer.name.clone()].into());
        let topics = by_topic(&state);
        assert_eq!(
            topics["embeddings.docs"],
            [newer.name.clone(), older.name.clone()]
        );
        assert_eq!(topics["embeddings.other"], [other.name]);
        state.collections.remove(&older.name);
        assert!(followers(&state).is_empty());
    }
}
