//! `shoal publish` and `shoal delete`: files into the collection's topic.
//!
//! Standard output gets the last token of each partition, one a line: whoever searches with all
//! of them (`--at-least`) sees everything that was published.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::bail;
use clap::{ArgGroup, Args, ValueEnum};
use serde_json::json;
use shoal_producer::{
    PublishConfig,
    read::{self, Format, Input, ids},
    run::{self, OnFault, Outlet, Summary},
};
use shoal_runtime::chain;
use shoal_schemas::{
    Collection, CollectionName, PointId, RegionName, Token,
    avro::{Framing, SCHEMA_JSON},
};
use tokio_util::sync::CancellationToken;

use super::{
    Context, Usage,
    addresses::{GatewayFlag, KafkaFlag},
    kafka_link::{Fresh, KafkaLink, collection_name},
    patch,
};
use crate::roles;

/// Points to publish.
#[derive(Debug, Args)]
pub(super) struct Publish {
    /// The collection
    #[arg(value_parser = collection_name)]
    collection: CollectionName,
    /// A file, or `-` for standard input
    input: String,
    /// What the file is [default: by its ending; standard input is JSONL]
    #[arg(long, value_enum)]
    format: Option<FormatArg>,
    /// JSONL with a line a row of an .npy file: ids and payload
    #[arg(long, value_name = "FILE")]
    meta: Option<PathBuf>,
    /// Metadata's field or Parquet's column that holds the id
    #[arg(long, default_value = "id", value_name = "NAME")]
    id_field: String,
    /// Parquet's column of vectors
    #[arg(long, default_value = "vector", value_name = "NAME")]
    vector_field: String,
    /// A field or column to leave out; may be given several times
    #[arg(long, value_name = "NAME")]
    ignore: Vec<String>,
    #[command(flatten)]
    pace: Pace,
    /// How values are framed [default: confluent where a registry is set, else single-object]
    #[arg(long, value_enum)]
    framing: Option<FramingArg>,
    /// The schema registry's address, path included
    #[arg(long, value_name = "URL")]
    registry: Option<String>,
    /// The region named as every record's origin [default: none, the topic's region counts]
    #[arg(long, value_parser = region)]
    origin: Option<RegionName>,
    #[command(flatten)]
    kafka: KafkaFlag,
}

/// Points to delete.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true))]
pub(super) struct Delete {
    /// The collection
    #[arg(value_parser = collection_name)]
    collection: CollectionName,
    /// An id; may be given several times
    #[arg(long, group = "which")]
    id: Vec<String>,
    /// A file with one id a line, or `-` for standard input
    #[arg(long, group = "which", value_name = "FILE")]
    ids_file: Option<String>,
    /// Only if the one point named has this version, as `shoal get` prints it; through the gateway
    #[arg(long, value_name = "VERSION", conflicts_with_all = ["ids_file", "kafka"])]
    if_version: Option<u64>,
    #[command(flatten)]
    pace: Pace,
    #[command(flatten)]
    kafka: KafkaFlag,
    #[command(flatten)]
    gateway: GatewayFlag,
}

/// How a run goes.
#[derive(Clone, Debug, Args)]
struct Pace {
    /// Records a second at most
    #[arg(long, value_parser = rate)]
    rate: Option<f64>,
    /// What a faulty record does: stop there, or be told, counted and passed over
    #[arg(long, value_enum, default_value = "stop")]
    on_fault: OnFaultArg,
    /// Show no progress
    #[arg(long)]
    quiet: bool,
    /// Print the summary as JSON instead of tokens
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormatArg {
    Jsonl,
    Npy,
    Parquet,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnFaultArg {
    Stop,
    Skip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FramingArg {
    SingleObject,
    Confluent,
}

fn region(text: &str) -> Result<RegionName, Usage> {
    text.parse()
        .map_err(|error: shoal_schemas::name::NameError| Usage(error.to_string()))
}

fn rate(text: &str) -> Result<f64, Usage> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err(Usage("write a number of records a second above 0".into())),
    }
}

impl Pace {
    fn options(&self) -> run::Options {
        run::Options {
            rate_limit: self.rate,
            progress: !self.quiet,
            on_fault: match self.on_fault {
                OnFaultArg::Stop => OnFault::Stop,
                OnFaultArg::Skip => OnFault::Skip,
            },
        }
    }

