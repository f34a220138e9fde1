//! Taking over the edges of a graph without some of its rows.
//!
//! A row that had a dropped one as neighbour gets that one's neighbours to choose from: what was
//! reached through it stays reachable.

use crate::index::{
    adjacency::{Level, index},
    kernel::Kernel,
    packed::{
        Graph,
        build::{Builder, Options},
        connect::Grow,
        prune,
        walk::{Far, Visits, neighbours},
    },
    space::{Measure, Visit},
};

/// Rows to choose neighbours from, for each place of a row.
const CANDIDATES_A_PLACE: usize = 3;

/// A graph to go on from, without some of its rows.
pub struct Adopt<'a, B, C> {
    /// The graph.
    pub graph: &'a Graph<B>,
    /// Each of its rows' number in the new one, counted from 0 on; `None` for one that is dropped.
    pub numbers: &'a [Option<u32>],
    /// Appends a row's code in the new space and gives its bias; if the space is that of the graph
    /// ([`Space::is_same`](crate::index::space::Space::is_same)), these are [`Graph::code`] and
    /// [`Graph::bias`].
    pub code: C,
}

impl<B: AsRef<[u8]> + Send + Sync, C> Adopt<'_, B, C> {
    /// Builds the new graph; `None` if `meanwhile`, called between rows, said no.
    ///
    /// # Errors
    /// That of `code` or `meanwhile`.
    pub fn build<E>(
        mut self,
        options: Options,
        meanwhile: &mut impl FnMut() -> Result<bool, E>,
    ) -> Result<Option<Builder>, E>
    where
        C: FnMut(u32, &mut Vec<u8>) -> Result<f32, E>,
    {
        let mut builder = Builder::new(options);
        let mut buffer = Vec::new();
        for (row, number) in (0u32..).zip(self.numbers) {
            if number.is_none() {
                continue;
            }
            buffer.clear();
            let bias = (self.code)(row, &mut buffer)?;
            let pushed = builder.push(&buffer, bias);
            debug_assert_eq!(Some(pushed), *number, "numbers count up from 0");
        }
        let is_done = builder.adopt_edges(self.graph, self.numbers, meanwhile)?;
        Ok(is_done.then_some(builder))
    }
}

impl Builder {
    /// Takes over the edges between rows that have a new number; false if `meanwhile` said no.
    fn adopt_edges<B: AsRef<[u8]> + Send + Sync, E>(
        &mut self,
        graph: &Graph<B>,
        numbers: &[Option<u32>],
        meanwhile: &mut impl FnMut() -> Result<bool, E>,
    ) -> Result<bool, E> {
        if self.m == 0 {
            return Ok(true);
        }
        let number = |row: u32| numbers.get(index(row)).copied().flatten();
        for level in 1..=graph.top_level() {
            let mut upper = Level::default();
            for row in graph
                .level_rows(level)
                .iter()
                .filter_map(|row| number(*row))
            {
                upper.stand(row, self.edges.upper_degree);
            }
            // An entry may only lead to levels below it.
            if upper.rows.is_empty() {
                break;
            }
            self.edges.upper.push(upper);
        }
        let top = self.edges.upper.last().and_then(|level| level.rows.first());
        self.edges.entry = number(graph.entry()).or(top.copied()).unwrap_or(0);
        let mut around = Around::default();
        let mut lonely = Vec::new();
        for old in graph.along_edges() {
            let Some(new) = number(old) else { continue };
            for level in 0..=self.edges.level(new) {
                around.look(graph, level, old, &number, self.degree(level));
                if around.kept == around.rows.len() && around.kept <= self.degree(level) {
                    let kept: Vec<Far> = around.rows.iter().map(|row| (0.0, *row)).collect();
                    self.set_links(level, new, &kept);
                    continue;
                }
                let query = self.space.query_of_code(self.codes.of(new));
                query.visit(Choose {
                    builder: self,
                    row: new,
                    level,
                    around: &around,
                });
            }
            if neighbours(self, 0, new).next().is_none() {
                lonely.push(new);
            }
            if !meanwhile()? {
                return Ok(false);
            }
        }
        if self.edges.rows < 2 {
            return Ok(true);
        }
        if lonely.contains(&self.edges.entry) {
            self.start_over();
            return Ok(true);
        }
        for row in lonely {
            self.reconnect(row);
        }
        Ok(true)
    }
}

/// Rows that keep a number, around one.
#[derive(Default)]
struct Around {
    rows: Vec<u32>,
    /// Rows that keep none, by their old numbers.
    dropped: Vec<u32>,
    /// Old rows that were come to.
    met: Visits,
    /// How many of `rows`, in front, were neighbours before.
    kept: usize,
    /// Its neighbours before.
    before: usize,
}

impl Around {
    /// The neighbours of a row, and in place of dropped ones theirs.
    fn look<B: AsRef<[u8]> + Send + Sync>(
        &mut self,
        graph: &Graph<B>,
        level: usize,
        row: u32,
        number: &impl Fn(u32) -> Option<u32>,
        places: usize,
    ) {
        self.rows.clear();
        self.dropped.clear();
        self.met.start(index(graph.rows()));
        // Its neighbours' neighbour is the row itself.
        self.met.mark(row);
        self.take(graph.neighbours(row, level), number);
        self.kept = self.rows.len();
        self.before = graph.neighbours(row, level).len();
        let enough = places * CANDIDATES_A_PLACE;
        let mut at = 0;
        while let Some(through) = self.dropped.get(at).copied() {
            if self.rows.len() >= enough || at >= enough {
                break;
            }
            self.take(graph.neighbours(through, level), number);
            at += 1;
        }
    }

    fn take(&mut self, neighbours: &[u32], number: &impl Fn(u32) -> Option<u32>) {
        for neighbour in neighbours {
            if !self.met.mark(*neighbour) {
                continue;
            }
            match number(*neighbour) {
                Some(new) => self.rows.push(new),
                None => self.dropped.push(*neighbour),
            }
        }
    }
}

/// Chooses a row's neighbours from some.
struct Choose<'a> {
    builder: &'a mut Builder,
    row: u32,
    level: usize,
    around: &'a Around,
}

impl Visit for Choose<'_> {
    type Output = ();

    fn visit<K: Kernel>(self, _measure: &Measure<'_, K>) {
        let (kept, new) = self.around.rows.split_at(self.around.kept);
        let mut chosen = Vec::new();
        prune::measured::<K, _>(self.builder, self.row, kept.iter().copied(), &mut chosen);
        let mut candidates = Vec::new();
        prune::measured::<K, _>(self.builder, self.row, new.iter().copied(), &mut candidates);
        let places = self.builder.degree(self.level);
        if chosen.len() > places {
            candidates.append(&mut chosen);
        }
        candidates.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        prune::choose_more::<K, _>(self.builder, &candidates, places, &mut chosen);
        let before = self.around.before.min(places);
        for one in &candidates {
            if chosen.len() >= before {
                break;
            }
            if !chosen.contains(one) {
                chosen.push(*one);
            }
        }
        self.builder.set_links(self.level, self.row, &chosen);
    }
}
