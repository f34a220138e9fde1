//! All roles in one process, with a real Kafka of their own unless another one is named.
//!
//! Everything lives under one data folder: Kafka in `kafka/`, shards in `indexer/`. It stops in
//! the order of need: the roles first, which write their last state, then Kafka.

use std::{
    env, fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusHandle;
use shoal_indexer::config::Ownership;
use shoal_runtime::{
    clock::Stopwatch,
    tasks::{Failure, Tasks, blocking},
};
use shoal_schemas::Partition;
use shoal_topic::{
    Deps,
    broker::{BrokerError, BrokerOptions, LocalBroker},
    control::ControlState,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    config::{Loaded, LocalConfig, Settings},
    roles::{Role, Roles, StartError},
    running::{Folder, FolderError, Running},
};

/// The hidden verb that ties a child to its parent's life.
pub const CHILD_VERB: &str = "child-exec";
/// Longest the roles may take to stop, beyond the indexer's own limit.
const STOP: Duration = Duration::from_secs(10);
/// How often Kafka is looked at.
const WATCH: Duration = Duration::from_millis(500);
/// How often readiness is looked at.
const READY_POLL: Duration = Duration::from_millis(50);
/// After this long it is said what is waited for.
const SLOW: Duration = Duration::from_secs(5);

/// Which Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broker {
    /// One of our own, as a child.
    Own,
    /// The one in the settings.
    Theirs,
}

