//! What the tour shows: embeddings with their texts, queries, and the exact neighbours' distances.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use shoal_producer::read::{self, Input, Options};
use shoal_schemas::{Collection, Metric, Point, PointId, Value, Vector, vector::Dim};

use super::{COLLECTION, K, PARTITIONS};

/// Components of every vector.
pub(super) const DIM: u32 = 384;
/// Neighbours of a query whose exact distances are known.
const NEIGHBOURS: u32 = 100;
/// Distances closer than this are equal.
const TOLERANCE: f64 = 1e-6;

/// A held-out sentence.
pub(super) struct Query {
    /// The gloss.
    pub(super) text: String,
    /// The words it explains, which are not among the points.
    pub(super) answer: String,
    pub(super) vector: Vector,
    /// Distance of the exact tenth neighbour.
    tenth: f64,
}

/// All of it, in memory.
pub(super) struct Data {
    pub(super) points: Vec<(PointId, Point)>,
    pub(super) queries: Vec<Query>,
    rows: HashMap<PointId, usize>,
}

#[derive(Deserialize)]
struct Line {
    text: String,
    answer: String,
}

impl Data {
    /// Reads the folder's files.
    pub(super) fn read(folder: &Path) -> anyhow::Result<Self> {
        let collection = definition()?;
        let points = vectors(
            folder.join("w_base_f16.npy"),
            Some(folder.join("w_meta.jsonl.gz")),
            &collection,
        )?;
        let vectors_of_queries = vectors(folder.join("w_queries_f16.npy"), None, &collection)?;
        // A distance is a component here: the reader of arrays does not mind.
        let of_distances = collection_of_distances()?;
        let distances = vectors(folder.join("w_gt_dist.npy"), None, &of_distances)?;
        let path = folder.join("w_queries.jsonl");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines: Vec<Line> = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .with_context(|| format!("{} does not read", path.display()))?;
        if lines.len() != vectors_of_queries.len() || lines.len() != distances.len() {
            bail!(
                "{} has {} queries, their vectors are {} and their neighbours {}",
                path.display(),
                lines.len(),
                vectors_of_queries.len(),
                distances.len()
            );
        }
        let tenth = usize::try_from(K - 1)?;
        let queries = lines.into_iter().zip(vectors_of_queries).zip(distances);
        let queries: Option<Vec<Query>> = queries
            .map(|((line, (_, point)), (_, distances))| {
                Some(Query {
                    text: line.text,
                    answer: line.answer,
                    vector: point.vector,
                    tenth: f64::from(*distances.vector.as_slice().get(tenth)?),
                })
            })
            .collect();
        let rows = points.iter().enumerate();
        let rows = rows.map(|(row, (id, _))| (id.clone(), row)).collect();
        Ok(Self {
            queries: queries.context("a query has fewer neighbours than are searched")?,
            points,
            rows,
        })
    }

    /// A point by its id.
    pub(super) fn point(&self, id: &str) -> Option<&Point> {
        let row = self.rows.get(id)?;
        self.points.get(*row).map(|(_, point)| point)
    }

    /// Whether a point is among the ten nearest of a query, or as near as the tenth.
    ///
    /// By its exact distance, reckoned here in double precision: what the answer says of its own
    /// distance does not count.
    pub(super) fn is_near(&self, query: &Query, id: &str) -> bool {
        self.point(id).is_some_and(|point| {
            distance(query.vector.as_slice(), point.vector.as_slice()) <= query.tenth + TOLERANCE
        })
    }
}

/// The tour's collection.
pub(super) fn definition() -> anyhow::Result<Collection> {
    collection(COLLECTION, DIM, Metric::Cosine)
}

fn collection(name: &str, dim: u32, metric: Metric) -> anyhow::Result<Collection> {
    Ok(Collection::new(
        name.parse()?,
        Dim::try_from(dim)?,
        metric,
        PARTITIONS,
    ))
}

fn collection_of_distances() -> anyhow::Result<Collection> {
    collection("distances", NEIGHBOURS, Metric::L2)
}

fn vectors(
    path: PathBuf,
    metadata: Option<PathBuf>,
    collection: &Collection,
) -> anyhow::Result<Vec<(PointId, Point)>> {
    let options = Options {
        metadata,
        ..Options::default()
    };
    let rows = read::open(&Input::File(path), collection, &options)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// One minus the cosine.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// The text of a point, as it was published.
pub(super) fn text(point: &Point) -> &str {
    match point.payload.0.get("text") {
        Some(Value::String(text)) => text,
        _ => "",
    }
}
