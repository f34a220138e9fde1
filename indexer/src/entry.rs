//! What one frame of the shard's own log says, and its bytes. Pure.
//!
//! Integers are little-endian. Byte 0 is the kind; a kind this version does not know is an error,
//! never skipped: the log is written and read by the same node.
//!
//! - 0 source: index u16, then length-prefixed (u16) cluster, topic, region, then partition u32
//! - 1 upsert: source u16, offset u64, version u64, id (u16), event time i64, expiry i64 (both
//!   `i64::MIN` = not said), model (u16, 0xffff = not said), components u16, the components as
//!   f32, then the canonical payload to the end
//! - 2 delete, 3 contest: source u16, offset u64, version u64, id (u16)
//! - 4 progress: source u16, next offset u64, u64: wall time in milliseconds at which the shard
//!   last held everything the broker had
//! - 5 topic: source u16, then length-prefixed (u16) Kafka's id of the topic

use shoal_schemas::{
    ClusterId, Offset, Partition, Payload, Point, PointId, RegionName, Source, TopicId, Version,
};

use crate::rule::SourceIndex;

const SOURCE: u8 = 0;
const UPSERT: u8 = 1;
const DELETE: u8 = 2;
const CONTEST: u8 = 3;
const PROGRESS: u8 = 4;
const TOPIC: u8 = 5;

const NO_TIME: i64 = i64::MIN;
const NO_MODEL: u16 = u16::MAX;

/// Longest model name, bytes.
pub const MAX_MODEL_BYTES: usize = 1024;

/// What a point may not hold, because its frame could not give it back.
///
/// # Errors
/// A sentence for the refusal.
pub fn check_point(point: &Point) -> Result<(), String> {
    let model_bytes = point.model.as_ref().map_or(0, String::len);
    if model_bytes > MAX_MODEL_BYTES {
        return Err(format!(
            "model has {model_bytes} bytes, allowed are {MAX_MODEL_BYTES}"
        ));
    }
    for (field, time) in [
        ("event_time", point.event_time_ms),
        ("expires_at", point.expires_at_ms),
    ] {
        if time == Some(NO_TIME) {
            return Err(format!("{field} is {NO_TIME}, which is no time"));
        }
    }
    Ok(())
}

/// Place and version every record has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Where the record came from.
    pub source: SourceIndex,
    /// Its offset there.
    pub offset: Offset,
    /// Its version.
    pub version: Version,
}

/// A frame about to be written.
#[derive(Clone, Debug)]
pub enum Draft {
    /// A complete point.
    Upsert(Stamp, PointId, Point),
    /// A tombstone.
    Delete(Stamp, PointId),
    /// A refused record of an id that may live here.
    Contest(Stamp, PointId),
}

/// A frame read back. The vector and payload of an upsert stay bytes until asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry<'a> {
    /// Index `0` stands for source `1`, which lies in region `2`, from here on.
    Source(SourceIndex, Source, RegionName),
    /// A complete point.
    Upsert(Stamp, &'a str, Body<'a>),
    /// A tombstone.
    Delete(Stamp, &'a str),
    /// A refused record.
    Contest(Stamp, &'a str),
    /// Everything of this source below the offset has been taken, as of the wall time.
    Progress(SourceIndex, Offset, u64),
    /// This source is the topic of that id from here on.
    Topic(SourceIndex, TopicId),
}

/// The point of an upsert, still as bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Body<'a> {
    /// See [`Point::model`].
    pub model: Option<&'a str>,
    /// See [`Point::event_time_ms`].
    pub event_time_ms: Option<i64>,
    /// See [`Point::expires_at_ms`].
    pub expires_at_ms: Option<i64>,
    /// Components as little-endian f32.
    pub vector: &'a [u8],
    /// Canonical payload.
    pub payload: &'a [u8],
}

/// A frame whose checksum holds but whose content does not read.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// Shorter than its kind needs.
    #[error("log entry of kind {kind} ends after {entry_bytes} bytes")]
    Short {
        /// Its first byte.
        kind: u8,
        /// Its length.
        entry_bytes: usize,
    },
    /// Written by a newer version.
    #[error("log entry has kind {kind}, this version knows 0 to {TOPIC}")]
    Kind {
        /// Its first byte.
        kind: u8,
    },
    /// A name or id in it is not what we write.
    #[error("log entry of kind {kind} holds a malformed {field}")]
    Malformed {
        /// Its first byte.
        kind: u8,
        /// Which part.
        field: &'static str,
    },
}

