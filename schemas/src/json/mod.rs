//! Points as JSON: what kcat and curl write, lines of a JSONL file, and qdrant-kafka's shape.
//!
//! ```json
//! {"id": "a", "vector": [0.1, 0.2], "payload": {"title": "x"}, "model": "m",
//!  "event_time": 1700000000000, "expires_at": "2026-01-01T00:00:00Z"}
//! ```
//! Only `vector` is a must in a record's value, and `id` too in a line. Times are milliseconds
//! since the Unix epoch or RFC 3339 texts. `id` and `collection_name`, where given, have to agree with
//! the record's key and topic. An unknown field is refused by name: a misspelt `expires_at`
//! must not silently mean for ever.

mod change;
pub(crate) mod time;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value as Json, json};

use crate::{
    collection::Collection,
    payload::Payload,
    point::{Point, PointId},
    reject::{Reason, Rejection},
    vector::Vector,
};

use time::Time;

pub use change::{decode_patch, decode_wanted_version, split_condition};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    id: Option<Id>,
    collection_name: Option<String>,
    #[serde(deserialize_with = "components")]
    vector: Vec<f32>,
    payload: Option<Map<String, Json>>,
    model: Option<String>,
    event_time: Option<Time>,
    expires_at: Option<Time>,
}

/// qdrant's ids may be numbers; ours are texts.
#[derive(Deserialize)]
#[serde(untagged, expecting = "an id that is a text or a whole number")]
enum Id {
    Text(String),
    Number(u64),
}

impl Id {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

/// Reads a record's value whose key is not at hand.
///
/// # Errors
/// [`Rejection`], naming the field or the place.
pub fn decode(value: &[u8], collection: &Collection) -> Result<Point, Rejection> {
    read(value, collection).map(|(_, point)| point)
}

/// Reads a record's value; an `id` in it has to equal the record's key.
///
/// # Errors
/// [`Rejection`], naming the field or the place.
pub fn decode_for(id: &PointId, value: &[u8], collection: &Collection) -> Result<Point, Rejection> {
    let (said, point) = read(value, collection)?;
    match said {
        Some(said) if said != id.as_str() => Err(undecodable(format_args!(
            "value says id `{}`, the record's key is `{id}`",
            said.chars().take(80).collect::<String>()
        ))),
        _ => Ok(point),
    }
}

/// Reads one line of a JSONL file, which says its id.
///
/// # Errors
/// [`Rejection`], naming the field or the place.
pub fn decode_line(line: &[u8], collection: &Collection) -> Result<(PointId, Point), Rejection> {
    let (said, point) = read(line, collection)?;
    let id = said.ok_or_else(|| Rejection::new(Reason::BadKey, "line has no `id`"))?;
    Ok((PointId::new(&id)?, point))
}

/// The point as [`decode_line`] reads it; what is not set is left out.
pub fn encode(id: &PointId, point: &Point) -> Json {
    let mut fields = Map::new();
    fields.insert("id".to_owned(), id.as_str().into());
    fields.insert("vector".to_owned(), point.vector.as_slice().into());
    if !point.payload.0.is_empty() {
        fields.insert("payload".to_owned(), point.payload.to_json().into());
    }
    let rest = [
        ("model", point.model.as_ref().map(|model| json!(model))),
        (
            "event_time",
            point.event_time_ms.map(|millis| json!(millis)),
        ),
        (
            "expires_at",
            point.expires_at_ms.map(|millis| json!(millis)),
        ),
    ];
    for (name, value) in rest {
        if let Some(value) = value {
            fields.insert(name.to_owned(), value);
        }
    }
    Json::Object(fields)
}

/// Reads a vector's components, for `#[serde(deserialize_with)]`.
///
/// By way of f64, so that a number too large for a component comes out infinite: the vector's own
/// check then names the component, where the parser would only name a column.
///
/// # Errors
/// The format's own, if it is no list of numbers.
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "the nearest f32; infinite where there is none"
)]
pub fn components<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<f32>, D::Error> {
    let numbers = Vec::<f64>::deserialize(from)?;
    Ok(numbers.into_iter().map(|number| number as f32).collect())
}

/// Reads a time that stands by itself: whole milliseconds since the Unix epoch, or RFC 3339 text.
pub fn decode_time(text: &str) -> Option<i64> {
    let quoted = || serde_json::from_value(Json::from(text)).ok();
    let read: Option<Time> = serde_json::from_str(text).ok().or_else(quoted);
    read.map(Time::millis)
}

fn read(json: &[u8], collection: &Collection) -> Result<(Option<String>, Point), Rejection> {
    let document: Document = serde_json::from_slice(json)
        .map_err(|error| undecodable(format_args!("JSON does not read: {error}")))?;
    if let Some(said) = &document.collection_name
        && said != collection.name.as_str()
    {
        return Err(undecodable(format_args!(
            "value says collection `{}`, the topic's is `{}`",
            said.chars().take(80).collect::<String>(),
            collection.name
        )));
    }
    let point = Point {
        vector: Vector::new(&document.vector, collection.dim, collection.metric)?,
        payload: Payload::from_json(document.payload.unwrap_or_default())?,
        model: document.model,
        event_time_ms: document.event_time.map(Time::millis),
        expires_at_ms: document.expires_at.map(Time::millis),
    };
    Ok((document.id.map(Id::into_text), point))
}

fn undecodable(detail: impl std::fmt::Display) -> Rejection {
    Rejection::new(Reason::Undecodable, detail)
}

#[cfg(test)]
mod tests;
