//! What every role is handed, built from the settings, and the roles' start.
//!
//! Nothing here waits long for a broker: the roles listen all the same and `/readyz` says what is
//! missing. An absent broker is told once in the log, and what needs it goes on trying.

use std::{convert::Infallible, sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusHandle;
use shoal_runtime::{
    ErrorKind, chain,
    clock::{Clock, System},
    http::Readiness,
    tasks::{Tasks, blocking},
    telemetry,
};
use shoal_schemas::avro::{NoRegistry, WriterSchemas};
use shoal_topic::{
    Cluster, Deps,
    control::{ControlHandle, ControlLog, EnsureError},
    kafka,
    registry::{Registry, RegistryError},
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{config::Settings, running::Listens};

/// How long to wait before a broker or registry that did not answer is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// How long a broker that is there may take to make the control topic, before it is followed
/// all the same.
const FIRST_MADE: Duration = Duration::from_secs(2);

/// Which role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes writes.
    Gateway,
    /// Holds shards.
    Indexer,
    /// Answers searches.
    Query,
}

/// Why the roles do not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The Kafka clients.
    #[error("cannot talk to Kafka")]
    Kafka(#[from] kafka::ConfigError),
    /// The registry's client, or what it says of our schema.
    #[error("cannot use the schema registry")]
    Registry(#[from] RegistryError),
    /// A thread.
    #[error("cannot follow the control topic")]
    Thread(#[source] std::io::Error),
    /// The gateway.
    #[error(transparent)]
    Gateway(#[from] shoal_producer::gateway::StartError),
    /// The indexer.
    #[error(transparent)]
    Indexer(#[from] shoal_indexer::StartError),
    /// The query node.
    #[error(transparent)]
    Query(#[from] shoal_query::StartError),
    /// Cancelled before it was up.
    #[error("stopped before everything was up")]
    Cancelled,
}

/// What the roles of one process share.
pub struct Roles {
    /// What each role is given.
    pub deps: Deps,
    registry: Option<Arc<Registry>>,
}

impl Roles {
    /// Makes the clients, and starts what follows the control topic.
    ///
    /// # Errors
    /// [`StartError::Kafka`], [`StartError::Registry`], [`StartError::Thread`].
    pub async fn build(
        settings: &Settings,
        metrics: PrometheusHandle,
        tasks: Tasks,
    ) -> Result<Self, StartError> {
        let clock = System::shared();
        let cluster = kafka::connect(&settings.kafka)?;
        let registry = connect_registry(settings, &clock)?;
        let schemas: Arc<dyn WriterSchemas> = match &registry {
            Some(registry) => registry.clone(),
            None => Arc::new(NoRegistry),
        };
        let made = make_control_topic(&cluster, &tasks, &settings.kafka.bootstrap);
        // Following a topic that is about to be made would begin with a complaint.
        let _made_later = tokio::time::timeout(FIRST_MADE, made).await;
        let control = ControlLog::spawn(&cluster, &tasks, clock.clone());
        let control = control.map_err(StartError::Thread)?;
        telemetry::keep_small(metrics.clone(), &tasks);
        let deps = Deps {
            cluster,
            control,
            clock,
            schemas,
            readiness: Readiness::default(),
            metrics,
            tasks,
        };
        Ok(Self { deps, registry })
    }

    /// What a query node is given that learns its shard map without Kafka, or needs none.
    pub fn without_kafka(metrics: PrometheusHandle, tasks: Tasks) -> Self {
        telemetry::keep_small(metrics.clone(), &tasks);
        let deps = Deps {
            cluster: Cluster::absent(),
            control: ControlHandle::absent(),
            clock: System::shared(),
            schemas: Arc::new(NoRegistry),
            readiness: Readiness::default(),
            metrics,
            tasks,
        };
        Self {
            deps,
            registry: None,
        }
    }

    /// Starts a role and returns where it listens.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(&self, role: Role, settings: &Settings) -> Result<Listens, StartError> {
        Ok(match role {
            Role::Gateway => {
                let registry = self.registry.clone();
                let gateway = &settings.gateway;
                let bound = shoal_producer::gateway::start(gateway, &self.deps, registry).await?;
                Listens {
                    grpc: bound.grpc,
                    http: bound.http,
                }
            }
            Role::Indexer => {
                let bound = shoal_indexer::start(&settings.indexer, &self.deps).await?;
                Listens {
                    grpc: bound.grpc,
                    http: bound.http,
                }
            }
            Role::Query if settings.query.edge.is_edge() => {
                let deps = shoal_query::EdgeDeps {
                    clock: self.deps.clock.clone(),
                    readiness: self.deps.readiness.clone(),
                    metrics: self.deps.metrics.clone(),
                    tasks: self.deps.tasks.clone(),
                };
                let bound = shoal_query::start_edge(&settings.query, &deps).await?;
                Listens {
                    grpc: bound.grpc,
                    http: bound.http,
                }
            }
            Role::Query => {
                let bound = shoal_query::start(&settings.query, &self.deps).await?;
                Listens {
                    grpc: bound.grpc,
                    http: bound.http,
                }
            }
        })
    }
}

/// The registry's client, if one is set.
///
/// # Errors
/// [`RegistryError`] for an address that is none.
pub fn connect_registry(
    settings: &Settings,
    clock: &Arc<dyn Clock>,
) -> Result<Option<Arc<Registry>>, RegistryError> {
    let url = settings.registry.url.as_deref();
    url.map(|url| Registry::new(url, clock.clone()).map(Arc::new))
        .transpose()
}

/// Makes the control topic as soon as there is a broker; one that is unfit ends the process.
///
/// What it returns is woken when that has ended, either way.
fn make_control_topic(
    cluster: &Cluster,
    tasks: &Tasks,
    bootstrap: &str,
) -> oneshot::Receiver<Infallible> {
    let (cluster, cancel) = (cluster.clone(), tasks.cancel().clone());
    let bootstrap = bootstrap.to_owned();
    let (ended, made) = oneshot::channel();
    tasks.spawn("control topic", async move {
        // Dropped with the task, which is all the other side waits for.
        let _ended: oneshot::Sender<Infallible> = ended;
        let mut said = false;
        while !cancel.is_cancelled() {
            let asked = cluster.clone();
            // A call that no broker answers is left behind by a stop.
            let made = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                made = blocking(move || ControlLog::ensure(&asked, None)) => made,
            };
            match made {
                Ok(()) if said => {
                    info!(bootstrap, "Kafka answers");
                    break;
                }
                Ok(()) => break,
                Err(error) if error.kind() == ErrorKind::Retry => {
                    if !std::mem::replace(&mut said, true) {
                        warn!(bootstrap, error = %chain(&error), "waiting for Kafka");
                    }
                }
                Err(error) => return Err(error),
            }
            if pause(&cancel).await.is_err() {
                break;
            }
        }
        Ok::<_, EnsureError>(())
    });
    made
}

/// Waits a moment; `Err` once cancelled.
async fn pause(cancel: &CancellationToken) -> Result<(), ()> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(()),
        () = tokio::time::sleep(RETRY) => Ok(()),
    }
}

/// Cancels everything at the first SIGINT or SIGTERM.
///
/// # Errors
/// The system's own, if signals cannot be listened for.
pub fn stop_on_signals(tasks: &Tasks) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let cancel = tasks.cancel().clone();
    tasks.spawn("signals", async move {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            _ = interrupt.recv() => info!("interrupted, stopping"),
            _ = terminate.recv() => info!("asked to end, stopping"),
        }
        cancel.cancel();
        Ok::<_, Infallible>(())
    });
    Ok(())
}
