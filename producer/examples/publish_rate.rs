//! Measures how fast points are published, beside librdkafka itself with payloads of that size.
//!
//! Four legs a repeat, one after the other, each into a new topic of its own: a bare librdkafka
//! producer (the reference), `topic::Writer` with records that are encoded already, `Publisher`
//! called in a loop, and `publish_all` with rows from memory (ours: what `shoal publish` does).
//! The last line is one JSON object. Arguments:
//!
//! ```text
//! publish_rate BOOTSTRAP|local [--records N] [--repeats N] [--partitions N] [--data ARRAY.npy]
//! ```
//! `local` starts a broker of its own for the time of the measurement.
//! Without `--data` the vectors are random, of 384 components.

use std::{collections::VecDeque, io::Write, time::Duration};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use serde_json::json;
use shoal_producer::{
    PublishConfig, Publisher,
    read::{self, Input, Rows},
    run::{Options, publish_all},
};
use shoal_runtime::clock::{Stopwatch, System};
use shoal_schemas::{
    Collection, Metric, Payload, Point, PointId, Record, Vector,
    avro::{self, Framing},
    route,
};
use shoal_topic::{
    Cluster, TopicPartition, TopicSpec, WriteError,
    broker::{BrokerOptions, LocalBroker},
    kafka,
};
use tokio_util::sync::CancellationToken;

const QUEUE_RECORDS: &str = "100000";
/// Points that are published again and again.
const DISTINCT: usize = 20_000;

struct Arguments {
    bootstrap: String,
    records: usize,
    repeats: usize,
    partitions: u32,
    data: Option<String>,
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut given = std::env::args().skip(1);
    let bootstrap = given
        .next()
        .context("the first argument is the bootstrap address")?;
    let mut arguments = Arguments {
        bootstrap,
        records: 100_000,
        repeats: 3,
        partitions: 4,
        data: None,
    };
    while let Some(name) = given.next() {
        let value = given
            .next()
            .with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--records" => arguments.records = value.parse()?,
            "--repeats" => arguments.repeats = value.parse()?,
            "--partitions" => arguments.partitions = value.parse()?,
            "--data" => arguments.data = Some(value),
            _ => bail!("unknown argument {name}"),
        }
    }
    Ok(arguments)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = arguments()?;
    let folder = tempfile::tempdir()?;
    let mut own = None;
    if arguments.bootstrap == "local" {
        let broker = own.insert(LocalBroker::start(&BrokerOptions::new(folder.path()))?);
        arguments.bootstrap = broker.bootstrap();
    }
    let cluster = kafka::connect(&kafka::Config::to(&arguments.bootstrap))?;
    let mut collection = Collection::new(
        "rate".parse()?,
        384.try_into()?,
        Metric::Cosine,
        arguments.partitions,
    );
    let points = match &arguments.data {
        Some(path) => from_file(path, &mut collection)?,
        None => random(&collection)?,
    };
    let mut value = Vec::new();
    let encoded: Vec<(PointId, Bytes)> = points
        .iter()
        .map(|(id, point)| {
            value.clear();
            avro::encode(point, Framing::SingleObject, &mut value);
            (id.clone(), Bytes::copy_from_slice(&value))
        })
        .collect();
    let value_bytes = value.len();

    let bare = bare(&arguments.bootstrap)?;
    let mut legs =
        ["librdkafka", "writer", "publisher", "publish_all"].map(|name| (name, Vec::new()));
    for repeat in 0..arguments.repeats {
        // Each leg is first in its turn, so that none always has the quietest moment.
        legs.rotate_left(usize::from(repeat > 0));
        for (name, runs) in &mut legs {
            collection.name = format!("rate-{}-{name}-{repeat}", std::process::id()).parse()?;
            let topic = collection.name.topic();
            make(&cluster, &topic, arguments.partitions)?;
            // Both clients learn of the topic and connect before the clock starts.
            run_bare(&bare, &topic, &encoded, 100)?;
            run_writer(&cluster, &collection, &encoded, 100).await?;
            let cpu = cpu_seconds();
            let watch = Stopwatch::start();
            let records = arguments.records;
            match *name {
                "librdkafka" => run_bare(&bare, &topic, &encoded, records)?,
                "writer" => run_writer(&cluster, &collection, &encoded, records).await?,
                "publisher" => run_publisher(&cluster, &collection, &points, records).await?,
                _ => run_all(&cluster, &collection, &points, records).await?,
            }
            let rate = number(records) / watch.seconds();
            let cpu_us = (cpu_seconds() - cpu) * 1e6 / number(records);
            let line =
                format!("repeat {repeat} {name:12} {rate:9.0} records/s {cpu_us:5.1} us CPU");
            writeln!(std::io::stderr(), "{line}")?;
            runs.push((rate, cpu_us));
            cluster.admin.delete_topic(&topic)?;
        }
    }
    let of = |name: &str| {
        legs.iter()
            .find(|(leg, _)| *leg == name)
            .map(|(_, runs)| summary(runs))
    };
    let figures = |name: &str| of(name).unwrap_or_default();
    let reference = figures("librdkafka");
    let ratio = |name: &str| figures(name).rate / reference.rate;
    let line = json!({
        "name": "producer",
        "ours": figures("publish_all").json(),
        "reference": reference.json(),
        "ratio": ratio("publish_all"),
        "library": figures("publisher").json(),
        "library_ratio": ratio("publisher"),
        "writer": figures("writer").json(),
        "writer_ratio": ratio("writer"),
        "settings": {
            "records": arguments.records, "value_bytes": value_bytes, "dim": collection.dim,
            "partitions": arguments.partitions,
            "data": arguments.data.as_deref().unwrap_or("random"),
        },
        "repeats": arguments.repeats,
    });
    writeln!(std::io::stdout(), "{line}")?;
    drop(own);
    Ok(())
}

