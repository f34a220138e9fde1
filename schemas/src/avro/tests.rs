//! The hand-written paths against `apache-avro`, against each other, and against bad bytes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::HashMap, sync::Arc};

use apache_avro::{
    Schema, reader::datum::GenericDatumReader, schema::ResolvedSchema, types::Value as Avro,
    writer::datum::GenericDatumWriter,
};
use proptest::prelude::*;

use super::{
    CONFLUENT_MAGIC, Framing, LookupError, SCHEMA_JSON, SINGLE_OBJECT_MAGIC, WriterSchema,
    WriterSchemas, cursor::Cursor, decode, decode_confluent, decode_single_object, encode,
    fingerprint, plan::Node, resolve,
};
use crate::{
    Collection, Metric, Payload, Point, Reason, Rejection, Value, Vector, event::ValueError,
    payload::arbitrary,
};

const DIM: usize = 4;

fn collection() -> Collection {
    let dim = 4.try_into().unwrap();
    Collection::new("docs".parse().unwrap(), dim, Metric::L2, 1)
}

fn point() -> impl Strategy<Value = Point> {
    let parts = (
        proptest::collection::vec(-1e30f32..1e30, DIM),
        arbitrary::payload(),
        proptest::option::of("\\PC{0,8}"),
        any::<(Option<i64>, Option<i64>)>(),
    );
    parts.prop_map(|(values, payload, model, times)| Point {
        vector: Vector::new(&values, collection().dim, Metric::L2).unwrap(),
        payload,
        model,
        event_time_ms: times.0,
        expires_at_ms: times.1,
    })
}

/// A point as `apache-avro` sees it.
fn generic(point: &Point) -> Avro {
    let union = |branch, value| Avro::Union(branch, Box::new(value));
    let components = point.vector.as_slice().iter().copied().map(Avro::Float);
    let payload = point.payload.0.iter().map(|(name, value)| {
        let value = match value {
            Value::String(text) => union(0, Avro::String(text.clone())),
            Value::Integer(number) => union(1, Avro::Long(*number)),
            Value::Float(number) => union(2, Avro::Double(*number)),
            Value::Boolean(truth) => union(3, Avro::Boolean(*truth)),
            Value::Timestamp(millis) => {
                let millis = ("millis".to_owned(), Avro::TimestampMillis(*millis));
                union(4, Avro::Record(vec![millis]))
            }
            Value::Strings(texts) => {
                let texts = texts.iter().cloned().map(Avro::String);
                union(5, Avro::Array(texts.collect()))
            }
        };
        (name.clone(), value)
    });
    let option = |value: Option<Avro>| match value {
        None => union(0, Avro::Null),
        Some(value) => union(1, value),
    };
    let fields = [
        ("vector", union(0, Avro::Array(components.collect()))),
        ("payload", Avro::Map(payload.collect())),
        ("model", option(point.model.clone().map(Avro::String))),
        (
            "event_time",
            option(point.event_time_ms.map(Avro::TimestampMillis)),
        ),
        (
            "expires_at",
            option(point.expires_at_ms.map(Avro::TimestampMillis)),
        ),
    ];
    Avro::Record(fields.map(|(name, value)| (name.to_owned(), value)).into())
}

fn ours() -> Schema {
    Schema::parse_str(SCHEMA_JSON).unwrap()
}

fn framed(datum: &[u8]) -> Vec<u8> {
    let mut value = SINGLE_OBJECT_MAGIC.to_vec();
    value.extend(fingerprint().to_le_bytes());
    value.extend(datum);
    value
}

fn encoded(point: &Point) -> Vec<u8> {
    let mut value = Vec::new();
    encode(point, Framing::SingleObject, &mut value);
    value
}

/// Decodes a datum by walking our schema, as if it were a foreign one.
fn walked(datum: &[u8]) -> Result<Point, Rejection> {
    let schema = ours();
    let names = ResolvedSchema::new(&schema).unwrap();
    let node = Node::compile(&schema, names.get_names()).unwrap();
    match resolve::datum(&node, Cursor::new(datum, datum)) {
        Ok(datum) => datum.check(&collection()),
        Err(error) => Err(Rejection::new(Reason::Undecodable, error)),
    }
}

/// Schemas by id, for values in Confluent's format.
struct Registry(HashMap<u32, Arc<WriterSchema>>);

