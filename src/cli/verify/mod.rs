//! `shoal verify`: what every shard holds, by its digest, and whether two nodes hold the same.
//!
//! Equal digests mean equal points. Unequal ones mean that points differ where both have applied
//! the same sources to the same offsets, and then some of the points are named; elsewhere the
//! answer is "not yet", never "different".

pub(super) mod copies;
mod differences;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value as Json, json};
use shoal_indexer::shard::offline::open_offline;
use shoal_runtime::{clock::System, tasks::blocking};
use shoal_schemas::v1;
use tonic::transport::Channel;

use self::{copies::Place, differences::Found};
use super::{
    Context, Usage,
    addresses::QueryFlag,
    query_link::{connect, request, told},
    table::Table,
};

/// Ends so where nothing differs and not everything can be compared: asked again later, it may be.
const NOT_COMPARED: u8 = 3;

/// What to verify.
///
/// Ends with 0 when every shard answers and, where two sides are compared, all of them are equal; with 1 when some differ, are
/// on one side only or silent, 2 for a wrong command line, and 3 when some are not at the same positions, so that nothing can be said.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The collections [default: all]
    collections: Vec<String>,
    /// Only this shard
    #[arg(long, value_name = "N")]
    shard: Option<u32>,
    /// Compare with what another query node's indexers hold, host:port
    #[arg(long, value_name = "ADDRESS")]
    against: Option<String>,
    /// Compare with a shard's folder that no indexer has open, such as a restored snapshot's
    #[arg(
        long,
        value_name = "DIR",
        requires = "shard",
        conflicts_with = "against"
    )]
    against_folder: Option<PathBuf>,
    /// How many ids that differ are named, for each shard
    #[arg(long, default_value_t = 10, value_name = "N")]
    ids: usize,
    /// Name ids also where the two are not at the same positions, as in two regions: records on
    /// their way count as differences then
    #[arg(long)]
    anyway: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Longest time for one answer, milliseconds
    #[arg(long, default_value_t = 10_000, value_name = "MS")]
    timeout_ms: u64,
    #[command(flatten)]
    query: QueryFlag,
}

/// What one indexer says of one shard, or why it says nothing.
#[derive(Clone, Debug)]
struct Held {
    node: String,
    copy: Place,
    outcome: Result<Facts, String>,
}

#[derive(Clone, Debug, PartialEq)]
struct Facts {
    points: u64,
    contested: u64,
    digest: String,
    /// Next offset by source.
    positions: BTreeMap<String, u64>,
}

pub(super) type Shard = (String, u32);

/// How a shard compares with its counterpart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Equal,
    Different,
    NotComparable,
    /// One side has no such shard.
    OneSided,
}

impl Verdict {
    fn of(here: Option<&Held>, there: Option<&Held>) -> Self {
        if here.is_some() != there.is_some() {
            return Self::OneSided;
        }
        let facts = |held: Option<&Held>| held.and_then(|held| held.outcome.clone().ok());
        match (facts(here), facts(there)) {
            (Some(here), Some(there)) => {
                // Not by points: expired ones are hidden at one moment or the next, and of a
                // contested id a rebuilt shard may have nothing to serve. The digest knows both.
                let same = here.digest == there.digest && here.contested == there.contested;
                match (same, here.positions == there.positions) {
                    (true, _) => Self::Equal,
                    (false, true) => Self::Different,
                    (false, false) => Self::NotComparable,
                }
            }
            _ => Self::NotComparable,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Different => "DIFFERENT",
            Self::NotComparable => "not comparable: not at the same positions",
            Self::OneSided => "on one side only",
        }
    }
}

/// Whether a shard is what it is elsewhere, and where not.
struct Compared {
    verdict: Verdict,
    /// Ids that differ, or why they are not named; nothing if they were not looked for.
    found: Option<Result<Found, String>>,
}

