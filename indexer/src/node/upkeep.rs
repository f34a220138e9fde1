//! What keeps a node's shards going: durable logs, heartbeats of the broker, claims.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use metrics::gauge;
use shoal_runtime::{chain, clock::Stopwatch};
use shoal_schemas::{
    Offset,
    control::{Claim, Entry, Key},
};
use shoal_topic::{AdminError, TopicPartition};
use tracing::{info, warn};

use crate::{
    config::Ownership,
    dlq::wait,
    metrics as names,
    node::{Held, Node, NodeError, RETRY_AFTER, ShardKey},
    pressure::{self, Limits},
    shard::Shared,
};

/// How long the broker may take to tell its ends.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the broker is asked about a shard that waits to serve.
const PROBE_OPENING: Duration = Duration::from_millis(50);
/// How often the limits are looked at. A budget that is nearly reached lets ingest on by so many steps a second.
const LIMIT_EVERY: Duration = Duration::from_millis(50);
/// How long a limit has to keep a shard that has not caught up from taking anything before it answers all the same: a
/// memory budget that is reached now and then lets it go on in between.
const HELD_BACK_FOR: Duration = Duration::from_secs(5);
/// How often claims are looked at.
const CLAIM_EVERY: Duration = Duration::from_millis(100);
/// How long the broker may take to hear a claim.
const CLAIM_WITHIN: Duration = Duration::from_secs(5);
/// How long the broker may take to hear that shards are let go.
const DISCLAIM_WITHIN: Duration = Duration::from_secs(1);
/// A broker that was not heard for this long is told nothing at the end.
const SILENCE: Duration = Duration::from_secs(5);

impl Node {
    fn open_shards(&self) -> Vec<Arc<Held>> {
        let shards = self.lock();
        let open = shards.values().filter(|held| held.opened().is_some());
        open.cloned().collect()
    }

    pub(super) fn sync(&self) -> Result<(), NodeError> {
        let cancel = self.deps.tasks.cancel();
        while !cancel.is_cancelled() {
            for held in self.open_shards() {
                let Some(shared) = held.opened() else {
                    continue;
                };
                shared.sync().map_err(|source| NodeError::Sync {
                    shard: shared.spec.label(),
                    source,
                })?;
            }
            wait(cancel, self.config.engine.sync_interval);
        }
        Ok(())
    }

    /// Compares what the process uses with its limits, until it ends.
    pub(super) fn limit(&self) {
        let cancel = self.deps.tasks.cancel();
        let limits = Limits {
            memory: self.config.memory_budget,
            free_disk: self.config.min_free_disk,
            folder: self.config.data_dir.clone(),
        };
        let mut was_told = false;
        while !cancel.is_cancelled() {
            self.pressure.set_shards(self.lock().len());
            match pressure::measure(&limits.folder) {
                Ok(used) => {
                    self.pressure.update(&limits, used);
                    // A write that found no room counts where no least room is set, too.
                    let stopped = self.pressure.reached().is_some()
                        || self.open_shards().iter().any(|held| {
                            held.opened()
                                .is_some_and(|shared| shared.stopped_by().is_some())
                        });
                    gauge!(names::INGEST_STOPPED).set(if stopped { 1.0 } else { 0.0 });
                }
                Err(error) => {
                    if !std::mem::replace(&mut was_told, true) {
                        warn!(%error, "the system does not tell what this process uses, limits are not kept");
                    }
                }
            }
            self.have_held_back_answer(HELD_BACK_FOR);
            wait(cancel, LIMIT_EVERY);
        }
    }

    /// Has those shards answer that a limit has kept from taking anything for so long before they had caught up.
    pub(super) fn have_held_back_answer(&self, lasts: Duration) {
        for held in self.open_shards() {
            let Some(shared) = held.opened().filter(|shared| !shared.answers_early()) else {
                continue;
            };
            let mut since = held
                .held_back_since
                .lock()
                .expect("nothing panics under this lock");
            if !shared.is_held_back() {
                *since = None;
                continue;
            }
            let next = shared.next_offset();
            *since = since.take().filter(|(_, before)| *before == next);
            let (watch, _) = since.get_or_insert_with(|| (Stopwatch::start(), next));
            if watch.elapsed() >= lasts {
                shared.answer_early();
                info!(
                    shard = %shared.spec.label(),
                    behind = ?shared.behind(),
                    "a limit keeps the shard from catching up: it answers with what it had"
                );
            }
        }
    }

