//! What decoding a record costs, beside a plain copy of its vector.
//!
//! Run it with `cargo run --release -p shoal-schemas --example decode_cost [DIM]`. Each figure is
//! the median of many rounds, in nanoseconds a record, and takes the allocation of the result in.
//! - `copy`: the vector's bytes into a new buffer.
//! - `ours`: a value of our own schema to a checked point.
//! - `foreign`: the same point written with another schema, to a checked point.
//! - `apache-avro`: the generic decoder, to its own value, with nothing checked.

use std::{error::Error, hint::black_box, sync::Arc, time::Instant};

use apache_avro::{Schema, reader::datum::GenericDatumReader};
use shoal_schemas::{
    Collection, Metric, Payload, Point, PointId, Value, Vector,
    avro::{self, Framing, LookupError, WriterSchema, WriterSchemas},
    event::decode_value,
};

const ROUNDS: usize = 300;
const REPEATS: u32 = 200;

/// Answers every id with one schema.
struct One(Arc<WriterSchema>);

impl WriterSchemas for One {
    fn by_id(&self, _: u32) -> Result<Arc<WriterSchema>, LookupError> {
        Ok(Arc::clone(&self.0))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "measures real time, and nothing depends on it"
)]
fn median_ns(mut work: impl FnMut()) -> u128 {
    let mut rounds: Vec<u128> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..REPEATS).for_each(|_| work());
            start.elapsed().as_nanos() / u128::from(REPEATS)
        })
        .collect();
    rounds.sort_unstable();
    rounds.get(ROUNDS / 2).copied().unwrap_or_default()
}

#[expect(clippy::print_stdout, reason = "its output is its purpose")]
fn main() -> Result<(), Box<dyn Error>> {
    let dim: u32 = std::env::args().nth(1).map_or(Ok(384), |dim| dim.parse())?;
    let collection = Collection::new("docs".parse()?, dim.try_into()?, Metric::Cosine, 1);
    let values: Vec<f32> = (0..u16::try_from(dim)?)
        .map(|n| (f32::from(n) * 0.37).sin())
        .collect();
    let title = Value::String("a title of some thirty letters".to_owned());
    let id = PointId::new("a")?;
    let point = |payload| -> Result<Point, Box<dyn Error>> {
        Ok(Point {
            vector: Vector::new(&values, collection.dim, collection.metric)?,
            payload,
            model: None,
            event_time_ms: None,
            expires_at_ms: None,
        })
    };

    println!(
        "profile: {}",
        if cfg!(debug_assertions) {
            "dev"
        } else {
            "release"
        }
    );
    for (name, payload) in [
        ("vector alone", Payload::default()),
        (
            "with one text",
            Payload([("title".to_owned(), title)].into()),
        ),
    ] {
        let mut value = Vec::new();
        avro::encode(
            &point(payload)?,
            Framing::Confluent { schema_id: 1 },
            &mut value,
        );
        let ours = One(Arc::new(WriterSchema::parse(avro::SCHEMA_JSON)?));
        // Another name makes another schema; the bytes are the same.
        let renamed = avro::SCHEMA_JSON.replace("PackedVector", "Packed");
        let foreign = One(Arc::new(WriterSchema::parse(&renamed)?));
        let schema = Schema::parse_str(avro::SCHEMA_JSON)?;
        let generic = GenericDatumReader::builder(&schema).build()?;

        let copy = median_ns(|| drop(black_box(black_box(values.as_slice()).to_vec())));
        let decode = |schemas: &One| {
            decode_value(&id, black_box(&value), &collection, schemas)
                .map(black_box)
                .map(drop)
        };
        decode(&ours)?;
        decode(&foreign)?;
        let by_hand = median_ns(|| drop(decode(&ours)));
        let walked = median_ns(|| drop(decode(&foreign)));
        let datum = value.get(5..).unwrap_or_default();
        let boxed = median_ns(|| drop(black_box(generic.read_value(&mut black_box(datum)))));
        println!(
            "{dim}-d, {name}: copy {copy} ns, ours {by_hand} ns, foreign {walked} ns, \
             apache-avro {boxed} ns"
        );
    }
    Ok(())
}
