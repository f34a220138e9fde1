//! Asking every node at once and collecting what comes back in time.
//!
//! A node that fails costs only its own shards. Where it says that it does not have a shard, cannot
//! be reached or cannot answer now, the shard is asked for at another replica, at once; where it
//! takes longer than its like, another replica is asked beside it and the first answer is taken
//! ([`crate::hedge`]). A request that a shard refuses is refused everywhere, so it is asked nobody
//! else. What is still missing then is for [`crate::coverage`] to judge. Nothing is spawned: a
//! caller that goes away, or a replica that was faster, takes the other questions with it.

mod attempt;
mod open;
mod run;

use std::time::Duration;

use futures::future::BoxFuture;
use shoal_schemas::{Partition, v1};

use crate::{
    call::Call,
    client::{CallError, ShardCall, ShardClient},
    coverage::Gathered,
    fleet::Fleet,
    hedge::{Hedging, Kind},
    metrics::Meters,
    scatter::run::Run,
    shard_map::{Maps, Shards},
    tokens::TokensByShard,
};

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

    /// Calls it is measured with.
    const KIND: Kind;

    /// Asks one node.
    fn ask<'a>(
        &'a self,
        client: &'a dyn ShardClient,
        address: &'a str,
        shards: Vec<v1::ShardAsk>,
        call: ShardCall,
    ) -> BoxFuture<'a, Result<Vec<Reply<Self::Body>>, CallError>>;
}

/// What a caller insists on, as far as single shards are concerned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    /// Writes that have to show.
    pub(crate) tokens: TokensByShard,
    /// How far behind a shard may be.
    pub(crate) max_staleness: Option<Duration>,
    /// Whether a missing shard fails the call.
    pub(crate) require_all: bool,
}

/// Where and with what a question is put.
#[derive(Clone, Copy)]
pub(crate) struct Scatter<'a> {
    pub(crate) client: &'a dyn ShardClient,
    pub(crate) fleet: &'a Fleet,
    pub(crate) hedging: &'a Hedging,
    pub(crate) meters: &'a Meters,
    pub(crate) maps: &'a Maps,
    pub(crate) shards: &'a Shards,
    pub(crate) terms: &'a Terms,
    /// Its deadline is that of the shards.
    pub(crate) call: Call,
}

impl<'a> Scatter<'a> {
    /// Puts the question to a replica of each of the wanted shards.
    pub(crate) async fn gather<Q: Question>(
        self,
        question: &'a Q,
        wanted: impl IntoIterator<Item = Partition>,
    ) -> Gathered<Q::Body> {
        let mut run = Run::new(self, question);
        run.begin(wanted);
        run.finish().await
    }
}
