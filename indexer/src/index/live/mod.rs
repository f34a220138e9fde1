//! A graph that takes rows while it is searched.
//!
//! One thread adds, any number search, and none waits for another: codes and lists of neighbours lie
//! in pages that never move (`pages`), a code is there before any list leads to it, and places of
//! lists are changed one at a time. A search that meets a list while it is chosen anew may miss some
//! of its neighbours, never more than that.
//!
//! Rows are inserted as into a packed graph that is built ([`packed::Builder`]). What is stored is a
//! packed graph, too, with the rows' numbers behind it.

mod page;
mod pages;

use std::{
    io::Write,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use shoal_runtime::ErrorKind;
use shoal_schemas::{Dim, IndexParameters, Metric, Quantization};

use crate::index::{
    adjacency::{Adjacency, Level, NONE, index},
    live::{
        page::Link,
        pages::{Pages, Shape},
    },
    packed::{
        self, Accept, OpenError, Stage, Walk, WriteError,
        connect::{Connect, Grow, Work},
        level_of,
        mend::{Attend, Mend},
        walk::{self, Far, Layers, neighbours},
    },
    space::{QueryCode, Scale, Space},
};

/// What a graph is made with.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Components a vector.
    pub dim: Dim,
    /// The distance.
    pub metric: Metric,
    /// Edges, beam and quantization.
    pub parameters: IndexParameters,
}

impl Options {
    /// How rows are coded. A step that has to be fitted is not known while rows come: as bf16 then.
    fn space(&self) -> Space {
        let Self {
            dim,
            metric,
            parameters,
        } = *self;
        let space = Space::new(dim, metric, parameters.quantization(dim, metric));
        space.unwrap_or_else(|| Space::fit(dim, metric, Quantization::Bf16, 0.0))
    }
}

/// Why a stored graph is not of use.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It does not read.
    #[error("stored graph does not read")]
    Open(#[from] OpenError),
    /// It was made with other options.
    #[error("stored graph is made for other vectors or edges than the collection's")]
    Options,
    /// The numbers of its rows.
    #[error("stored graph has {found} bytes behind it, numbers of its rows take {expected}")]
    Keys {
        /// As found.
        found: usize,
        /// For all of its rows.
        expected: usize,
    },
}

impl LoadError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

/// A navigable small-world graph over one segment's rows.
pub struct Graph {
    space: Space,
    between: Scale,
    m: usize,
    beam: usize,
    pages: Pages,
    /// Rows that lists lead to.
    linked: AtomicU32,
    /// Where a walk starts, and above it on which level.
    start: AtomicU64,
    /// Whether none was passed over: each row's number is its own.
    is_dense: AtomicBool,
    work: Mutex<Work>,
}

impl Graph {
    /// An empty one.
    pub fn new(options: &Options) -> Self {
        let space = options.space();
        let m = options.parameters.edges();
        let shape = Shape {
            code: space.code_bytes(),
            has_bias: space.has_bias(),
            degree: 2 * m,
            upper_degree: m,
        };
        Self {
            between: space.between(),
            space,
            m,
            beam: usize::from(options.parameters.ef_construction).max(m),
            pages: Pages::new(shape),
            linked: AtomicU32::new(0),
            start: AtomicU64::new(0),
            is_dense: AtomicBool::new(true),
            work: Mutex::default(),
        }
    }

