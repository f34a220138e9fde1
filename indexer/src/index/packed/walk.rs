//! The walk: from the entry down to the nearest rows.
//!
//! Above level 0 it goes to the best neighbour while there is a better one. At level 0 it keeps a
//! *beam*: the nearest rows so far in an array, sorted, each marked once its neighbours were
//! looked at; it ends when all are. A sorted array of the usual hundred or so takes a new row
//! faster than two heaps do. The rows to compare next are asked for from memory before the first
//! of them is compared.
//!
//! # Source
//! SEARCH-LAYER and K-NN-SEARCH, algorithms 2 and 5 of Malkov and Yashunin, arXiv:1603.09320.

use std::cell::Cell;

use crate::index::{
    Near,
    adjacency::index,
    kernel::Kernel,
    prefetch,
    space::{Measure, QueryCode, Visit},
};

/// Marks a row of the beam whose neighbours were looked at. No segment has so many rows.
const SEEN: u32 = 1 << 31;

/// What a search found and what it took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Walk {
    /// The nearest rows, nearest first.
    pub near: Vec<Near>,
    /// Distances computed.
    pub distances: usize,
}

/// Codes and edges, wherever they lie.
pub(super) trait Layers {
    /// Number of rows.
    fn rows(&self) -> u32;
    /// Where a walk starts.
    fn entry(&self) -> u32;
    /// The highest level.
    fn top_level(&self) -> usize;
    /// A row's places at level 0: the list of its neighbours ends at a number that is no row.
    fn base(&self, row: u32) -> &[u32];
    /// A row's places on a level above; none if it is not on it.
    fn upper(&self, level: usize, row: u32) -> &[u32];
    /// A row's code.
    fn code(&self, row: u32) -> &[u8];
    /// A row's bias.
    fn bias(&self, row: u32) -> f32;
}

/// Which rows an answer may hold, if not all.
pub(super) type Accept<'a> = Option<&'a dyn Fn(u32) -> bool>;

/// A row and its distance.
pub(super) type Far = (f32, u32);

/// See [`super::Graph::search`].
pub(super) fn nearest<L: Layers>(
    layers: &L,
    query: &QueryCode,
    beam: usize,
    want: usize,
    accept: Accept<'_>,
) -> Walk {
    let rows = index(layers.rows());
    if rows == 0 || want == 0 {
        return Walk::default();
    }
    let mut scratch = SCRATCH.take().unwrap_or_default();
    let walk = query.visit(Nearest {
        layers,
        scratch: &mut scratch,
        beam: beam.max(want).min(rows),
        want: want.min(rows),
        accept,
    });
    SCRATCH.set(Some(scratch));
    walk
}

thread_local! {
    /// A thread's scratch, taken for the time of a search: a search within `accept` makes another.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

struct Nearest<'a, L> {
    layers: &'a L,
    scratch: &'a mut Scratch,
    beam: usize,
    want: usize,
    accept: Accept<'a>,
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
        let spread = Spread {
            level: 0,
            limit: self.beam,
            want: self.want,
            accept: self.accept,
        };
        let distances = 1 + descended + scratch.spread(layers, measure, start, &spread);
        let found = match self.accept {
            None => &scratch.beam,
            Some(_) => &scratch.accepted,
        };
        let near = found.iter().take(self.want).map(|(distance, row)| Near {
            row: row & !SEEN,
            distance: measure.least(*distance),
        });
        Walk {
            near: near.collect(),
            distances,
        }
    }
}

/// What a search needs beside the graph; kept, so that a search allocates its answer alone.
#[derive(Default)]
pub(super) struct Scratch {
    visits: Visits,
    /// The nearest rows so far, nearest first.
    beam: Vec<Far>,
    /// Of a search that accepts not all: the nearest accepted so far, nearest first.
    accepted: Vec<Far>,
    /// Neighbours to compare.
    next: Vec<u32>,
}

/// How far to look around.
pub(super) struct Spread<'a> {
    pub(super) level: usize,
    /// Rows of the beam.
    pub(super) limit: usize,
    /// Accepted rows to keep.
    pub(super) want: usize,
    pub(super) accept: Accept<'a>,
}

impl Scratch {
    /// What a spread without `accept` came to, nearest first.
    pub(super) fn found(&self) -> impl Iterator<Item = Far> {
        self.beam
            .iter()
            .map(|(distance, row)| (*distance, row & !SEEN))
    }

    /// Looks at neighbours, from `start` on, until those of every row of the beam were looked at;
    /// gives how many distances that took.
    #[inline(always)]
    pub(super) fn spread<L: Layers, K: Kernel>(
        &mut self,
        layers: &L,
        measure: &Measure<'_, K>,
        start: Far,
        spread: &Spread<'_>,
    ) -> usize {
        let rows = layers.rows();
        self.visits.start(index(rows));
        self.visits.mark(start.1);
        self.beam.clear();
        self.beam.push(start);
        self.accepted.clear();
        if spread.accept.is_some_and(|accept| accept(start.1)) {
            self.accepted.push(start);
        }
        let mut distances = 0;
        let mut at = 0;
        while let Some((_, row)) = self.beam.get_mut(at) {
            let from = *row;
            *row |= SEEN;
            self.next.clear();
            for neighbour in links(layers, spread.level, from) {
                if *neighbour >= rows {
                    break;
                }
                if self.visits.mark(*neighbour) {
                    self.next.push(*neighbour);
                    prefetch::soon(layers.code(*neighbour));
                }
            }
            distances += self.next.len();
            let mut lowest = at + 1;
            for row in &self.next {
                let distance = distance(layers, measure, *row);
                if let Some(accept) = spread.accept
                    && comes_in(&self.accepted, spread.want, distance)
                    && accept(*row)
                {
                    put(&mut self.accepted, spread.want, (distance, *row));
                }
                if comes_in(&self.beam, spread.limit, distance) {
                    lowest = lowest.min(put(&mut self.beam, spread.limit, (distance, *row)));
                }
            }
            at = lowest;
            while self.beam.get(at).is_some_and(|(_, row)| row & SEEN != 0) {
                at += 1;
            }
            if let Some((_, row)) = self.beam.get(at) {
                prefetch::soon(bytemuck::cast_slice(layers.base(*row)));
            }
        }
        distances
    }
}

#[inline(always)]
fn distance<L: Layers, K: Kernel>(layers: &L, measure: &Measure<'_, K>, row: u32) -> f32 {
    measure.distance(layers.code(row), layers.bias(row))
}

#[inline(always)]
fn links<L: Layers>(layers: &L, level: usize, row: u32) -> &[u32] {
    match level {
        0 => layers.base(row),
        _ => layers.upper(level, row),
    }
}

/// Goes from the top down to level `lowest`: the row it ends at, and how many distances that took.
pub(super) fn descend<L: Layers, K: Kernel>(
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
            for neighbour in layers.upper(level, from) {
                if *neighbour >= layers.rows() {
                    break;
                }
                distances += 1;
                let distance = distance(layers, measure, *neighbour);
                if distance < nearest {
                    (row, nearest) = (*neighbour, distance);
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

/// Rows a search has come to.
#[derive(Default)]
struct Visits {
    bits: Vec<u64>,
    marked: Vec<u32>,
}

impl Visits {
    /// Forgets all, and makes room for so many rows.
    fn start(&mut self, rows: usize) {
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

    /// Whether the row was not marked before.
    #[inline(always)]
    fn mark(&mut self, row: u32) -> bool {
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
