//! `fanout`: what a search of eight shards on two indexers costs beside one of a single shard that
//! holds the same, at the same recall.
//!
//! Each side has a broker, indexers and a query node of its own, so that neither waits for the
//! other; only one is asked at a time, and they are asked in turns. Two clients ask the query node,
//! which makes one call to each indexer. What counts is the processor time of all servers a query,
//! from the kernel's own count; the clients are left out. Beam widths are swept on both sides; `own`
//! is what a search costs that leaves the beam to Shoal.

use std::{collections::BTreeMap, net::SocketAddr, ops::AddAssign, time::Duration};

use anyhow::{Context as _, anyhow};
use serde_json::{Value, json};
use shoal_runtime::{clock::Stopwatch, tasks::blocking};
use shoal_schemas::{Collection, Partition, route};
use tokio::task::block_in_place;

use crate::{
    arguments::Arguments,
    client::{Node, Replicas, on_this_thread},
    curve::{At, BEAMS, Swept, at_recall, worth_timing},
    embeddings::{Embeddings, K, partitioned},
    figures::{Repeats, round, say},
    place::Place,
    rest::all_at_rest,
    role::Role,
};

const THREADS: usize = 2;
const TARGET: f64 = 0.95;
/// Partitions and indexers of each side.
const SIDES: [(&str, u32, u32); 2] = [("one shard", 1, 1), ("eight shards", 8, 2)];

/// Parts in which each beam width is timed.
const TURNS: u32 = 4;

/// The servers of one side.
struct Side {
    name: &'static str,
    collection: Collection,
    indexers: Vec<Role>,
    query: Role,
    // Last: the others log into its folder.
    _place: Place,
}

/// What one beam width came to; 0 is the collection's own.
#[derive(Clone, Debug)]
struct Point {
    swept: Swept,
    indexer_us: Repeats,
    coordinator_us: Repeats,
}

impl Point {
    fn figures(&self) -> Value {
        let total = self.indexer_us.median() + self.coordinator_us.median();
        json!({
            "ef": self.swept.ef,
            "recall_at_10": round(self.swept.recall),
            "queries_per_second": round(self.swept.rate.median()),
            "cpu_us": round(total),
            "indexer_cpu_us": round(self.indexer_us.median()),
            "coordinator_cpu_us": round(self.coordinator_us.median()),
        })
    }
}

/// What some queries took: processor seconds of all indexers and of the query node.
#[derive(Clone, Copy, Default)]
struct Cost {
    queries: f64,
    seconds: f64,
    indexer_seconds: f64,
    coordinator_seconds: f64,
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.queries += other.queries;
        self.seconds += other.seconds;
        self.indexer_seconds += other.indexer_seconds;
        self.coordinator_seconds += other.coordinator_seconds;
    }
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Embeddings::load(arguments)?;
    let (repeats, time) = (arguments.repeats_or(3), arguments.time_or(2));
    let mut sides = Vec::new();
    for (name, partitions, indexers) in SIDES {
        sides.push(Side::start(arguments, &embeddings, name, partitions, indexers).await?);
    }
    let mut curves: Vec<Vec<Point>> = Vec::new();
    for side in &sides {
        let mut recalls = Vec::new();
        for ef in BEAMS {
            recalls.push(block_in_place(|| side.recall(&embeddings, ef))?);
        }
        let own = block_in_place(|| side.recall(&embeddings, 0))?;
        say(format!(
            "{}: recall@{K} by beam {:?}",
            side.name,
            listed(&recalls)
        ))?;
        let chosen = worth_timing(&recalls, TARGET, TARGET);
        let recall_of = |ef: usize| BEAMS.iter().zip(&recalls).find(|(beam, _)| **beam == ef);
        let points = chosen.into_iter().map(|ef| {
            let recall = recall_of(ef).map_or(0.0, |(_, recall)| *recall);
            Point::new(ef, recall)
        });
        curves.push([Point::new(0, own)].into_iter().chain(points).collect());
    }
    for repeat in 0..repeats {
        take_turns(&sides, &mut curves, &embeddings, time)?;
        for (side, curve) in sides.iter().zip(&curves) {
            for point in curve {
                say(format!(
                    "repeat {repeat}: {:12} ef {:3}: recall@{K} {:.4}, {:.0} us of processor",
                    side.name,
                    point.swept.ef,
                    point.swept.recall,
                    point.indexer_us.last() + point.coordinator_us.last(),
                ))?;
            }
        }
    }
    for side in sides {
        for indexer in side.indexers {
            blocking(move || indexer.stop()).await?;
        }
    }
    told(arguments, &embeddings, &curves, repeats, time)
}

