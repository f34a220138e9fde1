//! Where a search runs: on the thread that read its request, or on one that may block.
//!
//! Handing work to another thread and back takes two wake-ups, about as much as half a short
//! search. So a short one runs where it is. What is short is measured, not guessed: a shard notes
//! how long its walks take for each point they look for. A shard that nothing is known of, a walk
//! that is expected to take longer than [`SHORT`], and whatever scans or reads files goes to a
//! thread that may block. Those are measured too, so a shard comes back once it is quick again.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::shard::search::Ask;

/// The longest that work is expected to take on a thread that others wait for.
const SHORT: Duration = Duration::from_micros(500);
/// No walk was measured yet.
const UNKNOWN: u64 = u64::MAX;
/// The part that the newest walk has in what is expected: one of so many.
const MEMORY: u64 = 8;

/// How long a shard's walks take.
#[derive(Debug)]
pub struct Pace {
    /// Nanoseconds for each point looked for.
    nanos: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            nanos: AtomicU64::new(UNKNOWN),
        }
    }
}

impl Pace {
    /// Whether a walk of that many points is short enough for a thread that others wait for.
    pub fn is_short(&self, points: u64) -> bool {
        let nanos = self.nanos.load(Ordering::Relaxed);
        u128::from(nanos.saturating_mul(points)) <= SHORT.as_nanos()
    }

    /// Notes how long a walk took. Of two at the same time one may be lost, to no harm.
    pub fn took(&self, points: u64, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(UNKNOWN - 1);
        let seen = nanos / points.max(1);
        let next = match self.nanos.load(Ordering::Relaxed) {
            UNKNOWN => seen,
            known => known - known / MEMORY + seen / MEMORY,
        };
        self.nanos.store(next.min(UNKNOWN - 1), Ordering::Relaxed);
    }
}

/// How many points these queries look for, if all they do is walk graphs in memory.
pub(super) fn walked(asks: &[Ask], own_beam: usize) -> Option<u64> {
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
        walks.then(|| u64::try_from(beam.unwrap_or(own_beam).max(*k)).unwrap_or(UNKNOWN))
    };
    asks.iter()
        .try_fold(0u64, |sum, ask| Some(sum.saturating_add(one(ask)?)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Pace, walked};
    use crate::shard::search::Ask;

    const QUICK: Duration = Duration::from_micros(100);

    fn ask() -> Ask {
        Ask::nearest(Vec::new(), 10)
    }

    #[test]
    fn nothing_is_short_before_it_was_measured() {
        let pace = Pace::default();
        assert!(!pace.is_short(1));
        pace.took(96, QUICK);
        assert!(pace.is_short(96));
        assert!(!pace.is_short(96 * 6));
    }

    #[test]
    fn a_shard_that_slows_down_leaves_and_comes_back() {
        let pace = Pace::default();
        pace.took(96, QUICK);
        let slow = (0..).find(|_| {
            pace.took(96, QUICK * 50);
            !pace.is_short(96)
        });
        assert_eq!(slow, Some(0));
        let quick = (0..1000).find(|_| {
            pace.took(96, QUICK);
            pace.is_short(96)
        });
        assert!(quick.is_some_and(|walks| walks < 20), "{quick:?}");
    }

    #[test]
    fn what_scans_or_reads_files_is_no_walk() {
        assert_eq!(walked(&[ask(), ask()], 96), Some(192));
        let wide = Ask {
            beam: Some(200),
            ..ask()
        };
        let many = Ask { k: 300, ..ask() };
        assert_eq!(walked(&[wide, many], 96), Some(500));
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
            assert_eq!(walked(&[ask(), other], 96), None);
        }
    }

    #[test]
    fn numbers_beyond_all_measure_do_not_wrap() {
        let pace = Pace::default();
        pace.took(0, Duration::MAX);
        assert!(!pace.is_short(u64::MAX));
        pace.took(u64::MAX, Duration::ZERO);
        assert!(!pace.is_short(1));
    }
}
