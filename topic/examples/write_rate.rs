//! Records a second through the seam, beside librdkafka's own producer in the same run.
//!
//! Run with `cargo run --release -p shoal-topic --example write_rate -- HOST:PORT RECORDS`.

use std::{collections::BTreeMap, env, error::Error, io::Write, sync::Arc, time::Duration};

use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{Partition, Record};
use shoal_topic::{Cleanup, Cluster, TopicPartition, TopicSpec, WriteError, kafka};

const PARTITIONS: u32 = 4;
const VALUE_BYTES: usize = 1550;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let bootstrap = arguments
        .next()
        .ok_or("usage: write_rate HOST:PORT RECORDS")?;
    let count: usize = arguments.next().ok_or("how many records?")?.parse()?;
    let cluster = kafka::connect(&kafka::Config::to(&bootstrap))?;
    let mut out = std::io::stdout().lock();
    for turn in 0..3 {
        let topic = format!("write-rate-{}-{turn}", std::process::id());
        cluster.admin.create_topic(&TopicSpec {
            name: topic.clone(),
            partitions: PARTITIONS,
            replication_factor: Some(1),
            cleanup: Cleanup::Delete,
            settings: BTreeMap::new(),
        })?;
        let theirs = librdkafka(&bootstrap, &topic, count)?;
        let ours = seam(&cluster, &topic, count)?;
        writeln!(
            out,
            "librdkafka {theirs:.0}/s, seam {ours:.0}/s, ratio {:.2}",
            ours / theirs
        )?;
        cluster.admin.delete_topic(&topic)?;
    }
    Ok(())
}

fn values() -> Vec<Vec<u8>> {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut byte = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random.to_le_bytes()[3]
    };
    (0..2000)
        .map(|_| (0..VALUE_BYTES).map(|_| byte()).collect())
        .collect()
}

#[expect(clippy::as_conversions, reason = "a rate is a float")]
fn rate(count: usize, watch: &Stopwatch) -> f64 {
    count as f64 / watch.seconds()
}

fn librdkafka(bootstrap: &str, topic: &str, count: usize) -> Result<f64, Box<dyn Error>> {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("batch.size", "262144")
        .create()?;
    let values = values();
    let watch = Stopwatch::start();
    for i in 0..count {
        let key = i.to_string();
        let partition = i32::try_from(i % 4)?;
        let mut record = BaseRecord::to(topic)
            .key(&key)
            .payload(&values[i % values.len()])
            .partition(partition);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    std::thread::park_timeout(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }
    producer.flush(Duration::from_secs(60))?;
    Ok(rate(count, &watch))
}

fn seam(cluster: &Cluster, topic: &str, count: usize) -> Result<f64, Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let name: Arc<str> = topic.into();
    let values: Vec<_> = values().into_iter().map(bytes::Bytes::from).collect();
    let watch = Stopwatch::start();
    runtime.block_on(async {
        let mut under_way = std::collections::VecDeque::with_capacity(count);
        for i in 0..count {
            let to = TopicPartition {
                topic: Arc::clone(&name),
                partition: Partition(u32::try_from(i % 4)?),
            };
            let record = Record {
                key: Some(i.to_string().into()),
                value: values.get(i % values.len()).cloned(),
                ..Record::default()
            };
            loop {
                match cluster.writer.send(&to, &record) {
                    Ok(delivery) => break under_way.push_back(delivery),
                    Err(WriteError::QueueFull) => match under_way.pop_front() {
                        Some(earlier) => drop(earlier.await?),
                        None => return Err("a full queue that holds nothing".into()),
                    },
                    Err(error) => return Err(Box::<dyn Error>::from(error)),
                }
            }
        }
        for delivery in under_way {
            delivery.await?;
        }
        Ok(())
    })?;
    Ok(rate(count, &watch))
}
