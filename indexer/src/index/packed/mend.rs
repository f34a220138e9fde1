//! Seeing to it that a walk can come to every row.
//!
//! Choosing neighbours in different directions may leave a row in nobody's list: as it comes in,
//! with every HNSW, and more so after rows are dropped. Such a row gets a place in the list of the
//! nearest row that has one, and if none of them has, in place of the farthest there.

use crate::index::{
    adjacency::{NONE, index},
    kernel::Kernel,
    packed::{
        build::{self, Builder},
        walk::{Far, Layers},
    },
    space::{Measure, Visit},
};

/// Rounds after which it is left at that: a place taken from one row may lose another.
const ROUNDS: usize = 8;

impl Builder {
    /// Makes edges to rows that no walk comes to; gives how many there were.
    pub(super) fn mend(&mut self) -> usize {
        let mut mended = 0;
        for _ in 0..ROUNDS {
            let mut reached = Reached::new(self.edges.rows);
            reached.spread(self, self.edges.entry);
            let mut lost = 0;
            for row in 0..self.edges.rows {
                if !reached.has(row) {
                    lost += 1;
                    self.lead_to(row);
                    reached.spread(self, row);
                }
            }
            if lost == 0 {
                break;
            }
            mended += lost;
        }
        mended
    }

    fn lead_to(&mut self, row: u32) {
        let query = self.space.query_of_code(self.codes.of(row));
        let near = query.visit(FromEntry(self));
        let has_room = |near: &&Far| build::list(self, 0, near.1).len() < self.edges.degree;
        let from = near.iter().find(has_room).or(near.first());
        let Some((_, from)) = from.copied() else {
            return;
        };
        if build::list(self, 0, row).is_empty() {
            self.set_links(0, row, near.get(..self.m).unwrap_or(&near));
        }
        let farthest = self.farthest(from);
        let places = self.edges.places_mut(0, from);
        let free = places.iter().position(|place| *place == NONE);
        if let Some(place) = places.get_mut(free.unwrap_or(farthest)) {
            *place = row;
        }
    }

    /// Which of a row's places has its farthest neighbour.
    fn farthest(&self, row: u32) -> usize {
        let query = self.space.query_of_code(self.codes.of(row));
        let distances = build::list(self, 0, row)
            .iter()
            .map(|to| query.distance(self.code(*to), self.bias(*to)));
        let farthest = distances.enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        farthest.map_or(0, |(place, _)| place)
    }
}

/// Finds the nearest rows of those a walk at level 0 comes to, from the entry itself: one that goes
/// down the levels may end among the others.
struct FromEntry<'a>(&'a mut Builder);

impl Visit for FromEntry<'_> {
    type Output = Vec<Far>;

    fn visit<K: Kernel>(self, measure: &Measure<'_, K>) -> Vec<Far> {
        let Self(builder) = self;
        let mut scratch = std::mem::take(&mut builder.scratch);
        let entry = builder.edges.entry;
        let distance = measure.distance(builder.code(entry), builder.bias(entry));
        scratch.spread(builder, measure, (distance, entry), 0, builder.beam);
        let found = scratch.found().collect();
        builder.scratch = scratch;
        found
    }
}

/// Rows that a walk at level 0 comes to.
struct Reached {
    bits: Vec<bool>,
    next: Vec<u32>,
}

impl Reached {
    fn new(rows: u32) -> Self {
        Self {
            bits: vec![false; index(rows)],
            next: Vec::new(),
        }
    }

    fn has(&self, row: u32) -> bool {
        self.bits.get(index(row)).copied().unwrap_or(true)
    }

    fn spread(&mut self, graph: &Builder, from: u32) {
        self.next.push(from);
        while let Some(row) = self.next.pop() {
            if let Some(bit) = self.bits.get_mut(index(row))
                && !std::mem::replace(bit, true)
            {
                self.next.extend(build::list(graph, 0, row));
            }
        }
    }
}
