//! What plain librdkafka clients do that Shoal does not: transactions, deleting records, and
//! writing at librdkafka's own rate, as the reference for ours.
//!
//! No part of the library: the broker tests and the `write_rate` example include it by its path,
//! because everything that names librdkafka stays in this folder.
#![allow(dead_code, reason = "each program that includes it uses its own part")]

use std::time::Duration;

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};

const DEADLINE: Duration = Duration::from_secs(60);

/// A producer whose every record is a transaction.
pub(crate) struct Transactions(BaseProducer);

impl Transactions {
    pub(crate) fn new(bootstrap: &str, id: &str) -> KafkaResult<Self> {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("transactional.id", id)
            .create()?;
        producer.init_transactions(DEADLINE)?;
        Ok(Self(producer))
    }

    /// Writes one record to partition 0 and commits or aborts. Either leaves a marker in the log.
    pub(crate) fn write(&self, topic: &str, value: &str, commit: bool) -> KafkaResult<()> {
        self.0.begin_transaction()?;
        let record = BaseRecord::to(topic).partition(0).key("k").payload(value);
        self.0.send(record).map_err(|(error, _)| error)?;
        self.0.flush(DEADLINE)?;
        if commit {
            self.0.commit_transaction(DEADLINE)
        } else {
            self.0.abort_transaction(DEADLINE)
        }
    }
}

/// Deletes the records of partition 0 before `offset`, as retention would.
pub(crate) async fn delete_before(bootstrap: &str, topic: &str, offset: i64) -> KafkaResult<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()?;
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(topic, 0, Offset::Offset(offset))?;
    admin
        .delete_records(&before, &AdminOptions::new())
        .await
        .map(drop)
}

/// Writes `count` records in turn to `partitions`, and returns once all are acknowledged.
pub(crate) fn write_all(
    bootstrap: &str,
    topic: &str,
    partitions: i32,
    values: &[Vec<u8>],
    count: usize,
) -> KafkaResult<()> {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("batch.size", "262144")
        .create()?;
    let keys = 0..count;
    let targets = (0..partitions).cycle();
    for ((key, partition), value) in keys.zip(targets).zip(values.iter().cycle()) {
        let key = key.to_string();
        let mut record = BaseRecord::to(topic)
            .key(&key)
            .payload(value)
            .partition(partition);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    std::thread::park_timeout(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error),
            }
        }
    }
    producer.flush(DEADLINE)
}
