//! Calls that take long: when another replica is asked beside one, and what came of it.

use std::{sync::Arc, time::Duration};

use shoal_runtime::clock::Stopwatch;
use tracing::info;

use super::{Question, run::Run};
use crate::{
    fleet::Node,
    metrics::{Hedged, Retried, WentOut},
    plan::{NodeAsk, Rank},
};

/// How much longer a call is left alone that may be waiting for a token's write.
const TOKEN_PATIENCE: Duration = Duration::from_millis(100);

/// One call to one node.
pub(super) struct Attempt {
    pub(super) ask: Arc<NodeAsk>,
    pub(super) node: Arc<Node>,
    pub(super) since: Stopwatch,
    pub(super) cause: Cause,
    /// When another replica is to be asked beside it.
    pub(super) alarm: Option<Alarm>,
    /// Half of the time it has.
    pub(super) half_time: Duration,
    /// Another replica was asked beside it.
    pub(super) is_doubled: bool,
    /// It brought something, answer or error.
    pub(super) is_over: bool,
    /// Shards whose first answer it brought.
    pub(super) answered: usize,
}

/// Why a call is made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    First,
    Hedge,
    Retry,
}

/// When a call has been waited for long enough, from its start.
#[derive(Clone, Copy)]
pub(super) enum Alarm {
    /// For a hedge.
    Hedge(Duration),
    /// For anything: it is taken for lost.
    Lost(Duration),
}

impl Alarm {
    fn at(self) -> Duration {
        match self {
            Self::Hedge(at) | Self::Lost(at) => at,
        }
    }
}

impl<Q: Question> Run<'_, Q> {
    /// When a call that is made now has been waited for long enough; never, if nobody else is left.
    pub(super) fn alarm(&self, ask: &NodeAsk, half_time: Duration) -> Option<Alarm> {
        if !ask.shards.iter().any(|shard| self.has_other(*shard)) {
            return None;
        }
        let name = self.with.shards.collection.name.as_str();
        let delay = self.with.hedging.delay(name, Q::KIND);
        let delay = delay.map(|delay| match self.waits_for_token(ask) {
            true => delay + TOKEN_PATIENCE,
            false => delay,
        });
        Some(match delay {
            Some(delay) if delay < half_time => Alarm::Hedge(delay),
            _ => Alarm::Lost(half_time),
        })
    }

    pub(super) fn waits_for_token(&self, ask: &NodeAsk) -> bool {
        let tokens = &self.with.terms.tokens;
        !tokens.is_empty() && ask.shards.iter().any(|shard| tokens.contains_key(shard))
    }

    /// How long until the next call has been waited for long enough.
    pub(super) fn next_alarm(&self) -> Option<Duration> {
        let waiting = self.attempts.iter().filter(|attempt| !attempt.is_over);
        let left = waiting.filter_map(|attempt| {
            let alarm = attempt.alarm?;
            Some(alarm.at().saturating_sub(attempt.since.elapsed()))
        });
        left.min()
    }

    /// Asks other replicas beside those calls that have been waited for long enough.
    pub(super) fn ring(&mut self) {
        self.look_again();
        for at in 0..self.attempts.len() {
            let Some(attempt) = self.attempts.get_mut(at) else {
                continue;
            };
            let is_due = |alarm: &Alarm| attempt.since.elapsed() >= alarm.at();
            let Some(alarm) = attempt
                .alarm
                .filter(|alarm| !attempt.is_over && is_due(alarm))
            else {
                continue;
            };
            attempt.alarm = None;
            let (ask, half_time) = (attempt.ask.clone(), attempt.half_time);
            let waiting = ask.shards.iter().copied();
            let waiting: Vec<_> = waiting.filter(|shard| self.has_other(*shard)).collect();
            for other in self.plan(waiting).asks {
                let cause = match alarm {
                    // A node that fails would cost a hedge for nothing, and one that is behind answers sooner with
                    // less than the caller gets from the other.
                    Alarm::Hedge(_) if other.rank == Rank::Fit && self.with.hedging.spend() => {
                        Cause::Hedge
                    }
                    Alarm::Hedge(_) => {
                        self.change(at, |attempt| {
                            attempt.alarm = Some(Alarm::Lost(half_time));
                        });
                        continue;
                    }
                    Alarm::Lost(_) => {
                        self.with.meters.retried(Retried::Late);
                        Cause::Retry
                    }
                };
                self.change(at, |attempt| attempt.is_doubled = true);
                self.ask(other, cause);
            }
        }
    }

    /// Takes calls for lost whose nodes are out by now: others have waited for them long enough.
    pub(super) fn leave_out(&mut self) {
        for attempt in &mut self.attempts {
            let standing = (attempt.node).health(|health, now| health.standing(now, None));
            if attempt.alarm.is_some() && standing.rank == Rank::Out {
                attempt.alarm = Some(Alarm::Lost(Duration::ZERO));
            }
        }
        self.ring();
    }

    pub(super) fn change(&mut self, at: usize, with: impl FnOnce(&mut Attempt)) {
        if let Some(attempt) = self.attempts.get_mut(at) {
            with(attempt);
        }
    }

    /// What hedges were good for, and which nodes were overtaken.
    pub(super) fn note_hedges(&self) {
        let was_answered = |attempt: &Attempt| attempt.answered > 0;
        for attempt in &self.attempts {
            if attempt.cause == Cause::Hedge {
                let outcome = match was_answered(attempt) {
                    true => Hedged::Won,
                    false => Hedged::Lost,
                };
                self.with.meters.hedged(outcome);
            }
            let is_overtaken = attempt.is_doubled && !attempt.is_over;
            if is_overtaken && !self.waits_for_token(&attempt.ask) {
                let after = attempt.since.elapsed();
                self.measured(after);
                let is_out = attempt
                    .node
                    .health(|health, now| health.was_overtaken(now, after));
                if is_out {
                    let (node, address) = (&attempt.ask.node, &attempt.ask.address);
                    info!(
                        node,
                        address, "indexer is slower than its replicas, it is left alone"
                    );
                    self.with.meters.went_out(WentOut::Slow);
                    self.with.fleet.tell_out();
                }
            }
        }
    }
}
