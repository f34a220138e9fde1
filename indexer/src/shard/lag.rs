//! How far behind a shard is, told by heartbeats.
//!
//! A prober asks the broker for each source's end over the wire. Once the shard has applied up to
//! an end, it held at that time everything the broker had. Lag in seconds is the time since the
//! latest such moment, so it grows while the broker is silent or the shard is behind; a value
//! that was good once is never reported again.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use shoal_runtime::clock::Clock;
use shoal_schemas::Offset;

#[derive(Clone, Copy, Debug)]
struct Probe {
    asked: Moment,
    end: Offset,
}

/// A moment by both clocks: the monotonic one stands still while a machine sleeps.
#[derive(Clone, Copy, Debug)]
struct Moment {
    at: Duration,
    wall_ms: u64,
}

#[derive(Debug, Default)]
struct State {
    /// First offset not applied, by source.
    next: Vec<Offset>,
    /// The broker's newest answers not yet reached, by source.
    pending: Vec<Option<Probe>>,
    /// The newest answer at all, by source.
    newest: Vec<Option<Probe>>,
    /// When each source was last known to be applied to its end.
    caught_up_at: Vec<Option<Moment>>,
    /// An end that was not 0 was reached, whatever the source.
    has_held_something: bool,
}

/// The lag of one shard over all its sources.
#[derive(Debug)]
pub struct Lag {
    clock: Arc<dyn Clock>,
    opened_at: Duration,
    state: Mutex<State>,
}

/// A reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Records between what is applied and the broker's latest known ends.
    pub records: u64,
    /// Time since the shard last held everything the broker had; since it was opened if never.
    pub behind: Duration,
    /// Whether it has held everything at least once since it was opened.
    pub was_caught_up: bool,
    /// Whether there was something to hold then.
    pub has_held_something: bool,
    /// Wall time at which it last did, milliseconds since the Unix epoch.
    pub held_all_ms: Option<u64>,
}

impl Lag {
    /// Nothing known yet of `sources` sources.
    pub fn new(clock: Arc<dyn Clock>, sources: usize) -> Self {
        let opened_at = clock.monotonic();
        let state = State {
            next: vec![Offset::default(); sources],
            pending: vec![None; sources],
            newest: vec![None; sources],
            caught_up_at: vec![None; sources],
            has_held_something: false,
        };
        Self {
            clock,
            opened_at,
            state: Mutex::new(state),
        }
    }

    /// The moment a probe is asked; to be taken before the broker is.
    pub fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Notes that at `asked_at` or later the broker said a source ends at `end`.
    pub fn heard(&self, source: usize, asked_at: Duration, end: Offset) {
        let since = self.clock.monotonic().saturating_sub(asked_at);
        let since_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let asked = Moment {
            at: asked_at,
            wall_ms: self.clock.now_ms().saturating_sub(since_ms),
        };
        let mut state = self.lock();
        let probe = Probe { asked, end };
        if let Some(newest) = state.newest.get_mut(source) {
            *newest = Some(probe);
        }
        let reached = state.next.get(source).is_some_and(|next| *next >= end);
        if reached {
            if let Some(at) = state.caught_up_at.get_mut(source) {
                *at = Some(asked);
            }
            state.has_held_something |= end.0 > 0;
        } else if let Some(pending) = state.pending.get_mut(source) {
            // An older end is reached earlier, so it is kept until it is.
            pending.get_or_insert(probe);
        }
    }

    /// Whether the broker answered a probe that was asked after that moment.
    pub fn was_heard_after(&self, moment: Duration) -> bool {
        let state = self.lock();
        let mut newest = state.newest.iter().flatten();
        newest.any(|probe| probe.asked.at > moment)
    }

