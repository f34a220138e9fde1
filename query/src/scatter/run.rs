//! One question on its way: the calls that are under way, and what each event leads to.

use std::{sync::Arc, time::Duration};

use futures::{
    future::{BoxFuture, FutureExt as _},
    stream::{FuturesUnordered, StreamExt as _},
};
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{Partition, v1};
use tracing::info;

use super::{
    Question, Reply, Scatter,
    attempt::{Attempt, Cause},
    open::{Next, Opens},
};
use crate::{
    client::{CallError, Outcome, ShardCall},
    coverage::{Gathered, Miss},
    fleet::{Node, UnderWay},
    metrics::{Retried, WentOut},
    plan::{Choice, NodeAsk, Plan, plan},
    shard_map::Shards,
};

/// How long the control topic may take to tell where a shard went, once its node has said that
/// it is gone.
const MOVE_PATIENCE: Duration = Duration::from_millis(250);
/// One question under way.
pub(super) struct Run<'a, Q: Question> {
    pub(super) with: Scatter<'a>,
    question: &'a Q,
    /// The newest map's shards, once something went wrong with the first one's.
    fresh: Option<Arc<Shards>>,
    opens: Opens,
    gathered: Gathered<Q::Body>,
    pub(super) attempts: Vec<Attempt>,
    under_way: FuturesUnordered<BoxFuture<'a, Event<Q::Body>>>,
}

/// What a question waits for.
enum Event<B> {
    Told {
        attempt: usize,
        told: Result<Vec<Reply<B>>, CallError>,
    },
    /// These shards may be elsewhere by now.
    Map(Vec<Partition>),
}

impl<'a, Q: Question> Run<'a, Q> {
    pub(super) fn new(with: Scatter<'a>, question: &'a Q) -> Self {
        Self {
            with,
            question,
            fresh: None,
            opens: Opens::default(),
            gathered: Gathered::default(),
            attempts: Vec::new(),
            under_way: FuturesUnordered::new(),
        }
    }

    /// Asks a replica of each shard.
    pub(super) fn begin(&mut self, wanted: impl IntoIterator<Item = Partition>) {
        let wanted: Vec<Partition> = wanted.into_iter().collect();
        for shard in &wanted {
            self.opens.add(*shard);
        }
        let Plan { asks, orphans } = self.plan(wanted);
        for orphan in orphans {
            self.opens.close(orphan.shard);
            self.gathered.misses.push(Miss::from(orphan));
        }
        for ask in asks {
            self.with.hedging.earn();
            self.ask(ask, Cause::First);
        }
    }

    /// Waits until every shard has its answer or will have none. What is still under way then is
    /// dropped with this.
    pub(super) async fn finish(mut self) -> Gathered<Q::Body> {
        let fleet = self.with.fleet;
        while !self.opens.is_empty() {
            let event = match self.next_alarm() {
                None => self.under_way.next().await,
                Some(left) => tokio::select! {
                    biased;
                    event = self.under_way.next() => event,
                    () = fleet.is_told() => {
                        self.leave_out();
                        continue;
                    }
                    () = tokio::time::sleep(left) => {
                        self.ring();
                        continue;
                    }
                },
            };
            match event {
                Some(Event::Told { attempt, told }) => self.take(attempt, told),
                Some(Event::Map(shards)) => self.follow(&shards),
                // Every open shard has a call or a map that it waits for.
                None => break,
            }
        }
        self.note_hedges();
        self.gathered
    }

    fn shards(&self) -> &Shards {
        self.fresh.as_deref().unwrap_or(self.with.shards)
    }

    pub(super) fn look_again(&mut self) {
        let map = self.with.maps.now();
        let found = map.collection(self.with.shards.collection.name.as_str());
        // A collection that is gone has nobody new to ask.
        self.fresh = found.cloned().or_else(|| self.fresh.take());
    }

    pub(super) fn plan(&self, wanted: Vec<Partition>) -> Plan {
        let Scatter { fleet, terms, .. } = self.with;
        let choice = Choice {
            may_ask: &|shard, replica| self.opens.may_ask(shard, replica),
            standing: &|address| fleet.standing(address, terms.max_staleness),
            chance: &|below| fleet.chance(below),
        };
        plan(self.shards(), wanted, &choice)
    }

    /// Whether a replica is left to ask for a shard.
    pub(super) fn has_other(&self, shard: Partition) -> bool {
        let mut replicas = self.shards().replicas(shard).iter();
        replicas.any(|replica| replica.claim.ready && self.opens.may_ask(shard, replica))
    }