    pub(super) fn probe(&self) {
        let cancel = self.deps.tasks.cancel();
        let interval = self.config.probe_interval;
        let mut since_all: Option<Stopwatch> = None;
        while !cancel.is_cancelled() {
            let is_due = (since_all.as_ref()).is_none_or(|since| since.elapsed() >= interval);
            if is_due {
                since_all = Some(Stopwatch::start());
            }
            for held in self.open_shards() {
                // One that opens, whenever that is, serves as soon as it has caught up.
                let waits_to_serve = held.answering().is_err();
                if let Some(shared) = held.opened()
                    && (is_due || waits_to_serve)
                {
                    self.probe_shard(shared);
                }
            }
            wait(cancel, PROBE_OPENING.min(interval));
        }
    }

    /// Asks which topics are there again and again. Not beside the heartbeats: another broker answers, or does not.
    pub(super) fn compare_topics(&self) {
        let cancel = self.deps.tasks.cancel();
        while !cancel.is_cancelled() {
            self.compare_topics_once();
            wait(cancel, self.config.probe_interval);
        }
    }

    /// Asks which topics are there, and has each shard compare them with those it reads.
    fn compare_topics_once(&self) {
        let shards = self.open_shards();
        let shards: Vec<_> = shards.iter().filter_map(|held| held.opened()).collect();
        let names: BTreeSet<&str> = shards
            .iter()
            .flat_map(|shared| &shared.spec.sources)
            .map(|one| &*one.source.topic)
            .collect();
        let names: Vec<_> = names.into_iter().collect();
        match self.deps.cluster.admin.topic_ids(&names, PROBE_TIMEOUT) {
            Ok(ids) => {
                let found: BTreeMap<_, _> = names.into_iter().zip(ids).collect();
                for shared in shards {
                    shared.compare_topics(|name| found.get(name).cloned().flatten());
                }
            }
            // Heartbeats tell of that.
            Err(AdminError::Unreachable { .. }) => {}
            Err(error) => warn!(error = %chain(&error), "cannot ask for the topics' ids"),
        }
    }

    fn probe_shard(&self, shared: &Shared) {
        for (index, spec) in shared.sources.iter().enumerate() {
            let partition = TopicPartition {
                topic: spec.source.topic.clone(),
                partition: spec.source.partition,
            };
            let asked_at = shared.lag.now();
            let answer = self
                .deps
                .cluster
                .admin
                .watermarks(&partition, PROBE_TIMEOUT);
            match answer {
                Ok(ends) => shared.lag.heard(index, asked_at, ends.high),
                // Silence is what makes lag grow; it says the rest.
                Err(AdminError::Unreachable { .. }) => {}
                Err(error) => {
                    warn!(%partition, error = %chain(&error), "cannot ask for the partition's end");
                }
            }
        }
    }

    pub(super) fn claim(&self) {
        let cancel = self.deps.tasks.cancel();
        let mut claimed: BTreeMap<ShardKey, Claimed> = BTreeMap::new();
        while !cancel.is_cancelled() {
            let shards: Vec<_> = {
                let shards = self.lock();
                shards
                    .iter()
                    .map(|(key, held)| (key.clone(), held.clone()))
                    .collect()
            };
            claimed.retain(|key, _| shards.iter().any(|(held, _)| held == key));
            for (key, held) in shards {
                // What is let go was said by who lets it go.
                let is_kept = held.is_kept.load(Ordering::Acquire);
                let is_going = held.cancel.is_cancelled() || !self.is_defined(&key);
                if held.opened().is_none() || is_going || is_kept {
                    continue;
                }
                let serves = held.serving().is_ok();
                if !self.may_claim(&key, &held, serves) {
                    continue;
                }
                let ready = serves || held.answering().is_ok();
                let is_good = |made: &Claimed| {
                    made.ready == ready
                        // Who waits to have a patch resolved is told by a new claim.
                        && made.serves == serves
                        && made.held.ptr_eq(&Arc::downgrade(&held))
                        && !self.is_overtaken(&key, made.epoch)
                };
                if claimed.get(&key).is_some_and(is_good) {
                    continue;
                }
                let (name, entry) = self.claim_of(&key, &held, ready);
                match self.deps.control.put_within(&name, &entry, CLAIM_WITHIN) {
                    Some(Ok(epoch)) => {
                        info!(
                            shard = %format!("{}/{}", key.0, key.1),
                            epoch = epoch.0,
                            ready,
                            "shard claimed"
                        );
                        if ready && held.cancel.is_cancelled() {
                            // It may stand behind the word that the shard is let go.
                            held.is_disclaimed.store(false, Ordering::Release);
                            self.disclaim(&[(held.clone(), key.clone())]);
                        }
                        let held = Arc::downgrade(&held);
                        let made = Claimed {
                            held,
                            ready,
                            serves,
                            epoch,
                        };
                        claimed.insert(key, made);
                    }
                    Some(Err(error)) => {
                        warn!(error = %chain(&error), "claim not written, it is tried again");
                        wait(cancel, RETRY_AFTER);
                    }
                    None => {
                        warn!(
                            shard = %format!("{}/{}", key.0, key.1),
                            waited = ?CLAIM_WITHIN,
                            "claim not written in time, it is tried again"
                        );
                        wait(cancel, RETRY_AFTER);
                    }
                }
            }
            wait(cancel, CLAIM_EVERY);
        }
    }

