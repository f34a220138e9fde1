//! Reading: a blocking poll over partitions that start at explicit offsets.

use std::time::Duration;

use shoal_runtime::ErrorKind;
use shoal_schemas::{Offset, Record};

use crate::TopicPartition;

/// Where a partition is read from. Never "wherever the group was".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The oldest record there is.
    Beginning,
    /// This offset, or the next one there is. Above the end or below the beginning is
    /// [`ReadError::OutOfRange`], never a silent jump.
    At(Offset),
}

/// One record with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct FetchedRecord {
    /// Which of the reader's partitions, as an index into the slice it was opened with.
    pub source: usize,
    /// Its offset there.
    pub offset: Offset,
    /// Key, value, headers, timestamp.
    pub record: Record,
}

/// What one poll brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fetched {
    /// Records, in offset order within a source.
    pub records: Vec<FetchedRecord>,
    /// Sources whose end was reached after `records`, with the end's offset (the first that is
    /// not there yet). Gaps below it are compacted or control records and will never come.
    ///
    /// Each end is told once, when the partition has rested a moment. One that never rests may
    /// go without: compare the next offset with [`crate::Admin::watermarks`] there.
    pub ends: Vec<(usize, Offset)>,
}

impl Fetched {
    /// Bytes of the records' keys, values and headers.
    pub fn bytes(&self) -> u64 {
        let records = self.records.iter().map(|one| one.record.bytes());
        records.sum()
    }
}

/// First offset there is and first offset that is not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// The oldest record's offset.
    pub low: Offset,
    /// The next record's offset.
    pub high: Offset,
}

/// Follows some partitions of one cluster.
pub trait Reader: Send {
    /// Waits up to `timeout` for records and ends, and returns at most `max_records`.
    ///
    /// Returns as soon as there is anything; nothing within `timeout` is an empty [`Fetched`].
    ///
    /// # Errors
    /// [`ReadError`]; after a [`ErrorKind::Retry`] the same call may be made again and goes on
    /// where it was.
    fn poll(&mut self, max_records: usize, timeout: Duration) -> Result<Fetched, ReadError>;
}

/// Why reading failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No broker answers. The client goes on trying by itself.
    #[error("broker does not answer: {detail}")]
    Unreachable {
        /// librdkafka's words.
        detail: String,
    },
    /// The start offset is not in the partition.
    #[error("{partition} does not hold offset {offset}")]
    OutOfRange {
        /// The partition.
        partition: TopicPartition,
        /// The offset that was asked for.
        offset: Offset,
    },
    /// There is no such topic or partition.
    #[error("{partition} does not exist on this cluster")]
    Missing {
        /// The partition.
        partition: TopicPartition,
    },
    /// The broker refuses this client.
    #[error("broker refuses access: {detail}")]
    Denied {
        /// librdkafka's words.
        detail: String,
    },
    /// The client refuses its settings.
    #[error("kafka client refuses its settings: {detail}")]
    Config {
        /// librdkafka's words.
        detail: String,
    },
    /// Anything the client says is final.
    #[error("kafka client gave up: {detail}")]
    Fatal {
        /// librdkafka's words.
        detail: String,
    },
}

impl ReadError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable { .. } => ErrorKind::Retry,
            Self::OutOfRange { .. }
            | Self::Missing { .. }
            | Self::Denied { .. }
            | Self::Config { .. } => ErrorKind::Caller,
            Self::Fatal { .. } => ErrorKind::Closed,
        }
    }
}
