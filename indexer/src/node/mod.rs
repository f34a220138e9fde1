//! A node's shards: which it owns, and everything that keeps them going.
//!
//! Five threads beside the shards' own: *owner* follows the group (or the static list, or the ring)
//! and starts and stops shards; *syncer* makes their logs durable; *prober* asks the broker for its ends;
//! *limits* compares what the process uses with what it may; *claims* tells the control topic
//! who serves what. The group only decides who owns a partition;
//! a shard's data offsets are its own.

#[cfg(test)]
pub(crate) mod alone;
mod generations;
mod kept;
mod listening;
mod owner;
mod ring;
mod saves;
mod upkeep;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics::Counter;
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{CollectionName, Offset, Partition, control::Claim, placement::Labels};
use shoal_topic::{Deps, ReadError, TopicPartition, control::ControlState};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Ownership},
    node::listening::Listening,
    pressure::{Pressure, Reached},
    serve::Pace,
    shard::{Shared, rescue::Snapshots},
    wal,
};

/// A shard's name: its collection and number.
pub type ShardKey = (CollectionName, Partition);

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
    /// Since when a limit has kept it from taking more than up to that offset, before it has caught up.
    held_back_since: Mutex<Option<(Stopwatch, u64)>>,
    /// It was said that it is let go.
    is_disclaimed: AtomicBool,
    /// It is served under an earlier claim although the group has not given it to this node, see [`kept`].
    is_kept: AtomicBool,
    /// The ring gives it to this node; where there is no ring it says nothing.
    is_given: AtomicBool,
    /// The partition it reads.
    home: TopicPartition,
    /// See [`crate::shard::Spec::is_follower`].
    is_follower: Arc<AtomicBool>,
    /// See [`crate::shard::Spec::incarnation`].
    incarnation: Offset,
    /// How long its searches take.
    pub pace: Pace,
    /// Searches answered.
    pub searches: Counter,
}

/// Why a shard does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotServing {
    /// Another node has it, or nobody.
    NotOwned,
    /// It is being recovered.
    Recovering,
    /// It has not yet caught up since it was opened.
    CatchingUp {
        /// Records that are missing.
        records: u64,
        /// What keeps it from taking them, if anything does.
        stopped_by: Option<Reached>,
    },
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
                return Err(NotServing::CatchingUp {
                    records: reading.records,
                    stopped_by: shared.stopped_by(),
                });
            }
            self.was_caught_up.store(true, Ordering::Release);
        }
        Ok(shared)
    }

    /// The shard, if it may be searched: it serves, or answers although a limit keeps it from catching up, and says how far
    /// behind it is.
    ///
    /// # Errors
    /// [`NotServing`].
    pub fn answering(&self) -> Result<&Arc<Shared>, NotServing> {
        match self.opened() {
            Some(shared) if shared.answers_early() => Ok(shared),
            _ => self.serving(),
        }
    }

    /// Ends when this node lets go of the shard.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancel
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
    /// Whether it is known which shards are this node's; until then having none means nothing.
    placed: Arc<AtomicBool>,
    pressure: Arc<Pressure>,
    /// Where shards without a folder begin.
    snapshots: Option<Snapshots>,
    /// What this node has, and what it was told that it lacks.
    labels: Arc<Labels>,
    misplaced: Arc<Mutex<BTreeSet<ShardKey>>>,
    /// Since when it hears what others say, where there is a ring.
    listening: Arc<Listening>,
}

impl Node {
    /// A node without shards.
    pub fn new(config: Config, deps: Deps, address: String) -> Self {
        let labels = Arc::new(config.all_labels());
        let pressure = Arc::new(Pressure::new(config.memory_budget));
        Self {
            config: Arc::new(config),
            deps,
            address: address.into(),
            shards: Arc::default(),
            placed: Arc::default(),
            pressure,
            snapshots: None,
            labels,
            misplaced: Arc::default(),
            listening: Arc::default(),
        }
    }

    /// The same node, whose shards without a folder begin with their newest snapshots.
    #[must_use]
    pub fn with_snapshots(self, snapshots: Snapshots) -> Self {
        Self {
            snapshots: Some(snapshots),
            ..self
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

    /// Whether this node owns a shard, as far as it has read: the latest claim of the home set is
    /// its own. A node of another set owns none.
    pub fn owns(&self, key: &ShardKey) -> bool {
        let state = self.deps.control.snapshot();
        self.owned_at(&state, key).is_some()
    }

    /// The epoch at which this node owns a shard.
    fn owned_at(&self, state: &ControlState, key: &ShardKey) -> Option<Offset> {
        let is_replica = self.config.replica_set.is_some();
        let (claim, epoch) = state.owner(&key.0, key.1).filter(|_| !is_replica)?;
        (claim.node == self.config.node).then_some(*epoch)
    }

    /// The latest claim of a shard within this node's set.
    pub(super) fn claim_in_set<'a>(
        &self,
        state: &'a ControlState,
        key: &ShardKey,
    ) -> Option<&'a Claim> {
        let found = state.claim(&key.0, key.1, self.config.replica_set.as_ref());
        found.map(|(claim, _)| claim)
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
        let comparer = self.clone();
        tasks.spawn_thread("topics", move || {
            comparer.compare_topics();
            Ok::<_, std::convert::Infallible>(())
        })?;
        let limits = self.clone();
        tasks.spawn_thread("limits", move || {
            limits.limit();
            Ok::<_, std::convert::Infallible>(())
        })?;
        let claims = self.clone();
        tasks.spawn_thread("claims", move || {
            claims.claim();
            Ok::<_, std::convert::Infallible>(())
        })?;
        if let Ownership::Ring { lease } = self.config.ownership {
            let announcer = self.clone();
            tasks.spawn_thread("announce", move || {
                announcer.announce(lease);
                Ok::<_, std::convert::Infallible>(())
            })?;
        }
        let node = self.clone();
        self.deps.readiness.set("indexer", move || node.readiness());
        Ok(())
    }

    fn readiness(&self) -> Result<(), String> {
        if self.deps.control.snapshot().caught_up_at.is_none() {
            return Err("control topic not read yet".into());
        }
        if !self.placed.load(Ordering::Acquire) {
            return Err("not known yet which shards are this node's".into());
        }
        let shards: Vec<_> = {
            let shards = self.lock();
            shards
                .iter()
                .map(|(key, held)| (key.clone(), held.clone()))
                .collect()
        };
        let state = self.deps.control.snapshot();
        for ((collection, shard), held) in shards {
            // Nobody asks it before its name stands for it.
            if generations::is_built(&state, &collection) {
                continue;
            }
            let shared = held.serving().map_err(|why| {
                let why = not_serving_text(&why);
                format!("shard {collection}/{shard}: {why}")
            })?;
            let stopped = stopped_text(shared.stopped_by());
            let behind = shared.behind();
            if behind > self.config.ready_lag {
                return Err(format!(
                    "shard {collection}/{shard} is {behind:.1?} behind, ready_lag is {:?}{stopped}",
                    self.config.ready_lag
                ));
            }
        }
        Ok(())
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
        NotServing::CatchingUp {
            records,
            stopped_by,
        } => {
            let stopped = stopped_text(*stopped_by);
            format!("it is catching up with Kafka, about {records} records are missing{stopped}")
        }
    }
}

fn stopped_text(by: Option<Reached>) -> String {
    by.map_or_else(String::new, |reached| {
        format!("; ingest is stopped: {}", reached.told())
    })
}
