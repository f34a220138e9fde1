//! Ownership by a ring: nodes announce themselves, and each takes what the ring of those that live
//! gives it.
//!
//! No vote is taken. Every node reads the same control topic and computes the same ring
//! (`shoal_schemas::placement`); where two differ for a moment, the newest claim owns, as ever. A node
//! lives while it was heard of within its lease, by this node's own clock; time in which this node
//! heard nobody, because the broker was away or it stood still itself, counts for nobody's death.
//!
//! A shard that moves is served by both: the new node opens it and claims it once it has caught up,
//! and the old one lets go when it reads that claim. Only if the old one is dead, or has said that it
//! lets go, is the shard claimed at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shoal_runtime::{chain, clock::Stopwatch};
use shoal_schemas::{
    ClusterId, Collection, Offset, Partition,
    control::{Announcement, Entry, Key},
    placement::{self, Labels, Member, Wanted, fits, required, told},
};
use shoal_topic::control::ControlState;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    dlq::wait,
    node::{
        Held, Node, NodeError, ShardKey,
        owner::{COMMIT_EVERY, GROUP_POLL},
    },
};

/// Who lives has to be the same for so long before shards move: nodes that start together are
/// waited for.
const SETTLE: Duration = Duration::from_secs(1);
/// A broker that was not heard for so long may have told others what it did not tell this node.
const SILENCE: Duration = Duration::from_secs(3);
/// Signs of life in a lease.
const BEATS: u32 = 5;
/// How long the broker may take to hear that this node leaves.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// Since when this node has heard everything others say.
#[derive(Debug, Default)]
pub(super) struct Listening(AtomicU64);

impl Listening {
    /// Notes what is heard now; `None` while nothing is.
    fn look(&self, state: &ControlState, now: Duration) -> Option<Duration> {
        let hears = state
            .caught_up_at
            .is_some_and(|heard| now.saturating_sub(heard) <= SILENCE);
        if !hears {
            self.0.store(0, Ordering::Release);
            return None;
        }
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(1);
        let since = self
            .0
            .compare_exchange(0, millis, Ordering::AcqRel, Ordering::Acquire);
        Some(Duration::from_millis(
            since.map_or_else(|since| since, |_| millis),
        ))
    }
}

/// Whether a node that announced itself lives.
fn lives(announced: &Announcement, heard_at: Duration, listening: Duration, now: Duration) -> bool {
    let silent = now.saturating_sub(heard_at.max(listening));
    silent <= Duration::from_millis(announced.lease_ms)
}

/// The nodes of a set that live, in the order of their names.
fn members(
    state: &ControlState,
    set: Option<&shoal_schemas::ReplicaSet>,
    listening: Duration,
    now: Duration,
) -> Vec<Member> {
    let living = state.nodes.iter().filter(|(_, (announced, heard_at))| {
        announced.set.as_ref() == set && lives(announced, *heard_at, listening, now)
    });
    let member = living.map(|(name, (announced, _))| Member {
        name: name.clone(),
        labels: announced.labels.clone(),
        weight: announced.weight,
    });
    member.collect()
}

fn wanted(state: &ControlState) -> Vec<Wanted> {
    let of = |collection: &Collection| {
        let collection = collection.clone();
        (0..collection.partitions)
            .map(Partition)
            .map(move |shard| Wanted {
                required: required(&collection, shard),
                collection: collection.name.clone(),
                shard,
            })
    };
    state.collections.values().flat_map(of).collect()
}

/// What the ring gave out last, and what it went by.
#[derive(Default)]
struct Decision {
    members: Vec<Member>,
    changed_at: Offset,
    /// The shards of this node.
    own: BTreeSet<ShardKey>,
    /// Shards that no node may serve.
    nobodys: BTreeSet<ShardKey>,
}

impl Decision {
    fn of(name: &str, members: &[Member], state: &ControlState) -> Self {
        let given = placement::assign(members, &wanted(state));
        let mut decision = Self {
            members: members.to_vec(),
            changed_at: state.changed_at,
            ..Self::default()
        };
        for (shard, node) in given {
            match node {
                Some(node) if node == name => {
                    decision.own.insert(shard);
                }
                Some(_) => {}
                None => {
                    decision.nobodys.insert(shard);
                }
            }
        }
        decision
    }
}

