//! Checks of consumer groups: sharing out, and handing over only what was let go.

use std::{collections::BTreeSet, time::Duration};

use shoal_runtime::clock::Stopwatch;
use shoal_schemas::Offset;

use super::{DEADLINE, make};
use crate::{Cluster, Membership, MembershipEvent, TopicPartition};

/// Short, as one thread plays all members.
const TURN: Duration = Duration::from_millis(50);

struct Node {
    seat: Box<dyn Membership>,
    owned: BTreeSet<TopicPartition>,
    /// Revoked and not let go yet.
    leaving: BTreeSet<TopicPartition>,
}

impl Node {
    fn join(cluster: &Cluster, group: &str) -> Self {
        Self {
            seat: cluster.connect.join(group, &[group.to_owned()]).unwrap(),
            owned: BTreeSet::new(),
            leaving: BTreeSet::new(),
        }
    }

    fn turn(&mut self) {
        match self.seat.poll(TURN) {
            Ok(Some(MembershipEvent::Assigned(partitions))) => self.owned.extend(partitions),
            Ok(Some(MembershipEvent::Revoked(partitions))) => self.leaving.extend(partitions),
            Ok(Some(MembershipEvent::Lost(partitions))) => panic!("lost {partitions:?}"),
            Ok(None) => {}
            Err(error) => assert_eq!(error.kind(), shoal_runtime::ErrorKind::Retry, "{error}"),
        }
    }

    fn let_go(&mut self) {
        if !self.leaving.is_empty() {
            self.owned.retain(|at| !self.leaving.contains(at));
            self.leaving.clear();
            self.seat.released();
        }
    }
}

pub(super) fn partitions_are_shared_out_and_handed_over(cluster: &Cluster, name: &str) {
    let all: BTreeSet<TopicPartition> = make(cluster, name, 4).into_iter().collect();
    let mut first = Node::join(cluster, name);
    until("the first member to have all", || {
        first.turn();
        first.let_go();
        first.owned == all
    });
    let advice: Vec<_> = all.iter().map(|at| (at.clone(), Offset(7))).collect();
    first.seat.commit_advice(&advice).unwrap();
    let listed: Vec<_> = all.iter().cloned().collect();
    until("the member's advice to be committed", || {
        first.turn();
        cluster.admin.committed(name, &listed).unwrap() == vec![Some(Offset(7)); 4]
    });

    let mut second = Node::join(cluster, name);
    until("the first member to be asked for some", || {
        first.turn();
        second.turn();
        !first.leaving.is_empty()
    });
    assert_eq!(first.leaving.len(), 2, "half of what it has");
    // It holds on for a while: the other gets nothing meanwhile.
    for _ in 0..20 {
        first.turn();
        second.turn();
        assert_eq!(second.owned.len(), 0, "handed over before it was let go");
    }
    let kept: BTreeSet<_> = first.owned.difference(&first.leaving).cloned().collect();
    until("both to have their half", || {
        first.turn();
        second.turn();
        first.let_go();
        second.let_go();
        first.owned.len() == 2 && second.owned.len() == 2
    });
    assert_eq!(
        first.owned, kept,
        "what was not revoked stayed where it was"
    );
    assert!(first.owned.is_disjoint(&second.owned));

    drop(first);
    until("the second member to have all again", || {
        second.turn();
        second.let_go();
        second.owned == all
    });
}

fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let watch = Stopwatch::start();
    while !reached() {
        assert!(watch.elapsed() < DEADLINE, "waited for {what}");
    }
}
