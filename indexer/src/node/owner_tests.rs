//! What is taken and what is not, and a group that cannot be served while shards drain.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use shoal_schemas::{Offset, Partition};
use shoal_topic::{Membership, MembershipEvent, ReadError, TopicPartition};

use super::{generations, keep_warm};
use crate::{config::Ownership, node::alone::Alone};

/// A seat that says these things, one a poll, and then nothing.
struct Says(VecDeque<Result<Option<MembershipEvent>, ReadError>>);

impl Membership for Says {
    fn poll(&mut self, _timeout: Duration) -> Result<Option<MembershipEvent>, ReadError> {
        self.0.pop_front().unwrap_or(Ok(None))
    }

    fn released(&mut self) {}

    fn commit_advice(&self, _positions: &[(TopicPartition, Offset)]) -> Result<(), ReadError> {
        Ok(())
    }

    fn subscribe(&mut self, _topics: &[String]) -> Result<(), ReadError> {
        Ok(())
    }
}

#[test]
fn a_group_that_cannot_be_served_is_rested_for_and_told_once() {
    let fails = || {
        Err(ReadError::Fatal {
            detail: "planted".into(),
        })
    };
    let lost = MembershipEvent::Lost(Vec::new());
    let said = [fails(), fails(), Ok(Some(lost.clone())), Ok(None), fails()];
    let mut seat = Says(said.into());
    let (mut events, mut is_troubled) = (VecDeque::new(), false);
    let mut seen = Vec::new();
    for _ in 0..5 {
        let before = is_troubled;
        let mut rested = Duration::ZERO;
        keep_warm(&mut seat, &mut events, &mut is_troubled, |time| {
            rested = time
        });
        seen.push((before, is_troubled, rested > Duration::ZERO));
    }
    assert_eq!(
        seen,
        [
            (false, true, true),
            (true, true, true),
            (true, false, false),
            (false, false, false),
            (false, true, true),
        ]
    );
    assert_eq!(events, [lost]);
}

#[test]
fn a_shard_whose_labels_a_node_lacks_is_not_taken_and_not_said_to_be() {
    let alone = Alone::new(Ownership::Static { shards: Vec::new() });
    let near = alone.define("near", &[]);
    let far = alone.define("far", &[("region", "elsewhere")]);
    let key = |of: &shoal_schemas::Collection| (of.name.clone(), Partition(0));
    let take = |key| alone.node.take_as(&key, &alone.cluster_id, false).unwrap();
    assert!(take(key(&near)));
    assert!(!take(key(&far)));
    assert!(alone.node.shard(&key(&near)).is_some() && alone.node.shard(&key(&far)).is_none());

    // Nor is it kept, whatever an earlier life of this node has claimed.
    for one in [&near, &far] {
        alone.claim(one, alone.node.name(), true);
    }
    let kept = alone.node.take_kept(&alone.cluster_id).unwrap();
    assert_eq!(kept.into_keys().collect::<Vec<_>>(), [key(&near)]);

    // The group is not told that nobody has defined it.
    let readers = generations::by_topic(&alone.node.deps.control.snapshot());
    let take = |readers: &BTreeMap<_, _>| {
        let partition = TopicPartition {
            topic: far.topic().into(),
            partition: Partition(0),
        };
        let taken = alone.node.take(&partition, readers, &alone.cluster_id);
        taken.unwrap()
    };
    assert!(take(&readers));
    assert!(!take(&BTreeMap::new()));
}