/// Times each beam width of each side once more, both sides in turns, as far as both have one: what the machine
/// has to do besides falls on both.
fn take_turns(
    sides: &[Side],
    curves: &mut [Vec<Point>],
    embeddings: &Embeddings,
    time: Duration,
) -> anyhow::Result<()> {
    let beams = curves.iter().map(Vec::len).max().unwrap_or_default();
    for beam in 0..beams {
        let mut costs = vec![Cost::default(); sides.len()];
        for _ in 0..TURNS {
            for (side, (curve, cost)) in sides.iter().zip(curves.iter().zip(&mut costs)) {
                if let Some(point) = curve.get(beam) {
                    let ef = point.swept.ef;
                    *cost += block_in_place(|| side.time(embeddings, ef, time / TURNS))?;
                }
            }
        }
        for (curve, cost) in curves.iter_mut().zip(costs) {
            if let Some(point) = curve.get_mut(beam) {
                point.take(cost);
            }
        }
    }
    Ok(())
}

fn told(
    arguments: &Arguments,
    embeddings: &Embeddings,
    curves: &[Vec<Point>],
    repeats: usize,
    time: Duration,
) -> anyhow::Result<Value> {
    let [reference, ours] = curves else {
        anyhow::bail!("there are two sides");
    };
    let at = |curve: &[Point]| -> anyhow::Result<(At, Point)> {
        let swept = curve.iter().skip(1).map(|point| point.swept.clone());
        let swept: Vec<Swept> = swept.collect();
        let at = at_recall(&swept, TARGET).context("no beam reaches the recall")?;
        let mut reaches = curve.iter().skip(1);
        let point = reaches.find(|point| point.swept.recall >= TARGET);
        Ok((at, point.context("no beam reaches the recall")?.clone()))
    };
    let ((one, one_point), (eight, eight_point)) = (at(reference)?, at(ours)?);
    let ratio = one.cpu_rate / eight.cpu_rate;
    let own = |curve: &[Point]| curve.first().cloned().context("there is one");
    let (one_own, eight_own) = (own(reference)?, own(ours)?);
    let own_ratio = one_own.swept.cpu_rate.median() / eight_own.swept.cpu_rate.median();
    say(format!(
        "\nprocessor time a query of all servers at recall@{K} {TARGET}, less is better; medians of {repeats}"
    ))?;
    for (name, at, point) in [
        ("one shard", one, &one_point),
        ("eight shards", eight, &eight_point),
    ] {
        say(format!(
            "  {name:12} {:6.0} us{}; coordinator {}",
            1e6 / at.cpu_rate,
            if at.is_bound {
                " (at a higher recall: the narrowest beam)"
            } else {
                ""
            },
            point.coordinator_us.text("us"),
        ))?;
    }
    say(format!(
        "  ratio        x {ratio:.2}; with the beam left to Shoal x {own_ratio:.2} at recall {:.4} and {:.4}",
        one_own.swept.recall, eight_own.swept.recall
    ))?;
    let side = |at: At, point: &Point, own: &Point, curve: &[Point]| {
        json!({
            "cpu_us": round(1e6 / at.cpu_rate),
            "is_bound": at.is_bound,
            "ef": point.swept.ef,
            "recall_at_10": round(point.swept.recall),
            "indexer_cpu_us": round(point.indexer_us.median()),
            "coordinator_cpu_us": round(point.coordinator_us.median()),
            "own": own.figures(),
            "swept": curve.iter().skip(1).map(Point::figures).collect::<Vec<_>>(),
        })
    };
    Ok(json!({
        "name": "fanout",
        "ours": side(eight, &eight_point, &eight_own, ours),
        "reference": side(one, &one_point, &one_own, reference),
        "ratio": round(ratio),
        "cpu_ratio": round(ratio),
        "cpu_ratio_own_beam": round(own_ratio),
        "coordinator_cpu_us": round(eight_point.coordinator_us.median()),
        "coordinator_cpu_spread": eight_point.coordinator_us.spread(),
        "settings": {
            "rows": embeddings.points.len(),
            "of_all_rows": arguments.rows.is_none(),
            "k": K,
            "threads": THREADS,
            "seconds": time.as_secs(),
            "partitions": SIDES.map(|(_, partitions, _)| partitions),
            "indexers": SIDES.map(|(_, _, indexers)| indexers),
        },
        "repeats": repeats,
    }))
}

