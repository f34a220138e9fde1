//! `shoal alias`: other names of collections, straight from and into the control topic.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::{Args, Subcommand};
use serde_json::json;
use shoal_schemas::CollectionName;
use shoal_topic::collections::{self, Taken};

use super::{
    Context,
    addresses::KafkaFlag,
    kafka_link::{Fresh, KafkaLink, collection_name},
    table::Table,
};

/// What to do with aliases.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Have a name stand for a collection, from one moment to the next
    Set(Set),
    /// List all aliases
    List(List),
    /// Take an alias away; the collection stays
    Drop(Drop),
}

/// An alias and what it stands for.
#[derive(Debug, Args)]
pub(super) struct Set {
    /// The alias
    #[arg(value_parser = collection_name)]
    name: CollectionName,
    /// The collection
    #[arg(value_parser = collection_name)]
    collection: CollectionName,
    #[command(flatten)]
    kafka: KafkaFlag,
}

/// All aliases.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    kafka: KafkaFlag,
}

/// An alias to take away.
#[derive(Debug, Args)]
pub(super) struct Drop {
    /// The alias
    #[arg(value_parser = collection_name)]
    name: CollectionName,
    #[command(flatten)]
    kafka: KafkaFlag,
}

impl Verb {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        context.quiet_logs()?;
        match self {
            Self::Set(verb) => verb.run(context).await?,
            Self::List(verb) => verb.run(context).await?,
            Self::Drop(verb) => verb.run(context).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Set {
    async fn run(&self, context: &Context) -> anyhow::Result<()> {
        let link = KafkaLink::open(context, &self.kafka, Fresh::Refuse).await?;
        let Self {
            name, collection, ..
        } = self;
        let set = collections::set_alias(&link.control, name, collection, Taken::Refuse).await;
        link.close().await;
        let before = set?.map_or(String::new(), |before| {
            format!(", before it was `{before}`")
        });
        writeln!(
            io::stdout(),
            "alias `{name}` stands for collection `{collection}`{before}"
        )?;
        Ok(())
    }
}

impl List {
    async fn run(&self, context: &Context) -> anyhow::Result<()> {
        let link = KafkaLink::open(context, &self.kafka, Fresh::Refuse).await?;
        let aliases = link.state.aliases.clone();
        link.close().await;
        let mut out = io::stdout().lock();
        if self.json {
            let all: Vec<_> = (aliases.iter())
                .map(|(name, collection)| json!({"name": name, "collection": collection}))
                .collect();
            serde_json::to_writer_pretty(&mut out, &all)?;
            writeln!(out)?;
            return Ok(());
        }
        let mut table = Table::new(["ALIAS", "COLLECTION"]);
        for (name, collection) in aliases {
            table.row([name.to_string(), collection.to_string()]);
        }
        table.write(&mut out)?;
        Ok(())
    }
}

impl Drop {
    async fn run(&self, context: &Context) -> anyhow::Result<()> {
        let link = KafkaLink::open(context, &self.kafka, Fresh::Refuse).await?;
        let dropped = collections::drop_alias(&link.control, &self.name).await;
        link.close().await;
        dropped?;
        writeln!(io::stdout(), "alias `{}` dropped", self.name)?;
        Ok(())
    }
}
