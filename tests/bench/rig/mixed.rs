//! `mixed`: searches while records come in, beside the same shard with nothing coming in.
//!
//! Two questions. How late are answers, at 50 searches a second, while records
//! come in as fast as the indexer takes them, beside the same shard at rest? And how many searches a second do
//! two clients get, each asking one after the other, while 500 records a second come in? Records replace the
//! points' vectors, so the set keeps its size.
//!
//! Parts are short and take turns: what a machine can do and what state a shard is in change from one ten
//! seconds to the next. Latencies of a repeat's parts are taken together. Beside 500 records a second there are parts
//! for as many records as make a compaction due, and each is held against the idle ones before and after it. One in
//! which a segment is being built, by compaction or to be sealed, goes on until it is: that work is in the load whole, and in
//! no idle part.
//! Everything shares the machine: broker, indexer, clients and producer. The producer has a
//! thread to itself, and so has the client whose latencies are measured.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use serde_json::{Value, json};
use shoal_runtime::{clock::Stopwatch, tasks::blocking};
use shoal_schemas::v1;
use tokio::{
    task::{JoinSet, block_in_place},
    time::interval,
};
use tokio_util::sync::CancellationToken;

use crate::{
    arguments::Arguments,
    client::{Shard, is_folded, on_this_thread},
    embeddings::{Embeddings, collection},
    feed::{Feed, Load, RECORDS_PER_SECOND, applied, next},
    figures::{Latencies, Repeats, round, say},
    place::Place,
    rest::{IDLE_SHARE, LOOK_EVERY, at_rest, idle},
    role::Role,
};

const SEARCHES_PER_SECOND: u32 = 50;
const CLIENTS: usize = 2;
/// Parts at full speed a repeat.
const FULL_PARTS: u32 = 4;
/// Parts with the steady load a repeat: with parts of five seconds and
/// all rows as many records come in as make a compaction of the shard due, so that its part in the load is
/// what it is in the long run.
const STEADY_PARTS: u32 = 8;
/// What the names of threads begin with that build segments.
const BUILDER: &str = "builder";
/// Share of a processor above which the builder builds a segment. Folding takes a tenth.
const BUILDS: f64 = 0.3;
/// In how much more than an idle part a growing segment is not sealed because nothing comes in.
const QUIET: Duration = Duration::from_secs(6);
/// How long the turns may take in all.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Not counted: load comes up, caches fill.
const WARM_UP: Duration = Duration::from_secs(1);

/// Everything the parts share.
struct Bench {
    indexer: Role,
    seals_after: Duration,
    feed: Arc<Feed>,
}

#[derive(Default)]
struct Fixed {
    p50: Repeats,
    p99: Repeats,
}

impl Fixed {
    fn push(&mut self, latencies: &Latencies) {
        self.p50.push(latencies.at(0.5));
        self.p99.push(latencies.at(0.99));
    }

    fn figures(&self) -> Value {
        json!({
            "p50_ms": round(self.p50.median()),
            "p99_ms": round(self.p99.median()),
            "p50_spread": self.p50.spread(),
            "p99_spread": self.p99.spread(),
        })
    }
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Arc::new(Embeddings::load(arguments)?);
    let (repeats, time) = (arguments.repeats_or(5), arguments.time_or(10));
    let rows = embeddings.points.len();
    let place = Place::start().await?;
    let collection = collection("mixed")?;
    place.create(&collection).await?;
    place.publish(&collection, &embeddings.points).await?;
    let data = place.folder().join("indexer");
    let indexer = start(arguments, &place, &data, rows, seals_after(time))?;
    let feed = Feed {
        grpc: indexer.grpc,
        publisher: place.publisher(&collection).await?,
        embeddings,
        collection,
        published: AtomicU64::new(rows as u64),
    };
    let mut bench = Bench {
        indexer,
        seals_after: seals_after(time),
        feed: Arc::new(feed),
    };
    at_rest(&mut bench.indexer, &data, &bench.feed.collection, rows).await?;

