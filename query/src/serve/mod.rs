//! The running role: listeners, services, and the tasks behind them.

mod collections;
pub(crate) mod driven;
mod plain;
mod search;
pub(crate) mod status;
pub(crate) mod stream;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusHandle;
use shoal_runtime::{
    ErrorKind,
    clock::Clock,
    grpc,
    http::{Readiness, bind, ops_router},
    serving::{self, Incoming},
    tasks::{Tasks, blocking},
};
use shoal_schemas::v1;
use shoal_topic::Deps;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};
use tonic_web::GrpcWebLayer;
use tracing::{debug, info};

use crate::{
    cache::{AddressError, Cache},
    client::{Channels, ShardClient as _},
    config::Config,
    coordinator::{Coordinator, HomeCluster, Limits},
    definitions::Definitions,
    edge::Edge,
    embedding::{ClientError, Embedding},
    front::{Directory, Searches},
    http,
    serve::{
        collections::CollectionsService, plain::PlainCalls, search::SearchService, stream::Streams,
    },
    shard_map::Maps,
    source::{self, Trouble},
};

/// How long to wait before a broker that did not tell its cluster's id is asked again.
const HOME_RETRY: Duration = Duration::from_secs(1);
/// Where a query node listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC.
    pub grpc: SocketAddr,
    /// JSON over HTTP, and what operators ask.
    pub http: SocketAddr,
}

/// Why a query node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("query node cannot listen")]
    Listen(#[source] io::Error),
    /// The client of the embedding endpoint cannot be made.
    #[error("no client for the embedding endpoint")]
    Embedding(#[source] ClientError),
    /// A thread.
    #[error("query node gets no thread")]
    Thread(#[source] io::Error),
    /// The address of Redis.
    #[error("no client for the store of kept answers")]
    Cache(#[source] AddressError),
    /// The address of a region.
    #[error("no client for a region: {detail}")]
    Region {
        /// What is wrong with it.
        detail: String,
    },
    /// The API does not describe itself; a build fault.
    #[error("reflection service refuses the API's descriptors: {detail}")]
    Reflection {
        /// What it says.
        detail: String,
    },
}

impl StartError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Listen(_) | Self::Cache(_) | Self::Region { .. } => ErrorKind::Caller,
            Self::Thread(_) => ErrorKind::Retry,
            Self::Reflection { .. } | Self::Embedding(_) => ErrorKind::Bug,
        }
    }
}

/// What an edge node is started with: no cluster.
#[derive(Clone)]
pub struct EdgeDeps {
    /// Wall and monotonic time.
    pub clock: Arc<dyn Clock>,
    /// What `/readyz` asks.
    pub readiness: Readiness,
    /// What `/metrics` shows.
    pub metrics: PrometheusHandle,
    /// Where tasks are started and stopped.
    pub tasks: Tasks,
}

/// Binds both listeners, starts every task of the role in `deps.tasks`, and returns the addresses.
///
/// It serves at once; until the shard map has been read it answers `UNAVAILABLE` and
/// `/readyz` says why.
///
/// gRPC is served by threads of its own, each with its own connections to the indexers, so that a
/// search stays on one thread from its request to its answer. HTTP is served by the runtime that
/// this is called in.
///
/// # Errors
/// [`StartError`].
pub async fn start(config: &Config, deps: &Deps) -> Result<Addresses, StartError> {
    let bound = Bound::bind(config).await?;
    let max_message_bytes = usize::try_from(config.max_message_bytes).unwrap_or(usize::MAX);
    let cache = Cache::start(&config.cache, deps.clock.clone(), &deps.tasks);
    let cache = cache.map_err(StartError::Cache)?;
    let connect_timeout = config.shard_connect_timeout;
    let channels = || Arc::new(Channels::new(connect_timeout, max_message_bytes));
    let for_http = channels();
    let for_grpc: Vec<_> = (0..config.grpc_threads.get()).map(|_| channels()).collect();
    let unclaimed: Vec<_> = for_grpc.iter().chain([&for_http]).cloned().collect();
    let home = HomeCluster::default();
    let (maps, trouble) = source::follow(&config.map, deps, &home, move |map| {
        let claimed = map.addresses();
        for channels in &unclaimed {
            channels.retain(&claimed);
        }
    });
    if !deps.control.is_absent() {
        learn_home(deps, home.clone());
    }
    ask_readiness(deps, &maps, trouble);
    let limits = Limits {
        max_k: config.max_k,
        max_batch_queries: config.max_batch_queries,
        max_get_ids: config.max_get_ids,
    };
    let coordinator = Coordinator::new(limits, maps.clone(), for_http, home)
        .admitting(config.admission.clone())
        .hedging(config.hedge.clone())
        .keeping(cache)
        .sharing(config.cache.share);
    let definitions = Definitions::new(deps.cluster.clone(), deps.control.clone(), maps.clone());
    let of_thread =
        |channels: Arc<Channels>| Searches::Shards(Arc::new(coordinator.through(channels)));
    let front = Front {
        by_thread: for_grpc.into_iter().map(of_thread).collect(),
        searches: Searches::Shards(Arc::new(coordinator)),
        directory: Directory::Own(definitions),
        readiness: deps.readiness.clone(),
        metrics: deps.metrics.clone(),
        tasks: deps.tasks.clone(),
    };
    let (addresses, health) = bound.serve(config, front)?;
    let cancel = deps.tasks.cancel().clone();
    deps.tasks.spawn("query health", async move {
        health.say(ServingStatus::NotServing).await;
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            () = maps.complete() => {}
        }
        health.say(ServingStatus::Serving).await;
        // Clients that watch are told to go elsewhere before the listener closes.
        cancel.cancelled().await;
        health.say(ServingStatus::NotServing).await;
        Ok::<_, Infallible>(())
    });
    info!(grpc = %addresses.grpc, http = %addresses.http, "query node listens");
    Ok(addresses)
}

