//! What every log behind the traits has to do. Each implementation's tests call [`all`].
//!
//! Every check makes topics of its own under a name the caller keeps unique, so a suite may run
//! against a broker that others use. A check fails by panicking, with what it wanted.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a suite of tests fails by panicking"
)]

mod groups;
mod reading;
mod topics;
mod writing;

use std::{collections::BTreeMap, time::Duration};

use shoal_runtime::{clock::Stopwatch, eventually};
use shoal_schemas::{Offset, Partition, Record};

use crate::{
    Cleanup, Cluster, Fetched, FetchedRecord, Reader, Start, TopicPartition, TopicSpec,
    park::block_on_for,
};

/// Longest that any step may take on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Compacts the topic of that name before it returns.
pub type Compact = Box<dyn Fn(&str) + Send + Sync>;

/// The implementation under test.
pub struct Fixture {
    /// The cluster.
    pub cluster: Cluster,
    /// The same cluster through a client that queues few records (at most 64).
    pub small_queue: Cluster,
    /// Compacts a topic now, where the implementation can.
    pub compact: Option<Compact>,
}

/// Runs every check. `unique` begins the names of all topics and groups that are made.
///
/// # Panics
/// At the first check that fails.
pub fn all(fixture: &Fixture, unique: &str) {
    let cluster = &fixture.cluster;
    topics::a_topic_is_made_described_listed_and_dropped(cluster, &format!("{unique}.made"));
    topics::watermarks_are_the_ends_and_a_missing_partition_is_named(
        cluster,
        &format!("{unique}.marks"),
    );
    topics::advice_is_committed_for_a_group_without_members(cluster, &format!("{unique}.advice"));
    reading::records_come_back_in_order_as_they_were(cluster, &format!("{unique}.order"));
    reading::everything_is_read_however_little_is_held(cluster, &format!("{unique}.narrow"));
    reading::a_start_is_explicit_and_never_jumps(cluster, &format!("{unique}.starts"));
    reading::two_sources_of_one_number_are_told_apart(cluster, &format!("{unique}.two"));
    reading::ends_are_told_and_new_records_follow_them(cluster, &format!("{unique}.ends"));
    reading::a_missing_topic_is_named(cluster, &format!("{unique}.missing"));
    if let Some(compact) = &fixture.compact {
        reading::gaps_are_stepped_over(cluster, compact, &format!("{unique}.gaps"));
    }
    writing::a_delivery_names_its_place(cluster, &format!("{unique}.place"));
    writing::what_no_topic_takes_is_refused_by_name(cluster, &format!("{unique}.refused"));
    writing::a_full_queue_refuses_and_loses_nothing(
        &fixture.small_queue,
        &format!("{unique}.queue"),
    );
    groups::partitions_are_shared_out_and_handed_over(cluster, &format!("{unique}.group"));
}

/// Makes a topic and names its partitions.
fn make(cluster: &Cluster, name: &str, partitions: u32) -> Vec<TopicPartition> {
    make_with(cluster, name, partitions, &[])
}

fn make_with(
    cluster: &Cluster,
    name: &str,
    partitions: u32,
    settings: &[(&str, &str)],
) -> Vec<TopicPartition> {
    let spec = TopicSpec {
        name: name.to_owned(),
        partitions,
        replication_factor: Some(1),
        cleanup: Cleanup::Compact,
        settings: settings
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>(),
    };
    cluster.admin.create_topic(&spec).unwrap();
    (0..partitions)
        .map(|number| partition(name, number))
        .collect()
}

fn partition(topic: &str, number: u32) -> TopicPartition {
    TopicPartition {
        topic: topic.into(),
        partition: Partition(number),
    }
}

fn keyed(key: &str, value: &str) -> Record {
    Record {
        key: Some(key.to_owned().into()),
        value: Some(value.to_owned().into()),
        headers: Vec::new(),
        timestamp_ms: 0,
    }
}

/// Appends one record and waits for its offset.
fn append(cluster: &Cluster, to: &TopicPartition, record: &Record) -> Offset {
    let delivery = cluster.writer.send(to, record).unwrap();
    let delivered = block_on_for(delivery, DEADLINE).expect("the record to be acknowledged");
    delivered.unwrap().offset
}

fn open(cluster: &Cluster, at: &TopicPartition, start: Start) -> Box<dyn Reader> {
    cluster.connect.open_reader(&[(at.clone(), start)]).unwrap()
}

/// Polls until `enough` of what has come so far.
fn read_until(reader: &mut dyn Reader, what: &str, enough: impl Fn(&Fetched) -> bool) -> Fetched {
    let watch = Stopwatch::start();
    let mut all = Fetched::default();
    while !enough(&all) {
        assert!(watch.elapsed() < DEADLINE, "waited for {what}, got {all:?}");
        match reader.poll(100, Duration::from_millis(200)) {
            Ok(fetched) => {
                all.records.extend(fetched.records);
                all.ends.extend(fetched.ends);
            }
            Err(error) if error.kind() == shoal_runtime::ErrorKind::Retry => {}
            Err(error) => panic!("waited for {what}, got {error}"),
        }
    }
    all
}

fn read_records(reader: &mut dyn Reader, count: usize) -> Vec<FetchedRecord> {
    let what = format!("{count} records");
    let all = read_until(reader, &what, |all| all.records.len() >= count).records;
    assert_eq!(all.len(), count);
    all
}

/// Polls until an error that is not "try again" comes.
fn read_failure(reader: &mut dyn Reader, what: &str) -> crate::ReadError {
    eventually(DEADLINE, what, || {
        match reader.poll(100, Duration::from_millis(200)) {
            Ok(fetched) => {
                assert_eq!(fetched.records, vec![], "waited for {what}");
                None
            }
            Err(error) if error.kind() == shoal_runtime::ErrorKind::Retry => None,
            Err(error) => Some(error),
        }
    })
}
