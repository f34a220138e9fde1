//! The shards of one question that have no answer yet, and what becomes of each failure: pure.

use shoal_schemas::Partition;

use crate::{client::Outcome, coverage::Miss, shard_map::Replica};

/// Most nodes that are asked for one shard.
const TRIES: usize = 3;

/// A shard without an answer.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) shard: Partition,
    /// Addresses that were asked.
    pub(super) tried: Vec<String>,
    /// How many of them have not said anything yet.
    under_way: usize,
    map: Map,
    /// Why the last of them did not answer.
    miss: Option<Miss>,
}

/// Whether it was waited for a map that names somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Map {
    Unneeded,
    WaitedFor,
    Seen,
}

/// What to do about a shard that a node did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Ask another replica.
    AskElsewhere,
    /// Another replica that was asked may still answer.
    Wait,
    /// Wait for a map that names another replica.
    WaitForMap,
    /// Nothing is left to try.
    GiveUp,
}

/// The shards without an answer.
#[derive(Debug, Default)]
pub(super) struct Opens(Vec<Open>);

impl Opens {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, shard: Partition) {
        self.0.push(Open {
            shard,
            tried: Vec::new(),
            under_way: 0,
            map: Map::Unneeded,
            miss: None,
        });
    }

    pub(super) fn find(&self, shard: Partition) -> Option<&Open> {
        self.0.iter().find(|open| open.shard == shard)
    }

    pub(super) fn find_mut(&mut self, shard: Partition) -> Option<&mut Open> {
        self.0.iter_mut().find(|open| open.shard == shard)
    }

    /// Whether a replica may be asked for a shard: it is open and was not asked there before.
    pub(super) fn may_ask(&self, shard: Partition, replica: &Replica) -> bool {
        self.find(shard).is_some_and(|open| {
            open.tried.len() < TRIES && !open.tried.contains(&replica.claim.address)
        })
    }

    /// A shard has its answer, or will have none: then why.
    pub(super) fn close(&mut self, shard: Partition) -> Option<Miss> {
        let at = self.0.iter().position(|open| open.shard == shard)?;
        self.0.swap_remove(at).miss
    }
}

impl Open {
    /// A node is asked for it.
    pub(super) fn asked(&mut self, address: &str) {
        self.tried.push(address.to_owned());
        self.under_way += 1;
    }

    /// A node that was asked did not answer. `has_other` says whether a replica is left to ask.
    pub(super) fn missed(&mut self, miss: Miss, has_other: bool) -> Next {
        self.under_way = self.under_way.saturating_sub(1);
        let outcome = miss.outcome;
        self.miss = Some(miss);
        if matches!(outcome, Outcome::Refused | Outcome::Unsupported) {
            return Next::GiveUp;
        }
        let is_retryable = outcome.is_retryable();
        if is_retryable && has_other {
            return Next::AskElsewhere;
        }
        if self.under_way > 0 {
            return Next::Wait;
        }
        // Only a node that answers knows that a shard has moved; a dead one's shards move in
        // seconds, when its seat in the group is given away, so there is nothing to wait for.
        if outcome == Outcome::Moved && self.map == Map::Unneeded {
            self.map = Map::WaitedFor;
            return Next::WaitForMap;
        }
        Next::GiveUp
    }

    /// The map that was waited for has come, or its time is over.
    pub(super) fn saw_map(&mut self, has_other: bool) -> Next {
        self.map = Map::Seen;
        match has_other {
            true => Next::AskElsewhere,
            false if self.under_way > 0 => Next::Wait,
            false => Next::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use shoal_schemas::{Offset, Partition, control::Claim};

    use super::{Next, Opens};
    use crate::{client::Outcome, coverage::Miss, shard_map::Replica};

    const SHARD: Partition = Partition(0);

    fn opens() -> Opens {
        let mut opens = Opens::default();
        opens.add(SHARD);
        opens
    }

    fn miss(outcome: Outcome) -> Miss {
        Miss {
            shard: SHARD,
            node: "a".into(),
            outcome,
            why: "planted".into(),
        }
    }

    /// What is done after these failures of as many nodes, the last with or without another left.
    fn after(outcomes: &[Outcome], has_other: bool) -> Next {
        let mut opens = opens();
        let open = opens.find_mut(SHARD).unwrap();
        for (at, _) in outcomes.iter().enumerate() {
            open.asked(&format!("a{at}:1"));
        }
        let said = outcomes
            .iter()
            .map(|outcome| open.missed(miss(*outcome), has_other));
        said.last().unwrap()
    }

    #[test]
    fn only_what_another_replica_may_do_better_is_asked_elsewhere() {
        for outcome in [
            Outcome::Unreachable,
            Outcome::Moved,
            Outcome::Busy,
            Outcome::Behind,
            Outcome::Damaged,
        ] {
            assert_eq!(after(&[outcome], true), Next::AskElsewhere, "{outcome:?}");
        }
        for outcome in [
            Outcome::Refused,
            Outcome::Unsupported,
            Outcome::TimedOut,
            Outcome::Failed,
        ] {
            assert_eq!(after(&[outcome], true), Next::GiveUp, "{outcome:?}");
        }
    }

    #[test]
    fn a_shard_is_given_up_once_nobody_may_answer_any_more() {
        assert_eq!(after(&[Outcome::Unreachable], false), Next::GiveUp);
        let mut opens = opens();
        let open = opens.find_mut(SHARD).unwrap();
        open.asked("a:1");
        open.asked("b:1");
        assert_eq!(open.missed(miss(Outcome::Failed), false), Next::Wait);
        assert_eq!(open.missed(miss(Outcome::Failed), false), Next::GiveUp);
        let why = opens.close(SHARD).unwrap();
        assert_eq!(why.outcome, Outcome::Failed);
        assert!(opens.is_empty());
    }

    #[test]
    fn a_shard_that_moved_is_looked_for_once() {
        let mut opens = opens();
        let open = opens.find_mut(SHARD).unwrap();
        open.asked("a:1");
        assert_eq!(open.missed(miss(Outcome::Moved), false), Next::WaitForMap);
        assert_eq!(open.saw_map(true), Next::AskElsewhere);
        open.asked("b:1");
        assert_eq!(open.missed(miss(Outcome::Moved), false), Next::GiveUp);
        assert_eq!(open.saw_map(false), Next::GiveUp);
    }

    #[test]
    fn no_node_is_asked_twice_and_not_too_many() {
        let replica = |address: &str| {
            let claim = Claim {
                node: "a".into(),
                address: address.into(),
                ready: true,
                next_offset: None,
                early: false,
            };
            Replica::owner(claim, Offset(0))
        };
        let mut opens = opens();
        assert!(opens.may_ask(SHARD, &replica("a:1")));
        assert!(!opens.may_ask(Partition(9), &replica("a:1")));
        for address in ["a:1", "b:1", "c:1"] {
            opens.find_mut(SHARD).unwrap().asked(address);
            assert!(!opens.may_ask(SHARD, &replica(address)));
            assert_eq!(opens.may_ask(SHARD, &replica("d:1")), address != "c:1");
        }
    }
}
