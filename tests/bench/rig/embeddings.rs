//! The data set: points with their texts, held-out queries, their exact neighbours.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context as _, ensure};
use shoal_producer::read::{self, Input};
use shoal_schemas::{Collection, Metric, Point, PointId, v1};

use crate::{
    arguments::Arguments,
    truth::{TIE, distance, kth_distances},
};

/// Neighbours a query is judged by.
pub(crate) const K: usize = 10;
pub(crate) const DIM: u32 = 384;

/// Everything a measurement reads from disk, in memory.
pub(crate) struct Embeddings {
    pub(crate) points: Vec<(PointId, Point)>,
    pub(crate) queries: Vec<Vec<f32>>,
    /// Distance of each query's K-th neighbour, exact.
    farthest: Vec<f64>,
    rows: HashMap<String, usize>,
}

/// A collection of one partition with default index parameters.
pub(crate) fn collection(name: &str) -> anyhow::Result<Collection> {
    partitioned(name, 1)
}

/// The same of several partitions.
pub(crate) fn partitioned(name: &str, partitions: u32) -> anyhow::Result<Collection> {
    let (name, dim) = (name.parse()?, DIM.try_into()?);
    let mut collection = Collection::new(name, dim, Metric::Cosine, partitions);
    // Said, so that figures say it too.
    collection.index.quantization = Some(collection.quantization());
    Ok(collection)
}

/// The vectors of one file of the data set, read as they are asked for.
pub(crate) fn vectors(
    folder: &Path,
    file: &str,
) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Vec<f32>>>> {
    let input = Input::File(folder.join(file));
    let rows = read::open(&input, &collection("vectors")?, &read::Options::default())?;
    Ok(rows.map(|row| Ok(row?.1.vector.as_slice().to_vec())))
}

impl Embeddings {
    pub(crate) fn load(arguments: &Arguments) -> anyhow::Result<Self> {
        let folder = &arguments.data;
        let wanted = arguments.rows.unwrap_or(usize::MAX);
        let collection = collection("embeddings-on-disk")?;
        let options = read::Options {
            metadata: Some(folder.join("w_meta.jsonl.gz")),
            ..read::Options::default()
        };
        let base = Input::File(folder.join("w_base_f16.npy"));
        let rows = read::open(&base, &collection, &options)?;
        let is_cut = rows.total.is_some_and(|total| wanted < total as usize);
        let points = rows.take(wanted).collect::<Result<Vec<_>, _>>()?;
        let queries = vectors(folder, "w_queries_f16.npy")?.collect::<anyhow::Result<Vec<_>>>()?;
        let farthest = if is_cut {
            let rows: Vec<&[f32]> = points
                .iter()
                .map(|(_, point)| point.vector.as_slice())
                .collect();
            kth_distances(&queries, &rows, K)?
        } else {
            let truth = neighbours(&folder.join("w_gt.npy"), queries.len())?;
            let kth = truth.iter().zip(&queries).map(|(row, query)| {
                let (_, point) = points.get(*row).context("a neighbour is no row")?;
                Ok(distance(query, point.vector.as_slice()))
            });
            kth.collect::<anyhow::Result<_>>()?
        };
        let rows = points.iter().zip(0..);
        let rows = rows
            .map(|((id, _), row)| (id.as_str().to_owned(), row))
            .collect();
        Ok(Self {
            points,
            queries,
            farthest,
            rows,
        })
    }

    pub(crate) fn vectors(&self) -> impl Iterator<Item = &[f32]> {
        self.points.iter().map(|(_, point)| point.vector.as_slice())
    }

    /// Share of a query's K true neighbours among these hits, by the rows' own vectors.
    pub(crate) fn recall(&self, query: usize, hits: &[v1::Hit]) -> f64 {
        let (Some(asked), Some(limit)) = (self.queries.get(query), self.farthest.get(query)) else {
            return 0.0;
        };
        let near = hits.iter().take(K).filter(|hit| {
            let row = self.rows.get(&hit.id).and_then(|row| self.points.get(*row));
            row.is_some_and(|(_, point)| distance(asked, point.vector.as_slice()) <= limit + TIE)
        });
        near.count() as f64 / K as f64
    }

    /// The same for the numbers of rows.
    pub(crate) fn recall_of_rows(&self, query: usize, rows: &[usize]) -> f64 {
        let (Some(asked), Some(limit)) = (self.queries.get(query), self.farthest.get(query)) else {
            return 0.0;
        };
        let near = rows.iter().take(K).filter(|row| {
            let row = self.points.get(**row);
            row.is_some_and(|(_, point)| distance(asked, point.vector.as_slice()) <= limit + TIE)
        });
        near.count() as f64 / K as f64
    }

    /// Whether a row lies where another one does, or is it.
    pub(crate) fn is_same_place(&self, row: usize, other: usize) -> bool {
        let (Some((_, row)), Some((_, other))) = (self.points.get(row), self.points.get(other))
        else {
            return false;
        };
        distance(row.vector.as_slice(), other.vector.as_slice()) <= TIE
    }

    /// The number of a row by its id.
    pub(crate) fn row(&self, id: &str) -> Option<usize> {
        self.rows.get(id).copied()
    }
}

/// The row of each query's K-th neighbour, of a numpy array of 100 little-endian i32 a query.
fn neighbours(path: &Path, queries: usize) -> anyhow::Result<Vec<usize>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let body_bytes = queries * 100 * 4;
    ensure!(
        bytes.starts_with(b"\x93NUMPY") && bytes.len() > body_bytes,
        "{} is no numpy array of {queries} x 100 neighbours",
        path.display()
    );
    let (_, body) = bytes.split_at(bytes.len() - body_bytes);
    let rows = body.chunks_exact(400).map(|row| {
        let kth = row
            .as_chunks::<4>()
            .0
            .get(K - 1)
            .copied()
            .unwrap_or_default();
        Ok(usize::try_from(i32::from_le_bytes(kth))?)
    });
    rows.collect()
}
