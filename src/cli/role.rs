//! `shoal gateway`, `shoal indexer`, `shoal query`: one role, on a Kafka that is there.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use shoal_query::source::Source;
use shoal_runtime::{
    config::{ConfigError, Validate},
    tasks::Tasks,
    telemetry,
};
use tokio_util::sync::CancellationToken;

use super::{Context, in_order};
use crate::{
    config::Settings,
    roles::{Role, Roles, stop_on_signals},
};

/// Longest a role may take to stop, beyond the indexer's own limit.
const STOP: Duration = Duration::from_secs(5);

/// Flags of a role.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// Kafka's brokers, host:port with commas between [default: kafka.bootstrap of the settings]
    #[arg(long, value_name = "BROKERS")]
    kafka: Option<String>,
    /// Check the settings, tell every fault, start nothing
    #[arg(long)]
    check: bool,
}

impl Run {
    pub(super) async fn run(&self, role: Role, context: &Context) -> anyhow::Result<ExitCode> {
        let mut settings = context.loaded.settings.clone();
        if let Some(bootstrap) = &self.kafka {
            settings.kafka.bootstrap.clone_from(bootstrap);
        }
        check(&settings)?;
        if self.check {
            return in_order();
        }
        let metrics = telemetry::init(&settings.telemetry)?;
        let tasks = Tasks::new(CancellationToken::new());
        stop_on_signals(&tasks)?;
        let query = &settings.query;
        let learns_elsewhere = query.edge.is_edge() || query.map.source != Source::Control;
        let needs_kafka = role != Role::Query || !learns_elsewhere;
        let roles = if needs_kafka {
            Roles::build(&settings, metrics, tasks.clone()).await?
        } else {
            Roles::without_kafka(metrics, tasks.clone())
        };
        let listens = roles.start(role, &settings).await?;
        {
            let mut out = io::stdout().lock();
            let name = format!("{role:?}").to_lowercase();
            writeln!(out, "{name} grpc {}  http {}", listens.grpc, listens.http)?;
            out.flush()?;
        }
        let finished = tasks.finish(settings.indexer.drain_timeout + STOP).await;
        drop(roles);
        finished?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Checks settings that flags may have changed since they were read.
pub(super) fn check(settings: &Settings) -> Result<(), ConfigError> {
    let mut faults = Vec::new();
    settings.validate(&mut faults);
    if faults.is_empty() {
        Ok(())
    } else {
        Err(ConfigError::Faults { faults })
    }
}
