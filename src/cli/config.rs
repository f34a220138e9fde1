//! `shoal config`: what the settings are, and whether they are in order.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use shoal_runtime::config::ConfigError;

use super::{Context, in_order};
use crate::config::env_names;

/// Flags of `shoal config`.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct Show {
    /// Tell every fault of the file and the environment
    #[arg(long)]
    check: bool,
    /// Print the names of all variables that set something
    #[arg(long)]
    env_names: bool,
    /// Print all settings as TOML, secrets starred out (what happens without a flag, too)
    #[arg(long)]
    print: bool,
}

impl Show {
    pub(super) fn run(&self, context: Result<Context, ConfigError>) -> anyhow::Result<ExitCode> {
        let mut out = io::stdout().lock();
        if self.env_names {
            for name in env_names() {
                writeln!(out, "{name}")?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let context = context?;
        if self.check {
            return in_order();
        }
        write!(out, "{}", context.loaded.settings.to_toml())?;
        Ok(ExitCode::SUCCESS)
    }
}