/// The same for an edge node, which forwards to the regions of `config.edge` and needs no cluster.
///
/// It is ready while it reaches a region; one that may give old answers (`max_stale`) stays ready
/// once it has been.
///
/// # Errors
/// [`StartError`].
pub async fn start_edge(config: &Config, deps: &EdgeDeps) -> Result<Addresses, StartError> {
    let bound = Bound::bind(config).await?;
    let max_message_bytes = usize::try_from(config.max_message_bytes).unwrap_or(usize::MAX);
    let cache = Cache::start(&config.cache, deps.clock.clone(), &deps.tasks);
    let cache = cache.map_err(StartError::Cache)?;
    let edge = Edge::start(
        &config.edge,
        config.shard_connect_timeout,
        max_message_bytes,
        cache,
        config.cache.share,
        &deps.tasks,
    );
    let edge = edge.map_err(|detail| StartError::Region { detail })?;
    let searches = Searches::Regions(edge.clone());
    let front = Front {
        by_thread: vec![searches.clone(); config.grpc_threads.get()],
        searches,
        directory: Directory::Regions {
            edge: edge.clone(),
            patience: config.default_deadline,
        },
        readiness: deps.readiness.clone(),
        metrics: deps.metrics.clone(),
        tasks: deps.tasks.clone(),
    };
    let is_ready = Arc::new(AtomicBool::new(false));
    let told = is_ready.clone();
    deps.readiness.set("query", move || {
        let is_ready = told.load(Ordering::Relaxed);
        is_ready
            .then_some(())
            .ok_or_else(|| "no region answers".into())
    });
    let (addresses, health) = bound.serve(config, front)?;
    let cancel = deps.tasks.cancel().clone();
    deps.tasks.spawn("query health", async move {
        health.say(ServingStatus::NotServing).await;
        let mut reaches_any = false;
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                () = edge.changes(reaches_any) => {}
            }
            reaches_any = edge.reaches_any();
            if reaches_any || !edge.bridges() {
                is_ready.store(reaches_any, Ordering::Relaxed);
                health
                    .say(match reaches_any {
                        true => ServingStatus::Serving,
                        false => ServingStatus::NotServing,
                    })
                    .await;
            }
        }
        health.say(ServingStatus::NotServing).await;
        Ok::<_, Infallible>(())
    });
    info!(grpc = %addresses.grpc, http = %addresses.http, "edge node listens");
    Ok(addresses)
}

/// What is served, and with what.
struct Front {
    searches: Searches,
    /// One a thread that serves gRPC.
    by_thread: Vec<Searches>,
    directory: Directory,
    readiness: Readiness,
    metrics: PrometheusHandle,
    tasks: Tasks,
}

/// What can fail before anything is started.
struct Bound {
    grpc: TcpListener,
    http: TcpListener,
    addresses: Addresses,
    embedding: Option<Embedding>,
    reflection: Routes,
}

impl Bound {
    async fn bind(config: &Config) -> Result<Self, StartError> {
        let grpc = bind(config.grpc_listen).await.map_err(StartError::Listen)?;
        let http = bind(config.http_listen).await.map_err(StartError::Listen)?;
        let addresses = Addresses {
            grpc: grpc.local_addr().map_err(StartError::Listen)?,
            http: http.local_addr().map_err(StartError::Listen)?,
        };
        let [reflection_v1, reflection_v1alpha] = [descriptors(), descriptors()];
        let refused = |error: tonic_reflection::server::Error| StartError::Reflection {
            detail: error.to_string(),
        };
        let reflection_v1 = reflection_v1.build_v1().map_err(refused)?;
        let reflection_v1alpha = reflection_v1alpha.build_v1alpha().map_err(refused)?;
        Ok(Self {
            grpc,
            http,
            addresses,
            embedding: Embedding::new(&config.embedding).map_err(StartError::Embedding)?,
            reflection: Routes::new(reflection_v1).add_service(reflection_v1alpha),
        })
    }

