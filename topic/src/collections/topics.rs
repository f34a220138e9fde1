//! The topics of a collection: how they are made, and whether one that is there will do.
//!
//! A topic is never altered here. Of one that is there only what the collection rests on is
//! asked, and each fault names the value found, the value needed and the command that sets it.

use std::collections::BTreeMap;

use shoal_schemas::Collection;

use super::CreateError;
use crate::{Admin, AdminError, Cleanup, TopicSpec};

/// What a record takes beside key and value: headers, ours and a few of others, and its batch.
const OVERHEAD_BYTES: u64 = 16 << 10;
/// What a dead-letter record takes beyond that: where it came from and why it was refused.
const DLQ_OVERHEAD_BYTES: u64 = 16 << 10;
/// Kafka's limit is about whole batches, so a topic of tiny records still takes a producer's
/// usual batch.
const BATCH_FLOOR_BYTES: u64 = 2 << 20;
/// Superseded share of the log at which Kafka compacts: a rebuild reads at most a third more
/// than what lives, and the cleaner rewrites a quarter as often as the strictest setting.
const MIN_CLEANABLE_DIRTY_RATIO: &str = "0.25";
/// 14 days to look at a refused record.
const DLQ_RETENTION_MS: u64 = 14 * 24 * 60 * 60 * 1000;

/// Which of a collection's topics.
#[derive(Clone, Copy, Debug)]
pub(super) enum Which {
    /// The points.
    Home,
    /// What was refused.
    DeadLetter,
}

/// The home topic as it has to be.
pub(super) fn home(collection: &Collection) -> TopicSpec {
    let record_bytes = u64::from(collection.max_record_bytes);
    let message_bytes = (record_bytes + OVERHEAD_BYTES).max(BATCH_FLOOR_BYTES);
    TopicSpec {
        name: collection.topic(),
        partitions: collection.partitions,
        replication_factor: collection.replication_factor,
        cleanup: Cleanup::Compact,
        settings: settings([
            (
                "delete.retention.ms",
                collection.delete_retention_ms.to_string(),
            ),
            ("max.message.bytes", message_bytes.to_string()),
            ("message.timestamp.type", "CreateTime".into()),
            (
                "min.cleanable.dirty.ratio",
                MIN_CLEANABLE_DIRTY_RATIO.into(),
            ),
        ]),
    }
}

/// The dead-letter topic as it has to be.
///
/// It has as many partitions as the home topic: the shard that refuses a record writes to the
/// partition of its own number, so entries of one source stand in its order, and one shard's
/// flood of bad records leaves the others' entries readable.
pub(super) fn dead_letter(collection: &Collection) -> TopicSpec {
    let record_bytes = u64::from(collection.max_record_bytes);
    // A refused record may be anything the home topic took.
    let home_bytes = (record_bytes + OVERHEAD_BYTES).max(BATCH_FLOOR_BYTES);
    TopicSpec {
        name: collection.home().dlq_topic(),
        partitions: collection.partitions,
        replication_factor: collection.replication_factor,
        cleanup: Cleanup::Delete,
        settings: settings([
            (
                "max.message.bytes",
                (home_bytes + DLQ_OVERHEAD_BYTES).to_string(),
            ),
            ("message.timestamp.type", "CreateTime".into()),
            ("retention.ms", DLQ_RETENTION_MS.to_string()),
        ]),
    }
}

fn settings<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs.map(|(key, value)| (key.to_owned(), value)).into()
}

/// Makes the topic, or checks the one that is there.
///
/// # Errors
/// [`CreateError::Topic`] and [`CreateError::Misfit`].
pub(super) fn ensure(
    admin: &dyn Admin,
    which: Which,
    collection: &Collection,
) -> Result<(), CreateError> {
    let wanted = match which {
        Which::Home => home(collection),
        Which::DeadLetter => dead_letter(collection),
    };
    let failed = |source| CreateError::Topic {
        topic: wanted.name.clone(),
        source,
    };
    let mut found = admin.describe_topic(&wanted.name).map_err(failed)?;
    if found.is_none() {
        match admin.create_topic(&wanted) {
            Ok(()) => return Ok(()),
            // Another call was faster; its topic is looked at like any other.
            Err(AdminError::Exists { .. }) => {}
            Err(source) => return Err(failed(source)),
        }
        found = admin.describe_topic(&wanted.name).map_err(failed)?;
    }
    let Some(found) = found else {
        return Err(failed(AdminError::Unreachable {
            detail: "the topic was there a moment ago and cannot be described".into(),
        }));
    };
    let faults = match which {
        Which::Home => home_faults(&found, &wanted, collection),
        Which::DeadLetter => dead_letter_faults(&found, &wanted, collection),
    };
    if faults.is_empty() {
        Ok(())
    } else {
        Err(CreateError::Misfit {
            topic: wanted.name,
            faults,
        })
    }
}

