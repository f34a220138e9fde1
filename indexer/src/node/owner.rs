//! Ownership: which shards this node has, by consumer group or by a fixed list; by a ring, see
//! [`super::ring`].
//!
//! The group only decides who owns a partition. A shard that is revoked is stopped, its log made
//! durable and its offsets committed before the group hands it on.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics::counter;
use shoal_runtime::{ErrorKind, chain, clock::Stopwatch};
use shoal_schemas::{ClusterId, Collection, CollectionName, Offset, Partition};
use shoal_topic::{Membership, MembershipEvent, TopicPartition};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::Ownership,
    dlq::wait,
    metrics as names,
    node::{Held, Node, NodeError, RETRY_AFTER, ShardKey, generations},
    serve::Pace,
    shard::{
        Spec,
        run::{self, Context},
    },
};

/// How often the group is served.
pub(super) const GROUP_POLL: Duration = Duration::from_millis(100);
/// How often it is looked whether a broker has answered for the first time.
const FIRST_ANSWER_POLL: Duration = Duration::from_millis(10);
/// How long the seat is served at a time while shards drain.
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// A group says nothing to a member it has no shard for; after this long it has none.
const SPARE_AFTER: Duration = Duration::from_secs(10);
/// How often offsets are committed.
pub(super) const COMMIT_EVERY: Duration = Duration::from_secs(1);

impl Node {
    pub(super) fn own(&self) -> Result<(), NodeError> {
        let cancel = self.deps.tasks.cancel().clone();
        let Some(cluster) = self.cluster_id(&cancel) else {
            return Ok(());
        };
        let outcome = match &self.config.ownership {
            Ownership::Group { group } => {
                self.own_by_group(&self.config.group_of_set(group), &cluster, &cancel)
            }
            Ownership::Static { shards } => self.own_static(shards, &cluster, &cancel),
            Ownership::Ring { lease } => self.own_by_ring(*lease, &cluster, &cancel),
        };
        self.let_go_of_all();
        outcome
    }

    pub(super) fn let_go_of_all(&self) {
        self.let_go(&self.all());
    }

