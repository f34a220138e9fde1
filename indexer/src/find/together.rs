//! Walking several graphs as if they were one.
//!
//! The nearest of all rows lie in the segments about as all their rows do, and then each graph needs
//! a narrower beam than one graph of all rows would: that times the square root of its share, which
//! is how shards of a collection are asked, too. Or they lie in one segment, which took them in when a
//! whole region of the space was written, and then that one needs the whole beam and the others none.
//! Nobody knows before. So all walks go on in turns, each with the beam that its share of the nearest
//! rows met by all of them asks for.
//!
//! Rows that have ended lead on and are left out of the count. Where they are so many that they fill
//! a beam, the graph is walked again for live rows alone.

use crate::{
    fields::{RowSet, plan},
    find::{Met, Search, SearchError, count, size},
    index::packed::{MENDED_BEAM, Stage},
    segment::Segment,
};

/// Rows that are looked from in the first turn, in each graph, however far from the query they are: a
/// walk that has looked from fewer may not have come near it yet. Graphs are mended so that each row is
/// found from [`MENDED_BEAM`]; a few more keep recall where a fresh graph has it.
const TURN: usize = MENDED_BEAM + 4;
/// A turn for less than one in so many of a walk's rows is not worth it.
const WORTH: usize = 8;

/// A segment whose graph is walked for any of its live rows.
pub(super) struct Part<'a> {
    segment: &'a Segment,
    /// Rows below are found by the walk; others are scanned.
    folded: u32,
    /// Live rows that the walk finds.
    live: u32,
    walk: plan::Walk,
}

impl<'a> Part<'a> {
    /// That segment, if any live row of it will do and it has more of them than ended ones.
    pub(super) fn of(
        segment: &'a Segment,
        folded: u32,
        set: Option<&RowSet>,
        walk: plan::Walk,
    ) -> Option<Self> {
        let live = segment.live_in_graph(folded);
        let is_alive = live > segment.nodes() / 2;
        (set.is_none() && is_alive).then_some(Self {
            segment,
            folded,
            live,
            walk,
        })
    }

    /// Sets out on its graph.
    fn set_out(self, search: &Search<'_, '_>) -> Going<'a> {
        let limit = amid(self.walk.beam, self.segment.nodes(), self.live);
        Going {
            stage: self.segment.set_out(search.wanted.query, limit),
            part: self,
            places: TURN,
            met: Vec::new(),
            live: Vec::new(),
        }
    }
}

/// A part under way.
struct Going<'a> {
    part: Part<'a>,
    stage: Stage,
    /// How many rows it looks from before it waits for the others.
    places: usize,
    /// How far the rows are that it has met, nearest first.
    met: Vec<f32>,
    /// Those that may be answered with.
    live: Vec<f32>,
}

impl Going<'_> {
    /// Whether it is to look from more rows, and has them.
    fn waits(&self) -> bool {
        let places = self.stage.places();
        places + places / WORTH < self.places && !self.stage.is_exhausted()
    }
}

impl<'a> Search<'a, '_> {
    /// Walks the graphs of all these segments, once all others were looked through.
    pub(super) fn together(&mut self, mut parts: Vec<Part<'a>>) -> Result<(), SearchError> {
        let timer = self.timer();
        let is_alone = parts.len() == 1 && self.coarse.is_empty() && self.exact.is_empty();
        if let Some(part) = parts.pop_if(|part| is_alone && part.segment.is_all_alive()) {
            self.walk(part.segment, part.folded, None, part.walk)?;
        }
        let going = parts.into_iter().map(|part| part.set_out(self));
        let mut going: Vec<_> = going.collect();
        self.take_turns(&mut going)?;
        for one in going {
            self.arrive(one)?;
        }
        self.told.search_us += timer.micros();
        Ok(())
    }

    /// Takes all walks as far as the share that each has of the nearest rows asks for.
    fn take_turns(&self, going: &mut [Going<'_>]) -> Result<(), SearchError> {
        // The same for all of them.
        let beam = going.iter().map(|one| one.part.walk.beam).max();
        let beam = beam.unwrap_or_default();
        let others = self.coarse.distances().chain(self.exact.distances());
        let mut others: Vec<f32> = others.collect();
        others.sort_unstable_by(f32::total_cmp);
        loop {
            for one in going.iter_mut().filter(|one| one.waits()) {
                one.part.segment.go_on(&mut one.stage, one.places);
                self.meet(one);
            }
            let live = going.iter().map(|one| one.live.as_slice());
            let lists: Vec<&[f32]> = live.chain([others.as_slice()]).collect();
            let near = lists.iter().map(|list| list.len()).sum();
            let reach = farthest(&lists, beam);
            let within = |distances: &[f32]| distances.partition_point(|one| *one <= reach);
            for one in going.iter_mut() {
                let own = Own {
                    met: within(&one.met),
                    alive: within(&one.live),
                };
                one.places = one.places.max(own.places(beam, near));
            }
            if !going.iter().any(Going::waits) {
                return Ok(());
            }
            if (self.wanted.stop)() {
                return Err(SearchError::Stopped);
            }
        }
    }

    /// Takes down the rows that a walk has met.
    fn meet(&self, one: &mut Going<'_>) {
        let segment = one.part.segment;
        one.met.clear();
        one.met
            .extend(segment.near(&one.stage).map(|met| met.distance));
        one.live.clear();
        if segment.is_all_alive() {
            one.live.extend_from_slice(&one.met);
            return;
        }
        let live = segment.near(&one.stage);
        let live = live.filter(|met| self.shows(segment, met.row));
        one.live.extend(live.map(|met| met.distance));
    }

    fn shows(&self, segment: &Segment, row: u32) -> bool {
        let shown = self.view.shown(segment, row, self.wanted.moment);
        shown.is_some()
    }

    /// Takes what a walk has found, unless rows that are not to be seen have crowded out others.
    fn arrive(&mut self, one: Going<'a>) -> Result<(), SearchError> {
        let Going {
            part, stage, live, ..
        } = one;
        let Part {
            segment,
            folded,
            walk,
            ..
        } = part;
        let (view, moment) = (self.view, self.wanted.moment);
        self.told.distances += count(stage.distances());
        // A search that was held up can meet rows from after its moment.
        let is_crowded = match segment.is_all_alive() {
            true => {
                let mut nearest = segment.near(&stage).take(self.want);
                nearest.any(|near| !self.shows(segment, near.row))
            }
            false => {
                let enough = self.want.max(walk.beam - walk.beam / 4);
                stage.is_exhausted() && live.len() < enough
            }
        };
        if !is_crowded {
            self.told.walked += 1;
            let below = segment.near(&stage).filter(|near| near.row < folded);
            let found =
                below.filter_map(|near| Met::at(view, segment, near.row, near.distance, moment));
            for met in found.take(self.want) {
                self.coarse.push(met);
            }
        }
        stage.end();
        match is_crowded {
            true => self.walk(segment, folded, None, walk),
            false => Ok(()),
        }
    }
}

