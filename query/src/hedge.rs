//! When another replica is asked although the first one may still answer.
//!
//! A call that has taken longer than nearly all calls of its kind did of late is put to another
//! replica as well, and whoever answers first is taken: a *hedge*. Each call earns a small part of
//! one hedge, so that the shards get little more work whatever happens. A call whose hedge was not
//! affordable, or that may not be hedged, is taken for lost once its node is found out or half of its
//! time is over, and put to another replica then; that is a retry, and costs nothing of the budget.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use shoal_runtime::config::Validate;

/// Settings of hedged calls, section `[query.hedge]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether a second replica is asked while the first one may still answer. Default true.
    ///
    /// Without it a replica that hangs costs half of a call's time, until it is found out.
    pub enabled: bool,
    /// The least that a call waits before it is hedged. Default 5 ms.
    ///
    /// Above it the delay is measured: the 95th percentile of the latest calls of that kind. Too
    /// low and noise is hedged, which the budget bounds.
    #[serde(with = "humantime_serde")]
    pub min_delay: Duration,
    /// The most that a call waits before it is hedged, and how long it waits while nothing was
    /// measured. Default 250 ms.
    #[serde(with = "humantime_serde")]
    pub max_delay: Duration,
    /// Hedges in a hundred calls, at most, over time. Default 10; 0 hedges nothing.
    ///
    /// While all is well five in a hundred are slower than the delay, so that less than about eight leaves
    /// nothing in hand for a node that stops.
    /// About fifty may come at once: as many as are under way to a node that has just stopped.
    pub budget_percent: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            min_delay: Duration::from_millis(5),
            max_delay: Duration::from_millis(250),
            budget_percent: 10,
        }
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Vec<String>) {
        if self.budget_percent > 100 {
            faults.push(format!(
                "query.hedge.budget_percent is {}, allowed are 0 to 100",
                self.budget_percent
            ));
        }
        let longest = Duration::from_secs(60);
        if self.min_delay > self.max_delay || self.max_delay > longest {
            faults.push(format!(
                "query.hedge.min_delay is {:?} and max_delay {:?}, allowed are up to {longest:?}, the smaller first",
                self.min_delay, self.max_delay
            ));
        }
    }
}

/// Calls measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Search,
    Get,
    Status,
    Count,
    Scroll,
}

/// Latest calls kept of one kind.
const KEPT: usize = 128;
/// Fewer calls than this say nothing.
const ENOUGH: usize = 20;
/// The percentile is taken anew after so many calls.
const EVERY: usize = 16;
/// Of a hundred calls so many may be made again because a node was busy: where all nodes are, more
/// would keep them so.
const BUSY_PERCENT: u32 = 10;
/// Hedges that may come at once.
const BURST: f64 = 50.0;

/// How long the latest calls of one kind took, and what nearly all of them took at most.
#[derive(Debug, Default)]
struct Recent {
    took: Vec<Duration>,
    seen: usize,
    percentile: Option<Duration>,
}

impl Recent {
    fn add(&mut self, took: Duration) {
        match self.took.get_mut(self.seen % KEPT) {
            Some(oldest) => *oldest = took,
            None => self.took.push(took),
        }
        self.seen += 1;
        if self.seen >= ENOUGH && (self.seen == ENOUGH || self.seen.is_multiple_of(EVERY)) {
            let mut sorted = self.took.clone();
            sorted.sort_unstable();
            // The nearest rank of the 95th percentile.
            let rank = (sorted.len() * 95).div_ceil(100);
            self.percentile = sorted.get(rank.saturating_sub(1)).copied();
        }
    }
}

/// What hedges are earned with.
#[derive(Debug)]
struct Budget {
    per_call: f64,
    held: f64,
}

impl Budget {
    fn of_percent(percent: u32) -> Self {
        let per_call = f64::from(percent) / 100.0;
        Self {
            per_call,
            held: if percent == 0 { 0.0 } else { BURST },
        }
    }

    fn earn(&mut self) {
        self.held = (self.held + self.per_call).min(BURST);
    }

    fn spend(&mut self) -> bool {
        let is_there = self.held >= 1.0;
        if is_there {
            self.held -= 1.0;
        }
        is_there
    }
}

/// The latest calls of one collection.
#[derive(Debug, Default)]
struct Kinds {
    search: Mutex<Recent>,
    get: Mutex<Recent>,
    status: Mutex<Recent>,
    count: Mutex<Recent>,
    scroll: Mutex<Recent>,
}

impl Kinds {
    fn of(&self, kind: Kind) -> &Mutex<Recent> {
        match kind {
            Kind::Search => &self.search,
            Kind::Get => &self.get,
            Kind::Status => &self.status,
            Kind::Count => &self.count,
            Kind::Scroll => &self.scroll,
        }
    }
}

/// When to hedge, over all calls of this node.
#[derive(Debug)]
pub(crate) struct Hedging {
    config: Config,
    /// By collection.
    recent: RwLock<HashMap<String, Arc<Kinds>>>,
    budget: Mutex<Budget>,
    /// For asking elsewhere what a busy node did not take.
    busy_budget: Mutex<Budget>,
}

