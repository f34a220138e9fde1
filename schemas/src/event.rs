//! What one record of a topic of embeddings says.

use bytes::Bytes;

use crate::point::{Point, PointId};

/// A record as it came from, or goes to, the log: bytes, nothing checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The point's id.
    pub key: Option<Bytes>,
    /// An encoded point; `None` is a delete.
    pub value: Option<Bytes>,
    /// In the order on the wire; names may repeat.
    pub headers: Vec<(String, Bytes)>,
    /// Kafka's timestamp, milliseconds since the Unix epoch.
    pub timestamp_ms: i64,
}

impl Record {
    /// The last header of that name: Kafka's own rule where a name repeats.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        let found = self.headers.iter().rev().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_ref())
    }

    /// Key and value together, what a size limit is about.
    pub fn size_bytes(&self) -> usize {
        self.key.as_ref().map_or(0, Bytes::len) + self.value.as_ref().map_or(0, Bytes::len)
    }
}

/// A checked change of one point.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The point is now exactly this.
    Upsert(PointId, Point),
    /// The point is gone.
    Delete(PointId),
}

impl Event {
    /// The point it is about.
    pub fn id(&self) -> &PointId {
        match self {
            Self::Upsert(id, _) | Self::Delete(id) => id,
        }
    }
}
