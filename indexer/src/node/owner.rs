//! Ownership: which shards this node has, by consumer group or by a fixed list.
//!
//! The group only decides who owns a partition. A shard that is revoked is stopped, its log made
//! durable and its offsets committed before the group hands it on.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use shoal_runtime::{ErrorKind, chain, clock::Stopwatch};
use shoal_schemas::{ClusterId, CollectionName, Offset, Partition};
use shoal_topic::{Membership, MembershipEvent, TopicPartition, control::ControlState};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::Ownership,
    dlq::wait,
    node::{Held, Node, NodeError, RETRY_AFTER},
    shard::{
        Spec,
        run::{self, Context},
    },
};

/// How often the group is served.
const GROUP_POLL: Duration = Duration::from_millis(100);
/// How often offsets are committed.
const COMMIT_EVERY: Duration = Duration::from_secs(1);

impl Node {
    pub(super) fn own(&self) -> Result<(), NodeError> {
        let cancel = self.deps.tasks.cancel().clone();
        let Some(cluster) = self.cluster_id(&cancel) else {
            return Ok(());
        };
        let outcome = match &self.config.ownership {
            Ownership::Group { group } => self.own_by_group(group, &cluster, &cancel),
            Ownership::Static { shards } => self.own_static(shards, &cluster, &cancel),
        };
        self.let_go_of_all();
        outcome
    }

    /// The cluster's id, waited for; `None` once cancelled.
    fn cluster_id(&self, cancel: &CancellationToken) -> Option<ClusterId> {
        let mut said = false;
        while !cancel.is_cancelled() {
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
        while !cancel.is_cancelled() {
            let state = self.deps.control.snapshot();
            let wanted = topics_of(&state);
            if wanted != topics {
                info!(collections = wanted.len(), "collections changed");
                match &mut membership {
                    Some(membership) => membership.subscribe(&wanted).map_err(group_error)?,
                    None => {
                        let joined = self.deps.cluster.connect.join(group, &wanted);
                        membership = Some(joined.map_err(group_error)?);
                    }
                }
                topics = wanted;
            }
            let Some(seat) = &mut membership else {
                wait(cancel, GROUP_POLL);
                continue;
            };
            match seat.poll(GROUP_POLL) {
                Ok(None) => {}
                Ok(Some(MembershipEvent::Assigned(partitions))) => {
                    for partition in partitions {
                        self.take(&partition, cluster)?;
                    }
                }
                Ok(Some(MembershipEvent::Revoked(partitions))) => {
                    self.commit(&**seat, &mut committed);
                    self.let_go(&partitions, Some(&mut **seat));
                    self.commit(&**seat, &mut committed);
                    seat.released();
                }
                Ok(Some(MembershipEvent::Lost(partitions))) => {
                    warn!("the group gave this node's shards away; letting go");
                    self.let_go(&partitions, None);
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
            self.let_go_of_all();
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
                gone.map(|(name, shard)| TopicPartition {
                    topic: name.topic().into(),
                    partition: *shard,
                })
                .collect()
            };
            self.let_go(&dropped, None);
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

    /// Starts the shard of a partition, if it is one of a known collection and not started yet.
    fn take(&self, partition: &TopicPartition, cluster: &ClusterId) -> Result<(), NodeError> {
        let Some(name) = CollectionName::from_topic(&partition.topic) else {
            return Ok(());
        };
        let state = self.deps.control.snapshot();
        let Some(collection) = state.collections.get(&name) else {
            warn!(%partition, "assigned a partition of a collection nobody defined");
            return Ok(());
        };
        let key = (name, partition.partition);
        if self.lock().contains_key(&key) {
            return Ok(());
        }
        let folder = self
            .config
            .data_dir
            .join("shards")
            .join(key.0.as_str())
            .join(key.1.to_string());
        let spec = Spec::of_home(
            Arc::new(collection.clone()),
            key.1,
            cluster.clone(),
            self.config.region.clone(),
            folder,
            self.config.engine.clone(),
        );
        let label = spec.label();
        let held = Held {
            opened: Arc::default(),
            cancel: self.deps.tasks.cancel().child_token(),
            ended: Arc::default(),
            was_caught_up: AtomicBool::new(false),
        };
        let context = Context {
            spec,
            cluster: self.deps.cluster.clone(),
            schemas: self.deps.schemas.clone(),
            clock: self.deps.clock.clone(),
            tasks: self.deps.tasks.clone(),
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
        })
    }

    /// Stops the shards of these partitions and waits until they have ended. The seat in the
    /// group is kept warm meanwhile.
    fn let_go(&self, partitions: &[TopicPartition], mut seat: Option<&mut dyn Membership>) {
        let going: Vec<_> = partitions
            .iter()
            .filter_map(|partition| {
                let name = CollectionName::from_topic(&partition.topic)?;
                let key = (name, partition.partition);
                let held = self.lock().get(&key).cloned()?;
                Some((key, held))
            })
            .collect();
        for (_, held) in &going {
            held.cancel.cancel();
        }
        let watch = Stopwatch::start();
        for (key, held) in going {
            while !held.ended.load(Ordering::Acquire) {
                if watch.elapsed() > self.config.drain_timeout {
                    warn!(
                        shard = %format!("{}/{}", key.0, key.1),
                        "shard still runs after drain_timeout; it is given up all the same"
                    );
                    break;
                }
                match &mut seat {
                    // Nothing is expected here but to be kept in the group.
                    Some(seat) => drop(seat.poll(Duration::from_millis(10))),
                    None => std::thread::park_timeout(Duration::from_millis(10)),
                }
            }
            info!(shard = %format!("{}/{}", key.0, key.1), "shard let go");
            self.lock().remove(&key);
        }
    }

    fn let_go_of_all(&self) {
        let all: Vec<_> = {
            let shards = self.lock();
            let all = shards.keys().map(|(name, shard)| TopicPartition {
                topic: name.topic().into(),
                partition: *shard,
            });
            all.collect()
        };
        self.let_go(&all, None);
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

fn topics_of(state: &ControlState) -> Vec<String> {
    let names = state.collections.keys();
    names.map(CollectionName::topic).collect()
}
