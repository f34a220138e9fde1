//! More rows than the data set has: its own first, then copies of them with noise.
//!
//! A copy is its row plus Gaussian noise of 0.3 times the row's norm, made as long as the row
//! again. Row number and noise are a function of the number alone, so any row can be made again.

use anyhow::{Context as _, anyhow};
use shoal_schemas::{Metric, Point, Vector};

use crate::{
    embeddings::{DIM, Embeddings, K},
    random::Random,
    truth::{norm, product},
};

/// Norm of the noise, relative to the row's.
pub(crate) const NOISE: f32 = 0.3;

/// The rows of a set that is larger than the data.
pub(crate) struct Jittered<'a> {
    pub(crate) embeddings: &'a Embeddings,
    pub(crate) rows: usize,
}

impl Jittered<'_> {
    fn point(&self, row: usize) -> Option<&Point> {
        let points = &self.embeddings.points;
        let (_, point) = points.get(row % points.len())?;
        Some(point)
    }

    /// The vector of a row, into `out`.
    pub(crate) fn vector(&self, row: usize, out: &mut Vec<f32>) {
        out.clear();
        let Some(point) = self.point(row) else {
            return;
        };
        let base = point.vector.as_slice();
        if row < self.embeddings.points.len() {
            out.extend(base);
            return;
        }
        let mut random = Random::new(row as u64);
        out.extend((0..base.len().div_ceil(2)).flat_map(|_| random.normal_pair()));
        out.truncate(base.len());
        let (length, noise) = (norm(base), norm(out));
        for (out, base) in out.iter_mut().zip(base) {
            *out = base + *out * NOISE * length / noise;
        }
        let scale = length / norm(out);
        out.iter_mut().for_each(|component| *component *= scale);
    }

    /// A row as it is published: with the payload of the row it is a copy of.
    pub(crate) fn publishable(&self, row: usize, scratch: &mut Vec<f32>) -> anyhow::Result<Point> {
        self.vector(row, scratch);
        let point = self.point(row).context("the data set is empty")?;
        Ok(Point {
            vector: Vector::new(scratch, DIM.try_into()?, Metric::Cosine)?,
            ..point.clone()
        })
    }

    /// 1 - cosine of a query and a row, in single precision: the same each time.
    pub(crate) fn distance(query: &[f32], row: &[f32]) -> f32 {
        1.0 - product(query, row) / (norm(query) * norm(row))
    }

    /// Distance of each query's K-th neighbour, by looking at every row.
    pub(crate) fn farthest(&self, queries: &[Vec<f32>]) -> anyhow::Result<Vec<f32>> {
        let threads = std::thread::available_parallelism()?.get();
        let share = self.rows.div_ceil(threads).max(1);
        let nearest = std::thread::scope(|scope| {
            let started: Vec<_> = (0..threads)
                .map(|thread| {
                    let rows = thread * share..self.rows.min((thread + 1) * share);
                    scope.spawn(move || self.nearest(queries, rows))
                })
                .collect();
            let mut all = vec![Vec::new(); queries.len()];
            for thread in started {
                let some = thread.join().map_err(|_| anyhow!("a scan panicked"))?;
                for (all, some) in all.iter_mut().zip(some) {
                    all.extend(some);
                }
            }
            anyhow::Ok(all)
        })?;
        let kth = nearest.into_iter().map(|mut distances| {
            distances.sort_unstable_by(f32::total_cmp);
            distances.get(K - 1).or(distances.last()).copied()
        });
        kth.collect::<Option<_>>().context("there is no row")
    }

    /// The K smallest distances of each query among some rows, in no order.
    fn nearest(&self, queries: &[Vec<f32>], rows: std::ops::Range<usize>) -> Vec<Vec<f32>> {
        let mut nearest: Vec<Vec<f32>> = vec![Vec::new(); queries.len()];
        let mut vector = Vec::new();
        for row in rows {
            self.vector(row, &mut vector);
            for (query, nearest) in queries.iter().zip(&mut nearest) {
                let distance = Self::distance(query, &vector);
                if nearest.len() < K {
                    nearest.push(distance);
                } else if let Some(farthest) = nearest.iter_mut().max_by(|a, b| a.total_cmp(b))
                    && distance < *farthest
                {
                    *farthest = distance;
                }
            }
        }
        nearest
    }
}
