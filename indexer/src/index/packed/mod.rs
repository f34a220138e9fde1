//! A graph as one run of bytes that is searched where it lies, in a memory map for one.
//!
//! Codes, each row's neighbours in a fixed number of places, biases where the metric has them, and
//! the few rows of the upper levels; each section begins at a multiple of 64. Opening reads the
//! header alone, which has its own checksum. Everything else is checked where it is read: a
//! damaged file may give wrong answers, and never more than that. Whether it is damaged is for
//! whoever keeps a checksum over all of it.

mod adopt;
mod aligned;
mod build;
pub(in crate::index) mod connect;
mod header;
pub(in crate::index) mod mend;
mod prune;
mod reached;
mod stage;
pub(in crate::index) mod walk;
mod write;

pub use adopt::Adopt;
pub use aligned::Aligned;
pub(in crate::index) use build::level_of;
pub use build::{Builder, Built, Coded, Options};
pub use header::OpenError;
pub(in crate::index) use header::stride;
pub use mend::{Attend, BEAM as MENDED_BEAM};
pub use stage::Stage;
pub use walk::{Accept, Walk};
pub use write::{WriteError, write};

use crate::index::{
    adjacency::{index, places, places_of, until_none},
    packed::{
        header::{Header, Layout},
        reached::Reached,
        walk::Layers,
    },
    space::{QueryCode, Space},
};

/// A packed graph over its bytes.
pub struct Graph<B> {
    bytes: B,
    header: Header,
    layout: Layout,
    sizes: Sizes,
}

/// What the header says, as indices.
#[derive(Clone, Copy)]
struct Sizes {
    stride: usize,
    code: usize,
    degree: usize,
    upper_degree: usize,
}

impl<B: AsRef<[u8]> + Send + Sync> Graph<B> {
    /// Opens what [`write()`] wrote. Bytes behind it are not looked at.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(bytes: B) -> Result<Self, OpenError> {
        let header = Header::decode(bytes.as_ref())?;
        let size = |what| OpenError::Size { what };
        let layout = header.layout().ok_or(size("length"))?;
        let found = bytes.as_ref().len();
        if found < layout.end {
            return Err(OpenError::Length {
                found,
                expected: layout.end,
            });
        }
        let whole = bytes.as_ref().get(..header::BYTES).unwrap_or_default();
        if cfg!(target_endian = "big") || bytemuck::try_cast_slice::<u8, u32>(whole).is_err() {
            return Err(OpenError::Memory);
        }
        let sizes = Sizes {
            stride: index(header.stride),
            code: header.space.code_bytes(),
            degree: index(header.degree),
            upper_degree: index(header.upper_degree),
        };
        Ok(Self {
            bytes,
            header,
            layout,
            sizes,
        })
    }

    /// How its rows are coded.
    pub fn space(&self) -> &Space {
        &self.header.space
    }

    /// Number of rows.
    pub fn rows(&self) -> u32 {
        self.header.rows
    }

    /// Bytes of it.
    pub fn bytes(&self) -> usize {
        self.layout.end
    }

    /// The nearest `want` rows that `accept` takes, nearest first, found with a beam of `beam`
    /// accepted rows; with approximate distances.
    ///
    /// The beam is at least `want`. Fewer rows than wanted are found only if `accept` takes fewer
    /// of those that the graph leads to, or the walk was cut.
    pub fn search(
        &self,
        query: &QueryCode,
        beam: usize,
        want: usize,
        accept: Option<Accept<'_>>,
    ) -> Walk {
        walk::nearest(&self.layers(), query, beam, want, accept)
    }

    /// A walk of the nearest `limit` rows that has come down to level 0 and waits there; whether it may be
    /// followed by [`Self::go_on_among`] is said here.
    pub fn set_out(&self, query: QueryCode, limit: usize, may_go_among: bool) -> Stage {
        Stage::set_out(&self.layers(), query, limit, may_go_among)
    }

    /// Takes a walk of this graph further, until it has looked from the nearest `places` rows.
    pub fn go_on(&self, stage: &mut Stage, places: usize) {
        stage.go_on(&self.layers(), places);
    }

    /// Ends a walk of this graph as [`Self::search`] does among accepted rows, from all that it has met. `distances`
    /// are those of all of it.
    pub fn go_on_among(&self, stage: Stage, beam: usize, want: usize, accept: Accept<'_>) -> Walk {
        stage.go_on_among(&self.layers(), beam, want, accept)
    }

    /// About the distance to a row; `None` if there is no such row.
    pub fn distance_to(&self, query: &QueryCode, row: u32) -> Option<f32> {
        Some(query.distance(self.code(row)?, self.bias(row)))
    }

    /// All rows, each as a rule behind a neighbour of it.
    pub fn along_edges(&self) -> Vec<u32> {
        Reached::order_of_all(&self.layers())
    }

    /// A row's code.
    pub fn code(&self, row: u32) -> Option<&[u8]> {
        (row < self.header.rows).then(|| self.layers().code(row))
    }

    /// A row's bias; 0 for metrics without.
    pub fn bias(&self, row: u32) -> f32 {
        self.layers().bias(row)
    }

    /// A row's neighbours on a level; none if it is not on it.
    pub fn neighbours(&self, row: u32, level: usize) -> &[u32] {
        let layers = self.layers();
        let places = match level {
            0 => layers.base(row),
            _ => layers.upper(level, row),
        };
        until_none(places, self.header.rows)
    }

    /// The highest level a row is on.
    pub fn level(&self, row: u32) -> usize {
        let on = |level: &usize| {
            let rows = self.layers().level_rows(*level);
            rows.binary_search(&row).is_ok()
        };
        (1..=self.layout.upper.len()).take_while(on).count()
    }

    /// Places of a list at level 0, and above.
    pub fn degrees(&self) -> (usize, usize) {
        (self.sizes.degree, self.sizes.upper_degree)
    }

    /// Where a walk starts.
    pub fn entry(&self) -> u32 {
        self.header.entry
    }

    /// The highest level.
    pub fn top_level(&self) -> usize {
        self.layout.upper.len()
    }

    /// The rows on a level above 0.
    fn level_rows(&self, level: usize) -> &[u32] {
        self.layers().level_rows(level)
    }

    fn layers(&self) -> Slices<'_> {
        let bytes = self.bytes.as_ref();
        Slices {
            header: &self.header,
            layout: &self.layout,
            sizes: self.sizes,
            bytes,
            codes: self.layout.codes.of(bytes),
            links: cast(self.layout.links.of(bytes)),
            biases: cast(self.layout.biases.of(bytes)),
        }
    }
}