    /// Reads a graph that [`Graph::write`] wrote.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(bytes: &[u8], options: &Options) -> Result<Self, LoadError> {
        let stored = packed::Graph::open(bytes)?;
        let graph = Self::new(options);
        let degrees = (2 * graph.m, graph.m);
        if !stored.space().is_same(&graph.space) || stored.degrees() != degrees {
            return Err(LoadError::Options);
        }
        let behind = bytes.get(stored.bytes()..).unwrap_or_default();
        let (keys, _) = behind.as_chunks::<4>();
        if keys.len() != index(stored.rows()) {
            return Err(LoadError::Keys {
                found: behind.len(),
                expected: index(stored.rows()).saturating_mul(size_of::<u32>()),
            });
        }
        for (row, key) in (0u32..).zip(keys) {
            let code = stored.code(row).unwrap_or_default();
            let (key, level) = (u32::from_le_bytes(*key), stored.level(row));
            graph.push(row, key, (code, stored.bias(row)), level);
        }
        let mut at = graph.layers(stored.rows());
        for row in 0..stored.rows() {
            for level in 0..=stored.level(row) {
                let listed = stored.neighbours(row, level).iter();
                let listed: Vec<Far> = listed.map(|to| (0.0, *to)).collect();
                at.set_links(level, row, &listed);
            }
        }
        graph.set_start(stored.entry(), stored.top_level());
        graph.linked.store(stored.rows(), Ordering::Release);
        Ok(graph)
    }

    /// Adds a row of its segment. Numbers rise, and may be passed over.
    pub fn add(&self, key: u32, vector: &[f32]) {
        let mut work = self.work();
        let row = self.linked.load(Ordering::Acquire);
        let level = level_of(row, self.m);
        let mut code = Vec::with_capacity(self.space.code_bytes());
        let bias = self.space.encode_row(vector, &mut code);
        self.push(row, key, (&code, bias), level);
        let mut layers = self.layers(row + 1);
        if row > 0 && self.m > 0 {
            let query = self.space.query_of_code(&code);
            query.visit(Connect {
                graph: &mut layers,
                work: &mut work,
                row,
                level,
            });
        }
        if row == 0 || level > layers.top {
            self.set_start(row, level);
        }
        self.linked.store(row + 1, Ordering::Release);
    }

    /// How its rows are coded.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Whether rows are neighbours of each other at all: else nothing is found by walking.
    pub fn has_edges(&self) -> bool {
        self.m > 0
    }

    /// Rows added.
    pub fn rows(&self) -> u32 {
        self.linked.load(Ordering::Acquire)
    }

    /// Memory it holds.
    pub fn bytes(&self) -> usize {
        self.pages.bytes(self.rows())
    }

    /// The nearest `want` rows of the segment that `accept` takes, nearest first: as
    /// [`packed::Graph::search`].
    pub fn search(
        &self,
        query: &QueryCode,
        beam: usize,
        want: usize,
        accept: Option<Accept<'_>>,
    ) -> Walk {
        let layers = self.layers(self.rows());
        let takes = |row| accept.is_none_or(|accept| (accept.takes)(self.key(row)));
        let accept = accept.map(|accept| Accept {
            takes: &takes,
            ..accept
        });
        self.keyed(walk::nearest(&layers, query, beam, want, accept))
    }

    /// As [`packed::Graph::set_out`].
    pub fn set_out(&self, query: QueryCode, limit: usize, may_go_among: bool) -> Stage {
        Stage::set_out(&self.layers(self.rows()), query, limit, may_go_among)
    }

    /// As [`packed::Graph::go_on`].
    pub fn go_on(&self, stage: &mut Stage, places: usize) {
        stage.go_on(&self.layers(self.rows()), places);
    }

    /// As [`packed::Graph::go_on_among`].
    pub fn go_on_among(&self, stage: Stage, beam: usize, want: usize, accept: Accept<'_>) -> Walk {
        let takes = |row| (accept.takes)(self.key(row));
        let accept = Accept {
            takes: &takes,
            ..accept
        };
        let walk = stage.go_on_among(&self.layers(self.rows()), beam, want, accept);
        self.keyed(walk)
    }

    /// What a walk found, by numbers of the segment.
    fn keyed(&self, mut walk: Walk) -> Walk {
        for near in &mut walk.near {
            near.row = self.key(near.row);
        }
        walk
    }

    /// A row's number in its segment, for one that a walk in stages came to.
    #[inline(always)]
    pub fn key(&self, row: u32) -> u32 {
        match self.is_dense.load(Ordering::Acquire) {
            true => row,
            false => self.pages.key(row),
        }
    }

    /// About the distance to a row of the segment; `None` if it was not added.
    pub fn distance_to(&self, query: &QueryCode, key: u32) -> Option<f32> {
        let row = self.row_of(key)?;
        Some(query.distance(self.pages.code(row), self.pages.bias(row)))
    }

    #[cfg(test)]
    fn code(&self, key: u32) -> Option<&[u8]> {
        self.row_of(key).map(|row| self.pages.code(row))
    }

    /// Makes edges to rows that no walk comes to; false if `attend`, which is asked for rows of the
    /// segment, said no. Not while a row is being added.
    ///
    /// # Errors
    /// Those of `attend`.
    pub fn mend<A: Attend>(&self, attend: &mut A) -> Result<bool, A::Error> {
        if self.rows() == 0 {
            return Ok(true);
        }
        let mending = Mend {
            graph: &mut self.layers(self.rows()),
            space: &self.space,
            work: &mut self.work(),
        };
        mending.mend(&mut Keyed {
            graph: self,
            attend,
        })
    }

    /// Its edges, for a segment of `rows` rows: one that was never added has none. Not while a row
    /// is being added.
    pub fn adjacency(&self, rows: u32) -> Adjacency {
        let keys: Vec<u32> = (0..self.rows()).map(|row| self.key(row)).collect();
        self.edges().spread(&keys, rows)
    }

    /// Writes what [`Graph::load`] reads. Not while a row is being added.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write(&self, out: &mut impl Write) -> Result<(), WriteError> {
        let rows = 0..self.rows();
        let codes = rows.clone();
        let codes = codes.map(|row| (self.pages.code(row), self.pages.bias(row)));
        packed::write(out, &self.space, &self.edges(), codes)?;
        for row in rows {
            out.write_all(&self.key(row).to_le_bytes())?;
        }
        Ok(())
    }

    /// The same edges, between its own rows.
    fn edges(&self) -> Adjacency {
        let layers = self.layers(self.rows());
        let mut base = Vec::with_capacity(index(layers.rows) * 2 * self.m);
        let mut upper: Vec<Level> = Vec::new();
        upper.resize_with(layers.top, Level::default);
        for row in 0..layers.rows {
            let listed = neighbours(&layers, 0, row);
            base.extend(listed.chain(std::iter::repeat(NONE)).take(2 * self.m));
            let levels = upper.iter_mut().take(self.pages.level(row));
            for (level, above) in (1..).zip(levels) {
                let listed = neighbours(&layers, level, row);
                above.rows.push(row);
                above
                    .links
                    .extend(listed.chain(std::iter::repeat(NONE)).take(self.m));
            }
        }
        Adjacency {
            rows: layers.rows,
            entry: layers.entry,
            degree: 2 * self.m,
            upper_degree: self.m,
            base,
            upper,
        }
    }

    fn push(&self, row: u32, key: u32, code: (&[u8], f32), level: usize) {
        if key != row {
            self.is_dense.store(false, Ordering::Release);
        }
        self.pages.push(row, key, code, level);
    }

    fn set_start(&self, row: u32, level: usize) {
        let level = u64::try_from(level).unwrap_or(u64::MAX);
        let start = level << u32::BITS | u64::from(row);
        self.start.store(start, Ordering::Release);
    }

    fn layers(&self, rows: u32) -> Linked<'_> {
        let start = self.start.load(Ordering::Acquire);
        let [_, _, _, level, row @ ..] = start.to_be_bytes();
        Linked {
            graph: self,
            rows,
            entry: u32::from_be_bytes(row),
            top: usize::from(level),
        }
    }

    fn row_of(&self, key: u32) -> Option<u32> {
        let rows = self.rows();
        if self.is_dense.load(Ordering::Acquire) {
            return (key < rows).then_some(key);
        }
        let (mut from, mut to) = (0, rows.min(key.saturating_add(1)));
        while from < to {
            let middle = from + (to - from) / 2;
            match self.pages.key(middle) < key {
                true => from = middle + 1,
                false => to = middle,
            }
        }
        (from < rows && self.pages.key(from) == key).then_some(from)
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        // Scratch space: what a holder that panicked left in it is of no harm.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks for rows of the segment in place of the graph's.
struct Keyed<'a, A> {
    graph: &'a Graph,
    attend: &'a mut A,
}