/// Encodes a source's definition.
pub fn encode_source(index: SourceIndex, source: &Source, region: &RegionName, out: &mut Vec<u8>) {
    out.clear();
    out.push(SOURCE);
    out.extend_from_slice(&index.0.to_le_bytes());
    put_text(out, &source.cluster.0);
    put_text(out, &source.topic);
    put_text(out, region.as_str());
    out.extend_from_slice(&source.partition.0.to_le_bytes());
}

/// Encodes which topic a source is.
pub fn encode_topic(source: SourceIndex, topic: &TopicId, out: &mut Vec<u8>) {
    out.clear();
    out.push(TOPIC);
    out.extend_from_slice(&source.0.to_le_bytes());
    put_text(out, &topic.0);
}

/// Encodes progress.
pub fn encode_progress(source: SourceIndex, next: Offset, now_ms: u64, out: &mut Vec<u8>) {
    out.clear();
    out.push(PROGRESS);
    out.extend_from_slice(&source.0.to_le_bytes());
    out.extend_from_slice(&next.0.to_le_bytes());
    out.extend_from_slice(&now_ms.to_le_bytes());
}

impl Draft {
    /// The point it is about.
    pub fn id(&self) -> &PointId {
        match self {
            Self::Upsert(_, id, _) | Self::Delete(_, id) | Self::Contest(_, id) => id,
        }
    }

    /// Encodes it, replacing what `out` holds.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        match self {
            Self::Upsert(stamp, id, point) => {
                put_head(out, UPSERT, *stamp, id);
                let time = |time: Option<i64>| time.unwrap_or(NO_TIME).to_le_bytes();
                out.extend_from_slice(&time(point.event_time_ms));
                out.extend_from_slice(&time(point.expires_at_ms));
                match &point.model {
                    Some(model) => put_text(out, model),
                    None => out.extend_from_slice(&NO_MODEL.to_le_bytes()),
                }
                let components = point.vector.as_slice();
                let count = u16::try_from(components.len()).expect("a dimension is at most 4096");
                out.extend_from_slice(&count.to_le_bytes());
                for value in components {
                    out.extend_from_slice(&value.to_le_bytes());
                }
                point.payload.encode_canonical(out);
            }
            Self::Delete(stamp, id) => put_head(out, DELETE, *stamp, id),
            Self::Contest(stamp, id) => put_head(out, CONTEST, *stamp, id),
        }
    }
}

impl<'a> Entry<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    /// [`EntryError`]; the frame's checksum held, so this is a bug or a newer version.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, EntryError> {
        let (kind, rest) = bytes.split_first().ok_or(EntryError::Short {
            kind: 0,
            entry_bytes: 0,
        })?;
        let mut cursor = Cursor {
            kind: *kind,
            entry_bytes: bytes.len(),
            rest,
        };
        match *kind {
            SOURCE => {
                let index = SourceIndex(cursor.u16()?);
                let cluster = ClusterId::from(cursor.text("cluster")?);
                let topic = cursor.text("topic")?.into();
                let region = cursor.text("region")?;
                let region = region.parse().map_err(|_| cursor.malformed("region"))?;
                let partition = Partition(cursor.u32()?);
                let source = Source {
                    cluster,
                    topic,
                    partition,
                };
                Ok(Self::Source(index, source, region))
            }
            UPSERT => {
                let (stamp, id) = cursor.head()?;
                let event_time_ms = cursor.time()?;
                let expires_at_ms = cursor.time()?;
                let model = match cursor.u16()? {
                    NO_MODEL => None,
                    length => Some(cursor.text_of(usize::from(length), "model")?),
                };
                let components = usize::from(cursor.u16()?);
                let body = Body {
                    model,
                    event_time_ms,
                    expires_at_ms,
                    vector: cursor.take(components * size_of::<f32>())?,
                    payload: cursor.rest,
                };
                Ok(Self::Upsert(stamp, id, body))
            }
            DELETE => cursor.head().map(|(stamp, id)| Self::Delete(stamp, id)),
            CONTEST => cursor.head().map(|(stamp, id)| Self::Contest(stamp, id)),
            PROGRESS => Ok(Self::Progress(
                SourceIndex(cursor.u16()?),
                Offset(cursor.u64()?),
                cursor.u64()?,
            )),
            TOPIC => Ok(Self::Topic(
                SourceIndex(cursor.u16()?),
                TopicId::from(cursor.text("topic")?),
            )),
            kind => Err(EntryError::Kind { kind }),
        }
    }
}