    let (mut idle_fixed, mut full_fixed) = (Fixed::default(), Fixed::default());
    let (mut idle_rate, mut steady_rate) = (Repeats::default(), Repeats::default());
    let (mut full_records, mut steady_records) = (Repeats::default(), Repeats::default());
    let (mut ratios, mut built_beside) = (Repeats::default(), Repeats::default());
    for repeat in 0..repeats {
        let fixed = tokio::time::timeout(PATIENCE, bench.fixed_in_turns(time / 2, rows)).await;
        let (quiet, loaded, records) = fixed.context("the turns took too long")??;
        bench.settle(rows).await?;
        let turns = tokio::time::timeout(PATIENCE, bench.take_turns(time / 2)).await;
        let turns = turns.context("the turns took too long")??;
        bench.settle(rows).await?;
        let (alone, beside, steady) = (turns.alone(), turns.beside(), turns.records());
        say(format!(
            "repeat {repeat}: 50 searches/s p99 {:.2} ms idle, {:.2} ms beside {records:.0} records/s; \
             {alone:.0} searches/s idle, {beside:.0} beside {steady:.0} records/s: {:.3}",
            quiet.at(0.99),
            loaded.at(0.99),
            turns.ratio(),
        ))?;
        ratios.push(turns.ratio());
        built_beside.push(turns.built_beside());
        idle_fixed.push(&quiet);
        full_fixed.push(&loaded);
        idle_rate.push(alone);
        steady_rate.push(beside);
        full_records.push(records);
        steady_records.push(steady);
    }
    let indexer = bench.indexer;
    blocking(move || indexer.stop()).await?;
    let p99_ratio = full_fixed.p99.median() / idle_fixed.p99.median();
    let qps_ratio = ratios.median();
    say(format!(
        "\nmedian (lowest - highest) of {repeats} repeats: {FULL_PARTS} parts at full speed and {STEADY_PARTS} beside {RECORDS_PER_SECOND} records/s of {} s",
        (time / 2).as_secs_f64()
    ))?;
    for (name, fixed) in [("idle", &idle_fixed), ("full speed", &full_fixed)] {
        say(format!(
            "  50 searches/s, {name:10}      p50 {}  p99 {}",
            fixed.p50.text("ms"),
            fixed.p99.text("ms")
        ))?;
    }
    say(format!(
        "  p99 x {p99_ratio:.2}, less is better, at {}",
        full_records.text("records/s")
    ))?;
    say(format!(
        "  {CLIENTS} clients: idle {}  beside {} {}  x {}, more is better",
        idle_rate.text("searches/s"),
        steady_records.text("records/s"),
        steady_rate.text("searches/s"),
        ratios.text("")
    ))?;
    say(format!(
        "  of the builder's processor time {} fell into parts beside records",
        built_beside.text("")
    ))?;
    Ok(json!({
        "name": "mixed",
        "ours": {
            "full_speed": full_fixed.figures(),
            "full_speed_records_per_second": round(full_records.median()),
            "queries_per_second_beside_500": round(steady_rate.median()),
            "queries_per_second_spread": steady_rate.spread(),
            "share_of_building_beside": round(built_beside.median()),
        },
        "reference": {
            "idle": idle_fixed.figures(),
            "queries_per_second": round(idle_rate.median()),
            "queries_per_second_spread": idle_rate.spread(),
        },
        "ratio": round(qps_ratio),
        "qps_ratio_500": round(qps_ratio),
        "qps_ratio_spread": ratios.spread(),
        "p99_ratio_full": round(p99_ratio),
        "settings": {
            "rows": rows,
            "searches_per_second": SEARCHES_PER_SECOND,
            "records_per_second": RECORDS_PER_SECOND,
            "clients": CLIENTS,
            "full_parts": FULL_PARTS,
            "steady_parts": STEADY_PARTS,
            "part_seconds": (time / 2).as_secs_f64(),
            "partitions": 1,
        },
        "repeats": repeats,
    }))
}

/// After what time without records a growing segment is sealed.
fn seals_after(time: Duration) -> Duration {
    WARM_UP + time / 2 + QUIET
}

fn start(
    arguments: &Arguments,
    place: &Place,
    data: &Path,
    rows: usize,
    quiet: Duration,
) -> anyhow::Result<Role> {
    let quiet = format!("{}ms", quiet.as_millis());
    let quiet = ("SHOAL_INDEXER__ENGINE__IDLE_SEAL_AFTER", quiet.as_str());
    block_in_place(|| Role::named(arguments, place, data, rows, &[quiet]))
}

/// Searches a second in parts that took turns.
#[derive(Default)]
struct Turns {
    /// One more than of the others, for there is one before and one after each of them.
    idle: Vec<Rate>,
    steady: Vec<(Rate, f64)>,
    /// Processor time of the builder from the first part to the last, seconds.
    built: f64,
}

/// What clients got in one part.
#[derive(Clone, Copy)]
struct Rate {
    per_second: f64,
    seconds: f64,
    /// Processor time of the builder meanwhile, seconds.
    built: f64,
}