fn from_file(path: &str, collection: &mut Collection) -> anyhow::Result<Vec<(PointId, Point)>> {
    let rows = read::open(&Input::parse(path), collection, &read::Options::default())?;
    Ok(rows.take(DISTINCT).collect::<Result<_, _>>()?)
}

fn random(collection: &Collection) -> anyhow::Result<Vec<(PointId, Point)>> {
    // A multiplicative generator is random enough for a broker that does not compress.
    let mut state = 1_u32;
    let mut points = Vec::with_capacity(DISTINCT);
    for n in 0..DISTINCT {
        let values = (0..collection.dim.len()).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from(u16::try_from(state >> 16).unwrap_or_default()) / 65_536.0 - 0.5
        });
        let values: Vec<f32> = values.collect();
        let point = Point {
            vector: Vector::new(&values, collection.dim, collection.metric)?,
            payload: Payload::default(),
            model: None,
            event_time_ms: None,
            expires_at_ms: None,
        };
        points.push((PointId::new(&n.to_string())?, point));
    }
    Ok(points)
}

fn make(cluster: &Cluster, topic: &str, partitions: u32) -> anyhow::Result<()> {
    let spec = TopicSpec {
        name: topic.to_owned(),
        partitions,
        replication_factor: None,
        cleanup: shoal_topic::Cleanup::Compact,
        settings: [("max.message.bytes".to_owned(), "2097152".to_owned())].into(),
    };
    Ok(cluster.admin.create_topic(&spec)?)
}

/// librdkafka alone: idempotent, acknowledged by all, the same batches and queue as ours.
fn bare(bootstrap: &str) -> anyhow::Result<BaseProducer> {
    Ok(ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("batch.size", (256 << 10).to_string())
        .set("batch.num.messages", "100000")
        .set("queue.buffering.max.messages", QUEUE_RECORDS)
        .set("queue.buffering.max.kbytes", (256 << 10).to_string())
        .set("partitioner", "murmur2_random")
        .create()?)
}

