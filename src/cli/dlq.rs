//! `shoal dlq`: refused records, listed, shown and put back.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value as Json, json};
use shoal_producer::{
    PublishConfig, Publisher,
    dlq::{self, Correction, Filter, Listed, Origin},
};
use shoal_runtime::chain;
use shoal_schemas::{CollectionName, Partition, Reason, dlq::Entry};

use super::{
    Context, Usage,
    addresses::KafkaFlag,
    kafka_link::{Fresh, KafkaLink, collection_name},
    table::Table,
};

/// Longest part of a value that is shown.
const SHOWN_BYTES: usize = 2000;

/// What to do with refused records.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List them, the newest last
    List(List),
    /// Show one with its content
    Show(Show),
    /// Put one back, corrected or as it was, or all that a filter takes
    Retry(Retry),
}

/// Which of them.
#[derive(Debug, Args)]
struct Which {
    /// Refused for this reason only, such as wrong_dimension
    #[arg(long, value_parser = reason)]
    reason: Option<Reason>,
    /// Of this id only
    #[arg(long)]
    id: Option<String>,
    /// Published to this partition only
    #[arg(long)]
    partition: Option<u32>,
    /// Those that were put back, too
    #[arg(long)]
    retried: bool,
    /// So many at most
    #[arg(long, default_value_t = 1000)]
    limit: usize,
}

impl Which {
    fn filter(&self) -> Filter {
        Filter {
            reason: self.reason,
            id: self.id.clone(),
            partition: self.partition.map(Partition),
            retried: self.retried,
            limit: self.limit,
        }
    }
}

fn reason(text: &str) -> Result<Reason, Usage> {
    text.parse().map_err(|_| {
        let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        Usage(format!("known reasons are {}", known.join(", ")))
    })
}

/// A list of refused records.
#[derive(Debug, Args)]
pub(super) struct List {
    /// The collection
    #[arg(value_parser = collection_name)]
    collection: CollectionName,
    #[command(flatten)]
    which: Which,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    kafka: KafkaFlag,
}

/// One refused record.
#[derive(Debug, Args)]
pub(super) struct Show {
    /// The collection
    #[arg(value_parser = collection_name)]
    collection: CollectionName,
    /// Where it was, partition/offset, as the list says
    #[arg(value_parser = str::parse::<Origin>)]
    record: Origin,
    /// Write its value, byte by byte, into this file
    #[arg(long, value_name = "FILE")]
    value_to: Option<PathBuf>,
    #[command(flatten)]
    kafka: KafkaFlag,
}

/// Refused records to put back.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("what").required(true),
    // A group is shown before the collection, where it cannot stand.
    override_usage = "shoal dlq retry [OPTIONS] <COLLECTION> <RECORD|--all>"
)]
pub(super) struct Retry {
    /// The collection
    #[arg(value_parser = collection_name)]
    collection: CollectionName,
    /// Where it was, partition/offset, as the list says
    #[arg(value_parser = str::parse::<Origin>, group = "what")]
    record: Option<Origin>,
    /// All that --reason, --id and --partition take, as they were
    #[arg(long, group = "what")]
    all: bool,
    /// A file with a corrected value, JSON or Avro
    #[arg(long, value_name = "FILE", conflicts_with_all = ["delete", "all"])]
    value: Option<PathBuf>,
    /// Delete the id instead of putting the record back
    #[arg(long, conflicts_with = "all")]
    delete: bool,
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    kafka: KafkaFlag,
}

impl Verb {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        context.quiet_logs()?;
        match self {
            Self::List(verb) => verb.run(context).await,
            Self::Show(verb) => verb.run(context).await,
            Self::Retry(verb) => verb.run(context).await,
        }
    }
}

/// A list's place is the collection's own topic unless it says another.
fn place(origin: &Origin, collection: &CollectionName) -> String {
    let own = collection.topic();
    if origin.topic.as_deref() == Some(own.as_str()) {
        format!("{}/{}", origin.partition, origin.offset)
    } else {
        origin.to_string()
    }
}

