//! The dead-letter topic: refused records, unchanged, with their reason and origin.
//!
//! An offset is not taken as done before the refusals below it are acknowledged here, so a crash
//! can write an entry twice but never lose one; readers count an origin once.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use futures::{
    executor::block_on,
    future::{Either, join_all, select},
};
use shoal_runtime::{
    chain,
    clock::{Clock, Stopwatch},
};
use shoal_schemas::{Offset, Record, Rejection, Source, dlq, name::dlq_topic};
use shoal_topic::{Cluster, TopicPartition, WriteError};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

/// How long a failed round rests.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One refused record.
pub struct Refused {
    /// Where it stood.
    pub source: Source,
    /// Its offset there.
    pub offset: Offset,
    /// The record as it came.
    pub record: Record,
    /// Why.
    pub rejection: Rejection,
}

/// Writes refusals, all of them, before it returns. False if it was cancelled first.
pub fn put(
    cluster: &Cluster,
    clock: &dyn Clock,
    refused: &[Refused],
    cancel: &CancellationToken,
) -> bool {
    let mut left: Vec<(TopicPartition, Record)> = refused
        .iter()
        .map(|one| {
            let to = TopicPartition {
                topic: dlq_topic(&one.source.topic).into(),
                partition: one.source.partition,
            };
            let entry = dlq::entry(
                &one.record,
                &one.rejection,
                &one.source,
                one.offset,
                clock.now_ms(),
            );
            (to, entry)
        })
        .collect();
    while !left.is_empty() {
        if cancel.is_cancelled() {
            return false;
        }
        let sent: Vec<_> = left
            .iter()
            .map(|(to, entry)| cluster.writer.send(to, entry))
            .collect();
        let all = join_all(sent.into_iter().map(|one| async move {
            match one {
                Ok(delivery) => delivery.await.map(|_| ()),
                Err(error) => Err(error),
            }
        }));
        // A broker that is away is not waited for once the shard is to close.
        let cancelled = pin!(cancel.cancelled());
        let outcomes = match block_on(select(cancelled, all)) {
            Either::Left(_) => return false,
            Either::Right((outcomes, _)) => outcomes,
        };
        let mut failed = None;
        let mut outcomes = outcomes.into_iter();
        left.retain_mut(|(_, entry)| match outcomes.next() {
            Some(Err(WriteError::TooLarge { record_bytes, .. })) if has_content(entry) => {
                leave_content_out(entry, record_bytes);
                true
            }
            Some(Err(error)) => {
                failed = Some(error);
                true
            }
            Some(Ok(())) | None => false,
        });
        if let Some(failure) = failed {
            let entries = left.len();
            if failure.kind() == shoal_runtime::ErrorKind::Retry {
                warn!(entries, error = %chain(&failure), "dead letters wait for the broker");
            } else {
                error!(entries, error = %chain(&failure), "dead letters are refused, the shard waits");
            }
            wait(cancel, RETRY_AFTER);
        }
    }
    true
}

fn has_content(entry: &Record) -> bool {
    entry.value.as_ref().is_some_and(|value| !value.is_empty())
}

/// Empties the value of an entry that its topic does not take. Retrying it is refused again, which
/// is right: what it said is gone from here and stands in the origin's topic alone.
fn leave_content_out(entry: &mut Record, record_bytes: usize) {
    entry.value = Some(Bytes::new());
    for (name, detail) in &mut entry.headers {
        if name == dlq::DETAIL {
            let mut text = String::from_utf8_lossy(detail).into_owned();
            text.push_str(&format!(
                "; the value is left out, the record's {record_bytes} bytes do not fit the dead-letter topic"
            ));
            *detail = text.into();
        }
    }
}

/// Waits on a thread of ours, at most until cancelled.
pub fn wait(cancel: &CancellationToken, time: Duration) {
    let watch = Stopwatch::start();
    while watch.elapsed() < time && !cancel.is_cancelled() {
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