fn listed(recalls: &[f64]) -> Vec<String> {
    let pairs = BEAMS.iter().zip(recalls);
    pairs
        .map(|(ef, recall)| format!("{ef}: {recall:.4}"))
        .collect()
}

impl Point {
    fn new(ef: usize, recall: f64) -> Self {
        Self {
            swept: Swept {
                ef,
                recall,
                rate: Repeats::default(),
                cpu_rate: Repeats::default(),
            },
            indexer_us: Repeats::default(),
            coordinator_us: Repeats::default(),
        }
    }

    fn take(&mut self, cost: Cost) {
        let Cost {
            queries,
            seconds,
            indexer_seconds,
            coordinator_seconds,
        } = cost;
        let all_seconds = indexer_seconds + coordinator_seconds;
        self.swept.rate.push(queries / seconds);
        self.swept.cpu_rate.push(queries / all_seconds);
        self.indexer_us.push(indexer_seconds / queries * 1e6);
        self.coordinator_us
            .push(coordinator_seconds / queries * 1e6);
    }
}

impl Side {
    async fn start(
        arguments: &Arguments,
        embeddings: &Embeddings,
        name: &'static str,
        partitions: u32,
        indexers: u32,
    ) -> anyhow::Result<Self> {
        let place = Place::start().await?;
        let collection = partitioned("fanout", partitions)?;
        place.create(&collection).await?;
        place.publish(&collection, &embeddings.points).await?;
        let mut rows: BTreeMap<Partition, usize> = BTreeMap::new();
        for (id, _) in &embeddings.points {
            *rows
                .entry(route::partition_of(&collection, id))
                .or_default() += 1;
        }
        let fewest = rows.values().copied().min().unwrap_or_default();
        let each = partitions.div_ceil(indexers);
        let mut running = Vec::new();
        for number in 0..indexers {
            let shards: Vec<u32> = (number * each..((number + 1) * each).min(partitions)).collect();
            let data = place.folder().join(format!("indexer-{number}"));
            let node = format!("node-{number}");
            let started = || Role::indexer_of(arguments, &place, &data, fewest, &node, &shards);
            let mut indexer = block_in_place(started)?;
            let own = shards.iter().map(|shard| Partition(*shard));
            let own = own.filter_map(|shard| Some((shard, *rows.get(&shard)?)));
            all_at_rest(&mut indexer, &data, &collection, &own.collect()).await?;
            running.push(indexer);
        }
        let mut query = block_in_place(|| Role::query(arguments, &place))?;
        let mut replicas = Replicas::connect(query.grpc, &collection).await?;
        replicas.wait_for_all().await?;
        let mut node = Node::connect(query.grpc, &collection).await?;
        let probe = embeddings.queries.first().cloned().unwrap_or_default();
        node.wait(&mut query, &probe).await?;
        say(format!(
            "{name}: {partitions} partitions on {indexers} indexers serve"
        ))?;
        Ok(Self {
            name,
            collection,
            indexers: running,
            query,
            _place: place,
        })
    }