impl List {
    async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        let link = KafkaLink::open(context, &self.kafka, Fresh::Refuse).await?;
        let home = link.collection(&self.collection)?.home().clone();
        let listing = dlq::list(&link.cluster, &home, self.which.filter()).await;
        link.close().await;
        let listing = listing?;
        let mut out = io::stdout().lock();
        if self.json {
            for entry in &listing.entries {
                writeln!(out, "{}", told(entry, &home))?;
            }
        } else {
            let mut table = Table::new(["RECORD", "REASON", "ID", "BYTES", "DETAIL"]);
            for entry in &listing.entries {
                let detail = match entry.is_retried {
                    true => format!("put back; {}", entry.detail),
                    false => entry.detail.clone(),
                };
                let bytes = if entry.is_delete {
                    "delete".to_owned()
                } else {
                    entry.value_bytes.to_string()
                };
                table.row([
                    place(&entry.origin, &home),
                    entry.reason.to_string(),
                    entry.id.clone().unwrap_or_default(),
                    bytes,
                    detail,
                ]);
            }
            table.write(&mut out)?;
        }
        out.flush()?;
        let shown = u64::try_from(listing.entries.len()).unwrap_or(u64::MAX);
        let mut err = io::stderr().lock();
        if listing.matched > shown {
            writeln!(
                err,
                "the newest {shown} of {}; see --limit",
                listing.matched
            )?;
        }
        if listing.left_out > 0 {
            writeln!(
                err,
                "{} more were put back; see --retried",
                listing.left_out
            )?;
        }
        if listing.unreadable > 0 {
            writeln!(err, "{} records there are no entries", listing.unreadable)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn told(entry: &Listed, home: &CollectionName) -> Json {
    json!({
        "record": place(&entry.origin, home),
        "topic": entry.origin.topic,
        "partition": entry.origin.partition,
        "offset": entry.origin.offset,
        "reason": entry.reason.code(),
        "detail": entry.detail,
        "id": entry.id,
        "time_ms": entry.time_ms,
        "value_bytes": entry.value_bytes,
        "is_delete": entry.is_delete,
        "is_withheld": entry.is_withheld,
        "is_retried": entry.is_retried,
    })
}

async fn find(link: &KafkaLink, name: &CollectionName, record: &Origin) -> anyhow::Result<Entry> {
    match dlq::show(&link.cluster, name, record).await? {
        Some(entry) => Ok(entry),
        None => bail!("there is no refused record {record}; see `shoal dlq list {name}`"),
    }
}

impl Show {
    async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        let link = KafkaLink::open(context, &self.kafka, Fresh::Refuse).await?;
        let home = link.collection(&self.collection)?.home().clone();
        let found = find(&link, &home, &self.record).await;
        link.close().await;
        let entry = found?;
        let value = entry.record.value.as_deref();
        if let Some(path) = &self.value_to {
            fs::write(path, value.unwrap_or_default())
                .with_context(|| format!("cannot write `{}`", path.display()))?;
        }
        let listed = Listed::from(&entry);
        let mut out = io::stdout().lock();
        writeln!(out, "record    {}", listed.origin)?;
        writeln!(out, "cluster   {}", entry.source.cluster)?;
        writeln!(out, "reason    {}", listed.reason)?;
        writeln!(out, "detail    {}", listed.detail)?;
        writeln!(out, "refused   {} ms since 1970", listed.time_ms)?;
        writeln!(out, "written   {} ms since 1970", entry.record.timestamp_ms)?;
        writeln!(
            out,
            "key       {}",
            listed.id.unwrap_or_else(|| "none".into())
        )?;
        for (name, header) in &entry.record.headers {
            writeln!(out, "header    {name}: {}", header.escape_ascii())?;
        }
        match value {
            None => writeln!(out, "value     none: it was a delete")?,
            Some(_) if listed.is_withheld => {
                writeln!(out, "value     withheld: it may not leave its region")?;
            }
            Some(value) => {
                let shown = value.get(..SHOWN_BYTES).unwrap_or(value);
                let cut = if shown.len() < value.len() {
                    " ..."
                } else {
                    ""
                };
                writeln!(
                    out,
                    "value     {} bytes: {}{cut}",
                    value.len(),
                    shown.escape_ascii()
                )?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Retry {
    async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        let correction = match &self.value {
            Some(path) => {
                let value =
                    fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
                Correction::Value(value.into())
            }
            None if self.delete => Correction::Delete,
            None => Correction::Unchanged,
        };
        let link = KafkaLink::open(context, &self.kafka, Fresh::Refuse).await?;
        let collection = link.written(&self.collection)?;
        let home = collection.home().clone();
        let schemas = link.schemas(context)?;
        let config = PublishConfig::default();
        let publisher =
            Publisher::new(&link.cluster, link.clock.clone(), collection, config).await?;
        let code = match &self.record {
            Some(record) => {
                let entry = find(&link, &home, record).await?;
                let token = dlq::retry(&entry, correction, &publisher, &schemas).await?;
                writeln!(io::stdout(), "{token}")?;
                ExitCode::SUCCESS
            }
            None => {
                let filter = self.which.filter();
                let retried = dlq::retry_all(&link.cluster, filter, &publisher, &schemas).await;
                let mut out = io::stdout().lock();
                for (origin, token) in &retried.done {
                    writeln!(out, "{}  {token}", place(origin, &home))?;
                }
                let mut err = io::stderr().lock();
                for (_, error) in &retried.refused {
                    writeln!(err, "{}", chain(error))?;
                }
                writeln!(
                    err,
                    "{} put back, {} not",
                    retried.done.len(),
                    retried.refused.len()
                )?;
                if let Some(error) = retried.broke_off {
                    return Err(error.into());
                }
                if retried.refused.is_empty() {
                    ExitCode::SUCCESS
                } else {
                    ExitCode::FAILURE
                }
            }
        };
        link.close().await;
        Ok(code)
    }
}