impl Verify {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        context.quiet_logs()?;
        let here = self.ask(&self.query.address(context)).await?;
        let there = match (&self.against, &self.against_folder) {
            (Some(address), _) => Some(self.ask(address).await?),
            (None, Some(folder)) => Some(self.open(folder).await?),
            (None, None) => None,
        };
        let is_nothing = here.is_empty() && there.as_ref().is_none_or(BTreeMap::is_empty);
        if is_nothing && self.shard.is_some() {
            return Err(Usage("there is no such shard".into()).into());
        }
        let mut compared = BTreeMap::new();
        if let Some(there) = &there {
            for shard in here.keys().chain(there.keys()) {
                if !compared.contains_key(shard) {
                    let outcome = self.compare(shard, here.get(shard), there.get(shard)).await;
                    compared.insert(shard.clone(), outcome);
                }
            }
        }
        let mut out = io::stdout().lock();
        if self.json {
            let all = json!({
                "shards": listed(&here),
                "against": there.as_ref().map(listed),
                "verdicts": there.as_ref().map(|_| verdicts(&compared)),
            });
            writeln!(out, "{all}")?;
        } else {
            table(&here).write(&mut out)?;
            if let Some(there) = &there {
                writeln!(out)?;
                table(there).write(&mut out)?;
            }
            for ((collection, shard), compared) in &compared {
                writeln!(out, "{collection}/{shard}: {}", compared.verdict.text())?;
                match &compared.found {
                    Some(Ok(found)) => found.write(&mut out)?,
                    Some(Err(why)) => writeln!(out, "  ids that differ are not named: {why}")?,
                    None => {}
                }
            }
        }
        out.flush()?;
        let mut held = here.values().chain(there.iter().flat_map(BTreeMap::values));
        let is_silent = held.any(|held| held.outcome.is_err());
        let is_any = |verdict| compared.values().any(|one| one.verdict == verdict);
        let differs = is_any(Verdict::Different) || is_any(Verdict::OneSided);
        Ok(if is_silent || differs {
            ExitCode::FAILURE
        } else if is_any(Verdict::NotComparable) {
            ExitCode::from(NOT_COMPARED)
        } else {
            ExitCode::SUCCESS
        })
    }

    /// Compares two copies of a shard, and looks for ids that differ if some do.
    async fn compare(&self, shard: &Shard, here: Option<&Held>, there: Option<&Held>) -> Compared {
        let verdict = Verdict::of(here, there);
        let wanted = match verdict {
            Verdict::Equal | Verdict::OneSided => false,
            Verdict::Different => self.ids > 0,
            Verdict::NotComparable => self.ids > 0 && self.anyway,
        };
        let found = match (here, there) {
            (Some(here), Some(there)) if wanted => {
                let found = async {
                    let timeout = Duration::from_millis(self.timeout_ms);
                    let here = here.copy.open(shard, timeout).await?;
                    let there = there.copy.open(shard, timeout).await?;
                    differences::find(&here, &there, self.ids).await
                };
                Some(found.await.map_err(|error| format!("{error:#}")))
            }
            _ => None,
        };
        Compared { verdict, found }
    }

    /// Opens a folder as the one shard that is compared.
    async fn open(&self, folder: &Path) -> anyhow::Result<BTreeMap<Shard, Held>> {
        let [collection] = self.collections.as_slice() else {
            return Err(Usage("--against-folder is about one collection; name it".into()).into());
        };
        let path = folder.to_owned();
        let shared = blocking(move || open_offline(&path, System::shared())).await;
        let shared = shared.with_context(|| format!("cannot open `{}`", folder.display()))?;
        let is = (shared.spec.collection.name.to_string(), shared.spec.shard.0);
        let wanted = (collection.clone(), self.shard.unwrap_or_default());
        if is != wanted {
            return Err(Usage(format!(
                "`{}` is shard {}/{}, not {}/{}",
                folder.display(),
                is.0,
                is.1,
                wanted.0,
                wanted.1
            ))
            .into());
        }
        let mut status = shared.status();
        status.coverage = Some(v1::ShardCoverage {
            answered: true,
            ..v1::ShardCoverage::default()
        });
        let held = Held {
            node: "(folder)".into(),
            copy: Place::Folder(folder.to_owned(), shared),
            outcome: facts(status),
        };
        Ok([(is, held)].into())
    }

    /// Asks every indexer that a query node knows of.
    async fn ask(&self, address: &str) -> anyhow::Result<BTreeMap<Shard, Held>> {
        let channel = connect("the query node", address).await?;
        let mut node = v1::collections_client::CollectionsClient::new(channel);
        let timeout = Duration::from_millis(self.timeout_ms);
        let mut names = self.collections.clone();
        if names.is_empty() {
            let wanted = request(v1::ListCollectionsRequest {}, timeout);
            let all = node.list_collections(wanted).await;
            let all = all.map_err(|status| told(&status))?.into_inner();
            names = all
                .collections
                .into_iter()
                .map(|found| found.name)
                .collect();
        }
        let mut indexers = Indexers {
            timeout,
            open: BTreeMap::new(),
        };
        let mut held = BTreeMap::new();
        for name in names {
            let wanted = v1::GetCollectionRequest { name: name.clone() };
            let found = node.get_collection(request(wanted, timeout)).await;
            let found = found.map_err(|status| told(&status))?.into_inner();
            // Its own, where it was asked for by an alias.
            let name = found.collection.map_or(name, |found| found.name);
            let owners = found.shards.into_iter();
            for owner in owners.filter(|owner| self.shard.is_none_or(|one| one == owner.shard)) {
                let outcome = indexers.status(&name, &owner).await;
                let shard = (name.clone(), owner.shard);
                let held_there = Held {
                    node: owner.node,
                    copy: Place::Indexer(owner.address),
                    outcome,
                };
                held.insert(shard, held_there);
            }
        }
        Ok(held)
    }
}

fn verdicts(compared: &BTreeMap<Shard, Compared>) -> Vec<Json> {
    let rows = compared.iter().map(|((collection, shard), compared)| {
        let mut row = json!({
            "collection": collection,
            "shard": shard,
            "verdict": compared.verdict.text(),
        });
        match &compared.found {
            Some(Ok(found)) => row["differences"] = found.json(),
            Some(Err(why)) => row["error"] = json!(why),
            None => {}
        }
        row
    });
    rows.collect()
}

