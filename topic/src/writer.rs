//! Writing: one record in, its place in the log out, once it is acknowledged.

use std::{future::Future, pin::Pin};

use shoal_runtime::ErrorKind;
use shoal_schemas::{ClusterId, Offset, Partition, Record};

use crate::TopicPartition;

/// Where a record went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Its partition.
    pub partition: Partition,
    /// Its offset.
    pub offset: Offset,
}

/// A delivery under way. Dropping it does not take the record back.
pub type DeliveryFuture = Pin<Box<dyn Future<Output = Result<Delivery, WriteError>> + Send>>;

/// Appends records: idempotent, acknowledged by all in-sync replicas, in order per partition.
pub trait Writer: Send + Sync {
    /// Queues one record and returns its delivery.
    ///
    /// Queued in the order of the calls. When the local queue is full it fails at once with
    /// [`WriteError::QueueFull`] and gives nothing up: wait for an earlier delivery, then retry.
    ///
    /// # Errors
    /// [`WriteError::QueueFull`], [`WriteError::TooLarge`].
    fn send(&self, to: &TopicPartition, record: &Record) -> Result<DeliveryFuture, WriteError>;

    /// The cluster's id, known once a broker has answered.
    ///
    /// # Errors
    /// [`WriteError::Unreachable`] if none answers within the client's own timeout.
    fn cluster_id(&self) -> Result<ClusterId, WriteError>;
}

/// Why a record was not written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WriteError {
    /// The local queue is full.
    #[error("local send queue is full")]
    QueueFull,
    /// Over the client's or the broker's limit.
    #[error("record of {record_bytes} bytes is over the limit of topic {partition}")]
    TooLarge {
        /// Key and value.
        record_bytes: usize,
        /// Where it was to go.
        partition: TopicPartition,
    },
    /// No broker took it within the delivery timeout.
    #[error("no broker acknowledged the record for {partition} in time: {detail}")]
    Unreachable {
        /// Where it was to go.
        partition: String,
        /// librdkafka's words.
        detail: String,
    },
    /// There is no such topic or partition.
    #[error("{partition} does not exist on this cluster")]
    Missing {
        /// Where it was to go.
        partition: TopicPartition,
    },
    /// The broker refuses it.
    #[error("broker refused the record for {partition}: {detail}")]
    Refused {
        /// Where it was to go.
        partition: TopicPartition,
        /// librdkafka's words.
        detail: String,
    },
}

impl WriteError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::QueueFull | Self::Unreachable { .. } => ErrorKind::Retry,
            Self::TooLarge { .. } | Self::Missing { .. } | Self::Refused { .. } => {
                ErrorKind::Caller
            }
        }
    }
}
