//! The reference of freshness: librdkafka alone, from a plain producer to a plain consumer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer},
};
use shoal_runtime::clock::Stopwatch;

use crate::figures::Latencies;

const FLUSH: Duration = Duration::from_secs(30);

/// Writes to partition 0 of a topic as a user of librdkafka would: acknowledged by all,
/// idempotent, with the batches' waiting time that Shoal has.
pub(crate) struct Sender {
    producer: ThreadedProducer<DefaultProducerContext>,
    topic: String,
}

impl Sender {
    pub(crate) fn new(bootstrap: &str, topic: &str) -> anyhow::Result<Self> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "5")
            .create()?;
        Ok(Self {
            producer,
            topic: topic.to_owned(),
        })
    }

    /// Sends a value whose key says when it was due, microseconds on the run's stopwatch.
    pub(crate) fn send(&self, due: Duration, value: &[u8]) -> anyhow::Result<()> {
        let key = u64::try_from(due.as_micros())?.to_be_bytes();
        let record = BaseRecord::to(&self.topic)
            .partition(0)
            .key(&key[..])
            .payload(value);
        self.producer.send(record).map_err(|(error, _)| error)?;
        Ok(())
    }

    pub(crate) fn finish(self) -> anyhow::Result<()> {
        Ok(self.producer.flush(FLUSH)?)
    }
}

/// Reads what a [`Sender`] writes, and notes how long after its due time each record came.
pub(crate) struct Receiver {
    consumer: BaseConsumer,
}

impl Receiver {
    /// Stands at the end of the partition when this returns.
    pub(crate) fn new(bootstrap: &str, topic: &str) -> anyhow::Result<Self> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("group.id", "shoal-bench-reference")
            .set("enable.auto.commit", "false")
            .create()?;
        let (_, end) = consumer.fetch_watermarks(topic, 0, FLUSH)?;
        let mut partition = TopicPartitionList::new();
        partition.add_partition_offset(topic, 0, Offset::Offset(end))?;
        consumer.assign(&partition)?;
        Ok(Self { consumer })
    }

    /// Reads until `wanted` records came that were due after `from`, or `gives_up` is set.
    pub(crate) fn read(
        &self,
        watch: Stopwatch,
        from: Duration,
        wanted: usize,
        gives_up: &Arc<AtomicBool>,
    ) -> anyhow::Result<Latencies> {
        let mut latencies = Latencies::default();
        while latencies.len() < wanted && !gives_up.load(Ordering::Acquire) {
            let Some(message) = self.consumer.poll(Duration::from_millis(100)) else {
                continue;
            };
            let message = message?;
            let now = watch.elapsed();
            let key = message.key().and_then(|key| key.try_into().ok());
            let due = key
                .map(u64::from_be_bytes)
                .context("a record has another key")?;
            let due = Duration::from_micros(due);
            if due >= from {
                latencies.push(now.saturating_sub(due));
            }
        }
        Ok(latencies)
    }
}
