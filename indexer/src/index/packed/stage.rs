//! A walk that stops on its way and is taken further, so that walks of several graphs can wait for
//! each other.

use crate::index::{
    Near,
    adjacency::index,
    kernel::Kernel,
    packed::walk::{Accept, Layers, Scratch, Visits, Walk, descend, distance},
    space::{Measure, QueryCode, Visit},
};

/// A walk under way.
pub struct Stage {
    code: QueryCode,
    scratch: Scratch,
    /// Where the nearest row that was not looked from stands.
    at: usize,
    /// How many rows it keeps.
    limit: usize,
    distances: usize,
}

impl Stage {
    /// Goes down to level 0, and stops there.
    pub(in crate::index) fn set_out<L: Layers>(
        layers: &L,
        code: QueryCode,
        limit: usize,
        may_go_among: bool,
    ) -> Self {
        let mut scratch = Scratch::taken();
        if may_go_among {
            scratch.keep_beyond();
        }
        let distances = code.visit(SetOut {
            layers,
            scratch: &mut scratch,
        });
        Self {
            code,
            scratch,
            at: 0,
            limit: limit.min(index(layers.rows())).max(1),
            distances,
        }
    }

    /// Looks from row after row, the nearest first, until it has looked from the nearest `places`.
    pub(in crate::index) fn go_on<L: Layers>(&mut self, layers: &L, places: usize) {
        let Self {
            code,
            scratch,
            at,
            limit,
            distances,
        } = self;
        let (stopped, took) = code.visit(GoOn {
            layers,
            scratch,
            at: *at,
            limit: *limit,
            places,
        });
        *at = stopped;
        *distances += took;
    }

    /// Goes on to the end as [`super::Graph::search`] does among accepted rows, and gives what that finds. It was set
    /// out for it.
    pub(in crate::index) fn go_on_among<L: Layers>(
        mut self,
        layers: &L,
        beam: usize,
        want: usize,
        accept: Accept<'_>,
    ) -> Walk {
        let (distances, is_cut) = self.code.visit(GoOnAmong {
            layers,
            scratch: &mut self.scratch,
            beam: beam.max(want).min(index(layers.rows())),
            accept,
            distances: self.distances,
        });
        let near = self.near().take(want).collect();
        self.end();
        Walk {
            near,
            distances,
            is_cut,
        }
    }

    /// Whether it was set out to be ended among accepted rows.
    pub fn may_go_among(&self) -> bool {
        self.scratch.keeps_beyond()
    }

    /// From how many of the nearest rows it has looked.
    pub fn places(&self) -> usize {
        self.at
    }

    /// Whether it has looked from every row it keeps.
    pub fn is_exhausted(&self) -> bool {
        self.scratch.found().nth(self.at).is_none()
    }

    /// The nearest rows that it has come to, nearest first, with approximate distances.
    pub fn near(&self) -> impl Iterator<Item = Near> {
        self.scratch.found().map(|(distance, row)| Near {
            row,
            distance: self.code.least(distance),
        })
    }

    /// Distances computed.
    pub fn distances(&self) -> usize {
        self.distances
    }

    /// Leaves what it used to the next walk.
    pub fn end(self) {
        self.scratch.give_back();
    }
}

struct SetOut<'a, L> {
    layers: &'a L,
    scratch: &'a mut Scratch,
}

impl<L: Layers> Visit for SetOut<'_, L> {
    type Output = usize;

    fn visit<K: Kernel>(self, measure: &Measure<'_, K>) -> usize {
        let layers = self.layers;
        if layers.rows() == 0 {
            return 0;
        }
        let entry = layers.entry();
        let start = (distance(layers, measure, entry), entry);
        let (start, descended) = descend(layers, measure, start, 1);
        self.scratch.set_out(layers, start);
        1 + descended
    }
}

struct GoOn<'a, L> {
    layers: &'a L,
    scratch: &'a mut Scratch,
    at: usize,
    limit: usize,
    places: usize,
}

impl<L: Layers> Visit for GoOn<'_, L> {
    type Output = (usize, usize);

    fn visit<K: Kernel>(self, measure: &Measure<'_, K>) -> (usize, usize) {
        let places = self.places;
        let stop = |_: &Visits, at| at >= places;
        self.scratch
            .go_on(self.layers, measure, self.at, 0, self.limit, stop)
    }
}

struct GoOnAmong<'a, L> {
    layers: &'a L,
    scratch: &'a mut Scratch,
    beam: usize,
    accept: Accept<'a>,
    distances: usize,
}

impl<L: Layers> Visit for GoOnAmong<'_, L> {
    type Output = (usize, bool);

    fn visit<K: Kernel>(self, measure: &Measure<'_, K>) -> (usize, bool) {
        self.scratch
            .go_on_among(self.layers, measure, self.beam, self.accept, self.distances)
    }
}
