//! What every role is handed when it starts.

use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusHandle;
use shoal_runtime::{clock::Clock, http::Readiness, tasks::Tasks};
use shoal_schemas::avro::WriterSchemas;

use crate::{Cluster, control::ControlHandle};

/// The world as one role sees it. Cloning shares everything.
#[derive(Clone)]
pub struct Deps {
    /// The Kafka cluster, or one in memory.
    pub cluster: Cluster,
    /// Definitions and ownership.
    pub control: ControlHandle,
    /// Wall and monotonic time.
    pub clock: Arc<dyn Clock>,
    /// Writer schemas by registry id.
    pub schemas: Arc<dyn WriterSchemas>,
    /// What `/readyz` asks.
    pub readiness: Readiness,
    /// What `/metrics` shows.
    pub metrics: PrometheusHandle,
    /// Where tasks are started and stopped.
    pub tasks: Tasks,
}
