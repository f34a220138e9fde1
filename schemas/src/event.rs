//! What one record of a topic of embeddings says.

use bytes::Bytes;

use crate::{
    avro,
    collection::Collection,
    json,
    point::{Point, PointId},
    reject::{Reason, Rejection},
};

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
    /// Bytes of its key, value and headers.
    pub fn bytes(&self) -> u64 {
        let length = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
        let headers = self.headers.iter();
        let headers = headers.map(|(name, value)| name.len() + value.len());
        let all = length(&self.key) + length(&self.value) + headers.sum::<usize>();
        u64::try_from(all).unwrap_or(u64::MAX)
    }

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

/// Why a record's value gives no point.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// The record is at fault; it goes to the dead-letter topic.
    #[error("value is refused")]
    Rejected(#[source] Rejection),
    /// The schema registry does not answer; the record has to wait.
    #[error("value's schema is not at hand")]
    Unavailable(#[source] avro::LookupError),
}

impl From<Rejection> for ValueError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

/// Reads the value of the record of `id`, in whichever encoding its first bytes tell: Confluent's
/// format (`00`), Avro's single-object encoding (`c3 01`), or a JSON object.
///
/// # Errors
/// [`ValueError::Rejected`] for what is wrong with the value, [`ValueError::Unavailable`] if only
/// `schemas` kept it from being read.
pub fn decode_value(
    id: &PointId,
    value: &[u8],
    collection: &Collection,
    schemas: &dyn avro::WriterSchemas,
) -> Result<Point, ValueError> {
    match value {
        [avro::CONFLUENT_MAGIC, ..] => avro::decode_confluent(value, collection, schemas),
        [0xC3, 0x01, ..] => Ok(avro::decode_single_object(value, collection)?),
        _ if value.trim_ascii_start().starts_with(b"{") => {
            Ok(json::decode_for(id, value, collection)?)
        }
        _ => Err(ValueError::Rejected(unknown_encoding(value))),
    }
}

fn unknown_encoding(value: &[u8]) -> Rejection {
    let (start, _) = value.split_at(value.len().min(8));
    let mut first: Vec<String> = start.iter().map(|byte| format!("{byte:02x}")).collect();
    if value.len() > start.len() {
        first.push("...".to_owned());
    }
    Rejection::new(
        Reason::Undecodable,
        format_args!(
            "value of {} bytes starts with `{}`; known are 00 (Confluent Avro), c3 01 (Avro \
             single object) and a JSON object",
            value.len(),
            first.join(" ")
        ),
    )
}