fn run_bare(
    producer: &BaseProducer,
    topic: &str,
    encoded: &[(PointId, Bytes)],
    records: usize,
) -> anyhow::Result<()> {
    for (id, value) in encoded.iter().cycle().take(records) {
        let mut record = BaseRecord::to(topic).key(id.as_str()).payload(&value[..]);
        while let Err((error, back)) = producer.send(record) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            producer.poll(Duration::from_millis(1));
            record = back;
        }
    }
    Ok(producer.flush(Duration::from_secs(60))?)
}

async fn run_writer(
    cluster: &Cluster,
    collection: &Collection,
    encoded: &[(PointId, Bytes)],
    records: usize,
) -> anyhow::Result<()> {
    let mut outstanding = VecDeque::new();
    for (id, value) in encoded.iter().cycle().take(records) {
        let to = TopicPartition {
            topic: collection.name.topic().into(),
            partition: route::partition_of(collection, id),
        };
        let record = Record {
            key: Some(Bytes::copy_from_slice(id.as_str().as_bytes())),
            value: Some(value.clone()),
            ..Record::default()
        };
        loop {
            match cluster.writer.send(&to, &record) {
                Ok(delivery) => break outstanding.push_back(delivery),
                Err(WriteError::QueueFull) => match outstanding.pop_front() {
                    Some(oldest) => _ = oldest.await?,
                    None => bail!("the queue is full of nothing"),
                },
                Err(error) => return Err(error.into()),
            }
        }
    }
    for delivery in outstanding {
        delivery.await?;
    }
    Ok(())
}

async fn run_publisher(
    cluster: &Cluster,
    collection: &Collection,
    points: &[(PointId, Point)],
    records: usize,
) -> anyhow::Result<()> {
    let config = PublishConfig::default();
    let publisher = Publisher::new(cluster, System::shared(), collection.clone(), config).await?;
    let mut outstanding = VecDeque::new();
    for (id, point) in points.iter().cycle().take(records) {
        outstanding.push_back(publisher.publish(id, point).await?);
    }
    for delivery in outstanding {
        delivery.await?;
    }
    Ok(())
}

async fn run_all(
    cluster: &Cluster,
    collection: &Collection,
    points: &[(PointId, Point)],
    records: usize,
) -> anyhow::Result<()> {
    let config = PublishConfig::default();
    let publisher = Publisher::new(cluster, System::shared(), collection.clone(), config).await?;
    let points = points.to_vec();
    let rows = (0..records).map(move |n| Ok(points[n % points.len()].clone()));
    let cancel = CancellationToken::new();
    publish_all(
        &publisher,
        Rows::new(None, rows),
        &Options::default(),
        &cancel,
    )
    .await?;
    Ok(())
}

/// Medians over the repeats, and the spread of the rate.
#[derive(Clone, Copy, Default)]
struct Figures {
    rate: f64,
    lowest: f64,
    highest: f64,
    cpu_us: f64,
}

impl Figures {
    fn json(&self) -> serde_json::Value {
        json!({
            "records_per_second": self.rate.round(), "lowest": self.lowest.round(),
            "highest": self.highest.round(), "cpu_us_per_record": self.cpu_us,
        })
    }
}

fn summary(runs: &[(f64, f64)]) -> Figures {
    let (mut rates, mut cpu): (Vec<f64>, Vec<f64>) = runs.iter().copied().unzip();
    rates.sort_by(f64::total_cmp);
    cpu.sort_by(f64::total_cmp);
    let at = |sorted: &[f64], index: usize| sorted.get(index).copied().unwrap_or_default();
    Figures {
        rate: at(&rates, rates.len() / 2),
        lowest: at(&rates, 0),
        highest: at(&rates, rates.len().saturating_sub(1)),
        cpu_us: at(&cpu, cpu.len() / 2),
    }
}

/// What all threads of this process have used; Linux counts it in hundredths.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

fn number(records: usize) -> f64 {
    u32::try_from(records).map_or(f64::MAX, f64::from)
}
