//! `shoal collection`: definitions, straight from and into the control topic.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use bytesize::ByteSize;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use shoal_schemas::{
    Collection, CollectionName, FieldKind, IndexKind, IndexParameters, Metric, Offset, Partition,
    Partitioner, Quantization, ReplicaSet,
    collection::{FieldKindError, default_delete_retention_ms, default_max_record_bytes},
    control::Claim,
    placement::Labels,
    vector::Dim,
};
use shoal_topic::{collections, control::ControlState};

use super::{
    Context, Usage,
    addresses::KafkaFlag,
    kafka_link::{Fresh, KafkaLink, collection_name},
    table::Table,
};

/// What to do with collections.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Make a collection, its topic and its dead-letter topic
    Create(Create),
    /// List all collections
    List(List),
    /// Show one collection and who serves its shards
    Describe(Describe),
    /// Forget a collection; its topics stay unless told otherwise
    Drop(Drop),
}

/// A new collection.
#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its name: a-z, 0-9, `_` and `-`
    #[arg(value_parser = collection_name)]
    name: CollectionName,
    /// Components of every vector, 2 to 4096
    #[arg(long, value_parser = dim)]
    dim: Dim,
    /// How distance is measured
    #[arg(long, value_enum)]
    metric: MetricArg,
    /// Shards, 1 to 4096; fixed once made
    #[arg(long)]
    partitions: u32,
    /// How a key picks its partition: crc32 is what librdkafka does by default
    #[arg(long, value_enum, default_value = "murmur2")]
    partitioner: PartitionerArg,
    /// Route by the part of the key before the first `/`
    #[arg(long)]
    route_by_key_prefix: bool,
    /// Route by ranges of ids: where one shard ends and the next begins. Give it once a key,
    /// ascending byte by byte, one less than there are partitions
    #[arg(long = "split-key", value_name = "KEY")]
    split_keys: Vec<String>,
    /// A label that an indexer has to have to be given a shard, such as gpu=true. Give it once a
    /// label
    #[arg(long, value_name = "NAME=VALUE", value_parser = label)]
    placement: Vec<(String, String)>,
    /// The same only for the shards that hold ids of a tenant, such as hot:gpu=true
    #[arg(long, value_name = "TENANT:NAME=VALUE", value_parser = tenant_label)]
    tenant_placement: Vec<(String, (String, String))>,
    /// How rows are found: by a graph, or by looking at all of them, which has no graph to build or keep
    #[arg(long, value_enum, default_value_t = IndexArg::Hnsw)]
    index: IndexArg,
    /// Edges of a node of the graph
    #[arg(long)]
    m: Option<u16>,
    /// Beam width while the graph is built
    #[arg(long)]
    ef_construction: Option<u16>,
    /// Beam width of a search that names none
    #[arg(long)]
    ef_search: Option<u16>,
    /// How the copy of a vector is kept that searches go by [default: i4 under cosine from 256 components on, else i8]
    #[arg(long, value_enum)]
    quantization: Option<QuantizationArg>,
    /// Replicas of the topics [default: the broker's own]
    #[arg(long)]
    replication_factor: Option<u16>,
    /// How long a delete outlives compaction, such as 7days; longer than any shard is away
    #[arg(long, value_parser = duration)]
    delete_retention: Option<Duration>,
    /// Largest record, key and value, such as 1MiB
    #[arg(long)]
    max_record_bytes: Option<ByteSize>,
    /// A payload field to filter and group by, such as year=integer; kinds are keyword, integer,
    /// float, boolean and timestamp. Give it once a field
    #[arg(long = "field", value_name = "NAME=KIND", value_parser = field)]
    fields: Vec<(String, FieldKind)>,
    /// A collection whose topic it reads instead of one of its own
    #[arg(long, value_name = "COLLECTION", value_parser = collection_name)]
    reads: Option<CollectionName>,
    #[command(flatten)]
    kafka: KafkaFlag,
}

/// All collections.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    kafka: KafkaFlag,
}

/// One collection.
#[derive(Debug, Args)]
pub(super) struct Describe {
    /// Its name
    #[arg(value_parser = collection_name)]
    name: CollectionName,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    kafka: KafkaFlag,
}

