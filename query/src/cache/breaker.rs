//! Whether a store that failed is asked again: pure.
//!
//! Three failures in a row and it is left alone for a second; then one call tries it, and each
//! failed try doubles the time, to half a minute. So a dead store costs a few calls a little time,
//! and after that nothing.

use std::time::Duration;

/// Failures in a row after which it is left alone.
const FAILURES: u32 = 3;
/// How long, the first time.
const FIRST_REST: Duration = Duration::from_secs(1);
/// How long at most.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// How a store has fared.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    /// While it is left alone.
    rest: Option<Rest>,
}

#[derive(Debug)]
struct Rest {
    until: Duration,
    length: Duration,
    /// A call tries whether it is well again.
    is_tried: bool,
}

impl Breaker {
    /// Whether to ask now. A try that never ends is made up for by the next one.
    pub(super) fn may_ask(&mut self, now: Duration) -> bool {
        match &mut self.rest {
            None => true,
            Some(rest) if rest.until <= now => {
                rest.until = now + rest.length;
                rest.is_tried = true;
                true
            }
            Some(_) => false,
        }
    }

    /// It did what it was asked. Says whether that ends a rest.
    pub(super) fn worked(&mut self) -> bool {
        self.failures = 0;
        self.rest.take().is_some()
    }

    /// It did not. Says whether that begins a rest.
    pub(super) fn failed(&mut self, now: Duration) -> bool {
        self.failures = self.failures.saturating_add(1);
        let length = match &self.rest {
            None if self.failures < FAILURES => return false,
            None => FIRST_REST,
            // Calls that began before the rest end in it; they tell nothing new.
            Some(rest) if !rest.is_tried => return false,
            Some(rest) => (rest.length * 2).min(LONGEST_REST),
        };
        let begins = self.rest.is_none();
        self.rest = Some(Rest {
            until: now + length,
            length,
            is_tried: false,
        });
        begins
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Breaker, LONGEST_REST};

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn three_failures_in_a_row_give_it_a_rest_and_one_call_tries_it_then() {
        let mut breaker = Breaker::default();
        assert!(!breaker.failed(at(0)) && !breaker.failed(at(1)));
        assert!(!breaker.worked());
        assert!(!breaker.failed(at(2)) && !breaker.failed(at(3)));
        assert!(breaker.may_ask(at(3)));
        assert!(breaker.failed(at(4)));
        assert!(!breaker.may_ask(at(1003)));
        assert!(breaker.may_ask(at(1004)), "the try");
        assert!(!breaker.may_ask(at(1004)), "one at a time");
        assert!(breaker.worked());
        assert!(breaker.may_ask(at(1005)) && breaker.may_ask(at(1005)));
    }

    #[test]
    fn rests_grow_to_their_limit_and_a_lost_try_is_made_again() {
        let mut breaker = Breaker::default();
        for _ in 0..3 {
            breaker.failed(at(0));
        }
        let mut now = at(0);
        let mut rests = Vec::new();
        for _ in 0..8 {
            let from = now;
            while !breaker.may_ask(now) {
                now += at(1);
            }
            rests.push((now - from).as_secs());
            breaker.failed(now + at(20));
            now += at(20);
        }
        assert_eq!(rests.first(), Some(&1));
        assert!(rests.is_sorted(), "{rests:?}");
        assert_eq!(rests.last(), Some(&LONGEST_REST.as_secs()));
        while !breaker.may_ask(now) {
            now += at(1);
        }
        // Nobody tells how that one ended.
        assert!(!breaker.may_ask(now));
        assert!(breaker.may_ask(now + LONGEST_REST));
    }
}
