//! Starting an indexer: folders, listeners, the node, the service.

use std::{fs, io, net::SocketAddr, path::PathBuf, sync::Arc};

use shoal_runtime::{
    grpc, http,
    serving::{self, CountCalls, Incoming},
};
use shoal_schemas::v1;
use shoal_topic::{Deps, etcd::Announcer};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    metrics,
    node::Node,
    resolve::Resolver,
    serve::Service,
    shard::rescue::Snapshots,
    snapshot::{Settings, bucket::Bucket, store::Store, taker::Taker, url::OpenError},
};

/// Largest request and answer, bytes: 10,000 vectors of 4096 components would not fit, a batch does.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Where a role listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC.
    pub grpc: SocketAddr,
    /// Health, readiness, metrics.
    pub http: SocketAddr,
}

/// Why an indexer does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener.
    #[error("indexer cannot listen")]
    Listen(#[source] io::Error),
    /// The data folder.
    #[error("indexer cannot use data_dir `{}`", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's own.
        #[source]
        source: io::Error,
    },
    /// Where snapshots are kept.
    #[error("indexer cannot open its object store")]
    Snapshots(#[source] OpenError),
    /// A thread.
    #[error("indexer gets no thread")]
    Thread(#[source] io::Error),
    /// The reflection service.
    #[error("indexer cannot describe its service")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// Starts an indexer and returns where it listens.
///
/// # Errors
/// [`StartError`]; nothing runs then.
pub async fn start(config: &Config, deps: &Deps) -> Result<Addresses, StartError> {
    metrics::describe();
    fs::create_dir_all(&config.data_dir).map_err(|source| StartError::Folder {
        path: config.data_dir.clone(),
        source,
    })?;
    let listener = http::bind(config.grpc_listen)
        .await
        .map_err(StartError::Listen)?;
    let ops = http::bind(config.http_listen)
        .await
        .map_err(StartError::Listen)?;
    let addresses = Addresses {
        grpc: listener.local_addr().map_err(StartError::Listen)?,
        http: ops.local_addr().map_err(StartError::Listen)?,
    };
    let advertised = config
        .advertise
        .clone()
        .unwrap_or_else(|| addresses.grpc.to_string());
    let mut node = Node::new(config.clone(), deps.clone(), advertised);
    let store: Option<Arc<dyn Store>> = match &config.snapshot.url {
        None => None,
        Some(url) => {
            let opened = Bucket::open(url).map_err(StartError::Snapshots)?;
            Some(Arc::new(opened))
        }
    };
    let settings = Settings::default();
    if let Some(store) = &store {
        node = node.with_snapshots(Snapshots {
            store: store.clone(),
            settings,
            runtime: tokio::runtime::Handle::current(),
        });
    }
    let search_threads = config.engine.search_threads.get();
    let (resolver, resolving) =
        Resolver::new(deps.cluster.clone(), deps.clock.clone(), config.resolves);
    let mut service = Service::new(node.clone(), search_threads, config.search_queue, resolver);
    if let Some(store) = store {
        let source = Arc::new(node.clone());
        let (clock, keep) = (deps.clock.clone(), config.snapshot.keep);
        let taker = Taker::new(store, source, clock, settings, keep);
        service = service.with_snapshots(taker.clone());
        if let Some(every) = config.snapshot.every {
            let cancel = deps.tasks.cancel().clone();
            deps.tasks.spawn("snapshots", async move {
                taker.run(every, &cancel).await;
                Ok::<_, std::convert::Infallible>(())
            });
        }
    }
    let upkeep = v1::shard_upkeep_server::ShardUpkeepServer::new(service.clone());
    let service = v1::shard_server::ShardServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::DESCRIPTOR_SET)
        .build_v1()
        .map_err(StartError::Reflection)?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health
        .set_serving::<v1::shard_server::ShardServer<Service>>()
        .await;
    node.start().map_err(StartError::Thread)?;
    let etcd = &config.announce.etcd;
    if !etcd.endpoints.is_empty() {
        let announcer = Announcer {
            node: config.node.clone(),
            config: etcd.clone(),
            control: deps.control.clone(),
            cluster: deps.cluster.clone(),
        };
        announcer.spawn(&deps.tasks);
    }
    let cancel = deps.tasks.cancel().clone();
    deps.tasks.spawn("indexer resolves", {
        let cancel = cancel.clone();
        async move {
            resolving.run(cancel).await;
            Ok::<_, std::convert::Infallible>(())
        }
    });
    let serve = move |connections: Incoming, cancel: CancellationToken| {
        grpc::server()
            .layer(CountCalls)
            .add_service(service.clone())
            .add_service(upkeep.clone())
            .add_service(health_service.clone())
            .add_service(reflection.clone())
            .serve_with_incoming_shutdown(connections, cancel.cancelled_owned())
    };
    let threads = config.engine.search_threads;
    serving::on_threads(&deps.tasks, "indexer grpc", listener, threads, serve)
        .map_err(StartError::Thread)?;
    let router = http::ops_router(deps.readiness.clone(), deps.metrics.clone());
    deps.tasks
        .spawn("indexer http", http::serve(ops, router, cancel));
    Ok(addresses)
}
