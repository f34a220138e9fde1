//! Exact distances in f32, for the memtable and for `exact` searches.
//!
//! Sixteen independent sums a loop, so that the compiler turns them into vector instructions
//! without being allowed to reorder additions itself. It does so once for any processor and once for
//! one with wider registers; additions come in one order in both, so a distance is the same to the bit.

use shoal_schemas::Metric;

use crate::index::target::Target;

const LANES: usize = 16;
const SQUARE_LANES: usize = 8;

/// A query with what can be computed once.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    metric: Metric,
    components: &'a [f32],
    norm: f32,
    /// Where its code is shared.
    target: Option<&'a Target>,
}

impl<'a> Query<'a> {
    /// Prepares a query whose code is made once for all graphs that it is put to.
    pub fn of(metric: Metric, target: &'a Target) -> Self {
        Self {
            target: Some(target),
            ..Self::new(metric, target.components())
        }
    }

    /// Prepares a checked query.
    pub fn new(metric: Metric, components: &'a [f32]) -> Self {
        let norm = match metric {
            Metric::Cosine => dot(components, components).sqrt(),
            Metric::InnerProduct | Metric::L2 => 1.0,
        };
        Self {
            metric,
            components,
            norm,
            target: None,
        }
    }

    /// The components as given.
    pub fn components(&self) -> &'a [f32] {
        self.components
    }

    /// The target, if its code is shared.
    pub(super) fn target(&self) -> Option<&'a Target> {
        self.target
    }

    /// Distance to `other`, which has as many components.
    pub fn distance(&self, other: &[f32]) -> f32 {
        debug_assert_eq!(self.components.len(), other.len());
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            #[expect(unsafe_code, reason = "the processor was asked")]
            // SAFETY: it has the feature.
            return unsafe { self.distance_by_avx2(other) };
        }
        self.distance_anywhere(other)
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn distance_by_avx2(&self, other: &[f32]) -> f32 {
        self.distance_anywhere(other)
    }

    #[inline(always)]
    fn distance_anywhere(&self, other: &[f32]) -> f32 {
        match self.metric {
            Metric::Cosine => {
                let (product, square) = dot_and_square(self.components, other);
                1.0 - product / (self.norm * square.sqrt())
            }
            Metric::InnerProduct => 1.0 - dot(self.components, other),
            Metric::L2 => squared_l2(self.components, other),
        }
    }
}

#[inline(always)]
fn fold(a: &[f32], b: &[f32], mut step: impl FnMut(usize, f32, f32)) {
    let (a_blocks, a_tail) = a.as_chunks::<LANES>();
    let (b_blocks, b_tail) = b.as_chunks::<LANES>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for (lane, (x, y)) in x.iter().zip(y).enumerate() {
            step(lane, *x, *y);
        }
    }
    for (lane, (x, y)) in a_tail.iter().zip(b_tail).enumerate() {
        step(lane, *x, *y);
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    fold(a, b, |lane, x, y| {
        if let Some(sum) = sums.get_mut(lane) {
            *sum += x * y;
        }
    });
    sums.iter().sum()
}

#[inline(always)]
fn squared_l2(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    fold(a, b, |lane, x, y| {
        if let Some(sum) = sums.get_mut(lane) {
            *sum += (x - y) * (x - y);
        }
    });
    sums.iter().sum()
}

#[inline(always)]
fn dot_and_square(a: &[f32], b: &[f32]) -> (f32, f32) {
    let mut products = [0.0f32; LANES];
    let mut squares = [0.0f32; LANES];
    fold(a, b, |lane, x, y| {
        if let (Some(product), Some(square)) = (products.get_mut(lane), squares.get_mut(lane)) {
            *product += x * y;
            *square += y * y;
        }
    });
    (products.iter().sum(), squares.iter().sum())
}

/// Sum of squares; in double precision, where no vector overflows.
pub(super) fn square(vector: &[f32]) -> f64 {
    let (blocks, tail) = vector.as_chunks::<SQUARE_LANES>();
    let mut sums = [0.0f64; SQUARE_LANES];
    for block in blocks {
        for (sum, component) in sums.iter_mut().zip(block) {
            *sum += f64::from(*component) * f64::from(*component);
        }
    }
    let rest = tail
        .iter()
        .map(|component| f64::from(*component) * f64::from(*component));
    sums.iter().sum::<f64>() + rest.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shoal_schemas::Metric;

    use super::Query;

    proptest! {
        #[test]
        fn every_kind_of_processor_says_the_same(
            pairs in prop::collection::vec((-2.0f32..2.0, -2.0f32..2.0), 1..600),
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            for metric in [Metric::Cosine, Metric::InnerProduct, Metric::L2] {
                let query = Query::new(metric, &a);
                let found = query.distance(&b);
                prop_assert_eq!(found.to_bits(), query.distance_anywhere(&b).to_bits());
            }
        }
    }

    #[test]
    fn each_metric_agrees_with_its_definition() {
        let a: Vec<f32> = (0u8..37).map(|i| f32::from(i) * 0.25 - 3.0).collect();
        let b: Vec<f32> = (0u8..37).map(|i| 2.0 - f32::from(i) * 0.125).collect();
        let dot: f32 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
        let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
        let l2: f32 = a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum();
        for (metric, expected) in [
            (Metric::Cosine, 1.0 - dot / (norm(&a) * norm(&b))),
            (Metric::InnerProduct, 1.0 - dot),
            (Metric::L2, l2),
        ] {
            let found = Query::new(metric, &a).distance(&b);
            let tolerance = 1e-4 * expected.abs().max(1.0);
            assert!(
                (found - expected).abs() < tolerance,
                "{metric:?}: {found} for {expected}"
            );
        }
    }
}
