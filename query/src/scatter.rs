//! Asking every node at once and collecting what comes back in time.
//!
//! A node that fails costs only its own shards. Where a node says that it does not have a shard,
//! or does not answer and the map names another owner by now, the new owner is asked once, at
//! once. What is still missing then is for [`crate::coverage`] to judge. Nothing is spawned: a
//! caller that goes away takes its questions with it.

use std::time::Duration;

use futures::future::{BoxFuture, join_all};
use shoal_schemas::{Partition, v1};

use crate::{
    call::Call,
    client::{CallError, Outcome, ShardCall, ShardClient},
    coverage::{Gathered, Miss},
    plan::{NodeAsk, plan},
    shard_map::{Maps, ShardMap, Shards},
    tokens::TokensByShard,
};

/// How long the control topic may take to tell where a shard went, once its node has said that
/// it is gone.
const MOVE_PATIENCE: Duration = Duration::from_millis(250);

/// One shard's answer: its coverage, a code, and what was asked for.
pub(crate) struct Reply<B> {
    pub(crate) coverage: v1::ShardCoverage,
    pub(crate) code: i32,
    pub(crate) body: B,
}

/// What a node can be asked about some shards.
pub(crate) trait Question: Sync {
    /// What one shard answers.
    type Body: Send;

    /// Asks one node.
    fn ask<'a>(
        &'a self,
        client: &'a dyn ShardClient,
        address: &'a str,
        shards: Vec<v1::ShardAsk>,
        call: ShardCall,
    ) -> BoxFuture<'a, Result<Vec<Reply<Self::Body>>, CallError>>;
}

/// Where and with what a question is put.
pub(crate) struct Scatter<'a> {
    pub(crate) client: &'a dyn ShardClient,
    pub(crate) maps: &'a Maps,
    pub(crate) shards: &'a Shards,
    pub(crate) tokens: &'a TokensByShard,
    /// Its deadline is that of the shards.
    pub(crate) call: Call,
}

/// What came of one node, with the shards that may be elsewhere by now.
struct Round<B> {
    gathered: Gathered<B>,
    astray: Vec<Miss>,
}

impl Scatter<'_> {
    /// Puts the question to every owner of the wanted shards.
    pub(crate) async fn gather<Q: Question>(
        &self,
        question: &Q,
        wanted: impl IntoIterator<Item = Partition>,
    ) -> Gathered<Q::Body> {
        let plan = plan(self.shards, wanted);
        let mut gathered = Gathered::default();
        gathered
            .misses
            .extend(plan.orphans.into_iter().map(Miss::from));
        if let [ask] = plan.asks.as_slice() {
            gathered.extend(self.ask_and_follow(question, ask).await);
            return gathered;
        }
        let asks = plan
            .asks
            .iter()
            .map(|ask| self.ask_and_follow(question, ask));
        for answer in join_all(asks).await {
            gathered.extend(answer);
        }
        gathered
    }

    /// Asks a node, and once more whoever has its shards by now.
    async fn ask_and_follow<Q: Question>(&self, question: &Q, ask: &NodeAsk) -> Gathered<Q::Body> {
        let Round {
            mut gathered,
            astray,
        } = self.ask(question, ask).await;
        if astray.is_empty() {
            return gathered;
        }
        let name = self.shards.collection.name.as_str();
        // Only a node that answers knows that a shard has moved; a dead one's shards move in
        // seconds, when its seat in the group is given away, so there is nothing to wait for.
        let is_told = |miss: &&Miss| miss.outcome == Outcome::Moved;
        let patience = match astray.iter().any(|miss| is_told(&miss)) {
            true => MOVE_PATIENCE.min(self.call.deadline.remaining() / 2),
            false => Duration::ZERO,
        };
        let has_moved = |map: &ShardMap| {
            let Some(fresh) = map.find(name) else {
                return true;
            };
            // A node that let go claims its shard anew as not ready: that is no move yet.
            let mut told = astray.iter().filter(is_told);
            told.all(|miss| is_elsewhere(fresh, miss.shard, &ask.address))
        };
        let map = self.maps.wait_for(patience, has_moved).await;
        let Some(fresh) = map.find(name) else {
            gathered.misses.extend(astray);
            return gathered;
        };
        let (moved, stayed): (Vec<Miss>, Vec<Miss>) =
            (astray.into_iter()).partition(|miss| is_elsewhere(fresh, miss.shard, &ask.address));
        gathered.misses.extend(stayed);
        let second = plan(fresh, moved.iter().map(|miss| miss.shard));
        gathered
            .misses
            .extend(second.orphans.into_iter().map(Miss::from));
        let asks = second.asks.iter().map(|ask| self.ask(question, ask));
        for round in join_all(asks).await {
            gathered.extend(round.gathered);
            gathered.misses.extend(round.astray);
        }
        gathered
    }

    async fn ask<Q: Question>(&self, question: &Q, ask: &NodeAsk) -> Round<Q::Body> {
        let mut round = Round {
            gathered: Gathered::default(),
            astray: Vec::new(),
        };
        let timeout = self.call.deadline.remaining();
        let miss = |shard: Partition, outcome: Outcome, why: String| Miss {
            shard,
            node: ask.node.clone(),
            outcome,
            why,
        };
        if timeout.is_zero() {
            let late = "no time was left to ask for it";
            let misses = ask
                .shards
                .iter()
                .map(|shard| miss(*shard, Outcome::TimedOut, late.into()));
            round.gathered.misses.extend(misses);
            return round;
        }
        let asks = ask.shards.iter().map(|shard| v1::ShardAsk {
            shard: shard.0,
            at_least: self.tokens.get(shard).cloned().unwrap_or_default(),
        });
        let call = ShardCall {
            timeout,
            trace: self.call.trace,
        };
        let answer = question
            .ask(self.client, &ask.address, asks.collect(), call)
            .await;
        let replies = match answer {
            Ok(replies) => replies,
            Err(error) => {
                let outcome = error.outcome();
                for shard in &ask.shards {
                    round.note(miss(*shard, outcome, error.to_string()));
                }
                return round;
            }
        };
        let mut silent = ask.shards.clone();
        for reply in replies {
            let shard = Partition(reply.coverage.shard);
            let Some(at) = silent.iter().position(|wanted| *wanted == shard) else {
                // Not asked for, or answered twice.
                continue;
            };
            silent.swap_remove(at);
            match Outcome::of_code(reply.code) {
                Outcome::Answered => round.gathered.answers.push((reply.coverage, reply.body)),
                outcome => {
                    let why = match reply.coverage.error {
                        error if error.is_empty() => {
                            format!("node answered with code {}", reply.code)
                        }
                        error => error,
                    };
                    round.note(miss(shard, outcome, why));
                }
            }
        }
        for shard in silent {
            let why = "node answered without this shard".to_owned();
            round
                .gathered
                .misses
                .push(miss(shard, Outcome::Failed, why));
        }
        round
    }
}

impl<B> Round<B> {
    fn note(&mut self, miss: Miss) {
        match miss.outcome {
            Outcome::Moved | Outcome::Unreachable | Outcome::Failed => self.astray.push(miss),
            _ => self.gathered.misses.push(miss),
        }
    }
}

/// Whether another node serves the shard by now.
fn is_elsewhere(shards: &Shards, shard: Partition, address: &str) -> bool {
    let owner = shards.owner(shard);
    owner.is_some_and(|owner| owner.claim.ready && owner.claim.address != address)
}
