//! Builds a graph that is then packed: of rows one by one, or on from one there is.
//!
//! For work on rows that are all known: a merge takes the largest graph's edges as they are and
//! inserts the rows of the others; rows that are dropped on the way leave their neighbours'
//! neighbours to each other. Nobody searches meanwhile. It is faster than usearch at the same
//! because it asks for memory ahead and compares codes where they lie.
//!
//! # Source
//! INSERT and SELECT-NEIGHBORS-HEURISTIC, algorithms 1 and 4 of Malkov and Yashunin,
//! arXiv:1603.09320. Dropping rows: algorithm 4 of Singh et al., arXiv:2105.09613.

use std::io::Write;

use shoal_schemas::IndexParameters;

use crate::index::{
    adjacency::{Adjacency, Level, MAX_UPPER_LEVELS, NONE, index, places, places_of, until_none},
    kernel::Kernel,
    packed::{
        Aligned, WriteError, header, prune,
        walk::{self, Far, Layers, Scratch},
        write,
    },
    space::{Measure, Scale, Space, Visit},
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
    pub(super) scratch: Scratch,
    candidates: Vec<Far>,
    chosen: Vec<Far>,
}

impl Builder {
    /// An empty one.
    pub fn new(options: Options) -> Self {
        let Options {
            space,
            parameters,
            rows,
        } = options;
        let m = usize::from(parameters.m).max(2);
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
            scratch: Scratch::default(),
            candidates: Vec::new(),
            chosen: Vec::new(),
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

    /// Its edges, after making some to rows that no walk comes to; `None` if `meanwhile`, which is
    /// called once a row that is looked at, said no.
    ///
    /// # Errors
    /// Those of `meanwhile`.
    pub fn finish<E>(
        mut self,
        meanwhile: &mut impl FnMut() -> Result<bool, E>,
    ) -> Result<Option<Adjacency>, E> {
        Ok(self.mend(meanwhile)?.then_some(self.edges))
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

    /// Adds a row without edges.
    pub(super) fn push(&mut self, code: &[u8], bias: f32) -> u32 {
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
        let query = self.space.query_of_code(self.codes.of(row));
        let level = self.edges.level(row);
        query.visit(Connect {
            builder: self,
            row,
            level,
        });
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

    /// Finds a new row's neighbours and makes it theirs.
    fn connect(&mut self, row: u32) {
        let query = self.space.query_of_code(self.codes.of(row));
        let level = self.level_of(row);
        if row > 0 {
            query.visit(Connect {
                builder: self,
                row,
                level,
            });
        }
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

    /// A level of which each has `m` times as many rows as the next, by the row's number.
    fn level_of(&self, row: u32) -> usize {
        let mut level = 0;
        let mut state = u64::from(row);
        let m = u64::try_from(self.m).unwrap_or(u64::MAX);
        loop {
            state = scrambled(state);
            if level == MAX_UPPER_LEVELS || state % m != 0 {
                return level;
            }
            level += 1;
        }
    }
}

/// A step of splitmix64.
fn scrambled(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

struct Connect<'a> {
    builder: &'a mut Builder,
    row: u32,
    level: usize,
}

impl Visit for Connect<'_> {
    type Output = ();

    fn visit<K: Kernel>(self, measure: &Measure<'_, K>) {
        let Self {
            builder,
            row,
            level,
        } = self;
        let mut scratch = std::mem::take(&mut builder.scratch);
        let mut candidates = std::mem::take(&mut builder.candidates);
        let mut chosen = std::mem::take(&mut builder.chosen);
        let entry = builder.edges.entry;
        let distance = measure.distance(Layers::code(builder, entry), builder.bias(entry));
        let (mut start, _) = walk::descend(builder, measure, (distance, entry), level + 1);
        for level in (0..=level.min(builder.edges.top_level())).rev() {
            scratch.spread(builder, measure, start, level, builder.beam);
            candidates.clear();
            candidates.extend(scratch.found().filter(|(_, found)| *found != row));
            let Some(nearest) = candidates.first() else {
                continue;
            };
            start = *nearest;
            prune::choose::<K>(builder, &candidates, builder.m, &mut chosen);
            if level > 0
                && let Some(upper) = builder.edges.upper.get_mut(level - 1)
            {
                upper.stand(row, builder.edges.upper_degree);
            }
            builder.set_links(level, row, &chosen);
            for (distance, neighbour) in &chosen {
                builder.link_back::<K>(level, *neighbour, (*distance, row), &mut candidates);
            }
        }
        (builder.scratch, builder.candidates, builder.chosen) = (scratch, candidates, chosen);
    }
}

impl Builder {
    /// The distance that an inner product of two codes and the sum of their biases make.
    #[inline(always)]
    pub(super) fn between(&self, dot: f32, biases: f32) -> f32 {
        self.between.distance(dot, biases)
    }

    pub(super) fn set_links(&mut self, level: usize, row: u32, chosen: &[Far]) {
        let places = self.edges.places_mut(level, row);
        let chosen = chosen.iter().map(|(_, row)| *row);
        for (place, row) in places.iter_mut().zip(chosen.chain(std::iter::repeat(NONE))) {
            *place = row;
        }
    }

    /// Adds an edge to a row; if it has no place for it, its edges are chosen anew.
    fn link_back<K: Kernel>(
        &mut self,
        level: usize,
        row: u32,
        new: Far,
        candidates: &mut Vec<Far>,
    ) {
        let places = self.edges.places_mut(level, row);
        if let Some(free) = places.iter_mut().find(|place| **place == NONE) {
            *free = new.1;
            return;
        }
        let places = self.edges.neighbours(row, level);
        let degree = places.len();
        prune::measured::<K>(self, row, places, candidates);
        candidates.push(new);
        candidates.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let mut chosen = Vec::with_capacity(degree);
        prune::choose::<K>(self, candidates, degree, &mut chosen);
        self.set_links(level, row, &chosen);
    }
}

impl Layers for Builder {
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

/// A row's neighbours, as a list.
pub(super) fn list(graph: &Builder, level: usize, row: u32) -> &[u32] {
    let places = match level {
        0 => graph.base(row),
        _ => graph.upper(level, row),
    };
    until_none(places, graph.edges.rows)
}

#[cfg(test)]
#[path = "build_tests.rs"]
mod tests;
