//! The W3C trace context that a task works under, for the records it publishes.

use std::future::Future;

use shoal_schemas::headers::TraceParent;

tokio::task_local! {
    static CURRENT: TraceParent;
}

/// Runs `work` under a trace, if there is one.
pub async fn scope<T>(parent: Option<TraceParent>, work: impl Future<Output = T>) -> T {
    match parent {
        Some(parent) => CURRENT.scope(parent, work).await,
        None => work.await,
    }
}

/// The trace of the current task.
pub fn current() -> Option<TraceParent> {
    CURRENT.try_with(|parent| *parent).ok()
}