impl Registry {
    fn of(json: &str) -> Self {
        let schema = Arc::new(WriterSchema::parse(json).unwrap());
        Self([(1, schema)].into())
    }
}

impl WriterSchemas for Registry {
    fn by_id(&self, id: u32) -> Result<Arc<WriterSchema>, LookupError> {
        self.0.get(&id).cloned().ok_or(LookupError::Unknown {
            id,
            registry: "the test".to_owned(),
        })
    }
}

fn decode_foreign(json: &str, value: &Avro) -> Result<Point, Rejection> {
    let schema = Schema::parse_str(json).unwrap();
    let writer = GenericDatumWriter::builder(&schema).build().unwrap();
    let mut bytes = vec![CONFLUENT_MAGIC, 0, 0, 0, 1];
    bytes.extend(writer.write_value_to_vec(value.clone()).unwrap());
    match decode_confluent(&bytes, &collection(), &Registry::of(json)) {
        Ok(point) => Ok(point),
        Err(ValueError::Rejected(rejection)) => Err(rejection),
        Err(error @ ValueError::Unavailable(_)) => panic!("{error}"),
    }
}

proptest! {
    #[test]
    fn what_we_encode_we_and_apache_avro_decode(point in point()) {
        let value = encoded(&point);
        prop_assert_eq!(&decode_single_object(&value, &collection()).unwrap(), &point);
        let schema = ours();
        let reader = GenericDatumReader::builder(&schema).build().unwrap();
        let mut datum = &value[10..];
        prop_assert_eq!(reader.read_value(&mut datum).unwrap(), generic(&point));
        prop_assert!(datum.is_empty());
    }

    #[test]
    fn what_apache_avro_encodes_we_decode(point in point()) {
        let schema = ours();
        let writer = GenericDatumWriter::builder(&schema).build().unwrap();
        let datum = writer.write_value_to_vec(generic(&point)).unwrap();
        prop_assert_eq!(decode_single_object(&framed(&datum), &collection()).unwrap(), point);
    }

    #[test]
    fn every_truncation_and_extension_is_refused(point in point()) {
        let value = encoded(&point);
        for len in 2..value.len() {
            let refused = decode_single_object(&value[..len], &collection()).unwrap_err();
            prop_assert_eq!(refused.reason, Reason::Undecodable);
        }
        let datum = &value[10..];
        for len in 0..datum.len() {
            prop_assert!(walked(&datum[..len]).is_err());
        }
        let longer = [&value[..], &[0]].concat();
        prop_assert!(decode_single_object(&longer, &collection()).is_err());
    }

    #[test]
    fn both_paths_agree_on_good_and_on_damaged_bytes(
        point in point(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut datum = encoded(&point).split_off(10);
        for (at, byte) in damage {
            let at = at.index(datum.len());
            datum[at] = byte;
        }
        let by_hand = decode_single_object(&framed(&datum), &collection());
        let by_walk = walked(&datum);
        match (by_hand, by_walk) {
            // By their text: a damaged float may be NaN, which the vector refuses by value.
            (Ok(a), Ok(b)) => prop_assert_eq!(a, b),
            (Err(a), Err(b)) => prop_assert_eq!(a.reason, b.reason, "{} | {}", a, b),
            (a, b) => prop_assert!(false, "{a:?} | {b:?}"),
        }
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(datum in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _refused_or_not = decode_single_object(&framed(&datum), &collection());
        let _refused_or_not = walked(&datum);
        let newer = include_str!("../../tests/fixtures/schemas/newer.avsc");
        let value = [&[CONFLUENT_MAGIC, 0, 0, 0, 1], &datum[..]].concat();
        let _refused_or_not = decode_confluent(&value, &collection(), &Registry::of(newer));
    }
}

#[test]
fn absurd_lengths_are_refused_before_anything_is_allocated() {
    // Zigzag varints of 2^62 items, of -2^62 items in 2^62 bytes, and of -2^63 items.
    let huge = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01];
    let negative = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    let least = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let eleven = [
        0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01,
    ];
    for claim in [
        &huge[..],
        &[&negative[..], &huge].concat(),
        &[&least[..], &[2]].concat(),
        &eleven,
    ] {
        for start in [&[0][..], &[2, 0]] {
            let datum = [start, claim, &[0; 16]].concat();
            let refused = decode_single_object(&framed(&datum), &collection()).unwrap_err();
            assert_eq!(refused.reason, Reason::Undecodable, "{refused}");
            assert!(walked(&datum).is_err());
        }
    }
    // Items that take no bytes, claimed by the quintillion, are passed over at once.
    let nulls = r#"{"type":"record","name":"P","fields":[
        {"name":"nulls","type":{"type":"array","items":"null"}},
        {"name":"vector","type":{"type":"array","items":"float"}}]}"#;
    let most = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    let value = [
        &[CONFLUENT_MAGIC, 0, 0, 0, 1],
        &most[..],
        &[0, 8],
        &[0; 16],
        &[0],
    ]
    .concat();
    assert!(decode_confluent(&value, &collection(), &Registry::of(nulls)).is_ok());
}

