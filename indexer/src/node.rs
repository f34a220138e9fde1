//! A node's shards: which it owns, and everything that keeps them going.
//!
//! Four threads beside the shards' own: *owner* follows the group (or the static list) and starts
//! and stops shards; *syncer* makes their logs durable; *prober* asks the broker for its ends;
//! *claims* tells the control topic who serves what. The group only decides who owns a partition;
//! a shard's data offsets are its own.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use shoal_runtime::{ErrorKind, chain, clock::Stopwatch};
use shoal_schemas::{
    ClusterId, CollectionName, Offset, Partition, Source,
    control::{Claim, Entry, Key},
};
use shoal_topic::{
    AdminError, Deps, Membership, MembershipEvent, ReadError, TopicPartition, control::ControlState,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::{Config, Ownership},
    dlq::wait,
    shard::{
        Shared, SourceSpec, Spec,
        run::{self, Context},
    },
    wal,
};

/// A shard's name: its collection and number.
pub type ShardKey = (CollectionName, Partition);

/// How often the group is served.
const GROUP_POLL: Duration = Duration::from_millis(100);
/// How often offsets are committed.
const COMMIT_EVERY: Duration = Duration::from_secs(1);
/// How long the broker may take to tell its ends.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often claims are looked at.
const CLAIM_EVERY: Duration = Duration::from_millis(100);
/// How long a failed step rests.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Why a node stopped.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The consumer group.
    #[error("cannot take part in consumer group `{group}`")]
    Group {
        /// Its name.
        group: String,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// A thread.
    #[error("no thread for shard `{shard}`")]
    Thread {
        /// The shard.
        shard: String,
        /// The system's own.
        #[source]
        source: std::io::Error,
    },
    /// A shard's log.
    #[error("log of shard `{shard}` cannot be made durable")]
    Sync {
        /// The shard.
        shard: String,
        /// Why.
        #[source]
        source: wal::SyncError,
    },
}

/// One shard of this node.
pub struct Held {
    opened: Arc<OnceLock<Arc<Shared>>>,
    cancel: CancellationToken,
    ended: Arc<AtomicBool>,
    was_caught_up: AtomicBool,
}

/// Why a shard does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotServing {
    /// Another node has it, or nobody.
    NotOwned,
    /// It is being recovered.
    Recovering,
    /// It has not yet caught up since it was opened; this many records are missing.
    CatchingUp(u64),
}

impl Held {
    /// The shard, if it may answer: it has held everything the broker had at least once.
    ///
    /// # Errors
    /// [`NotServing`].
    pub fn serving(&self) -> Result<&Arc<Shared>, NotServing> {
        let shared = self.opened.get().ok_or(NotServing::Recovering)?;
        if !self.was_caught_up.load(Ordering::Acquire) {
            let reading = shared.lag.read();
            if !reading.was_caught_up {
                return Err(NotServing::CatchingUp(reading.records));
            }
            self.was_caught_up.store(true, Ordering::Release);
        }
        Ok(shared)
    }

    /// The shard, if it is open at all.
    pub fn opened(&self) -> Option<&Arc<Shared>> {
        self.opened.get()
    }
}

/// The shards of a node. Cloning shares them.
#[derive(Clone)]
pub struct Node {
    config: Arc<Config>,
    deps: Deps,
    /// What others dial.
    address: Arc<str>,
    shards: Arc<Mutex<BTreeMap<ShardKey, Arc<Held>>>>,
}

impl Node {
    /// A node without shards.
    pub fn new(config: Config, deps: Deps, address: String) -> Self {
        Self {
            config: Arc::new(config),
            deps,
            address: address.into(),
            shards: Arc::default(),
        }
    }

    /// This node's name.
    pub fn name(&self) -> &str {
        &self.config.node
    }

    /// One shard; `None` if this node does not have it.
    pub fn shard(&self, key: &ShardKey) -> Option<Arc<Held>> {
        self.lock().get(key).cloned()
    }

    /// All shards of a collection that this node has.
    pub fn shards_of(&self, collection: &CollectionName) -> Vec<(Partition, Arc<Held>)> {
        let shards = self.lock();
        let of = shards.iter().filter(|((name, _), _)| name == collection);
        of.map(|((_, shard), held)| (*shard, held.clone()))
            .collect()
    }

