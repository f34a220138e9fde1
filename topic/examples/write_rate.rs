//! Records a second through the seam, beside librdkafka's own producer in the same run.
//!
//! Run with `cargo run --release -p shoal-topic --example write_rate -- HOST:PORT RECORDS`.

#[path = "../src/kafka/plain_client.rs"]
mod plain_client;

use std::{
    collections::{BTreeMap, VecDeque},
    env,
    error::Error,
    io::Write,
    sync::Arc,
};

use bytes::Bytes;
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{Partition, Record};
use shoal_topic::{Cleanup, Cluster, TopicPartition, TopicSpec, WriteError, kafka};

const PARTITIONS: u16 = 4;
const VALUE_BYTES: usize = 1550;
const TURNS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let bootstrap = arguments
        .next()
        .ok_or("usage: write_rate HOST:PORT RECORDS")?;
    let count: usize = arguments.next().ok_or("how many records?")?.parse()?;
    let cluster = kafka::connect(&kafka::Config::to(&bootstrap))?;
    let values = values();
    let mut out = std::io::stdout().lock();
    for turn in 0..TURNS {
        let topic = format!("write-rate-{}-{turn}", std::process::id());
        cluster.admin.create_topic(&TopicSpec {
            name: topic.clone(),
            partitions: PARTITIONS.into(),
            replication_factor: None,
            cleanup: Cleanup::Delete,
            settings: BTreeMap::new(),
        })?;
        let watch = Stopwatch::start();
        plain_client::write_all(&bootstrap, &topic, PARTITIONS.into(), &values, count)?;
        let theirs = rate(count, &watch);
        let watch = Stopwatch::start();
        seam(&cluster, &topic, &values, count)?;
        let ours = rate(count, &watch);
        writeln!(
            out,
            "librdkafka {theirs:.0}/s, seam {ours:.0}/s, ratio {:.2}",
            ours / theirs
        )?;
        cluster.admin.delete_topic(&topic)?;
    }
    Ok(())
}

#[expect(clippy::as_conversions, reason = "a rate is a float")]
fn rate(count: usize, watch: &Stopwatch) -> f64 {
    count as f64 / watch.seconds()
}

/// Random bytes: embeddings do not compress either.
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

fn seam(
    cluster: &Cluster,
    topic: &str,
    values: &[Vec<u8>],
    count: usize,
) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let partitions = (0..u32::from(PARTITIONS)).map(Partition).cycle();
    let values: Vec<Bytes> = values.iter().cloned().map(Bytes::from).collect();
    let topic: Arc<str> = topic.into();
    runtime.block_on(async {
        let mut under_way = VecDeque::new();
        for ((key, partition), value) in (0..count).zip(partitions).zip(values.iter().cycle()) {
            let to = TopicPartition {
                topic: Arc::clone(&topic),
                partition,
            };
            let record = Record {
                key: Some(key.to_string().into()),
                value: Some(value.clone()),
                ..Record::default()
            };
            loop {
                match cluster.writer.send(&to, &record) {
                    Ok(delivery) => break under_way.push_back(delivery),
                    Err(WriteError::QueueFull) => {
                        let earlier = under_way.pop_front().ok_or("full of nothing")?;
                        earlier.await?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        for delivery in under_way {
            delivery.await?;
        }
        Ok(())
    })
}
