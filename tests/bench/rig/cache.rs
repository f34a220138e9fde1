//! `cache`: Zipf-distributed searches through an edge node that keeps answers in memory and in Redis,
//! while records come in.
//!
//! A repeat begins with an empty Redis and a new edge node in front of a query node that keeps nothing.
//! 200 searches a second are asked whatever comes back; which of the data set's queries each is, is
//! drawn by Zipf's law. 50 records a second give points other points' vectors. The indexer's own count of
//! searches says how many came through to it. Then the same is asked of a query node that keeps answers
//! and lets the shard say whether they hold. Everything shares the machine.

use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use serde_json::{Value, json};
use shoal_producer::Publisher;
use shoal_runtime::{clock::Stopwatch, tasks::blocking};
use shoal_schemas::{Collection, v1};
use tokio::{
    task::{JoinSet, block_in_place},
    time::interval,
};
use tonic::transport::{Channel, Endpoint};

use crate::{
    arguments::Arguments,
    client::{Node, Shard, is_folded},
    embeddings::{Embeddings, K, collection},
    figures::{Latencies, Repeats, round, say},
    place::Place,
    random::Random,
    role::Role,
};

const SEARCHES_PER_SECOND: u32 = 200;
const RECORDS_PER_SECOND: u32 = 50;
const EXPONENT: f64 = 1.0;
const TTL: &str = "5s";
const MEMORY: &str = "64 MiB";

/// A Redis of a repeat, gone with it.
struct Redis {
    process: Child,
    address: SocketAddr,
}

