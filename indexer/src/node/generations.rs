//! Several collections that read one topic: generations, while a re-indexing goes on.
//!
//! A node that has a partition has the shard of every collection that reads it. One of them writes dead
//! letters, the one that was defined first; when it is dropped, the next one does. A shard whose
//! collection is no longer defined goes with its folder: the topic has all of it.
//!
//! That a collection is not defined is known by a control topic that was read to its end, that defines
//! another one, and that is longer than when the collection was defined in it. One that was lost and made anew is
//! none of these for a while, and takes no folder away.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::Duration,
};

use shoal_runtime::chain;
use shoal_schemas::{
    ClusterId, Collection, CollectionName, Offset, Partition,
    control::{Claim, Key},
};
use shoal_topic::control::ControlState;
use tracing::{info, warn};

use crate::{
    node::{Node, ShardKey},
    shard::recover::incarnation_in,
};

/// How long the broker may take to hear that claims are taken back.
const FORGET_WITHIN: Duration = Duration::from_secs(2);

impl Node {
    /// Lets go of shards of collections that were dropped, and says who writes dead letters, if the
    /// control topic has moved since `seen`.
    pub(super) fn follow_generations(&self, seen: &mut Option<Offset>, cluster: &ClusterId) {
        let state = self.deps.control.snapshot();
        if state.caught_up_at.is_none() || *seen == Some(state.next_offset) {
            return;
        }
        if seen.replace(state.next_offset).is_none() {
            self.remove_leftovers(&state, cluster);
        }
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
        for (key, held) in dropped {
            if held.ended.load(Ordering::Acquire) && is_dropped(&state, &key.0, held.incarnation) {
                self.remove_folder(&key);
            }
        }
    }

    /// Removes folders of shards whose collections were dropped while this node was away, or let go of them before it
    /// had read so. To be called before any is taken that the map does not have.
    fn remove_leftovers(&self, state: &ControlState, cluster: &ClusterId) {
        for name in names_in(&self.config.data_dir.join("shards")) {
            let Ok(collection) = name.parse::<CollectionName>() else {
                continue;
            };
            // What was set aside has other names, and stays.
            let shards = names_in(&self.shards_folder(&collection));
            for number in shards.iter().filter_map(|name| name.parse().ok()) {
                let key = (collection.clone(), Partition(number));
                let found = incarnation_in(&self.folder_of(&key));
                let is_dropped = found.is_some_and(|(home, incarnation)| {
                    // The folder of a node that was pointed at another cluster is none of this one's.
                    home == *cluster && is_dropped(state, &collection, incarnation)
                });
                if is_dropped && self.shard(&key).is_none() {
                    self.remove_folder(&key);
                }
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
        let keys: Vec<Key> = owned.chain(replicas).collect();
        if keys.is_empty() {
            return;
        }
        match self.deps.control.remove_all_within(&keys, FORGET_WITHIN) {
            Some(Ok(())) => {}
            Some(Err(error)) => {
                warn!(error = %chain(&error), "claims of dropped collections stay");
            }
            None => warn!(
                claims = keys.len(),
                waited = ?FORGET_WITHIN,
                "claims of dropped collections were not taken back in time, they may stay"
            ),
        }
    }

    /// Where a shard keeps its files.
    pub(super) fn folder_of(&self, (collection, shard): &ShardKey) -> PathBuf {
        self.shards_folder(collection).join(shard.to_string())
    }

    fn shards_folder(&self, collection: &CollectionName) -> PathBuf {
        let shards = self.config.data_dir.join("shards");
        shards.join(collection.as_str())
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

/// Whether a collection that was defined at that offset is known to be dropped.
fn is_dropped(state: &ControlState, collection: &CollectionName, incarnation: Offset) -> bool {
    let is_gone = !state.collections.contains_key(collection);
    // A control topic without a single definition was lost rather than emptied, and one that ends before
    // that offset is another one.
    let knows = state.caught_up_at.is_some()
        && !state.collections.is_empty()
        && state.next_offset > incarnation;
    is_gone && knows
}

/// The names in a folder; none if there is no such folder.
fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().into_string());
    names.filter_map(Result::ok).collect()
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
#[path = "generations_tests.rs"]
mod tests;