impl<A: Attend> Attend for Keyed<'_, A> {
    type Error = A::Error;

    fn goes_on(&mut self) -> Result<bool, A::Error> {
        self.attend.goes_on()
    }

    fn vector(&mut self, row: u32, out: &mut Vec<f32>) -> Result<bool, A::Error> {
        self.attend.vector(self.graph.key(row), out)
    }
}

/// The graph at a moment, with this entry and so many rows.
struct Linked<'a> {
    graph: &'a Graph,
    rows: u32,
    entry: u32,
    top: usize,
}

impl Layers for Linked<'_> {
    type Place = Link;

    fn rows(&self) -> u32 {
        self.rows
    }

    /// A list may hold rows that came after the moment, in front of others.
    #[inline(always)]
    fn ends(&self, number: u32) -> bool {
        number == NONE
    }

    fn entry(&self) -> u32 {
        self.entry
    }

    fn top_level(&self) -> usize {
        self.top
    }

    #[inline(always)]
    fn base(&self, row: u32) -> &[Link] {
        self.graph.pages.base(row)
    }

    fn upper(&self, level: usize, row: u32) -> &[Link] {
        self.graph.pages.upper(level, row)
    }

    #[inline(always)]
    fn code(&self, row: u32) -> &[u8] {
        self.graph.pages.code(row)
    }

    #[inline(always)]
    fn bias(&self, row: u32) -> f32 {
        self.graph.pages.bias(row)
    }
}

/// Only by the thread that holds the graph's [`Work`].
impl Grow for Linked<'_> {
    #[inline(always)]
    fn between(&self, dot: f32, biases: f32) -> f32 {
        self.graph.between.distance(dot, biases)
    }

    fn degree(&self, level: usize) -> usize {
        match level {
            0 => 2 * self.graph.m,
            _ => self.graph.m,
        }
    }

    fn effort(&self) -> (usize, usize) {
        (self.graph.m, self.graph.beam)
    }

    /// It has had it since it came.
    fn stand(&mut self, _level: usize, _row: u32) {}

    fn set_links(&mut self, level: usize, row: u32, chosen: &[Far]) {
        let chosen = chosen.iter().map(|(_, row)| *row);
        let places = self.places(level, row).iter();
        for (place, row) in places.zip(chosen.chain(std::iter::repeat(NONE))) {
            place.set(row);
        }
    }

    fn put(&mut self, level: usize, row: u32, place: usize, neighbour: u32) {
        if let Some(place) = self.places(level, row).get(place) {
            place.set(neighbour);
        }
    }
}

impl Linked<'_> {
    fn places(&self, level: usize, row: u32) -> &[Link] {
        match level {
            0 => self.base(row),
            _ => self.upper(level, row),
        }
    }
}

#[cfg(test)]
#[path = "../live_tests.rs"]
mod tests;
