//! A reference: usearch alone, one thread adding the same vectors.

use anyhow::ensure;
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{IndexParameters, Quantization};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

/// An index in memory, with room reserved.
pub(crate) struct Bare {
    index: Index,
}

impl Bare {
    pub(crate) fn new(rows: usize, parameters: IndexParameters) -> anyhow::Result<Self> {
        let options = IndexOptions {
            dimensions: crate::embeddings::DIM as usize,
            metric: MetricKind::Cos,
            quantization: match parameters.quantization {
                Some(Quantization::F32) => ScalarKind::F32,
                Some(Quantization::F16) => ScalarKind::F16,
                Some(Quantization::Bf16) => ScalarKind::BF16,
                // It knows no smaller codes.
                Some(Quantization::I8 | Quantization::I4) | None => ScalarKind::I8,
            },
            connectivity: usize::from(parameters.m),
            expansion_add: usize::from(parameters.ef_construction),
            expansion_search: usize::from(parameters.ef_search),
            multi: false,
        };
        let index = Index::new(&options)?;
        index.reserve_capacity_and_threads(rows, 1)?;
        Ok(Self { index })
    }

    pub(crate) fn add(&self, key: u64, vector: &[f32]) -> anyhow::Result<()> {
        Ok(self.index.add(key, vector)?)
    }

    /// The nearest rows, by their keys.
    pub(crate) fn search(&self, query: &[f32], k: usize, ef: usize) -> anyhow::Result<Vec<usize>> {
        self.index.change_expansion_search(ef);
        let found = self.index.search(query, k)?;
        let keys = found.keys.into_iter().map(usize::try_from);
        Ok(keys.collect::<Result<_, _>>()?)
    }
}

/// Builds an index of all vectors, room reserved first; also the seconds it took.
pub(crate) fn build(
    vectors: &[&[f32]],
    parameters: IndexParameters,
) -> anyhow::Result<(Bare, f64)> {
    let watch = Stopwatch::start();
    let bare = Bare::new(vectors.len(), parameters)?;
    for (key, vector) in (0..).zip(vectors) {
        bare.add(key, vector)?;
    }
    let seconds = watch.seconds();
    ensure!(
        bare.index.size() == vectors.len(),
        "the reference lost rows"
    );
    Ok((bare, seconds))
}
