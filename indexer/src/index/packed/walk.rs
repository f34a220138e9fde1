//! The walk: from the entry down to the nearest rows.
//!
//! Above level 0 it goes to the best neighbour while there is a better one. At level 0 it keeps a
//! *beam*: the nearest rows so far in an array, sorted, each marked once its neighbours were
//! looked at; it ends when all are. A sorted array of the usual hundred or so takes a new row
//! faster than two heaps do. The rows to compare next are asked for from memory before the first
//! of them is compared.
//!
//! Where an answer may hold some rows only, the beam is of *those*: the others lead on, however many
//! they are, and take no place in it. So recall does not fall with the share of rows that are
//! accepted, nor where the query stands amid rows that are not; the walk gets longer instead, and a
//! bound says how long it may get.
//!
//! # Source
//! SEARCH-LAYER and K-NN-SEARCH, algorithms 2 and 5 of Malkov and Yashunin, arXiv:1603.09320.

use std::{cell::RefCell, cmp::Reverse, collections::BinaryHeap};

use crate::index::{
    Near,
    adjacency::{Place, index},
    kernel::Kernel,
    prefetch,
    space::{Measure, QueryCode, Visit},
};

/// Marks a row of the beam whose neighbours were looked at. No segment has so many rows.
const SEEN: u32 = 1 << 31;
/// The bit of a float that says that it is negative.
const SIGN: u32 = 1 << 31;

/// What a search found and what it took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Walk {
    /// The nearest rows, nearest first.
    pub near: Vec<Near>,
    /// Distances computed.
    pub distances: usize,
    /// Whether it was given up at its bound: there may be nearer rows than it found.
    pub is_cut: bool,
}

/// Which rows an answer may hold, and how far a walk goes for them.
#[derive(Clone, Copy)]
pub struct Accept<'a> {
    /// Whether a row is one of them.
    pub takes: &'a dyn Fn(u32) -> bool,
    /// Distances after which the walk is given up.
    pub max_distances: usize,
}

/// Codes and edges, wherever they lie.
pub(in crate::index) trait Layers {
    /// What a list of neighbours is made of.
    type Place: Place;

    /// Number of rows.
    fn rows(&self) -> u32;
    /// Whether a number in a place ends the list.
    #[inline(always)]
    fn ends(&self, number: u32) -> bool {
        number >= self.rows()
    }
    /// Where a walk starts.
    fn entry(&self) -> u32;
    /// The highest level.
    fn top_level(&self) -> usize;
    /// A row's places at level 0: the list of its neighbours ends at a number that is no row.
    fn base(&self, row: u32) -> &[Self::Place];
    /// A row's places on a level above; none if it is not on it.
    fn upper(&self, level: usize, row: u32) -> &[Self::Place];
    /// A row's code.
    fn code(&self, row: u32) -> &[u8];
    /// A row's bias.
    fn bias(&self, row: u32) -> f32;
}

/// A row and its distance.
pub(in crate::index) type Far = (f32, u32);

/// See [`super::Graph::search`].
pub(in crate::index) fn nearest<L: Layers>(
    layers: &L,
    query: &QueryCode,
    beam: usize,
    want: usize,
    accept: Option<Accept<'_>>,
) -> Walk {
    let rows = index(layers.rows());
    if rows == 0 || want == 0 {
        return Walk::default();
    }
    let mut scratch = Scratch::taken();
    let walk = query.visit(Nearest {
        layers,
        scratch: &mut scratch,
        beam: beam.max(want).min(rows),
        want: want.min(rows),
        accept,
    });
    scratch.give_back();
    walk
}

/// Most of a thread's scratches that are kept: as many as walks go on beside each other as a rule.
const SCRATCHES: usize = 8;

thread_local! {
    /// A thread's scratches, each taken for the time of a walk.
    static SCRATCH: RefCell<Vec<Scratch>> = const { RefCell::new(Vec::new()) };
}

struct Nearest<'a, L> {
    layers: &'a L,
    scratch: &'a mut Scratch,
    beam: usize,
    want: usize,
    accept: Option<Accept<'a>>,
}

