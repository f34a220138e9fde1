//! `shoal snapshot`: copies of shards in an object store.
//!
//! Taking one is the indexer's business, because only it has the files. Everything else goes to
//! the store directly, so that it works while nothing else does.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::Context as _;
use bytesize::ByteSize;
use clap::{Args, Subcommand};
use humantime_serde::re::humantime;
use serde_json::{Value as Json, json};
use shoal_indexer::snapshot::{
    self, Settings, ShardPlace, Shelf, bucket::Bucket, manifest::Manifest, store::Store,
};
use shoal_runtime::{chain, clock::System};
use shoal_schemas::{CollectionName, Offset, Partition, v1};

use super::{
    Context, Usage,
    addresses::QueryFlag,
    kafka_link::collection_name,
    query_link::{connect, owners, told},
    table::Table,
};

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Have the indexers save shards to their object store
    Create(Create),
    /// List what an object store has
    List(List),
    /// Make folders of a snapshot
    Restore(Restore),
    /// Read a snapshot as a whole and name what is wrong with it
    Verify(Verify),
}

/// A snapshot to take.
#[derive(Debug, Args)]
pub(super) struct Create {
    /// The collection
    #[arg(value_parser = collection_name)]
    collection: CollectionName,
    /// Only this shard [default: all]
    #[arg(long)]
    shard: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    query: QueryFlag,
}

/// Snapshots in a store.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The collection
    #[arg(value_parser = collection_name)]
    collection: CollectionName,
    /// Only this shard [default: all]
    #[arg(long)]
    shard: Option<u32>,
    /// The object store: a folder, s3://, gs:// or az:// [default: indexer.snapshot.url]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Of which making of the collection, as `list` shows it [default: the newest]
    #[arg(long, value_name = "N")]
    incarnation: Option<u64>,
}

/// What is there.
#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    place: Place,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Getting one back.
#[derive(Debug, Args)]
pub(super) struct Restore {
    #[command(flatten)]
    place: Place,
    /// Which one; needs --shard [default: each shard's newest]
    #[arg(long, requires = "shard")]
    number: Option<u64>,
    /// Where to: each shard becomes a folder of its number in it
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
}

/// Reading one as a whole.
#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    place: Place,
    /// Which one; needs --shard [default: each shard's newest]
    #[arg(long, requires = "shard")]
    number: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Verb {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        context.quiet_logs()?;
        match self {
            Self::Create(verb) => verb.run(context).await,
            Self::List(verb) => verb.run(context).await,
            Self::Restore(verb) => verb.run(context).await,
            Self::Verify(verb) => verb.run(context).await,
        }
    }
}

impl Create {
    async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        let query = self.query.address(context);
        let (name, owners) = owners(&query, &self.collection, self.shard).await?;
        let mut table = Table::new(["SHARD", "NODE", "NUMBER", "FILES", "BYTES", "SENT"]);
        let (mut all, mut failed) = (Vec::new(), false);
        for owner in owners {
            let outcome = take(&name, &owner).await;
            failed |= outcome.is_err();
            match outcome {
                Ok(taken) => {
                    all.push(json!({
                        "shard": owner.shard,
                        "node": owner.node,
                        "number": taken.number,
                        "files": taken.files,
                        "bytes": taken.bytes,
                        "sent_files": taken.sent_files,
                        "sent_bytes": taken.sent_bytes,
                        "taken_ms": taken.taken_ms,
                    }));
                    table.row([
                        owner.shard.to_string(),
                        owner.node,
                        taken.number.to_string(),
                        taken.files.to_string(),
                        ByteSize(taken.bytes).to_string(),
                        ByteSize(taken.sent_bytes).to_string(),
                    ]);
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    writeln!(io::stderr(), "shoal: shard {}: {error}", owner.shard)?;
                    all.push(json!({"shard": owner.shard, "node": owner.node, "error": error}));
                }
            }
        }
        table.print_or(self.json, &json!({"collection": name, "shards": all}))?;
        Ok(code(!failed))
    }
}

/// Has a shard's owner take one. Waits as long as that takes.
async fn take(
    collection: &str,
    owner: &v1::ShardOwner,
) -> anyhow::Result<v1::CreateSnapshotResponse> {
    anyhow::ensure!(!owner.address.is_empty(), "nobody serves it");
    let channel = connect("the indexer", &owner.address).await?;
    let mut client = v1::shard_upkeep_client::ShardUpkeepClient::new(channel);
    let wanted = v1::CreateSnapshotRequest {
        collection: collection.to_owned(),
        shard: owner.shard,
    };
    let taken = client.create_snapshot(wanted).await;
    Ok(taken.map_err(|status| told(&status))?.into_inner())
}

