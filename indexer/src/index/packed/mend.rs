//! Seeing to it that a walk can come to every row.
//!
//! Choosing neighbours in different directions may leave a row in nobody's list: as it comes in,
//! with every HNSW, and more so after rows are dropped. Such a row gets a place in the list of the
//! nearest row that has one, and if none of them has, in place of the farthest there.
//!
//! A way to a row is not enough: a search takes the nearest rows only, and may end before it comes to
//! the one row that leads on. So rows in few lists are looked for as a search would, and those that
//! are not found get a place in the list of the nearest that was.

use crate::index::{
    adjacency::{NONE, index},
    kernel::Kernel,
    packed::{
        build::{self, Builder},
        walk::{Far, Layers, descend},
    },
    space::{Measure, Visit},
};

/// Rounds after which it is left at that: a place taken from one row may lose another.
const ROUNDS: usize = 8;
/// A row in so many lists is taken for found, and so is one in half as many as a list has places: to
/// look for every row would cost a search each. It is a limit of work, no promise.
const ENOUGH_LISTS: usize = 8;
/// The beam a row has to be found with, less than what searches have as a rule.
const BEAM: usize = 32;

impl Builder {
    /// Makes edges to rows that no walk comes to; false if `meanwhile` said no.
    pub(super) fn mend<E>(
        &mut self,
        meanwhile: &mut impl FnMut() -> Result<bool, E>,
    ) -> Result<bool, E> {
        for _ in 0..ROUNDS {
            let mut reached = Reached::new(self.edges.rows);
            reached.spread(self, self.edges.entry);
            let mut lost = 0;
            for row in 0..self.edges.rows {
                if !reached.has(row) {
                    lost += 1;
                    self.lead_to(row);
                    reached.spread(self, row);
                    if !meanwhile()? {
                        return Ok(false);
                    }
                }
            }
            if lost == 0 {
                break;
            }
        }
        self.mend_hidden(meanwhile)
    }

    /// Makes edges to rows that searches for themselves do not find.
    fn mend_hidden<E>(
        &mut self,
        meanwhile: &mut impl FnMut() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let mut lists = vec![0usize; index(self.edges.rows)];
        for row in 0..self.edges.rows {
            for to in build::list(self, 0, row) {
                if let Some(count) = lists.get_mut(index(*to)) {
                    *count += 1;
                }
            }
        }
        let enough = ENOUGH_LISTS.min(self.edges.degree / 2);
        let few = (0u32..).zip(&lists).filter(|(_, count)| **count < enough);
        let mut doubtful: Vec<u32> = few.map(|(row, _)| row).collect();
        for _ in 0..ROUNDS {
            let mut given = Vec::new();
            for row in std::mem::take(&mut doubtful) {
                if !meanwhile()? {
                    return Ok(false);
                }
                let query = self.space.query_of_code(self.codes.of(row));
                let own = query.distance(self.code(row), self.bias(row));
                let near = query.visit(AsSearched(self));
                if near.first().is_some_and(|(nearest, _)| *nearest <= own) {
                    continue;
                }
                given.extend(self.give_place(row, &near, &mut lists));
                // Looked at again: what has its place now may have lost its own.
                doubtful.push(row);
            }
            if doubtful.is_empty() {
                break;
            }
            doubtful.append(&mut given);
        }
        Ok(true)
    }

    /// Puts a row into the list of the nearest one that has room, else in place of the neighbour that
    /// is in most lists; gives that one.
    fn give_place(&mut self, row: u32, near: &[Far], lists: &mut [usize]) -> Option<u32> {
        let has_room = |near: &&Far| build::list(self, 0, near.1).len() < self.edges.degree;
        let (_, from) = *near.iter().take(self.m).find(has_room).or(near.first())?;
        let in_lists = |to: &u32| lists.get(index(*to)).copied().unwrap_or_default();
        let neighbours = build::list(self, 0, from).iter().enumerate();
        let most = neighbours
            .max_by_key(|(_, to)| in_lists(to))
            .map_or(0, |(place, _)| place);
        let places = self.edges.places_mut(0, from);
        let free = places.iter().position(|place| *place == NONE);
        let place = places.get_mut(free.unwrap_or(most))?;
        let before = std::mem::replace(place, row);
        if let Some(count) = lists.get_mut(index(row)) {
            *count += 1;
        }
        let count = lists.get_mut(index(before))?;
        *count = count.saturating_sub(1);
        Some(before)
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

/// Finds the nearest rows as a search with a narrow beam does.
struct AsSearched<'a>(&'a mut Builder);

impl Visit for AsSearched<'_> {
    type Output = Vec<Far>;

    fn visit<K: Kernel>(self, measure: &Measure<'_, K>) -> Vec<Far> {
        let Self(builder) = self;
        let mut scratch = std::mem::take(&mut builder.scratch);
        let entry = builder.edges.entry;
        let distance = measure.distance(builder.code(entry), builder.bias(entry));
        let (start, _) = descend(builder, measure, (distance, entry), 1);
        scratch.spread(builder, measure, start, 0, BEAM);
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
