//! `shoal map`: the shard map as a file, for query nodes that have no Kafka.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use shoal_query::source::document::Document;
use shoal_runtime::tasks::blocking;

use super::{
    Context,
    addresses::KafkaFlag,
    kafka_link::{Fresh, KafkaLink},
};

/// What to do with a shard map.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Write the definitions and claims of the control topic as JSON
    Export(Export),
    /// Tell the first fault of a file, or what is in it
    Check(Check),
}

/// A map to write.
#[derive(Debug, Args)]
pub(super) struct Export {
    /// The file, replaced as a whole [default: standard output]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    kafka: KafkaFlag,
}

/// A map to check.
#[derive(Debug, Args)]
pub(super) struct Check {
    /// The file
    file: PathBuf,
}

impl Verb {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        match self {
            Self::Export(verb) => verb.run(context).await?,
            Self::Check(verb) => verb.run()?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Export {
    async fn run(&self, context: &Context) -> anyhow::Result<()> {
        context.quiet_logs()?;
        let link = KafkaLink::open(context, &self.kafka, Fresh::Refuse).await?;
        let (state, admin) = (link.state.clone(), link.cluster.admin.clone());
        let cluster = blocking(move || admin.cluster_id()).await;
        link.close().await;
        let document = Document::of(&state, Some(cluster?));
        let mut text = serde_json::to_vec_pretty(&document)?;
        text.push(b'\n');
        match &self.out {
            None => io::stdout().write_all(&text)?,
            Some(path) => {
                let failed = || format!("cannot write `{}`", path.display());
                replace(path, &text).with_context(failed)?;
            }
        }
        Ok(())
    }
}

/// Puts a whole file in the place of another, so that nobody reads half of it.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".partial");
    fs::write(&beside, text)?;
    File::open(&beside)?.sync_all()?;
    fs::rename(&beside, path)
}

impl Check {
    fn run(&self) -> anyhow::Result<()> {
        let failed = || format!("cannot read `{}`", self.file.display());
        let bytes = fs::read(&self.file).with_context(failed)?;
        let document = Document::read(&bytes)?;
        writeln!(
            io::stdout(),
            "{} collections, {} claims",
            document.collections.len(),
            document.claims.len()
        )?;
        Ok(())
    }
}
