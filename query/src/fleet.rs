//! How the indexers fare that this node asks: calls under way, latency, failures.
//!
//! A node that cannot be reached, or that again and again had not answered when another replica had,
//! is *out*: it is asked only where there is no other. After a while it is *due*, and one call tries
//! it; each failed try doubles the while. What [`Health`] says is a function of what it was told and
//! when. Nothing of this is shared between query nodes.

use std::{
    collections::{BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shoal_runtime::clock::Stopwatch;
use tokio::sync::Notify;

use crate::plan::{Rank, Standing};

/// The part that the newest latency has in what is expected.
const NEWEST: f64 = 0.125;
/// Less than this says nothing about a node; also what is expected of one never asked, seconds.
const LEAST_LATENCY: f64 = 100e-6;
/// A node that is not asked is expected to have come halfway back to nothing after this long, so
/// that one that was slow is tried again.
const HALF_LIFE: Duration = Duration::from_secs(1);
/// How often another replica has to be faster, without an answer in between, for a node to be out.
const STRIKES: u32 = 3;
/// How long a node is out at first and at most.
const OUT_FOR: Duration = Duration::from_millis(500);
const OUT_FOR_AT_MOST: Duration = Duration::from_secs(10);
/// What a node said about its lag says nothing any more after this long.
const LAG_HOLDS: Duration = Duration::from_secs(3);

/// What is known of one node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    /// Calls without an answer so far.
    under_way: u32,
    /// Expected seconds of one call.
    latency: f64,
    /// When it last answered.
    answered_at: Duration,
    /// Calls in which another replica was faster, since the last answer.
    strikes: u32,
    out: Option<Out>,
    /// The largest lag it told, seconds, and when.
    lag: Option<(f64, Duration)>,
}

/// A node that is not to be asked.
#[derive(Clone, Copy, Debug)]
struct Out {
    due_at: Duration,
    /// How long it is out the next time.
    next: Duration,
}

impl Health {
    /// Whether and how willingly it is asked at that time, by a caller who accepts so much lag.
    pub(crate) fn standing(&self, now: Duration, bound: Option<Duration>) -> Standing {
        let is_behind = |bound: Duration| {
            self.lag.is_some_and(|(lag, at)| {
                now.saturating_sub(at) < LAG_HOLDS && lag > bound.as_secs_f64()
            })
        };
        let rank = match self.out {
            Some(out) if now < out.due_at => Rank::Out,
            _ if bound.is_some_and(is_behind) => Rank::Behind,
            Some(_) => Rank::Due,
            None => Rank::Fit,
        };
        let idle = now.saturating_sub(self.answered_at).as_secs_f64();
        let latency = self.latency * (-idle / HALF_LIFE.as_secs_f64()).exp2();
        Standing {
            rank,
            load: f64::from(self.under_way + 1) * latency.max(LEAST_LATENCY),
        }
    }

    /// A call goes to it; one that tries it out is the only one until it is due again.
    pub(crate) fn asked(&mut self, now: Duration) {
        self.under_way += 1;
        if self.out.is_some_and(|out| out.due_at <= now) {
            self.put_out(now);
        }
    }

    /// A call to it is over, in whatever way.
    pub(crate) fn over(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// It answered. `took` is left out where the call waited for something else than the node.
    pub(crate) fn answered(&mut self, now: Duration, took: Option<Duration>) {
        self.strikes = 0;
        self.out = None;
        if let Some(took) = took {
            self.expect(now, took);
        }
    }

    /// It told how far its shards are behind.
    pub(crate) fn told_lag(&mut self, now: Duration, seconds: f64) {
        self.lag = Some((seconds, now));
    }

    /// It cannot be reached. True if that is news.
    pub(crate) fn unreachable(&mut self, now: Duration) -> bool {
        // Of many calls that fail together only the first counts.
        match self.out {
            Some(out) if now < out.due_at => false,
            out => {
                self.put_out(now);
                out.is_none()
            }
        }
    }

    /// It answered that it does not serve what it is said to serve: for a moment, most likely.
    pub(crate) fn lacks_shards(&mut self, now: Duration) {
        self.out = None;
        self.put_out(now);
    }

    /// It had not answered for so long when another replica had. True if it is out for that now.
    pub(crate) fn was_overtaken(&mut self, now: Duration, after: Duration) -> bool {
        self.expect(now, after);
        self.strikes += 1;
        let is_out = self.strikes >= STRIKES && self.out.is_none();
        if is_out {
            self.put_out(now);
        }
        is_out
    }

    fn put_out(&mut self, now: Duration) {
        let time = self.out.map_or(OUT_FOR, |out| out.next);
        self.out = Some(Out {
            due_at: now + time,
            next: (time * 2).min(OUT_FOR_AT_MOST),
        });
    }

    fn expect(&mut self, now: Duration, took: Duration) {
        let took = took.as_secs_f64();
        self.latency = match self.answered_at.is_zero() {
            true => took,
            false => self.latency + (took - self.latency) * NEWEST,
        };
        self.answered_at = now;
    }
}

/// One node. Shared by all calls to it.
#[derive(Debug)]
pub(crate) struct Node {
    clock: Stopwatch,
    health: Mutex<Health>,
}

impl Node {
    /// Tells or asks its health, at the present time.
    pub(crate) fn health<T>(&self, tell: impl FnOnce(&mut Health, Duration) -> T) -> T {
        let now = self.clock.elapsed();
        tell(&mut self.lock(), now)
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is under way; dropped with it.
pub(crate) struct UnderWay(Arc<Node>);

impl UnderWay {
    pub(crate) fn to(node: Arc<Node>) -> Self {
        node.health(|health, now| health.asked(now));
        Self(node)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.health(|health, _| health.over());
    }
}

/// All nodes that were asked, by address.
#[derive(Debug)]
pub(crate) struct Fleet {
    clock: Stopwatch,
    nodes: RwLock<HashMap<String, Arc<Node>>>,
    dice: Dice,
    news: Notify,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        Self {
            clock: Stopwatch::start(),
            nodes: RwLock::default(),
            dice: Dice::default(),
            news: Notify::new(),
        }
    }

    /// The node at an address. Of a new one `claimed` is asked which addresses there are, and the
    /// others are forgotten.
    pub(crate) fn node(
        &self,
        address: &str,
        claimed: impl FnOnce() -> BTreeSet<String>,
    ) -> Arc<Node> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = nodes.get(address) {
            return node.clone();
        }
        drop(nodes);
        let claimed = claimed();
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        nodes.retain(|address, _| claimed.contains(address));
        let new = || {
            Arc::new(Node {
                clock: self.clock,
                health: Mutex::default(),
            })
        };
        nodes.entry(address.to_owned()).or_insert_with(new).clone()
    }

    /// What is known of the node at an address.
    pub(crate) fn standing(&self, address: &str, bound: Option<Duration>) -> Standing {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        match nodes.get(address) {
            Some(node) => node.health(|health, now| health.standing(now, bound)),
            None => Health::default().standing(Duration::ZERO, bound),
        }
    }

    /// Tells all calls under way that a node is out.
    pub(crate) fn tell_out(&self) {
        self.news.notify_waiters();
    }

    /// Waits until a node is out that was not before. News before this was asked for is not heard.
    pub(crate) async fn is_told(&self) {
        self.news.notified().await;
    }

    /// A number below `below`, by chance.
    pub(crate) fn chance(&self, below: usize) -> usize {
        self.dice.roll(below)
    }
}

/// Numbers nobody foresees: a keyed hash of a counter, keyed at random once a fleet.
#[derive(Debug, Default)]
struct Dice {
    keys: RandomState,
    next: AtomicU64,
}

impl Dice {
    fn roll(&self, below: usize) -> usize {
        let hash = self
            .keys
            .hash_one(self.next.fetch_add(1, Ordering::Relaxed));
        let below = u64::try_from(below.max(1)).unwrap_or(u64::MAX);
        usize::try_from(hash % below).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::{Fleet, HALF_LIFE, Health, LAG_HOLDS, OUT_FOR, OUT_FOR_AT_MOST, STRIKES, UnderWay};
    use crate::plan::Rank;

    const SECOND: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    fn rank(health: &Health, now: Duration) -> Rank {
        health.standing(now, None).rank
    }

    #[test]
    fn a_node_that_cannot_be_reached_is_tried_by_one_call_at_a_time_and_less_and_less_often() {
        let mut health = Health::default();
        let mut now = SECOND;
        assert!(health.unreachable(now));
        assert!(!health.unreachable(now), "the same failure");
        let mut tries = 0;
        let mut out_for = OUT_FOR;
        while out_for < OUT_FOR_AT_MOST {
            assert_eq!(rank(&health, now + out_for - MS), Rank::Out);
            now += out_for;
            assert_eq!(rank(&health, now), Rank::Due);
            health.asked(now);
            assert_eq!(rank(&health, now), Rank::Out, "one call tries it");
            health.unreachable(now);
            health.over();
            out_for = (out_for * 2).min(OUT_FOR_AT_MOST);
            tries += 1;
        }
        assert!(tries > 3);
        health.answered(now, Some(MS));
        assert_eq!(rank(&health, now), Rank::Fit);
        health.unreachable(now);
        assert_eq!(rank(&health, now + OUT_FOR), Rank::Due, "it begins anew");
    }

    #[test]
    fn a_node_is_out_once_others_were_faster_several_times_in_a_row() {
        let mut health = Health::default();
        for _ in 1..STRIKES {
            assert!(!health.was_overtaken(SECOND, MS));
        }
        health.answered(SECOND, Some(MS));
        for _ in 1..STRIKES {
            assert!(!health.was_overtaken(SECOND, MS));
        }
        assert_eq!(rank(&health, SECOND), Rank::Fit);
        assert!(health.was_overtaken(SECOND, MS));
        assert_eq!(rank(&health, SECOND), Rank::Out);
    }

    #[test]
    fn load_grows_with_calls_under_way_and_latency_and_fades_while_nothing_is_asked() {
        let mut health = Health::default();
        let load = |health: &Health, now| health.standing(now, None).load;
        health.answered(SECOND, Some(10 * MS));
        let idle = load(&health, SECOND);
        assert!((idle - 0.010).abs() < 1e-9, "{idle}");
        health.asked(SECOND);
        assert!(load(&health, SECOND) > idle * 1.9);
        health.over();
        health.answered(SECOND, Some(100 * MS));
        assert!(load(&health, SECOND) > idle * 2.0);
        let later = load(&health, SECOND + HALF_LIFE);
        assert!((later / load(&health, SECOND) - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_node_is_behind_for_those_who_accept_less_lag_than_it_told_of_late() {
        let mut health = Health::default();
        health.told_lag(SECOND, 3.0);
        let rank = |now, bound| health.standing(now, Some(bound)).rank;
        assert_eq!(rank(SECOND, 2 * SECOND), Rank::Behind);
        assert_eq!(rank(SECOND, 4 * SECOND), Rank::Fit);
        assert_eq!(rank(SECOND + LAG_HOLDS, 2 * SECOND), Rank::Fit);
    }

    #[test]
    fn a_call_counts_until_it_is_dropped_and_nodes_without_a_claim_are_forgotten() {
        let fleet = Fleet::new();
        let claimed = |addresses: &'static [&'static str]| {
            move || -> BTreeSet<String> { addresses.iter().map(|one| (*one).into()).collect() }
        };
        let node = fleet.node("a:1", claimed(&["a:1"]));
        let idle = fleet.standing("a:1", None).load;
        let call = UnderWay::to(node);
        assert!(fleet.standing("a:1", None).load > idle * 1.5);
        drop(call);
        assert!(fleet.standing("a:1", None).load < idle * 1.5);
        fleet
            .node("a:1", claimed(&["a:1"]))
            .health(|health, now| health.unreachable(now));
        fleet.node("b:1", claimed(&["b:1"]));
        assert_eq!(fleet.standing("a:1", None).rank, Rank::Fit);
    }

    #[test]
    fn chance_reaches_every_number_and_none_beyond() {
        let fleet = Fleet::new();
        let seen: BTreeSet<usize> = (0..200).map(|_| fleet.chance(5)).collect();
        assert_eq!(seen, (0..5).collect());
        assert_eq!(fleet.chance(0), 0);
    }
}
