//! `shoal demo`.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;

use super::Context;
use crate::demo::{self, Plan};

/// The guided tour.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Folder with the embeddings, texts, queries and exact neighbours
    #[arg(long, default_value = "tests/data/wordnet20k", value_name = "DIR")]
    data: PathBuf,
    /// Stay up at the end, with commands to try
    #[arg(long, env = "DEMO_STAY", value_parser = clap::builder::FalseyValueParser::new())]
    stay: bool,
    /// Tell nothing but the last line
    #[arg(long)]
    json_only: bool,
}

impl Demo {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        let metrics = context.quiet_logs()?;
        let plan = Plan {
            data: self.data.clone(),
            stay: self.stay,
            silent: self.json_only,
        };
        demo::run(&context.loaded, metrics, &plan).await?;
        Ok(ExitCode::SUCCESS)
    }
}
