//! JSON in its several shapes, and the refusals that name the field.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use serde_json::json;

use super::{decode, decode_for, decode_line, encode};
use crate::{Collection, Metric, Payload, Point, PointId, Reason, Value, Vector, payload};

fn collection() -> Collection {
    let dim = 3.try_into().unwrap();
    Collection::new("docs".parse().unwrap(), dim, Metric::Cosine, 1)
}

#[test]
fn a_full_value_reads() {
    let value = json!({
        "vector": [1, 2.5, -3e-2], "payload": {"title": "x", "gone": null}, "model": "m",
        "event_time": 1_700_000_000_000_i64, "expires_at": "2023-11-14T22:13:20Z",
    });
    let point = decode(value.to_string().as_bytes(), &collection()).unwrap();
    assert_eq!(point.vector.as_slice(), [1.0, 2.5, -0.03]);
    let title = ("title".to_owned(), Value::String("x".to_owned()));
    assert_eq!(point.payload, Payload([title].into()));
    assert_eq!(point.model.as_deref(), Some("m"));
    assert_eq!(point.event_time_ms, Some(1_700_000_000_000));
    assert_eq!(point.expires_at_ms, Some(1_700_000_000_000));
}

#[test]
fn the_shape_of_qdrant_kafka_reads_if_it_agrees_with_key_and_topic() {
    let value = json!({
        "collection_name": "docs", "id": 7, "vector": [1, 0, 0], "payload": {"a": 1},
    });
    let value = value.to_string();
    let read = |id| decode_for(&PointId::new(id).unwrap(), value.as_bytes(), &collection());
    assert!(read("7").is_ok());
    let refused = read("8").unwrap_err();
    assert_eq!(refused.reason, Reason::Undecodable);
    assert!(refused.detail.contains("`7`") && refused.detail.contains("`8`"));

    let mut other = collection();
    other.name = "texts".parse().unwrap();
    let refused = decode(value.as_bytes(), &other).unwrap_err();
    assert!(refused.detail.contains("`docs`"), "{refused}");
}

#[test]
fn each_fault_has_its_reason_and_names_the_field() {
    for (value, reason, word) in [
        ("{", Reason::Undecodable, "EOF"),
        (r#"{"vector":[1,2,3]}x"#, Reason::Undecodable, "trailing"),
        (r#"{"payload":{}}"#, Reason::Undecodable, "vector"),
        (
            r#"{"vector":[1,2,3],"expire_at":1}"#,
            Reason::Undecodable,
            "`expire_at`",
        ),
        (
            r#"{"vector":[1,2,3],"expires_at":"soon"}"#,
            Reason::Undecodable,
            "soon",
        ),
        (
            r#"{"vector":[1,2,3],"expires_at":1.5}"#,
            Reason::Undecodable,
            "1.5",
        ),
        (r#"{"vector":[1,2,NaN]}"#, Reason::Undecodable, "column"),
        (r#"{"vector":[1,2,null]}"#, Reason::Undecodable, "null"),
        (
            r#"{"vector":[1,2]}"#,
            Reason::WrongDimension,
            "2 components",
        ),
        (r#"{"vector":[1,2,1e39]}"#, Reason::NotFinite, "component 2"),
        (r#"{"vector":[0,0,0]}"#, Reason::ZeroVector, "zeros"),
        (
            r#"{"vector":[1,2,3],"payload":{"deep":{}}}"#,
            Reason::BadPayload,
            "`deep`",
        ),
    ] {
        let refused = decode(value.as_bytes(), &collection()).unwrap_err();
        assert_eq!(refused.reason, reason, "{value}: {refused}");
        assert!(refused.detail.contains(word), "{value}: {refused}");
    }
}

#[test]
fn a_line_needs_an_id() {
    let refused = decode_line(br#"{"vector":[1,2,3]}"#, &collection()).unwrap_err();
    assert_eq!(refused.reason, Reason::BadKey);
    let refused = decode_line(br#"{"id":"","vector":[1,2,3]}"#, &collection()).unwrap_err();
    assert_eq!(refused.reason, Reason::BadKey);
}

proptest! {
    #[test]
    fn what_is_encoded_reads_back(
        values in proptest::collection::vec(-1e30f32..1e30, 3),
        payload in payload::arbitrary::payload(),
        model in proptest::option::of("\\PC{0,8}"),
        times: (Option<i64>, Option<i64>),
    ) {
        prop_assume!(values.iter().any(|value| *value != 0.0));
        // serde_json reads doubles to within their last bit; whole ones exactly.
        let exact = payload.0.into_iter().map(|(name, value)| match value {
            Value::Float(number) => (name, Value::Float(f64::from(number.to_bits().count_ones()))),
            other => (name, other),
        });
        let collection = collection();
        let point = Point {
            vector: Vector::new(&values, collection.dim, collection.metric).unwrap(),
            payload: Payload(exact.collect()),
            model,
            event_time_ms: times.0,
            expires_at_ms: times.1,
        };
        let id = PointId::new("a/b").unwrap();
        let line = encode(&id, &point).to_string();
        prop_assert_eq!(decode_line(line.as_bytes(), &collection).unwrap(), (id, point));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let mut value = b"{".to_vec();
        value.extend(bytes);
        let _refused_or_not = decode(&value, &collection());
    }
}
