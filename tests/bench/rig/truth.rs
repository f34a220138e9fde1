//! Exact neighbours by looking at every row, and what counts as one.

use anyhow::anyhow;

/// Two distances nearer than this are equal: a row may stand for another one then.
pub(crate) const TIE: f64 = 1e-6;
/// How far a distance in single precision may be from the one in double.
const COARSE: f32 = 1e-4;

/// 1 - cosine, in double precision.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f64 {
    let (mut product, mut left, mut right) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        product += a * b;
        left += a * a;
        right += b * b;
    }
    1.0 - product / (left * right).sqrt()
}

/// The inner product in single precision, in an order that processors have instructions for.
pub(crate) fn product(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut sums = [0.0f32; 16];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| a * b);
    sums.iter().sum::<f32>() + rest.sum::<f32>()
}

pub(crate) fn norm(vector: &[f32]) -> f32 {
    product(vector, vector).sqrt()
}

/// Distance of each query's `k`-th neighbour among `rows`.
pub(crate) fn kth_distances(
    queries: &[Vec<f32>],
    rows: &[&[f32]],
    k: usize,
) -> anyhow::Result<Vec<f64>> {
    let norms: Vec<f32> = rows.iter().map(|row| norm(row)).collect();
    let threads = std::thread::available_parallelism()?.get();
    let share = queries.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let norms = &norms;
        let started: Vec<_> = queries
            .chunks(share)
            .map(|some| {
                let each = move || -> Vec<f64> {
                    some.iter()
                        .map(|query| kth_distance(query, rows, norms, k))
                        .collect()
                };
                scope.spawn(each)
            })
            .collect();
        let mut all = Vec::with_capacity(queries.len());
        for thread in started {
            all.extend(thread.join().map_err(|_| anyhow!("a scan panicked"))?);
        }
        Ok(all)
    })
}

fn kth_distance(query: &[f32], rows: &[&[f32]], norms: &[f32], k: usize) -> f64 {
    let length = norm(query);
    let rough = rows.iter().zip(norms);
    let rough: Vec<f32> = rough
        .map(|(row, norm)| 1.0 - product(query, row) / (length * norm))
        .collect();
    let kth = k.saturating_sub(1).min(rough.len().saturating_sub(1));
    let limit = *rough.clone().select_nth_unstable_by(kth, f32::total_cmp).1;
    let near = rough.iter().zip(rows);
    let mut near: Vec<f64> = near
        .filter(|(rough, _)| **rough <= limit + COARSE)
        .map(|(_, row)| distance(query, row))
        .collect();
    *near.select_nth_unstable_by(kth, f64::total_cmp).1
}
