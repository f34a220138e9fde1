//! What a node of a ring has heard of the others, and whether that is enough to decide by.
//!
//! A node that stood still, or had no broker, knows only what was so before. Others may have counted it out and taken its
//! shards, and what its reader had fetched looks like news when it goes on. So it begins again: it asks the broker where
//! the control topic ends, reads that far, and, if it stood still, hears its own word that it lives: then the others
//! have heard it, too. Until it has decided again by that, it claims nothing.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use shoal_schemas::Offset;
use shoal_topic::control::ControlState;

/// A broker that was not heard for so long may have told others what it did not tell this node.
pub(super) const SILENCE: Duration = Duration::from_secs(3);

/// Whether a node that looked last at `before` stood still for so long that others may count it out: they
/// do after a lease, counted from a word that is up to a fifth of it old.
fn stood_still(before: Duration, lease: Duration, now: Duration) -> bool {
    now.saturating_sub(before) > lease / 2
}

/// The ears of the thread that decides.
#[derive(Debug)]
pub(super) struct Ears {
    lease: Duration,
    /// Since when everything is heard; `None` while it is not.
    since: Option<Duration>,
    looked_at: Option<Duration>,
    /// Where the control topic ended when it was heard again.
    end: Option<Offset>,
    /// It stood still, and has not heard its own word since.
    was_away: bool,
}

impl Ears {
    pub(super) fn new(lease: Duration) -> Self {
        Self {
            lease,
            since: None,
            looked_at: None,
            end: None,
            was_away: false,
        }
    }

    /// Since when the node of that name hears everything others say; `None` while it does not. To be called again
    /// and again. `end` asks the broker where the control topic ends.
    pub(super) fn look(
        &mut self,
        state: &ControlState,
        name: &str,
        now: Duration,
        end: impl FnOnce() -> Option<Offset>,
    ) -> Option<Duration> {
        let before = self.looked_at.replace(now);
        if before.is_some_and(|before| stood_still(before, self.lease, now)) {
            self.forget();
            self.was_away = true;
        }
        let is_heard = |heard| now.saturating_sub(heard) <= SILENCE;
        if !state.caught_up_at.is_some_and(is_heard) {
            self.forget();
            return None;
        }
        let since = match self.since {
            Some(since) => since,
            None => {
                self.end = self.end.or_else(end);
                if state.next_offset < self.end? {
                    return None;
                }
                *self.since.insert(now)
            }
        };
        if self.was_away {
            let own = state.nodes.get(name);
            if own.is_none_or(|(_, heard_at)| *heard_at <= since) {
                return None;
            }
            self.was_away = false;
        }
        Some(since)
    }

    fn forget(&mut self) {
        self.since = None;
        self.end = None;
    }
}

/// What was decided by, for threads that act on it.
#[derive(Debug, Default)]
pub(super) struct Listening(Mutex<Option<Decided>>);

#[derive(Clone, Copy, Debug)]
struct Decided {
    since: Duration,
    looked_at: Duration,
}

impl Listening {
    /// It was decided at `now` by what is heard since then.
    pub(super) fn decided(&self, since: Duration, now: Duration) {
        let looked_at = now;
        *self.lock() = Some(Decided { since, looked_at });
    }

    /// What was decided holds no longer.
    pub(super) fn undecided(&self) {
        *self.lock() = None;
    }