impl Node {
    pub(super) fn own_by_ring(
        &self,
        cluster: &ClusterId,
        cancel: &CancellationToken,
    ) -> Result<(), NodeError> {
        let mut committed = BTreeMap::new();
        let mut since_commit = Stopwatch::start();
        let mut seen: Vec<Member> = Vec::new();
        let mut since_seen = Stopwatch::start();
        let mut decision: Option<Decision> = None;
        let mut followed = None;
        // Those whose newest claims are this node's are served at once; the ring speaks later.
        self.take_kept(cluster)?;
        while !cancel.is_cancelled() {
            self.take_again(cluster)?;
            self.follow_generations(&mut followed);
            let state = self.deps.control.snapshot();
            let now = self.deps.clock.monotonic();
            if let Some(listening) = self.listening.look(&state, now) {
                let living = members(&state, self.config.replica_set.as_ref(), listening, now);
                if living != seen {
                    info!(nodes = living.len(), "nodes of the ring changed");
                    seen = living;
                    since_seen = Stopwatch::start();
                }
                let is_there = seen.iter().any(|member| member.name == self.config.node);
                let is_old = decision.as_ref().is_none_or(|decision| {
                    decision.members != seen || decision.changed_at != state.changed_at
                });
                let knows_them = decision.as_ref().is_some_and(|one| one.members == seen);
                if is_there && is_old && (knows_them || since_seen.elapsed() >= SETTLE) {
                    let next = Decision::of(&self.config.node, &seen, &state);
                    self.tell(decision.as_ref(), &next, &state);
                    decision = Some(next);
                }
            }
            if let Some(decision) = &decision {
                self.follow(decision, &state, cluster)?;
                self.placed.store(true, Ordering::Release);
            }
            if since_commit.elapsed() >= COMMIT_EVERY {
                since_commit = Stopwatch::start();
                self.commit_alone(&mut committed);
            }
            wait(cancel, GROUP_POLL);
        }
        Ok(())
    }

    /// Takes what the ring gives this node, and lets go of what others have claimed by now.
    fn follow(
        &self,
        decision: &Decision,
        state: &ControlState,
        cluster: &ClusterId,
    ) -> Result<(), NodeError> {
        for key in &decision.own {
            self.take_as(key, cluster, false)?;
        }
        let held: Vec<(ShardKey, Arc<Held>)> = {
            let shards = self.lock();
            let shards = shards.iter();
            shards
                .map(|(key, held)| (key.clone(), held.clone()))
                .collect()
        };
        let mut over = Vec::new();
        for (key, held) in held {
            let is_given = decision.own.contains(&key);
            held.is_given.store(is_given, Ordering::Release);
            if is_given {
                held.is_kept.store(false, Ordering::Release);
            } else if !self.is_served_until_taken(&key, state) {
                over.push(key);
            }
        }
        if !over.is_empty() {
            self.let_go(&over);
        }
        Ok(())
    }

    /// Whether a shard that the ring gives to another node is still this one's to serve.
    fn is_served_until_taken(&self, key: &ShardKey, state: &ControlState) -> bool {
        let Some(collection) = state.collections.get(&key.0) else {
            return false;
        };
        let may_serve = fits(&required(collection, key.1), &self.labels);
        let claim = self.claim_in_set(state, key);
        may_serve && claim.is_some_and(|claim| claim.ready && claim.node == self.config.node)
    }

    /// Whether the claims of a shard are this node's to make now.
    pub(super) fn may_claim(&self, key: &ShardKey, held: &Held, ready: bool) -> bool {
        if !self.is_in_a_ring() {
            return ready || !self.is_served_elsewhere(key);
        }
        if !held.is_given.load(Ordering::Acquire) {
            return false;
        }
        let state = self.deps.control.snapshot();
        let serves = (self.claim_in_set(&state, key))
            .filter(|claim| claim.ready && claim.node != self.config.node);
        // Until it is caught up here, who served it so far is asked.
        ready || serves.is_none_or(|claim| !self.hears(&state, &claim.node))
    }

