//! The running role: listeners, services, and the tasks behind them.

mod collections;
mod search;
pub(crate) mod status;
mod stream;

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use shoal_runtime::{
    ErrorKind,
    grpc::incoming,
    http::{bind, ops_router},
    tasks::blocking,
};
use shoal_schemas::v1;
use shoal_topic::Deps;
use tonic::transport::Server;
use tonic_web::GrpcWebLayer;
use tracing::{debug, info};

use crate::{
    client::{Channels, ShardClient as _},
    config::Config,
    coordinator::{Coordinator, HomeCluster, Limits},
    definitions::Definitions,
    embedding::{ClientError, Embedding},
    http,
    serve::{collections::CollectionsService, search::SearchService, stream::Streams},
    shard_map::Maps,
};

/// How long to wait before a broker that did not tell its cluster's id is asked again.
const HOME_RETRY: Duration = Duration::from_secs(1);
/// How often an idle caller is asked for a sign of life.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Requests of one connection at a time.
const MAX_STREAMS: u32 = 1000;

/// HTTP/2 flow control of one request and of a connection, bytes: a batch of a thousand vectors
/// comes in without waiting for a window update.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

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
            Self::Listen(_) => ErrorKind::Caller,
            Self::Reflection { .. } | Self::Embedding(_) => ErrorKind::Bug,
        }
    }
}

/// Binds both listeners, starts every task of the role in `deps.tasks`, and returns the addresses.
///
/// It serves at once; until the control topic has been read it answers `UNAVAILABLE` and
/// `/readyz` says why.
///
/// # Errors
/// [`StartError`]; nothing has been started then.
pub async fn start(config: &Config, deps: &Deps) -> Result<Addresses, StartError> {
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

    let embedding = Embedding::new(&config.embedding).map_err(StartError::Embedding)?;
    let max_message_bytes = usize::try_from(config.max_message_bytes).unwrap_or(usize::MAX);
    let channels = Arc::new(Channels::new(
        config.shard_connect_timeout,
        max_message_bytes,
    ));
    let unclaimed = channels.clone();
    let maps = Maps::follow(&deps.control, &deps.tasks, move |map| {
        unclaimed.retain(&map.addresses());
    });
    let home = HomeCluster::default();
    learn_home(deps, home.clone());
    ask_readiness(deps, &maps);
    let limits = Limits {
        max_k: config.max_k,
        max_batch_queries: config.max_batch_queries,
        max_get_ids: config.max_get_ids,
    };
    let coordinator = Coordinator::new(limits, maps.clone(), channels, home)
        .admitting(config.admission.clone())
        .hedging(config.hedge.clone());
    let coordinator = Arc::new(coordinator);
    let definitions = Definitions::new(deps.cluster.clone(), deps.control.clone(), maps.clone());

    let (health, health_service) = tonic_health::server::health_reporter();
    let cancel = deps.tasks.cancel().clone();
    deps.tasks.spawn("query health", async move {
        for service in SERVICES {
            let not_yet = tonic_health::ServingStatus::NotServing;
            health.set_service_status(service, not_yet).await;
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            () = maps.complete() => {}
        }
        for service in SERVICES {
            let ready = tonic_health::ServingStatus::Serving;
            health.set_service_status(service, ready).await;
        }
        // Clients that watch are told to go elsewhere before the listener closes.
        cancel.cancelled().await;
        for service in SERVICES {
            let gone = tonic_health::ServingStatus::NotServing;
            health.set_service_status(service, gone).await;
        }
        Ok::<_, Infallible>(())
    });
    let streams = Streams {
        most: usize::try_from(config.max_stream_searches).unwrap_or(usize::MAX),
        cancel: deps.tasks.cancel().clone(),
    };
    let search = SearchService::new(coordinator.clone(), config.default_deadline, streams);
    let router = Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        // What grpc-web comes over; its layer leaves plain gRPC as it is.
        .accept_http1(true)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .layer(http::cors(&config.cors_origins))
        .layer(GrpcWebLayer::new())
        .add_service(
            v1::search_server::SearchServer::new(search)
                .max_decoding_message_size(max_message_bytes)
                .max_encoding_message_size(max_message_bytes),
        )
        .add_service(v1::collections_server::CollectionsServer::new(
            CollectionsService::new(definitions.clone()),
        ))
        .add_service(health_service)
        .add_service(reflection_v1)
        .add_service(reflection_v1alpha);
    let cancel = deps.tasks.cancel().clone();
    deps.tasks.spawn("query grpc", async move {
        router
            .serve_with_incoming_shutdown(incoming(grpc), cancel.cancelled_owned())
            .await
    });
    let api = http::Api {
        coordinator,
        definitions,
        default_deadline: config.default_deadline,
        embedding,
    };
    let router = http::router(api, max_message_bytes)
        .merge(ops_router(deps.readiness.clone(), deps.metrics.clone()))
        .layer(http::cors(&config.cors_origins));
    let cancel = deps.tasks.cancel().clone();
    deps.tasks.spawn("query http", async move {
        shoal_runtime::http::serve(http, router, cancel).await
    });
    info!(grpc = %addresses.grpc, http = %addresses.http, "query node listens");
    Ok(addresses)
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

fn ask_readiness(deps: &Deps, maps: &Maps) {
    let maps = maps.clone();
    deps.readiness.set("query", move || {
        if maps.now().is_complete() {
            Ok(())
        } else {
            Err("the control topic has not been read to its end yet".into())
        }
    });
}