/// Why it does not come up.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// This program's own file, which the child is started through.
    #[error("cannot find this program's own file")]
    Own(#[source] io::Error),
    /// Kafka.
    #[error("Kafka does not start")]
    Broker(#[from] BrokerError),
    /// The roles.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A thread.
    #[error("cannot watch over Kafka")]
    Thread(#[source] io::Error),
    /// A signal, or a part that failed, came first.
    #[error("stopped before everything was up")]
    Cancelled,
}

/// Kafka has ended by itself.
#[derive(Debug, thiserror::Error)]
#[error("Kafka ended with {0}")]
struct BrokerEnded(String);

/// Everything, running.
pub struct Up {
    running: Running,
    deps: Deps,
    broker: Option<Arc<LocalBroker>>,
    stop_within: Duration,
    folder: Folder,
}

/// The settings `shoal up` runs with: what nobody has set goes under the one data folder, and a
/// node that has a Kafka for itself owns all shards at once instead of asking a group for them.
pub fn settings(loaded: &Loaded, broker: &Broker) -> Settings {
    let mut settings = loaded.settings.clone();
    if !loaded.sets("indexer.data_dir") {
        settings.indexer.data_dir = settings.local.data_dir.join("indexer");
    }
    if *broker == Broker::Own && !loaded.sets("indexer.ownership") {
        settings.indexer.ownership = Ownership::Static { shards: Vec::new() };
    }
    // One process is in one region.
    if let Some(region) = &settings.gateway.residency.region
        && !loaded.sets("indexer.region")
    {
        settings.indexer.region = region.clone();
    }
    settings
}

impl Up {
    /// Starts Kafka if it is to be ours, then the roles. Returns once all of them listen.
    ///
    /// # Errors
    /// [`UpError`]; what was started is stopped then.
    pub async fn start(
        mut settings: Settings,
        broker: &Broker,
        metrics: PrometheusHandle,
        tasks: &Tasks,
    ) -> Result<Self, UpError> {
        let folder = Folder::take(&settings.local.data_dir)?;
        let broker = match broker {
            Broker::Theirs => None,
            Broker::Own => {
                let options = broker_options(&settings.local, folder.path())?;
                let watch = Stopwatch::start();
                let broker = blocking(move || LocalBroker::start(&options)).await?;
                info!(
                    bootstrap = broker.bootstrap(),
                    pid = broker.pid(),
                    seconds = watch.seconds(),
                    "Kafka runs"
                );
                settings.kafka.bootstrap = broker.bootstrap();
                Some(Arc::new(broker))
            }
        };
        let started = Self::start_roles(&settings, broker.as_ref(), metrics, tasks).await;
        let (deps, running) = match started {
            Ok(started) => started,
            Err(error) => {
                tasks.cancel().cancel();
                let _first_error_is_told = tasks.finish(STOP).await;
                stop_broker(broker).await;
                return Err(error);
            }
        };
        let up = Self {
            running,
            deps,
            broker,
            stop_within: settings.indexer.drain_timeout + STOP,
            folder,
        };
        up.folder.say(&up.running)?;
        Ok(up)
    }

    async fn start_roles(
        settings: &Settings,
        broker: Option<&Arc<LocalBroker>>,
        metrics: PrometheusHandle,
        tasks: &Tasks,
    ) -> Result<(Deps, Running), UpError> {
        if let Some(broker) = broker {
            let (broker, cancel) = (broker.clone(), tasks.cancel().clone());
            tasks
                .spawn_thread("kafka watch", move || watch(&broker, &cancel))
                .map_err(UpError::Thread)?;
        }
        let roles = Roles::build(settings, metrics, tasks.clone()).await?;
        let indexer = roles.start(Role::Indexer, settings).await?;
        let query = roles.start(Role::Query, settings).await?;
        let gateway = roles.start(Role::Gateway, settings).await?;
        let running = Running {
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            kafka: settings.kafka.bootstrap.clone(),
            gateway,
            indexer,
            query,
        };
        Ok((roles.deps, running))
    }

    /// Where everything is.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// What the roles were given.
    pub fn deps(&self) -> &Deps {
        &self.deps
    }

    /// The data folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Waits until every role is ready and, with a Kafka of our own, every shard is served here.
    ///
    /// # Errors
    /// [`UpError::Cancelled`].
    pub async fn ready(&self) -> Result<(), UpError> {
        let watch = Stopwatch::start();
        let cancel = self.deps.tasks.cancel();
        let mut said = false;
        loop {
            let waiting = self.waiting();
            if waiting.is_empty() {
                return Ok(());
            }
            if watch.elapsed() > SLOW && !std::mem::replace(&mut said, true) {
                warn!(waiting = waiting.join("; "), "not ready yet");
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Err(UpError::Cancelled),
                () = tokio::time::sleep(READY_POLL) => {}
            }
        }
    }

    fn waiting(&self) -> Vec<String> {
        let mut waiting = self.deps.readiness.waiting();
        if self.broker.is_some() {
            let state = self.deps.control.snapshot();
            let own = self.running.indexer.grpc.to_string();
            waiting.extend(unserved(&state, &own));
        }
        waiting
    }

    /// Waits for the end, whoever asks for it, and stops everything in order.
    ///
    /// # Errors
    /// The first part that failed.
    pub async fn finish(self) -> Result<(), Failure> {
        let finished = self.deps.tasks.finish(self.stop_within).await;
        // Its clients go before the broker, so that none of them misses it.
        drop(self.deps);
        stop_broker(self.broker).await;
        drop(self.folder);
        finished
    }
}

impl fmt::Debug for Up {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Up")
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

/// Shards that no claim of this very process serves.
fn unserved(state: &ControlState, own_address: &str) -> Vec<String> {
    let mut unserved = Vec::new();
    for collection in state.collections.values() {
        for shard in (0..collection.partitions).map(Partition) {
            let claim = state.owner(&collection.name, shard);
            let served =
                claim.is_some_and(|(claim, _)| claim.ready && claim.address == own_address);
            if !served {
                unserved.push(format!(
                    "shard {}/{shard} is not served yet",
                    collection.name
                ));
            }
        }
    }
    unserved
}

fn broker_options(local: &LocalConfig, folder: &Path) -> Result<BrokerOptions, UpError> {
    let own: PathBuf = env::current_exe().map_err(UpError::Own)?;
    Ok(BrokerOptions {
        port: local.kafka_port,
        heap_mib: local.kafka_heap_mib,
        settings: local.kafka_settings.clone(),
        java: local.java.clone(),
        launcher: Some(vec![own.into(), CHILD_VERB.into(), "--".into()]),
        start_timeout: local.start_timeout,
        ..BrokerOptions::new(folder.join("kafka"))
    })
}

/// Ends everything if Kafka ends.
fn watch(broker: &LocalBroker, cancel: &CancellationToken) -> Result<(), BrokerEnded> {
    while !cancel.is_cancelled() {
        if let Some(ended) = broker.ended_within(WATCH) {
            return Err(BrokerEnded(ended));
        }
    }
    Ok(())
}

async fn stop_broker(broker: Option<Arc<LocalBroker>>) {
    let Some(broker) = broker else { return };
    // A task that did not end in time may hold it still; then it is killed with the process.
    if let Ok(broker) = Arc::try_unwrap(broker) {
        let in_order = blocking(move || broker.stop()).await;
        info!(in_order, "Kafka stopped");
    }
}
