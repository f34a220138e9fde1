//! The nearest rows that a search has come to so far.

use std::cmp::Ordering;

use crate::find::Met;

/// The nearest rows, and at times as many others: they are sorted out now and then.
pub(super) struct Kept<'a> {
    rows: Vec<Met<'a>>,
    /// How many are of use.
    most: usize,
    /// Farther ones are of no use, once there are so many.
    reach: Option<f32>,
    order: fn(&Met<'a>, &Met<'a>) -> Ordering,
}

impl<'a> Kept<'a> {
    /// None yet; keeps `most` by an order that is one of distances first of all.
    pub(super) fn new(most: usize, order: fn(&Met<'a>, &Met<'a>) -> Ordering) -> Self {
        Self {
            rows: Vec::new(),
            most: most.max(1),
            reach: None,
            order,
        }
    }

    /// Whether a row that far off may be among the nearest. Asked before anything else about a row,
    /// it saves looking that up.
    #[inline(always)]
    pub(super) fn may_take(&self, distance: f32) -> bool {
        // One at the same distance may come before those that are kept, and what is no number is farthest.
        self.reach
            .is_none_or(|reach| distance.total_cmp(&reach).is_le())
    }

    /// Takes a row.
    pub(super) fn push(&mut self, one: Met<'a>) {
        self.rows.push(one);
        if self.rows.len() >= 2 * self.most {
            self.sort_out(self.most);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How far its rows are off, in no order.
    pub(super) fn distances(&self) -> impl Iterator<Item = f32> {
        self.rows.iter().map(|one| one.distance)
    }

    /// The nearest ones, as many as are of use, in no order.
    pub(super) fn nearest(mut self) -> Vec<Met<'a>> {
        self.sort_out(self.most);
        self.rows
    }

    /// The first `k` in order, no more than are of use.
    pub(super) fn first(mut self, k: usize) -> Vec<Met<'a>> {
        self.sort_out(k.min(self.most));
        self.rows.sort_unstable_by(self.order);
        self.rows
    }

    fn sort_out(&mut self, most: usize) {
        if self.rows.len() <= most {
            return;
        }
        if let Some(last) = most.checked_sub(1) {
            let (_, last, _) = self.rows.select_nth_unstable_by(last, self.order);
            self.reach = Some(last.distance);
        }
        self.rows.truncate(most);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::cmp::Ordering;

    use proptest::prelude::*;
    use shoal_schemas::{Dim, IndexParameters, Metric, filter::Fields};

    use super::Kept;
    use crate::{
        find::{Met, by_distance},
        index::live::{Graph, Options},
        segment::{Place, Segment, SegmentId, growing::Growing},
        wal::Position,
    };

    fn segment() -> Segment {
        let graph = Graph::new(&Options {
            dim: Dim::try_from(2).unwrap(),
            metric: Metric::L2,
            parameters: IndexParameters::default(),
        });
        let growing = Growing::new(graph, Fields::new(), Position::START);
        Segment::growing(SegmentId(1), growing)
    }

    /// By distance, then by row.
    fn in_order(a: &Met<'_>, b: &Met<'_>) -> Ordering {
        by_distance(a, b).then(a.place.row.cmp(&b.place.row))
    }

    fn told(all: &[Met<'_>]) -> Vec<(u32, u32)> {
        let told = all
            .iter()
            .map(|one| (one.distance.to_bits(), one.place.row));
        told.collect()
    }

    proptest! {
        #[test]
        fn the_nearest_are_those_of_all_whatever_was_passed_over(
            // Few different distances, so that many rows are as far off as others.
            far in proptest::collection::vec((0u8..20, any::<u32>()), 0..300),
            no_number in any::<bool>(),
            most in 0usize..20,
            k in 0usize..25,
        ) {
            let segment = segment();
            let (mut kept, mut again) = (Kept::new(most, in_order), Kept::new(most, in_order));
            let mut all = Vec::new();
            for (distance, row) in far {
                let distance = match no_number && distance == 7 {
                    true => f32::NAN,
                    false => f32::from(distance),
                };
                let met = Met {
                    place: Place { segment: segment.id, row },
                    segment: &segment,
                    distance,
                };
                all.push(met);
                if kept.may_take(distance) {
                    kept.push(met);
                    again.push(met);
                }
                prop_assert!(kept.distances().count() < 2 * most.max(1));
            }
            all.sort_by(in_order);
            all.truncate(most.max(1));
            let mut nearest = kept.nearest();
            nearest.sort_by(in_order);
            prop_assert_eq!(told(&nearest), told(&all));
            all.truncate(k);
            prop_assert_eq!(told(&again.first(k)), told(&all));
        }
    }
}
