//! Bytes that were once written keep decoding. Never change a fixture: add one.
//!
//! The files under `fixtures/v1` were written by `fastavro`, an implementation that shares no
//! code with ours.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{error::Error, sync::Arc};

use shoal_schemas::{
    Collection, Metric, Payload, Point, PointId, Reason, Value, Vector,
    avro::{self, Framing, LookupError, NoRegistry, WriterSchema, WriterSchemas},
    event::{ValueError, decode_value},
    json,
};

const SINGLE_OBJECT: &[u8] = include_bytes!("fixtures/v1/single_object.bin");
const CONFLUENT: &[u8] = include_bytes!("fixtures/v1/confluent_id_42.bin");
const OLDER_WRITER: &[u8] = include_bytes!("fixtures/v1/older_writer_id_1.bin");
const NEWER_WRITER: &[u8] = include_bytes!("fixtures/v1/newer_writer_id_2.bin");
const JSON: &[u8] = include_bytes!("fixtures/v1/value.json");
const QDRANT_KAFKA: &[u8] = include_bytes!("fixtures/v1/qdrant_kafka.json");

/// A registry of the three schemas that the fixtures were written with.
struct Registry;

impl WriterSchemas for Registry {
    fn by_id(&self, id: u32) -> Result<Arc<WriterSchema>, LookupError> {
        let json = match id {
            1 => include_str!("fixtures/schemas/older.avsc"),
            2 => include_str!("fixtures/schemas/newer.avsc"),
            42 => avro::SCHEMA_JSON,
            _ => {
                return Err(LookupError::Unknown {
                    id,
                    registry: "the fixtures".to_owned(),
                });
            }
        };
        Ok(Arc::new(WriterSchema::parse(json).unwrap()))
    }
}

/// A registry that is down.
struct Down;

impl WriterSchemas for Down {
    fn by_id(&self, id: u32) -> Result<Arc<WriterSchema>, LookupError> {
        let source = "connection refused".into();
        Err(LookupError::Unavailable { id, source })
    }
}

fn collection() -> Collection {
    let dim = 4.try_into().unwrap();
    Collection::new("docs".parse().unwrap(), dim, Metric::Cosine, 1)
}

fn id() -> PointId {
    PointId::new("a").unwrap()
}

fn decode(value: &[u8]) -> Point {
    decode_value(&id(), value, &collection(), &Registry).unwrap()
}

fn payload(fields: Vec<(&str, Value)>) -> Payload {
    let fields = fields.into_iter();
    Payload(
        fields
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

/// What every full fixture says.
fn full() -> Point {
    let collection = collection();
    let values = [0.5, -1.25, 3.0, 0.0];
    Point {
        vector: Vector::new(&values, collection.dim, collection.metric).unwrap(),
        payload: payload(vec![
            ("title", Value::String("Zürich".to_owned())),
            ("year", Value::Integer(1999)),
            ("score", Value::Float(0.25)),
            ("hit", Value::Boolean(true)),
            ("seen", Value::Timestamp(1_700_000_000_123)),
            (
                "tags",
                Value::Strings(vec!["a".to_owned(), "b c".to_owned()]),
            ),
        ]),
        model: Some("mini".to_owned()),
        event_time_ms: Some(1_700_000_000_000),
        expires_at_ms: Some(4_102_444_800_000),
    }
}

#[test]
fn every_encoding_of_the_full_point_decodes_to_it() {
    for value in [SINGLE_OBJECT, CONFLUENT, NEWER_WRITER, JSON] {
        assert_eq!(decode(value), full());
    }
}

#[test]
fn an_older_writer_leaves_the_later_fields_at_their_defaults() {
    let older = Point {
        payload: payload(vec![
            ("title", Value::String("Zürich".to_owned())),
            ("year", Value::Integer(1999)),
        ]),
        model: None,
        event_time_ms: None,
        expires_at_ms: None,
        ..full()
    };
    assert_eq!(decode(OLDER_WRITER), older);
    assert_eq!(decode(QDRANT_KAFKA), older);
}

#[test]
fn packed_vectors_of_every_encoding_decode() {
    for value in [
        &include_bytes!("fixtures/v1/packed_f32.bin")[..],
        include_bytes!("fixtures/v1/packed_f16.bin"),
        include_bytes!("fixtures/v1/packed_bf16.bin"),
    ] {
        assert_eq!(decode(value).vector, full().vector);
    }
    let of_bytes = decode(include_bytes!("fixtures/v1/packed_i8.bin"));
    assert_eq!(of_bytes.vector.as_slice(), [1.0, -1.0, 64.0 / 127.0, 0.0]);
}

#[test]
fn what_we_encode_today_decodes_to_the_same_and_keeps_its_frame() {
    for (framing, fixture, frame) in [
        (Framing::SingleObject, SINGLE_OBJECT, 10),
        (Framing::Confluent { schema_id: 42 }, CONFLUENT, 5),
    ] {
        let mut value = Vec::new();
        avro::encode(&full(), framing, &mut value);
        assert_eq!(value[..frame], fixture[..frame]);
        assert_eq!(value.len(), fixture.len());
        assert_eq!(decode(&value), full());
    }
    let value = json::encode(&id(), &full()).to_string();
    assert_eq!(decode(value.as_bytes()), full());
}

#[test]
fn every_truncation_of_a_fixture_is_refused() {
    for value in [
        SINGLE_OBJECT,
        CONFLUENT,
        OLDER_WRITER,
        NEWER_WRITER,
        JSON.trim_ascii(),
        QDRANT_KAFKA.trim_ascii(),
    ] {
        for len in 0..value.len() {
            let refused = decode_value(&id(), &value[..len], &collection(), &Registry);
            let Err(ValueError::Rejected(rejection)) = refused else {
                panic!("{len} of {} bytes: {refused:?}", value.len());
            };
            assert_eq!(rejection.reason, Reason::Undecodable, "{rejection}");
        }
    }
}

#[test]
fn a_value_of_no_known_encoding_is_shown_by_its_first_bytes() {
    for (value, shown) in [
        (&b""[..], "value of 0 bytes"),
        (b"hello", "68 65 6c 6c 6f"),
        (b"[1,2]", "5b 31"),
        (
            b"\xc3\x02\x03\x04\x05\x06\x07\x08\x09",
            "c3 02 03 04 05 06 07 08 ...",
        ),
    ] {
        let refused = decode_value(&id(), value, &collection(), &Registry);
        let Err(ValueError::Rejected(rejection)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(rejection.reason, Reason::Undecodable);
        assert!(rejection.detail.contains(shown), "{rejection}");
    }
}

#[test]
fn only_a_registry_that_is_down_makes_a_record_wait() {
    let waiting = decode_value(&id(), CONFLUENT, &collection(), &Down).unwrap_err();
    let ValueError::Unavailable(error) = waiting else {
        panic!("{waiting:?}");
    };
    assert_eq!(error.source().unwrap().to_string(), "connection refused");
    assert!(decode_value(&id(), SINGLE_OBJECT, &collection(), &Down).is_ok());

    let refused = decode_value(&id(), CONFLUENT, &collection(), &NoRegistry).unwrap_err();
    let ValueError::Rejected(rejection) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(rejection.reason, Reason::UnknownSchema);
    assert!(rejection.detail.contains("registry"), "{rejection}");
}
