//! Values to points: the frame, our own schema by hand, and the checks both paths share.

use half::{bf16, f16, slice::HalfFloatSliceExt as _};

use super::{
    CONFLUENT_MAGIC, SINGLE_OBJECT_MAGIC, WriterSchemas,
    cursor::{Cursor, Malformed},
    resolve,
    schema::{Layout, LookupError, WriterSchema, known},
};
use crate::{
    collection::Collection,
    event::ValueError,
    payload::{Payload, Value},
    point::Point,
    reject::{Reason, Rejection},
    vector::Vector,
};

/// Reads a value that starts with [`SINGLE_OBJECT_MAGIC`].
pub(crate) fn decode_single_object(
    value: &[u8],
    collection: &Collection,
) -> Result<Point, Rejection> {
    let framed = value
        .strip_prefix(&SINGLE_OBJECT_MAGIC)
        .and_then(<[u8]>::split_first_chunk);
    let Some((fingerprint, datum)) = framed else {
        return Err(undecodable(format_args!(
            "single-object value has {} bytes, its frame alone takes 10",
            value.len()
        )));
    };
    let fingerprint = u64::from_le_bytes(*fingerprint);
    let Some(schema) = known(fingerprint) else {
        return Err(Rejection::new(
            Reason::UnknownSchema,
            format_args!(
                "single-object fingerprint {fingerprint:016x} is no version of shoal.v1.Point; \
                 write with the published schema, or through a schema registry"
            ),
        ));
    };
    decode_datum(datum, value, schema, collection)
}

/// Reads a value that starts with [`CONFLUENT_MAGIC`].
pub(crate) fn decode_confluent(
    value: &[u8],
    collection: &Collection,
    schemas: &dyn WriterSchemas,
) -> Result<Point, ValueError> {
    let framed = value
        .strip_prefix(&[CONFLUENT_MAGIC])
        .and_then(<[u8]>::split_first_chunk);
    let Some((id, datum)) = framed else {
        let detail = format!(
            "value in Confluent's format has {} bytes, its frame alone takes 5",
            value.len()
        );
        return Err(ValueError::Rejected(undecodable(detail)));
    };
    let schema = match schemas.by_id(u32::from_be_bytes(*id)) {
        Ok(schema) => schema,
        Err(error @ LookupError::Unavailable { .. }) => return Err(ValueError::Unavailable(error)),
        Err(LookupError::Unusable { id, source }) => {
            let why = std::error::Error::source(&source)
                .map_or_else(String::new, |cause| format!(": {cause}"));
            let detail = format!("schema id {id} is not usable: {source}{why}");
            return Err(ValueError::Rejected(Rejection::new(
                Reason::UnknownSchema,
                detail,
            )));
        }
        Err(error @ LookupError::Unknown { .. }) => {
            return Err(ValueError::Rejected(Rejection::new(
                Reason::UnknownSchema,
                error,
            )));
        }
    };
    decode_datum(datum, value, &schema, collection).map_err(ValueError::Rejected)
}

fn decode_datum(
    bytes: &[u8],
    value: &[u8],
    schema: &WriterSchema,
    collection: &Collection,
) -> Result<Point, Rejection> {
    let cursor = Cursor::new(bytes, value);
    let datum = match schema.layout() {
        Layout::Ours => ours(cursor),
        Layout::Other(node) => resolve::datum(node, cursor),
    };
    let datum = datum.map_err(|error| {
        undecodable(format_args!(
            "value does not read as `{}`: {error}",
            schema.name()
        ))
    })?;
    datum.check(collection)
}

/// A decoded point, not yet checked against its collection.
#[derive(Debug)]
pub(super) struct Datum<'a> {
    pub(super) vector: Components<'a>,
    pub(super) payload: Payload,
    pub(super) model: Option<String>,
    pub(super) event_time_ms: Option<i64>,
    pub(super) expires_at_ms: Option<i64>,
}

impl Datum<'_> {
    pub(super) fn check(self, collection: &Collection) -> Result<Point, Rejection> {
        let vector = self.vector.check(collection)?;
        self.payload.check()?;
        Ok(Point {
            vector,
            payload: self.payload,
            model: self.model,
            event_time_ms: self.event_time_ms,
            expires_at_ms: self.expires_at_ms,
        })
    }
}

/// How a packed vector keeps a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packing {
    F32,
    F16,
    Bf16,
    I8,
}

impl Packing {
    /// In the order of the schema's symbols.
    pub(super) const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::I8];

    pub(super) fn symbol(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I8 => "I8",
        }
    }
}

/// The components as the value holds them.
#[derive(Debug)]
pub(super) enum Components<'a> {
    /// The bytes of floats, little endian.
    Floats(&'a [[u8; 4]]),
    /// Converted or collected already.
    Owned(Vec<f32>),
}