impl<L: Layers> Visit for Nearest<'_, L> {
    type Output = Walk;

    fn visit<K: Kernel>(self, measure: &Measure<'_, K>) -> Walk {
        let Self {
            layers, scratch, ..
        } = self;
        let start = distance(layers, measure, layers.entry());
        let start = (start, layers.entry());
        let (start, descended) = descend(layers, measure, start, 1);
        let (spread, is_cut) = match self.accept {
            None => (scratch.spread(layers, measure, start, 0, self.beam), false),
            Some(accept) => scratch.spread_among(layers, measure, start, self.beam, accept),
        };
        let near = scratch.found().take(self.want).map(|(distance, row)| Near {
            row,
            distance: measure.least(distance),
        });
        Walk {
            near: near.collect(),
            distances: 1 + descended + spread,
            is_cut,
        }
    }
}

/// What a search needs beside the graph; kept, so that a search allocates its answer alone.
#[derive(Default)]
pub(in crate::index) struct Scratch {
    visits: Visits,
    /// The nearest rows so far that may be answered with, nearest first.
    beam: Vec<Far>,
    /// Rows that were met and have no place in the beam, where the spread may go on among some rows.
    beyond: Vec<Far>,
    /// Whether those are kept.
    keeps_beyond: bool,
    /// Rows whose neighbours are to be looked at, nearest first, where not all are in the beam.
    ahead: BinaryHeap<Reverse<Ordered>>,
    /// Neighbours to compare.
    next: Vec<u32>,
}

impl Scratch {
    /// One that no walk uses, without what the last one found.
    pub(in crate::index) fn taken() -> Self {
        let kept = SCRATCH.with_borrow_mut(Vec::pop);
        let mut scratch: Self = kept.unwrap_or_default();
        scratch.beam.clear();
        scratch.beyond.clear();
        scratch.keeps_beyond = false;
        scratch
    }

    /// The spread that begins next may be followed by [`Self::go_on_among`].
    pub(in crate::index) fn keep_beyond(&mut self) {
        self.keeps_beyond = true;
    }

    /// Whether [`Self::keep_beyond`] was said of it.
    pub(in crate::index) fn keeps_beyond(&self) -> bool {
        self.keeps_beyond
    }

    /// Keeps it for another walk of this thread.
    pub(in crate::index) fn give_back(self) {
        SCRATCH.with_borrow_mut(|kept| {
            if kept.len() < SCRATCHES {
                kept.push(self);
            }
        });
    }

    /// What a spread came to, nearest first.
    pub(in crate::index) fn found(&self) -> impl Iterator<Item = Far> {
        self.beam
            .iter()
            .map(|(distance, row)| (*distance, row & !SEEN))
    }

    /// Looks at neighbours, from `start` on, until those of every row of a beam of `limit` rows
    /// were looked at; gives how many distances that took.
    #[inline(always)]
    pub(in crate::index) fn spread<L: Layers, K: Kernel>(
        &mut self,
        layers: &L,
        measure: &Measure<'_, K>,
        start: Far,
        level: usize,
        limit: usize,
    ) -> usize {
        self.set_out(layers, start);
        let (_, distances) = self.go_on(layers, measure, 0, level, limit, |_, _| false);
        distances
    }

    /// Looks at neighbours on level 0 as [`Self::spread`] does, until a row is met; false if it is not.
    #[inline(always)]
    pub(in crate::index) fn comes_to<L: Layers, K: Kernel>(
        &mut self,
        layers: &L,
        measure: &Measure<'_, K>,
        start: Far,
        limit: usize,
        row: u32,
    ) -> bool {
        self.set_out(layers, start);
        self.go_on(layers, measure, 0, 0, limit, |visits, _| visits.has(row));
        self.visits.has(row)
    }

    /// Begins a spread: it has come to `start` and looked at no neighbour.
    pub(in crate::index) fn set_out<L: Layers>(&mut self, layers: &L, start: Far) {
        self.visits.start(index(layers.rows()));
        self.visits.mark(start.1);
        self.beam.clear();
        self.beam.push(start);
    }