#[test]
fn several_blocks_and_blocks_with_a_size_make_one_vector() {
    let float = |number: f32| number.to_le_bytes();
    // A block of 1, then one of -2 with its 8 bytes, then one of 1.
    let mut datum = vec![0, 2];
    datum.extend(float(1.0));
    datum.extend([3, 16]);
    datum.extend([float(2.0), float(3.0)].concat());
    datum.push(2);
    datum.extend(float(4.0));
    // A payload block of -1 with its size, and no options.
    datum.extend([0, 1, 8, 2, b'a', 2, 14, 0, 0, 0, 0]);
    let point = decode_single_object(&framed(&datum), &collection()).unwrap();
    assert_eq!(point.vector.as_slice(), [1.0, 2.0, 3.0, 4.0]);
    let field = ("a".to_owned(), Value::Integer(7));
    assert_eq!(point.payload, Payload([field].into()));
    assert_eq!(walked(&datum).unwrap(), point);
}

#[test]
fn packed_bytes_that_hold_no_whole_component_are_refused() {
    for (encoding, bytes) in [(0, 15), (2, 7), (4, 7)] {
        let mut datum = vec![2, encoding, bytes * 2];
        datum.extend(vec![0; usize::from(bytes)]);
        datum.extend([0, 0, 0, 0]);
        let refused = decode_single_object(&framed(&datum), &collection()).unwrap_err();
        assert!(refused.detail.contains("no whole number"), "{refused}");
        assert!(walked(&datum).is_err());
    }
}

#[test]
fn a_half_keeps_every_value_it_can() {
    for raw in 0..=u16::MAX {
        let half = half::f16::from_bits(raw);
        let bytes = [raw.to_le_bytes(); DIM].concat();
        let unpacked = decode::Components::unpack(decode::Packing::F16, &bytes).unwrap();
        let decode::Components::Owned(values) = unpacked else {
            panic!("halves are converted");
        };
        assert_eq!(
            values[3].to_bits(),
            half.to_f32_const().to_bits(),
            "{raw:04x}"
        );
    }
}

#[test]
fn the_vector_and_payload_of_a_value_are_checked() {
    let reason = |components: &[f32], fields: usize| {
        let mut datum = vec![0, u8::try_from(components.len() * 2).unwrap()];
        datum.extend(
            components
                .iter()
                .flat_map(|component| component.to_le_bytes()),
        );
        datum.push(0);
        for n in 0..fields {
            datum.extend([2, 4]);
            datum.extend([
                b'a' + u8::try_from(n / 16).unwrap(),
                b'a' + u8::try_from(n % 16).unwrap(),
            ]);
            datum.extend([6, 1]);
        }
        datum.extend([0, 0, 0, 0]);
        let mut collection = collection();
        collection.metric = Metric::Cosine;
        let decoded = decode_single_object(&framed(&datum), &collection);
        decoded.map_err(|rejection| rejection.reason)
    };
    assert!(reason(&[1.0; 4], 256).is_ok());
    assert_eq!(reason(&[1.0; 4], 257), Err(Reason::BadPayload));
    assert_eq!(reason(&[1.0; 3], 0), Err(Reason::WrongDimension));
    assert_eq!(
        reason(&[1.0, 1.0, 1.0, f32::NAN], 0),
        Err(Reason::NotFinite)
    );
    assert_eq!(reason(&[0.0; 4], 0), Err(Reason::ZeroVector));
}

