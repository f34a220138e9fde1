//! Codes and edges of a graph that grows, in pages that never move.
//!
//! Each page but the first holds as many rows as all before it, so there are few, and a row is found in its page by
//! its number alone: a walk does that for every code it reads.

use std::{array, iter::repeat_with, sync::OnceLock};

use crate::index::{
    adjacency::{NONE, Place, index, places},
    live::page::{Link, Page},
    packed::stride,
};

/// Rows of the first page.
const ROWS: u32 = 1024;
/// Pages there may be: the last one ends where numbers do.
const PAGES: usize = 23;

/// Rows' codes and places. One thread adds while any number reads.
pub(super) struct Pages {
    shape: Shape,
    stride: usize,
    pages: [OnceLock<Page>; PAGES],
    /// Places above level 0, level 1 first.
    upper: boxcar::Vec<Box<[Link]>>,
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

/// Numbers of a page's rows, each kind for all of them: places at level 0 come before these.
#[derive(Clone, Copy)]
enum Number {
    /// The row's number in its segment.
    Key,
    /// Where its places above level 0 are; [`NONE`] if it has none.
    Upper,
    /// Bits of an f32, for a metric that has biases.
    Bias,
}

impl Pages {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            stride: stride(shape.code),
            pages: array::from_fn(|_| OnceLock::new()),
            upper: boxcar::Vec::new(),
        }
    }

    /// Adds the next row, `row`, which has lists up to `level`, all empty.
    pub(super) fn push(&self, row: u32, key: u32, (code, bias): (&[u8], f32), level: usize) {
        debug_assert_eq!(code.len(), self.shape.code);
        let at = At::of(row);
        if let Some(page) = self.pages.get(at.page) {
            page.get_or_init(|| {
                let numbers = self.shape.degree + self.kinds();
                let page = Page::new(at.rows * self.stride, at.rows * numbers, at.page == 0);
                // As everything else does that asks for memory.
                page.expect("there is memory for a page")
            });
        }
        self.set(Number::Key, row, key);
        if self.shape.has_bias {
            self.set(Number::Bias, row, bias.to_bits());
        }
        if level > 0 {
            let places = repeat_with(Link::empty).take(level * self.shape.upper_degree);
            let at = self.upper.push(places.collect());
            self.set(Number::Upper, row, u32::try_from(at).unwrap_or(NONE));
        }
        let kept = self.page(at);
        let is_kept = kept.is_some_and(|page| page.push(code, self.stride));
        debug_assert!(is_kept, "rows come in order");
    }

    #[inline(always)]
    pub(super) fn code(&self, row: u32) -> &[u8] {
        let at = At::of(row);
        let page = self.page(at);
        page.map_or(&[], |page| {
            page.bytes(at.place * self.stride, self.shape.code)
        })
    }

    #[inline(always)]
    pub(super) fn bias(&self, row: u32) -> f32 {
        match self.shape.has_bias {
            true => f32::from_bits(self.number(Number::Bias, row)),
            false => 0.0,
        }
    }

    /// The row's number in its segment; [`NONE`] if there is no such row.
    #[inline(always)]
    pub(super) fn key(&self, row: u32) -> u32 {
        self.number(Number::Key, row)
    }

    /// Places at level 0.
    #[inline(always)]
    pub(super) fn base(&self, row: u32) -> &[Link] {
        let at = At::of(row);
        let page = self.page(at);
        page.map_or(&[], |page| {
            places(page.numbers(), at.place, self.shape.degree)
        })
    }

    /// Places at a level above 0; none if the row is not on it.
    pub(super) fn upper(&self, level: usize, row: u32) -> &[Link] {
        level.checked_sub(1).map_or(&[], |level| {
            places(self.above(row), level, self.shape.upper_degree)
        })
    }

    /// The highest level a row is on.
    pub(super) fn level(&self, row: u32) -> usize {
        let places = self.above(row).len();
        places.checked_div(self.shape.upper_degree).unwrap_or(0)
    }

    /// Memory that so many rows take.
    pub(super) fn bytes(&self, rows: u32) -> usize {
        let numbers = self.shape.degree + self.kinds();
        let upper = self.upper.count() * 2 * self.shape.upper_degree;
        index(rows) * (self.stride + numbers * size_of::<Link>()) + upper * size_of::<Link>()
    }

    fn above(&self, row: u32) -> &[Link] {
        let at = self.number(Number::Upper, row);
        self.upper.get(index(at)).map_or(&[], |places| places)
    }

    fn number(&self, kind: Number, row: u32) -> u32 {
        self.link(kind, row).map_or(NONE, Place::number)
    }

    fn set(&self, kind: Number, row: u32, number: u32) {
        if let Some(link) = self.link(kind, row) {
            link.set(number);
        }
    }

    #[inline(always)]
    fn link(&self, kind: Number, row: u32) -> Option<&Link> {
        let at = At::of(row);
        let before = match kind {
            Number::Key => 0,
            Number::Upper => 1,
            Number::Bias => 2,
        };
        let start = at.rows * (self.shape.degree + before);
        self.page(at)?.numbers().get(start + at.place)
    }

    #[inline(always)]
    fn page(&self, at: At) -> Option<&Page> {
        self.pages.get(at.page)?.get()
    }

    fn kinds(&self) -> usize {
        if self.shape.has_bias { 3 } else { 2 }
    }
}

/// Where a row is.
#[derive(Clone, Copy, Debug, PartialEq)]
struct At {
    /// The page's number.
    page: usize,
    /// How many rows it holds.
    rows: usize,
    /// The row's place among them.
    place: usize,
}

impl At {
    #[inline(always)]
    fn of(row: u32) -> Self {
        const FIRST: u32 = ROWS.ilog2();
        let top = (row | (ROWS - 1)).ilog2();
        let rows = 1 << top.max(FIRST);
        Self {
            page: index(top + 1 - FIRST),
            rows: index(rows),
            place: index(row & (rows - 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{At, PAGES, ROWS};

    #[test]
    fn pages_follow_each_other_without_a_gap() {
        let mut before = At::of(0);
        assert_eq!((before.page, before.place), (0, 0));
        for row in 1..ROWS * 40 {
            let at = At::of(row);
            match at.page == before.page {
                true => assert_eq!((at.place, at.rows), (before.place + 1, before.rows)),
                false => {
                    assert_eq!((at.page, at.place), (before.page + 1, 0));
                    assert_eq!(before.place + 1, before.rows, "the one before is full");
                }
            }
            before = at;
        }
        assert_eq!(At::of(u32::MAX).page, PAGES - 1);
    }
}
