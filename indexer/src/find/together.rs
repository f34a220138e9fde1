//! Walking several graphs as if they were one.
//!
//! The nearest of all rows lie in the segments about as all their rows do, and then each graph needs
//! a narrower beam than one graph of all rows would: that times the square root of its share, which
//! is how shards of a collection are asked, too. Or they lie in one segment, which took them in when a
//! whole region of the space was written, and then that one needs the whole beam and the others none.
//! Nobody knows before. So all walks go on in turns, each with the beam that its share of the nearest
//! rows met by all of them asks for. A small one beside a large one is only glanced at, until it is known how near the
//! nearest are.
//!
//! Rows that have ended lead on and are left out of the count. Where they are so many that they fill
//! a beam, the walk goes on for live rows alone.

use crate::{
    fields::{RowSet, plan},
    find::{Met, Search, SearchError, count, size},
    index::packed::{Accept, MENDED_BEAM, Stage},
    segment::Segment,
};

/// Rows that are looked from at least in a graph that holds some of the nearest: a walk that has looked from
/// fewer may not have come near all of them yet. Graphs are mended so that each row is found from
/// [`MENDED_BEAM`]; a few more keep recall where a fresh graph has it.
const TURN: usize = MENDED_BEAM + 4;
/// Rows that are looked from in a small graph beside a large one, to see whether it holds any of the nearest.
const GLANCE: usize = MENDED_BEAM / 2;
/// A graph is a large one if it holds so many of four live rows.
const LARGE_OF_FOUR: usize = 3;
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
        let may_go_among = !self.segment.is_all_alive();
        let query = search.wanted.query;
        Going {
            stage: self.segment.set_out(query, limit, may_go_among),
            part: self,
            places: 0,
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
    /// Those that may be answered with, where not all may.
    live: Vec<f32>,
}

