//! Topics: making, describing and dropping them, and what the broker knows of a partition.

use std::{collections::BTreeMap, time::Duration};

use shoal_runtime::ErrorKind;
use shoal_schemas::{ClusterId, Offset, TopicId};

use crate::{TopicPartition, Watermarks};

/// What Kafka does with old records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cleanup {
    /// Keeps the newest record a key.
    Compact,
    /// Drops by age and size.
    Delete,
}

/// A topic as wanted, or as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Full name.
    pub name: String,
    /// Number of partitions.
    pub partitions: u32,
    /// Replicas; `None` = the broker's default.
    pub replication_factor: Option<u16>,
    /// Clean-up policy.
    pub cleanup: Cleanup,
    /// Further topic settings by Kafka's names. A `cleanup.policy` among them wins over `cleanup`.
    pub settings: BTreeMap<String, String>,
}

/// Makes, describes and drops topics. Every call blocks, at most for the client's own timeout.
pub trait Admin: Send + Sync {
    /// The cluster's own id.
    ///
    /// # Errors
    /// [`AdminError::Unreachable`].
    fn cluster_id(&self) -> Result<ClusterId, AdminError>;

    /// Makes a topic and returns once every partition has a leader.
    ///
    /// # Errors
    /// [`AdminError::Exists`] if there is one of that name, whatever its settings.
    fn create_topic(&self, spec: &TopicSpec) -> Result<(), AdminError>;

    /// Describes a topic; `None` if there is none. All settings the broker reports are in
    /// `settings` (`cleanup.policy` among them).
    ///
    /// # Errors
    /// [`AdminError::Unreachable`], [`AdminError::Denied`].
    fn describe_topic(&self, name: &str) -> Result<Option<TopicSpec>, AdminError>;

    /// Names of all topics this client may see.
    ///
    /// # Errors
    /// [`AdminError::Unreachable`].
    fn list_topics(&self) -> Result<Vec<String>, AdminError>;

    /// The ids of topics, in the order of their names. `None` for one that is not there, or that this client may not
    /// see, or whose broker gives topics no ids (Kafka before 2.8).
    ///
    /// # Errors
    /// [`AdminError::Unreachable`] within `timeout`.
    fn topic_ids(
        &self,
        names: &[&str],
        timeout: Duration,
    ) -> Result<Vec<Option<TopicId>>, AdminError>;

    /// Drops a topic; one that is not there is no error.
    ///
    /// # Errors
    /// [`AdminError::Unreachable`], [`AdminError::Denied`].
    fn delete_topic(&self, name: &str) -> Result<(), AdminError>;

    /// Asks the broker itself, over the wire, for a partition's ends: a heartbeat as much as a
    /// number.
    ///
    /// # Errors
    /// [`AdminError::Unreachable`] within `timeout`, [`AdminError::Missing`].
    fn watermarks(
        &self,
        partition: &TopicPartition,
        timeout: Duration,
    ) -> Result<Watermarks, AdminError>;

    /// Commits a group's offset from outside the group: advice for lag tools, never read back.
    ///
    /// # Errors
    /// [`AdminError::Unreachable`], [`AdminError::Denied`].
    fn commit_advice(
        &self,
        group: &str,
        positions: &[(TopicPartition, Offset)],
    ) -> Result<(), AdminError>;

    /// The offsets a group has committed, as lag tools see them.
    ///
    /// # Errors
    /// [`AdminError::Unreachable`], [`AdminError::Denied`].
    fn committed(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Offset>>, AdminError>;
}

/// Why an admin call failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No broker answers.
    #[error("broker does not answer: {detail}")]
    Unreachable {
        /// librdkafka's words.
        detail: String,
    },
    /// There is a topic of that name.
    #[error("topic `{name}` exists already")]
    Exists {
        /// Its name.
        name: String,
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
    /// The broker refuses the request, a setting it does not know for one.
    #[error("broker refuses the request: {detail}")]
    Refused {
        /// librdkafka's words.
        detail: String,
    },
}

impl AdminError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable { .. } => ErrorKind::Retry,
            Self::Exists { .. }
            | Self::Missing { .. }
            | Self::Denied { .. }
            | Self::Refused { .. } => ErrorKind::Caller,
        }
    }
}
