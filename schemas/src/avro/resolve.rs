//! Values of foreign writer schemas to points, matched by field name.
//!
//! This is Avro's schema resolution for the one reader we have: a field we do not know is passed
//! over, one that the writer lacks takes its default (only `vector` has none), a union is read by
//! the branch the writer took, ints, longs and floats widen. Beyond the specification it is
//! lenient where writers differ for no reason of ours: names of types are not compared, doubles
//! make components, nulls in a payload are dropped, and a payload value that is itself a
//! timestamp is taken as one.

use super::{
    cursor::{Cursor, Malformed},
    decode::{Components, Datum, Packing, floats, texts},
    plan::Node,
};
use crate::payload::{Payload, Value};

/// Reads a datum of the schema that `node` was unfolded from.
pub(super) fn datum<'a>(node: &Node, mut cursor: Cursor<'a>) -> Result<Datum<'a>, Malformed> {
    let node = branch(node, &mut cursor)?;
    let Node::Record { fields, .. } = node else {
        return Err(mismatch("the value itself", node, "a record"));
    };
    let mut vector = None;
    let mut payload = Payload::default();
    let mut model = None;
    let mut event_time_ms = None;
    let mut expires_at_ms = None;
    for (name, node) in fields {
        match name.as_str() {
            "vector" => vector = Some(components(node, &mut cursor)?),
            "payload" => payload = fields_of(node, &mut cursor)?,
            "model" => model = text(node, &mut cursor)?,
            "event_time" => event_time_ms = time("event_time", node, &mut cursor)?,
            "expires_at" => expires_at_ms = time("expires_at", node, &mut cursor)?,
            _ => skip(node, &mut cursor)?,
        }
    }
    cursor.end()?;
    let vector = vector.ok_or_else(|| Malformed::Type {
        field: "vector",
        found: "missing from the writer's schema".to_owned(),
        expected: VECTOR,
    })?;
    Ok(Datum {
        vector,
        payload,
        model,
        event_time_ms,
        expires_at_ms,
    })
}

const VECTOR: &str = "an array of floats or a packed vector";
const TIME: &str = "a timestamp, a long or null";

fn mismatch(field: &'static str, node: &Node, expected: &'static str) -> Malformed {
    Malformed::Type {
        field,
        found: node.describe(),
        expected,
    }
}

/// The branch taken, where the type is a union. Unions do not nest.
fn branch<'n>(node: &'n Node, cursor: &mut Cursor<'_>) -> Result<&'n Node, Malformed> {
    let Node::Union(branches) = node else {
        return Ok(node);
    };
    let taken = cursor.branch(branches.len())?;
    Ok(branches.get(taken).expect("`branch` has checked it"))
}

fn components<'a>(node: &Node, cursor: &mut Cursor<'a>) -> Result<Components<'a>, Malformed> {
    let node = branch(node, cursor)?;
    match node {
        Node::Array(items) => match **items {
            Node::Float => floats(cursor),
            Node::Double => numbers(cursor, 8, |cursor| cursor.double().map(narrow)),
            Node::Int => numbers(cursor, 1, |cursor| cursor.int().map(f64::from).map(narrow)),
            _ => Err(mismatch("vector", node, VECTOR)),
        },
        Node::Record { fields, .. } => packed(node, fields, cursor),
        _ => Err(mismatch("vector", node, VECTOR)),
    }
}

#[expect(
    clippy::as_conversions,
    reason = "rounds to the nearest float, or to infinity"
)]
fn narrow(wide: f64) -> f32 {
    wide as f32
}

fn numbers<'a>(
    cursor: &mut Cursor<'_>,
    item_bytes: usize,
    read: impl Fn(&mut Cursor<'_>) -> Result<f32, Malformed>,
) -> Result<Components<'a>, Malformed> {
    let mut components = Vec::new();
    loop {
        let count = cursor.block(item_bytes)?;
        if count == 0 {
            return Ok(Components::Owned(components));
        }
        for _ in 0..count {
            components.push(read(cursor)?);
        }
    }
}

fn packed<'a>(
    node: &Node,
    fields: &[(String, Node)],
    cursor: &mut Cursor<'a>,
) -> Result<Components<'a>, Malformed> {
    let mut packing = None;
    let mut data = None;
    for (name, node) in fields {
        match (name.as_str(), node) {
            ("encoding", Node::Enum(symbols)) => {
                let symbol = cursor.branch(symbols.len())?;
                let symbol = symbols.get(symbol).expect("`branch` has checked it");
                let known = Packing::ALL
                    .into_iter()
                    .find(|known| known.symbol() == symbol);
                packing = Some(known.ok_or_else(|| Malformed::Encoding {
                    found: symbol.clone(),
                })?);
            }
            ("data", Node::Bytes) => data = Some(cursor.bytes()?),
            ("data", Node::Fixed(size)) => data = Some(cursor.take(*size)?),
            _ => skip(node, cursor)?,
        }
    }
    match (packing, data) {
        (Some(packing), Some(data)) => Components::unpack(packing, data),
        _ => Err(mismatch("vector", node, VECTOR)),
    }
}