impl Turns {
    fn alone(&self) -> f64 {
        mean(self.idle.iter().map(|one| (one.per_second, one.seconds)))
    }

    fn beside(&self) -> f64 {
        let steady = self.steady.iter();
        mean(steady.map(|(one, _)| (one.per_second, one.seconds)))
    }

    /// Records a second that were applied.
    fn records(&self) -> f64 {
        let steady = self.steady.iter();
        mean(steady.map(|(one, records)| (*records, one.seconds)))
    }

    /// How much of the builder's processor time fell into the counted part of searches beside records.
    fn built_beside(&self) -> f64 {
        self.steady.iter().map(|(one, _)| one.built).sum::<f64>() / self.built
    }

    /// Of each steady part to the idle ones before and after it, by how long it took.
    fn ratio(&self) -> f64 {
        let pairs = self.steady.iter().zip(self.idle.windows(2));
        mean(pairs.map(|((one, _), idle)| {
            let idle = idle.iter().map(|idle| idle.per_second).sum::<f64>() / idle.len() as f64;
            (one.per_second / idle, one.seconds)
        }))
    }
}

/// Ends after so long.
async fn passes(time: Duration) {
    let mut ticks = interval(time);
    ticks.tick().await;
    ticks.tick().await;
}

/// Of values with their weights.
fn mean(values: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (mut sum, mut weights) = (0.0, 0.0);
    for (value, weight) in values {
        sum += value * weight;
        weights += weight;
    }
    sum / weights
}

impl Bench {
    /// Waits until everything is in the graph.
    async fn catch_up(&mut self, rows: usize) -> anyhow::Result<()> {
        let mut shard = Shard::connect(self.indexer.grpc, &self.feed.collection).await?;
        let published = self.feed.published.load(Ordering::Relaxed);
        let is_done = |status: &v1::ShardStatus| is_folded(status) && next(status) >= published;
        shard.wait(&mut self.indexer, rows, is_done).await?;
        Ok(())
    }

    /// Waits until everything is in the graph and the indexer has nothing to do.
    async fn settle(&mut self, rows: usize) -> anyhow::Result<()> {
        self.catch_up(rows).await?;
        // Longer than it waits before it seals.
        let quiet = self.seals_after + 4 * LOOK_EVERY;
        idle(&mut self.indexer, quiet).await
    }