    pub(super) fn ask(&mut self, ask: NodeAsk, cause: Cause) {
        let Scatter {
            client,
            fleet,
            maps,
            terms,
            call,
            ..
        } = self.with;
        let timeout = call.deadline.remaining();
        for shard in &ask.shards {
            if let Some(open) = self.opens.find_mut(*shard) {
                open.asked(&ask.address);
            }
        }
        if timeout.is_zero() {
            let late = |shard: &Partition| Miss {
                shard: *shard,
                node: ask.node.clone(),
                outcome: Outcome::TimedOut,
                why: "no time was left to ask for it".into(),
            };
            let misses = ask.shards.iter().map(late).collect();
            self.missed(misses);
            return;
        }
        let asks: Vec<v1::ShardAsk> = (ask.shards.iter())
            .map(|shard| v1::ShardAsk {
                shard: shard.0,
                at_least: terms.tokens.get(shard).cloned().unwrap_or_default(),
            })
            .collect();
        let node = fleet.node(&ask.address, || maps.now().addresses());
        let guard = UnderWay::to(node.clone());
        let ask = Arc::new(ask);
        let attempt = self.attempts.len();
        let half_time = timeout / 2;
        self.attempts.push(Attempt {
            alarm: self.alarm(&ask, half_time),
            ask: ask.clone(),
            node,
            since: Stopwatch::start(),
            cause,
            half_time,
            is_doubled: false,
            is_over: false,
            answered: 0,
        });
        let question = self.question;
        let call = ShardCall {
            timeout,
            trace: call.trace,
        };
        let told = async move {
            let _guard = guard;
            let told = question.ask(client, &ask.address, asks, call).await;
            Event::Told { attempt, told }
        };
        self.under_way.push(told.boxed());
    }

    /// Takes what a node said.
    fn take(&mut self, at: usize, told: Result<Vec<Reply<Q::Body>>, CallError>) {
        let Some(attempt) = self.attempts.get_mut(at) else {
            return;
        };
        attempt.is_over = true;
        let took = attempt.since.elapsed();
        let (ask, node) = (attempt.ask.clone(), attempt.node.clone());
        let misses = match told {
            Ok(replies) => self.sort(at, &ask, replies),
            Err(error) => {
                let outcome = error.outcome();
                if outcome == Outcome::Unreachable {
                    self.went_out(&ask, &node);
                }
                let miss = |shard: &Partition| Miss {
                    shard: *shard,
                    node: ask.node.clone(),
                    outcome,
                    why: error.to_string(),
                };
                self.missed(ask.shards.iter().map(miss).collect());
                return;
            }
        };
        // A node that has not got its shards answers quickly, but is not quick.
        let lacks_shards =
            |miss: &Miss| matches!(miss.outcome, Outcome::Moved | Outcome::Unreachable);
        if misses.iter().any(lacks_shards) {
            node.health(|health, now| health.lacks_shards(now));
        } else if !misses.iter().any(|miss| miss.outcome == Outcome::Busy) {
            let took = (!self.waits_for_token(&ask)).then_some(took);
            node.health(|health, now| health.answered(now, took));
            if let Some(took) = took {
                self.measured(took);
            }
        }
        self.missed(misses);
    }

    fn went_out(&self, ask: &NodeAsk, node: &Node) {
        if node.health(|health, now| health.unreachable(now)) {
            info!(
                node = ask.node,
                address = ask.address,
                "indexer cannot be reached"
            );
            self.with.meters.went_out(WentOut::Unreachable);
            self.with.fleet.tell_out();
        }
    }

    pub(super) fn measured(&self, took: Duration) {
        let name = self.with.shards.collection.name.as_str();
        let is_there = |name: &str| self.with.maps.now().collection(name).is_some();
        self.with.hedging.took(name, Q::KIND, took, is_there);
    }

