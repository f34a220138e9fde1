//! Which region is asked first: pure. The nearest of those that answer, and not another one for
//! every millisecond.

use std::time::Duration;

/// The part that the newest probe has in a round trip.
const NEWEST: f64 = 0.3;
/// Probes in a row after which a region is left alone, or is back.
const IN_A_ROW: u32 = 2;
/// Another region takes the place of the one asked so far if it is nearer by a fifth ...
const CLEARLY_NEARER: f64 = 0.8;
/// ... and by this much.
const NEARER_BY_MS: f64 = 1.0;

/// What is known of a region.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Health {
    /// Milliseconds there and back; `None` before the first probe came back.
    pub(super) rtt_ms: Option<f64>,
    is_up: bool,
    /// Probes and calls in a row that say otherwise than `is_up`.
    against: u32,
    /// Why the latest one failed.
    pub(super) why: String,
}

impl Health {
    /// Whether the region is asked.
    pub(super) fn is_up(&self) -> bool {
        self.is_up
    }

    /// A probe came back.
    pub(super) fn answered(&mut self, took: Duration) {
        let took = took.as_secs_f64() * 1000.0;
        let is_first = self.rtt_ms.is_none();
        self.rtt_ms = Some(match self.rtt_ms {
            None => took,
            Some(known) => known + (took - known) * NEWEST,
        });
        self.why.clear();
        self.says(true, is_first);
    }

    /// A call reached it. Whether one that is left alone is back, only its probes say.
    pub(super) fn reached(&mut self) {
        if self.is_up {
            self.against = 0;
        }
    }

    /// A probe or a call did not reach it.
    pub(super) fn failed(&mut self, why: String) {
        self.why = why;
        self.says(false, false);
    }

    fn says(&mut self, is_up: bool, at_once: bool) {
        if self.is_up == is_up {
            self.against = 0;
            return;
        }
        self.against += 1;
        if self.against >= IN_A_ROW || at_once {
            self.is_up = is_up;
            self.against = 0;
        }
    }
}

/// The regions in the order in which they are asked, by their places: those that are up by their
/// distance, then the others. `current` stays first while it is up and no other is clearly nearer.
pub(super) fn order(regions: &[Health], current: Option<usize>) -> Vec<usize> {
    let far = |at: usize| {
        let rtt = regions.get(at).and_then(|health| health.rtt_ms);
        rtt.unwrap_or(f64::INFINITY)
    };
    let is_up = |at: usize| regions.get(at).is_some_and(Health::is_up);
    let mut order: Vec<usize> = (0..regions.len()).collect();
    order.sort_by(|a, b| {
        let by_health = is_up(*b).cmp(&is_up(*a));
        by_health.then_with(|| far(*a).total_cmp(&far(*b)))
    });
    let stays = |current: &usize| {
        let nearest = order.first().copied().map_or(f64::INFINITY, far);
        let is_clearly_nearer =
            nearest < far(*current) * CLEARLY_NEARER && nearest + NEARER_BY_MS < far(*current);
        is_up(*current) && !is_clearly_nearer
    };
    if let Some(current) = current.filter(stays) {
        order.retain(|at| *at != current);
        order.insert(0, current);
    }
    order
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Health, order};

    fn at(rtt_ms: u64) -> Health {
        let mut health = Health::default();
        health.answered(Duration::from_millis(rtt_ms));
        health
    }

    fn down(rtt_ms: u64) -> Health {
        let mut health = at(rtt_ms);
        for _ in 0..2 {
            health.failed("planted".into());
        }
        health
    }

    #[test]
    fn one_lost_probe_changes_nothing_two_do_and_so_back() {
        let mut health = Health::default();
        assert!(!health.is_up());
        health.answered(Duration::from_millis(10));
        assert!(health.is_up(), "the first one counts at once");
        health.failed("a".into());
        assert!(health.is_up());
        health.answered(Duration::from_millis(10));
        health.failed("b".into());
        assert!(health.is_up(), "not in a row");
        health.reached();
        health.failed("c".into());
        assert!(health.is_up(), "neither");
        health.failed("d".into());
        assert!(!health.is_up());
        health.reached();
        health.answered(Duration::from_millis(10));
        assert!(!health.is_up());
        health.answered(Duration::from_millis(10));
        assert!(health.is_up());
        assert_eq!(health.rtt_ms, Some(10.0));
    }

    #[test]
    fn a_round_trip_follows_the_probes_without_jumping() {
        let mut health = at(10);
        health.answered(Duration::from_millis(110));
        assert_eq!(health.rtt_ms, Some(40.0));
    }

    #[test]
    fn the_nearest_that_is_up_comes_first_and_those_that_are_down_last() {
        let regions = [at(80), down(1), at(20), Health::default()];
        assert_eq!(order(&regions, None), [2, 0, 1, 3]);
        assert_eq!(order(&[], None), Vec::<usize>::new());
        let all_down = [down(80), down(5)];
        assert_eq!(order(&all_down, Some(0)), [1, 0]);
    }

    #[test]
    fn the_one_asked_so_far_stays_until_another_is_clearly_nearer() {
        assert_eq!(order(&[at(20), at(17)], Some(0)), [0, 1]);
        assert_eq!(order(&[at(20), at(15)], Some(0)), [1, 0]);
        // A fifth of next to nothing is no reason.
        let close = [at(2), at(1)];
        assert_eq!(order(&close, Some(0)), [0, 1]);
        assert_eq!(order(&[down(20), at(200)], Some(0)), [1, 0]);
    }
}