    /// Notes that everything below `next` is applied, by source.
    pub fn applied(&self, next: &[Offset]) {
        let mut state = self.lock();
        let State {
            next: known,
            pending,
            newest,
            caught_up_at,
            has_held_something,
        } = &mut *state;
        known.clear();
        known.extend_from_slice(next);
        for ((next, pending), (newest, at)) in known
            .iter()
            .zip(pending)
            .zip(newest.iter().zip(caught_up_at))
        {
            if let Some(probe) = pending.filter(|probe| probe.end <= *next) {
                *at = Some(probe.asked);
                *has_held_something |= probe.end.0 > 0;
                *pending = newest.filter(|probe| probe.end > *next);
                if pending.is_none() {
                    *at = newest.map(|probe| probe.asked);
                }
            }
        }
    }

    /// The lag now: the worst source counts.
    pub fn read(&self) -> Reading {
        let now = self.clock.monotonic();
        let state = self.lock();
        let records = state
            .next
            .iter()
            .zip(&state.newest)
            .map(|(next, newest)| newest.map_or(0, |probe| probe.end.0.saturating_sub(next.0)));
        let records = records.sum();
        let was_caught_up = state.caught_up_at.iter().all(Option::is_some);
        let oldest = state
            .caught_up_at
            .iter()
            .map(|held| held.map_or(self.opened_at, |held| held.at))
            .min();
        let has_held_something = was_caught_up && state.has_held_something;
        Reading {
            records,
            has_held_something,
            behind: now.saturating_sub(oldest.unwrap_or(self.opened_at)),
            was_caught_up,
            held_all_ms: state
                .caught_up_at
                .iter()
                .map(|held| held.map(|held| held.wall_ms))
                .min()
                .flatten(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shoal_runtime::clock::Manual;
    use shoal_schemas::Offset;

    use super::Lag;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn lag_grows_while_the_broker_is_silent_even_if_it_was_nil() {
        let clock = Manual::at(0);
        let lag = Lag::new(clock.clone(), 1);
        lag.applied(&[Offset(5)]);
        lag.heard(0, lag.now(), Offset(5));
        assert_eq!(lag.read().behind, Duration::ZERO);
        clock.advance(SECOND * 30);
        assert_eq!(lag.read().behind, SECOND * 30);
        assert!(lag.read().was_caught_up);
    }

    #[test]
    fn a_shard_that_reaches_a_probed_end_was_caught_up_when_it_was_probed() {
        let clock = Manual::at(0);
        let lag = Lag::new(clock.clone(), 1);
        lag.heard(0, lag.now(), Offset(10));
        assert!(!lag.read().was_caught_up);
        clock.advance(SECOND * 2);
        lag.heard(0, lag.now(), Offset(20));
        clock.advance(SECOND);
        assert_eq!(lag.read().records, 20);
        lag.applied(&[Offset(10)]);
        assert_eq!(lag.read().behind, SECOND * 3);
        assert_eq!(lag.read().records, 10);
        lag.applied(&[Offset(20)]);
        assert_eq!(lag.read().behind, SECOND);
    }

    #[test]
    fn only_a_probe_asked_afterwards_tells_that_the_broker_is_back() {
        let clock = Manual::at(0);
        let lag = Lag::new(clock.clone(), 2);
        assert!(!lag.was_heard_after(lag.now()));
        let asked_before = lag.now();
        clock.advance(SECOND);
        let silent_at = lag.now();
        lag.heard(1, asked_before, Offset(3));
        assert!(!lag.was_heard_after(silent_at));
        clock.advance(SECOND);
        lag.heard(1, lag.now(), Offset(3));
        assert!(lag.was_heard_after(silent_at));
    }

    #[test]
    fn the_worst_source_counts() {
        let clock = Manual::at(0);
        let lag = Lag::new(clock.clone(), 2);
        lag.applied(&[Offset(1), Offset(0)]);
        lag.heard(0, lag.now(), Offset(1));
        clock.advance(SECOND);
        lag.heard(1, lag.now(), Offset(7));
        let reading = lag.read();
        assert!(!reading.was_caught_up);
        assert_eq!((reading.records, reading.behind), (7, SECOND));
    }
}
