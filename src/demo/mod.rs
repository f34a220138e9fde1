//! The guided tour: real sentence embeddings through a real Kafka, searched, changed, measured.
//!
//! Everything runs in a temporary folder that goes away at the end. What a person sees goes to
//! standard error; the last line, on standard output, is one JSON object with the figures. A tour
//! in which something does not hold (a record that is not found, an answer that does not change)
//! is an error, never a nicer figure.

mod changes;
mod data;
mod freshness;
mod ingest;
mod recall;
mod stage;
mod tour;
mod voice;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::bail;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use shoal_runtime::{clock::Stopwatch, tasks::Tasks};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Loaded,
    roles::stop_on_signals,
    up::{Broker, Up},
};

use self::{data::Data, stage::Stage, voice::Voice};

/// The collection of the tour.
const COLLECTION: &str = "wordnet";
/// Shards of it.
const PARTITIONS: u32 = 4;
/// Answers of one search.
const K: u32 = 10;

/// How the tour goes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Folder with embeddings, texts, queries and exact neighbours.
    pub data: PathBuf,
    /// Whether it stays up at the end.
    pub stay: bool,
    /// Whether only the last line is told.
    pub silent: bool,
}

/// The last line.
#[derive(Clone, Debug, Serialize)]
struct Figures {
    /// Share of the true ten nearest among the ten answered, over all queries.
    recall_at_10: f64,
    /// From before a record is published to an answer that holds it.
    publish_to_searchable_p50_ms: f64,
    publish_to_searchable_p99_ms: f64,
    /// Two clients over gRPC.
    queries_per_second: f64,
    /// Records published in bulk.
    records: usize,
    /// Of them a second, from the first read to the last one in the graph.
    indexed_per_second: f64,
}

/// Runs the tour.
///
/// # Errors
/// The first thing that does not hold.
pub async fn run(loaded: &Loaded, metrics: PrometheusHandle, plan: &Plan) -> anyhow::Result<()> {
    let voice = Voice::new(plan.silent);
    let watch = Stopwatch::start();
    let data = Data::read(&plan.data)?;
    voice.say(&format!(
        "{} sentence embeddings of {} components, {} held-out queries",
        data.points.len(),
        data::DIM,
        data.queries.len()
    ));
    let folder = tempfile::Builder::new().prefix("shoal-demo-").tempdir()?;
    let tasks = Tasks::new(CancellationToken::new());
    stop_on_signals(&tasks)?;
    let settings = stage::settings(loaded, folder.path());
    voice.say("starting a real Kafka and, in this process, gateway, indexer and query node");
    let up = Up::start(settings, &Broker::Own, metrics, &tasks).await?;
    let cancel = tasks.cancel().clone();
    let toured = tokio::select! {
        biased;
        toured = visit(&up, &data, &voice, plan, &watch) => toured,
        () = cancel.cancelled() => Err(anyhow::anyhow!("stopped before the tour's end")),
    };
    cancel.cancel();
    let finished = up.finish().await;
    // A part that failed is why the tour broke off.
    finished?;
    toured
}

async fn visit(
    up: &Up,
    data: &Data,
    voice: &Voice,
    plan: &Plan,
    watch: &Stopwatch,
) -> anyhow::Result<()> {
    up.ready().await?;
    let mut stage = Stage::build(up).await?;
    let running = up.running();
    voice.say(&format!(
        "ready after {:.1} s: Kafka {}, query node http://{}",
        watch.seconds(),
        running.kafka,
        running.query.http
    ));
    let indexed_per_second = ingest::publish(&mut stage, data, voice).await?;
    let recall = recall::measure(&mut stage, data, voice).await?;
    let rate = recall::rate(&mut stage, data, voice).await?;
    let fresh = freshness::measure(&mut stage, data, voice).await?;
    changes::show(&mut stage, data, voice).await?;
    if !(0.0..=1.0).contains(&recall) {
        bail!("recall is {recall}, which cannot be");
    }
    let figures = Figures {
        recall_at_10: round(recall, 4),
        publish_to_searchable_p50_ms: round(fresh.p50_ms, 2),
        publish_to_searchable_p99_ms: round(fresh.p99_ms, 2),
        queries_per_second: round(rate, 1),
        records: data.points.len(),
        indexed_per_second: round(indexed_per_second, 1),
    };
    voice.say(&format!("\nthe whole tour took {:.0} s", watch.seconds()));
    {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&figures)?)?;
        out.flush()?;
    }
    if plan.stay {
        tour::stay(up, data).await?;
    }
    Ok(())
}

fn round(value: f64, digits: i32) -> f64 {
    let factor = 10_f64.powi(digits);
    (value * factor).round() / factor
}
