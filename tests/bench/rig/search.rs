//! `search`: queries a second of one shard over gRPC, beside the same index in this process.
//!
//! The index is built once, by an indexer that reads it from Kafka. Then the indexer is stopped,
//! its folder copied, the copy opened in this process by the same code, and the indexer started
//! again: both sides hold the very same graph. Two threads ask one query after the other: in
//! process; over gRPC at the shard; over gRPC through a query node. What the query node adds is
//! measured with one client that asks both in turn.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, anyhow, ensure};
use serde_json::{Value, json};
use shoal_indexer::{
    config::EngineConfig,
    shard::{Shared, Spec, recover, search::Ask},
};
use shoal_runtime::{
    clock::{Stopwatch, System},
    tasks::blocking,
};
use shoal_schemas::{Collection, Partition, v1};

use crate::{
    arguments::Arguments,
    client::{Node, Shard, is_folded},
    embeddings::{Embeddings, K, collection},
    figures::{Latencies, Repeats, round, say},
    place::Place,
    rest::at_rest,
    role::{Role, cpu_seconds, shard_folder},
};

const THREADS: usize = 2;
/// Pairs of questions that tell what the query node adds, a repeat.
const PAIRS: usize = 1000;

/// Where a thread asks.
#[derive(Clone)]
enum Target {
    InProcess(Arc<Shared>),
    Shard(SocketAddr),
    Node(SocketAddr),
}

#[derive(Default)]
struct Side {
    rate: Repeats,
    p50: Repeats,
    p99: Repeats,
    recall: Repeats,
    /// Processor time a query: of the indexer, of the query node.
    indexer_us: Repeats,
    node_us: Repeats,
    /// Of this process: the client, and in process the search itself.
    client_us: Repeats,
}

impl Side {
    fn figures(&self) -> Value {
        json!({
            "queries_per_second": round(self.rate.median()),
            "spread": self.rate.spread(),
            "p50_ms": round(self.p50.median()),
            "p99_ms": round(self.p99.median()),
            "recall_at_10": round(self.recall.median()),
            "indexer_cpu_us": round(self.indexer_us.median()),
            "coordinator_cpu_us": round(self.node_us.median()),
            "client_cpu_us": round(self.client_us.median()),
        })
    }
}

/// What one timed part found.
#[derive(Default)]
struct Found {
    latencies: Latencies,
    /// The number of each query asked, and what came back.
    answers: Vec<(usize, Vec<v1::Hit>)>,
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Embeddings::load(arguments)?;
    let (repeats, time) = (arguments.repeats_or(5), arguments.time_or(4));
    let place = Place::start().await?;
    let collection = collection("search")?;
    place.create(&collection).await?;
    place.publish(&collection, &embeddings.points).await?;
    let data = place.folder().join("indexer");
    let rows = embeddings.points.len();
    let start = || Role::sealing_indexer(arguments, &place, &data, rows);
    let mut indexer = tokio::task::block_in_place(start)?;
    let mut shard = Shard::connect(indexer.grpc, &collection).await?;
    shard.wait(&mut indexer, rows, is_folded).await?;
    // Whatever would be sealed or merged by itself is: both sides then search the same segments.
    at_rest(&mut indexer, &data, &collection, rows).await?;
    blocking(move || indexer.stop()).await?;
    let copy = place.folder().join("copy");
    copy_folder(&shard_folder(&data, &collection), &copy)?;
    let library = tokio::task::block_in_place(|| open(&place, &collection, &copy))?;
    let status = library.status();
    ensure!(
        is_folded(&status) && status.live_points as usize == rows,
        "the copy of the shard does not hold every row in its graph: {status:?}"
    );
    let (mut indexer, mut query) =
        tokio::task::block_in_place(|| anyhow::Ok((start()?, Role::query(arguments, &place)?)))?;
    let mut shard = Shard::connect(indexer.grpc, &collection).await?;
    shard.wait(&mut indexer, rows, is_folded).await?;
    let mut node = Node::connect(query.grpc, &collection).await?;
    let probe = embeddings.queries.first().cloned().unwrap_or_default();
    node.wait(&mut query, &probe).await?;