impl<'a> Components<'a> {
    /// Reads packed bytes.
    pub(super) fn unpack(packing: Packing, data: &'a [u8]) -> Result<Self, Malformed> {
        let whole = |rest: &[u8]| match rest.is_empty() {
            true => Ok(()),
            false => Err(Malformed::Packed {
                encoding: packing.symbol(),
                bytes: data.len(),
            }),
        };
        Ok(match packing {
            Packing::F32 => {
                let (words, rest) = data.as_chunks();
                whole(rest)?;
                Self::Floats(words)
            }
            Packing::F16 => {
                let (words, rest) = data.as_chunks();
                whole(rest)?;
                let halves: Vec<f16> = words.iter().map(|word| f16::from_le_bytes(*word)).collect();
                // In one go, which uses the CPU's own conversion.
                Self::Owned(halves.to_f32_vec())
            }
            Packing::Bf16 => {
                let (words, rest) = data.as_chunks();
                whole(rest)?;
                let components = words.iter().map(|word| bf16::from_le_bytes(*word).to_f32());
                Self::Owned(components.collect())
            }
            Packing::I8 => {
                let components = data
                    .iter()
                    .map(|byte| f32::from(byte.cast_signed()) / 127.0);
                Self::Owned(components.collect())
            }
        })
    }

    fn check(self, collection: &Collection) -> Result<Vector, Rejection> {
        let (dim, metric) = (collection.dim, collection.metric);
        Ok(match self {
            Self::Floats(words) => Vector::from_le_bytes(words, dim, metric)?,
            Self::Owned(components) => Vector::new(&components, dim, metric)?,
        })
    }
}

/// Reads a datum of our own schema.
fn ours(mut cursor: Cursor<'_>) -> Result<Datum<'_>, Malformed> {
    let datum = Datum {
        vector: match cursor.branch(2)? {
            0 => floats(&mut cursor)?,
            _ => packed(&mut cursor)?,
        },
        payload: payload(&mut cursor)?,
        model: match cursor.branch(2)? {
            0 => None,
            _ => Some(cursor.text()?.to_owned()),
        },
        event_time_ms: time(&mut cursor)?,
        expires_at_ms: time(&mut cursor)?,
    };
    cursor.end()?;
    Ok(datum)
}

fn time(cursor: &mut Cursor<'_>) -> Result<Option<i64>, Malformed> {
    match cursor.branch(2)? {
        0 => Ok(None),
        _ => cursor.long().map(Some),
    }
}

/// Reads an array of floats. Every encoder we know writes one block, which is left in place.
pub(super) fn floats<'a>(cursor: &mut Cursor<'a>) -> Result<Components<'a>, Malformed> {
    let first = float_block(cursor)?;
    if first.is_empty() {
        return Ok(Components::Floats(first));
    }
    let mut next = float_block(cursor)?;
    if next.is_empty() {
        return Ok(Components::Floats(first));
    }
    let mut components: Vec<f32> = Vec::new();
    let mut extend = |words: &[[u8; 4]]| {
        components.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
    };
    extend(first);
    while !next.is_empty() {
        extend(next);
        next = float_block(cursor)?;
    }
    Ok(Components::Owned(components))
}

/// The next block's floats, none at the array's end.
fn float_block<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [[u8; 4]], Malformed> {
    let count = cursor.block(4)?;
    // `block` has seen that these many bytes are there.
    Ok(cursor.take(count * 4)?.as_chunks().0)
}

fn packed<'a>(cursor: &mut Cursor<'a>) -> Result<Components<'a>, Malformed> {
    let at = cursor.at();
    let found = cursor.int()?;
    let packing = usize::try_from(found)
        .ok()
        .and_then(|n| Packing::ALL.get(n));
    let packing = packing.ok_or(Malformed::Branch {
        at,
        found: found.into(),
        branches: Packing::ALL.len(),
    })?;
    Components::unpack(*packing, cursor.bytes()?)
}

fn payload(cursor: &mut Cursor<'_>) -> Result<Payload, Malformed> {
    let mut payload = Payload::default();
    loop {
        // A name's length, a branch and a boolean: no entry is shorter.
        let count = cursor.block(3)?;
        if count == 0 {
            return Ok(payload);
        }
        for _ in 0..count {
            let name = cursor.text()?.to_owned();
            let value = match cursor.branch(6)? {
                0 => Value::String(cursor.text()?.to_owned()),
                1 => Value::Integer(cursor.long()?),
                2 => Value::Float(cursor.double()?),
                3 => Value::Boolean(cursor.boolean()?),
                4 => Value::Timestamp(cursor.long()?),
                _ => Value::Strings(texts(cursor)?),
            };
            payload.0.insert(name, value);
        }
    }
}

/// Reads an array of texts.
pub(super) fn texts(cursor: &mut Cursor<'_>) -> Result<Vec<String>, Malformed> {
    let mut texts = Vec::new();
    loop {
        let count = cursor.block(1)?;
        if count == 0 {
            return Ok(texts);
        }
        for _ in 0..count {
            texts.push(cursor.text()?.to_owned());
        }
    }
}

fn undecodable(detail: impl std::fmt::Display) -> Rejection {
    Rejection::new(Reason::Undecodable, detail)
}