    fn claim_of(&self, key: &ShardKey, held: &Held, ready: bool) -> (Key, Entry) {
        let early = ready && held.serving().is_err();
        let shared = held.opened();
        let applied = shared.and_then(|shared| shared.progress().borrow().next.first().copied());
        let claim = Claim {
            node: self.config.node.clone(),
            address: self.address.to_string(),
            ready,
            next_offset: applied,
            early,
        };
        let (name, shard) = key.clone();
        let key = match &self.config.replica_set {
            None => Key::Shard(name, shard),
            Some(set) => Key::Replica(name, shard, set.clone()),
        };
        (key, Entry::Shard(claim))
    }

    /// Says of shards that are let go that they are not to be asked here any more.
    ///
    /// Once a shard, and only where it was claimed and still counts as ours. A broker that is
    /// away is not waited for: then nobody else can take the shard either.
    pub(super) fn disclaim(&self, going: &[(Arc<Held>, ShardKey)]) {
        let state = self.deps.control.snapshot();
        let now = self.deps.clock.monotonic();
        let heard = state.caught_up_at;
        if heard.is_none_or(|heard| now.saturating_sub(heard) > SILENCE) {
            return;
        }
        let claims: Vec<_> = going
            .iter()
            .filter(|(held, key)| {
                let latest = self.claim_in_set(&state, key);
                let is_ours = latest.is_none_or(|claim| claim.node == self.config.node);
                let is_new = !held.is_disclaimed.swap(true, Ordering::AcqRel);
                // A claim of a collection that was dropped would outlive it.
                let is_defined = state.collections.contains_key(&key.0);
                held.opened().is_some() && is_ours && is_new && is_defined
            })
            .map(|(held, key)| self.claim_of(key, held, false))
            .collect();
        if claims.is_empty() {
            return;
        }
        match self.deps.control.put_all_blocking(&claims, DISCLAIM_WITHIN) {
            Some(Ok(())) => info!(shards = claims.len(), "said that shards are let go"),
            Some(Err(error)) => {
                warn!(error = %chain(&error), "not said that shards are let go");
            }
            None => warn!("not said in time that shards are let go"),
        }
    }

    /// Whether the latest claim in this node's set is another node's that serves the shard.
    pub(super) fn is_served_elsewhere(&self, key: &ShardKey) -> bool {
        let state = self.deps.control.snapshot();
        let latest = self.claim_in_set(&state, key);
        latest.is_some_and(|claim| claim.ready && claim.node != self.config.node)
    }

    /// Whether another node's claim came after ours although the group or the ring says the shard is ours: one
    /// that was written long ago and arrived late.
    fn is_overtaken(&self, key: &ShardKey, epoch: Offset) -> bool {
        if let Ownership::Static { .. } = self.config.ownership {
            return false;
        }
        let state = self.deps.control.snapshot();
        let latest = self.claim_in_set(&state, key);
        let is_ours = latest.is_some_and(|claim| claim.node == self.config.node);
        state.next_offset > epoch && !is_ours
    }
}

/// A claim as it was made.
struct Claimed {
    /// Only to tell it from its successor: one that was let go has to free its folder, or a shard
    /// that comes back at once could never open it.
    held: Weak<Held>,
    ready: bool,
    /// It had caught up.
    serves: bool,
    epoch: Offset,
}

#[cfg(test)]
#[path = "upkeep_tests.rs"]
mod tests;
