//! Entries of a dead-letter topic: the refused record as it was, and why.
//!
//! Key, value and headers stay untouched, so an entry can be put back as it is; reason and place
//! travel in headers of their own. A record refused for its residency must not leave its region,
//! so its entry holds a hash of the key and nothing of the content.
//!
//! Nothing in the topic is changed. That a record was put back is told by a [`Mark`] behind its
//! entry, a record of its own with the same key and no content.

use bytes::Bytes;

use crate::{
    event::Record,
    headers,
    log::{ClusterId, Offset, Partition, Source},
    reject::{Reason, Rejection, UnknownReason},
};

/// Prefix of every header an entry adds.
pub const PREFIX: &str = "shoal-dlq-";
/// The stable code of the reason.
pub const REASON: &str = "shoal-dlq-reason";
/// The sentence.
pub const DETAIL: &str = "shoal-dlq-detail";
/// Id of the cluster the record stands in.
pub const CLUSTER: &str = "shoal-dlq-cluster";
/// Its topic.
pub const TOPIC: &str = "shoal-dlq-topic";
/// Its partition, decimal.
pub const PARTITION: &str = "shoal-dlq-partition";
/// Its offset, decimal.
pub const OFFSET: &str = "shoal-dlq-offset";
/// When it was refused, milliseconds since the Unix epoch, decimal.
pub const TIME: &str = "shoal-dlq-time";
/// The refused record's own Kafka timestamp, milliseconds, decimal.
pub const TIMESTAMP: &str = "shoal-dlq-timestamp";
/// `1` if the refused record was a delete.
pub const TOMBSTONE: &str = "shoal-dlq-tombstone";

/// When the record was put back, milliseconds since the Unix epoch, decimal: what has it is no
/// entry but a [`Mark`].
pub const RETRIED: &str = "shoal-dlq-retried";

/// Headers that say nothing of a record's content.
const CONTENT_FREE: [&str; 4] = [
    headers::VERSION,
    headers::ORIGIN,
    headers::RESIDENCY,
    headers::TRACEPARENT,
];

/// Makes the entry of a record refused at `offset` of `source`.
///
/// The entry's own timestamp is `now_ms`, so that the topic's retention counts from the refusal.
pub fn entry(
    record: &Record,
    rejection: &Rejection,
    source: &Source,
    offset: Offset,
    now_ms: u64,
) -> Record {
    let withheld = rejection.reason == Reason::Residency;
    let kept = record.headers.iter().filter(|(name, _)| {
        let allowed = !withheld || CONTENT_FREE.contains(&name.as_str());
        allowed && !name.starts_with(PREFIX)
    });
    let mut headers: Vec<(String, Bytes)> = kept.cloned().collect();
    let added = [
        (REASON, rejection.reason.code().to_owned()),
        (DETAIL, rejection.detail.clone()),
        (CLUSTER, source.cluster.to_string()),
        (TOPIC, source.topic.to_string()),
        (PARTITION, source.partition.to_string()),
        (OFFSET, offset.to_string()),
        (TIME, now_ms.to_string()),
        (TIMESTAMP, record.timestamp_ms.to_string()),
    ];
    headers.extend(added.map(|(name, value)| (name.to_owned(), Bytes::from(value))));
    if record.value.is_none() {
        headers.push((TOMBSTONE.to_owned(), Bytes::from_static(b"1")));
    }
    let (key, value) = if withheld {
        (record.key.as_deref().map(hashed), Some(Bytes::new()))
    } else {
        (record.key.clone(), record.value.clone())
    };
    Record {
        key,
        value,
        headers,
        timestamp_ms: i64::try_from(now_ms).unwrap_or(i64::MAX),
    }
}

/// Makes the record that says that an entry's record was put back.
pub fn mark(entry: &Entry, now_ms: u64) -> Record {
    let headers = [
        (CLUSTER, entry.source.cluster.to_string()),
        (TOPIC, entry.source.topic.to_string()),
        (PARTITION, entry.source.partition.to_string()),
        (OFFSET, entry.offset.to_string()),
        (RETRIED, now_ms.to_string()),
    ];
    Record {
        key: entry.record.key.clone(),
        value: Some(Bytes::new()),
        headers: headers
            .map(|(name, value)| (name.to_owned(), Bytes::from(value)))
            .into(),
        timestamp_ms: i64::try_from(now_ms).unwrap_or(i64::MAX),
    }
}