    /// Recall at a beam width, over every query.
    fn recall(&self, embeddings: &Embeddings, ef: usize) -> anyhow::Result<f64> {
        let all = embeddings.queries.len();
        let numbers: Vec<usize> = (0..all).collect();
        let share = all.div_ceil(THREADS).max(1);
        let (address, collection) = (self.query.grpc, &self.collection);
        let mut sum = 0.0;
        std::thread::scope(|scope| {
            let recalls = |some| move || recalls(address, collection, embeddings, some, ef);
            let started: Vec<_> = numbers
                .chunks(share)
                .map(|some| scope.spawn(recalls(some)))
                .collect();
            for thread in started {
                sum += thread.join().map_err(|_| anyhow!("a client panicked"))??;
            }
            anyhow::Ok(())
        })?;
        Ok(sum / all.max(1) as f64)
    }

    fn cpu_seconds(&self) -> anyhow::Result<(f64, f64)> {
        let indexers = self.indexers.iter().map(Role::cpu_seconds);
        let indexers = indexers.sum::<anyhow::Result<f64>>()?;
        Ok((indexers, self.query.cpu_seconds()?))
    }

    /// Asks for a while.
    fn time(&self, embeddings: &Embeddings, ef: usize, time: Duration) -> anyhow::Result<Cost> {
        let before = self.cpu_seconds()?;
        let (mut queries, mut seconds) = (0.0, 0.0f64);
        let (address, collection) = (self.query.grpc, &self.collection);
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..THREADS)
                .map(|thread| {
                    // Each thread begins elsewhere, so that they do not ask the same at one time.
                    let first = thread * embeddings.queries.len() / THREADS;
                    scope.spawn(move || ask_for(address, collection, embeddings, first, ef, time))
                })
                .collect();
            for thread in started {
                let ended = thread.join().map_err(|_| anyhow!("a client panicked"))?;
                let (asked, took) = ended?;
                queries += asked;
                seconds = seconds.max(took);
            }
            anyhow::Ok(())
        })?;
        let now = self.cpu_seconds()?;
        Ok(Cost {
            queries,
            seconds,
            indexer_seconds: now.0 - before.0,
            coordinator_seconds: now.1 - before.1,
        })
    }
}

/// The sum of the recalls of some queries.
fn recalls(
    address: SocketAddr,
    collection: &Collection,
    embeddings: &Embeddings,
    numbers: &[usize],
    ef: usize,
) -> anyhow::Result<f64> {
    on_this_thread(async {
        let mut node = Node::connect(address, collection).await?;
        let mut sum = 0.0;
        for number in numbers {
            let vector = embeddings.queries.get(*number).context("it is one")?;
            let hits = node.search_with(vector, ef).await?;
            sum += embeddings.recall(*number, &hits);
        }
        anyhow::Ok(sum)
    })
}

/// One client asks one query after the other; how many, and in how many seconds.
fn ask_for(
    address: SocketAddr,
    collection: &Collection,
    embeddings: &Embeddings,
    first: usize,
    ef: usize,
    time: Duration,
) -> anyhow::Result<(f64, f64)> {
    on_this_thread(async {
        let mut node = Node::connect(address, collection).await?;
        let watch = Stopwatch::start();
        let mut asked = 0.0;
        for vector in embeddings.queries.iter().cycle().skip(first) {
            node.search_with(vector, ef).await?;
            asked += 1.0;
            if watch.elapsed() >= time {
                break;
            }
        }
        anyhow::Ok((asked, watch.seconds()))
    })
}
