//! Builds a graph that is then packed: of rows one by one, or on from one there is.
//!
//! For work on rows that are all known: a merge takes the largest graph's edges as they are and
//! inserts the rows of the others; rows that are dropped on the way leave their neighbours'
//! neighbours to each other. Nobody searches meanwhile.
//!
//! # Source
//! SELECT-NEIGHBORS-HEURISTIC, algorithm 4 of Malkov and Yashunin, arXiv:1603.09320. Dropping rows: algorithm 4 of Singh et al., arXiv:2105.09613.

use std::io::Write;

use shoal_schemas::IndexParameters;

use crate::index::{
    adjacency::{Adjacency, Level, MAX_UPPER_LEVELS, NONE, index, places, places_of},
    packed::{
        Aligned, WriteError,
        connect::{Connect, Grow, Work},
        header,
        mend::{Attend, Mend},
        walk::{Far, Layers},
        write,
    },
    space::{Scale, Space},
};

/// What a graph is built with.
#[derive(Clone, Debug)]
pub struct Options {
    /// How rows are coded.
    pub space: Space,
    /// Edges and beam.
    pub parameters: IndexParameters,
    /// Rows to make room for; more make it move what it has.
    pub rows: u32,
}

/// A graph that was built.
pub struct Built {
    /// Its edges.
    pub edges: Adjacency,
    /// Its rows.
    pub coded: Coded,
}

/// Rows by their codes.
pub struct Coded {
    codes: Codes,
    biases: Vec<f32>,
}

impl Coded {
    /// A row's code and bias.
    pub fn of(&self, row: u32) -> (&[u8], f32) {
        let bias = self.biases.get(index(row)).copied();
        (self.codes.of(row), bias.unwrap_or(0.0))
    }
}

/// A graph being built.
pub struct Builder {
    pub(super) space: Space,
    between: Scale,
    pub(super) codes: Codes,
    pub(super) biases: Vec<f32>,
    pub(super) edges: Adjacency,
    /// Neighbours a new row chooses on a level.
    pub(super) m: usize,
    pub(super) beam: usize,
    pub(super) work: Work,
}

impl Builder {
    /// An empty one.
    pub fn new(options: Options) -> Self {
        let Options {
            space,
            parameters,
            rows,
        } = options;
        let m = parameters.edges();
        Self {
            codes: Codes::new(space.code_bytes(), index(rows)),
            between: space.between(),
            space,
            biases: Vec::new(),
            edges: Adjacency {
                degree: 2 * m,
                upper_degree: m,
                ..Adjacency::default()
            },
            m,
            beam: usize::from(parameters.ef_construction).max(m),
            work: Work::default(),
        }
    }

    /// Adds a row and its edges; gives its number.
    pub fn insert(&mut self, code: &[u8], bias: f32) -> u32 {
        let row = self.push(code, bias);
        self.connect(row);
        row
    }

    /// Rows so far.
    pub fn rows(&self) -> u32 {
        self.edges.rows
    }

    /// The edges so far.
    pub fn adjacency(&self) -> &Adjacency {
        &self.edges
    }

    /// What was built, after making edges to rows that no walk comes to; `None` if `attend`, which is
    /// asked once a row that is looked at, said no.
    ///
    /// # Errors
    /// Those of `attend`.
    pub fn finish<A: Attend>(mut self, attend: &mut A) -> Result<Option<Built>, A::Error> {
        Ok(self.mend(attend)?.then_some(Built {
            edges: self.edges,
            coded: Coded {
                codes: self.codes,
                biases: self.biases,
            },
        }))
    }

    /// False if `attend` said no.
    fn mend<A: Attend>(&mut self, attend: &mut A) -> Result<bool, A::Error> {
        let (space, mut work) = (self.space.clone(), std::mem::take(&mut self.work));
        let mending = Mend {
            graph: self,
            space: &space,
            work: &mut work,
        };
        mending.mend(attend)
    }

    /// Writes what [`Graph::open`](super::Graph::open) opens; gives its length in bytes.
    ///
    /// Makes edges first to rows that no walk comes to.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write(&mut self, out: &mut impl Write) -> Result<usize, WriteError> {
        self.mend(&mut || Ok::<_, WriteError>(true))?;
        self.write_as_is(out)
    }

    fn write_as_is(&self, out: &mut impl Write) -> Result<usize, WriteError> {
        let codes = (0..self.rows()).map(|row| (Layers::code(self, row), self.bias(row)));
        write(out, &self.space, &self.edges, codes)
    }

    /// Whether a row stands above level 0.
    pub fn stands_above(&self, row: u32) -> bool {
        level_of(row, self.m) > 0
    }

    /// Adds a row without edges, which [`Builder::connect`] gives it; gives its number.
    pub fn push(&mut self, code: &[u8], bias: f32) -> u32 {
        debug_assert_eq!(code.len(), self.space.code_bytes());
        let row = self.edges.rows;
        self.codes.push(code);
        if self.space.has_bias() {
            self.biases.push(bias);
        }
        let places = std::iter::repeat_n(NONE, self.edges.degree);
        self.edges.base.extend(places);
        self.edges.rows = row
            .checked_add(1)
            .expect("a segment is sealed long before 2^32 rows");
        row
    }

    /// Finds neighbours for a row that has lost all, on the levels it is on.
    pub(super) fn reconnect(&mut self, row: u32) {
        self.find_neighbours(row, self.edges.level(row));
    }

    /// Forgets all edges and makes them anew.
    pub(super) fn start_over(&mut self) {
        self.edges.base.fill(NONE);
        self.edges.upper.clear();
        self.edges.entry = 0;
        for row in 0..self.edges.rows {
            self.connect(row);
        }
    }

    fn find_neighbours(&mut self, row: u32, level: usize) {
        let query = self.space.query_of_code(self.codes.of(row));
        let mut work = std::mem::take(&mut self.work);
        query.visit(Connect {
            graph: self,
            work: &mut work,
            row,
            level,
        });
        self.work = work;
    }

    /// Finds the neighbours of a row that was pushed, and makes it theirs. Row 0, where walks start
    /// until one stands above level 0, has to come first; behind it any order will do, and rows that stand
    /// above level 0 take the least time where they come by their numbers.
    pub fn connect(&mut self, row: u32) {
        if self.m == 0 {
            return;
        }
        let level = level_of(row, self.m);
        self.find_neighbours(row, level);
        for upper in self.edges.upper.iter_mut().take(level) {
            upper.stand(row, self.edges.upper_degree);
        }
        while self.edges.upper.len() < level {
            let mut upper = Level::default();
            upper.stand(row, self.edges.upper_degree);
            self.edges.upper.push(upper);
            self.edges.entry = row;
        }
    }
}