    /// Whether another node lives, as far as this one has heard.
    fn hears(&self, state: &ControlState, node: &str) -> bool {
        let now = self.deps.clock.monotonic();
        let Some(listening) = self.listening.look(state, now) else {
            return true;
        };
        let found = state.nodes.get(node);
        found.is_some_and(|(announced, heard_at)| lives(announced, *heard_at, listening, now))
    }

    /// Whether this node lacks labels that a shard requires. Says so once.
    pub(super) fn is_misplaced(&self, collection: &Collection, key: &ShardKey) -> bool {
        let required = required(collection, key.1);
        if fits(&required, &self.labels) {
            return false;
        }
        let mut misplaced = self
            .misplaced
            .lock()
            .expect("nothing panics under this lock");
        if misplaced.insert(key.clone()) {
            warn!(
                shard = %format!("{}/{}", key.0, key.1),
                required = told(&required),
                "shard is not taken, this node lacks labels that it requires; indexer.ownership.kind = \"ring\" gives it to one that has them"
            );
        }
        true
    }

    fn tell(&self, before: Option<&Decision>, next: &Decision, state: &ControlState) {
        if before.is_none_or(|before| before.own != next.own) {
            info!(
                shards = next.own.len(),
                nodes = next.members.len(),
                "ring gives this node its shards"
            );
        }
        let known = before.map(|before| &before.nobodys);
        let new = next.nobodys.iter();
        for key in new.filter(|key| known.is_none_or(|known| !known.contains(*key))) {
            let of = state.collections.get(&key.0);
            let required = of.map_or_else(Labels::new, |of| required(of, key.1));
            warn!(
                shard = %format!("{}/{}", key.0, key.1),
                required = told(&required),
                "no node that lives may serve a shard"
            );
        }
    }

    /// Says again and again that this node lives, and at the end that it leaves.
    pub(super) fn announce(&self, lease: Duration) {
        let cancel = self.deps.tasks.cancel();
        let every = lease / BEATS;
        let key = Key::Node(self.config.node.clone());
        let mut announcement = Announcement {
            address: self.address.to_string(),
            set: self.config.replica_set.clone(),
            labels: (*self.labels).clone(),
            weight: self.config.weight,
            lease_ms: u64::try_from(lease.as_millis()).unwrap_or(u64::MAX),
            beat: 0,
        };
        let mut is_silent = false;
        while !cancel.is_cancelled() {
            if self.deps.control.snapshot().caught_up_at.is_none() {
                wait(cancel, GROUP_POLL);
                continue;
            }
            announcement.beat += 1;
            let entry = [(key.clone(), Entry::Node(announcement.clone()))];
            let trouble = match self.deps.control.put_all_blocking(&entry, every) {
                Some(Ok(())) => None,
                Some(Err(error)) => Some(chain(&error).to_string()),
                None => Some("it took too long".to_owned()),
            };
            match trouble {
                Some(error) if !std::mem::replace(&mut is_silent, true) => {
                    warn!(error, "this node cannot say that it lives, trying on");
                }
                None if std::mem::replace(&mut is_silent, false) => {
                    info!("this node says again that it lives");
                }
                _ => {}
            }
            wait(cancel, every);
        }
        let heard = self.deps.control.snapshot().caught_up_at;
        let now = self.deps.clock.monotonic();
        if heard.is_some_and(|heard| now.saturating_sub(heard) <= SILENCE) {
            match self.deps.control.remove_within(&key, LEAVE_WITHIN) {
                Some(Ok(_)) => {}
                Some(Err(error)) => warn!(error = %chain(&error), "not said that this node leaves"),
                None => warn!("not said in time that this node leaves"),
            }
        }
    }

    fn is_in_a_ring(&self) -> bool {
        matches!(self.config.ownership, crate::config::Ownership::Ring { .. })
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
