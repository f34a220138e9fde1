//! The command line: a verb a file, one way to fail.
//!
//! Answers go to standard output, everything else to standard error. An error is told once with
//! its causes; the exit code is 2 for what the caller wrote (flags, settings), else 1.

mod addresses;
mod alias;
mod collection;
mod config;
mod demo;
mod dlq;
mod expire;
mod kafka_link;
mod map;
mod narrow;
mod patch;
mod publish;
mod query_link;
mod read;
mod reindex;
mod role;
mod scroll;
mod search;
mod snapshot;
mod table;
mod up;
mod verify;

use std::{
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};
use metrics_exporter_prometheus::PrometheusHandle;
use shoal_runtime::{config::ConfigError, telemetry};
use shoal_topic::broker::exec_as_child;

use crate::config::{Loaded, load};

/// How long blocking work that nobody waits for may hold the end up.
const LEAVE: Duration = Duration::from_millis(500);

/// Vector search whose database is a Kafka topic.
#[derive(Debug, Parser)]
#[command(name = "shoal", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    everywhere: Everywhere,
    #[command(subcommand)]
    verb: Verb,
}

/// Flags of every verb.
#[derive(Clone, Debug, Args)]
struct Everywhere {
    /// TOML file with settings; variables such as SHOAL_QUERY__GRPC_LISTEN go before it
    #[arg(long, global = true, value_name = "FILE", env = "SHOAL_CONFIG")]
    config: Option<PathBuf>,
    /// Where `shoal up` keeps everything; other verbs find its addresses there [default: .shoal]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run everything in one process, with a Kafka of its own unless --kafka names one
    Up(up::Up),
    /// Run the role that takes writes over gRPC and HTTP
    Gateway(role::Run),
    /// Run the role that holds shards
    Indexer(role::Run),
    /// Run the role that answers searches
    Query(role::Run),
    /// Create, list, describe and drop collections
    #[command(subcommand)]
    Collection(collection::Verb),
    /// Write and check the shard map as a file, for query nodes without Kafka
    #[command(subcommand)]
    Map(map::Verb),
    /// Set, list and drop other names of collections
    #[command(subcommand)]
    Alias(alias::Verb),
    /// Build a collection anew with another index, other shards or another model, and move its users
    /// over
    Reindex(Box<reindex::Reindex>),
    /// Publish points from a file or standard input
    Publish(publish::Publish),
    /// Change part of a point
    Patch(patch::Patch),
    /// Delete points by id
    Delete(publish::Delete),
    /// Delete points that have expired, so that their records leave the topic
    Expire(expire::Expire),
    /// Find the nearest points
    Search(search::Search),
    /// Read points by id
    Get(read::Get),
    /// Count points
    Count(read::Count),
    /// Read points in the order of their ids
    Scroll(scroll::Scroll),
    /// List, show and put back refused records
    #[command(subcommand)]
    Dlq(dlq::Verb),
    /// Take, list, verify and restore copies of shards in an object store
    #[command(subcommand)]
    Snapshot(snapshot::Verb),
    /// Show every shard's digest and positions, and compare them with another region's
    Verify(verify::Verify),
    /// Check and show settings
    Config(config::Show),
    /// A guided tour: real embeddings through a real Kafka, searched
    Demo(demo::Demo),
    /// Become another program that dies with its parent
    #[command(name = crate::up::CHILD_VERB, hide = true)]
    ChildExec {
        /// The program and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
}

/// What the caller wrote cannot be done.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// The settings, and where a running `shoal up` may be.
struct Context {
    loaded: Loaded,
}

impl Context {
    fn new(everywhere: &Everywhere) -> Result<Self, ConfigError> {
        let mut loaded = load(everywhere.config.as_deref())?;
        if let Some(folder) = &everywhere.data_dir {
            loaded.settings.local.data_dir.clone_from(folder);
        }
        Ok(Self { loaded })
    }

    /// Logs of a verb that ends by itself: only what is out of the ordinary, unless asked.
    fn quiet_logs(&self) -> anyhow::Result<PrometheusHandle> {
        let mut telemetry = self.loaded.settings.telemetry.clone();
        if !self.loaded.sets("telemetry.filter") {
            "warn".clone_into(&mut telemetry.filter);
        }
        Ok(telemetry::init(&telemetry)?)
    }
}

/// Parses the command line, runs the verb, and tells how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _closed = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    // The kernel's order to end the child is tied to a thread, so no runtime may be there yet.
    if let Verb::ChildExec { command } = &cli.verb {
        return failed(&exec_as_child(command).into());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    let outcome = runtime.block_on(run(cli));
    runtime.shutdown_timeout(LEAVE);
    outcome.unwrap_or_else(|error| failed(&error))
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let context = Context::new(&cli.everywhere);
    match cli.verb {
        Verb::Config(verb) => verb.run(context),
        Verb::Up(verb) => verb.run(&context?).await,
        Verb::Gateway(verb) => verb.run(crate::roles::Role::Gateway, &context?).await,
        Verb::Indexer(verb) => verb.run(crate::roles::Role::Indexer, &context?).await,
        Verb::Query(verb) => verb.run(crate::roles::Role::Query, &context?).await,
        Verb::Collection(verb) => verb.run(&context?).await,
        Verb::Map(verb) => verb.run(&context?).await,
        Verb::Alias(verb) => verb.run(&context?).await,
        Verb::Reindex(verb) => verb.run(&context?).await,
        Verb::Publish(verb) => verb.run(&context?).await,
        Verb::Patch(verb) => verb.run(&context?).await,
        Verb::Delete(verb) => verb.run(&context?).await,
        Verb::Expire(verb) => verb.run(&context?).await,
        Verb::Search(verb) => verb.run(&context?).await,
        Verb::Get(verb) => verb.run(&context?).await,
        Verb::Count(verb) => verb.run(&context?).await,
        Verb::Scroll(verb) => verb.run(&context?).await,
        Verb::Dlq(verb) => verb.run(&context?).await,
        Verb::Snapshot(verb) => verb.run(&context?).await,
        Verb::Verify(verb) => verb.run(&context?).await,
        Verb::Demo(verb) => verb.run(&context?).await,
        Verb::ChildExec { .. } => Ok(ExitCode::SUCCESS),
    }
}

/// Tells an error once, and gives its exit code.
fn failed(error: &anyhow::Error) -> ExitCode {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>());
    // Whoever read our output has had enough of it.
    if causes.any(|cause| cause.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let config = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<ConfigError>());
    let mut err = io::stderr().lock();
    let _closed = match config {
        Some(ConfigError::Faults { faults }) => {
            faults.iter().try_for_each(|fault| writeln!(err, "{fault}"))
        }
        _ => writeln!(err, "shoal: {error:#}"),
    };
    if config.is_some() || error.is::<Usage>() {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}

/// Says that the settings are in order: the end of `--check`.
fn in_order() -> anyhow::Result<ExitCode> {
    writeln!(io::stdout(), "settings are in order")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
