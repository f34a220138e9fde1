//! The reference of ingest: usearch alone, one thread adding the same vectors.

use anyhow::ensure;
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{IndexParameters, Quantization};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

/// Builds an index in memory, with room reserved first; returns the seconds it took.
pub(crate) fn build(vectors: &[&[f32]], parameters: IndexParameters) -> anyhow::Result<f64> {
    let dimensions = vectors.first().map_or(0, |vector| vector.len());
    let options = IndexOptions {
        dimensions,
        metric: MetricKind::Cos,
        quantization: match parameters.quantization {
            Quantization::F32 => ScalarKind::F32,
            Quantization::F16 => ScalarKind::F16,
            Quantization::Bf16 => ScalarKind::BF16,
            Quantization::I8 => ScalarKind::I8,
        },
        connectivity: usize::from(parameters.m),
        expansion_add: usize::from(parameters.ef_construction),
        expansion_search: usize::from(parameters.ef_search),
        multi: false,
    };
    let index = Index::new(&options)?;
    let watch = Stopwatch::start();
    index.reserve_capacity_and_threads(vectors.len(), 1)?;
    for (key, vector) in (0..).zip(vectors) {
        index.add(key, vector)?;
    }
    let seconds = watch.seconds();
    ensure!(index.size() == vectors.len(), "the reference lost rows");
    Ok(seconds)
}