    /// Goes on with a spread whose nearest row that was not looked from is `at` in the beam, until
    /// `stop` says so of the rows met and the place of such a row; gives that place, and how many
    /// distances it took.
    #[inline(always)]
    pub(in crate::index) fn go_on<L: Layers, K: Kernel>(
        &mut self,
        layers: &L,
        measure: &Measure<'_, K>,
        mut at: usize,
        level: usize,
        limit: usize,
        stop: impl Fn(&Visits, usize) -> bool,
    ) -> (usize, usize) {
        let mut distances = 0;
        while let Some((_, row)) = self.beam.get_mut(at) {
            if stop(&self.visits, at) {
                break;
            }
            let from = *row;
            *row |= SEEN;
            self.look_from(layers, level, from);
            // It is the next one most often, and its list has come by then.
            let mut ahead = self.beam.iter().skip(at + 1);
            if let Some((_, row)) = ahead.find(|(_, row)| row & SEEN == 0) {
                prefetch::soon(layers.base(*row));
            }
            distances += self.next.len();
            let mut lowest = at + 1;
            for row in &self.next {
                let distance = distance(layers, measure, *row);
                if comes_in(&self.beam, limit, distance) {
                    if self.keeps_beyond && self.beam.len() >= limit {
                        self.beyond.extend(self.beam.last());
                    }
                    lowest = lowest.min(put(&mut self.beam, limit, (distance, *row)));
                } else if self.keeps_beyond {
                    self.beyond.push((distance, *row));
                }
            }
            at = lowest;
            while self.beam.get(at).is_some_and(|(_, row)| row & SEEN != 0) {
                at += 1;
            }
            if let Some((_, row)) = self.beam.get(at) {
                prefetch::soon(layers.base(*row));
            }
        }
        (at, distances)
    }

    /// Looks at neighbours on level 0, from `start` on, until no row ahead is nearer than all of a
    /// beam of `limit` accepted rows; gives how many distances that took, and whether it was given
    /// up before.
    #[inline(always)]
    fn spread_among<L: Layers, K: Kernel>(
        &mut self,
        layers: &L,
        measure: &Measure<'_, K>,
        start: Far,
        limit: usize,
        accept: Accept<'_>,
    ) -> (usize, bool) {
        self.visits.start(index(layers.rows()));
        self.visits.mark(start.1);
        self.beam.clear();
        self.ahead.clear();
        if (accept.takes)(start.1) {
            self.beam.push(start);
        }
        self.ahead.push(Reverse(Ordered::of(start)));
        self.look_among(layers, measure, limit, accept, 0)
    }

    /// Goes on with a spread that kept what was beyond its beam as [`Self::spread_among`] does, from all rows that it
    /// met and did not look from. It took `distances` so far; gives how many there are then.
    #[inline(always)]
    pub(in crate::index) fn go_on_among<L: Layers, K: Kernel>(
        &mut self,
        layers: &L,
        measure: &Measure<'_, K>,
        limit: usize,
        accept: Accept<'_>,
        distances: usize,
    ) -> (usize, bool) {
        self.ahead.clear();
        // The nearest last, whose turn is first: of the others few come in then.
        self.beyond.extend(self.beam.drain(..).rev());
        while let Some((distance, row)) = self.beyond.pop() {
            if !comes_in(&self.beam, limit, distance) {
                continue;
            }
            let far = (distance, row & !SEEN);
            if row & SEEN == 0 {
                self.ahead.push(Reverse(Ordered::of(far)));
            }
            if (accept.takes)(far.1) {
                put(&mut self.beam, limit, far);
            }
        }
        self.look_among(layers, measure, limit, accept, distances)
    }

    /// Looks from row after row ahead for [`Self::spread_among`].
    #[inline(always)]
    fn look_among<L: Layers, K: Kernel>(
        &mut self,
        layers: &L,
        measure: &Measure<'_, K>,
        limit: usize,
        accept: Accept<'_>,
        mut distances: usize,
    ) -> (usize, bool) {
        while let Some(Reverse(nearest)) = self.ahead.pop() {
            let (nearest, from) = nearest.far();
            if !comes_in(&self.beam, limit, nearest) {
                break;
            }
            if distances >= accept.max_distances {
                return (distances, true);
            }
            self.look_from(layers, 0, from);
            distances += self.next.len();
            for row in &self.next {
                let far = (distance(layers, measure, *row), *row);
                if comes_in(&self.beam, limit, far.0) {
                    self.ahead.push(Reverse(Ordered::of(far)));
                    if (accept.takes)(*row) {
                        put(&mut self.beam, limit, far);
                    }
                }
            }
            if let Some(Reverse(next)) = self.ahead.peek() {
                prefetch::soon(layers.base(next.far().1));
            }
        }
        (distances, false)
    }