fn fields_of(node: &Node, cursor: &mut Cursor<'_>) -> Result<Payload, Malformed> {
    let node = branch(node, cursor)?;
    let values = match node {
        Node::Null => return Ok(Payload::default()),
        Node::Map(values) => values,
        _ => return Err(mismatch("payload", node, "a map")),
    };
    let mut payload = Payload::default();
    loop {
        let count = cursor.block(1 + values.min_bytes())?;
        if count == 0 {
            return Ok(payload);
        }
        for _ in 0..count {
            let name = cursor.text()?.to_owned();
            if let Some(value) = value(&name, values, cursor)? {
                payload.0.insert(name, value);
            }
        }
    }
}

fn value(name: &str, node: &Node, cursor: &mut Cursor<'_>) -> Result<Option<Value>, Malformed> {
    let node = branch(node, cursor)?;
    let value = match node {
        Node::Null => return Ok(None),
        Node::Boolean => Value::Boolean(cursor.boolean()?),
        Node::Int => Value::Integer(cursor.int()?.into()),
        Node::Long => Value::Integer(cursor.long()?),
        Node::Moment { per_milli } => Value::Timestamp(cursor.long()?.div_euclid(*per_milli)),
        Node::Float => Value::Float(cursor.float()?.into()),
        Node::Double => Value::Float(cursor.double()?),
        Node::Text => Value::String(cursor.text()?.to_owned()),
        Node::Array(items) if **items == Node::Text => Value::Strings(texts(cursor)?),
        Node::Record { fields, .. } => match fields.as_slice() {
            [(only, node)] if only == "millis" => match time("millis", node, cursor)? {
                Some(millis) => Value::Timestamp(millis),
                None => return Ok(None),
            },
            _ => return Err(refuse(name, node)),
        },
        _ => return Err(refuse(name, node)),
    };
    Ok(Some(value))
}

fn refuse(name: &str, node: &Node) -> Malformed {
    Malformed::PayloadType {
        field: name.chars().take(80).collect(),
        found: node.describe(),
    }
}

fn text(node: &Node, cursor: &mut Cursor<'_>) -> Result<Option<String>, Malformed> {
    let node = branch(node, cursor)?;
    match node {
        Node::Null => Ok(None),
        Node::Text => Ok(Some(cursor.text()?.to_owned())),
        _ => Err(mismatch("model", node, "a string or null")),
    }
}

fn time(
    field: &'static str,
    node: &Node,
    cursor: &mut Cursor<'_>,
) -> Result<Option<i64>, Malformed> {
    let node = branch(node, cursor)?;
    match node {
        Node::Null => Ok(None),
        Node::Int => Ok(Some(cursor.int()?.into())),
        Node::Long => Ok(Some(cursor.long()?)),
        Node::Moment { per_milli } => Ok(Some(cursor.long()?.div_euclid(*per_milli))),
        _ => Err(mismatch(field, node, TIME)),
    }
}

/// Passes over a value of any type. Its depth is bounded by the schema's.
fn skip(node: &Node, cursor: &mut Cursor<'_>) -> Result<(), Malformed> {
    match node {
        Node::Null => Ok(()),
        Node::Boolean => cursor.boolean().map(drop),
        Node::Int => cursor.int().map(drop),
        Node::Long | Node::Moment { .. } => cursor.long().map(drop),
        Node::Float => cursor.float().map(drop),
        Node::Double => cursor.double().map(drop),
        Node::Bytes => cursor.bytes().map(drop),
        Node::Text => cursor.text().map(drop),
        Node::Fixed(size) => cursor.take(*size).map(drop),
        Node::Enum(symbols) => cursor.branch(symbols.len()).map(drop),
        Node::Array(items) => skip_blocks(cursor, items.min_bytes(), |cursor| skip(items, cursor)),
        Node::Map(values) => skip_blocks(cursor, 1 + values.min_bytes(), |cursor| {
            cursor.text()?;
            skip(values, cursor)
        }),
        Node::Union(_) => {
            let taken = branch(node, cursor)?;
            skip(taken, cursor)
        }
        Node::Record { fields, .. } => {
            let mut fields = fields.iter();
            fields.try_for_each(|(_, node)| skip(node, cursor))
        }
    }
}

fn skip_blocks(
    cursor: &mut Cursor<'_>,
    item_bytes: usize,
    item: impl Fn(&mut Cursor<'_>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    loop {
        let count = cursor.block(item_bytes)?;
        if count == 0 {
            return Ok(());
        }
        // Items that take no bytes may be claimed without end, and there is nothing to read.
        if item_bytes > 0 {
            (0..count).try_for_each(|_| item(cursor))?;
        }
    }
}
