//! What every role answers over HTTP: `/healthz`, `/readyz`, `/metrics`.

use std::{
    collections::BTreeMap,
    future::IntoFuture as _,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::serving;

/// Says whether a part is ready: `Err` tells what it still waits for.
type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Something to tell beside.
type Note = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// What has to hold before `/readyz` says yes. Cloning shares it.
#[derive(Clone, Default)]
pub struct Readiness {
    checks: Arc<Mutex<BTreeMap<String, Check>>>,
    notes: Arc<Mutex<BTreeMap<String, Note>>>,
}

impl Readiness {
    /// Adds or replaces the check of one part. It is asked at every call and must not block.
    pub fn set(
        &self,
        part: impl Into<String>,
        check: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        self.lock().insert(part.into(), Box::new(check));
    }

    /// Adds or replaces what one part tells beside a yes. It is asked at every call and must not
    /// block.
    pub fn note(
        &self,
        part: impl Into<String>,
        note: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) {
        let mut notes = self.notes.lock().expect("a note does not panic");
        notes.insert(part.into(), Box::new(note));
    }

    /// What is told beside a yes, one line a part.
    pub fn noted(&self) -> Vec<String> {
        let notes = self.notes.lock().expect("a note does not panic");
        let told = notes
            .iter()
            .filter_map(|(part, note)| note().map(|note| format!("{part}: {note}")));
        told.collect()
    }

    /// Takes the check of one part away.
    pub fn remove(&self, part: &str) {
        self.lock().remove(part);
    }

    /// What is not ready yet, one line a part.
    pub fn waiting(&self) -> Vec<String> {
        let checks = self.lock();
        let failed = checks
            .iter()
            .filter_map(|(part, check)| check().err().map(|why| format!("{part}: {why}")));
        failed.collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Check>> {
        self.checks
            .lock()
            .expect("a readiness check does not panic")
    }
}

#[derive(Clone)]
struct Ops {
    readiness: Readiness,
    metrics: PrometheusHandle,
}

/// The three routes.
pub fn ops_router(readiness: Readiness, metrics: PrometheusHandle) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route(
            "/metrics",
            get(|State(ops): State<Ops>| async move { ops.metrics.render() }),
        )
        .with_state(Ops { readiness, metrics })
}

async fn readyz(State(ops): State<Ops>) -> (StatusCode, String) {
    let waiting = ops.readiness.waiting();
    if waiting.is_empty() {
        let mut told = vec!["ready".to_owned()];
        told.extend(ops.readiness.noted());
        (StatusCode::OK, told.join("\n") + "\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, waiting.join("\n") + "\n")
    }
}

/// Binds a listening socket.
///
/// # Errors
/// The system's own, with the address.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
    })
}

/// Serves `router` until cancelled, then lets open requests end, for [`serving::DRAIN`] at most.
///
/// # Errors
/// The listener's own.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    cancel: CancellationToken,
) -> io::Result<()> {
    let ended = cancel.clone().cancelled_owned();
    let serving = axum::serve(listener, router).with_graceful_shutdown(ended);
    serving::drained(serving.into_future(), &cancel, serving::DRAIN).await
}
