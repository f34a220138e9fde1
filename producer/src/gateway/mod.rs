//! Writes for clients that do not speak Kafka: upsert and delete over gRPC and as JSON over HTTP.
//!
//! A call is checked as a whole before any of its records is sent, and answered once the log has
//! acknowledged all of them, one token a record. The gateway keeps nothing: a call that failed
//! half-way is repeated as it is, since writing a point twice is writing it once.
//!
//! Each record is written in the region where it may live (`residency/`): by this gateway, or by one of
//! that region, to which it is forwarded.
//!
//! Conditional and partial writes depend on the point as it is: they are forwarded to the owner of
//! its shard (`resolve.rs`), which answers for each point. The gateway
//! searches nothing, and makes no collections: `Collections` is a service of the query node alone,
//! so that there is one place that defines.

mod calls;
mod config;
mod grpc;
mod http;
mod http_if;
mod lines;
mod owners;
mod quota;
mod residency;
mod resolve;
mod sending;
mod status;
mod stream;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use shoal_runtime::{
    clock::Clock,
    grpc as runtime_grpc,
    http::bind,
    serving::{self, Incoming},
};
use shoal_schemas::v1::publish_server::PublishServer;
use shoal_topic::{Deps, control::ControlHandle, registry::Registry};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::info;

pub use calls::CallError;
pub use config::Config;
pub use quota::{QuotaConfig, QuotaError, Rate};
pub use residency::{RegionConfig, RegionError, ResidencyConfig, ResidencyError};

/// Silence of the control topic after which the gateway is not ready.
const SILENCE: Duration = Duration::from_secs(15);
/// How often the health service looks at what `/readyz` says.
const HEALTH_EVERY: Duration = Duration::from_secs(1);

/// Where a gateway listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC.
    pub grpc: SocketAddr,
    /// JSON, health and metrics.
    pub http: SocketAddr,
}

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken or not ours.
    #[error("gateway cannot listen")]
    Listen(#[source] io::Error),
    /// A thread.
    #[error("gateway gets no thread")]
    Thread(#[source] io::Error),
    /// The descriptors do not read.
    #[error("gateway cannot describe its services")]
    Reflection(#[source] tonic_reflection::server::Error),
}

impl StartError {
    /// What the caller should do about it.
    pub fn kind(&self) -> shoal_runtime::ErrorKind {
        match self {
            Self::Listen(_) => shoal_runtime::ErrorKind::Caller,
            Self::Thread(_) => shoal_runtime::ErrorKind::Retry,
            Self::Reflection(_) => shoal_runtime::ErrorKind::Bug,
        }
    }
}

/// Binds the listeners and starts to answer; runs until the tasks are cancelled.
///
/// With a registry values carry the id that it gives our schema for the collection's topic.
///
/// # Errors
/// [`StartError`].
pub async fn start(
    config: &Config,
    deps: &Deps,
    registry: Option<Arc<Registry>>,
) -> Result<Addresses, StartError> {
    crate::metrics::describe();
    let listener = bind(config.grpc_listen).await.map_err(StartError::Listen)?;
    let http = bind(config.http_listen).await.map_err(StartError::Listen)?;
    let addresses = Addresses {
        grpc: listener.local_addr().map_err(StartError::Listen)?,
        http: http.local_addr().map_err(StartError::Listen)?,
    };
    let (control, clock) = (deps.control.clone(), Arc::clone(&deps.clock));
    deps.readiness
        .set("gateway", move || ready(&control, &*clock));
    let calls = Arc::new(calls::Calls::new(config, deps, registry));

    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(shoal_schemas::v1::DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(StartError::Reflection)?;
    let (reporter, health) = tonic_health::server::health_reporter();
    let streams = stream::Streams {
        most: config.max_stream_calls(),
        cancel: deps.tasks.cancel().clone(),
    };
    let publish = PublishServer::new(grpc::Service::new(Arc::clone(&calls), streams))
        .max_decoding_message_size(config.max_body_bytes());
    let cancel = deps.tasks.cancel().clone();
    let serve = move |connections: Incoming, cancel: CancellationToken| {
        runtime_grpc::server()
            .add_service(health.clone())
            .add_service(reflection.clone())
            .add_service(publish.clone())
            .serve_with_incoming_shutdown(connections, cancel.cancelled_owned())
    };
    let threads = config.grpc_threads;
    serving::on_threads(&deps.tasks, "gateway grpc", listener, threads, serve)
        .map_err(StartError::Thread)?;

    let readiness = deps.readiness.clone();
    deps.tasks.spawn("gateway-health", async move {
        report_health(&reporter, || readiness.waiting().is_empty(), &cancel).await;
        Ok::<_, std::convert::Infallible>(())
    });

    let router = http::router(calls, config).merge(shoal_runtime::http::ops_router(
        deps.readiness.clone(),
        deps.metrics.clone(),
    ));
    let cancel = deps.tasks.cancel().clone();
    deps.tasks.spawn(
        "gateway-http",
        shoal_runtime::http::serve(http, router, cancel),
    );
    info!(grpc = %addresses.grpc, http = %addresses.http, "gateway listens");
    Ok(addresses)
}

/// Ready once the definitions are known, for as long as Kafka answers.
fn ready(control: &ControlHandle, clock: &dyn Clock) -> Result<(), String> {
    let caught_up_at = control.snapshot().caught_up_at;
    let heard = caught_up_at.ok_or("definitions are still being read from Kafka")?;
    let silence = clock.monotonic().saturating_sub(heard);
    if silence < SILENCE {
        Ok(())
    } else {
        Err(format!(
            "Kafka has not answered for {} s",
            silence.as_secs()
        ))
    }
}

/// Says over gRPC what `/readyz` says over HTTP.
async fn report_health(
    reporter: &HealthReporter,
    is_ready: impl Fn() -> bool,
    cancel: &CancellationToken,
) {
    let mut every = tokio::time::interval(HEALTH_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let status = if is_ready() && !cancel.is_cancelled() {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        for service in ["", "shoal.v1.Publish"] {
            reporter.set_service_status(service, status).await;
        }
        if cancel.is_cancelled() {
            break;
        }
        tokio::select! {
            () = cancel.cancelled() => {}
            _ = every.tick() => {}
        }
    }
}

#[cfg(test)]
mod alias_tests;
#[cfg(test)]
mod openapi_tests;
#[cfg(test)]
mod registry_tests;
#[cfg(test)]
mod resolve_tests;
#[cfg(test)]
mod stream_tests;
#[cfg(test)]
mod tests;
