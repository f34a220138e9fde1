//! Who writes dead letters, and whose folders go.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, sync::Arc, time::Duration};

use shoal_runtime::eventually;
use shoal_schemas::{Collection, Metric, Offset};
use shoal_topic::control::ControlState;

use super::{by_topic, followers, is_dropped};
use crate::{
    config::Ownership,
    node::alone::{Alone, DEADLINE},
};

fn alone() -> Alone {
    Alone::new(Ownership::Static { shards: Vec::new() })
}

fn named(name: &str, reads: Option<&str>) -> Collection {
    Collection {
        reads: reads.map(|other| other.parse().unwrap()),
        ..Collection::new(name.parse().unwrap(), 3.try_into().unwrap(), Metric::L2, 1)
    }
}

#[test]
fn the_collection_defined_first_follows_none_and_its_end_makes_the_next_the_first() {
    // By name the newer one would come first.
    let (older, newer) = (named("docs", None), named("a-docs", Some("docs")));
    let other = named("other", None);
    let mut state = ControlState::default();
    for (at, one) in [(1, &older), (2, &newer), (0, &other)] {
        state.defined_at.insert(one.name.clone(), Offset(at));
        state.collections.insert(one.name.clone(), one.clone());
    }
    assert_eq!(followers(&state), [newer.name.clone()].into());
    let topics = by_topic(&state);
    assert_eq!(
        topics["embeddings.docs"],
        [newer.name.clone(), older.name.clone()]
    );
    assert_eq!(topics["embeddings.other"], [other.name]);
    state.collections.remove(&older.name);
    assert!(followers(&state).is_empty());
}

#[test]
fn a_collection_is_dropped_if_the_topic_that_defined_it_was_read_to_its_end_and_has_others() {
    let (gone, other) = (named("gone", None), named("other", None));
    let mut state = ControlState {
        next_offset: Offset(9),
        caught_up_at: Some(Duration::from_secs(1)),
        ..ControlState::default()
    };
    let dropped = |state: &ControlState, at| is_dropped(state, &gone.name, Offset(at));
    assert!(!dropped(&state, 3), "a topic without a definition was lost");
    state.collections.insert(other.name.clone(), other.clone());
    assert!(dropped(&state, 3) && dropped(&state, 8));
    assert!(
        !dropped(&state, 9),
        "a topic that ends before is another one"
    );
    state.caught_up_at = None;
    assert!(!dropped(&state, 3), "it may still come");
    state.caught_up_at = Some(Duration::from_secs(1));
    state.collections.insert(gone.name.clone(), gone.clone());
    assert!(!dropped(&state, 3));
}

#[test]
fn a_shard_whose_collection_was_dropped_goes_with_its_folder() {
    let alone = alone();
    let (_other, docs) = (alone.define("other", &[]), alone.define("docs", &[]));
    let key = alone.take(&docs);
    let mut seen = None;
    alone.round(&mut seen);
    assert!(alone.folder(&docs).exists());
    alone.drop_definition(&docs);
    alone.round(&mut seen);
    assert!(alone.node.shard(&key).is_none());
    assert!(!alone.folder(&docs).exists() && !alone.folder(&docs).parent().unwrap().exists());
}

#[test]
fn a_control_topic_that_comes_back_with_one_definition_takes_no_other_folder_away() {
    let alone = alone();
    let (other, docs) = (alone.define("other", &[]), alone.define("docs", &[]));
    let keys = [alone.take(&other), alone.take(&docs)];
    let mut seen = None;
    alone.round(&mut seen);
    // Between two rounds it is lost, made anew, and has its first definition again.
    alone.lose_control(&[&other]);
    alone.round(&mut seen);
    assert!(alone.node.shard(&keys[0]).is_some() && alone.node.shard(&keys[1]).is_none());
    assert!(alone.folder(&docs).exists());
    // Nor does a node that starts now.
    alone.round(&mut None);
    assert!(alone.folder(&docs).exists());
}

#[test]
fn a_folder_of_a_shard_that_was_let_go_before_is_removed_once_the_map_is_read() {
    let alone = alone();
    let [_other, docs, kept] = ["other", "docs", "kept"].map(|name| alone.define(name, &[]));
    for one in [&docs, &kept] {
        let key = alone.take(one);
        alone.node.let_go(&[key]);
        assert!(alone.folder(one).exists());
    }
    let aside = alone.folder(&docs).with_file_name("0.aside-0");
    fs::create_dir(&aside).unwrap();
    let foreign = alone.folder(&docs).with_file_name("1");
    fs::create_dir(&foreign).unwrap();
    let identity = fs::read_to_string(alone.folder(&docs).join("shard.json")).unwrap();
    let identity = identity.replace("test-cluster", "another-cluster");
    fs::write(foreign.join("shard.json"), identity).unwrap();
    alone.drop_definition(&docs);
    alone.round(&mut None);
    assert!(!alone.folder(&docs).exists());
    assert!(aside.exists(), "what was set aside is for a person");
    assert!(foreign.exists(), "it is of another cluster");
    assert!(alone.folder(&kept).exists(), "it is defined");
}

#[test]
fn claims_that_the_broker_does_not_take_back_hold_nothing_up() {
    let alone = Arc::new(alone());
    let docs = alone.define("docs", &[]);
    alone.define("other", &[]);
    alone.claim(&docs, alone.node.name(), true);
    alone.drop_definition(&docs);
    alone.writer.fall_silent();
    let round = std::thread::spawn({
        let alone = alone.clone();
        move || alone.round(&mut None)
    });
    eventually(DEADLINE, "the round to end", || {
        round.is_finished().then_some(())
    });
    assert_eq!(alone.writer.unanswered(), 1);
}