    /// Keeps the answers, and returns what is no answer.
    fn sort(&mut self, at: usize, ask: &NodeAsk, replies: Vec<Reply<Q::Body>>) -> Vec<Miss> {
        let mut misses = Vec::new();
        let mut silent = ask.shards.clone();
        let mut lag: Option<f64> = None;
        let miss = |shard: Partition, outcome: Outcome, why: String| Miss {
            shard,
            node: ask.node.clone(),
            outcome,
            why,
        };
        for reply in replies {
            let shard = Partition(reply.coverage.shard);
            let Some(place) = silent.iter().position(|wanted| *wanted == shard) else {
                // Not asked for, or answered twice.
                continue;
            };
            silent.swap_remove(place);
            let outcome = Outcome::of_code(reply.code);
            if outcome != Outcome::Answered {
                let why = match reply.coverage.error {
                    error if error.is_empty() => format!("node answered with code {}", reply.code),
                    error => error,
                };
                misses.push(miss(shard, outcome, why));
                continue;
            }
            let behind = reply.coverage.lag_seconds;
            lag = Some(lag.map_or(behind, |most| most.max(behind)));
            if let Some(bound) = self.with.terms.max_staleness
                && behind > bound.as_secs_f64()
            {
                let why = format!(
                    "node `{}` is {behind:.3} s behind, the caller accepts {:.3} s",
                    ask.node,
                    bound.as_secs_f64()
                );
                misses.push(miss(shard, Outcome::Behind, why));
                continue;
            }
            if self.opens.find(shard).is_some() {
                self.opens.close(shard);
                self.gathered.answers.push((reply.coverage, reply.body));
                self.change(at, |attempt| attempt.answered += 1);
            }
        }
        if let (Some(lag), Some(attempt)) = (lag, self.attempts.get(at)) {
            attempt.node.health(|health, now| health.told_lag(now, lag));
        }
        for shard in silent {
            let why = "node answered without this shard".to_owned();
            misses.push(miss(shard, Outcome::Failed, why));
        }
        misses
    }

    /// Decides what becomes of shards that a node did not answer.
    fn missed(&mut self, misses: Vec<Miss>) {
        if misses.is_empty() {
            return;
        }
        self.look_again();
        let (mut elsewhere, mut moved) = (Vec::new(), Vec::new());
        for miss in misses {
            let (shard, outcome) = (miss.shard, miss.outcome);
            // A node that is busy gets busier if all its calls are made again.
            let has_other = self.has_other(shard)
                && (outcome != Outcome::Busy || self.with.hedging.spend_on_busy());
            let Some(open) = self.opens.find_mut(shard) else {
                continue;
            };
            match open.missed(miss, has_other) {
                Next::AskElsewhere => {
                    self.with.meters.retried(Retried::after(outcome));
                    elsewhere.push(shard);
                }
                Next::WaitForMap => moved.push((shard, open.tried.clone())),
                Next::Wait => {}
                Next::GiveUp => self.give_up(shard),
            }
        }
        self.ask_elsewhere(elsewhere);
        if !moved.is_empty() {
            self.wait_for_map(moved);
        }
    }

    fn ask_elsewhere(&mut self, shards: Vec<Partition>) {
        if shards.is_empty() {
            return;
        }
        let Plan { asks, orphans } = self.plan(shards);
        for orphan in orphans {
            self.give_up(orphan.shard);
        }
        for ask in asks {
            self.ask(ask, Cause::Retry);
        }
    }

    fn give_up(&mut self, shard: Partition) {
        let miss = self.opens.close(shard);
        self.gathered.misses.extend(miss);
    }

    /// Waits for a map in which somebody else serves these shards.
    fn wait_for_map(&mut self, moved: Vec<(Partition, Vec<String>)>) {
        let Scatter {
            maps, shards, call, ..
        } = self.with;
        let name = shards.collection.name.as_str();
        let patience = MOVE_PATIENCE.min(call.deadline.remaining() / 2);
        let waited = async move {
            let is_elsewhere = |shards: &Shards| {
                moved.iter().all(|(shard, tried)| {
                    let mut replicas = shards.replicas(*shard).iter();
                    // A node that let go claims its shard anew as not ready: that is no move yet.
                    replicas.any(|one| one.claim.ready && !tried.contains(&one.claim.address))
                })
            };
            let has_moved = |map: &crate::shard_map::ShardMap| {
                map.collection(name)
                    .is_none_or(|shards| is_elsewhere(shards))
            };
            maps.wait_for(patience, has_moved).await;
            Event::Map(moved.iter().map(|(shard, _)| *shard).collect())
        };
        self.under_way.push(waited.boxed());
    }

    /// Asks whoever has these shards by now.
    fn follow(&mut self, moved: &[Partition]) {
        self.look_again();
        let mut elsewhere = Vec::new();
        for shard in moved {
            let has_other = self.has_other(*shard);
            let Some(open) = self.opens.find_mut(*shard) else {
                continue;
            };
            match open.saw_map(has_other) {
                Next::AskElsewhere => {
                    self.with.meters.retried(Retried::Moved);
                    elsewhere.push(*shard);
                }
                Next::Wait | Next::WaitForMap => {}
                Next::GiveUp => self.give_up(*shard),
            }
        }
        self.ask_elsewhere(elsewhere);
    }
}
