//! `hedge`: searches at a fixed rate through a query node, while one of two replicas is in trouble.
//!
//! In each repeat five parts of the same length follow each other, 500 searches a second
//! whatever comes back: both replicas well, one stopped (SIGSTOP: its connections stay), one killed
//! (SIGKILL), the same through a query node that hedges no search, and one started anew in good order (SIGTERM, then
//! the same again). The trouble begins
//! with the timed part, so that what it costs until it is noticed is in the figures. A search wants every shard and
//! has the query node's own deadline; one that is not answered has failed. Owner and replica take
//! turns in being the one. Everything shares the machine.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use serde_json::{Value, json};
use shoal_runtime::{clock::Stopwatch, tasks::blocking};
use shoal_schemas::Collection;
use tokio::{
    task::{JoinSet, block_in_place},
    time::interval,
};

use crate::{
    arguments::Arguments,
    client::{Node, Replicas, Shard, is_folded},
    embeddings::{Embeddings, collection},
    figures::{Latencies, Repeats, millis, round, say},
    place::Place,
    role::Role,
};

const SEARCHES_PER_SECOND: u32 = 500;
/// Not counted, in the part where all is well: connections are made, delays are measured.
const WARM_UP: Duration = Duration::from_secs(2);
const SETS: [Option<&str>; 2] = [None, Some("b")];

/// What befalls one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    Stopped,
    Killed,
    /// Killed, and nobody hedges.
    Unhedged,
    Restarted,
}

const PARTS: [(Trouble, &str); 5] = [
    (Trouble::None, "both well"),
    (Trouble::Stopped, "one stopped"),
    (Trouble::Killed, "one killed"),
    (Trouble::Unhedged, "killed, no hedges"),
    (Trouble::Restarted, "one restarted"),
];

/// What one part came to, over all repeats.
#[derive(Default)]
struct Part {
    p50: Repeats,
    p99: Repeats,
    failed: u64,
    /// How long after the trouble's begin the last search that failed was due.
    last_failed: Duration,
    asked: u64,
}

impl Part {
    fn figures(&self) -> Value {
        json!({
            "p50_ms": round(self.p50.median()),
            "p99_ms": round(self.p99.median()),
            "p99_spread": self.p99.spread(),
            "failed": self.failed,
            "last_failed_ms": round(millis(self.last_failed)),
            "asked": self.asked,
        })
    }
}

/// Two indexers, each with every shard, and a query node in front.
struct Bench<'a> {
    arguments: &'a Arguments,
    place: &'a Place,
    collection: &'a Collection,
    embeddings: Arc<Embeddings>,
    /// One a set; none while it is down.
    indexers: [Option<Role>; 2],
    query: Role,
    /// One that hedges no search.
    plain: Role,
}

/// Searches under way, and what came of them.
struct Outcome {
    latencies: Latencies,
    failed: u64,
    last_failed: Duration,
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Arc::new(Embeddings::load(arguments)?);
    let (repeats, time) = (arguments.repeats_or(4), arguments.time_or(10));
    let rows = embeddings.points.len();
    let place = Place::start().await?;
    let collection = collection("hedge")?;
    place.create(&collection).await?;
    place.publish(&collection, &embeddings.points).await?;
    let mut bench = Bench {
        arguments,
        place: &place,
        collection: &collection,
        embeddings,
        indexers: [None, None],
        query: block_in_place(|| Role::query(arguments, &place))?,
        plain: block_in_place(|| {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let never = [("SHOAL_QUERY__HEDGE__ENABLED", "false")];
            Role::query_with(arguments, &place, any, &never)
        })?,
    };
    for at in 0..SETS.len() {
        bench.start(at)?;
        bench.serves(at).await?;
    }
    let mut parts: [Part; 5] = Default::default();
    for repeat in 0..repeats {
        for ((trouble, name), part) in PARTS.iter().zip(&mut parts) {
            let Outcome {
                latencies,
                failed,
                last_failed,
            } = bench.run(*trouble, repeat % 2, time).await?;
            say(format!(
                "repeat {repeat}: {name}: p50 {:.2} ms, p99 {:.2} ms, {failed} failed of {}",
                latencies.at(0.5),
                latencies.at(0.99),
                latencies.len() as u64 + failed,
            ))?;
            part.p50.push(latencies.at(0.5));
            part.p99.push(latencies.at(0.99));
            part.failed += failed;
            part.last_failed = part.last_failed.max(last_failed);
            part.asked += latencies.len() as u64 + failed;
        }
    }
    let [well, stopped, killed, unhedged, restarted] = &parts;
    let ratio = |part: &Part| part.p99.median() / well.p99.median();
    say(format!(
        "\nmedian (lowest - highest) of {repeats} parts of {} s each, {SEARCHES_PER_SECOND} searches/s",
        time.as_secs()
    ))?;
    for ((_, name), part) in PARTS.iter().zip(&parts) {
        say(format!(
            "  {name:18} p50 {}  p99 {}  x {:.2}  failed {} of {}{}",
            part.p50.text("ms"),
            part.p99.text("ms"),
            ratio(part),
            part.failed,
            part.asked,
            match part.failed {
                0 => String::new(),
                _ => format!(
                    ", the last {:.0} ms after the trouble began",
                    millis(part.last_failed)
                ),
            }
        ))?;
    }
    let hedged = PARTS.iter().zip(&parts);
    let hedged = hedged.filter(|((trouble, _), _)| *trouble != Trouble::Unhedged);
    let failed: u64 = hedged.map(|(_, part)| part.failed).sum();
    Ok(json!({
        "name": "hedge",
        "ours": {
            "stopped": stopped.figures(),
            "killed": killed.figures(),
            "killed_without_hedges": unhedged.figures(),
            "restarted": restarted.figures(),
        },
        "reference": well.figures(),
        "ratio": round(ratio(stopped)),
        "p99_ratio": round(ratio(stopped)),
        "p99_ratio_killed": round(ratio(killed)),
        "p99_ratio_restarted": round(ratio(restarted)),
        "failed": failed,
        "settings": {
            "rows": rows,
            "searches_per_second": SEARCHES_PER_SECOND,
            "seconds": time.as_secs(),
            "partitions": 1,
            "replicas": SETS.len(),
        },
        "repeats": repeats,
    }))
}

