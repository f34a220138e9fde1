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
    space::{Components, QueryCode, Scale},
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

/// See [`super::Graph::search`].
pub(super) fn nearest<L: Layers>(
    layers: &L,
    query: &QueryCode,
    beam: usize,
    want: usize,
    accept: Option<&dyn Fn(u32) -> bool>,
) -> Walk {
    if layers.rows() == 0 || want == 0 {
        return Walk::default();
    }
    let rows = index(layers.rows());
    let mut scratch = SCRATCH.take().unwrap_or_default();
    scratch.visits.fit(rows);
    let (beam, want) = (beam.max(want).min(rows), want.min(rows));
    let scale = query.scale;
    let walk = match &query.components {
        Components::Bytes(kernel) => {
            let measure = Measure { kernel, scale };
            scratch.walk(layers, &measure, beam, want, accept)
        }
        Components::Halves(kernel) => {
            let measure = Measure { kernel, scale };
            scratch.walk(layers, &measure, beam, want, accept)
        }
        Components::Brains(kernel) => {
            let measure = Measure { kernel, scale };
            scratch.walk(layers, &measure, beam, want, accept)
        }
        Components::Floats(kernel) => {
            let measure = Measure { kernel, scale };
            scratch.walk(layers, &measure, beam, want, accept)
        }
    };
    scratch.visits.clear();
    SCRATCH.set(Some(scratch));
    walk
}

thread_local! {
    /// A thread's scratch, taken for the time of a search: a search within `accept` makes another.
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// What a search needs beside the graph; kept, so that a search allocates its answer alone.
#[derive(Default)]
struct Scratch {
    visits: Visits,
    /// The nearest rows so far, nearest first.
    beam: Vec<(f32, u32)>,
    /// Of a search that accepts not all: the nearest accepted so far, nearest first.
    accepted: Vec<(f32, u32)>,
    /// Neighbours to compare.
    next: Vec<u32>,
}

/// Distances from the query.
struct Measure<'a, K> {
    kernel: &'a K,
    scale: Scale,
}

impl<K: Kernel> Measure<'_, K> {
    #[inline(always)]
    fn distance<L: Layers>(&self, layers: &L, row: u32) -> f32 {
        let dot = self.kernel.dot(layers.code(row));
        self.scale.distance(dot, layers.bias(row))
    }
}

impl Scratch {
    fn walk<L: Layers, K: Kernel>(
        &mut self,
        layers: &L,
        measure: &Measure<'_, K>,
        beam: usize,
        want: usize,
        accept: Option<&dyn Fn(u32) -> bool>,
    ) -> Walk {
        let (entry, distance, descended) = descend(layers, measure);
        self.beam.clear();
        self.accepted.clear();
        self.visits.mark(entry);
        self.beam.push((distance, entry));
        if accept.is_some_and(|accept| accept(entry)) {
            self.accepted.push((distance, entry));
        }
        let distances = descended + self.spread(layers, measure, beam, want, accept);
        let found = match accept {
            None => &self.beam,
            Some(_) => &self.accepted,
        };
        let near = found.iter().take(want).map(|(distance, row)| Near {
            row: row & !SEEN,
            distance: measure.scale.least(*distance),
        });
        Walk {
            near: near.collect(),
            distances,
        }
    }

    /// Looks at neighbours until those of every row of the beam were looked at.
    fn spread<L: Layers, K: Kernel>(
        &mut self,
        layers: &L,
        measure: &Measure<'_, K>,
        limit: usize,
        want: usize,
        accept: Option<&dyn Fn(u32) -> bool>,
    ) -> usize {
        let rows = layers.rows();
        let mut distances = 0;
        let mut at = 0;
        while let Some((_, row)) = self.beam.get_mut(at) {
            let from = *row;
            *row |= SEEN;
            self.next.clear();
            for neighbour in layers.base(from) {
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
                let distance = measure.distance(layers, *row);
                if let Some(accept) = accept
                    && comes_in(&self.accepted, want, distance)
                    && accept(*row)
                {
                    put(&mut self.accepted, want, (distance, *row));
                }
                if comes_in(&self.beam, limit, distance) {
                    lowest = lowest.min(put(&mut self.beam, limit, (distance, *row)));
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

/// Goes down to level 1: the row it ends at, its distance, and how many distances that took.
fn descend<L: Layers, K: Kernel>(layers: &L, measure: &Measure<'_, K>) -> (u32, f32, usize) {
    let mut row = layers.entry();
    let mut nearest = measure.distance(layers, row);
    let mut distances = 1;
    for level in (1..=layers.top_level()).rev() {
        loop {
            let from = row;
            for neighbour in layers.upper(level, from) {
                if *neighbour >= layers.rows() {
                    break;
                }
                distances += 1;
                let distance = measure.distance(layers, *neighbour);
                if distance < nearest {
                    (row, nearest) = (*neighbour, distance);
                }
            }
            if row == from {
                break;
            }
        }
    }
    (row, nearest, distances)
}

/// Whether a distance is among the `limit` nearest.
#[inline(always)]
fn comes_in(nearest: &[(f32, u32)], limit: usize, distance: f32) -> bool {
    nearest.len() < limit || nearest.last().is_some_and(|(worst, _)| distance < *worst)
}

/// Puts one into its place, the last one gone if there are too many; gives the place.
#[inline(always)]
fn put(nearest: &mut Vec<(f32, u32)>, limit: usize, one: (f32, u32)) -> usize {
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
    /// Makes room for so many rows.
    fn fit(&mut self, rows: usize) {
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

    fn clear(&mut self) {
        for row in self.marked.drain(..) {
            if let Some(word) = self.bits.get_mut(index(row >> 6)) {
                *word = 0;
            }
        }
    }
}
