//! How a search looks through one segment: scan the rows it may answer with, or walk the graph.
//!
//! A scan measures every such row, and is exact. A walk goes through the graph and keeps these rows
//! only, so that it has to go on until a beam of them was met: the fewer there are, whether because
//! of a filter or because rows have ended, the further. Which is cheaper is a small sum over
//! [`Costs`], whose numbers a benchmark can fit anew.
//!
//! The sum takes the rows for spread evenly. Where they are not, and the query is far from them, a
//! walk takes longer. Once it has cost as much as the scan it is given up ([`Walk::max_visits`]), and
//! the answer is the scan, as it is for one that ends with too few ([`Walk::is_starved`]): a search
//! never answers with few hits where there are many, and costs twice the scan at most.

/// What the steps of a search cost, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// Of a scanned row, besides its components: fetching it and keeping the nearest.
    pub scan_row_ns: f64,
    /// Of a byte of a vector, when it is measured.
    pub byte_ns: f64,
    /// Of a row that a walk visits, besides its components: its neighbours and the beam.
    pub visit_ns: f64,
    /// More, if the row is in no cache.
    pub miss_ns: f64,
    /// Bytes of rows and neighbours that caches hold.
    pub cache_bytes: f64,
    /// Bytes of a row's neighbours.
    pub edges_bytes: f64,
    /// Rows that a walk visits for a place of the beam, for each doubling of the rows.
    pub visits_a_doubling: f64,
    /// Less that many, for small graphs are all near.
    pub visits_less: f64,
    /// A walk among some rows only visits 1 / their share to this power as many.
    pub share_power: f64,
    /// Of a row that a scan passes over: 64 of them are looked at together.
    pub look_ns: f64,
}

/// Fitted to walks and scans of 384 components. To fit them anew, measure these:
///
/// - a scanned row of one-byte components takes 10 to 25 ns (20 here), of which the components
///   are 11;
/// - a walk with beam 64 visits about 1,500 of 20 thousand rows and 2,500 of a million, from
///   which follow 2.8 visits for a place of the beam and a doubling, less 16;
/// - a filtered walk of 20 thousand word vectors by usearch took 1.8, 2.7, 5.9, 8.9 and 17 times
///   the time of an unfiltered one for shares of 1/2, 1/4, 1/10, 1/20 and 1/50: the share to the
///   power of -0.75, for the way to the query is walked once whatever the share. Where the
///   matches were the vectors near some other one it took at most half as long again;
/// - recall@10 of these walks was 0.994 to 1.000 with beam 64, rising with a falling share;
/// - scan and walk cost the same at a share of 1/4 of 20 thousand rows, which the caches hold,
///   and at 8 % of a million, which they do not: from these `visit_ns` and `miss_ns` follow.
pub const COSTS: Costs = Costs {
    scan_row_ns: 8.5,
    byte_ns: 0.03,
    visit_ns: 12.0,
    miss_ns: 78.0,
    cache_bytes: 32.0 * 1024.0 * 1024.0,
    edges_bytes: 130.0,
    visits_a_doubling: 2.8,
    visits_less: 16.0,
    share_power: 0.75,
    look_ns: 0.1,
};

/// What a segment holds for one search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the graph, ended ones too.
    pub rows: usize,
    /// Rows that a scan has to look at to find those that match.
    pub looked: usize,
    /// Rows of it that the search may answer with.
    pub live: usize,
    /// Of these, how many match.
    pub matches: usize,
    /// Bytes of a vector as it is measured.
    pub vector_bytes: usize,
}

/// How to look through a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing matches.
    Skip,
    /// Measure every match.
    Scan,
    /// Walk the graph.
    Walk(Walk),
}

/// A walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// How many rows to keep.
    pub beam: usize,
    /// Whether rows have to be asked for the filter at all: not if every live one matches.
    pub is_filtered: bool,
    /// After visiting so many rows the scan would have been cheaper.
    pub max_visits: usize,
    /// Accepted rows below which it is starved.
    pub enough: usize,
}

impl Walk {
    /// Whether the walk's answer is to be dropped for a scan's: it met fewer matches than the
    /// search asked for, though there are as many.
    pub fn is_starved(&self, accepted: usize) -> bool {
        self.is_filtered && accepted < self.enough
    }
}

impl Plan {
    /// Decides for a search of the `k` nearest with a beam. Without a filter all live rows match.
    pub fn new(segment: Segment, k: usize, beam: usize, costs: &Costs) -> Self {
        let beam = beam.max(k).max(1);
        let Segment { live, matches, .. } = segment;
        if matches == 0 {
            return Self::Skip;
        }
        let is_filtered = matches < live;
        let share = float(matches) / float(segment.rows.max(matches));
        let expected = costs.visits(segment.rows, beam, share);
        let walk_ns = expected * costs.visit(segment);
        let passed = segment.looked.saturating_sub(matches);
        let scan_ns = float(matches) * costs.scan(segment) + float(passed) * costs.look_ns;
        // A walk cannot fill its beam from fewer rows than that: it would visit every row.
        if matches <= beam || scan_ns <= walk_ns {
            return Self::Scan;
        }
        Self::Walk(Walk {
            beam,
            is_filtered,
            max_visits: whole(scan_ns / costs.visit(segment)),
            enough: beam.min(matches),
        })
    }
}

