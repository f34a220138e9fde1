//! What a search did, and how long each step took, where somebody asked.

use shoal_runtime::clock::Stopwatch;

/// What a search did, for `explain`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Graphs walked without a filter.
    pub walked: u32,
    /// Graphs walked with one.
    pub filtered: u32,
    /// Segments whose matching rows were each looked at.
    pub scanned: u32,
    /// Rows the filter was thought to match, at most.
    pub estimated: u64,
    /// Rows that matched, whether they live or not.
    pub matches: Option<u64>,
    /// Distances computed, as far as graphs tell.
    pub distances: u64,
    /// Microseconds choosing plans, with the filter's row sets.
    pub plan_us: u64,
    /// Microseconds finding candidates.
    pub search_us: u64,
    /// Microseconds computing their exact distances.
    pub rescore_us: u64,
}

/// Measures a step; nothing where nobody asked, for a search of few rows looks at the clock about as long as at
/// some of them.
#[derive(Clone, Copy)]
pub(crate) struct Timer(Option<Stopwatch>);

impl Timer {
    pub(crate) fn start_if(is_timed: bool) -> Self {
        Self(is_timed.then(Stopwatch::start))
    }

    /// Microseconds since it was started; 0 where nobody asked.
    pub(crate) fn micros(self) -> u64 {
        let elapsed = self.0.map(|watch| watch.elapsed().as_micros());
        u64::try_from(elapsed.unwrap_or_default()).unwrap_or(u64::MAX)
    }
}