    /// Marks the neighbours of a row that were not come to before, and asks for their codes.
    #[inline(always)]
    fn look_from<L: Layers>(&mut self, layers: &L, level: usize, from: u32) {
        self.next.clear();
        for neighbour in neighbours(layers, level, from) {
            if self.visits.mark(neighbour) {
                self.next.push(neighbour);
                prefetch::soon(layers.code(neighbour));
            }
        }
    }
}

/// A row and its distance as one number, ordered by the distance.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ordered(u64);

impl Ordered {
    /// Flips what makes the bits of a negative number order the other way round.
    #[inline(always)]
    fn of((distance, row): Far) -> Self {
        let bits = distance.to_bits();
        let ordered = match bits & SIGN {
            0 => bits | SIGN,
            _ => !bits,
        };
        Self(u64::from(ordered) << 32 | u64::from(row))
    }

    #[inline(always)]
    fn far(self) -> Far {
        let [a, b, c, d, row @ ..] = self.0.to_be_bytes();
        let ordered = u32::from_be_bytes([a, b, c, d]);
        let bits = match ordered & SIGN {
            0 => !ordered,
            _ => ordered & !SIGN,
        };
        (f32::from_bits(bits), u32::from_be_bytes(row))
    }
}

#[inline(always)]
pub(in crate::index) fn distance<L: Layers, K: Kernel>(
    layers: &L,
    measure: &Measure<'_, K>,
    row: u32,
) -> f32 {
    measure.distance(layers.code(row), layers.bias(row))
}

/// A row's neighbours on a level.
#[inline(always)]
pub(in crate::index) fn neighbours<L: Layers>(
    layers: &L,
    level: usize,
    row: u32,
) -> impl Iterator<Item = u32> {
    let places = match level {
        0 => layers.base(row),
        _ => layers.upper(level, row),
    };
    places
        .iter()
        .map(Place::number)
        .take_while(|number| !layers.ends(*number))
}

/// Goes from the top down to level `lowest`: the row it ends at, and how many distances that took.
pub(in crate::index) fn descend<L: Layers, K: Kernel>(
    layers: &L,
    measure: &Measure<'_, K>,
    start: Far,
    lowest: usize,
) -> (Far, usize) {
    let (mut nearest, mut row) = start;
    let mut distances = 0;
    for level in (lowest..=layers.top_level()).rev() {
        loop {
            let from = row;
            for neighbour in neighbours(layers, level, from) {
                distances += 1;
                let distance = distance(layers, measure, neighbour);
                if distance < nearest {
                    (row, nearest) = (neighbour, distance);
                }
            }
            if row == from {
                break;
            }
        }
    }
    ((nearest, row), distances)
}

/// Whether a distance is among the `limit` nearest.
#[inline(always)]
fn comes_in(nearest: &[Far], limit: usize, distance: f32) -> bool {
    nearest.len() < limit || nearest.last().is_some_and(|(worst, _)| distance < *worst)
}

/// Puts one into its place, the last one gone if there are too many; gives the place.
#[inline(always)]
fn put(nearest: &mut Vec<Far>, limit: usize, one: Far) -> usize {
    if nearest.len() >= limit {
        nearest.pop();
    }
    let at = nearest.partition_point(|(distance, _)| *distance <= one.0);
    nearest.insert(at, one);
    at
}

/// Rows that were come to.
#[derive(Default)]
pub(in crate::index) struct Visits {
    bits: Vec<u64>,
    marked: Vec<u32>,
}

impl Visits {
    /// Forgets all, and makes room for so many rows.
    pub(in crate::index) fn start(&mut self, rows: usize) {
        for row in self.marked.drain(..) {
            if let Some(word) = self.bits.get_mut(index(row >> 6)) {
                *word = 0;
            }
        }
        let words = rows.div_ceil(64);
        if self.bits.len() < words {
            self.bits.resize(words, 0);
        }
    }

    /// Whether the row was marked.
    #[inline(always)]
    fn has(&self, row: u32) -> bool {
        let word = self.bits.get(index(row >> 6));
        word.is_some_and(|word| *word & 1 << (row & 63) != 0)
    }

    /// Whether the row was not marked before.
    #[inline(always)]
    pub(in crate::index) fn mark(&mut self, row: u32) -> bool {
        let Some(word) = self.bits.get_mut(index(row >> 6)) else {
            return false;
        };
        let bit = 1 << (row & 63);
        if *word & bit != 0 {
            return false;
        }
        *word |= bit;
        self.marked.push(row);
        true
    }
}