impl Body<'_> {
    /// The components.
    pub fn components(&self) -> Vec<f32> {
        let words = self.vector.as_chunks::<4>().0.iter();
        words.map(|word| f32::from_le_bytes(*word)).collect()
    }

    /// The payload.
    ///
    /// # Errors
    /// [`EntryError::Malformed`].
    pub fn payload(&self) -> Result<Payload, EntryError> {
        Payload::decode_canonical(self.payload).map_err(|_| EntryError::Malformed {
            kind: UPSERT,
            field: "payload",
        })
    }
}

/// # Panics
/// Above 65,534 bytes. Ids, topics and regions are shorter by their types, models by admission.
fn put_text(out: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len())
        .ok()
        .filter(|length| *length < NO_MODEL)
        .expect("every text in a frame was checked for its length");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_head(out: &mut Vec<u8>, kind: u8, stamp: Stamp, id: &PointId) {
    out.push(kind);
    out.extend_from_slice(&stamp.source.0.to_le_bytes());
    out.extend_from_slice(&stamp.offset.0.to_le_bytes());
    out.extend_from_slice(&stamp.version.raw().to_le_bytes());
    put_text(out, id.as_str());
}

struct Cursor<'a> {
    kind: u8,
    entry_bytes: usize,
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], EntryError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(EntryError::Short {
            kind: self.kind,
            entry_bytes: self.entry_bytes,
        })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], EntryError> {
        let taken = self.take(N)?;
        Ok(taken.try_into().expect("take gives exactly what was asked"))
    }

    fn u16(&mut self) -> Result<u16, EntryError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, EntryError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, EntryError> {
        self.array().map(u64::from_le_bytes)
    }

    fn time(&mut self) -> Result<Option<i64>, EntryError> {
        let time = self.array().map(i64::from_le_bytes)?;
        Ok((time != NO_TIME).then_some(time))
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, EntryError> {
        let length = usize::from(self.u16()?);
        self.text_of(length, field)
    }

    fn text_of(&mut self, length: usize, field: &'static str) -> Result<&'a str, EntryError> {
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|_| self.malformed(field))
    }

    fn head(&mut self) -> Result<(Stamp, &'a str), EntryError> {
        let stamp = Stamp {
            source: SourceIndex(self.u16()?),
            offset: Offset(self.u64()?),
            version: Version::from_raw(self.u64()?),
        };
        Ok((stamp, self.text("id")?))
    }

    fn malformed(&self, field: &'static str) -> EntryError {
        EntryError::Malformed {
            kind: self.kind,
            field,
        }
    }
}

/// Writes an upsert's frame again with its vector left out.
///
/// # Errors
/// [`EntryError::Kind`] if it is another.
pub fn without_vector(frame: &[u8], out: &mut Vec<u8>) -> Result<(), EntryError> {
    let body = upsert_body(frame)?;
    // The count of components, the components and the payload end a frame.
    let tail_bytes = size_of::<u16>() + body.vector.len() + body.payload.len();
    let head = frame.len().checked_sub(tail_bytes);
    let head = head.and_then(|end| frame.get(..end));
    out.clear();
    out.extend_from_slice(head.unwrap_or_default());
    out.extend_from_slice(&0u16.to_le_bytes());
    out.extend_from_slice(body.payload);
    Ok(())
}

/// Reads a frame that has to be an upsert, and gives its point.
///
/// # Errors
/// [`EntryError::Kind`] if it is another.
pub fn upsert_body(frame: &[u8]) -> Result<Body<'_>, EntryError> {
    match Entry::decode(frame)? {
        Entry::Upsert(_, _, body) => Ok(body),
        _ => Err(EntryError::Kind {
            kind: frame.first().copied().unwrap_or_default(),
        }),
    }
}
