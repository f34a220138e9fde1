//! Seeing to it that a walk can come to every row.
//!
//! Choosing neighbours in different directions may leave a row in nobody's list: as it comes in,
//! with every HNSW, and more so after rows are dropped. Such a row gets a place in the list of the
//! nearest row that has one, and if none of them has, in place of the farthest there.
//!
//! A way to a row is not enough: a search takes the nearest rows only, and may end before it comes to
//! the one row that leads on. So each row is looked for as a search would, and one that is not found
//! gets a place in the list of the nearest that was. Nothing cheaper tells which ones these are: they
//! are in few lists and in many, and the rows they list may list them or not. It is looked for by its
//! vector where that is at hand, for what its code says is somewhere else, and is come to by another way.

use crate::index::{
    adjacency::index,
    kernel::Kernel,
    packed::{
        connect::{Grow, Work},
        reached::Reached,
        walk::{Far, descend, distance, neighbours},
    },
    space::{Measure, QueryCode, Space, Visit},
};

/// Rounds after which it is left at that: a place taken from one row may lose another.
const ROUNDS: usize = 8;
/// The beam a row has to be found with. A walk is narrower than that only if its caller says so.
pub const BEAM: usize = 20;

/// What mending asks of whoever has it done, between rows.
pub trait Attend {
    /// Why it fails.
    type Error;

    /// Whether to go on.
    ///
    /// # Errors
    /// Its own.
    fn goes_on(&mut self) -> Result<bool, Self::Error>;

    /// The vector of a row of the graph as it was published, into `out`; false where its code has to do.
    ///
    /// # Errors
    /// Its own.
    fn vector(&mut self, _row: u32, _out: &mut Vec<f32>) -> Result<bool, Self::Error> {
        Ok(false)
    }
}

impl<E, F: FnMut() -> Result<bool, E>> Attend for F {
    type Error = E;

    fn goes_on(&mut self) -> Result<bool, E> {
        self()
    }
}

/// A graph to be mended.
pub(in crate::index) struct Mend<'a, G> {
    pub(in crate::index) graph: &'a mut G,
    pub(in crate::index) space: &'a Space,
    pub(in crate::index) work: &'a mut Work,
}

