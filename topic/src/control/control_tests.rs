//! The control log over the log in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use shoal_runtime::{clock::System, eventually, tasks::Tasks};
use shoal_schemas::{
    Collection, CollectionName, Metric, Offset, Partition, Record, ReplicaSet,
    control::{Announcement, Claim, Entry, Key, Reindex},
    name::CONTROL_TOPIC,
};
use tokio_util::sync::CancellationToken;

use super::{ControlError, ControlHandle, ControlLog, EnsureError, control_partition};
use crate::{Cleanup, TopicSpec, memory::MemoryLog, park::block_on};

const DEADLINE: Duration = Duration::from_secs(20);

struct Followed {
    log: MemoryLog,
    tasks: Tasks,
    control: ControlHandle,
}

fn followed() -> Followed {
    let log = MemoryLog::new("memory", System::shared());
    ControlLog::ensure(&log.cluster(), None).unwrap();
    let tasks = Tasks::new(CancellationToken::new());
    let control = ControlLog::spawn(&log.cluster(), &tasks, System::shared()).unwrap();
    Followed {
        log,
        tasks,
        control,
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.tasks.cancel().cancel();
    }
}

fn docs() -> CollectionName {
    "docs".parse().unwrap()
}

fn collection() -> Entry {
    let dim = 384.try_into().unwrap();
    Entry::Collection(Box::new(Collection::new(docs(), dim, Metric::Cosine, 4)))
}

fn claim(node: &str) -> Entry {
    Entry::Shard(Claim {
        node: node.into(),
        address: "127.0.0.1:1".into(),
        ready: true,
        next_offset: None,
        early: false,
    })
}

#[test]
fn what_is_put_is_read_back_and_what_is_removed_is_gone() {
    let followed = followed();
    let control = &followed.control;
    let key = Key::Collection(docs());
    let put = control.put_blocking(&key, &collection()).unwrap();
    let state = control.wait_for_blocking(put, DEADLINE).unwrap();
    assert_eq!(state.collections[&docs()].partitions, 4);
    let removed = control.remove_blocking(&key).unwrap();
    let state = control.wait_for_blocking(removed, DEADLINE).unwrap();
    assert!(state.collections.is_empty());
}

#[test]
fn the_latest_claim_owns_and_its_offset_is_the_epoch() {
    let followed = followed();
    let control = &followed.control;
    let key = Key::Shard(docs(), Partition(3));
    let first = control.put_blocking(&key, &claim("a")).unwrap();
    let second = control.put_blocking(&key, &claim("b")).unwrap();
    assert!(second > first);
    let state = control.wait_for_blocking(second, DEADLINE).unwrap();
    let (claim, epoch) = state.owner(&docs(), Partition(3)).unwrap();
    assert_eq!((claim.node.as_str(), *epoch), ("b", second));
}

#[test]
fn a_replica_sets_claim_stands_beside_the_owners_and_takes_nothing_from_it() {
    let followed = followed();
    let control = &followed.control;
    let set: ReplicaSet = "b".parse().unwrap();
    let owner = Key::Shard(docs(), Partition(3));
    let replica = Key::Replica(docs(), Partition(3), set.clone());
    let first = control.put_blocking(&owner, &claim("a")).unwrap();
    let second = control.put_blocking(&replica, &claim("b")).unwrap();
    let state = control.wait_for_blocking(second, DEADLINE).unwrap();
    let node = |of: Option<&ReplicaSet>| {
        let (claim, epoch) = state.claim(&docs(), Partition(3), of).unwrap();
        (claim.node.clone(), *epoch)
    };
    assert_eq!(node(None), ("a".into(), first));
    assert_eq!(node(Some(&set)), ("b".into(), second));
    let removed = control.remove_blocking(&replica).unwrap();
    let state = control.wait_for_blocking(removed, DEADLINE).unwrap();
    assert!(state.replicas.is_empty() && state.shards.len() == 1);
}

#[test]
fn a_node_that_says_that_it_lives_changes_nothing_else_and_leaves_with_a_tombstone() {
    let followed = followed();
    let control = &followed.control;
    let key = Key::Node("a".into());
    let beat = |beat| {
        Entry::Node(Announcement {
            address: "127.0.0.1:1".into(),
            set: None,
            labels: [("gpu".to_owned(), "true".to_owned())].into(),
            weight: 1,
            lease_ms: 1000,
            beat,
        })
    };
    let state = |put| control.wait_for_blocking(put, DEADLINE).unwrap();
    let first = state(control.put_blocking(&key, &beat(1)).unwrap());
    let second = state(control.put_blocking(&key, &beat(2)).unwrap());
    assert_eq!(second.changed_at, first.changed_at);
    let (announced, heard_at) = &second.nodes["a"];
    assert_eq!(announced.beat, 2);
    assert!(*heard_at >= first.nodes["a"].1);
    // A claim says that its node lives, too.
    let shard = Key::Shard(docs(), Partition(0));
    let claimed = state(control.put_blocking(&shard, &claim("a")).unwrap());
    assert!(claimed.nodes["a"].1 >= *heard_at && claimed.changed_at > second.changed_at);
    let gone = control.remove_within(&key, DEADLINE).unwrap().unwrap();
    assert!(state(gone).nodes.is_empty());
}