impl Costs {
    fn scan(&self, segment: Segment) -> f64 {
        self.scan_row_ns + self.byte_ns * float(segment.vector_bytes)
    }

    fn visit(&self, segment: Segment) -> f64 {
        let row_bytes = float(segment.vector_bytes) + self.edges_bytes;
        let cached = self.cache_bytes / (float(segment.rows.max(1)) * row_bytes);
        let miss_ns = self.miss_ns * (1.0 - cached.min(1.0));
        self.visit_ns + self.byte_ns * float(segment.vector_bytes) + miss_ns
    }

    /// Rows that a walk visits until its beam is full of rows of which there is this share.
    fn visits(&self, rows: usize, beam: usize, share: f64) -> f64 {
        let rows = float(rows.max(2));
        let a_place = (self.visits_a_doubling * rows.log2() - self.visits_less).max(1.0);
        (float(beam) * a_place * share.powf(-self.share_power)).min(rows)
    }
}

/// Row numbers have 32 bits, so no count of rows is more.
fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Rounded up.
fn whole(count: f64) -> usize {
    #[expect(
        clippy::as_conversions,
        reason = "rounds and saturates, which is what is wanted of an estimate"
    )]
    let whole = count.ceil() as usize;
    whole
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{COSTS, Costs, Plan, Segment, Walk};

    fn segment(rows: usize, matches: usize) -> Segment {
        Segment {
            rows,
            looked: matches,
            live: rows,
            matches,
            vector_bytes: 384,
        }
    }

    fn plan(rows: usize, matches: usize, beam: usize) -> Plan {
        Plan::new(segment(rows, matches), 10, beam, &COSTS)
    }

    fn is_walk(plan: Plan) -> bool {
        matches!(plan, Plan::Walk(_))
    }

    #[test]
    fn few_matches_are_scanned_and_many_are_walked() {
        assert_eq!(plan(20_000, 0, 64), Plan::Skip);
        assert_eq!(plan(20_000, 2_000, 64), Plan::Scan);
        assert!(is_walk(plan(20_000, 10_000, 64)));
        assert_eq!(plan(1_000_000, 30_000, 64), Plan::Scan);
        assert!(is_walk(plan(1_000_000, 150_000, 64)));
    }

    #[test]
    fn where_all_match_the_graph_is_walked_as_without_a_filter() {
        let Plan::Walk(walk) = plan(100_000, 100_000, 64) else {
            panic!("a hundred thousand rows are not scanned");
        };
        assert_eq!((walk.beam, walk.is_filtered), (64, false));
        assert!(!walk.is_starved(3));
    }

    #[test]
    fn a_walk_that_met_too_few_is_starved() {
        let Plan::Walk(walk) = plan(100_000, 50_000, 64) else {
            panic!("half of a hundred thousand rows are not scanned");
        };
        assert!(walk.is_starved(63));
        assert!(!walk.is_starved(64));
    }

    #[test]
    fn rows_that_a_scan_only_passes_over_count_too() {
        // All live rows are wanted, and most have ended.
        let worn = |looked| Segment {
            rows: 1_000_000,
            looked,
            live: 20_000,
            matches: 20_000,
            vector_bytes: 384,
        };
        assert_eq!(Plan::new(worn(20_000), 10, 64, &COSTS), Plan::Scan);
        let Plan::Walk(walk) = Plan::new(worn(100_000_000), 10, 64, &COSTS) else {
            panic!("passing over so many rows is dearer than the walk");
        };
        assert!(!walk.is_filtered);
    }

    #[test]
    fn a_beam_that_holds_every_match_is_no_walk_however_cheap_that_is() {
        let costs = Costs {
            visit_ns: 0.0,
            ..COSTS
        };
        assert_eq!(Plan::new(segment(70, 64), 10, 64, &costs), Plan::Scan);
    }

    proptest! {
        #[test]
        fn more_matches_never_turn_a_walk_into_a_scan(
            rows in 1_000usize..2_000_000,
            at in 0usize..99,
            beam in 10usize..400,
        ) {
            let fewer = plan(rows, rows * at / 100, beam);
            let more = plan(rows, rows * (at + 1) / 100, beam);
            prop_assert!(!is_walk(fewer) || is_walk(more), "{fewer:?} {more:?}");
        }

        #[test]
        fn a_walk_is_wide_enough_and_may_go_as_far_as_it_is_expected_to(
            rows in 1usize..2_000_000,
            dead in 0usize..100,
            share in 0usize..100,
            k in 1usize..500,
            beam in 0usize..500,
            vector_bytes in 1usize..8_192,
        ) {
            let live = rows - rows * dead / 100;
            let matches = live * share / 100;
            let segment = Segment { rows, looked: matches, live, matches, vector_bytes };
            match Plan::new(segment, k, beam, &COSTS) {
                Plan::Skip => prop_assert_eq!(matches, 0),
                Plan::Scan => prop_assert!(matches > 0),
                Plan::Walk(Walk { beam: wide, max_visits, enough, .. }) => {
                    prop_assert!(wide >= beam.max(k) && wide < matches);
                    prop_assert!(enough == beam.max(k));
                    prop_assert!(max_visits >= wide);
                }
            }
        }
    }
}