/// A level of which each has `m` times as many rows as the next, by the row's number; 0 where rows have no
/// neighbours.
pub(in crate::index) fn level_of(row: u32, m: usize) -> usize {
    let mut level = 0;
    let mut state = u64::from(row);
    let m = u64::try_from(m).unwrap_or(u64::MAX);
    loop {
        state = scrambled(state);
        let is_higher = state.checked_rem(m) == Some(0);
        if level == MAX_UPPER_LEVELS || !is_higher {
            return level;
        }
        level += 1;
    }
}

/// A step of splitmix64.
fn scrambled(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Grow for Builder {
    #[inline(always)]
    fn between(&self, dot: f32, biases: f32) -> f32 {
        self.between.distance(dot, biases)
    }

    fn degree(&self, level: usize) -> usize {
        match level {
            0 => self.edges.degree,
            _ => self.edges.upper_degree,
        }
    }

    fn effort(&self) -> (usize, usize) {
        (self.m, self.beam)
    }

    fn stand(&mut self, level: usize, row: u32) {
        let upper = level.checked_sub(1);
        if let Some(upper) = upper.and_then(|at| self.edges.upper.get_mut(at)) {
            upper.stand(row, self.edges.upper_degree);
        }
    }

    fn set_links(&mut self, level: usize, row: u32, chosen: &[Far]) {
        let places = self.edges.places_mut(level, row);
        let chosen = chosen.iter().map(|(_, row)| *row);
        for (place, row) in places.iter_mut().zip(chosen.chain(std::iter::repeat(NONE))) {
            *place = row;
        }
    }

    fn put(&mut self, level: usize, row: u32, place: usize, neighbour: u32) {
        if let Some(place) = self.edges.places_mut(level, row).get_mut(place) {
            *place = neighbour;
        }
    }
}

impl Layers for Builder {
    type Place = u32;

    fn rows(&self) -> u32 {
        self.edges.rows
    }

    fn entry(&self) -> u32 {
        self.edges.entry
    }

    fn top_level(&self) -> usize {
        self.edges.top_level()
    }

    #[inline(always)]
    fn base(&self, row: u32) -> &[u32] {
        places(&self.edges.base, index(row), self.edges.degree)
    }

    fn upper(&self, level: usize, row: u32) -> &[u32] {
        let upper = level.checked_sub(1).and_then(|at| self.edges.upper.get(at));
        upper.map_or(&[], |level| {
            places_of(&level.rows, &level.links, row, self.edges.upper_degree)
        })
    }

    #[inline(always)]
    fn code(&self, row: u32) -> &[u8] {
        self.codes.of(row)
    }

    #[inline(always)]
    fn bias(&self, row: u32) -> f32 {
        self.biases.get(index(row)).copied().unwrap_or(0.0)
    }
}

/// Codes in a row, each at a multiple of a cache line where the stride is one.
pub(super) struct Codes {
    bytes: Aligned,
    stride: usize,
    code_bytes: usize,
    rows: usize,
}

impl Codes {
    fn new(code_bytes: usize, rows: usize) -> Self {
        let stride = header::stride(code_bytes);
        Self {
            bytes: Aligned::zeros(rows.saturating_mul(stride)),
            stride,
            code_bytes,
            rows: 0,
        }
    }

    fn push(&mut self, code: &[u8]) {
        let held = self.rows * self.stride;
        if held + self.stride > self.bytes.as_ref().len() {
            let mut more = Aligned::zeros(2 * held + self.stride);
            if let Some(place) = more.as_mut().get_mut(..held) {
                place.copy_from_slice(self.bytes.as_ref().get(..held).unwrap_or_default());
            }
            self.bytes = more;
        }
        let length = self.code_bytes.min(code.len());
        let place = self.bytes.as_mut().get_mut(held..held + length);
        if let (Some(place), Some(code)) = (place, code.get(..length)) {
            place.copy_from_slice(code);
        }
        self.rows += 1;
    }

    #[inline(always)]
    pub(super) fn of(&self, row: u32) -> &[u8] {
        let start = index(row).saturating_mul(self.stride);
        let code = start..start.saturating_add(self.code_bytes);
        self.bytes.as_ref().get(code).unwrap_or_default()
    }
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
