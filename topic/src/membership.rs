//! Ownership: which partitions of the home topics this node has, decided by a consumer group.
//!
//! The group only shares out partitions; it fetches nothing and its offsets are not read. A
//! revoked partition stays ours until [`Membership::released`] says that its shard has let go,
//! so two nodes never write one shard at a time while both are alive and heard.

use std::time::Duration;

use shoal_schemas::Offset;

use crate::{ReadError, TopicPartition};

/// A change of what this node owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipEvent {
    /// These are ours from now on.
    Assigned(Vec<TopicPartition>),
    /// These are to be let go; answer with [`Membership::released`] when done.
    Revoked(Vec<TopicPartition>),
    /// These are somebody else's already: the group timed this node out. Let go at once.
    Lost(Vec<TopicPartition>),
}

/// This node's seat in the group. Dropping it leaves the group.
pub trait Membership: Send {
    /// Serves the group for up to `timeout` and returns the next change, if any.
    ///
    /// Has to be called all the time, also while a shard is letting go: it keeps the seat.
    ///
    /// # Errors
    /// [`ReadError`]; after a retryable one, call again.
    fn poll(&mut self, timeout: Duration) -> Result<Option<MembershipEvent>, ReadError>;

    /// Hands the partitions of the last [`MembershipEvent::Revoked`] over to the group.
    fn released(&mut self);

    /// Commits offsets as a member of the group: advice for lag tools, never read back.
    ///
    /// Only for partitions that are ours; others are skipped. Does not wait for the broker.
    ///
    /// # Errors
    /// [`ReadError::Unreachable`].
    fn commit_advice(&self, positions: &[(TopicPartition, Offset)]) -> Result<(), ReadError>;

    /// Changes the topics whose partitions are shared out.
    ///
    /// # Errors
    /// [`ReadError::Config`].
    fn subscribe(&mut self, topics: &[String]) -> Result<(), ReadError>;
}