    /// Runs searches beside a load; also the records a second that were applied meanwhile.
    async fn with<T>(
        &self,
        load: Load,
        time: Duration,
        searches: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<(T, f64)> {
        let ends = CancellationToken::new();
        // An error ends the feed, too.
        let _ended = ends.clone().drop_guard();
        let mut shard = Shard::connect(self.indexer.grpc, &self.feed.collection).await?;
        let found = async {
            let (watch, before) = (Stopwatch::start(), applied(&mut shard).await?);
            let found = searches.await?;
            let records = applied(&mut shard).await? - before;
            ends.cancel();
            anyhow::Ok((found, records as f64 / watch.seconds()))
        };
        let feed = blocking({
            let (feed, ends) = (self.feed.clone(), ends.clone());
            move || feed.run(load, &ends)
        });
        let limit = 10 * (WARM_UP + time) + Duration::from_secs(60);
        let both = tokio::time::timeout(limit, async { tokio::try_join!(found, feed) });
        let (found, ()) = both.await??;
        Ok(found)
    }

    /// Latencies at a fixed rate, at rest and at full speed in turns; also the records a second at full speed.
    async fn fixed_in_turns(
        &mut self,
        time: Duration,
        rows: usize,
    ) -> anyhow::Result<(Latencies, Latencies, f64)> {
        let (mut quiet, mut loaded) = (Latencies::default(), Latencies::default());
        let mut records = 0.0;
        for _ in 0..FULL_PARTS {
            quiet.append(self.quietly(time).await?);
            let (latencies, taken) = self
                .with(Load::Full, time, self.at_fixed_rate(time))
                .await?;
            loaded.append(latencies);
            records += taken / f64::from(FULL_PARTS);
            self.catch_up(rows).await?;
        }
        quiet.append(self.quietly(time).await?);
        Ok((quiet, loaded, records))
    }

    /// Latencies at rest: of a part in which no segment was built.
    async fn quietly(&self, time: Duration) -> anyhow::Result<Latencies> {
        loop {
            self.build_ends().await?;
            let before = self.indexer.cpu_seconds_of(BUILDER)?;
            let alone = self.at_fixed_rate(time);
            let (latencies, _) = self.with(Load::Idle, time, alone).await?;
            let built = self.indexer.cpu_seconds_of(BUILDER)? - before;
            if built < IDLE_SHARE * time.as_secs_f64() {
                return Ok(latencies);
            }
        }
    }

    async fn at_fixed_rate(&self, time: Duration) -> anyhow::Result<Latencies> {
        let feed = self.feed.clone();
        blocking(move || on_this_thread(ask_at_fixed_rate(&feed, time))).await
    }

    /// Has clients ask as fast as they are answered, at rest and beside the steady load in turns.
    async fn take_turns(&self, time: Duration) -> anyhow::Result<Turns> {
        let mut turns = Turns::default();
        let before = self.indexer.cpu_seconds_of(BUILDER)?;
        for _ in 0..STEADY_PARTS {
            turns.idle.push(self.at_rest(time).await?);
            let steady = self.saturated(time, Load::Steady);
            turns
                .steady
                .push(self.with(Load::Steady, time, steady).await?);
            // What waits is folded by then.
            self.build_ends().await?;
        }
        turns.idle.push(self.at_rest(time).await?);
        turns.built = self.indexer.cpu_seconds_of(BUILDER)? - before;
        Ok(turns)
    }

    /// Searches a second at rest: of a part in which no segment was built.
    async fn at_rest(&self, time: Duration) -> anyhow::Result<Rate> {
        loop {
            self.build_ends().await?;
            let idle = self.saturated(time, Load::Idle);
            let (rate, _) = self.with(Load::Idle, time, idle).await?;
            if rate.built < IDLE_SHARE * rate.seconds {
                return Ok(rate);
            }
        }
    }

    /// Searches a second of clients that each ask one query after the other; beside a load until no segment is
    /// being built.
    async fn saturated(&self, time: Duration, load: Load) -> anyhow::Result<Rate> {
        let (answered, ends) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let mut shard = Shard::connect(self.indexer.grpc, &self.feed.collection).await?;
            let embeddings = self.feed.embeddings.clone();
            let (answered, ends) = (answered.clone(), ends.clone());
            clients.spawn(async move {
                let first = client * embeddings.queries.len() / CLIENTS;
                for vector in embeddings.queries.iter().cycle().skip(first) {
                    if ends.is_cancelled() {
                        break;
                    }
                    shard.search(vector).await?;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            });
        }
        // They end with an error, too.
        let _ended = ends.clone().drop_guard();
        passes(WARM_UP).await;
        let (watch, before) = (Stopwatch::start(), answered.load(Ordering::Relaxed));
        let built = self.indexer.cpu_seconds_of(BUILDER)?;
        passes(time).await;
        if load != Load::Idle {
            self.build_ends().await?;
        }
        let answered = answered.load(Ordering::Relaxed) - before;
        let seconds = watch.seconds();
        let built = self.indexer.cpu_seconds_of(BUILDER)? - built;
        ends.cancel();
        while let Some(done) = clients.join_next().await {
            done??;
        }
        Ok(Rate {
            per_second: answered as f64 / seconds,
            seconds,
            built,
        })
    }

    /// Waits until the builder has nothing to do but to fold.
    async fn build_ends(&self) -> anyhow::Result<()> {
        let used = || self.indexer.cpu_seconds_of(BUILDER);
        let mut ticks = interval(LOOK_EVERY);
        ticks.tick().await;
        let mut before = used()?;
        loop {
            ticks.tick().await;
            let now = used()?;
            if now - before < BUILDS * LOOK_EVERY.as_secs_f64() {
                return Ok(());
            }
            before = now;
        }
    }
}

/// Asks at fixed times; a latency begins when its search is due, whenever the one before was answered.
async fn ask_at_fixed_rate(feed: &Feed, time: Duration) -> anyhow::Result<Latencies> {
    let mut shard = Shard::connect(feed.grpc, &feed.collection).await?;
    let watch = Stopwatch::start();
    let period = Duration::from_secs(1) / SEARCHES_PER_SECOND;
    let mut latencies = Latencies::default();
    for (number, vector) in (0u32..).zip(feed.embeddings.queries.iter().cycle()) {
        let due = period * number;
        if due >= WARM_UP + time {
            break;
        }
        // Nothing else is done on this thread. A timer of the runtime's would be a millisecond or two late.
        while watch.elapsed() < due {
            thread::park_timeout(due.saturating_sub(watch.elapsed()));
        }
        shard.search(vector).await?;
        if due >= WARM_UP {
            latencies.push(watch.elapsed().saturating_sub(due));
        }
    }
    Ok(latencies)
}
