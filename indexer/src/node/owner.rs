//! Ownership: which shards this node has, by consumer group or by a fixed list.
//!
//! The group only decides who owns a partition. A shard that is revoked is stopped, its log made
//! durable and its offsets committed before the group hands it on.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics::counter;
use shoal_runtime::{ErrorKind, chain, clock::Stopwatch};
use shoal_schemas::{ClusterId, CollectionName, Offset, Partition};
use shoal_topic::{Membership, MembershipEvent, TopicPartition, control::ControlState};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::Ownership,
    dlq::wait,
    metrics as names,
    node::{Held, Node, NodeError, RETRY_AFTER, ShardKey},
    serve::Pace,
    shard::{
        Spec,
        run::{self, Context},
    },
};

/// How often the group is served.
const GROUP_POLL: Duration = Duration::from_millis(100);
/// How often it is looked whether a broker has answered for the first time.
const FIRST_ANSWER_POLL: Duration = Duration::from_millis(10);
/// How long the seat is served at a time while shards drain.
const DRAIN_POLL: Duration = Duration::from_millis(10);
/// A group says nothing to a member it has no shard for; after this long it has none.
const SPARE_AFTER: Duration = Duration::from_secs(10);
/// How often offsets are committed.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

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
        };
        self.let_go(&self.all());
        outcome
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
        if !kept.is_empty() {
            self.placed.store(true, Ordering::Release);
        }
        while !cancel.is_cancelled() {
            self.take_again(cluster)?;
            self.drop_overtaken(&mut kept);
            // The group says it once; a definition may come, or come again, after that.
            for partition in &assigned {
                self.take(partition, cluster)?;
            }
            let state = self.deps.control.snapshot();
            let wanted = topics_of(&state);
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
                    for partition in partitions {
                        if !self.take(&partition, cluster)? {
                            warn!(%partition, "assigned a partition of a collection nobody defined");
                        }
                        assigned.insert(partition);
                    }
                    self.placed.store(true, Ordering::Release);
                }
                Ok(Some(MembershipEvent::Revoked(partitions))) => {
                    assigned.retain(|one| !partitions.contains(one));
                    // The seat is kept warm meanwhile; what it says is heard afterwards.
                    self.stop(&partitions, || {
                        events.extend(seat.poll(DRAIN_POLL).ok().flatten());
                    });
                    self.commit(&**seat, &mut committed);
                    self.forget(&partitions);
                    seat.released();
                }
                Ok(Some(MembershipEvent::Lost(partitions))) => {
                    warn!("the group gave this node's shards away; letting go");
                    assigned.retain(|one| !partitions.contains(one));
                    self.let_go(&partitions);
                }
                Err(error) if error.kind() == ErrorKind::Retry => wait(cancel, RETRY_AFTER),
                Err(error) => return Err(group_error(error)),
            }
            // For kept shards it has nothing to say yet.
            if kept.is_empty() && since_commit.elapsed() >= COMMIT_EVERY {
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
        let group = format!("shoal-indexer-{}", self.config.node);
        let mut committed = BTreeMap::new();
        let mut since_commit = Stopwatch::start();
        while !cancel.is_cancelled() {
            self.take_again(cluster)?;
            let state = self.deps.control.snapshot();
            for collection in state.collections.values() {
                for number in 0..collection.partitions {
                    let is_ours = numbers.is_empty() || numbers.contains(&number);
                    if is_ours {
                        let partition = TopicPartition {
                            topic: collection.name.topic().into(),
                            partition: Partition(number),
                        };
                        self.take(&partition, cluster)?;
                    }
                }
            }
            let dropped: Vec<_> = {
                let shards = self.lock();
                let gone = shards
                    .keys()
                    .filter(|(name, _)| !state.collections.contains_key(name));
                gone.map(partition_of).collect()
            };
            self.let_go(&dropped);
            self.placed.store(true, Ordering::Release);
            if since_commit.elapsed() >= COMMIT_EVERY {
                since_commit = Stopwatch::start();
                let positions = self.durable(&mut committed);
                let advice = self.deps.cluster.admin.commit_advice(&group, &positions);
                if let Err(error) = advice {
                    warn!(error = %chain(&error), "offsets not committed; only lag tools read them");
                }
                if !positions.is_empty() {
                    shoal_runtime::crash::point("committed");
                }
            }
            wait(cancel, GROUP_POLL);
        }
        Ok(())
    }

    /// Starts the shard of a partition, unless it is started; false if nobody defined it.
    fn take(&self, partition: &TopicPartition, cluster: &ClusterId) -> Result<bool, NodeError> {
        self.take_as(partition, cluster, false)
    }

    pub(super) fn take_as(
        &self,
        partition: &TopicPartition,
        cluster: &ClusterId,
        is_kept: bool,
    ) -> Result<bool, NodeError> {
        let Some(key) = key_of(partition) else {
            return Ok(false);
        };
        if self.lock().contains_key(&key) {
            return Ok(true);
        }
        let state = self.deps.control.snapshot();
        let Some(collection) = state.collections.get(&key.0) else {
            return Ok(false);
        };
        let folder = self
            .config
            .data_dir
            .join("shards")
            .join(key.0.as_str())
            .join(key.1.to_string());
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
        let label = spec.label();
        let held = Held {
            opened: Arc::default(),
            cancel: self.deps.tasks.cancel().child_token(),
            ended: Arc::default(),
            was_caught_up: AtomicBool::new(false),
            is_disclaimed: AtomicBool::new(false),
            is_kept: AtomicBool::new(is_kept),
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
        self.lock().insert(key, Arc::new(held));
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
    fn take_again(&self, cluster: &ClusterId) -> Result<(), NodeError> {
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
            over.map(|(key, held)| (partition_of(key), kept(held)))
                .collect()
        };
        for (partition, is_kept) in over {
            self.let_go(std::slice::from_ref(&partition));
            self.take_as(&partition, cluster, is_kept)?;
        }
        Ok(())
    }

    /// Stops the shards of these partitions and waits until they have ended, calling `meanwhile`
    /// again and again.
    fn stop(&self, partitions: &[TopicPartition], mut meanwhile: impl FnMut()) {
        let going: Vec<_> = partitions
            .iter()
            .filter_map(|partition| {
                let key = key_of(partition)?;
                Some((self.shard(&key)?, key))
            })
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

    fn forget(&self, partitions: &[TopicPartition]) {
        for partition in partitions {
            let gone = key_of(partition).and_then(|key| self.lock().remove(&key));
            if gone.is_some() {
                info!(%partition, "shard let go");
            }
        }
    }

    pub(super) fn let_go(&self, partitions: &[TopicPartition]) {
        self.stop(partitions, || std::thread::park_timeout(DRAIN_POLL));
        self.forget(partitions);
    }

    fn all(&self) -> Vec<TopicPartition> {
        self.lock().keys().map(partition_of).collect()
    }

    /// Durable home offsets that changed since they were last asked for.
    fn durable(
        &self,
        committed: &mut BTreeMap<TopicPartition, Offset>,
    ) -> Vec<(TopicPartition, Offset)> {
        let shards: Vec<_> = self.lock().values().cloned().collect();
        let mut positions = Vec::new();
        for shared in shards.iter().filter_map(|held| held.opened()) {
            let Some(home) = shared.spec.sources.first() else {
                continue;
            };
            let partition = TopicPartition {
                topic: home.source.topic.clone(),
                partition: home.source.partition,
            };
            let Some(next) = shared.durable().first().copied() else {
                continue;
            };
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

pub(super) fn key_of(partition: &TopicPartition) -> Option<ShardKey> {
    let name = CollectionName::from_topic(&partition.topic)?;
    Some((name, partition.partition))
}

pub(super) fn partition_of(key: &ShardKey) -> TopicPartition {
    TopicPartition {
        topic: key.0.topic().into(),
        partition: key.1,
    }
}

fn topics_of(state: &ControlState) -> Vec<String> {
    let names = state.collections.keys();
    names.map(CollectionName::topic).collect()
}
