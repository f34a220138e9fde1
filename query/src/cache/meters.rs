//! The numbers of kept answers.

use metrics::{Counter, counter, describe_counter};

use crate::metrics::{
    QUERY_CACHE_EVICTED_TOTAL, QUERY_CACHE_FOUND_TOTAL, QUERY_CACHE_LOOKUPS_TOTAL,
    QUERY_CACHE_STORE_FAILURES_TOTAL,
};

/// What came of looking for a kept answer. A label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// It was given without asking.
    Fresh,
    /// Every shard said that it still holds.
    Unchanged,
    /// Some shard searched.
    Changed,
    /// There is none.
    Missing,
    /// It was given because nobody could be asked.
    Stale,
}

impl Lookup {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Fresh, "fresh"),
        (Self::Unchanged, "unchanged"),
        (Self::Changed, "changed"),
        (Self::Missing, "missing"),
        (Self::Stale, "stale"),
    ];
}

/// Where a kept answer was. A label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tier {
    Memory,
    Redis,
}

/// The metrics' handles, looked up once.
pub(crate) struct Meters {
    lookups: Vec<(Lookup, Counter)>,
    memory: Counter,
    redis: Counter,
    evicted: Counter,
    failures: Counter,
}

impl Meters {
    pub(super) fn new() -> Self {
        describe();
        let lookups = Lookup::ALL.into_iter();
        Self {
            lookups: lookups
                .map(|(what, label)| {
                    let counter = counter!(QUERY_CACHE_LOOKUPS_TOTAL, "outcome" => label);
                    (what, counter)
                })
                .collect(),
            memory: counter!(QUERY_CACHE_FOUND_TOTAL, "store" => "memory"),
            redis: counter!(QUERY_CACHE_FOUND_TOTAL, "store" => "redis"),
            evicted: counter!(QUERY_CACHE_EVICTED_TOTAL),
            failures: counter!(QUERY_CACHE_STORE_FAILURES_TOTAL),
        }
    }

    pub(crate) fn looked_up(&self, what: Lookup) {
        if let Some((_, counter)) = self.lookups.iter().find(|(one, _)| *one == what) {
            counter.increment(1);
        }
    }

    pub(super) fn found(&self, at: Tier) {
        match at {
            Tier::Memory => self.memory.increment(1),
            Tier::Redis => self.redis.increment(1),
        }
    }

    pub(super) fn forgot(&self, answers: usize) {
        if answers > 0 {
            self.evicted.increment(u64::try_from(answers).unwrap_or(0));
        }
    }

    pub(super) fn store_failed(&self) {
        self.failures.increment(1);
    }
}

fn describe() {
    describe_counter!(
        QUERY_CACHE_LOOKUPS_TOTAL,
        "questions looked up among kept answers, by what came of it"
    );
    describe_counter!(QUERY_CACHE_FOUND_TOTAL, "kept answers found, by store");
    describe_counter!(
        QUERY_CACHE_EVICTED_TOTAL,
        "kept answers forgotten because others needed the room"
    );
    describe_counter!(
        QUERY_CACHE_STORE_FAILURES_TOTAL,
        "times Redis was not asked, did not answer, or was not sent an answer"
    );
}