/// The sections of a graph, for the time of a search.
struct Slices<'a> {
    header: &'a Header,
    layout: &'a Layout,
    sizes: Sizes,
    bytes: &'a [u8],
    codes: &'a [u8],
    links: &'a [u32],
    biases: &'a [f32],
}

impl<'a> Slices<'a> {
    fn level_rows(&self, level: usize) -> &'a [u32] {
        let section = level
            .checked_sub(1)
            .and_then(|at| self.layout.upper.get(at));
        section.map_or(&[], |(rows, _)| cast(rows.of(self.bytes)))
    }

    #[inline(always)]
    fn code(&self, row: u32) -> &'a [u8] {
        let start = index(row).saturating_mul(self.sizes.stride);
        self.codes
            .get(start..start.saturating_add(self.sizes.code))
            .unwrap_or_default()
    }

    #[inline(always)]
    fn base(&self, row: u32) -> &'a [u32] {
        places(self.links, index(row), self.sizes.degree)
    }

    fn upper(&self, level: usize, row: u32) -> &'a [u32] {
        let section = level
            .checked_sub(1)
            .and_then(|at| self.layout.upper.get(at));
        section.map_or(&[], |(rows, links)| {
            let (rows, links) = (cast(rows.of(self.bytes)), cast(links.of(self.bytes)));
            places_of(rows, links, row, self.sizes.upper_degree)
        })
    }
}

impl Layers for Slices<'_> {
    type Place = u32;

    fn rows(&self) -> u32 {
        self.header.rows
    }

    fn entry(&self) -> u32 {
        self.header.entry
    }

    fn top_level(&self) -> usize {
        self.layout.upper.len()
    }

    #[inline(always)]
    fn base(&self, row: u32) -> &[u32] {
        self.base(row)
    }

    fn upper(&self, level: usize, row: u32) -> &[u32] {
        self.upper(level, row)
    }

    #[inline(always)]
    fn code(&self, row: u32) -> &[u8] {
        self.code(row)
    }

    #[inline(always)]
    fn bias(&self, row: u32) -> f32 {
        self.biases.get(index(row)).copied().unwrap_or(0.0)
    }
}

/// Bytes as numbers; none if they lie where those cannot.
#[inline(always)]
fn cast<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> &[T] {
    bytemuck::try_cast_slice(bytes).unwrap_or_default()
}

#[cfg(test)]
#[path = "packed_tests.rs"]
pub(in crate::index) mod tests;
