//! A new row's edges: which rows become its neighbours, and whose it becomes.
//!
//! # Source
//! INSERT, algorithm 1 of Malkov and Yashunin, arXiv:1603.09320.

use crate::index::{
    kernel::Kernel,
    packed::{
        prune,
        walk::{self, Far, Layers, Scratch, neighbours},
    },
    space::{Measure, Visit},
};

/// A graph whose edges can be changed.
pub(in crate::index) trait Grow: Layers {
    /// The distance that an inner product of two codes and the sum of their biases make.
    fn between(&self, dot: f32, biases: f32) -> f32;
    /// Places of a list.
    fn degree(&self, level: usize) -> usize;
    /// Neighbours a new row chooses on a level, and the beam they are looked for with.
    fn effort(&self) -> (usize, usize);
    /// Makes room for a row's neighbours on a level.
    fn stand(&mut self, level: usize, row: u32);
    /// Puts these into a row's places, and nothing into those that are left.
    fn set_links(&mut self, level: usize, row: u32, chosen: &[Far]);
    /// Puts a row into one of another's places.
    fn put(&mut self, level: usize, row: u32, place: usize, neighbour: u32);
}

/// What connecting rows needs beside the graph; kept from row to row.
#[derive(Default)]
pub(in crate::index) struct Work {
    pub(in crate::index) scratch: Scratch,
    candidates: Vec<Far>,
    chosen: Vec<Far>,
    /// The new row's neighbours, with their level.
    edges: Vec<(usize, Far)>,
}

/// Finds neighbours for a row of level `level`, and makes it theirs.
pub(in crate::index) struct Connect<'a, G> {
    pub(in crate::index) graph: &'a mut G,
    pub(in crate::index) work: &'a mut Work,
    pub(in crate::index) row: u32,
    pub(in crate::index) level: usize,
}

impl<G: Grow> Visit for Connect<'_, G> {
    type Output = ();

    fn visit<K: Kernel>(self, measure: &Measure<'_, K>) {
        let Self {
            graph,
            work,
            row,
            level,
        } = self;
        let Work {
            scratch,
            candidates,
            chosen,
            edges,
        } = work;
        let (m, beam) = graph.effort();
        let entry = graph.entry();
        let distance = measure.distance(graph.code(entry), graph.bias(entry));
        let (mut start, _) = walk::descend(graph, measure, (distance, entry), level + 1);
        edges.clear();
        // Its own lists first: whoever comes to it can go on, whatever the level.
        for level in (0..=level.min(graph.top_level())).rev() {
            scratch.spread(graph, measure, start, level, beam);
            candidates.clear();
            candidates.extend(scratch.found().filter(|(_, found)| *found != row));
            let Some(nearest) = candidates.first() else {
                continue;
            };
            start = *nearest;
            prune::choose::<K, _>(graph, candidates, m, chosen);
            graph.stand(level, row);
            graph.set_links(level, row, chosen);
            edges.extend(chosen.iter().map(|far| (level, *far)));
        }
        for (level, (distance, neighbour)) in edges.iter().rev() {
            link_back::<K, G>(
                graph,
                *level,
                *neighbour,
                (*distance, row),
                candidates,
                chosen,
            );
        }
    }
}

/// Adds an edge to a row; if it has no place for it, its edges are chosen anew.
fn link_back<K: Kernel, G: Grow>(
    graph: &mut G,
    level: usize,
    row: u32,
    new: Far,
    candidates: &mut Vec<Far>,
    chosen: &mut Vec<Far>,
) {
    let degree = graph.degree(level);
    let held = neighbours(graph, level, row).count();
    if held < degree {
        graph.put(level, row, held, new.1);
        return;
    }
    prune::measured::<K, _>(graph, row, neighbours(graph, level, row), candidates);
    candidates.push(new);
    candidates.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    prune::choose::<K, _>(graph, candidates, degree, chosen);
    graph.set_links(level, row, chosen);
}
