//! Claims: a broker that does not take them, others that come in between, and a limit that is reached at a start.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::Arc, thread, time::Duration};

use bytesize::ByteSize;
use shoal_runtime::eventually;
use shoal_schemas::{Collection, Offset, Partition};

use crate::{
    config::Ownership,
    node::{
        Held, NotServing, ShardKey,
        alone::{Alone, DEADLINE},
        not_serving_text,
    },
    pressure::{Limits, Reached, Used},
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

/// The thread that claims what the node holds.
fn claiming(alone: &Arc<Alone>) -> thread::JoinHandle<()> {
    let alone = alone.clone();
    thread::spawn(move || alone.node.claim())
}

#[test]
fn a_claim_that_the_broker_does_not_take_does_not_hold_up_the_end() {
    let alone = alone();
    let docs = alone.define("docs", &[]);
    alone.take(&docs);
    alone.writer.fall_silent();
    let claims = claiming(&alone);
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
    let claims = claiming(&alone);
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

#[test]
fn a_claim_that_a_late_one_of_another_node_has_overtaken_is_made_again() {
    let group = "shoal-indexers".into();
    let alone = Arc::new(Alone::new(Ownership::Group { group }));
    let docs = alone.define("docs", &[]);
    let key = alone.take(&docs);
    let claims = claiming(&alone);
    let first = eventually(DEADLINE, "the first claim", || claimed(&alone, &key));
    assert!(alone.node.owns(&key));
    // Sent when that node had the shard, and written only now; it is read once this returns.
    alone.claim(&docs, "other", true);
    eventually(DEADLINE, "the shard to be claimed again", || {
        alone.node.owns(&key).then_some(())
    });
    let again = claimed(&alone, &key).unwrap();
    assert!(again > first, "{again:?} after {first:?}");
    alone.node.deps.tasks.cancel().cancel();
    claims.join().unwrap();
}

/// Says that the disk has no room to leave, or that it has.
fn limit(alone: &Alone, is_reached: bool) {
    let limits = Limits {
        free_disk: ByteSize::mib(1),
        ..Limits::default()
    };
    let used = Used {
        memory_bytes: 0,
        free_bytes: Some(if is_reached { 0 } else { u64::MAX }),
    };
    alone.node.pressure.update(&limits, used);
}

/// A shard that held a point, was let go, and is open again under a limit, while there is one more.
fn held_back(alone: &Alone, docs: &Collection) -> Arc<Held> {
    alone.publish(docs, 1);
    let key = alone.take(docs);
    is_complete(alone, docs);
    alone.node.let_go(&[key]);
    alone.publish(docs, 2);
    limit(alone, true);
    alone.reopen(docs)
}

/// Waits until the shard's folder says that it once held everything.
fn is_complete(alone: &Alone, docs: &Collection) {
    let said = alone.folder(docs).join("was-complete");
    eventually(DEADLINE, "the shard to be complete", || {
        said.exists().then_some(())
    });
}

/// Has it answer as soon as a limit keeps it from catching up.
fn answers(alone: &Alone, held: &Held) {
    alone.node.have_held_back_answer(Duration::ZERO);
    assert!(held.answering().is_ok(), "{:?}", held.answering().err());
}

fn lacks_one(stopped_by: Option<Reached>) -> NotServing {
    NotServing::CatchingUp {
        records: 1,
        stopped_by,
    }
}

#[test]
fn a_shard_that_starts_under_a_limit_answers_if_it_once_held_everything() {
    let alone = alone();
    let docs = alone.define("docs", &[]);
    let claims = claiming(&alone);
    let held = held_back(&alone, &docs);
    answers(&alone, &held);
    let why = held.serving().err();
    assert_eq!(why, Some(lacks_one(Some(Reached::Disk))));
    let told = not_serving_text(&why.unwrap());
    assert!(
        told.ends_with("; ingest is stopped: the disk is full"),
        "{told}"
    );
    let shared = held.opened().unwrap();
    assert_eq!(shared.progress().borrow().points, 1);
    // Not since it was opened: it lacks what came before that, too.
    let since_opened = shared.lag.read().behind;
    assert!(shared.behind() > since_opened);
    let key = (docs.name.clone(), Partition(0));
    let claim = |wanted: bool| {
        eventually(DEADLINE, "a claim", || {
            let state = alone.node.deps.control.snapshot();
            let (claim, epoch) = state.owner(&key.0, key.1)?;
            (claim.ready && claim.early == wanted).then_some(*epoch)
        })
    };
    let early = claim(true);
    // Who serves it goes on until it serves here.
    assert!(alone.node.may_claim(&key, &held, false));
    alone.claim(&docs, "other", true);
    assert!(!alone.node.may_claim(&key, &held, false));

    limit(&alone, false);
    eventually(DEADLINE, "the shard to catch up", || {
        assert!(held.answering().is_ok(), "what is searched stays so");
        held.serving().ok()
    });
    assert_eq!(shared.progress().borrow().points, 2);
    // Who waits with a patch until it serves hears of it.
    assert!(claim(false) > early);
    alone.node.deps.tasks.cancel().cancel();
    claims.join().unwrap();
}

#[test]
fn a_shard_that_takes_something_now_and_then_does_not_answer_before_it_has_caught_up() {
    let alone = alone();
    let docs = alone.define("docs", &[]);
    let held = held_back(&alone, &docs);
    let often = Duration::from_secs(3600);
    alone.node.have_held_back_answer(often);
    let since = || {
        let since = held.held_back_since.lock().unwrap();
        since.as_ref().map(|(_, next)| *next)
    };
    assert_eq!(since(), Some(1));
    limit(&alone, false);
    eventually(DEADLINE, "the shard to go on", || {
        let next = held.opened().unwrap().next_offset();
        (next == 2).then_some(())
    });
    alone.node.have_held_back_answer(often);
    assert_eq!(since(), None);
    assert!(!held.opened().unwrap().answers_early());
}

#[test]
fn a_shard_whose_first_load_a_limit_stops_does_not_answer() {
    let alone = alone();
    let docs = alone.define("docs", &[]);
    // It held all there was when there was nothing: that is no load.
    let key = alone.take(&docs);
    alone.node.let_go(&[key]);
    alone.publish(&docs, 1);
    limit(&alone, true);
    let held = alone.reopen(&docs);
    alone.node.have_held_back_answer(Duration::ZERO);
    let why = held.answering().err();
    assert_eq!(why, Some(lacks_one(Some(Reached::Disk))));
    limit(&alone, false);
    eventually(DEADLINE, "the shard to serve", || held.serving().ok());
    is_complete(&alone, &docs);
}