impl Place {
    /// Opens the store and finds the shards meant.
    async fn shelves(&self, context: &Context) -> anyhow::Result<Vec<Shelf>> {
        let settings = &context.loaded.settings.indexer.snapshot;
        let url = self.store.as_ref().or(settings.url.as_ref());
        let url = url.ok_or_else(|| {
            Usage("no object store: name one with --store, or set indexer.snapshot.url".into())
        })?;
        let bucket = Bucket::open(url).map_err(|error| Usage(chain(&error).to_string()))?;
        let store: Arc<dyn Store> = Arc::new(bucket);
        let incarnation = match self.incarnation {
            Some(number) => Offset(number),
            None => snapshot::shelf::incarnations(&*store, &self.collection)
                .await?
                .pop()
                .with_context(|| format!("`{url}` has no snapshot of `{}`", self.collection))?,
        };
        let shards = match self.shard {
            Some(shard) => vec![Partition(shard)],
            None => snapshot::shelf::shards(&*store, &self.collection, incarnation).await?,
        };
        let clock = System::shared();
        let shelves = shards.into_iter().map(|shard| {
            let place = ShardPlace {
                collection: self.collection.clone(),
                incarnation,
                shard,
            };
            Shelf::new(store.clone(), place, clock.clone(), Settings::default())
        });
        Ok(shelves.collect())
    }
}

impl List {
    async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        let headings = [
            "SHARD",
            "NUMBER",
            "TAKEN",
            "NODE",
            "POINTS",
            "FILES",
            "BYTES",
            "DIGEST",
            "POSITIONS",
        ];
        let mut table = Table::new(headings);
        let (mut all, mut whole) = (Vec::new(), true);
        let mut incarnation = None;
        for shelf in self.place.shelves(context).await? {
            let shard = shelf.place().shard;
            incarnation = Some(shelf.place().incarnation.0);
            for (number, found) in shelf.all().await? {
                match found {
                    Ok(manifest) => {
                        all.push(listed(shard, &manifest));
                        table.row([
                            shard.to_string(),
                            number.to_string(),
                            time(manifest.taken_ms),
                            manifest.owner.node.clone(),
                            manifest.points.to_string(),
                            manifest.files.len().to_string(),
                            ByteSize(manifest.bytes()).to_string(),
                            manifest.digest_text().to_owned(),
                            positions(&manifest).join(" "),
                        ]);
                    }
                    Err(error) => {
                        whole = false;
                        let error = chain(&error).to_string();
                        writeln!(io::stderr(), "shoal: {error}")?;
                        all.push(json!({"shard": shard.0, "number": number, "error": error}));
                    }
                }
            }
        }
        let collection = self.place.collection.as_str();
        let answer = json!({
            "collection": collection,
            "incarnation": incarnation,
            "snapshots": all,
        });
        table.print_or(self.json, &answer)?;
        Ok(code(whole))
    }
}

impl Restore {
    async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        for shelf in self.place.shelves(context).await? {
            let shard = shelf.place().shard;
            let folder = self.to.join(shard.to_string());
            let manifest = shelf.restore(self.number, &folder).await?;
            writeln!(
                io::stdout(),
                "shard {shard}: snapshot {} in {} ({} files, {}, {} points)",
                manifest.number,
                folder.display(),
                manifest.files.len() + 1,
                ByteSize(manifest.bytes()),
                manifest.points,
            )?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Verify {
    async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        let mut table = Table::new(["SHARD", "NUMBER", "FILES", "BYTES", "RESULT"]);
        let (mut all, mut faults) = (Vec::new(), Vec::new());
        for shelf in self.place.shelves(context).await? {
            let shard = shelf.place().shard;
            let report = shelf.verify(self.number).await?;
            let told = report.faults.iter().map(
                |fault| json!({"object": fault.object, "path": fault.path, "detail": fault.detail}),
            );
            all.push(json!({
                "shard": shard.0,
                "number": report.number,
                "files": report.files,
                "bytes": report.bytes,
                "faults": told.collect::<Vec<Json>>(),
            }));
            table.row([
                shard.to_string(),
                report.number.to_string(),
                report.files.to_string(),
                ByteSize(report.bytes).to_string(),
                match report.faults.len() {
                    0 => "whole".into(),
                    count => format!("{count} DAMAGED"),
                },
            ]);
            faults.extend(report.faults);
        }
        let collection = self.place.collection.as_str();
        let answer = json!({"collection": collection, "shards": all});
        table.print_or(self.json, &answer)?;
        for fault in &faults {
            let path = fault.path.as_deref().unwrap_or("the manifest");
            writeln!(
                io::stderr(),
                "shoal: {path}, object `{}`: {}",
                fault.object,
                fault.detail
            )?;
        }
        Ok(code(faults.is_empty()))
    }
}

fn listed(shard: Partition, manifest: &Manifest) -> Json {
    let next = manifest.checkpoint.iter().map(|one| {
        json!({
            "cluster": one.source.cluster.to_string(),
            "topic": &*one.source.topic,
            "partition": one.source.partition.0,
            "next_offset": one.next.0,
        })
    });
    json!({
        "shard": shard.0,
        "number": manifest.number,
        "taken_ms": manifest.taken_ms,
        "node": manifest.owner.node,
        "epoch": manifest.owner.epoch.0,
        "points": manifest.points,
        "files": manifest.files.len(),
        "bytes": manifest.bytes(),
        "digest": manifest.digest_text(),
        "positions": next.collect::<Vec<Json>>(),
    })
}

fn positions(manifest: &Manifest) -> Vec<String> {
    let next = manifest.checkpoint.iter().map(|one| {
        let source = &one.source;
        format!(
            "{}/{}/{}={}",
            source.cluster, source.topic, source.partition, one.next.0
        )
    });
    next.collect()
}

/// A moment as a person reads it, in UTC.
fn time(ms: u64) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(ms);
    humantime::format_rfc3339_seconds(at).to_string()
}

fn code(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