#[test]
fn a_record_that_does_not_read_is_skipped_and_the_rest_is_taken() {
    let followed = followed();
    let control = &followed.control;
    let broken = |key: &str, value: &str| Record {
        key: Some(key.to_owned().into()),
        value: Some(value.to_owned().into()),
        ..Record::default()
    };
    for record in [
        broken("collection/docs", "not json"),
        broken("alias/newer", "{}"),
        Record {
            key: Some(vec![0xff, 0xfe].into()),
            ..Record::default()
        },
    ] {
        let cluster = followed.log.cluster();
        block_on(cluster.writer.send(&control_partition(), &record).unwrap()).unwrap();
    }
    let put = control
        .put_blocking(&Key::Collection(docs()), &collection())
        .unwrap();
    assert_eq!(put, Offset(3));
    let state = control.wait_for_blocking(put, DEADLINE).unwrap();
    assert_eq!(state.collections.len(), 1);
}

#[test]
fn it_goes_on_after_the_broker_was_away() {
    let followed = followed();
    let control = &followed.control;
    control.caught_up_blocking(DEADLINE).unwrap();
    followed.log.set_down(true);
    let not_yet = control
        .wait_for_blocking(Offset(0), Duration::ZERO)
        .unwrap_err();
    assert!(
        matches!(not_yet, ControlError::NotReadBack { .. }),
        "{not_yet}"
    );
    followed.log.set_down(false);
    let put = control
        .put_blocking(&Key::Collection(docs()), &collection())
        .unwrap();
    assert_eq!(
        control
            .wait_for_blocking(put, DEADLINE)
            .unwrap()
            .collections
            .len(),
        1
    );
}

#[test]
fn the_latest_run_of_a_reindexing_knows_whose_record_its_own_came_in_place_of() {
    let followed = followed();
    let control = &followed.control;
    let key = Key::Reindex(docs());
    let run = |run: &str, to: &str| Reindex {
        run: run.into(),
        from: docs(),
        to: to.parse().unwrap(),
        made: true,
    };
    let (one, other) = (run("a", "docs-g2"), run("b", "docs-x"));
    let first = control
        .put_blocking(&key, &Entry::Reindex(one.clone()))
        .unwrap();
    let state = control.wait_for_blocking(first, DEADLINE).unwrap();
    assert_eq!(state.reindexed_at[&docs()], (first, None));
    let second = control
        .put_blocking(&key, &Entry::Reindex(other.clone()))
        .unwrap();
    let state = control.wait_for_blocking(second, DEADLINE).unwrap();
    assert_eq!(state.reindexes[&docs()], other);
    assert_eq!(state.reindexed_at[&docs()], (second, Some(one)));
    let removed = control.remove_blocking(&key).unwrap();
    let state = control.wait_for_blocking(removed, DEADLINE).unwrap();
    assert!(state.reindexes.is_empty() && state.reindexed_at.is_empty());
}

#[test]
fn a_topic_made_anew_starts_the_copy_anew() {
    let followed = followed();
    let control = &followed.control;
    for name in ["a", "b"] {
        let key = Key::Shard(docs(), Partition(0));
        let put = control.put_blocking(&key, &claim(name)).unwrap();
        control.wait_for_blocking(put, DEADLINE).unwrap();
    }
    let cluster = followed.log.cluster();
    cluster.admin.delete_topic(CONTROL_TOPIC).unwrap();
    ControlLog::ensure(&cluster, None).unwrap();
    eventually(DEADLINE, "the old claims to be gone", || {
        control.snapshot().shards.is_empty().then_some(())
    });
    let put = control
        .put_blocking(&Key::Collection(docs()), &collection())
        .unwrap();
    assert_eq!(
        control
            .wait_for_blocking(put, DEADLINE)
            .unwrap()
            .collections
            .len(),
        1
    );
}

#[test]
fn a_control_topic_that_would_lose_entries_is_refused() {
    let log = MemoryLog::new("memory", System::shared());
    let spec = TopicSpec {
        name: CONTROL_TOPIC.into(),
        partitions: 3,
        replication_factor: None,
        cleanup: Cleanup::Delete,
        settings: std::collections::BTreeMap::new(),
    };
    log.cluster().admin.create_topic(&spec).unwrap();
    let refused = ControlLog::ensure(&log.cluster(), None).unwrap_err();
    assert!(
        matches!(refused, EnsureError::Mismatch { partitions: 3, .. }),
        "{refused}"
    );
}

#[test]
fn who_waits_is_told_when_the_follower_stops() {
    let followed = followed();
    followed.tasks.cancel().cancel();
    let stopped = followed
        .control
        .wait_for_blocking(Offset(9), DEADLINE)
        .unwrap_err();
    assert!(matches!(stopped, ControlError::Stopped), "{stopped}");
}
