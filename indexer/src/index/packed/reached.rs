//! The rows that are come to along edges, and in which order.
//!
//! Rows that follow each other are neighbours as a rule. Work on all rows of a graph that takes them in
//! this order finds what it reads in the processor's caches, where the row before left it: by their
//! numbers they lie all over the space.

use crate::index::{
    adjacency::index,
    packed::walk::{Layers, neighbours},
};

/// Rows come to at level 0.
pub(super) struct Reached {
    bits: Vec<bool>,
    order: Vec<u32>,
    next: Vec<u32>,
}

impl Reached {
    /// None yet, of a graph of so many rows.
    pub(super) fn new(rows: u32) -> Self {
        Self {
            bits: vec![false; index(rows)],
            order: Vec::new(),
            next: Vec::new(),
        }
    }

    /// All rows in order: behind those that the entry leads to come the others, by their numbers and along
    /// their own edges.
    pub(super) fn order_of_all<L: Layers>(layers: &L) -> Vec<u32> {
        let mut reached = Self::new(layers.rows());
        reached.spread(layers, layers.entry());
        for row in 0..layers.rows() {
            reached.spread(layers, row);
        }
        reached.order
    }

    /// Whether a row was come to; so was one that is not there.
    pub(super) fn has(&self, row: u32) -> bool {
        self.bits.get(index(row)).copied().unwrap_or(true)
    }

    /// Goes on from a row to all that it leads to and that were not come to before.
    pub(super) fn spread<L: Layers>(&mut self, layers: &L, from: u32) {
        self.next.push(from);
        while let Some(row) = self.next.pop() {
            if let Some(bit) = self.bits.get_mut(index(row))
                && !std::mem::replace(bit, true)
            {
                self.order.push(row);
                let first = self.next.len();
                let bits = &self.bits;
                let is_new = |to: &u32| bits.get(index(*to)).is_some_and(|bit| !bit);
                let new = neighbours(layers, 0, row).filter(is_new);
                self.next.extend(new);
                // The nearest one, which stands in front, is next.
                self.next.get_mut(first..).unwrap_or_default().reverse();
            }
        }
    }

    /// The rows that were come to, in order.
    pub(super) fn into_order(self) -> Vec<u32> {
        self.order
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::Reached;
    use crate::index::{adjacency::NONE, packed::walk::Layers};

    /// Lists of two places at level 0.
    struct Lists(Vec<[u32; 2]>);

    impl Layers for Lists {
        type Place = u32;

        fn rows(&self) -> u32 {
            u32::try_from(self.0.len()).unwrap()
        }

        fn entry(&self) -> u32 {
            2
        }

        fn top_level(&self) -> usize {
            0
        }

        fn base(&self, row: u32) -> &[u32] {
            &self.0[usize::try_from(row).unwrap()]
        }

        fn upper(&self, _level: usize, _row: u32) -> &[u32] {
            &[]
        }

        fn code(&self, _row: u32) -> &[u8] {
            &[]
        }

        fn bias(&self, _row: u32) -> f32 {
            0.0
        }
    }

    #[test]
    fn rows_come_behind_a_neighbour_each_once_and_last_those_that_the_entry_does_not_lead_to() {
        let lists = Lists(vec![
            [3, 2],
            [5, NONE],
            [0, 4],
            [0, NONE],
            [2, 3],
            [NONE, NONE],
        ]);
        assert_eq!(Reached::order_of_all(&lists), [2, 0, 3, 4, 1, 5]);
        let mut reached = Reached::new(lists.rows());
        reached.spread(&lists, lists.entry());
        assert!(reached.has(4) && !reached.has(5));
        assert!(reached.has(6), "there is none to be come to");
        assert_eq!(reached.into_order(), [2, 0, 3, 4]);
    }

    #[test]
    fn a_graph_without_rows_has_no_order() {
        assert!(Reached::order_of_all(&Lists(Vec::new())).is_empty());
    }
}
