//! `shoal up`.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use shoal_runtime::{tasks::Tasks, telemetry};
use tokio_util::sync::CancellationToken;

use super::{Context, in_order};
use crate::{
    roles::stop_on_signals,
    up::{self, Broker},
};

/// Flags of `shoal up`.
#[derive(Debug, Args)]
pub(super) struct Up {
    /// Use this Kafka, host:port with commas between, instead of starting one
    #[arg(long, value_name = "BROKERS")]
    kafka: Option<String>,
    /// Listen on free ports instead of the configured ones
    #[arg(long)]
    any_port: bool,
    /// Check the settings, tell every fault, start nothing
    #[arg(long)]
    check: bool,
}

impl Up {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        let broker = match &self.kafka {
            Some(_) => Broker::Theirs,
            None => Broker::Own,
        };
        let mut settings = up::settings(&context.loaded, &broker);
        if let Some(bootstrap) = &self.kafka {
            settings.kafka.bootstrap.clone_from(bootstrap);
        }
        if self.any_port {
            settings.any_port();
        }
        super::role::check(&settings)?;
        if self.check {
            return in_order();
        }
        let metrics = telemetry::init(&settings.telemetry)?;
        let tasks = Tasks::new(CancellationToken::new());
        stop_on_signals(&tasks)?;
        let up = up::Up::start(settings, &broker, metrics, &tasks).await?;
        if up.ready().await.is_ok() {
            tell(&up)?;
        }
        up.finish().await?;
        Ok(ExitCode::SUCCESS)
    }
}

fn tell(up: &up::Up) -> io::Result<()> {
    let running = up.running();
    let mut out = io::stdout().lock();
    writeln!(out, "ready, data in {}", up.folder().display())?;
    writeln!(out, "  kafka    {}", running.kafka)?;
    for (role, listens) in [
        ("gateway", running.gateway),
        ("indexer", running.indexer),
        ("query", running.query),
    ] {
        writeln!(
            out,
            "  {role:8} grpc {}  http {}",
            listens.grpc, listens.http
        )?;
    }
    out.flush()
}