/// Connections to indexers.
struct Indexers {
    timeout: Duration,
    open: BTreeMap<String, v1::shard_client::ShardClient<Channel>>,
}

impl Indexers {
    async fn status(&mut self, collection: &str, owner: &v1::ShardOwner) -> Result<Facts, String> {
        if owner.address.is_empty() {
            return Err("nobody serves it".into());
        }
        if !self.open.contains_key(&owner.address) {
            let channel = connect("the indexer", &owner.address).await;
            let channel = channel.map_err(|error| format!("{error:#}"))?;
            let client = v1::shard_client::ShardClient::new(channel);
            self.open.insert(owner.address.clone(), client);
        }
        let client = self.open.get_mut(&owner.address).ok_or("not connected")?;
        let wanted = v1::ShardStatusRequest {
            collection: collection.to_owned(),
            shards: vec![v1::ShardAsk {
                shard: owner.shard,
                at_least: Vec::new(),
            }],
        };
        let answer = client.shard_status(request(wanted, self.timeout)).await;
        let answer = answer.map_err(|status| format!("{:#}", told(&status)))?;
        let status = answer.into_inner().shards.into_iter().next();
        facts(status.ok_or("it answers nothing")?)
    }
}

fn facts(status: v1::ShardStatus) -> Result<Facts, String> {
    let coverage = status.coverage.unwrap_or_default();
    if !coverage.answered {
        return Err(coverage.error);
    }
    let positions = status.positions.iter().map(|position| {
        let v1::SourcePosition {
            cluster_id,
            topic,
            partition,
            next_offset,
            ..
        } = position;
        (format!("{cluster_id}/{topic}/{partition}"), *next_offset)
    });
    Ok(Facts {
        points: status.live_points,
        contested: status.contested,
        digest: status
            .digest
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        positions: positions.collect(),
    })
}

fn table(held: &BTreeMap<Shard, Held>) -> Table {
    let headings = [
        "COLLECTION",
        "SHARD",
        "NODE",
        "POINTS",
        "CONTESTED",
        "DIGEST",
        "POSITIONS",
    ];
    let mut table = Table::new(headings);
    for ((collection, shard), held) in held {
        let (points, contested, digest, positions) = match &held.outcome {
            Ok(facts) => {
                let positions = facts.positions.iter();
                let positions = positions.map(|(source, next)| format!("{source}={next}"));
                (
                    facts.points.to_string(),
                    facts.contested.to_string(),
                    facts.digest.clone(),
                    positions.collect::<Vec<_>>().join(" "),
                )
            }
            Err(why) => (String::new(), String::new(), String::new(), why.clone()),
        };
        table.row([
            collection.clone(),
            shard.to_string(),
            held.node.clone(),
            points,
            contested,
            digest,
            positions,
        ]);
    }
    table
}

fn listed(held: &BTreeMap<Shard, Held>) -> Vec<Json> {
    let rows = held.iter().map(|((collection, shard), held)| {
        let mut row = json!({
            "collection": collection,
            "shard": shard,
            "node": held.node,
            "address": held.copy.to_string(),
        });
        match &held.outcome {
            Ok(facts) => {
                row["points"] = json!(facts.points);
                row["contested"] = json!(facts.contested);
                row["digest"] = json!(facts.digest);
                row["positions"] = json!(facts.positions);
            }
            Err(why) => row["error"] = json!(why),
        }
        row
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use super::{Facts, Held, Place, Verdict};

    fn held(digest: &str, next: u64) -> Held {
        Held {
            node: "a".into(),
            copy: Place::Indexer("x".into()),
            outcome: Ok(Facts {
                points: 1,
                contested: 0,
                digest: digest.into(),
                positions: [("c/t/0".to_owned(), next)].into(),
            }),
        }
    }

    #[test]
    fn digests_count_at_equal_positions_only() {
        let (a, b, ahead) = (held("1", 5), held("2", 5), held("2", 6));
        assert_eq!(Verdict::of(Some(&a), Some(&a.clone())), Verdict::Equal);
        assert_eq!(Verdict::of(Some(&a), Some(&b)), Verdict::Different);
        assert_eq!(Verdict::of(Some(&a), Some(&ahead)), Verdict::NotComparable);
        assert_eq!(Verdict::of(Some(&a), None), Verdict::OneSided);
        assert_eq!(Verdict::of(None, Some(&a)), Verdict::OneSided);
        // Two regions are never at the same offsets, and can hold the same all the same.
        let elsewhere = held("1", 99);
        assert_eq!(Verdict::of(Some(&a), Some(&elsewhere)), Verdict::Equal);
        let mut expired = a.clone();
        expired.outcome = expired.outcome.map(|facts| Facts { points: 0, ..facts });
        assert_eq!(Verdict::of(Some(&a), Some(&expired)), Verdict::Equal);
        let mut silent = a.clone();
        silent.outcome = Err("away".into());
        assert_eq!(Verdict::of(Some(&a), Some(&silent)), Verdict::NotComparable);
    }
}