    fn tell(&self, what: &str, summary: &Summary) -> io::Result<()> {
        let tokens: Vec<String> = summary.tokens.values().map(Token::to_string).collect();
        let mut out = io::stdout().lock();
        if self.json {
            let all = json!({
                "records": summary.records,
                "bytes": summary.bytes,
                "seconds": summary.seconds,
                "skipped": summary.skipped,
                "unacknowledged": summary.unacknowledged,
                "interrupted": summary.interrupted,
                "tokens": tokens,
            });
            return writeln!(out, "{all}");
        }
        for token in tokens {
            writeln!(out, "{token}")?;
        }
        out.flush()?;
        let mut err = io::stderr().lock();
        // Progress without a terminal has ended in such a line.
        let told = !self.quiet && !err.is_terminal();
        if told && summary.skipped == 0 && summary.unacknowledged == 0 {
            return Ok(());
        }
        write!(
            err,
            "{what} {} records in {:.2} s",
            summary.records, summary.seconds
        )?;
        if summary.skipped > 0 {
            write!(err, ", {} faulty ones passed over", summary.skipped)?;
        }
        if summary.unacknowledged > 0 {
            write!(
                err,
                ", {} more were sent and not acknowledged",
                summary.unacknowledged
            )?;
        }
        writeln!(err)
    }
}

impl Publish {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        context.quiet_logs()?;
        let link = KafkaLink::open(context, &self.kafka, Fresh::Refuse).await?;
        let collection = link.written(&self.collection)?;
        let config = PublishConfig {
            origin: self.origin.clone(),
            framing: self.framing(context, &link, &collection).await?,
            versions: true,
        };
        let input = Input::parse(&self.input);
        let options = read::Options {
            format: self.format.map(|format| match format {
                FormatArg::Jsonl => Format::Jsonl,
                FormatArg::Npy => Format::Npy,
                FormatArg::Parquet => Format::Parquet,
            }),
            metadata: self.meta.clone(),
            id_field: self.id_field.clone(),
            vector_field: self.vector_field.clone(),
            ignore: self.ignore.clone(),
        };
        let rows = read::open(&input, &collection, &options)?;
        let outlet = follow(&link, &self.collection, config).await?;
        let cancel = cancelled_by_signals(&link)?;
        let outcome = run::publish_all(outlet, rows, &self.pace.options(), &cancel).await;
        end(link, &self.pace, "published", outcome).await
    }

    async fn framing(
        &self,
        context: &Context,
        link: &KafkaLink,
        collection: &Collection,
    ) -> anyhow::Result<Framing> {
        let mut settings = context.loaded.settings.clone();
        if self.registry.is_some() {
            settings.registry.url.clone_from(&self.registry);
        }
        if self.framing == Some(FramingArg::SingleObject) {
            return Ok(Framing::SingleObject);
        }
        match roles::connect_registry(&settings, &link.clock)? {
            Some(registry) => {
                // What other producers' serializers call it by default.
                let subject = format!("{}-value", collection.topic());
                let schema_id = registry.register(&subject, SCHEMA_JSON).await?;
                Ok(Framing::Confluent { schema_id })
            }
            None if self.framing.is_some() => {
                bail!(Usage(
                    "--framing confluent needs --registry, or registry.url".into()
                ))
            }
            None => Ok(Framing::SingleObject),
        }
    }
}

impl Delete {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        context.quiet_logs()?;
        let given = self.id.iter().map(|id| PointId::new(id));
        let given: Vec<PointId> = given
            .collect::<Result<_, _>>()
            .map_err(|error| Usage(error.to_string()))?;
        if let Some(version) = self.if_version {
            let [id] = self.id.as_slice() else {
                bail!(Usage("--if-version needs exactly one --id".into()));
            };
            let (gateway, collection) = (&self.gateway, &self.collection);
            return patch::delete_if(context, gateway, collection, id, version).await;
        }
        let link = KafkaLink::open(context, &self.kafka, Fresh::Refuse).await?;
        // The usual words, with what there is.
        link.written(&self.collection)?;
        let outlet = follow(&link, &self.collection, PublishConfig::default()).await?;
        let cancel = cancelled_by_signals(&link)?;
        let options = self.pace.options();
        let outcome = match &self.ids_file {
            Some(file) => {
                let ids = ids::open(&Input::parse(file))?;
                run::delete_all(outlet, ids, &options, &cancel).await
            }
            None => {
                let ids = given.into_iter().map(Ok);
                run::delete_all(outlet, ids, &options, &cancel).await
            }
        };
        end(link, &self.pace, "deleted", outcome).await
    }
}

/// Writes into what a name stands for, also when that moves while the input goes on.
async fn follow(
    link: &KafkaLink,
    name: &CollectionName,
    config: PublishConfig,
) -> anyhow::Result<Outlet> {
    let (cluster, control, clock) = (&link.cluster, &link.control, link.clock.clone());
    Ok(Outlet::following(name.clone(), cluster, control, clock, config).await?)
}

/// A run ends in order at a signal; what was sent is waited for.
fn cancelled_by_signals(link: &KafkaLink) -> io::Result<CancellationToken> {
    roles::stop_on_signals(&link.tasks)?;
    Ok(link.tasks.cancel().clone())
}

async fn end(
    link: KafkaLink,
    pace: &Pace,
    what: &str,
    outcome: Result<Summary, run::RunError>,
) -> anyhow::Result<ExitCode> {
    link.close().await;
    match outcome {
        Ok(summary) => {
            pace.tell(what, &summary)?;
            Ok(if summary.interrupted || summary.unacknowledged > 0 {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            })
        }
        Err(error) => {
            pace.tell(what, &error.summary)?;
            tracing::debug!(error = %chain(&error), "run stopped");
            Err(error.into())
        }
    }
}
