//! `codes`: what a distance by each quantization's codes costs, by this processor's kernels and by loops for any.
//!
//! The queries' distances to the data set's own rows, in a random order: of a few rows, which stay in its caches, and of
//! all of them. A graph's walk meets rows in such an order. The reference is one byte a component.

use std::hint::black_box;

use anyhow::Context as _;
use rustix::time::ClockId;
use serde_json::{Map, Value, json};
use shoal_indexer::index::space::{QueryCode, Space};
use shoal_schemas::{Metric, Quantization};

use crate::{
    arguments::Arguments,
    embeddings::{DIM, Embeddings},
    figures::{Repeats, round, say},
    random::Random,
    timed::cpu_time,
};

const ALL: [Quantization; 5] = [
    Quantization::F32,
    Quantization::F16,
    Quantization::Bf16,
    Quantization::I8,
    Quantization::I4,
];
/// Rows whose codes stay in a core's caches.
const FEW: usize = 512;
/// Distances a repeat.
const DISTANCES: usize = 1_000_000;
/// So that each kind of code is measured in the same order.
const SEED: u64 = 7;

pub(crate) fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Embeddings::load(arguments)?;
    let repeats = arguments.repeats_or(3);
    let rows = embeddings.points.len();
    let mut found = Map::new();
    for quantization in ALL {
        let space = Space::new(DIM.try_into()?, Metric::Cosine, quantization)
            .context("under cosine nothing has to be fitted")?;
        let mut codes = Vec::new();
        for (_, point) in &embeddings.points {
            space.encode_row(point.vector.as_slice(), &mut codes);
        }
        let queries = embeddings.queries.iter();
        let queries: Vec<_> = queries.map(|query| space.encode_query(query)).collect();
        let codes: Vec<&[u8]> = codes.chunks_exact(space.code_bytes()).collect();
        let name = format!("{quantization:?}").to_lowercase();
        let mut figures = Map::new();
        for (of, rows) in [("few", FEW.min(rows)), ("all", rows)] {
            let by_kernel = |query: &QueryCode, code: &[u8]| Some(query.distance(code, 0.0));
            let plainly = |query: &QueryCode, code: &[u8]| query.distance_plainly(code, 0.0);
            let mut codes = codes[..rows].to_vec();
            Random::new(SEED).shuffle(&mut codes);
            let codes = &codes;
            let mut both = [Repeats::default(), Repeats::default()];
            for _ in 0..repeats {
                both[0].push(nanoseconds(&queries, codes, by_kernel));
                both[1].push(nanoseconds(&queries, codes, plainly));
            }
            let [own, any] = both;
            let has_any = queries
                .first()
                .is_some_and(|query| plainly(query, codes[0]).is_some());
            let told = if has_any {
                any.text("ns")
            } else {
                "none of ours".to_owned()
            };
            say(format!(
                "{name:<5} of {rows:>6} rows: {}, by a loop for any processor {told}",
                own.text("ns")
            ))?;
            figures.insert(
                of.to_owned(),
                json!({
                    "ns": round(own.median()), "spread": own.spread(),
                    "any_processor_ns": has_any.then(|| round(any.median())),
                    "any_processor_spread": has_any.then(|| any.spread()),
                }),
            );
        }
        found.insert(name, figures.into());
    }
    let of = |name: &str, key: &str| found[name]["all"][key].as_f64().unwrap_or(f64::NAN);
    Ok(json!({
        "name": "codes",
        "ours": found["i4"],
        "reference": found["i8"],
        "ratio": round(of("i4", "ns") / of("i8", "ns")),
        "ratio_any_processor": round(of("i4", "any_processor_ns") / of("i8", "any_processor_ns")),
        "quantizations": found,
        "settings": { "rows": rows, "few": FEW, "dim": DIM, "distances": DISTANCES },
        "repeats": repeats,
    }))
}

/// Processor time of a distance.
fn nanoseconds(
    queries: &[QueryCode],
    codes: &[&[u8]],
    distance: impl Fn(&QueryCode, &[u8]) -> Option<f32>,
) -> f64 {
    let before = cpu_time(ClockId::ThreadCPUTime);
    for (turn, code) in codes.iter().cycle().take(DISTANCES).enumerate() {
        // As many rows a query as a walk meets.
        let query = &queries[turn / 1000 % queries.len()];
        black_box(distance(query, code));
    }
    let spent = cpu_time(ClockId::ThreadCPUTime).saturating_sub(before);
    spent.as_secs_f64() * 1e9 / DISTANCES as f64
}