impl Redis {
    fn start(place: &Place) -> anyhow::Result<Self> {
        let address = free()?;
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "redis-server"])
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--port", &address.port().to_string()])
            .current_dir(place.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run setpriv and redis-server (setup/packages)")?;
        Ok(Self { process, address })
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _gone_already = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// What one side came to, over all repeats.
#[derive(Default)]
struct Side {
    backend_share: Repeats,
    hit_ratio: Repeats,
    p50: Repeats,
    p99: Repeats,
    failed: u64,
}

impl Side {
    fn push(&mut self, part: &Part) {
        self.backend_share.push(part.searched / part.asked);
        self.hit_ratio.push(part.kept / part.asked);
        self.p50.push(part.latencies.at(0.5));
        self.p99.push(part.latencies.at(0.99));
        self.failed += part.failed;
    }

    fn figures(&self) -> Value {
        json!({
            "backend_share": round(self.backend_share.median()),
            "backend_share_spread": self.backend_share.spread(),
            "hit_ratio": round(self.hit_ratio.median()),
            "p50_ms": round(self.p50.median()),
            "p99_ms": round(self.p99.median()),
            "failed": self.failed,
        })
    }
}

/// What one part came to.
#[derive(Default)]
struct Part {
    asked: f64,
    /// Searches that the indexer counts.
    searched: f64,
    /// Answers that came with an age.
    kept: f64,
    latencies: Latencies,
    failed: u64,
}

/// The numbers of queries by Zipf's law, each rank one query.
struct Zipf {
    /// Of the ranks up to each, all together 1.
    shares: Vec<f64>,
    /// The query of each rank.
    queries: Vec<usize>,
    random: Random,
}

impl Zipf {
    fn new(queries: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let weights = (1..=queries).map(|rank| (rank as f64).powf(-EXPONENT));
        let mut sum = 0.0;
        let mut shares: Vec<f64> = weights
            .map(|weight| {
                sum += weight;
                sum
            })
            .collect();
        shares.iter_mut().for_each(|share| *share /= sum);
        let mut queries: Vec<usize> = (0..queries).collect();
        random.shuffle(&mut queries);
        Self {
            shares,
            queries,
            random,
        }
    }

    fn next(&mut self) -> usize {
        let drawn = self.random.share();
        let rank = self.shares.partition_point(|share| *share < drawn);
        let rank = rank.min(self.queries.len().saturating_sub(1));
        self.queries.get(rank).copied().unwrap_or_default()
    }
}

struct Bench<'a> {
    arguments: &'a Arguments,
    place: &'a Place,
    collection: &'a Collection,
    embeddings: Arc<Embeddings>,
    publisher: Publisher,
    metrics: SocketAddr,
    http: reqwest::Client,
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Arc::new(Embeddings::load(arguments)?);
    let (repeats, time) = (arguments.repeats_or(3), arguments.time_or(20));
    let rows = embeddings.points.len();
    let place = Place::start().await?;
    let collection = collection("cache")?;
    place.create(&collection).await?;
    place.publish(&collection, &embeddings.points).await?;
    let metrics = free()?;
    let at = metrics.to_string();
    let data = place.folder().join("indexer");
    let more = [("SHOAL_INDEXER__HTTP_LISTEN", at.as_str())];
    let mut indexer = block_in_place(|| Role::indexer_with(arguments, &place, &data, &more))?;
    let mut shard = Shard::connect(indexer.grpc, &collection).await?;
    shard.wait(&mut indexer, rows, is_folded).await?;
    let region = block_in_place(|| Role::query(arguments, &place))?;
    let bench = Bench {
        arguments,
        place: &place,
        collection: &collection,
        embeddings,
        publisher: place.publisher(&collection).await?,
        metrics,
        http: reqwest::Client::new(),
    };
    let (mut edge, mut strict) = (Side::default(), Side::default());
    for repeat in 0..repeats {
        let redis = Redis::start(&place)?;
        let at_edge = bench.edge(&redis, &region, time, repeat as u64).await?;
        let at_shard = bench.strict(&redis, time, repeat as u64).await?;
        for (name, part) in [("edge", &at_edge), ("strict", &at_shard)] {
            say(format!(
                "repeat {repeat}: {name}: {:.3} of {:.0} reach the shard, {:.3} given without asking, \
                 p50 {:.2} ms, p99 {:.2} ms, {} failed",
                part.searched / part.asked,
                part.asked,
                part.kept / part.asked,
                part.latencies.at(0.5),
                part.latencies.at(0.99),
                part.failed
            ))?;
        }
        edge.push(&at_edge);
        strict.push(&at_shard);
    }
    blocking(move || region.stop()).await?;
    blocking(move || indexer.stop()).await?;
    say(format!(
        "\nmedian (lowest - highest) of {repeats} parts of {} s each, {SEARCHES_PER_SECOND} searches/s, \
         {RECORDS_PER_SECOND} records/s\n  edge node, ttl {TTL}: reach the shard {}, given without asking {}, \
         p50 {}\n  strict: reach the shard {}, p50 {}\n  less that reaches the shard is better; 1 without \
         what is kept",
        time.as_secs(),
        edge.backend_share.text(""),
        edge.hit_ratio.text(""),
        edge.p50.text("ms"),
        strict.backend_share.text(""),
        strict.p50.text("ms"),
    ))?;
    Ok(json!({
        "name": "cache",
        "ours": edge.figures(),
        "strict": strict.figures(),
        "reference": { "backend_share": 1.0 },
        "ratio": round(edge.backend_share.median()),
        "backend_share": round(edge.backend_share.median()),
        "hit_ratio": round(edge.hit_ratio.median()),
        "settings": {
            "rows": rows,
            "queries": bench.embeddings.queries.len(),
            "zipf_exponent": EXPONENT,
            "searches_per_second": SEARCHES_PER_SECOND,
            "records_per_second": RECORDS_PER_SECOND,
            "ttl": TTL,
            "memory": MEMORY,
            "seconds": time.as_secs(),
            "partitions": 1,
        },
        "repeats": repeats,
    }))
}