/// That the record of an entry was put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The partition the refused record stands in.
    pub source: Source,
    /// Its place there.
    pub offset: Offset,
    /// When it was put back, milliseconds since the Unix epoch.
    pub time_ms: u64,
}

/// What a dead-letter topic holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// A refused record.
    Entry(Entry),
    /// Word of one that was put back.
    Mark(Mark),
}

impl Item {
    /// Reads either.
    ///
    /// # Errors
    /// [`EntryError`], naming the first header that is missing or does not parse.
    pub fn decode(record: &Record) -> Result<Self, EntryError> {
        if record.header(RETRIED).is_none() {
            return Entry::decode(record).map(Self::Entry);
        }
        Ok(Self::Mark(Mark {
            source: source(record)?,
            offset: Offset(number(record, OFFSET)?),
            time_ms: number(record, RETRIED)?,
        }))
    }
}

fn source(record: &Record) -> Result<Source, EntryError> {
    Ok(Source {
        cluster: ClusterId(text(record, CLUSTER)?.into()),
        topic: text(record, TOPIC)?.into(),
        partition: Partition(number(record, PARTITION)?),
    })
}

/// The first 16 bytes of the key's BLAKE3, in hex: finds the entry of a known key, tells nothing.
fn hashed(key: &[u8]) -> Bytes {
    let hex = blake3::hash(key).to_hex();
    Bytes::copy_from_slice(hex.as_bytes().split_at(32).0)
}

/// One refused record, read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Why it was refused.
    pub rejection: Rejection,
    /// The partition it stands in.
    pub source: Source,
    /// Its place there.
    pub offset: Offset,
    /// When it was refused, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The record as it was, for putting it back. See [`Entry::is_withheld`].
    pub record: Record,
}

/// Why a record is no entry of a dead-letter topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A header that every entry has is missing.
    #[error("dead-letter entry has no header `{0}`")]
    Missing(&'static str),
    /// A header does not parse.
    #[error("header `{name}` of a dead-letter entry is `{value}`, which is no {expected}")]
    Malformed {
        /// The header.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A reason of a newer version.
    #[error("dead-letter entry gives a reason nobody knows")]
    Reason(#[from] UnknownReason),
}

impl Entry {
    /// Reads an entry.
    ///
    /// # Errors
    /// [`EntryError`], naming the first header that is missing or does not parse.
    pub fn decode(record: &Record) -> Result<Self, EntryError> {
        let reason = text(record, REASON)?.parse()?;
        let detail = text(record, DETAIL)?;
        let source = source(record)?;
        let offset = Offset(number(record, OFFSET)?);
        let time_ms = number(record, TIME)?;
        // An entry made by hand may lack it; the refusal's time is the best that is known then.
        let timestamp_ms = match record.header(TIMESTAMP) {
            None => record.timestamp_ms,
            Some(_) => number(record, TIMESTAMP)?,
        };
        let headers = record.headers.iter();
        let original = Record {
            key: record.key.clone(),
            value: match record.header(TOMBSTONE) {
                Some(_) => None,
                None => Some(record.value.clone().unwrap_or_default()),
            },
            headers: headers
                .filter(|(name, _)| !name.starts_with(PREFIX))
                .cloned()
                .collect(),
            timestamp_ms,
        };
        Ok(Self {
            rejection: Rejection::new(reason, detail),
            source,
            offset,
            time_ms,
            record: original,
        })
    }

    /// Whether the content was left out, so that only its place can be asked for it.
    pub fn is_withheld(&self) -> bool {
        self.rejection.reason == Reason::Residency
    }
}

fn text<'a>(record: &'a Record, name: &'static str) -> Result<&'a str, EntryError> {
    let value = record.header(name).ok_or(EntryError::Missing(name))?;
    std::str::from_utf8(value).map_err(|_| EntryError::Malformed {
        name,
        value: value.escape_ascii().to_string(),
        expected: "UTF-8",
    })
}

fn number<N: std::str::FromStr>(record: &Record, name: &'static str) -> Result<N, EntryError> {
    let value = text(record, name)?;
    value.parse().map_err(|_| EntryError::Malformed {
        name,
        value: value.to_owned(),
        expected: "number in range",
    })
}

#[cfg(test)]
#[path = "dlq_tests.rs"]
mod tests;
