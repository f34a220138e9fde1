//! `ingest`: records a second from a Kafka topic into the graph, beside usearch alone.
//!
//! Each repeat has three parts, one after the other: usearch alone adds the vectors; a full topic
//! is read by an indexer that starts with an empty disk; records are published while an indexer
//! runs. The clock of the second part starts with the indexer's process, that of the third with
//! the first publish; both end when every row is in the graph.

use std::path::Path;

use serde_json::{Value, json};
use shoal_runtime::{clock::Stopwatch, tasks::blocking};
use shoal_schemas::Collection;

use crate::{
    arguments::Arguments,
    bare_index,
    client::{Shard, is_folded},
    embeddings::{Embeddings, collection},
    figures::{Repeats, round, say},
    place::Place,
    role::{Role, cpu_seconds},
};

/// What one part took.
struct Part {
    /// Until every row was in the graph.
    seconds: f64,
    /// Until every record was applied, the newest perhaps only in the memtable.
    applied_seconds: f64,
    /// Until the indexer listened; 0 if it did before.
    started_seconds: f64,
    indexer_cpu_seconds: f64,
    broker_cpu_seconds: f64,
}

#[derive(Default)]
struct Parts {
    rate: Repeats,
    applied_rate: Repeats,
    started: Repeats,
    indexer_cpu_us: Repeats,
    broker_cpu_us: Repeats,
}

impl Parts {
    fn push(&mut self, part: &Part, rows: f64) {
        self.rate.push(rows / part.seconds);
        self.applied_rate.push(rows / part.applied_seconds);
        self.started.push(part.started_seconds);
        self.indexer_cpu_us
            .push(part.indexer_cpu_seconds / rows * 1e6);
        self.broker_cpu_us
            .push(part.broker_cpu_seconds / rows * 1e6);
    }

    fn figures(&self) -> Value {
        json!({
            "records_per_second": round(self.rate.median()),
            "spread": self.rate.spread(),
            "applied_records_per_second": round(self.applied_rate.median()),
            "start_seconds": round(self.started.median()),
            "indexer_cpu_us_per_record": round(self.indexer_cpu_us.median()),
            "broker_cpu_us_per_record": round(self.broker_cpu_us.median()),
        })
    }
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Embeddings::load(arguments)?;
    let place = Place::start().await?;
    let rows = embeddings.points.len() as f64;
    let repeats = arguments.repeats_or(3);
    let parameters = collection("parameters")?.index;
    let mut reference = Repeats::default();
    let (mut bulk, mut live) = (Parts::default(), Parts::default());
    for repeat in 0..repeats {
        let seconds = {
            let vectors: Vec<&[f32]> = embeddings.vectors().collect();
            tokio::task::block_in_place(|| bare_index::build(&vectors, parameters))?.1
        };
        reference.push(rows / seconds);
        say(format!(
            "repeat {repeat}: usearch alone   {:6.0} records/s",
            rows / seconds
        ))?;
        for (name, parts) in [("full topic", &mut bulk), ("publishing", &mut live)] {
            let word = name.split(' ').next().unwrap_or_default();
            let collection = collection(&format!("{word}-{repeat}"))?;
            let data = place.folder().join(collection.name.as_str());
            let part = if name == "full topic" {
                full_topic(arguments, &place, &collection, &data, &embeddings).await?
            } else {
                publishing(arguments, &place, &collection, &data, &embeddings).await?
            };
            say(format!(
                "repeat {repeat}: {name:15} {:6.0} records/s, all applied after {:.1} s, in the \
                 graph after {:.1} s, of which {:.2} s to start; CPU seconds: indexer {:.1}, broker {:.1}",
                rows / part.seconds,
                part.applied_seconds,
                part.seconds,
                part.started_seconds,
                part.indexer_cpu_seconds,
                part.broker_cpu_seconds,
            ))?;
            parts.push(&part, rows);
            place.drop_collection(&collection).await?;
            std::fs::remove_dir_all(&data)?;
        }
    }
    let ratio = bulk.rate.median() / reference.median();
    let live_ratio = live.rate.median() / reference.median();
    say(format!(
        "\nrecords/s, more is better; median (lowest - highest) of {repeats}"
    ))?;
    say(format!(
        "  usearch alone, one thread    {}",
        reference.text("")
    ))?;
    say(format!(
        "  Shoal from a full topic      {}  x {ratio:.3}",
        bulk.rate.text("")
    ))?;
    say(format!(
        "  Shoal while it is published  {}  x {live_ratio:.3}",
        live.rate.text("")
    ))?;
    Ok(json!({
        "name": "ingest",
        "ours": bulk.figures(),
        "reference": { "records_per_second": round(reference.median()), "spread": reference.spread() },
        "ratio": round(ratio),
        "while_publishing": live.figures(),
        "ratio_while_publishing": round(live_ratio),
        "settings": {
            "rows": embeddings.points.len(),
            "m": parameters.m,
            "ef_construction": parameters.ef_construction,
            "quantization": format!("{:?}", parameters.quantization),
            "builder_threads": 1,
            "partitions": 1,
        },
        "repeats": repeats,
    }))
}

/// The topic is full before the indexer starts with an empty disk.
async fn full_topic(
    arguments: &Arguments,
    place: &Place,
    collection: &Collection,
    data: &Path,
    embeddings: &Embeddings,
) -> anyhow::Result<Part> {
    place.create(collection).await?;
    place.publish(collection, &embeddings.points).await?;
    let broker_before = cpu_seconds(place.broker.pid())?;
    let watch = Stopwatch::start();
    let indexer = tokio::task::block_in_place(|| Role::indexer(arguments, place, data))?;
    let started_seconds = watch.seconds();
    let part = until_folded(
        indexer,
        place,
        collection,
        embeddings,
        watch,
        (0.0, broker_before),
    );
    Ok(Part {
        started_seconds,
        ..part.await?
    })
}

/// The indexer runs, with an empty shard, before the first record is published.
async fn publishing(
    arguments: &Arguments,
    place: &Place,
    collection: &Collection,
    data: &Path,
    embeddings: &Embeddings,
) -> anyhow::Result<Part> {
    place.create(collection).await?;
    let mut indexer = tokio::task::block_in_place(|| Role::indexer(arguments, place, data))?;
    let mut shard = Shard::connect(indexer.grpc, collection).await?;
    shard.wait(&mut indexer, 0, |_| true).await?;
    let before = (indexer.cpu_seconds()?, cpu_seconds(place.broker.pid())?);
    let watch = Stopwatch::start();
    let published = place.publish(collection, &embeddings.points);
    let folded = until_folded(indexer, place, collection, embeddings, watch, before);
    let (published, folded) = tokio::join!(published, folded);
    published?;
    folded
}

async fn until_folded(
    mut indexer: Role,
    place: &Place,
    collection: &Collection,
    embeddings: &Embeddings,
    watch: Stopwatch,
    (indexer_before, broker_before): (f64, f64),
) -> anyhow::Result<Part> {
    let rows = embeddings.points.len();
    let mut shard = Shard::connect(indexer.grpc, collection).await?;
    shard.wait(&mut indexer, rows, |_| true).await?;
    let applied_seconds = watch.seconds();
    shard.wait(&mut indexer, rows, is_folded).await?;
    let part = Part {
        seconds: watch.seconds(),
        applied_seconds,
        started_seconds: 0.0,
        indexer_cpu_seconds: indexer.cpu_seconds()? - indexer_before,
        broker_cpu_seconds: cpu_seconds(place.broker.pid())? - broker_before,
    };
    blocking(move || indexer.stop()).await?;
    Ok(part)
}
