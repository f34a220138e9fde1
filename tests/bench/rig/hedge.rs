//! `hedge`: searches at a fixed rate through a query node, while one of two replicas is in trouble.
//!
//! In each repeat four parts of the same length follow each other, 500 searches a second
//! whatever comes back: both replicas well, one stopped (SIGSTOP: its connections stay), one killed
//! (SIGKILL), and one started anew in good order (SIGTERM, then the same again). The trouble begins
//! with the timed part, so that what it costs until it is noticed is in the figures. A search wants every shard and
//! has the query node's own deadline; one that is not answered has failed. Owner and replica take
//! turns in being the one. Everything shares the machine.

use std::{sync::Arc, time::Duration};

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
    figures::{Latencies, Repeats, round, say},
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
    Restarted,
}

const PARTS: [(Trouble, &str); 4] = [
    (Trouble::None, "both well"),
    (Trouble::Stopped, "one stopped"),
    (Trouble::Killed, "one killed"),
    (Trouble::Restarted, "one restarted"),
];

/// What one part came to, over all repeats.
#[derive(Default)]
struct Part {
    p50: Repeats,
    p99: Repeats,
    failed: u64,
    asked: u64,
}

impl Part {
    fn figures(&self) -> Value {
        json!({
            "p50_ms": round(self.p50.median()),
            "p99_ms": round(self.p99.median()),
            "p99_spread": self.p99.spread(),
            "failed": self.failed,
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
    };
    for at in 0..SETS.len() {
        bench.start(at)?;
        bench.serves(at).await?;
    }
    let mut parts: [Part; 4] = Default::default();
    for repeat in 0..repeats {
        for ((trouble, name), part) in PARTS.iter().zip(&mut parts) {
            let (latencies, failed) = bench.run(*trouble, repeat % 2, time).await?;
            say(format!(
                "repeat {repeat}: {name}: p50 {:.2} ms, p99 {:.2} ms, {failed} failed of {}",
                latencies.at(0.5),
                latencies.at(0.99),
                latencies.len() as u64 + failed,
            ))?;
            part.p50.push(latencies.at(0.5));
            part.p99.push(latencies.at(0.99));
            part.failed += failed;
            part.asked += latencies.len() as u64 + failed;
        }
    }
    let [well, stopped, killed, restarted] = &parts;
    let ratio = |part: &Part| part.p99.median() / well.p99.median();
    say(format!(
        "\nmedian (lowest - highest) of {repeats} parts of {} s each, {SEARCHES_PER_SECOND} searches/s",
        time.as_secs()
    ))?;
    for ((_, name), part) in PARTS.iter().zip(&parts) {
        say(format!(
            "  {name:14} p50 {}  p99 {}  x {:.2}  failed {} of {}",
            part.p50.text("ms"),
            part.p99.text("ms"),
            ratio(part),
            part.failed,
            part.asked
        ))?;
    }
    let failed: u64 = parts.iter().map(|part| part.failed).sum();
    Ok(json!({
        "name": "hedge",
        "ours": {
            "stopped": stopped.figures(),
            "killed": killed.figures(),
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
        let mut replicas = Replicas::connect(self.query.grpc, self.collection).await?;
        replicas.wait(&addresses).await
    }

    /// Searches for a while; the trouble begins with them. Everything is well again when it
    /// returns.
    async fn run(
        &mut self,
        trouble: Trouble,
        at: usize,
        time: Duration,
    ) -> anyhow::Result<(Latencies, u64)> {
        self.both_are_known().await?;
        // What both answer in it tells what a usual answer takes.
        self.searches(WARM_UP).await?;
        let mut searches = JoinSet::new();
        searches.spawn(self.searches(time));
        match trouble {
            Trouble::None => {}
            Trouble::Stopped => self.indexer(at)?.pause()?,
            Trouble::Killed => {
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
            Trouble::Killed => self.start(at)?,
        }
        self.serves(at).await?;
        found?
    }

    /// Asks at fixed times whatever comes back; a latency begins when its search is due. Also how
    /// many got no answer.
    fn searches(
        &self,
        time: Duration,
    ) -> impl Future<Output = anyhow::Result<(Latencies, u64)>> + Send + use<> {
        let (query, collection) = (self.query.grpc, self.collection.clone());
        let embeddings = self.embeddings.clone();
        async move {
            let node = Node::connect(query, &collection).await?;
            let watch = Stopwatch::start();
            let period = Duration::from_secs(1) / SEARCHES_PER_SECOND;
            let mut ticks = interval(period);
            let mut asked: JoinSet<anyhow::Result<Duration>> = JoinSet::new();
            for (number, vector) in (0u32..).zip(embeddings.queries.iter().cycle()) {
                let due = period * number;
                if due >= time {
                    break;
                }
                ticks.tick().await;
                let (mut node, vector) = (node.clone(), vector.clone());
                asked.spawn(async move {
                    node.search(&vector, None).await?;
                    Ok(watch.elapsed().saturating_sub(due))
                });
            }
            let (mut latencies, mut failed) = (Latencies::default(), 0);
            while let Some(done) = asked.join_next().await {
                match done? {
                    Ok(latency) => latencies.push(latency),
                    Err(why) => {
                        if failed == 0 {
                            say(format!("  a search failed: {why:#}"))?;
                        }
                        failed += 1;
                    }
                }
            }
            Ok((latencies, failed))
        }
    }
}
