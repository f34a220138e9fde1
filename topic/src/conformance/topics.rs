//! Checks of topics and of what the broker knows of them.

use std::{collections::BTreeMap, time::Duration};

use shoal_runtime::eventually;
use shoal_schemas::{Offset, TopicId};

use super::{DEADLINE, append, keyed, make, partition};
use crate::{AdminError, Cleanup, Cluster, TopicSpec, Watermarks};

pub(super) fn a_topic_is_made_described_listed_and_dropped(cluster: &Cluster, name: &str) {
    let admin = &cluster.admin;
    assert!(!admin.cluster_id().unwrap().0.is_empty());
    assert_eq!(
        admin.cluster_id().unwrap(),
        cluster.writer.cluster_id().unwrap()
    );
    assert_eq!(admin.describe_topic(name).unwrap(), None);
    let spec = TopicSpec {
        name: name.to_owned(),
        partitions: 3,
        replication_factor: Some(1),
        cleanup: Cleanup::Compact,
        settings: BTreeMap::from([("delete.retention.ms".to_owned(), "123456789".to_owned())]),
    };
    admin.create_topic(&spec).unwrap();
    let again = admin.create_topic(&spec).unwrap_err();
    assert!(
        matches!(&again, AdminError::Exists { name: found } if found == name),
        "{again}"
    );
    let found = admin
        .describe_topic(name)
        .unwrap()
        .expect("the topic that was made");
    assert_eq!(found.name, name);
    assert_eq!(found.partitions, 3);
    assert_eq!(found.replication_factor, Some(1));
    assert_eq!(found.cleanup, Cleanup::Compact);
    assert_eq!(found.settings["delete.retention.ms"], "123456789");
    assert_eq!(found.settings["cleanup.policy"], "compact");
    assert!(
        admin
            .list_topics()
            .unwrap()
            .iter()
            .any(|topic| topic == name)
    );
    let first = ids(cluster, name);
    assert_eq!(ids(cluster, name), first, "an id stays");
    admin.delete_topic(name).unwrap();
    eventually(DEADLINE, "the topic to be gone", || {
        admin.describe_topic(name).unwrap().is_none().then_some(())
    });
    admin.delete_topic(name).unwrap();
    admin.create_topic(&spec).unwrap();
    let anew = ids(cluster, name);
    assert_ne!(anew, first, "a topic that is made anew is another one");
    admin.delete_topic(name).unwrap();
    let none = TopicSpec {
        partitions: 0,
        ..spec
    };
    let refused = admin.create_topic(&none).unwrap_err();
    assert!(matches!(refused, AdminError::Refused { .. }), "{refused}");
}

/// The id of a topic that is there; asked for between two that are not.
fn ids(cluster: &Cluster, name: &str) -> TopicId {
    let absent = format!("{name}.absent");
    // Each broker hears of a new topic in its own time.
    eventually(DEADLINE, "the topic to have an id", || {
        let told = cluster.admin.topic_ids(&[&absent, name, &absent], DEADLINE);
        match told.unwrap().as_slice() {
            [None, Some(id), None] => Some(id.clone()),
            [None, None, None] => None,
            other => panic!("ids of topics that are not there: {other:?}"),
        }
    })
}

pub(super) fn watermarks_are_the_ends_and_a_missing_partition_is_named(
    cluster: &Cluster,
    name: &str,
) {
    let partitions = make(cluster, name, 2);
    let marks = |number: usize| {
        // A topic that was just made may have no leader yet, which passes.
        let told = eventually(DEADLINE, "the partition to have a leader", || match cluster
            .admin
            .watermarks(&partitions[number], DEADLINE)
        {
            Err(AdminError::Unreachable { .. }) => None,
            told => Some(told),
        });
        told.unwrap()
    };
    let empty = Watermarks {
        low: Offset(0),
        high: Offset(0),
    };
    assert_eq!(marks(0), empty);
    for _ in 0..3 {
        append(cluster, &partitions[1], &keyed("k", "v"));
    }
    assert_eq!(marks(0), empty);
    assert_eq!(
        marks(1),
        Watermarks {
            low: Offset(0),
            high: Offset(3),
        }
    );
    for absent in [partition(name, 7), partition(&format!("{name}.absent"), 0)] {
        let missing = cluster
            .admin
            .watermarks(&absent, Duration::from_secs(10))
            .unwrap_err();
        assert!(
            matches!(&missing, AdminError::Missing { partition } if *partition == absent),
            "{missing}"
        );
    }
}

pub(super) fn advice_is_committed_for_a_group_without_members(cluster: &Cluster, name: &str) {
    let partitions = make(cluster, name, 2);
    let first = partitions[0].clone();
    let advice = [(first.clone(), Offset(41))];
    cluster.admin.commit_advice(name, &advice).unwrap();
    let advice = [(first, Offset(42))];
    cluster.admin.commit_advice(name, &advice).unwrap();
    let found = cluster.admin.committed(name, &partitions).unwrap();
    assert_eq!(found, vec![Some(Offset(42)), None]);
}