    let mut sides = [Side::default(), Side::default(), Side::default()];
    let (mut direct, mut through, mut added) =
        (Repeats::default(), Repeats::default(), Repeats::default());
    for repeat in 0..repeats {
        for (number, side) in sides.iter_mut().enumerate() {
            let name = ["in process", "shard", "query node"]
                .get(number)
                .copied()
                .unwrap_or_default();
            let own = std::process::id();
            let before = (
                indexer.cpu_seconds()?,
                query.cpu_seconds()?,
                cpu_seconds(own)?,
            );
            let target = match number {
                0 => Target::InProcess(library.clone()),
                1 => Target::Shard(indexer.grpc),
                _ => Target::Node(query.grpc),
            };
            let (all, seconds) = tokio::task::block_in_place(|| {
                ask_together(&target, &collection, &embeddings, time)
            })?;
            let queries = all.latencies.len() as f64;
            let cpu_us = |now: f64, before: f64| (now - before) / queries * 1e6;
            side.rate.push(queries / seconds);
            side.p50.push(all.latencies.at(0.5));
            side.p99.push(all.latencies.at(0.99));
            side.indexer_us
                .push(cpu_us(indexer.cpu_seconds()?, before.0));
            side.node_us.push(cpu_us(query.cpu_seconds()?, before.1));
            side.client_us.push(cpu_us(cpu_seconds(own)?, before.2));
            let recalls = all
                .answers
                .iter()
                .map(|(number, hits)| embeddings.recall(*number, hits));
            let recall = recalls.sum::<f64>() / queries;
            side.recall.push(recall);
            say(format!(
                "repeat {repeat}: {name:10} {:6.0} queries/s, recall@{K} {:.4}",
                queries / seconds,
                recall
            ))?;
        }
        let (straight, by_node) = in_turn(&mut shard, &mut node, &embeddings).await?;
        say(format!(
            "repeat {repeat}: one client: shard p50 {:.3} ms, query node p50 {:.3} ms",
            straight.at(0.5),
            by_node.at(0.5)
        ))?;
        direct.push(straight.at(0.5));
        through.push(by_node.at(0.5));
        added.push(by_node.at(0.5) - straight.at(0.5));
    }
    blocking(move || indexer.stop()).await?;
    let [reference, ours, by_node] = sides;
    let ratio = ours.rate.median() / reference.rate.median();
    let node_ratio = by_node.rate.median() / reference.rate.median();
    say(format!(
        "\nqueries/s of {THREADS} threads, more is better; median (lowest - highest) of {repeats}"
    ))?;
    say(format!(
        "  same index, in process   {}",
        reference.rate.text("")
    ))?;
    say(format!(
        "  gRPC, shard              {}  x {ratio:.3}",
        ours.rate.text("")
    ))?;
    say(format!(
        "  gRPC, query node         {}  x {node_ratio:.3}",
        by_node.rate.text("")
    ))?;
    say(format!(
        "  query node adds          {} at p50; its processor time a query {}",
        added.text("ms"),
        by_node.node_us.text("us")
    ))?;
    Ok(json!({
        "name": "search",
        "ours": ours.figures(),
        "reference": reference.figures(),
        "ratio": round(ratio),
        "through_query_node": by_node.figures(),
        "ratio_through_query_node": round(node_ratio),
        "coordinator_added_p50_ms": round(added.median()),
        "coordinator_added_spread": added.spread(),
        "coordinator_cpu_us": round(by_node.node_us.median()),
        "shard_p50_ms": round(direct.median()),
        "query_node_p50_ms": round(through.median()),
        "settings": {
            "rows": rows,
            "k": K,
            "ef_search": collection.index.ef_search,
            "threads": THREADS,
            "seconds": time.as_secs(),
            "partitions": 1,
        },
        "repeats": repeats,
    }))
}