#[test]
fn a_natural_foreign_schema_decodes() {
    let json = r#"{"type":"record","name":"Embedding","namespace":"com.example","fields":[
        {"name":"model","type":"string"},
        {"name":"source","type":{"type":"record","name":"Source","fields":[
            {"name":"uri","type":"string"},{"name":"size","type":{"type":"fixed","name":"H","size":4}}]}},
        {"name":"vector","type":{"type":"array","items":"double"}},
        {"name":"payload","type":["null",{"type":"map","values":["null","int","float",
            {"type":"long","logicalType":"timestamp-micros"}]}]},
        {"name":"event_time","type":{"type":"long","logicalType":"timestamp-micros"}}]}"#;
    let text = |text: &str| Avro::String(text.to_owned());
    let named = |fields: Vec<(&str, Avro)>| {
        Avro::Record(
            fields
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        )
    };
    let union = |branch, value| Avro::Union(branch, Box::new(value));
    let payload = [
        ("none".to_owned(), union(0, Avro::Null)),
        ("n".to_owned(), union(1, Avro::Int(-5))),
        ("x".to_owned(), union(2, Avro::Float(0.5))),
        ("at".to_owned(), union(3, Avro::TimestampMicros(-1_500))),
    ];
    let value = named(vec![
        ("model", text("m")),
        (
            "source",
            named(vec![
                ("uri", text("u")),
                ("size", Avro::Fixed(4, vec![1, 2, 3, 4])),
            ]),
        ),
        (
            "vector",
            Avro::Array([1.0, 0.5, 0.25, -2.0].map(Avro::Double).into()),
        ),
        ("payload", union(1, Avro::Map(payload.into()))),
        ("event_time", Avro::TimestampMicros(1_700_000_000_000_999)),
    ]);
    let point = decode_foreign(json, &value).unwrap();
    assert_eq!(point.vector.as_slice(), [1.0, 0.5, 0.25, -2.0]);
    assert_eq!(point.model.as_deref(), Some("m"));
    assert_eq!(point.event_time_ms, Some(1_700_000_000_000));
    let expected = [
        ("n", Value::Integer(-5)),
        ("x", Value::Float(0.5)),
        ("at", Value::Timestamp(-2)),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value));
    assert_eq!(point.payload, Payload(expected.into()));
}

#[test]
fn a_schema_that_is_no_point_is_refused_by_the_field() {
    let user = r#"{"type":"record","name":"User","fields":[{"name":"name","type":"string"}]}"#;
    let name = ("name".to_owned(), Avro::String("x".to_owned()));
    let refused = decode_foreign(user, &Avro::Record(vec![name])).unwrap_err();
    assert_eq!(refused.reason, Reason::Undecodable);
    assert!(
        refused.detail.contains("`User`") && refused.detail.contains("`vector`"),
        "{refused}"
    );

    let refused = decode_foreign(r#""string""#, &Avro::String("x".to_owned())).unwrap_err();
    assert!(
        refused.detail.contains("a string, expected a record"),
        "{refused}"
    );

    let texts = r#"{"type":"record","name":"P","fields":[
        {"name":"vector","type":{"type":"array","items":"string"}}]}"#;
    let vector = ("vector".to_owned(), Avro::Array(vec![]));
    let refused = decode_foreign(texts, &Avro::Record(vec![vector])).unwrap_err();
    assert!(refused.detail.contains("an array of a string"), "{refused}");
}

#[test]
fn an_unknown_schema_is_named() {
    let mut value = encoded(&Point {
        vector: Vector::new(&[1.0; 4], collection().dim, Metric::L2).unwrap(),
        payload: Payload::default(),
        model: None,
        event_time_ms: None,
        expires_at_ms: None,
    });
    value[2] ^= 1;
    let refused = decode_single_object(&value, &collection()).unwrap_err();
    assert_eq!(refused.reason, Reason::UnknownSchema);
    let shown = format!("{:016x}", fingerprint() ^ 1);
    assert!(refused.detail.contains(&shown), "{refused}");

    let value = [CONFLUENT_MAGIC, 0, 0, 1, 0, 9, 9];
    let refused = decode_confluent(&value, &collection(), &Registry::of(SCHEMA_JSON));
    let Err(ValueError::Rejected(refused)) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(refused.reason, Reason::UnknownSchema);
    assert!(refused.detail.contains("256"), "{refused}");
}