    /// Starts the node's threads.
    ///
    /// # Errors
    /// The system's own, when it has no more threads.
    pub fn start(&self) -> std::io::Result<()> {
        let tasks = &self.deps.tasks;
        let owner = self.clone();
        tasks.spawn_thread("owner", move || owner.own())?;
        let syncer = self.clone();
        tasks.spawn_thread("syncer", move || syncer.sync())?;
        let prober = self.clone();
        tasks.spawn_thread("prober", move || {
            prober.probe();
            Ok::<_, std::convert::Infallible>(())
        })?;
        let claims = self.clone();
        tasks.spawn_thread("claims", move || {
            claims.claim();
            Ok::<_, std::convert::Infallible>(())
        })?;
        let node = self.clone();
        self.deps.readiness.set("indexer", move || node.readiness());
        Ok(())
    }

    fn readiness(&self) -> Result<(), String> {
        if self.deps.control.snapshot().caught_up_at.is_none() {
            return Err("control topic not read yet".into());
        }
        let shards: Vec<_> = {
            let shards = self.lock();
            shards
                .iter()
                .map(|(key, held)| (key.clone(), held.clone()))
                .collect()
        };
        for ((collection, shard), held) in shards {
            let shared = held
                .serving()
                .map_err(|why| format!("shard {collection}/{shard}: {}", not_serving_text(&why)))?;
            let behind = shared.lag.read().behind;
            if behind > self.config.ready_lag {
                return Err(format!(
                    "shard {collection}/{shard} is {behind:.1?} behind, ready_lag is {:?}",
                    self.config.ready_lag
                ));
            }
        }
        Ok(())
    }

    fn own(&self) -> Result<(), NodeError> {
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
        let spec = Spec {
            collection: Arc::new(collection.clone()),
            shard: key.1,
            sources: vec![SourceSpec {
                source: Source {
                    cluster: cluster.clone(),
                    topic: partition.topic.clone(),
                    partition: partition.partition,
                },
                region: self.config.region.clone(),
            }],
            region: self.config.region.clone(),
            folder,
            engine: self.config.engine.clone(),
        };
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

    fn open_shards(&self) -> Vec<Arc<Held>> {
        let shards = self.lock();
        let open = shards.values().filter(|held| held.opened().is_some());
        open.cloned().collect()
    }

    fn sync(&self) -> Result<(), NodeError> {
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

    fn probe(&self) {
        let cancel = self.deps.tasks.cancel();
        while !cancel.is_cancelled() {
            let watch = Stopwatch::start();
            let mut waits_to_serve = false;
            for held in self.open_shards() {
                let Some(shared) = held.opened() else {
                    continue;
                };
                self.probe_shard(shared);
                waits_to_serve |= held.serving().is_err();
            }
            // A shard that opens is looked at often: it serves as soon as it has caught up.
            let interval = if waits_to_serve {
                Duration::from_millis(50)
            } else {
                self.config.probe_interval
            };
            wait(cancel, interval.saturating_sub(watch.elapsed()));
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

    fn claim(&self) {
        let cancel = self.deps.tasks.cancel();
        let mut claimed: BTreeMap<ShardKey, bool> = BTreeMap::new();
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
                if held.opened().is_none() {
                    continue;
                }
                let ready = held.serving().is_ok();
                if claimed.get(&key) == Some(&ready) {
                    continue;
                }
                let claim = Claim {
                    node: self.config.node.clone(),
                    address: self.address.to_string(),
                    ready,
                };
                let control_key = Key::Shard(key.0.clone(), key.1);
                match self
                    .deps
                    .control
                    .put_blocking(&control_key, &Entry::Shard(claim))
                {
                    Ok(epoch) => {
                        info!(
                            shard = %format!("{}/{}", key.0, key.1),
                            epoch = epoch.0,
                            ready,
                            "shard claimed"
                        );
                        claimed.insert(key, ready);
                    }
                    Err(error) => {
                        warn!(error = %chain(&error), "claim not written, it is tried again");
                        wait(cancel, RETRY_AFTER);
                    }
                }
            }
            wait(cancel, CLAIM_EVERY);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ShardKey, Arc<Held>>> {
        self.shards.lock().expect("nothing panics under this lock")
    }
}

/// What a person is told about a shard that does not answer.
pub fn not_serving_text(why: &NotServing) -> String {
    match why {
        NotServing::NotOwned => "this node does not have it; ask for the shard map again".into(),
        NotServing::Recovering => "it is being recovered from disk".into(),
        NotServing::CatchingUp(records) => {
            format!("it is catching up with Kafka, about {records} records are missing")
        }
    }
}

fn topics_of(state: &ControlState) -> Vec<String> {
    let names = state.collections.keys();
    names.map(CollectionName::topic).collect()
}
