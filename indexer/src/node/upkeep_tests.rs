//! Claims, and a broker that does not take them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, thread};

use shoal_runtime::eventually;
use shoal_schemas::Offset;

use crate::{
    config::Ownership,
    node::{
        ShardKey,
        alone::{Alone, DEADLINE},
    },
};

fn alone() -> Arc<Alone> {
    Arc::new(Alone::new(Ownership::Static { shards: Vec::new() }))
}

/// Where the newest claim of a shard stands, if it says that it is served.
fn claimed(alone: &Alone, key: &ShardKey) -> Option<Offset> {
    let state = alone.node.deps.control.snapshot();
    let (claim, epoch) = state.owner(&key.0, key.1)?;
    claim.ready.then_some(*epoch)
}

#[test]
fn a_claim_that_the_broker_does_not_take_does_not_hold_up_the_end() {
    let alone = alone();
    let docs = alone.define("docs", &[]);
    alone.take(&docs);
    alone.writer.fall_silent();
    let claims = thread::spawn({
        let alone = alone.clone();
        move || alone.node.claim()
    });
    eventually(DEADLINE, "a claim to be sent", || {
        (alone.writer.unanswered() > 0).then_some(())
    });
    alone.node.deps.tasks.cancel().cancel();
    eventually(DEADLINE, "the thread to end", || {
        claims.is_finished().then_some(())
    });
}

#[test]
fn an_owner_that_gets_its_shard_back_at_once_opens_and_claims_it() {
    let alone = alone();
    let docs = alone.define("docs", &[]);
    let key = alone.take(&docs);
    let claims = thread::spawn({
        let alone = alone.clone();
        move || alone.node.claim()
    });
    let first = eventually(DEADLINE, "the first claim", || claimed(&alone, &key));
    // What was claimed is still remembered, and must not keep the folder from its successor.
    alone.node.let_go(std::slice::from_ref(&key));
    alone.take(&docs);
    eventually(DEADLINE, "the second claim", || {
        claimed(&alone, &key).filter(|epoch| *epoch > first)
    });
    alone.node.deps.tasks.cancel().cancel();
    claims.join().unwrap();
}