impl<G: Grow> Mend<'_, G> {
    /// Makes edges to rows that no walk comes to; false if `attend` said no.
    pub(in crate::index) fn mend<A: Attend>(mut self, attend: &mut A) -> Result<bool, A::Error> {
        if self.graph.effort().0 == 0 {
            return Ok(true);
        }
        let mut order = Vec::new();
        for _ in 0..ROUNDS {
            let mut reached = Reached::new(self.graph.rows());
            reached.spread(self.graph, self.graph.entry());
            let mut lost = 0;
            // Every walk comes to it, but if it goes down the levels leaves it there.
            let entry = self.graph.entry();
            if self.graph.rows() > 1 && !self.is_listed(entry) {
                lost += 1;
                self.lead_to(entry);
            }
            for row in 0..self.graph.rows() {
                if !reached.has(row) {
                    lost += 1;
                    self.lead_to(row);
                    reached.spread(self.graph, row);
                    if !attend.goes_on()? {
                        return Ok(false);
                    }
                }
            }
            order = reached.into_order();
            if lost == 0 {
                break;
            }
        }
        self.mend_hidden(order, attend)
    }

    /// Makes edges to those of `doubtful` that searches for themselves do not find.
    fn mend_hidden<A: Attend>(
        &mut self,
        mut doubtful: Vec<u32>,
        attend: &mut A,
    ) -> Result<bool, A::Error> {
        let mut lists = vec![0usize; index(self.graph.rows())];
        for row in 0..self.graph.rows() {
            for to in neighbours(self.graph, 0, row) {
                if let Some(count) = lists.get_mut(index(to)) {
                    *count += 1;
                }
            }
        }
        let mut vector = Vec::new();
        for _ in 0..ROUNDS {
            let mut given = Vec::new();
            for row in std::mem::take(&mut doubtful) {
                if !attend.goes_on()? {
                    return Ok(false);
                }
                let query = match attend.vector(row, &mut vector)? {
                    true => self.space.encode_query(&vector),
                    false => self.space.query_of_code(self.graph.code(row)),
                };
                let Some(near) = self.without(row, &query) else {
                    continue;
                };
                if self.is_crowded_out(row, &query, &near) {
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

    /// Whether a search that comes to a row would not keep it: others are nearer, as where longer vectors are nearer to
    /// it than itself, or stand at the same place.
    fn is_crowded_out(&self, row: u32, query: &QueryCode, near: &[Far]) -> bool {
        let code = |row| self.graph.code(row);
        let own = query.distance(code(row), self.graph.bias(row));
        let worst = near.last().filter(|_| near.len() >= BEAM);
        worst.is_some_and(|(worst, _)| *worst <= own)
            || near.iter().any(|(_, found)| code(*found) == code(row))
    }

    /// Puts a row into the list of the nearest one that has room, else in place of the neighbour that
    /// is in most lists; gives that one.
    fn give_place(&mut self, row: u32, near: &[Far], lists: &mut [usize]) -> Option<u32> {
        let (m, _) = self.graph.effort();
        let has_room = |near: &&Far| self.has_room(near.1);
        let (_, from) = *near.iter().take(m).find(has_room).or(near.first())?;
        let held: Vec<u32> = neighbours(self.graph, 0, from).collect();
        let in_lists = |to: &u32| lists.get(index(*to)).copied().unwrap_or_default();
        let most = held.iter().enumerate().max_by_key(|(_, to)| in_lists(to));
        let place = match held.len() < self.graph.degree(0) {
            true => held.len(),
            false => most.map_or(0, |(place, _)| place),
        };
        self.graph.put(0, from, place, row);
        if let Some(count) = lists.get_mut(index(row)) {
            *count += 1;
        }
        let before = *held.get(place)?;
        let count = lists.get_mut(index(before))?;
        *count = count.saturating_sub(1);
        Some(before)
    }

    /// Whether a row is in the list of another.
    fn is_listed(&self, row: u32) -> bool {
        let lists = |from| neighbours(self.graph, 0, from).any(|to| to == row);
        // Those in its own list as a rule.
        neighbours(self.graph, 0, row).any(lists) || (0..self.graph.rows()).any(lists)
    }

    fn lead_to(&mut self, row: u32) {
        let query = self.space.query_of_code(self.graph.code(row));
        let mut near = query.visit(Around {
            graph: self.graph,
            work: self.work,
            beam: self.graph.effort().1,
        });
        near.retain(|(_, near)| *near != row);
        let from = near.iter().find(|near| self.has_room(near.1));
        let Some((_, from)) = from.or(near.first()).copied() else {
            return;
        };
        if neighbours(self.graph, 0, row).next().is_none() {
            let (m, _) = self.graph.effort();
            self.graph.set_links(0, row, near.get(..m).unwrap_or(&near));
        }
        let place = match self.has_room(from) {
            true => neighbours(self.graph, 0, from).count(),
            false => self.farthest(from),
        };
        self.graph.put(0, from, place, row);
    }

    fn has_room(&self, row: u32) -> bool {
        neighbours(self.graph, 0, row).count() < self.graph.degree(0)
    }

    /// Which of a row's places has its farthest neighbour.
    fn farthest(&self, row: u32) -> usize {
        let query = self.space.query_of_code(self.graph.code(row));
        let distances = neighbours(self.graph, 0, row)
            .map(|to| query.distance(self.graph.code(to), self.graph.bias(to)));
        let farthest = distances.enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        farthest.map_or(0, |(place, _)| place)
    }

    /// The nearest rows that a search with a narrow beam comes to, if it does not come to this row.
    ///
    /// A search with a wider beam looks from the same rows first, and from others after that, so it comes
    /// to every row that this one comes to.
    fn without(&mut self, row: u32, query: &QueryCode) -> Option<Vec<Far>> {
        query.visit(Find {
            graph: self.graph,
            work: self.work,
            row,
        })
    }
}

/// Looks for a row as a search does: the nearest rows if it is not found.
struct Find<'a, G> {
    graph: &'a G,
    work: &'a mut Work,
    row: u32,
}

impl<G: Grow> Visit for Find<'_, G> {
    type Output = Option<Vec<Far>>;

    fn visit<K: Kernel>(self, measure: &Measure<'_, K>) -> Option<Vec<Far>> {
        let Self { graph, work, row } = self;
        let (start, _) = descend(graph, measure, from_entry(graph, measure), 1);
        let scratch = &mut work.scratch;
        let is_found = scratch.comes_to(graph, measure, start, BEAM, row);
        (!is_found).then(|| scratch.found().collect())
    }
}

/// The nearest of the rows that a walk at level 0 comes to from the entry itself, for one that goes down
/// the levels may end among others.
struct Around<'a, G> {
    graph: &'a G,
    work: &'a mut Work,
    beam: usize,
}

impl<G: Grow> Visit for Around<'_, G> {
    type Output = Vec<Far>;

    fn visit<K: Kernel>(self, measure: &Measure<'_, K>) -> Vec<Far> {
        let Self { graph, work, beam } = self;
        let scratch = &mut work.scratch;
        scratch.spread(graph, measure, from_entry(graph, measure), 0, beam);
        scratch.found().collect()
    }
}

fn from_entry<G: Grow, K: Kernel>(graph: &G, measure: &Measure<'_, K>) -> Far {
    let entry = graph.entry();
    (distance(graph, measure, entry), entry)
}