    /// The cluster's id, waited for; `None` once cancelled.
    fn cluster_id(&self, cancel: &CancellationToken) -> Option<ClusterId> {
        let mut said = false;
        while !cancel.is_cancelled() {
            // Until a broker has answered once, asking would only hold a stop up.
            if self.deps.control.snapshot().caught_up_at.is_none() {
                wait(cancel, FIRST_ANSWER_POLL);
                continue;
            }
            match self.deps.cluster.admin.cluster_id() {
                Ok(id) => return Some(id),
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        warn!(error = %chain(&error), "waiting for the broker");
                    }
                    wait(cancel, RETRY_AFTER);
                }
            }
        }
        None
    }

    fn own_by_group(
        &self,
        group: &str,
        cluster: &ClusterId,
        cancel: &CancellationToken,
    ) -> Result<(), NodeError> {
        let group_error = |source| NodeError::Group {
            group: group.to_owned(),
            source,
        };
        let mut topics = Vec::new();
        let mut membership: Option<Box<dyn Membership>> = None;
        let mut committed = BTreeMap::new();
        let mut since_commit = Stopwatch::start();
        let mut events = VecDeque::new();
        let mut assigned = BTreeSet::new();
        let mut since_asked = Stopwatch::start();
        let mut kept = self.take_kept(cluster)?;
        let mut seen = None;
        if !kept.is_empty() {
            self.placed.store(true, Ordering::Release);
        }
        while !cancel.is_cancelled() {
            self.take_again(cluster)?;
            self.drop_overtaken(&mut kept);
            self.follow_generations(&mut seen, cluster);
            // The group says it once; a definition may come, or come again, after that.
            let state = self.deps.control.snapshot();
            let readers = generations::by_topic(&state);
            for partition in &assigned {
                self.take(partition, &readers, cluster)?;
            }
            let wanted: Vec<String> = readers.into_keys().collect();
            if wanted.is_empty() || since_asked.elapsed() > SPARE_AFTER {
                self.placed.store(true, Ordering::Release);
            }
            if wanted != topics {
                info!(collections = wanted.len(), "collections changed");
                match &mut membership {
                    Some(membership) => membership.subscribe(&wanted).map_err(group_error)?,
                    None => {
                        let joined = self.deps.cluster.connect.join(group, &wanted);
                        membership = Some(joined.map_err(group_error)?);
                        since_asked = Stopwatch::start();
                    }
                }
                topics = wanted;
            }
            let Some(seat) = &mut membership else {
                wait(cancel, GROUP_POLL);
                continue;
            };
            let polled = match events.pop_front() {
                Some(event) => Ok(Some(event)),
                None => seat.poll(GROUP_POLL),
            };
            match polled {
                Ok(None) => {}
                Ok(Some(MembershipEvent::Assigned(partitions))) => {
                    self.settle_kept(&mut kept, &partitions);
                    let readers = generations::by_topic(&self.deps.control.snapshot());
                    for partition in partitions {
                        if !self.take(&partition, &readers, cluster)? {
                            warn!(%partition, "assigned a partition of a collection nobody defined");
                        }
                        assigned.insert(partition);
                    }
                    self.placed.store(true, Ordering::Release);
                }
                Ok(Some(MembershipEvent::Revoked(partitions))) => {
                    assigned.retain(|one| !partitions.contains(one));
                    self.commit(&**seat, &mut committed);
                    let going = self.hand_over(&mut kept, &partitions);
                    // The seat is kept warm meanwhile; what it says is heard afterwards.
                    let mut is_troubled = false;
                    self.stop(&going, || {
                        keep_warm(&mut **seat, &mut events, &mut is_troubled, rest);
                    });
                    self.forget(&going);
                    seat.released();
                }
                Ok(Some(MembershipEvent::Lost(partitions))) => {
                    warn!("the group gave this node's shards away");
                    assigned.retain(|one| !partitions.contains(one));
                    let going = self.hand_over(&mut kept, &partitions);
                    self.let_go(&going);
                }
                Err(error) if error.kind() == ErrorKind::Retry => wait(cancel, RETRY_AFTER),
                Err(error) => return Err(group_error(error)),
            }
            if since_commit.elapsed() >= COMMIT_EVERY {
                since_commit = Stopwatch::start();
                self.commit(&**seat, &mut committed);
            }
        }
        if let Some(seat) = membership {
            self.stop(&self.all(), || std::thread::park_timeout(DRAIN_POLL));
            self.commit(&*seat, &mut committed);
        }
        Ok(())
    }

    fn own_static(
        &self,
        numbers: &[u32],
        cluster: &ClusterId,
        cancel: &CancellationToken,
    ) -> Result<(), NodeError> {
        let mut committed = BTreeMap::new();
        let mut since_commit = Stopwatch::start();
        let mut seen = None;
        while !cancel.is_cancelled() {
            self.take_again(cluster)?;
            self.follow_generations(&mut seen, cluster);
            let state = self.deps.control.snapshot();
            for collection in state.collections.values() {
                for number in 0..collection.partitions {
                    let is_ours = numbers.is_empty() || numbers.contains(&number);
                    if is_ours {
                        let key = (collection.name.clone(), Partition(number));
                        self.take_as(&key, cluster, false)?;
                    }
                }
            }
            self.placed.store(true, Ordering::Release);
            if since_commit.elapsed() >= COMMIT_EVERY {
                since_commit = Stopwatch::start();
                self.commit_alone(&mut committed);
            }
            wait(cancel, GROUP_POLL);
        }
        Ok(())
    }

    /// Commits offsets of a node without a group, under a name of its own.
    pub(super) fn commit_alone(&self, committed: &mut BTreeMap<TopicPartition, Offset>) {
        let group = format!("shoal-indexer-{}", self.config.node);
        let positions = self.durable(committed);
        let advice = self.deps.cluster.admin.commit_advice(&group, &positions);
        if let Err(error) = advice {
            warn!(error = %chain(&error), "offsets not committed; only lag tools read them");
        }
        if !positions.is_empty() {
            shoal_runtime::crash::point("committed");
        }
    }

    /// Starts the shards that read a partition, unless they are started or this node may not serve them; false if
    /// nobody defined one.
    fn take(
        &self,
        partition: &TopicPartition,
        readers: &BTreeMap<String, Vec<CollectionName>>,
        cluster: &ClusterId,
    ) -> Result<bool, NodeError> {
        let found = readers.get(&*partition.topic);
        for reader in found.into_iter().flatten() {
            let key = (reader.clone(), partition.partition);
            self.take_as(&key, cluster, false)?;
        }
        Ok(found.is_some())
    }

    /// Starts a shard, unless it is started; false if this node does not have it then, because nobody defined its
    /// collection or because this node lacks what the shard requires.
    pub(super) fn take_as(
        &self,
        key: &ShardKey,
        cluster: &ClusterId,
        is_kept: bool,
    ) -> Result<bool, NodeError> {
        if self.lock().contains_key(key) {
            return Ok(true);
        }
        let key = key.clone();
        let state = self.deps.control.snapshot();
        let Some(collection) = state.collections.get(&key.0) else {
            return Ok(false);
        };
        if self.is_misplaced(collection, &key) {
            return Ok(false);
        }
        let folder = self.folder_of(&key);
        let mut spec = Spec::of_home(
            Arc::new(collection.clone()),
            key.1,
            cluster.clone(),
            self.config.region.clone(),
            folder,
            self.config.engine.clone(),
        );
        spec.pressure = self.pressure.clone();
        spec.is_replica = self.config.replica_set.is_some();
        spec.incarnation = state.defined_at.get(&key.0).copied().unwrap_or_default();
        spec.is_follower = Arc::new(AtomicBool::new(
            generations::followers(&state).contains(&key.0),
        ));
        let label = spec.label();
        let held = Held {
            opened: Arc::default(),
            cancel: self.deps.tasks.cancel().child_token(),
            ended: Arc::default(),
            was_caught_up: AtomicBool::new(false),
            held_back_since: Mutex::default(),
            is_disclaimed: AtomicBool::new(false),
            is_kept: AtomicBool::new(is_kept),
            is_given: AtomicBool::new(false),
            home: partition_of(collection, key.1),
            is_follower: spec.is_follower.clone(),
            incarnation: spec.incarnation,
            pace: Pace::default(),
            searches: counter!(names::SEARCHES_TOTAL, "shard" => label.clone()),
        };
        let context = Context {
            spec,
            cluster: self.deps.cluster.clone(),
            schemas: self.deps.schemas.clone(),
            clock: self.deps.clock.clone(),
            tasks: self.deps.tasks.clone(),
            snapshots: self.snapshots.clone(),
            cancel: held.cancel.clone(),
            opened: held.opened.clone(),
        };
        let ended = held.ended.clone();
        {
            let mut shards = self.lock();
            shards.insert(key, Arc::new(held));
            self.pressure.set_shards(shards.len());
        }
        info!(shard = label, "taking shard");
        let body = move || {
            let outcome = run::run(context);
            ended.store(true, Ordering::Release);
            outcome
        };
        let started = self.deps.tasks.spawn_thread(format!("shard {label}"), body);
        started.map_err(|source| NodeError::Thread {
            shard: label,
            source,
        })?;
        Ok(true)
    }

    /// Takes shards again that ended by themselves, because their folders did not lead on to the
    /// topic, and those whose collection was dropped and made again.
    pub(super) fn take_again(&self, cluster: &ClusterId) -> Result<(), NodeError> {
        let state = self.deps.control.snapshot();
        let is_over = |key: &ShardKey, held: &Held| {
            let ended = held.ended.load(Ordering::Acquire) && !held.cancel.is_cancelled();
            let now = state.defined_at.get(&key.0);
            ended || now.is_some_and(|now| *now != held.incarnation)
        };
        let over: Vec<_> = {
            let shards = self.lock();
            let over = shards.iter().filter(|(key, held)| is_over(key, held));
            let kept = |held: &Held| held.is_kept.load(Ordering::Acquire);
            over.map(|(key, held)| (key.clone(), kept(held))).collect()
        };
        for (key, is_kept) in over {
            self.let_go(std::slice::from_ref(&key));
            self.take_as(&key, cluster, is_kept)?;
        }
        Ok(())
    }

    /// The shards here that read these partitions.
    pub(super) fn keys_of(&self, partitions: &[TopicPartition]) -> Vec<ShardKey> {
        let shards = self.lock();
        let of = shards
            .iter()
            .filter(|(_, held)| partitions.contains(&held.home));
        of.map(|(key, _)| key.clone()).collect()
    }

    /// Stops these shards and waits until they have ended, calling `meanwhile` again and again.
    fn stop(&self, keys: &[ShardKey], mut meanwhile: impl FnMut()) {
        let going: Vec<_> = keys
            .iter()
            .filter_map(|key| Some((self.shard(key)?, key.clone())))
            .collect();
        for (held, _) in &going {
            held.cancel.cancel();
        }
        let watch = Stopwatch::start();
        // Before the group hands them on: nobody else's claim can be overtaken by this.
        self.disclaim(&going);
        while (going.iter()).any(|(held, _)| !held.ended.load(Ordering::Acquire)) {
            if watch.elapsed() > self.config.drain_timeout {
                warn!("shards still run after drain_timeout; they are given up all the same");
                return;
            }
            meanwhile();
        }
    }

    fn forget(&self, keys: &[ShardKey]) {
        for key in keys {
            let gone = self.lock().remove(key);
            if gone.is_some() {
                info!(shard = %format!("{}/{}", key.0, key.1), "shard let go");
            }
        }
    }

    pub(crate) fn let_go(&self, keys: &[ShardKey]) {
        self.stop(keys, || std::thread::park_timeout(DRAIN_POLL));
        self.forget(keys);
    }

    fn all(&self) -> Vec<ShardKey> {
        self.lock().keys().cloned().collect()
    }

    /// Durable home offsets that changed since they were last asked for.
    fn durable(
        &self,
        committed: &mut BTreeMap<TopicPartition, Offset>,
    ) -> Vec<(TopicPartition, Offset)> {
        let mut shards: Vec<_> = self.lock().values().cloned().collect();
        // About those the group has given to nobody, or to somebody else, this node has nothing to say.
        shards.retain(|held| !held.is_kept.load(Ordering::Acquire));
        // Of several shards that read a partition the one that is furthest behind.
        let mut durable: BTreeMap<TopicPartition, Offset> = BTreeMap::new();
        for held in &shards {
            let Some(shared) = held.opened() else {
                continue;
            };
            let Some(next) = shared.durable().first().copied() else {
                continue;
            };
            let least = durable.entry(held.home.clone()).or_insert(next);
            *least = next.min(*least);
        }
        let mut positions = Vec::new();
        for (partition, next) in durable {
            if next.0 > 0 && committed.get(&partition) != Some(&next) {
                committed.insert(partition.clone(), next);
                positions.push((partition, next));
            }
        }
        positions
    }

    fn commit(&self, seat: &dyn Membership, committed: &mut BTreeMap<TopicPartition, Offset>) {
        let positions = self.durable(committed);
        if positions.is_empty() {
            return;
        }
        if let Err(error) = seat.commit_advice(&positions) {
            warn!(error = %chain(&error), "offsets not committed; only lag tools read them");
        }
        shoal_runtime::crash::point("committed");
    }
}

/// Serves the group while shards drain. A group that cannot be served is said once, and rested for before it is
/// tried again: it answers at once, however often it is asked.
fn keep_warm(
    seat: &mut dyn Membership,
    events: &mut VecDeque<MembershipEvent>,
    is_troubled: &mut bool,
    rest: impl FnOnce(Duration),
) {
    match seat.poll(DRAIN_POLL) {
        Ok(event) => {
            *is_troubled = false;
            events.extend(event);
        }
        Err(error) => {
            if !std::mem::replace(is_troubled, true) {
                warn!(error = %chain(&error), "group is not served while shards drain, trying on");
            }
            rest(GROUP_POLL);
        }
    }
}

fn rest(time: Duration) {
    std::thread::park_timeout(time);
}

fn partition_of(collection: &Collection, shard: Partition) -> TopicPartition {
    TopicPartition {
        topic: collection.topic().into(),
        partition: shard,
    }
}

#[cfg(test)]
#[path = "owner_tests.rs"]
mod tests;