/// What keeps a topic that is there from being a home topic.
pub(super) fn home_faults(
    found: &TopicSpec,
    wanted: &TopicSpec,
    collection: &Collection,
) -> Vec<String> {
    let mut faults = shape_faults(found, wanted);
    let policy = policy(found);
    if !policy.contains("compact") {
        faults.push(format!(
            "cleanup.policy is `{policy}`, it has to be `compact`, or old points vanish with \
             their segments; {}",
            alter(found, "cleanup.policy=compact")
        ));
    } else if policy.contains("delete") {
        faults.push(format!(
            "cleanup.policy is `{policy}`, its `delete` drops points by age; {}",
            alter(found, "cleanup.policy=compact")
        ));
    }
    let retention = collection.delete_retention_ms;
    if let Some(has) = number(found, "delete.retention.ms")
        && has < retention
    {
        faults.push(format!(
            "delete.retention.ms is {has}, the collection promises {retention}: a shard that is \
             away for longer misses deletes; {}, or define the collection with \
             delete_retention_ms {has}",
            alter(found, &format!("delete.retention.ms={retention}"))
        ));
    }
    faults.extend(message_fault(found, wanted, collection));
    if let Some(kind) = found.settings.get("message.timestamp.type")
        && kind != "CreateTime"
    {
        faults.push(format!(
            "message.timestamp.type is `{kind}`, it has to be `CreateTime`: the timestamp is the \
             version of a record that carries none, and has to be the same in every region; {}",
            alter(found, "message.timestamp.type=CreateTime")
        ));
    }
    faults
}

fn dead_letter_faults(
    found: &TopicSpec,
    wanted: &TopicSpec,
    collection: &Collection,
) -> Vec<String> {
    let mut faults = shape_faults(found, wanted);
    let policy = policy(found);
    if policy.contains("compact") {
        faults.push(format!(
            "cleanup.policy is `{policy}`, it has to be `delete`: compaction would keep one \
             refused record an id and refuse those without; {}",
            alter(found, "cleanup.policy=delete")
        ));
    }
    faults.extend(message_fault(found, wanted, collection));
    faults
}

fn shape_faults(found: &TopicSpec, wanted: &TopicSpec) -> Vec<String> {
    let mut faults = Vec::new();
    if found.partitions != wanted.partitions {
        faults.push(format!(
            "it has {} partitions, the collection is defined with {}: define it with {}, or give \
             it another name and publish anew (adding partitions would move keys to other shards)",
            found.partitions, wanted.partitions, found.partitions
        ));
    }
    if let (Some(has), Some(replicas)) = (found.replication_factor, wanted.replication_factor)
        && has < replicas
    {
        faults.push(format!(
            "it has {has} replicas, the collection is defined with {replicas}: reassign its \
             partitions with kafka-reassign-partitions, or define the collection with \
             replication_factor {has}"
        ));
    }
    faults
}

/// Asks for the collection's records alone, without the room a new topic gets: Kafka's default of
/// 1 MiB and a few bytes does for a collection's default of 1 MiB. A record that only just does
/// not fit is refused by name when it is published.
fn message_fault(found: &TopicSpec, wanted: &TopicSpec, collection: &Collection) -> Option<String> {
    let has = number(found, "max.message.bytes")?;
    let needed = u64::from(collection.max_record_bytes);
    let new = number(wanted, "max.message.bytes").unwrap_or(needed);
    (has < needed).then(|| {
        format!(
            "max.message.bytes is {has}, records of this collection have up to {needed}; {}, or \
             define the collection with max_record_bytes {has}",
            alter(found, &format!("max.message.bytes={new}"))
        )
    })
}

fn policy(found: &TopicSpec) -> String {
    let by_kind = match found.cleanup {
        Cleanup::Compact => "compact",
        Cleanup::Delete => "delete",
    };
    let reported = found.settings.get("cleanup.policy");
    reported.cloned().unwrap_or_else(|| by_kind.to_owned())
}

fn number(spec: &TopicSpec, setting: &str) -> Option<u64> {
    spec.settings.get(setting)?.parse().ok()
}

fn alter(topic: &TopicSpec, setting: &str) -> String {
    format!(
        "set it with `kafka-configs --alter --entity-type topics --entity-name {} --add-config \
         {setting}`",
        topic.name
    )
}