    /// Serves both ports.
    fn serve(self, config: &Config, front: Front) -> Result<(Addresses, Health), StartError> {
        let max_message_bytes = usize::try_from(config.max_message_bytes).unwrap_or(usize::MAX);
        let (health, health_service) = tonic_health::server::health_reporter();
        let (default_deadline, most) = (config.default_deadline, config.max_stream_searches);
        let streams = Streams {
            most: usize::try_from(most).unwrap_or(usize::MAX),
            cancel: front.tasks.cancel().clone(),
        };
        let streams_over_http = streams.clone();
        let cors = http::cors(&config.cors_origins);
        let collections = CollectionsService::new(front.directory.clone());
        let collections = v1::collections_server::CollectionsServer::new(collections);
        let services = self
            .reflection
            .add_service(health_service)
            .add_service(collections);
        let unserved = Arc::new(Mutex::new(front.by_thread));
        let serve = move |connections: Incoming, cancel: CancellationToken| {
            let mut unserved = unserved.lock().unwrap_or_else(PoisonError::into_inner);
            let searches = unserved.pop().expect("there are as many as threads");
            let search = SearchService::new(searches, default_deadline, streams.clone());
            let search = v1::search_server::SearchServer::new(search)
                .max_decoding_message_size(max_message_bytes)
                .max_encoding_message_size(max_message_bytes);
            grpc::server()
                // What grpc-web comes over; its layer leaves plain gRPC as it is.
                .accept_http1(true)
                .layer(PlainCalls(search.clone()))
                .layer(cors.clone())
                .layer(GrpcWebLayer::new())
                .add_routes(services.clone())
                .add_service(search)
                .serve_with_incoming_shutdown(connections, cancel.cancelled_owned())
        };
        let threads = config.grpc_threads;
        serving::on_threads(&front.tasks, "query grpc", self.grpc, threads, serve)
            .map_err(StartError::Thread)?;
        let api = http::Api {
            coordinator: front.searches,
            definitions: front.directory,
            default_deadline,
            embedding: self.embedding,
            max_body_bytes: max_message_bytes,
            streams: streams_over_http,
        };
        let router = http::router(api)
            .merge(ops_router(front.readiness, front.metrics))
            .layer(http::cors(&config.cors_origins));
        let (http, cancel) = (self.http, front.tasks.cancel().clone());
        front.tasks.spawn("query http", async move {
            shoal_runtime::http::serve(http, router, cancel).await
        });
        Ok((self.addresses, Health(health)))
    }
}

/// Tells clients that watch whether the node serves.
struct Health(HealthReporter);

impl Health {
    async fn say(&self, status: ServingStatus) {
        for service in SERVICES {
            self.0.set_service_status(service, status).await;
        }
    }
}

/// Services whose health is told; the empty name is the node as a whole.
const SERVICES: [&str; 3] = [
    "",
    v1::search_server::SERVICE_NAME,
    v1::collections_server::SERVICE_NAME,
];

fn descriptors() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// Asks the broker for its cluster's id until it tells.
fn learn_home(deps: &Deps, home: HomeCluster) {
    let (admin, cancel) = (deps.cluster.admin.clone(), deps.tasks.cancel().clone());
    deps.tasks.spawn("query cluster id", async move {
        while !cancel.is_cancelled() {
            let admin = admin.clone();
            // A call that no broker answers is left behind by a stop.
            let asked = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                asked = blocking(move || admin.cluster_id()) => asked,
            };
            match asked {
                Ok(id) => {
                    // Nobody else sets it.
                    drop(home.set(id));
                    break;
                }
                Err(error) => debug!(error = %error, "cluster id is not known yet"),
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(HOME_RETRY) => {}
            }
        }
        Ok::<_, Infallible>(())
    });
}

fn ask_readiness(deps: &Deps, maps: &Maps, trouble: Trouble) {
    let (maps, why) = (maps.clone(), trouble.clone());
    deps.readiness.set("query", move || {
        if maps.now().is_complete() {
            return Ok(());
        }
        Err(match why.told() {
            Some(why) => format!("the shard map cannot be read: {why}"),
            None => "the control topic has not been read to its end yet".into(),
        })
    });
    // A map that was good goes on serving: what is wrong with its successor is told beside.
    deps.readiness.note("query", move || {
        let why = trouble.told()?;
        Some(format!("the shard map is the last good one: {why}"))
    });
}