impl Hedging {
    pub(crate) fn new(config: Config) -> Self {
        let budget = match config.enabled {
            true => Budget::of_percent(config.budget_percent),
            false => Budget::of_percent(0),
        };
        Self {
            config,
            recent: RwLock::default(),
            budget: Mutex::new(budget),
            busy_budget: Mutex::new(Budget::of_percent(BUSY_PERCENT)),
        }
    }

    /// How long a call of that kind is waited for before it is hedged; `None` if none is.
    pub(crate) fn delay(&self, collection: &str, kind: Kind) -> Option<Duration> {
        if !self.config.enabled || self.config.budget_percent == 0 {
            return None;
        }
        let measured = self.find(collection);
        let measured = measured.and_then(|recent| lock(recent.of(kind)).percentile);
        let delay = measured.unwrap_or(self.config.max_delay);
        Some(delay.clamp(self.config.min_delay, self.config.max_delay))
    }

    /// A call was answered, or was not for so long. Of a collection that is new `is_there` is asked
    /// which others there still are, and the rest is forgotten.
    pub(crate) fn took(
        &self,
        collection: &str,
        kind: Kind,
        took: Duration,
        is_there: impl Fn(&str) -> bool,
    ) {
        let recent = self.find(collection).unwrap_or_else(|| {
            let mut all = self.recent.write().unwrap_or_else(PoisonError::into_inner);
            all.retain(|name, _| is_there(name));
            all.entry(collection.to_owned()).or_default().clone()
        });
        lock(recent.of(kind)).add(took);
    }

    /// A call is made that is no hedge.
    pub(crate) fn earn(&self) {
        lock(&self.budget).earn();
        lock(&self.busy_budget).earn();
    }

    /// Whether one more hedge is affordable; it counts as made then.
    pub(crate) fn spend(&self) -> bool {
        lock(&self.budget).spend()
    }

    /// Whether a shard may be asked for elsewhere because its node has too much to do; it counts as
    /// asked for then.
    pub(crate) fn spend_on_busy(&self) -> bool {
        lock(&self.busy_budget).spend()
    }

    fn find(&self, collection: &str) -> Option<Arc<Kinds>> {
        let all = self.recent.read().unwrap_or_else(PoisonError::into_inner);
        all.get(collection).cloned()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shoal_runtime::config::Validate;

    use super::{BURST, Config, ENOUGH, Hedging, KEPT, Kind};

    fn took(hedging: &Hedging, millis: u64) {
        let took = Duration::from_millis(millis);
        hedging.took("docs", Kind::Search, took, |_| true);
    }

    fn delay(hedging: &Hedging) -> Duration {
        hedging.delay("docs", Kind::Search).unwrap()
    }

    #[test]
    fn the_delay_is_what_nearly_all_of_the_latest_calls_took_within_bounds() {
        let config = Config::default();
        let hedging = Hedging::new(config.clone());
        assert_eq!(delay(&hedging), config.max_delay, "nothing is measured");
        for _ in 1..ENOUGH {
            took(&hedging, 1);
        }
        assert_eq!(delay(&hedging), config.max_delay);
        took(&hedging, 1);
        assert_eq!(delay(&hedging), config.min_delay);
        // 5 in a hundred are left out, the sixth is not.
        for at in 0..KEPT * 2 {
            took(&hedging, if at % 17 == 0 { 40 } else { 10 });
        }
        assert_eq!(delay(&hedging), Duration::from_millis(40));
        for at in 0..KEPT * 2 {
            took(&hedging, if at % 30 == 0 { 40 } else { 10 });
        }
        assert_eq!(delay(&hedging), Duration::from_millis(10));
        for _ in 0..KEPT {
            took(&hedging, 9_000);
        }
        assert_eq!(delay(&hedging), config.max_delay);
        let other = hedging.delay("docs", Kind::Count);
        assert_eq!(other, Some(config.max_delay), "kinds are measured apart");
    }

    #[test]
    fn hedges_are_a_small_part_of_all_calls_whatever_happens() {
        let hedging = Hedging::new(Config::default());
        let calls = 10_000_u32;
        let spent = (0..calls).filter(|_| {
            hedging.earn();
            hedging.spend()
        });
        let spent = f64::from(u32::try_from(spent.count()).unwrap());
        let earned = f64::from(calls) * 0.1;
        assert!(spent >= earned && spent <= earned + BURST, "{spent}");
    }

    #[test]
    fn nothing_is_hedged_where_it_is_switched_off() {
        for config in [
            Config {
                enabled: false,
                ..Config::default()
            },
            Config {
                budget_percent: 0,
                ..Config::default()
            },
        ] {
            let hedging = Hedging::new(config);
            hedging.earn();
            assert_eq!(hedging.delay("docs", Kind::Search), None);
            assert!(!hedging.spend());
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let mut faults = Vec::new();
        Config::default().validate(&mut faults);
        assert_eq!(faults, Vec::<String>::new());
        let config = Config {
            budget_percent: 101,
            min_delay: Duration::from_secs(1),
            ..Config::default()
        };
        config.validate(&mut faults);
        let [budget, delay] = &faults[..] else {
            panic!("{faults:?}");
        };
        assert!(budget.contains("budget_percent") && delay.contains("min_delay"));
    }
}
