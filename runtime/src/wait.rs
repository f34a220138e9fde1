//! Waiting for a state with a deadline: the only way a test may wait.

use std::{thread, time::Duration};

use crate::clock::Stopwatch;

/// How long to leave the processor to others between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Looks until `state` gives something, and returns it.
///
/// # Panics
/// After `deadline`, naming `what` was waited for.
#[expect(clippy::disallowed_methods, reason = "waits for a state, not a time")]
#[track_caller]
pub fn eventually<T>(deadline: Duration, what: &str, mut state: impl FnMut() -> Option<T>) -> T {
    let watch = Stopwatch::start();
    loop {
        if let Some(found) = state() {
            return found;
        }
        assert!(
            watch.elapsed() < deadline,
            "waited {deadline:?} for: {what}"
        );
        thread::sleep(PAUSE);
    }
}