/// Asks from all threads at once, each one query after the other; also the seconds it took.
fn ask_together(
    target: &Target,
    collection: &Collection,
    embeddings: &Embeddings,
    time: Duration,
) -> anyhow::Result<(Found, f64)> {
    let (mut all, mut seconds) = (Found::default(), 0.0f64);
    std::thread::scope(|scope| {
        let started: Vec<_> = (0..THREADS)
            .map(|thread| {
                // Each thread begins elsewhere, so that they do not ask the same at one time.
                let first = thread * embeddings.queries.len() / THREADS;
                scope.spawn(move || ask_for(target, collection, embeddings, first, time))
            })
            .collect();
        for thread in started {
            let ended = thread.join().map_err(|_| anyhow!("a client panicked"))?;
            let (found, took) = ended?;
            all.latencies.append(found.latencies);
            all.answers.extend(found.answers);
            seconds = seconds.max(took);
        }
        Ok((all, seconds))
    })
}

fn ask_for(
    target: &Target,
    collection: &Collection,
    embeddings: &Embeddings,
    first: usize,
    time: Duration,
) -> anyhow::Result<(Found, f64)> {
    let numbers = (0..embeddings.queries.len()).cycle().skip(first);
    let queries = numbers.filter_map(|number| Some((number, embeddings.queries.get(number)?)));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut answers = Vec::new();
    let mut latencies = Latencies::default();
    let seconds = match target {
        Target::InProcess(shared) => {
            let watch = Stopwatch::start();
            for (number, vector) in queries {
                let asked = Stopwatch::start();
                let ask = Ask::nearest(vector.clone(), K);
                answers.push((number, shared.search(&ask)?));
                latencies.push(asked.elapsed());
                if watch.elapsed() >= time {
                    break;
                }
            }
            watch.seconds()
        }
        Target::Shard(address) => runtime.block_on(async {
            let mut shard = Shard::connect(*address, collection).await?;
            let watch = Stopwatch::start();
            for (number, vector) in queries {
                let asked = Stopwatch::start();
                answers.push((number, shard.search(vector).await?));
                latencies.push(asked.elapsed());
                if watch.elapsed() >= time {
                    break;
                }
            }
            anyhow::Ok(watch.seconds())
        })?,
        Target::Node(address) => runtime.block_on(async {
            let mut node = Node::connect(*address, collection).await?;
            let watch = Stopwatch::start();
            for (number, vector) in queries {
                let asked = Stopwatch::start();
                answers.push((number, node.search(vector, None).await?));
                latencies.push(asked.elapsed());
                if watch.elapsed() >= time {
                    break;
                }
            }
            anyhow::Ok(watch.seconds())
        })?,
    };
    Ok((Found { latencies, answers }, seconds))
}

/// One client asks the shard and the query node in turn, so that both see the same machine.
async fn in_turn(
    shard: &mut Shard,
    node: &mut Node,
    embeddings: &Embeddings,
) -> anyhow::Result<(Latencies, Latencies)> {
    let (mut direct, mut through) = (Latencies::default(), Latencies::default());
    for vector in embeddings.queries.iter().cycle().take(PAIRS) {
        let asked = Stopwatch::start();
        shard.search(vector).await?;
        direct.push(asked.elapsed());
        let asked = Stopwatch::start();
        node.search(vector, None).await?;
        through.push(asked.elapsed());
    }
    Ok((direct, through))
}

/// Opens a shard's folder in this process, without a log behind it.
fn open(place: &Place, collection: &Collection, folder: &Path) -> anyhow::Result<Arc<Shared>> {
    let mut spec = Spec::of_home(
        Arc::new(collection.clone()),
        Partition(0),
        place.cluster.admin.cluster_id()?,
        "local".parse()?,
        folder.to_owned(),
        EngineConfig::default(),
    );
    spec.incarnation = place.incarnation(collection);
    let mut opened = recover::open(spec, System::shared())?;
    opened.replay(|| false)?;
    Ok(opened.writer.shared.clone())
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