impl Bench<'_> {
    fn indexer(&mut self, at: usize) -> anyhow::Result<&mut Role> {
        let indexer = self.indexers.get_mut(at).and_then(Option::as_mut);
        indexer.context("the indexer runs")
    }

    fn take(&mut self, at: usize) -> anyhow::Result<Role> {
        let indexer = self.indexers.get_mut(at).and_then(Option::take);
        indexer.context("the indexer runs")
    }

    fn start(&mut self, at: usize) -> anyhow::Result<()> {
        let (place, set) = (self.place, SETS.get(at).copied().flatten());
        let folder = place.folder().join(format!("indexer-{at}"));
        let rows = self.embeddings.points.len();
        let started = block_in_place(|| Role::replica(self.arguments, place, &folder, rows, set))?;
        let held = self
            .indexers
            .get_mut(at)
            .context("there are two indexers")?;
        *held = Some(started);
        Ok(())
    }

    /// Waits until an indexer serves every row from its graph.
    async fn serves(&mut self, at: usize) -> anyhow::Result<()> {
        let rows = self.embeddings.points.len();
        let grpc = self.indexer(at)?.grpc;
        let mut shard = Shard::connect(grpc, self.collection).await?;
        shard.wait(self.indexer(at)?, rows, is_folded).await?;
        Ok(())
    }

    /// Waits until the query node has read that both indexers serve where they are now.
    async fn both_are_known(&mut self) -> anyhow::Result<()> {
        let running = self.indexers.iter().flatten();
        let addresses: Vec<String> = running.map(|one| one.grpc.to_string()).collect();
        for query in [&self.query, &self.plain] {
            let mut replicas = Replicas::connect(query.grpc, self.collection).await?;
            replicas.wait(&addresses).await?;
        }
        Ok(())
    }

    /// Searches for a while; the trouble begins with them. Everything is well again when it
    /// returns.
    async fn run(
        &mut self,
        trouble: Trouble,
        at: usize,
        time: Duration,
    ) -> anyhow::Result<Outcome> {
        self.both_are_known().await?;
        // What both answer in it tells what a usual answer takes.
        let query = match trouble {
            Trouble::Unhedged => self.plain.grpc,
            _ => self.query.grpc,
        };
        self.searches(query, WARM_UP).await?;
        let mut searches = JoinSet::new();
        searches.spawn(self.searches(query, time));
        match trouble {
            Trouble::None => {}
            Trouble::Stopped => self.indexer(at)?.pause()?,
            Trouble::Killed | Trouble::Unhedged => {
                let indexer = self.take(at)?;
                blocking(move || indexer.kill()).await?;
            }
            Trouble::Restarted => {
                let indexer = self.take(at)?;
                blocking(move || indexer.stop()).await?;
                self.start(at)?;
            }
        }
        let found = searches.join_next().await.context("it was started")?;
        match trouble {
            Trouble::None | Trouble::Restarted => {}
            Trouble::Stopped => self.indexer(at)?.resume()?,
            Trouble::Killed | Trouble::Unhedged => self.start(at)?,
        }
        self.serves(at).await?;
        found?
    }

    /// Asks at fixed times whatever comes back; a latency begins when its search is due.
    fn searches(
        &self,
        query: SocketAddr,
        time: Duration,
    ) -> impl Future<Output = anyhow::Result<Outcome>> + Send + use<> {
        let collection = self.collection.clone();
        let embeddings = self.embeddings.clone();
        async move {
            let node = Node::connect(query, &collection).await?;
            let watch = Stopwatch::start();
            let period = Duration::from_secs(1) / SEARCHES_PER_SECOND;
            let mut ticks = interval(period);
            let mut asked: JoinSet<(Duration, anyhow::Result<Duration>)> = JoinSet::new();
            for (number, vector) in (0u32..).zip(embeddings.queries.iter().cycle()) {
                let due = period * number;
                if due >= time {
                    break;
                }
                ticks.tick().await;
                let (mut node, vector) = (node.clone(), vector.clone());
                asked.spawn(async move {
                    let answered = node.search(&vector, None).await;
                    let took = watch.elapsed().saturating_sub(due);
                    (due, answered.map(|_| took))
                });
            }
            let mut outcome = Outcome {
                latencies: Latencies::default(),
                failed: 0,
                last_failed: Duration::ZERO,
            };
            while let Some(done) = asked.join_next().await {
                match done? {
                    (_, Ok(latency)) => outcome.latencies.push(latency),
                    (due, Err(why)) => {
                        if outcome.failed == 0 {
                            say(format!("  a search failed: {why:#}"))?;
                        }
                        outcome.failed += 1;
                        outcome.last_failed = outcome.last_failed.max(due);
                    }
                }
            }
            Ok(outcome)
        }
    }
}
