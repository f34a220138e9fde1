//! Who lives, by the ears of one node.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use shoal_runtime::eventually;
use shoal_schemas::{Collection, Metric, control::Announcement};
use shoal_topic::control::ControlState;

use super::{Decision, members};
use crate::{
    config::Ownership,
    node::{
        alone::{Alone, DEADLINE},
        kept::Kept,
    },
};

const fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn heard(nodes: &[(&str, u64)]) -> ControlState {
    let mut state = ControlState::default();
    for (name, seconds) in nodes {
        let announced = Announcement {
            address: format!("{name}:1"),
            set: None,
            labels: [("disk".to_owned(), "nvme".to_owned())].into(),
            weight: 1,
            lease_ms: 10_000,
            beat: 1,
        };
        state
            .nodes
            .insert((*name).to_owned(), (announced, at(*seconds)));
    }
    state
}

fn living(state: &ControlState, listening: u64, now: u64) -> Vec<String> {
    let members = members(state, None, at(listening), at(now));
    members.into_iter().map(|member| member.name).collect()
}

#[test]
fn a_node_lives_until_its_lease_is_over() {
    let state = heard(&[("a", 100), ("b", 95)]);
    assert_eq!(living(&state, 1, 105), ["a", "b"]);
    assert_eq!(living(&state, 1, 106), ["a"]);
    let set = "b".parse().unwrap();
    assert!(members(&state, Some(&set), at(1), at(100)).is_empty());
}

#[test]
fn nobody_dies_of_a_silence_in_which_nobody_could_be_heard() {
    let state = heard(&[("a", 100)]);
    // The broker was away until then.
    assert_eq!(living(&state, 161, 171), ["a"]);
    assert_eq!(living(&state, 161, 172), Vec::<String>::new());
}

#[test]
fn every_shard_is_given_to_one_node_and_what_none_may_serve_is_told() {
    let mut state = heard(&[("a", 1), ("b", 1), ("c", 1)]);
    let define = |name: &str, labels: &[(&str, &str)]| {
        let dim = 3.try_into().unwrap();
        let mut docs = Collection::new(name.parse().unwrap(), dim, Metric::L2, 16);
        let labels = labels.iter();
        docs.placement = labels
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        docs
    };
    for docs in [
        define("fast", &[("disk", "nvme")]),
        define("gpu", &[("gpu", "true")]),
    ] {
        state.collections.insert(docs.name.clone(), docs);
    }
    let living = members(&state, None, at(1), at(2));
    let decisions = ["a", "b", "c"].map(|name| Decision::of(name, &living, &state));
    let all: usize = decisions.iter().map(|one| one.own.len()).sum();
    assert_eq!(all, 16);
    for one in &decisions {
        assert!(one.own.iter().all(|(name, _)| name.as_str() == "fast"));
        assert!(
            one.own.len() <= 7,
            "a quarter above the mean: {}",
            one.own.len()
        );
        assert_eq!(one.nobodys.len(), 16);
    }
}

/// One round of a node to which the ring gives these shards.
fn follow(alone: &Alone, decision: &Decision, kept: &mut Kept) {
    let state = alone.node.deps.control.snapshot();
    let followed = alone.node.follow(decision, &state, &alone.cluster_id, kept);
    followed.unwrap();
    alone.node.drop_overtaken(kept);
}

#[test]
fn a_shard_that_the_ring_gives_away_is_served_until_a_moment_after_another_node_serves_it() {
    let alone = Alone::new(Ownership::Ring { lease: at(600) });
    let docs = alone.define("docs", &[]);
    let key = alone.take(&docs);
    alone.claim(&docs, alone.node.name(), true);
    let (away, mut kept) = (Decision::default(), Kept::new());
    let has_it = || alone.node.shard(&key).is_some();
    for _ in 0..3 {
        follow(&alone, &away, &mut kept);
        assert!(has_it(), "nobody else serves it");
    }
    alone.claim(&docs, "other", true);
    follow(&alone, &away, &mut kept);
    assert!(has_it(), "not all who ask have read that claim");
    // The ring changes its mind: then it is this node's like any other.
    let back = Decision {
        own: [key.clone()].into(),
        ..Decision::default()
    };
    follow(&alone, &back, &mut kept);
    assert!(has_it() && kept.is_empty());
    follow(&alone, &away, &mut kept);
    eventually(DEADLINE, "the shard to be let go", || {
        follow(&alone, &away, &mut kept);
        (!has_it()).then_some(())
    });
    assert!(kept.is_empty());
}

#[test]
fn a_node_claims_what_another_serves_only_if_it_has_caught_up_since_it_decided_anew() {
    let alone = Alone::new(Ownership::Ring { lease: at(600) });
    let docs = alone.define("docs", &[]);
    let key = alone.take(&docs);
    let (node, mut kept) = (&alone.node, Kept::new());
    let held = node.shard(&key).unwrap();
    let given = Decision {
        own: [key.clone()].into(),
        ..Decision::default()
    };
    follow(&alone, &given, &mut kept);
    assert!(
        !node.may_claim(&key, &held, true),
        "what was given before says nothing until it is decided"
    );
    let now = node.deps.clock.monotonic();
    node.listening.decided(now, now);
    assert!(node.may_claim(&key, &held, false), "nobody has it");

    alone.announce("other");
    alone.claim(&docs, "other", true);
    assert!(!node.may_claim(&key, &held, false));
    assert!(
        !node.may_claim(&key, &held, true),
        "that it had caught up was before"
    );
    let lag = &held.opened().unwrap().lag;
    lag.heard(0, lag.now(), shoal_schemas::Offset(0));
    assert!(node.may_claim(&key, &held, true));
    node.listening.undecided();
    assert!(!node.may_claim(&key, &held, true));
}
