//! `kinds`: what a search, a row and its memory cost without a graph, beside the same with one, for more and more rows.
//!
//! It says what a `flat` index spares and what it costs. Processor time of one thread, one shard, everything settled.

use std::time::Duration;

use rustix::time::ClockId;
use serde_json::{Value, json};
use shoal_indexer::shard::search::Ask;
use shoal_schemas::IndexKind;

use crate::{
    arguments::Arguments,
    embeddings::{Embeddings, K, collection},
    engine::{self, Log, Running},
    figures::{Repeats, round, say},
    timed::{ask_for, cpu_time},
    truth::{TIE, kth_distances},
};

const ROWS: [usize; 4] = [1_000, 5_000, 20_000, usize::MAX];
/// Queries asked for recall; their oracle looks at every row.
const QUERIES: usize = 500;

/// One shard's figures.
struct Found {
    search_us: Repeats,
    recall: f64,
    row_us: f64,
    row_bytes: f64,
}

impl Found {
    fn json(&self) -> Value {
        json!({
            "search_us": round(self.search_us.median()),
            "spread": self.search_us.spread(),
            "recall_at_10": round(self.recall),
            "cpu_us_per_row": round(self.row_us),
            "index_bytes_per_row": round(self.row_bytes),
        })
    }

    fn text(&self) -> String {
        format!(
            "a search {}, recall {:.4}, a row {:.0} us and {:.0} bytes",
            self.search_us.text("us"),
            self.recall,
            self.row_us,
            self.row_bytes
        )
    }
}

pub(crate) fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Embeddings::load(arguments)?;
    let (repeats, time) = (arguments.repeats_or(3), arguments.time_or(2));
    let queries = &embeddings.queries[..QUERIES.min(embeddings.queries.len())];
    let mut sizes: Vec<usize> = ROWS.map(|rows| rows.min(embeddings.points.len())).into();
    sizes.dedup();
    say(format!("without a graph and with one; recall@{K}"))?;
    let mut rows = Vec::new();
    let mut ratio = f64::NAN;
    for size in sizes {
        let vectors: Vec<&[f32]> = embeddings.vectors().take(size).collect();
        let farthest = kth_distances(queries, &vectors, K)?;
        let once = |kind| -> anyhow::Result<Found> {
            let folder = engine::folder()?;
            let (running, row_us) = built(&embeddings, size, kind, folder.path())?;
            let mut found = 0;
            for (query, farthest) in queries.iter().zip(&farthest) {
                let hits = running.shared.search(&ask(query))?;
                let near = hits
                    .iter()
                    .filter(|hit| f64::from(hit.distance) <= farthest + TIE);
                found += near.count();
            }
            let mut search_us = Repeats::default();
            for _ in 0..repeats {
                search_us.push(cost(&running, queries, time)?);
            }
            let (view, _) = running.shared.moment();
            let row_bytes = view.graph_bytes() as f64 / size as f64;
            drop(view);
            running.close()?;
            Ok(Found {
                search_us,
                recall: found as f64 / (K * queries.len()) as f64,
                row_us,
                row_bytes,
            })
        };
        let (flat, graph) = (once(IndexKind::Flat)?, once(IndexKind::Hnsw)?);
        say(format!("  {size:7} rows, flat: {}", flat.text()))?;
        say(format!("  {:7}       hnsw: {}", "", graph.text()))?;
        ratio = flat.search_us.median() / graph.search_us.median();
        rows.push(json!({ "rows": size, "flat": flat.json(), "hnsw": graph.json() }));
    }
    let (ours, reference): (Vec<_>, Vec<_>) = rows
        .iter()
        .map(|row| (row["flat"].clone(), row["hnsw"].clone()))
        .unzip();
    Ok(json!({
        "name": "kinds",
        "ours": ours,
        "reference": reference,
        "ratio": round(ratio),
        "rows": rows,
        "settings": { "k": K, "queries": queries.len(), "threads": 1 },
        "repeats": repeats,
    }))
}

/// A settled shard of so many rows, and the processor time that a row took.
fn built(
    embeddings: &Embeddings,
    rows: usize,
    kind: IndexKind,
    folder: &std::path::Path,
) -> anyhow::Result<(Running, f64)> {
    let mut collection = collection("kinds")?;
    collection.index.kind = kind;
    let mut log = Log::new(collection)?;
    for (id, point) in embeddings.points.iter().take(rows) {
        log.upsert(0, id.as_str(), point)?;
    }
    let cpu = cpu_time(ClockId::ProcessCPUTime);
    let running = log.open(0, folder, engine::settings(rows))?;
    log.wait_settled(&running)?;
    let cpu = cpu_time(ClockId::ProcessCPUTime).saturating_sub(cpu);
    running.serves(rows)?;
    Ok((running, cpu.as_secs_f64() / rows as f64 * 1e6))
}

/// As a user asks who says no more than what is wanted.
fn ask(query: &[f32]) -> Ask {
    Ask::nearest(query.to_vec(), K)
}

/// Processor microseconds a query.
fn cost(running: &Running, queries: &[Vec<f32>], time: Duration) -> anyhow::Result<f64> {
    let timed = ask_for(time, 1, queries, &|query| {
        running.shared.search(&ask(query))?;
        Ok(())
    })?;
    Ok(timed.cpu_us())
}