/// A collection to forget.
#[derive(Debug, Args)]
pub(super) struct Drop {
    /// Its name
    #[arg(value_parser = collection_name)]
    name: CollectionName,
    /// Delete its topics too: every point is lost
    #[arg(long)]
    delete_topics: bool,
    #[command(flatten)]
    kafka: KafkaFlag,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum MetricArg {
    Cosine,
    #[value(alias = "inner_product")]
    InnerProduct,
    L2,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum IndexArg {
    Hnsw,
    Flat,
}

impl From<IndexArg> for IndexKind {
    fn from(kind: IndexArg) -> Self {
        match kind {
            IndexArg::Hnsw => Self::Hnsw,
            IndexArg::Flat => Self::Flat,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PartitionerArg {
    Murmur2,
    Crc32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum QuantizationArg {
    F32,
    F16,
    Bf16,
    I8,
    I4,
}

impl From<MetricArg> for Metric {
    fn from(metric: MetricArg) -> Self {
        match metric {
            MetricArg::Cosine => Self::Cosine,
            MetricArg::InnerProduct => Self::InnerProduct,
            MetricArg::L2 => Self::L2,
        }
    }
}

impl From<QuantizationArg> for Quantization {
    fn from(quantization: QuantizationArg) -> Self {
        match quantization {
            QuantizationArg::F32 => Self::F32,
            QuantizationArg::F16 => Self::F16,
            QuantizationArg::Bf16 => Self::Bf16,
            QuantizationArg::I8 => Self::I8,
            QuantizationArg::I4 => Self::I4,
        }
    }
}

fn dim(text: &str) -> Result<Dim, Usage> {
    let number: u32 = text
        .parse()
        .map_err(|_| Usage(format!("`{text}` is no number")))?;
    Dim::try_from(number).map_err(|error| Usage(error.to_string()))
}

pub(super) fn duration(text: &str) -> Result<Duration, Usage> {
    humantime_serde::re::humantime::parse_duration(text)
        .map_err(|error| Usage(format!("{error}; write it as 7days or 12h")))
}

impl Verb {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        match self {
            Self::Create(verb) => verb.run(context).await?,
            Self::List(verb) => verb.run(context).await?,
            Self::Describe(verb) => verb.run(context).await?,
            Self::Drop(verb) => verb.run(context).await?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

pub(super) fn field(text: &str) -> Result<(String, FieldKind), Usage> {
    // The kind has no `=`, a name may have one.
    let (name, kind) = text
        .rsplit_once('=')
        .ok_or_else(|| Usage(format!("`{text}` says no kind; write it as name=keyword")))?;
    let kind = kind
        .parse()
        .map_err(|error: FieldKindError| Usage(error.to_string()))?;
    Ok((name.to_owned(), kind))
}

fn label(text: &str) -> Result<(String, String), Usage> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| Usage(format!("`{text}` says no value; write it as gpu=true")))?;
    Ok((name.to_owned(), value.to_owned()))
}

fn tenant_label(text: &str) -> Result<(String, (String, String)), Usage> {
    let parts = text.split_once('=').and_then(|(head, value)| {
        // A tenant may hold a colon, a label's name may not.
        let (tenant, name) = head.rsplit_once(':')?;
        Some((tenant.to_owned(), (name.to_owned(), value.to_owned())))
    });
    parts.ok_or_else(|| Usage(format!("`{text}` does not read; write it as hot:gpu=true")))
}

fn add_label(labels: &mut Labels, (name, value): &(String, String)) -> Result<(), Usage> {
    match labels.insert(name.clone(), value.clone()) {
        None => Ok(()),
        Some(_) => Err(Usage(format!("label `{name}` is given twice"))),
    }
}

/// Declared fields, each once.
pub(super) fn declared(
    given: &[(String, FieldKind)],
) -> Result<BTreeMap<String, FieldKind>, Usage> {
    let mut fields = BTreeMap::new();
    for (name, kind) in given {
        if fields.insert(name.clone(), *kind).is_some() {
            return Err(Usage(format!("field `{name}` is given twice")));
        }
    }
    Ok(fields)
}

impl Create {
    fn labels(&self) -> Result<Labels, Usage> {
        let mut labels = Labels::new();
        self.placement
            .iter()
            .try_for_each(|given| add_label(&mut labels, given))?;
        Ok(labels)
    }

    fn labels_by_tenant(&self) -> Result<BTreeMap<String, Labels>, Usage> {
        let mut all: BTreeMap<String, Labels> = BTreeMap::new();
        for (tenant, given) in &self.tenant_placement {
            add_label(all.entry(tenant.clone()).or_default(), given)?;
        }
        Ok(all)
    }

    fn definition(&self) -> Result<Collection, Usage> {
        let defaults = IndexParameters::default();
        let max_record_bytes = match self.max_record_bytes {
            None => default_max_record_bytes(),
            Some(size) => u32::try_from(size.as_u64())
                .map_err(|_| Usage(format!("max-record-bytes is {size}, allowed are 64 MiB")))?,
        };
        let delete_retention_ms = match self.delete_retention {
            None => default_delete_retention_ms(),
            Some(time) => u64::try_from(time.as_millis())
                .map_err(|_| Usage("delete-retention is too long".into()))?,
        };
        let collection = Collection {
            name: self.name.clone(),
            dim: self.dim,
            metric: self.metric.into(),
            partitions: self.partitions,
            partitioner: match self.partitioner {
                PartitionerArg::Murmur2 => Partitioner::Murmur2,
                PartitionerArg::Crc32 => Partitioner::Crc32,
            },
            route_by_key_prefix: self.route_by_key_prefix,
            index: IndexParameters {
                kind: self.index.into(),
                m: self.m.unwrap_or(defaults.m),
                ef_construction: self.ef_construction.unwrap_or(defaults.ef_construction),
                ef_search: self.ef_search.unwrap_or(defaults.ef_search),
                quantization: self.quantization.map(Quantization::from),
            },
            replication_factor: self.replication_factor,
            delete_retention_ms,
            max_record_bytes,
            fields: declared(&self.fields)?,
            split_keys: self.split_keys.clone(),
            placement: self.labels()?,
            tenant_placement: self.labels_by_tenant()?,
            reads: self.reads.clone(),
            fed_by: None,
        };
        collection
            .check()
            .map_err(|error| Usage(error.to_string()))?;
        Ok(collection)
    }

    async fn run(&self, context: &Context) -> anyhow::Result<()> {
        let wanted = self.definition()?;
        context.quiet_logs()?;
        let link = KafkaLink::open(context, &self.kafka, Fresh::Make).await?;
        let made = collections::create(&link.cluster, &link.control, wanted).await;
        link.close().await;
        let made = made?;
        let what = if made.created {
            "created"
        } else {
            "was there already, with the same definition"
        };
        writeln!(
            io::stdout(),
            "collection `{}` {what}: topic {} with {} partitions",
            made.collection.name,
            made.collection.topic(),
            made.collection.partitions
        )?;
        Ok(())
    }
}

impl List {
    async fn run(&self, context: &Context) -> anyhow::Result<()> {
        context.quiet_logs()?;
        let link = KafkaLink::open(context, &self.kafka, Fresh::Refuse).await?;
        let state = link.state.clone();
        link.close().await;
        let mut out = io::stdout().lock();
        if self.json {
            let all: Vec<&Collection> = state.collections.values().collect();
            serde_json::to_writer_pretty(&mut out, &all)?;
            writeln!(out)?;
            return Ok(());
        }
        let headings = [
            "NAME",
            "DIM",
            "METRIC",
            "PARTITIONS",
            "PARTITIONER",
            "SERVED",
        ];
        let mut table = Table::new(headings);
        for collection in state.collections.values() {
            let served = (0..collection.partitions).filter(|shard| {
                let shard = Partition(*shard);
                let owner = state.owner(&collection.name, shard);
                owner.is_some_and(|(claim, _)| claim.ready)
                    || (state.replicas.iter()).any(|((name, at, _), (claim, _))| {
                        *name == collection.name && *at == shard && claim.ready
                    })
            });
            table.row([
                collection.name.to_string(),
                collection.dim.to_string(),
                word(&collection.metric),
                collection.partitions.to_string(),
                word(&collection.partitioner),
                format!("{}/{}", served.count(), collection.partitions),
            ]);
        }
        table.write(&mut out)?;
        Ok(())
    }
}

impl Describe {
    async fn run(&self, context: &Context) -> anyhow::Result<()> {
        context.quiet_logs()?;
        let link = KafkaLink::open(context, &self.kafka, Fresh::Refuse).await?;
        let (found, state) = (link.collection(&self.name), link.state.clone());
        link.close().await;
        let collection = found?;
        let mut out = io::stdout().lock();
        if self.json {
            let shards: Vec<serde_json::Value> = owners(&state, &collection)
                .map(|(shard, [node, address, epoch, ready])| {
                    json!({"shard": shard.0, "node": node, "address": address,
                           "epoch": epoch, "ready": ready})
                })
                .collect();
            let replicas: Vec<serde_json::Value> = replicas(&state, &collection)
                .map(|(shard, set, [node, address, epoch, ready])| {
                    json!({"shard": shard.0, "set": set, "node": node, "address": address,
                           "epoch": epoch, "ready": ready})
                })
                .collect();
            let all = json!({"collection": collection, "shards": shards, "replicas": replicas});
            serde_json::to_writer_pretty(&mut out, &all)?;
            writeln!(out)?;
            return Ok(());
        }
        write!(out, "{}", toml::to_string_pretty(&collection)?)?;
        writeln!(out)?;
        let mut table = Table::new(["SHARD", "SET", "NODE", "ADDRESS", "EPOCH", "READY"]);
        for (shard, [node, address, epoch, ready]) in owners(&state, &collection) {
            let set = "home".to_owned();
            table.row([shard.to_string(), set, node, address, epoch, ready]);
        }
        for (shard, set, [node, address, epoch, ready]) in replicas(&state, &collection) {
            let set = set.to_string();
            table.row([shard.to_string(), set, node, address, epoch, ready]);
        }
        table.write(&mut out)?;
        Ok(())
    }
}

/// Node, address, epoch and readiness of every shard's owner.
fn owners<'a>(
    state: &'a ControlState,
    collection: &'a Collection,
) -> impl Iterator<Item = (Partition, [String; 4])> + 'a {
    (0..collection.partitions).map(Partition).map(|shard| {
        let owner = match state.owner(&collection.name, shard) {
            Some((claim, epoch)) => told(claim, *epoch),
            None => ["nobody", "", "", "false"].map(str::to_owned),
        };
        (shard, owner)
    })
}

/// The same of everybody else who serves a shard, with the replica set.
fn replicas<'a>(
    state: &'a ControlState,
    collection: &'a Collection,
) -> impl Iterator<Item = (Partition, &'a ReplicaSet, [String; 4])> + 'a {
    let of_it = (state.replicas.iter()).filter(|((name, ..), _)| *name == collection.name);
    of_it.map(|((_, shard, set), (claim, epoch))| (*shard, set, told(claim, *epoch)))
}

fn told(claim: &Claim, epoch: Offset) -> [String; 4] {
    [
        claim.node.clone(),
        claim.address.clone(),
        epoch.to_string(),
        claim.ready.to_string(),
    ]
}

impl Drop {
    async fn run(&self, context: &Context) -> anyhow::Result<()> {
        context.quiet_logs()?;
        let link = KafkaLink::open(context, &self.kafka, Fresh::Refuse).await?;
        let dropped =
            collections::drop(&link.cluster, &link.control, &self.name, self.delete_topics).await;
        link.close().await;
        dropped?;
        let topics = if self.delete_topics {
            "its topics are deleted"
        } else {
            "its topics stay; creating it again takes them up"
        };
        writeln!(io::stdout(), "collection `{}` dropped, {topics}", self.name)?;
        Ok(())
    }
}

/// An enumeration's value as the definition spells it.
pub(super) fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use shoal_schemas::FieldKind;

    use super::{field, label, tenant_label};

    #[test]
    fn a_field_is_a_name_and_a_kind() {
        let (name, kind) = field("a=b=keyword").unwrap();
        assert_eq!((name.as_str(), kind), ("a=b", FieldKind::Keyword));
        for text in ["year", "year=", "year=text"] {
            let refused = field(text).unwrap_err().to_string();
            assert!(refused.contains("keyword"), "{refused}");
        }
    }

    #[test]
    fn a_label_has_a_value_and_may_be_a_tenants() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(label("zone=a=b").unwrap(), pair("zone", "a=b"));
        let of_tenant = tenant_label("a:b:gpu=true").unwrap();
        assert_eq!(of_tenant, ("a:b".to_owned(), pair("gpu", "true")));
        assert!(label("gpu").is_err() && tenant_label("gpu=a:b").is_err());
    }
}
