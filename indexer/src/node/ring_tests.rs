//! Who lives, by the ears of one node.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use shoal_schemas::{Collection, Metric, control::Announcement};
use shoal_topic::control::ControlState;

use super::{Decision, Listening, members};

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
    let mut state = heard(&[("a", 100)]);
    let listening = Listening::default();
    state.caught_up_at = Some(at(100));
    assert_eq!(listening.look(&state, at(101)), Some(at(101)));
    assert_eq!(listening.look(&state, at(102)), Some(at(101)));
    // The broker is away for a minute.
    assert_eq!(listening.look(&state, at(160)), None);
    state.caught_up_at = Some(at(161));
    assert_eq!(listening.look(&state, at(161)), Some(at(161)));
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
