//! Where a search runs: on the thread that read its request, or on one that may block.
//!
//! Handing work to another thread and back takes two wake-ups: about as much as half a short search, and several times
//! that where processors are busy and each wake-up waits for its turn. So a short one runs where it is. What is short is
//! measured, not guessed: a shard notes how long its walks take for each point they look for, and goes by
//! the quickest of a few. That is the walk itself: those beside it may have been held up by whatever else
//! the processors had to do, and on another thread they would have been, too. A shard that nothing is
//! known of, a walk that is expected to take too long, and whatever scans or reads files goes to a
//! thread that may block. Those are measured too, so a shard comes back once it is quick again.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use shoal_schemas::{IndexKind, IndexParameters};

use crate::shard::search::Ask;

/// The longest that work is expected to take on a thread that others wait for: where processors are busy, handing it over
/// and back makes its caller wait longer than that.
const SHORT: Duration = Duration::from_millis(1);
/// The same of work on several shards, which several threads could do at a time.
const SHORT_TOGETHER: Duration = Duration::from_micros(500);
/// No walk was measured yet.
const UNKNOWN: u64 = u64::MAX;
/// So many walks one after the other are looked at together.
const TOGETHER: u64 = 8;

/// How long a shard's walks take: nanoseconds for each point looked for.
#[derive(Debug)]
pub struct Pace {
    /// The quickest walk of those that were last looked at together.
    last: AtomicU64,
    /// The quickest since.
    since: AtomicU64,
    walks: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            last: AtomicU64::new(UNKNOWN),
            since: AtomicU64::new(UNKNOWN),
            walks: AtomicU64::new(0),
        }
    }
}

impl Pace {
    /// Whether walks of that many points, in each of so many shards, are short enough for a thread that others wait
    /// for.
    pub fn is_short(&self, points: u64, shards: u64) -> bool {
        let nanos = match self.last.load(Ordering::Relaxed) {
            UNKNOWN => self.since.load(Ordering::Relaxed),
            known => known,
        };
        let limit = if shards > 1 { SHORT_TOGETHER } else { SHORT };
        u128::from(nanos.saturating_mul(points).saturating_mul(shards)) <= limit.as_nanos()
    }

    /// Notes how long a walk took. Of two at the same time one may be lost, to no harm.
    pub fn took(&self, points: u64, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(UNKNOWN);
        let seen = (nanos / points.max(1)).min(UNKNOWN - 1);
        self.since.fetch_min(seen, Ordering::Relaxed);
        if self.walks.fetch_add(1, Ordering::Relaxed) % TOGETHER == TOGETHER - 1 {
            let quickest = self.since.swap(UNKNOWN, Ordering::Relaxed);
            self.last.store(quickest, Ordering::Relaxed);
        }
    }
}

/// How many points these queries look for, if all they do is go through codes in memory. One that looks at every
/// row takes as long whatever it looks for, and counts as one.
pub(super) fn walked(asks: &[Ask], index: &IndexParameters) -> Option<u64> {
    let own_beam = usize::from(index.ef_search);
    let one = |ask: &Ask| {
        // Every field by name: a new one has to say whether it makes a walk longer.
        let Ask {
            vector: _,
            k,
            rescore: _,
            beam,
            with_vector,
            with_payload,
            exact,
            filter,
            tenant,
            after,
            group_by,
            max_distance: _,
            selection: _,
            explain: _,
        } = ask;
        let scans = *exact || filter.is_some() || tenant.is_some();
        let asks_again = after.is_some() || group_by.is_some();
        let walks = !(*with_vector || *with_payload || scans || asks_again);
        let points = match index.kind {
            IndexKind::Hnsw => beam.unwrap_or(own_beam).max(*k),
            IndexKind::Flat => 1,
        };
        walks.then(|| u64::try_from(points).unwrap_or(UNKNOWN))
    };
    asks.iter()
        .try_fold(0u64, |sum, ask| Some(sum.saturating_add(one(ask)?)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shoal_schemas::{IndexKind, IndexParameters};

    use super::{Pace, walked};
    use crate::shard::search::Ask;

    const QUICK: Duration = Duration::from_micros(100);

    fn ask() -> Ask {
        Ask::nearest(Vec::new(), 10)
    }

    #[test]
    fn nothing_is_short_before_it_was_measured() {
        let pace = Pace::default();
        assert!(!pace.is_short(1, 1));
        pace.took(96, QUICK);
        assert!(pace.is_short(96 * 9, 1));
        assert!(!pace.is_short(96 * 11, 1));
    }

    #[test]
    fn shards_that_could_be_searched_beside_each_other_have_to_be_shorter() {
        let pace = Pace::default();
        pace.took(96, QUICK);
        assert!(pace.is_short(96, 4));
        assert!(!pace.is_short(96, 6));
    }

    #[test]
    fn a_shard_that_slows_down_leaves_and_comes_back() {
        let pace = Pace::default();
        let walks_until = |is_short, time| {
            let mut walks = 0;
            while pace.is_short(96, 1) != is_short {
                pace.took(96, time);
                walks += 1;
                assert!(walks < 20, "it does not notice");
            }
            walks
        };
        assert_eq!(walks_until(true, QUICK), 1);
        assert!(walks_until(false, QUICK * 50) > 1);
        assert!(walks_until(true, QUICK) > 1);
    }

    #[test]
    fn walks_that_were_held_up_do_not_make_a_shard_slow() {
        let pace = Pace::default();
        for walk in 0..100 {
            let is_held_up = walk % 4 != 0;
            pace.took(96, if is_held_up { QUICK * 50 } else { QUICK });
            assert!(pace.is_short(96, 1), "after walk {walk}");
        }
    }

    #[test]
    fn what_scans_or_reads_files_is_no_walk() {
        let graph = IndexParameters::default();
        let flat = graph.of_kind(IndexKind::Flat);
        assert_eq!(walked(&[ask(), ask()], &graph), Some(192));
        let wide = Ask {
            beam: Some(200),
            ..ask()
        };
        let many = Ask { k: 300, ..ask() };
        assert_eq!(walked(&[wide.clone(), many.clone()], &graph), Some(500));
        assert_eq!(walked(&[wide, many], &flat), Some(2));
        for other in [
            Ask {
                exact: true,
                ..ask()
            },
            Ask {
                with_vector: true,
                ..ask()
            },
            Ask {
                with_payload: true,
                ..ask()
            },
        ] {
            for index in [graph, flat] {
                assert_eq!(walked(&[ask(), other.clone()], &index), None);
            }
        }
    }

    #[test]
    fn numbers_beyond_all_measure_do_not_wrap() {
        let slow = Pace::default();
        slow.took(0, Duration::MAX);
        assert!(!slow.is_short(1, 1));
        assert!(!slow.is_short(u64::MAX, u64::MAX));
        let quick = Pace::default();
        quick.took(u64::MAX, Duration::from_nanos(1));
        assert!(quick.is_short(u64::MAX, u64::MAX));
    }
}
