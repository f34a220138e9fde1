//! `filter`: what a filtered search finds and costs, from every second row to one in two thousand.
//!
//! `category` goes with the vectors, `rand` does not. Each filter's true neighbours are found by
//! looking at every row that matches. Asked are the shard's default beam and k = 10; the reference
//! is the same shard without a filter.

use anyhow::Context as _;
use serde_json::{Value as Json, json};
use shoal_indexer::shard::search::Ask;
use shoal_schemas::{FieldKind, Filter, filter::Bounds, payload::Value, v1};
use std::ops::Bound;

use crate::{
    arguments::Arguments,
    embeddings::{Embeddings, K, collection},
    engine::{self, Log, Running},
    figures::{Repeats, round, say},
    timed::ask_for,
    truth::{TIE, kth_distances},
};

/// Queries asked for recall; their oracle looks at every matching row.
const QUERIES: usize = 500;

pub(crate) fn measure(arguments: &Arguments) -> anyhow::Result<Json> {
    let embeddings = Embeddings::load(arguments)?;
    let (repeats, time) = (arguments.repeats_or(3), arguments.time_or(2));
    let mut collection = collection("filter")?;
    collection.fields = ["category", "rand"]
        .map(|field| (field.to_owned(), FieldKind::Integer))
        .into();
    let folder = engine::folder()?;
    let mut log = Log::new(collection)?;
    let running = log.open(0, folder.path(), engine::settings(embeddings.points.len()))?;
    for (id, point) in &embeddings.points {
        log.upsert(0, id.as_str(), point)?;
    }
    log.wait_settled(&running)?;
    let ef = usize::from(log.collection.index.ef_search);
    let queries = &embeddings.queries[..QUERIES.min(embeddings.queries.len())];
    let bare = cost(&running, queries, None, time, repeats)?;
    say(format!(
        "recall@{K} and cost at ef {ef}, one thread; without a filter {}",
        bare.text(" us")
    ))?;
    let (mut rows, mut min_recall) = (Vec::new(), f64::MAX);
    for (name, filter) in filters() {
        let matching: Vec<usize> = (0..embeddings.points.len())
            .filter(|row| filter.matches(&embeddings.points[*row].1.payload))
            .collect();
        let vectors: Vec<&[f32]> = matching
            .iter()
            .map(|row| embeddings.points[*row].1.vector.as_slice())
            .collect();
        let k = K.min(matching.len());
        if k == 0 {
            continue;
        }
        let farthest = kth_distances(queries, &vectors, k)?;
        let (mut found, mut plans) = (0usize, std::collections::BTreeMap::new());
        for (query, limit) in queries.iter().zip(&farthest) {
            let answer = running
                .shared
                .answer(&ask(query, Some(&filter)), &|| false)?;
            let near = |hit: &&v1::Hit| f64::from(hit.distance) <= limit + TIE;
            found += answer.hits.iter().filter(near).count().min(k);
            let explain = answer.explain.first().context("no plan is told")?;
            *plans.entry(explain.plan().as_str_name()).or_insert(0usize) += 1;
        }
        let recall = found as f64 / (k * queries.len()) as f64;
        let spent = cost(&running, queries, Some(&filter), time, repeats)?;
        min_recall = min_recall.min(recall);
        let share = matching.len() as f64 / embeddings.points.len() as f64;
        say(format!(
            "  {name:28} {:8} rows ({:.3} %)  recall {recall:.4}  {}  {plans:?}",
            matching.len(),
            share * 100.0,
            spent.text(" us"),
        ))?;
        rows.push(json!({
            "filter": name,
            "rows": matching.len(),
            "share": share,
            "recall_at_10": round(recall),
            "us": round(spent.median()),
            "spread": spent.spread(),
            "plans": plans,
        }));
    }
    running.close()?;
    let dearest = rows
        .iter()
        .filter_map(|row| row["us"].as_f64())
        .fold(0.0, f64::max);
    Ok(json!({
        "name": "filter",
        "ours": { "rows": rows },
        "reference": { "us_unfiltered": round(bare.median()), "spread": bare.spread() },
        "ratio": round(dearest / bare.median()),
        "min_recall": round(min_recall),
        "rows": rows,
        "settings": { "points": embeddings.points.len(), "ef": ef, "k": K, "queries": queries.len(), "threads": 1 },
        "repeats": repeats,
    }))
}

/// Processor microseconds a query.
fn cost(
    running: &Running,
    queries: &[Vec<f32>],
    filter: Option<&Filter>,
    time: std::time::Duration,
    repeats: usize,
) -> anyhow::Result<Repeats> {
    let mut cost = Repeats::default();
    for _ in 0..repeats {
        let timed = ask_for(time, 1, queries, &|query| {
            running.shared.answer(&ask(query, filter), &|| false)?;
            Ok(())
        })?;
        cost.push(timed.cpu_us());
    }
    Ok(cost)
}

fn ask(query: &[f32], filter: Option<&Filter>) -> Ask {
    Ask {
        filter: filter.cloned(),
        explain: true,
        ..Ask::nearest(query.to_vec(), K)
    }
}

/// Those of the data set, and two for one row in two thousand.
fn filters() -> Vec<(&'static str, Filter)> {
    let range = |field: &str, lower, upper| Filter::Range {
        field: field.into(),
        bounds: Bounds { lower, upper },
    };
    let below = |field: &str, end: i64| {
        range(
            field,
            Bound::Unbounded,
            Bound::Excluded(Value::Integer(end)),
        )
    };
    let from = |field: &str, start: i64| {
        range(
            field,
            Bound::Included(Value::Integer(start)),
            Bound::Unbounded,
        )
    };
    let is = |field: &str, value: i64| Filter::In {
        field: field.into(),
        values: vec![Value::Integer(value)],
    };
    vec![
        ("category >= 11", from("category", 11)),
        ("category = 10", is("category", 10)),
        ("category = 19", is("category", 19)),
        (
            "category = 19, rand < 100",
            Filter::All(vec![is("category", 19), below("rand", 100)]),
        ),
        ("rand < 500", below("rand", 500)),
        ("rand < 50", below("rand", 50)),
        ("rand < 5", below("rand", 5)),
        (
            "rand = 7, category >= 11",
            Filter::All(vec![is("rand", 7), from("category", 11)]),
        ),
    ]
}