impl Bench<'_> {
    /// The part through an edge node.
    async fn edge(
        &self,
        redis: &Redis,
        region: &Role,
        time: Duration,
        seed: u64,
    ) -> anyhow::Result<Part> {
        let url = format!("redis://{}", redis.address);
        let regions = format!("[{{name = \"region\", address = \"{}\"}}]", region.grpc);
        let more = [
            ("SHOAL_QUERY__EDGE__REGIONS", regions.as_str()),
            ("SHOAL_QUERY__CACHE__MEMORY", MEMORY),
            ("SHOAL_QUERY__CACHE__REDIS", &url),
            ("SHOAL_QUERY__CACHE__TTL", TTL),
        ];
        self.part(&more, time, seed).await
    }

    /// The part in which the shard says whether what is kept holds.
    async fn strict(&self, redis: &Redis, time: Duration, seed: u64) -> anyhow::Result<Part> {
        let url = format!("redis://{}", redis.address);
        let more = [
            ("SHOAL_QUERY__CACHE__MEMORY", MEMORY),
            ("SHOAL_QUERY__CACHE__REDIS", url.as_str()),
        ];
        self.part(&more, time, seed).await
    }

    async fn part(
        &self,
        settings: &[(&str, &str)],
        time: Duration,
        seed: u64,
    ) -> anyhow::Result<Part> {
        let http = free()?;
        let started =
            block_in_place(|| Role::query_with(self.arguments, self.place, http, settings));
        let mut role = started?;
        let first = self
            .embeddings
            .queries
            .first()
            .context("there are queries")?;
        let mut node = Node::connect(role.grpc, self.collection).await?;
        node.wait(&mut role, first).await?;
        let ends = tokio_util::sync::CancellationToken::new();
        let searches = async {
            let part = self.searches(role.grpc, time, seed).await;
            ends.cancel();
            part
        };
        let (part, ()) = tokio::try_join!(searches, self.records(&ends))?;
        blocking(move || role.stop()).await?;
        Ok(part)
    }

    /// Asks at fixed times whatever comes back; a latency begins when its search is due.
    async fn searches(&self, grpc: SocketAddr, time: Duration, seed: u64) -> anyhow::Result<Part> {
        let endpoint = Endpoint::from_shared(format!("http://{grpc}"))?.tcp_nodelay(true);
        let stub = v1::search_client::SearchClient::new(endpoint.connect().await?);
        let mut zipf = Zipf::new(self.embeddings.queries.len(), seed + 1);
        let before = self.counted().await?;
        let watch = Stopwatch::start();
        let period = Duration::from_secs(1) / SEARCHES_PER_SECOND;
        let mut ticks = interval(period);
        let mut asked: JoinSet<anyhow::Result<(Duration, bool)>> = JoinSet::new();
        let mut part = Part::default();
        for number in 0u32.. {
            let due = period * number;
            if due >= time {
                break;
            }
            ticks.tick().await;
            let vector = self.embeddings.queries.get(zipf.next());
            let vector = vector.context("ranks are queries")?.clone();
            let (stub, collection) = (stub.clone(), self.collection.name.to_string());
            part.asked += 1.0;
            asked.spawn(async move {
                let is_kept = search(stub, collection, vector).await?;
                Ok((watch.elapsed().saturating_sub(due), is_kept))
            });
        }
        while let Some(done) = asked.join_next().await {
            match done? {
                Ok((latency, is_kept)) => {
                    part.latencies.push(latency);
                    part.kept += f64::from(u8::from(is_kept));
                }
                Err(why) => {
                    if part.failed == 0 {
                        say(format!("  a search failed: {why:#}"))?;
                    }
                    part.failed += 1;
                }
            }
        }
        part.searched = self.counted().await? - before;
        Ok(part)
    }

    /// Gives points other points' vectors.
    async fn records(&self, ends: &tokio_util::sync::CancellationToken) -> anyhow::Result<()> {
        let mut ticks = interval(Duration::from_secs(1) / RECORDS_PER_SECOND);
        let points = &self.embeddings.points;
        let others = points.iter().cycle().skip(points.len() / 2);
        for ((id, _), (_, other)) in points.iter().cycle().zip(others) {
            ticks.tick().await;
            if ends.is_cancelled() {
                break;
            }
            self.publisher.publish(id, other).await?.await?;
        }
        Ok(())
    }

    /// Searches that the indexer has done.
    async fn counted(&self) -> anyhow::Result<f64> {
        let url = format!("http://{}/metrics", self.metrics);
        let text = self.http.get(url).send().await?.text().await?;
        let lines = text.lines();
        let samples = lines.filter(|line| line.starts_with("indexer_searches_total{"));
        let values = samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        Ok(values.sum())
    }
}

/// Whether the answer was kept.
async fn search(
    mut stub: v1::search_client::SearchClient<Channel>,
    collection: String,
    vector: Vec<f32>,
) -> anyhow::Result<bool> {
    let request = v1::SearchRequest {
        collection,
        vector,
        k: K as u32,
        ..v1::SearchRequest::default()
    };
    let answer = stub.search(request).await?.into_inner();
    let coverage = answer.coverage.context("every answer has a coverage")?;
    Ok(coverage.age_ms.is_some())
}
