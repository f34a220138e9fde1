//! Codes and edges of a graph that grows, in pages that never move.

use std::{
    iter::repeat_with,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::index::{
    adjacency::{NONE, index, places},
    live::append::Appended,
    packed::stride,
};

/// Rows of a page.
const ROWS: u32 = 64;

/// Everything of so many rows.
struct Page {
    codes: Appended,
    /// Bits of f32; none for a metric without.
    biases: Box<[AtomicU32]>,
    /// Each row's number in its segment.
    keys: Box<[AtomicU32]>,
    /// Places at level 0.
    base: Box<[AtomicU32]>,
    /// Where the row's places above level 0 are; [`NONE`] if it has none.
    upper: Box<[AtomicU32]>,
}

/// Rows' codes and places. One thread adds while any number reads.
pub(super) struct Pages {
    shape: Shape,
    pages: boxcar::Vec<Page>,
    /// Places above level 0, level 1 first.
    upper: boxcar::Vec<Box<[AtomicU32]>>,
}

/// How large what belongs to a row is.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Bytes.
    pub(super) code: usize,
    /// Whether there are biases.
    pub(super) has_bias: bool,
    /// Places at level 0.
    pub(super) degree: usize,
    /// Places at each level above.
    pub(super) upper_degree: usize,
}

impl Pages {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            pages: boxcar::Vec::new(),
            upper: boxcar::Vec::new(),
        }
    }

    /// Adds the next row, `row`, which has lists up to `level`, all empty.
    pub(super) fn push(&self, row: u32, key: u32, (code, bias): (&[u8], f32), level: usize) {
        debug_assert_eq!(code.len(), self.shape.code);
        let (page, at) = split(row);
        if self.pages.count() <= page {
            self.pages.push(Page::new(self.shape));
        }
        let Some(page) = self.pages.get(page) else {
            return;
        };
        if let Some(place) = page.keys.get(at) {
            place.store(key, Ordering::Release);
        }
        if let Some(place) = page.biases.get(at) {
            place.store(bias.to_bits(), Ordering::Release);
        }
        if level > 0 {
            let at_upper = self.upper.push(empty(level * self.shape.upper_degree));
            if let Some(place) = page.upper.get(at) {
                place.store(u32::try_from(at_upper).unwrap_or(NONE), Ordering::Release);
            }
        }
        let is_kept = page.codes.push(code, stride(self.shape.code));
        debug_assert!(is_kept, "rows come in order");
    }

    #[inline(always)]
    pub(super) fn code(&self, row: u32) -> &[u8] {
        let (page, at) = split(row);
        self.pages.get(page).map_or(&[], |page| {
            page.codes.get(at * stride(self.shape.code), self.shape.code)
        })
    }

    #[inline(always)]
    pub(super) fn bias(&self, row: u32) -> f32 {
        if !self.shape.has_bias {
            return 0.0;
        }
        let (page, at) = split(row);
        let bias = self.pages.get(page).and_then(|page| page.biases.get(at));
        bias.map_or(0.0, |bias| f32::from_bits(bias.load(Ordering::Acquire)))
    }

    /// The row's number in its segment; [`NONE`] if there is no such row.
    #[inline(always)]
    pub(super) fn key(&self, row: u32) -> u32 {
        let (page, at) = split(row);
        let key = self.pages.get(page).and_then(|page| page.keys.get(at));
        key.map_or(NONE, |key| key.load(Ordering::Acquire))
    }

    /// Places at level 0.
    #[inline(always)]
    pub(super) fn base(&self, row: u32) -> &[AtomicU32] {
        let (page, at) = split(row);
        self.pages
            .get(page)
            .map_or(&[], |page| places(&page.base, at, self.shape.degree))
    }

    /// Places at a level above 0; none if the row is not on it.
    pub(super) fn upper(&self, level: usize, row: u32) -> &[AtomicU32] {
        level.checked_sub(1).map_or(&[], |level| {
            places(self.above(row), level, self.shape.upper_degree)
        })
    }

    /// The highest level a row is on.
    pub(super) fn level(&self, row: u32) -> usize {
        self.above(row).len() / self.shape.upper_degree
    }

    /// Bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        let page = index(ROWS) * (self.shape.degree + 3) * size_of::<u32>();
        let codes = self.pages.get(0).map_or(0, |page| page.codes.room());
        let upper = self.upper.count() * 2 * self.shape.upper_degree * size_of::<u32>();
        self.pages.count() * (page + codes) + upper
    }

    fn above(&self, row: u32) -> &[AtomicU32] {
        let (page, at) = split(row);
        let above = self.pages.get(page).and_then(|page| page.upper.get(at));
        let above = above.map_or(NONE, |at| at.load(Ordering::Acquire));
        self.upper.get(index(above)).map_or(&[], |places| places)
    }
}

impl Page {
    fn new(shape: Shape) -> Self {
        let rows = index(ROWS);
        let biases = if shape.has_bias { rows } else { 0 };
        Self {
            codes: Appended::with_room(rows * stride(shape.code)),
            biases: empty(biases),
            keys: empty(rows),
            base: empty(rows * shape.degree),
            upper: empty(rows),
        }
    }
}

fn empty(places: usize) -> Box<[AtomicU32]> {
    let empty = repeat_with(|| AtomicU32::new(NONE));
    empty.take(places).collect()
}

/// A row's page and its place there.
#[inline(always)]
fn split(row: u32) -> (usize, usize) {
    (index(row / ROWS), index(row % ROWS))
}
