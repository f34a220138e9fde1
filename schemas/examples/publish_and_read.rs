//! A record's way through the contract: encode a point, route it, read it back.
//!
//! Runs without a broker: `cargo run -p shoal-schemas --example publish_and_read`.

use std::error::Error;

use bytes::Bytes;
use shoal_schemas::{
    Collection, Metric, Payload, Point, PointId, Record, Value, Vector, Version,
    avro::{self, Framing, NoRegistry},
    event::decode_value,
    headers::Meta,
    route,
};

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
fn main() -> Result<(), Box<dyn Error>> {
    let collection = Collection::new("docs".parse()?, 3.try_into()?, Metric::Cosine, 4);
    let id = PointId::new("book/17")?;
    let title = Value::String("A Pattern Language".to_owned());
    let point = Point {
        vector: Vector::new(&[0.1, 0.7, -0.2], collection.dim, collection.metric)?,
        payload: Payload([("title".to_owned(), title)].into()),
        model: Some("mini".to_owned()),
        event_time_ms: None,
        expires_at_ms: None,
    };

    // What a producer does.
    let mut value = Vec::new();
    avro::encode(&point, Framing::SingleObject, &mut value);
    let mut record = Record {
        key: Some(Bytes::copy_from_slice(id.as_str().as_bytes())),
        value: Some(value.into()),
        ..Record::default()
    };
    let meta = Meta {
        version: Version::from_parts(1_700_000_000_000, 0),
        origin: Some("eu-west".parse()?),
        residency: None,
        trace: None,
    };
    meta.encode(&mut record.headers);
    let partition = route::partition_of(&collection, &id);
    println!(
        "{} bytes to {}/{partition}",
        record.size_bytes(),
        collection.name.topic()
    );

    // What a shard does.
    let id = PointId::from_key(record.key.as_deref())?;
    let meta = Meta::decode(&record)?;
    let value = record.value.ok_or("this record is no delete")?;
    let read = decode_value(&id, &value, &collection, &NoRegistry)?;
    assert_eq!(read, point);
    println!("{id} at version {} is {:?}", meta.version, read.payload);
    Ok(())
}
