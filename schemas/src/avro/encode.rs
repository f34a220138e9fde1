//! Points to Avro, with our own schema.

use super::{CONFLUENT_MAGIC, SINGLE_OBJECT_MAGIC, fingerprint};
use crate::{payload::Value, point::Point};

/// What stands before the datum and names its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Avro's own: the schema's fingerprint, for topics without a registry.
    SingleObject,
    /// Confluent's wire format: the schema's id in a registry.
    Confluent {
        /// The id that the registry gave our schema.
        schema_id: u32,
    },
}

/// Appends the point's value, the vector as an array of floats.
pub fn encode(point: &Point, framing: Framing, out: &mut Vec<u8>) {
    let components = point.vector.as_slice();
    out.reserve(components.len() * 4 + 64);
    match framing {
        Framing::SingleObject => {
            out.extend(SINGLE_OBJECT_MAGIC);
            out.extend(fingerprint().to_le_bytes());
        }
        Framing::Confluent { schema_id } => {
            out.push(CONFLUENT_MAGIC);
            out.extend(schema_id.to_be_bytes());
        }
    }
    put_branch(out, 0);
    put_block(out, components.len());
    let start = out.len();
    out.resize(start + components.len() * 4, 0);
    let (_, tail) = out.split_at_mut(start);
    for (to, component) in tail.as_chunks_mut().0.iter_mut().zip(components) {
        *to = component.to_le_bytes();
    }
    put_end(out);
    put_payload(out, point);
    match &point.model {
        None => put_branch(out, 0),
        Some(model) => {
            put_branch(out, 1);
            put_text(out, model);
        }
    }
    for time in [point.event_time_ms, point.expires_at_ms] {
        match time {
            None => put_branch(out, 0),
            Some(millis) => {
                put_branch(out, 1);
                put_long(out, millis);
            }
        }
    }
}

fn put_payload(out: &mut Vec<u8>, point: &Point) {
    let fields = &point.payload.0;
    if !fields.is_empty() {
        put_block(out, fields.len());
    }
    for (name, value) in fields {
        put_text(out, name);
        match value {
            Value::String(text) => {
                put_branch(out, 0);
                put_text(out, text);
            }
            Value::Integer(number) => {
                put_branch(out, 1);
                put_long(out, *number);
            }
            Value::Float(number) => {
                put_branch(out, 2);
                out.extend(number.to_le_bytes());
            }
            Value::Boolean(truth) => {
                put_branch(out, 3);
                out.push(u8::from(*truth));
            }
            Value::Timestamp(millis) => {
                put_branch(out, 4);
                put_long(out, *millis);
            }
            Value::Strings(texts) => {
                put_branch(out, 5);
                if !texts.is_empty() {
                    put_block(out, texts.len());
                    texts.iter().for_each(|text| put_text(out, text));
                }
                put_end(out);
            }
        }
    }
    put_end(out);
}

/// Zigzag, then 7 bits a byte, the lowest first.
fn put_long(out: &mut Vec<u8>, number: i64) {
    let mut rest = (number << 1 ^ number >> 63).cast_unsigned();
    loop {
        let [low, ..] = rest.to_le_bytes();
        rest >>= 7;
        if rest == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    put_long(
        out,
        i64::try_from(len).expect("memory has fewer than 2^63 bytes"),
    );
}

/// Starts the only block of an array or map.
fn put_block(out: &mut Vec<u8>, items: usize) {
    put_len(out, items);
}

/// Ends an array or map.
fn put_end(out: &mut Vec<u8>) {
    out.push(0);
}

fn put_branch(out: &mut Vec<u8>, branch: u8) {
    out.push(branch << 1);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_len(out, text.len());
    out.extend_from_slice(text.as_bytes());
}