impl Going<'_> {
    /// Whether it is to look from more rows, and has them.
    fn waits(&self) -> bool {
        let places = self.stage.places();
        places + places / WORTH < self.places && !self.stage.is_exhausted()
    }

    /// How far the rows are that it has met and that may be answered with, nearest first.
    fn live(&self) -> &[f32] {
        match self.stage.may_go_among() {
            true => &self.live,
            false => &self.met,
        }
    }

    /// How many of the nearest it has met: rows that are no farther than `reach`.
    fn own(&self, reach: f32) -> Own {
        let within = |distances: &[f32]| distances.partition_point(|one| *one <= reach);
        Own {
            met: within(&self.met),
            alive: within(self.live()),
        }
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
        let all = self.view.segments.iter().map(|one| size(one.live_nodes()));
        let rows = going
            .iter()
            .map(|one| (one.part.segment.nodes(), one.part.live));
        let first = first_turns(beam, &rows.collect::<Vec<_>>(), all.sum());
        for (one, places) in going.iter_mut().zip(first) {
            one.places = places;
        }
        let mut near = Vec::new();
        loop {
            for one in going.iter_mut().filter(|one| one.waits()) {
                one.part.segment.go_on(&mut one.stage, one.places);
                self.meet(one);
            }
            near.clear();
            let live = going.iter().map(Going::live);
            for list in live.chain([others.as_slice()]) {
                // Of those behind none is among the nearest of all.
                near.extend(list.iter().take(beam));
            }
            let reach = farthest(&mut near, beam);
            for one in going.iter_mut() {
                let own = one.own(reach);
                one.places = one.places.max(own.places(beam, near.len()));
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
        one.live.clear();
        for near in segment.near(&one.stage) {
            one.met.push(near.distance);
            if one.stage.may_go_among() && self.shows(segment, near.row) {
                one.live.push(near.distance);
            }
        }
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
        let may_go_among = stage.may_go_among();
        // A search that was held up can meet rows from after its moment.
        let is_crowded = match may_go_among {
            false => {
                let mut nearest = segment.near(&stage).take(self.want);
                nearest.any(|near| !self.shows(segment, near.row))
            }
            true => {
                let enough = self.want.max(walk.beam - walk.beam / 4);
                stage.is_exhausted() && live.len() < enough
            }
        };
        if is_crowded && may_go_among {
            let accept = |row| self.shows(segment, row);
            let accept = Accept {
                takes: &accept,
                max_distances: walk.max_visits,
            };
            let walked = segment.go_on_among(stage, walk.beam, self.want, accept);
            return self.take(segment, folded, None, walk, walked);
        }
        self.told.distances += count(stage.distances());
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
    /// have ended. Where none lives, from each of them and as many again, for live ones may lie behind. From
    /// [`TURN`] at least where there are any.
    fn places(&self, beam: usize, near: usize) -> usize {
        let nearest = near.clamp(1, beam.max(1));
        let wide = beam.saturating_mul(beam).saturating_mul(self.alive) / nearest;
        let wide = wide.isqrt().saturating_mul(self.met);
        let wide = wide.checked_div(self.alive).unwrap_or(2 * self.met);
        match self.met {
            0 => 0,
            _ => wide.max(TURN),
        }
    }
}

/// From how many rows of each graph to look in the first turn, its rows and those that live given: where one holds
/// most of `all` live rows, from about as many of it as its share of them asks for, and from few of the others.
fn first_turns(beam: usize, rows: &[(u32, u32)], all: usize) -> Vec<usize> {
    let is_large = |live: u32| size(live) * 4 >= all * LARGE_OF_FOUR;
    let has_large = rows.iter().any(|(_, live)| is_large(*live));
    let places = rows.iter().map(|(nodes, live)| match is_large(*live) {
        true => expected(beam, (*nodes, *live), all),
        false if has_large => GLANCE,
        false => TURN,
    });
    places.collect()
}

/// From how many rows of a graph a walk is likely to have to look where there are `all` live rows, but for a tenth:
/// it may be fewer, and a tenth more is not worth a turn.
fn expected(beam: usize, (nodes, live): (u32, u32), all: usize) -> usize {
    let of_all = |rows: u32| beam.saturating_mul(size(rows)) / all.max(1);
    let own = Own {
        met: of_all(nodes),
        alive: of_all(live),
    };
    (own.places(beam, beam) * 9 / 10).max(TURN)
}

/// The farthest of the nearest so many distances, in any order; infinite where there are fewer.
fn farthest(distances: &mut [f32], among: usize) -> f32 {
    match among.checked_sub(1) {
        Some(last) if last < distances.len() => {
            *distances.select_nth_unstable_by(last, f32::total_cmp).1
        }
        _ => f32::INFINITY,
    }
}

#[cfg(test)]
mod tests {
    use super::{GLANCE, Own, TURN, amid, farthest, first_turns};

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
        assert_eq!(places(1, 1, 128), TURN);
        assert_eq!(places(0, 0, 128), 0);
        assert_eq!(places(20, 20, 20), 64, "all there are");
    }

    #[test]
    fn beside_a_large_graph_small_ones_are_glanced_at() {
        let half = (1_000, 1_000);
        assert_eq!(first_turns(64, &[half, half], 2_000), [TURN, TURN]);
        let large = (9_000, 9_000);
        assert_eq!(first_turns(64, &[half, large], 10_000), [GLANCE, 54]);
        let worn = (12_000, 9_000);
        let all = [half, worn, (0, 0)];
        assert_eq!(first_turns(64, &all, 10_000), [GLANCE, 72, GLANCE]);
        assert_eq!(first_turns(64, &[large], 9_000), [57]);
        let elsewhere = first_turns(64, &[half, large], 20_000);
        assert_eq!(elsewhere, [TURN, TURN], "most rows are in no such graph");
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
        let far = |among| farthest(&mut [3.0, 1.0, 2.0], among);
        let found = [0, 1, 2, 3, 4].map(far);
        assert_eq!(found, [f32::INFINITY, 1.0, 2.0, 3.0, f32::INFINITY]);
    }
}
