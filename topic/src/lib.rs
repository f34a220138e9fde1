//! The shard log as a seam: what Shoal needs of Kafka, and nothing more of it.
//!
//! Four narrow traits stand for the world outside: [`Reader`] follows partitions from explicit
//! offsets, [`Writer`] appends, [`Admin`] makes and describes topics, [`Membership`] says which
//! partitions this node owns. [`kafka`] is the real log and the only place that names librdkafka;
//! [`memory`] keeps one in process for tests and simulation. Both pass [`conformance`]. [`etcd`] keeps
//! a copy of what the control topic says, for query nodes without Kafka.
//!
//! Reading is a plain blocking poll, not a stream: a shard is one thread that asks for the next
//! batch when it has room, so back-pressure is not asking.
#![deny(unsafe_code)]

mod absent;
pub mod admin;
pub mod broker;
pub mod collections;
pub mod conformance;
pub mod control;
pub mod deps;
pub mod etcd;
pub mod kafka;
pub mod membership;
pub mod memory;
pub mod metrics;
mod park;
pub mod reader;
pub mod registry;
pub mod writer;

use std::sync::Arc;

pub use admin::{Admin, AdminError, Cleanup, TopicSpec};
pub use deps::Deps;
pub use membership::{Membership, MembershipEvent};
pub use reader::{Fetched, FetchedRecord, ReadError, Reader, Start, Watermarks};
pub use writer::{Delivery, DeliveryFuture, WriteError, Writer};

/// Everything a role needs of one cluster. Cloning shares the connections.
#[derive(Clone)]
pub struct Cluster {
    /// Makes and describes topics.
    pub admin: Arc<dyn Admin>,
    /// Appends records, idempotently.
    pub writer: Arc<dyn Writer>,
    /// Opens readers and memberships.
    pub connect: Arc<dyn Connect>,
}

/// Opens the parts that belong to one thread each.
pub trait Connect: Send + Sync {
    /// Opens a reader of some partitions, each from its own start.
    ///
    /// # Errors
    /// [`ReadError::Unreachable`] never: an absent broker shows in the first poll.
    fn open_reader(&self, starts: &[(TopicPartition, Start)])
    -> Result<Box<dyn Reader>, ReadError>;

    /// The same, of a reader that holds about so many bytes of records that were not polled yet, or
    /// less; at least one batch of a producer, however large. Nothing is to be done for it where readers hold none.
    ///
    /// # Errors
    /// As [`Connect::open_reader`].
    fn open_reader_within(
        &self,
        starts: &[(TopicPartition, Start)],
        _ahead_bytes: u64,
    ) -> Result<Box<dyn Reader>, ReadError> {
        self.open_reader(starts)
    }

    /// Joins a consumer group that shares out the partitions of `topics`.
    ///
    /// # Errors
    /// [`ReadError::Config`] if the client refuses its settings.
    fn join(&self, group: &str, topics: &[String]) -> Result<Box<dyn Membership>, ReadError>;
}

/// A partition of a topic of this cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's full name.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: shoal_schemas::Partition,
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}
