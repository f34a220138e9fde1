//! A dead-letter topic from its beginning to the end it has now.

use std::{thread, time::Duration};

use shoal_runtime::{ErrorKind, clock::Stopwatch};
use shoal_schemas::{CollectionName, Offset, Partition, dlq::Item};
use shoal_topic::{AdminError, Cluster, ReadError, Start, TopicPartition};
use tracing::debug;

use super::ScanError;

/// Records a poll.
const BATCH: usize = 512;
/// Wait of a poll.
const POLL: Duration = Duration::from_millis(500);
/// Wait before a question is asked again.
const PAUSE: Duration = Duration::from_millis(100);
/// How long the broker may be silent before the reading is given up.
const SILENCE: Duration = Duration::from_secs(30);

/// Shows everything to `visit`, until it says no; returns how many records do not read.
///
/// Blocks. What stands in one partition comes in order.
pub(super) fn scan(
    cluster: &Cluster,
    collection: &CollectionName,
    mut visit: impl FnMut(Item) -> bool,
) -> Result<u64, ScanError> {
    let topic = collection.dlq_topic();
    let describe = |source| ScanError::Describe {
        topic: topic.clone(),
        source,
    };
    let read = |source| ScanError::Read {
        topic: topic.clone(),
        source,
    };
    let missing = || ScanError::Missing {
        topic: topic.clone(),
    };
    let found = patiently(|| cluster.admin.describe_topic(&topic)).map_err(describe)?;
    let partitions = found.ok_or_else(missing)?.partitions;
    let mut starts = Vec::new();
    let mut ends = Vec::new();
    for partition in (0..partitions).map(Partition) {
        let at = TopicPartition {
            topic: topic.as_str().into(),
            partition,
        };
        let marks = patiently(|| cluster.admin.watermarks(&at, SILENCE)).map_err(describe)?;
        if marks.low < marks.high {
            starts.push((at, Start::Beginning));
            ends.push(Some(marks.high));
        }
    }
    let mut unreadable = 0;
    if starts.is_empty() {
        return Ok(unreadable);
    }
    let mut reader = cluster.connect.open_reader(&starts).map_err(read)?;
    let mut heard = Stopwatch::start();
    while ends.iter().any(Option::is_some) {
        let fetched = match reader.poll(BATCH, POLL) {
            Ok(fetched) => fetched,
            Err(error) if error.kind() == ErrorKind::Retry && heard.elapsed() < SILENCE => {
                debug!(%error, "dead-letter topic is read on");
                continue;
            }
            Err(error) => return Err(read(error)),
        };
        if !fetched.records.is_empty() || !fetched.ends.is_empty() {
            heard = Stopwatch::start();
        } else if heard.elapsed() >= SILENCE {
            return Err(read(ReadError::Unreachable {
                detail: format!("nothing came for {SILENCE:?}"),
            }));
        }
        for fetched in fetched.records {
            match Item::decode(&fetched.record) {
                Ok(item) => {
                    if !visit(item) {
                        return Ok(unreadable);
                    }
                }
                Err(error) => {
                    debug!(%error, offset = %fetched.offset, "no dead-letter entry");
                    unreadable += 1;
                }
            }
            reached(&mut ends, fetched.source, fetched.offset.next());
        }
        for (source, end) in fetched.ends {
            reached(&mut ends, source, end);
        }
    }
    Ok(unreadable)
}

/// Asks again while the broker has only no answer yet, as with a topic that was just made.
fn patiently<T>(ask: impl Fn() -> Result<T, AdminError>) -> Result<T, AdminError> {
    let watch = Stopwatch::start();
    loop {
        match ask() {
            Err(error) if error.kind() == ErrorKind::Retry && watch.elapsed() < SILENCE => {
                debug!(%error, "asked again");
                thread::park_timeout(PAUSE);
            }
            answer => return answer,
        }
    }
}

fn reached(ends: &mut [Option<Offset>], source: usize, next: Offset) {
    if let Some(end) = ends.get_mut(source)
        && end.is_some_and(|end| next >= end)
    {
        *end = None;
    }
}