/// How many rows a walk keeps for a beam of live ones, amid those that have ended.
fn amid(beam: usize, nodes: u32, live: u32) -> usize {
    let wide = beam.saturating_mul(size(nodes)).div_ceil(size(live).max(1));
    wide.max(beam)
}

/// Rows of a graph that are as near as the nearest live ones of all graphs.
struct Own {
    /// All of them.
    met: usize,
    /// Those that live.
    alive: usize,
}

impl Own {
    /// From how many rows a walk has to look that has come to these, where `near` live rows were met in
    /// all graphs: as wide a beam of live ones as its share of the nearest asks for, amid those that
    /// have ended. Where none lives, from each of them and as many again, for live ones may lie behind.
    fn places(&self, beam: usize, near: usize) -> usize {
        let nearest = near.clamp(1, beam.max(1));
        let wide = beam.saturating_mul(beam).saturating_mul(self.alive) / nearest;
        let wide = wide.isqrt().saturating_mul(self.met);
        wide.checked_div(self.alive).unwrap_or(2 * self.met)
    }
}

/// The farthest of the nearest so many distances in lists that are sorted; infinite where there are fewer.
fn farthest(lists: &[&[f32]], among: usize) -> f32 {
    let mut left = lists.to_vec();
    let mut farthest = f32::INFINITY;
    for _ in 0..among {
        let heads = left.iter_mut();
        let heads = heads.filter_map(|list| Some((*list.first()?, list)));
        let Some((distance, list)) = heads.min_by(|a, b| a.0.total_cmp(&b.0)) else {
            return f32::INFINITY;
        };
        *list = list.get(1..).unwrap_or_default();
        farthest = distance;
    }
    farthest
}

#[cfg(test)]
mod tests {
    use super::{Own, amid, farthest};

    #[test]
    fn a_beam_is_as_much_wider_as_there_are_more_rows_than_live_ones() {
        assert_eq!(amid(64, 300, 200), 96);
        assert_eq!(
            amid(64, 30, 4096),
            64,
            "rows that wait are not in the graph"
        );
        assert_eq!(amid(64, 30, 0), 64 * 30);
    }

    #[test]
    fn a_graph_with_few_of_the_nearest_needs_a_narrower_beam() {
        let places = |met, alive, near| Own { met, alive }.places(64, near);
        assert_eq!(places(64, 64, 128), 64);
        assert_eq!(places(32, 32, 128), 45);
        assert_eq!(places(9, 9, 128), 24);
        assert_eq!(places(0, 0, 128), 0);
        assert_eq!(places(20, 20, 20), 64, "all there are");
    }

    #[test]
    fn ended_rows_take_no_place_of_live_ones() {
        let places = |met, alive, near| Own { met, alive }.places(64, near);
        assert_eq!(places(73, 64, 64), 73);
        assert_eq!(places(64, 32, 64), 90);
        assert_eq!(places(70, 2, 64), 385, "as far as it goes");
        assert_eq!(places(70, 2, 2), 64 * 35);
        assert_eq!(places(40, 0, 64), 80, "live ones may lie behind");
        assert_eq!(places(70, 0, 0), 140);
    }

    #[test]
    fn the_farthest_is_of_so_many_nearest() {
        let lists: [&[f32]; 3] = [&[1.0, 3.0], &[], &[2.0]];
        let found = [1, 2, 3, 4].map(|among| farthest(&lists, among));
        assert_eq!(found, [1.0, 2.0, 3.0, f32::INFINITY]);
    }
}