    /// Since when the node hears what it has decided by; `None` if it has to decide first, also where that
    /// has not been noticed yet.
    pub(super) fn since(&self, lease: Duration, now: Duration) -> Option<Duration> {
        let decided = (*self.lock())?;
        let is_old = stood_still(decided.looked_at, lease, now);
        (!is_old).then_some(decided.since)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Decided>> {
        self.0.lock().expect("nothing panics under this lock")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shoal_schemas::{Offset, control::Announcement};
    use shoal_topic::control::ControlState;

    use super::{Ears, Listening};

    const LEASE: Duration = Duration::from_secs(10);

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// What `a` knows that was last heard at `heard`, when it had read up to `next`.
    fn knows(own_heard: u64, heard: u64, next: u64) -> ControlState {
        let mut state = ControlState::default();
        let announced = Announcement {
            address: "a:1".into(),
            set: None,
            labels: [].into(),
            weight: 1,
            lease_ms: 10_000,
            beat: 1,
        };
        let own = (announced, at(own_heard));
        state.nodes.insert("a".into(), own);
        state.caught_up_at = Some(at(heard));
        state.next_offset = Offset(next);
        state
    }

    fn ends(at: u64) -> impl FnOnce() -> Option<Offset> {
        move || Some(Offset(at))
    }

    fn unasked() -> Option<Offset> {
        panic!("the end is known")
    }

    #[test]
    fn a_node_that_begins_hears_once_it_has_read_to_the_end_that_the_broker_tells() {
        let mut ears = Ears::new(LEASE);
        let look = |ears: &mut Ears, state: &ControlState, now, end: Option<u64>| {
            ears.look(state, "a", at(now), || end.map(Offset))
        };
        assert_eq!(look(&mut ears, &ControlState::default(), 1, Some(7)), None);
        assert_eq!(look(&mut ears, &knows(2, 2, 5), 2, None), None, "no answer");
        assert_eq!(look(&mut ears, &knows(2, 2, 5), 3, Some(7)), None);
        assert_eq!(ears.look(&knows(2, 2, 6), "a", at(4), unasked), None);
        assert_eq!(ears.look(&knows(2, 5, 7), "a", at(5), unasked), Some(at(5)));
        assert_eq!(ears.look(&knows(6, 6, 9), "a", at(6), unasked), Some(at(5)));
    }

    #[test]
    fn a_silence_in_which_nobody_could_be_heard_begins_anew() {
        let mut ears = Ears::new(LEASE);
        assert_eq!(ears.look(&knows(1, 1, 5), "a", at(1), ends(5)), Some(at(1)));
        // The broker is away for a minute; the node itself goes on.
        for now in (4..=64).step_by(4) {
            let told = ears.look(&knows(1, 1, 5), "a", at(now), unasked);
            assert_eq!(told, (now <= 4).then_some(at(1)), "{now}");
        }
        assert_eq!(ears.look(&knows(1, 66, 5), "a", at(66), ends(6)), None);
        assert_eq!(
            ears.look(&knows(1, 67, 6), "a", at(67), unasked),
            Some(at(67))
        );
    }

    #[test]
    fn a_node_that_stood_still_hears_nothing_before_it_has_heard_itself_behind_the_end() {
        let mut ears = Ears::new(LEASE);
        assert_eq!(ears.look(&knows(1, 1, 5), "a", at(1), ends(5)), Some(at(1)));
        // It goes on at 30, and its reader has just told an end that it had fetched at 2.
        assert_eq!(ears.look(&knows(1, 30, 5), "a", at(30), ends(9)), None);
        // Its own word of before, read late, is none.
        assert_eq!(ears.look(&knows(31, 31, 8), "a", at(31), unasked), None);
        assert_eq!(ears.look(&knows(31, 32, 9), "a", at(32), unasked), None);
        assert_eq!(
            ears.look(&knows(33, 33, 10), "a", at(33), unasked),
            Some(at(32))
        );
        assert_eq!(
            ears.look(&knows(33, 34, 10), "a", at(34), unasked),
            Some(at(32))
        );
    }

    #[test]
    fn what_was_decided_before_a_node_stood_still_is_not_acted_on_even_before_that_is_noticed() {
        let listening = Listening::default();
        assert_eq!(listening.since(LEASE, at(1)), None);
        listening.decided(at(1), at(2));
        assert_eq!(listening.since(LEASE, at(7)), Some(at(1)));
        assert_eq!(listening.since(LEASE, at(8)), None);
        listening.decided(at(1), at(8));
        assert_eq!(listening.since(LEASE, at(9)), Some(at(1)));
        listening.undecided();
        assert_eq!(listening.since(LEASE, at(9)), None);
    }
}
