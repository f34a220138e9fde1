//! Logs through `tracing`, numbers through `metrics` with a Prometheus exposition.

use std::{
    convert::Infallible,
    io::{self, IsTerminal},
    time::Duration,
};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    config::Validate,
    tasks::{Tasks, blocking},
};

/// How logs look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs and metrics.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Lines for people or JSON. Default text.
    pub format: LogFormat,
    /// What is logged, in `tracing`'s filter language. Default `info`.
    pub filter: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info".into(),
        }
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Vec<String>) {
        if let Err(error) = EnvFilter::try_new(&self.filter) {
            faults.push(format!("telemetry.filter `{}`: {error}", self.filter));
        }
    }
}

/// Why telemetry did not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// Something else set a logger or recorder already.
    #[error("telemetry is already set up in this process")]
    Twice,
    /// The filter does not parse.
    #[error("log filter `{filter}` does not parse")]
    Filter {
        /// As given.
        filter: String,
    },
}

/// Upper bounds of latency histograms, seconds: 100 us to 30 s.
const SECONDS_BUCKETS: [f64; 17] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0,
];

/// How often recorded times are summed up.
const UPKEEP: Duration = Duration::from_secs(5);

/// Sets up logs (to standard error) and metrics, once a process.
///
/// # Errors
/// [`TelemetryError`].
pub fn init(config: &Config) -> Result<PrometheusHandle, TelemetryError> {
    let filter = EnvFilter::try_new(&config.filter).map_err(|_| TelemetryError::Filter {
        filter: config.filter.clone(),
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let done = match config.format {
        LogFormat::Text => registry
            .with(
                fmt::layer()
                    .with_writer(io::stderr)
                    .with_ansi(io::stderr().is_terminal()),
            )
            .try_init(),
        LogFormat::Json => registry
            .with(
                fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(io::stderr),
            )
            .try_init(),
    };
    done.map_err(|_| TelemetryError::Twice)?;
    install_metrics()
}

/// Sums up recorded times now and then, whether or not anybody asks for `/metrics`: until then
/// each single one is kept.
pub fn keep_small(metrics: PrometheusHandle, tasks: &Tasks) {
    let cancel = tasks.cancel().clone();
    tasks.spawn("metrics upkeep", async move {
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok::<_, Infallible>(()),
                () = tokio::time::sleep(UPKEEP) => {}
            }
            let metrics = metrics.clone();
            blocking(move || metrics.run_upkeep()).await;
        }
    });
}

/// Sets up metrics alone.
///
/// # Errors
/// [`TelemetryError::Twice`].
pub fn install_metrics() -> Result<PrometheusHandle, TelemetryError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS_BUCKETS)
        .map_err(|_| TelemetryError::Twice)?
        .install_recorder()
        .map_err(|_| TelemetryError::Twice)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio_util::sync::CancellationToken;

    use super::{UPKEEP, keep_small};
    use crate::tasks::Tasks;

    #[tokio::test]
    async fn upkeep_goes_on_until_it_is_cancelled() {
        let tasks = Tasks::new(CancellationToken::new());
        keep_small(PrometheusBuilder::new().build_recorder().handle(), &tasks);
        tasks.cancel().cancel();
        assert!(
            tasks
                .finish(UPKEEP.min(Duration::from_secs(4)))
                .await
                .is_ok()
        );
    }
}
