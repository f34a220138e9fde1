//! Ownership by a ring: nodes announce themselves, and each takes what the ring of those that live
//! gives it.
//!
//! No vote is taken. Every node reads the same control topic and computes the same ring
//! (`shoal_schemas::placement`); where two differ for a moment, the newest claim owns, as ever. A node
//! lives while it was heard of within its lease, by this node's own clock; time in which this node
//! heard nobody, because the broker was away or it stood still itself, counts for nobody's death.
//!
//! A shard that moves is served by both: the new node opens it and claims it once it has caught up,
//! and the old one lets go a moment after it has read that claim, see [`super::kept`]. Only if the old
//! one is dead, or has said that it lets go, is the shard claimed at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use shoal_runtime::{chain, clock::Stopwatch};
use shoal_schemas::{
    ClusterId, Collection, Offset, Partition,
    control::{Announcement, Entry, Key},
    name::CONTROL_TOPIC,
    placement::{self, Labels, Member, Wanted, fits, required, told},
};
use shoal_topic::{TopicPartition, control::ControlState};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::Ownership,
    dlq::wait,
    node::{
        Held, Node, NodeError, ShardKey,
        kept::Kept,
        listening::{Ears, SILENCE},
        owner::{COMMIT_EVERY, GROUP_POLL},
    },
};

/// Who lives has to be the same for so long before shards move: nodes that start together are
/// waited for.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the broker may take to tell where the control topic ends.
const END_WITHIN: Duration = Duration::from_secs(1);
/// Signs of life in a lease.
const BEATS: u32 = 5;
/// How long the broker may take to hear that this node leaves.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

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
        lease: Duration,
        cluster: &ClusterId,
        cancel: &CancellationToken,
    ) -> Result<(), NodeError> {
        let mut committed = BTreeMap::new();
        let mut since_commit = Stopwatch::start();
        let mut ears = Ears::new(lease);
        let mut seen: Vec<Member> = Vec::new();
        let mut since_seen = Stopwatch::start();
        let mut decision: Option<Decision> = None;
        // Whether that was decided by all that is heard.
        let mut is_decided = false;
        let mut followed = None;
        // Those whose newest claims are this node's are served at once; the ring speaks later.
        let mut kept = self.take_kept(cluster)?;
        while !cancel.is_cancelled() {
            self.take_again(cluster)?;
            self.follow_generations(&mut followed, cluster);
            let state = self.deps.control.snapshot();
            let now = self.deps.clock.monotonic();
            let name = &self.config.node;
            let heard = ears.look(&state, name, now, || self.end_of_control());
            if let Some(listening) = heard {
                let living = members(&state, self.config.replica_set.as_ref(), listening, now);
                if living != seen {
                    info!(nodes = living.len(), "nodes of the ring changed");
                    seen = living;
                    since_seen = Stopwatch::start();
                }
                let is_there = seen.iter().any(|member| member.name == *name);
                let before = decision.as_ref().filter(|_| is_decided);
                let is_old = before.is_none_or(|before| {
                    before.members != seen || before.changed_at != state.changed_at
                });
                let knows_them = before.is_some_and(|before| before.members == seen);
                if is_there && is_old && (knows_them || since_seen.elapsed() >= SETTLE) {
                    let next = Decision::of(name, &seen, &state);
                    self.tell(decision.as_ref(), &next, &state);
                    decision = Some(next);
                    is_decided = true;
                }
            } else {
                seen.clear();
                is_decided = false;
                self.listening.undecided();
            }
            if let (Some(decision), Some(since), true) = (&decision, heard, is_decided) {
                self.follow(decision, &state, cluster, &mut kept)?;
                self.drop_overtaken(&mut kept);
                self.listening.decided(since, now);
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

    /// Takes what the ring gives this node, and keeps of the rest what is to be served until others do.
    fn follow(
        &self,
        decision: &Decision,
        state: &ControlState,
        cluster: &ClusterId,
        kept: &mut Kept,
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
                kept.remove(&key);
            } else if self.is_served_until_taken(&key, &held, state) {
                kept.entry(key).or_default();
            } else {
                kept.remove(&key);
                over.push(key);
            }
        }
        if !over.is_empty() {
            self.let_go(&over);
        }
        Ok(())
    }

    /// Whether a shard that the ring gives to another node is still this one's to serve: it says so itself, or
    /// another one has said so just now, which not all have heard yet.
    fn is_served_until_taken(&self, key: &ShardKey, held: &Held, state: &ControlState) -> bool {
        let Some(collection) = state.collections.get(&key.0) else {
            return false;
        };
        let may_serve = fits(&required(collection, key.1), &self.labels);
        let claim = self.claim_in_set(state, key).filter(|claim| claim.ready);
        may_serve
            && claim.is_some_and(|claim| claim.node == self.config.node || held.answering().is_ok())
    }

    /// Whether the claims of a shard are this node's to make now. Another node that serves it goes on until this one
    /// does, with everything there is.
    pub(super) fn may_claim(&self, key: &ShardKey, held: &Held, serves: bool) -> bool {
        let Ownership::Ring { lease } = self.config.ownership else {
            return serves || !self.is_served_elsewhere(key);
        };
        let now = self.deps.clock.monotonic();
        let Some(listening) = self.listening.since(lease, now) else {
            return false;
        };
        if !held.is_given.load(Ordering::Acquire) {
            return false;
        }
        let state = self.deps.control.snapshot();
        let other = (self.claim_in_set(&state, key))
            .filter(|claim| claim.ready && claim.node != self.config.node);
        let Some(other) = other else {
            return true;
        };
        // Until it is caught up here, who served it so far is asked. That it was so before this node stood
        // still says nothing.
        let behind = held.opened().map(|shared| shared.lag.read().behind);
        let is_fresh = behind.is_some_and(|behind| now.saturating_sub(behind) >= listening);
        let is_heard = (state.nodes.get(&other.node))
            .is_some_and(|(announced, heard_at)| lives(announced, *heard_at, listening, now));
        (serves && is_fresh) || !is_heard
    }

    /// Where the control topic ends, as the broker says now.
    fn end_of_control(&self) -> Option<Offset> {
        let control = TopicPartition {
            topic: CONTROL_TOPIC.into(),
            partition: Partition(0),
        };
        let ends = self.deps.cluster.admin.watermarks(&control, END_WITHIN);
        // Who follows the topic says that nobody answers.
        ends.ok().map(|ends| ends.high)
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
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
