//! Places in the log: which cluster, which topic, which partition, which offset.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// Kafka's own id of a cluster. A topic of the same name elsewhere is another topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct ClusterId(pub Arc<str>);

impl From<String> for ClusterId {
    fn from(id: String) -> Self {
        Self(id.into())
    }
}

impl From<ClusterId> for String {
    fn from(id: ClusterId) -> Self {
        id.0.as_ref().into()
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for ClusterId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

/// Kafka's own id of a topic. One that is dropped and made anew under its name has another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct TopicId(pub Arc<str>);

impl From<String> for TopicId {
    fn from(id: String) -> Self {
        Self(id.into())
    }
}

impl From<TopicId> for String {
    fn from(id: TopicId) -> Self {
        id.0.as_ref().into()
    }
}

impl From<&str> for TopicId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Number of a partition, and so of a shard, within a topic. Counts from 0.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Partition(pub u32);

impl Partition {
    /// Kafka's signed form.
    ///
    /// # Panics
    /// Never for a partition that came from a broker: Kafka counts them in an `i32`.
    pub fn to_broker(self) -> i32 {
        i32::try_from(self.0).expect("a topic has fewer than 2^31 partitions")
    }

    /// Wraps a broker's number; `None` for the negative sentinels.
    pub fn from_broker(raw: i32) -> Option<Self> {
        u32::try_from(raw).ok().map(Self)
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Place of one record in one partition. Counts records from 0.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Offset(pub u64);

impl Offset {
    /// Wraps a broker offset; `None` for librdkafka's negative sentinels.
    pub fn from_broker(raw: i64) -> Option<Self> {
        u64::try_from(raw).ok().map(Self)
    }

    /// Kafka's signed form.
    ///
    /// # Panics
    /// Never for an offset that came from a broker: Kafka counts them in an `i64`.
    pub fn to_broker(self) -> i64 {
        i64::try_from(self.0).expect("a partition has fewer than 2^63 records")
    }

    /// The first offset not yet done, if `self` is the last one done.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One stream of records into a shard: a partition of the home topic or of a mirrored one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Source {
    /// The cluster the topic lives in.
    pub cluster: ClusterId,
    /// The topic's full name.
    #[serde(with = "shared_text")]
    pub topic: Arc<str>,
    /// The partition, equal to the shard's number.
    pub partition: Partition,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.cluster, self.topic, self.partition)
    }
}

/// A shared text as plain text.
mod shared_text {
    use std::sync::Arc;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &Arc<str>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(from).map(Arc::from)
    }
}
