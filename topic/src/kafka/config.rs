//! Settings of the Kafka clients: few of our own, a free map for the rest of librdkafka's.
//!
//! What Shoal's promises rest on (explicit offsets, acknowledged writes, our partitioner) is set
//! here and refused in the free map, so that no option can take a promise back unnoticed.

use std::{collections::BTreeMap, fmt, time::Duration};

use rdkafka::{ClientConfig, error::KafkaError};
use serde::{Deserialize, Serialize};
use shoal_runtime::config::Validate;

/// Options that Shoal sets itself, with what to use instead.
const OWNED: [(&str, &str); 27] = [
    ("bootstrap.servers", "set `bootstrap`"),
    ("metadata.broker.list", "set `bootstrap`"),
    ("acks", "Shoal always waits for all in-sync replicas"),
    (
        "request.required.acks",
        "Shoal always waits for all in-sync replicas",
    ),
    ("enable.idempotence", "Shoal's writes are always idempotent"),
    ("transactional.id", "Shoal writes no transactions"),
    ("partitioner", "the collection's definition says it"),
    ("linger.ms", "set `linger`"),
    ("queue.buffering.max.ms", "set `linger`"),
    ("compression.type", "set `compression`"),
    ("compression.codec", "set `compression`"),
    ("batch.size", "set `batch_bytes`"),
    ("queue.buffering.max.messages", "set `queue_records`"),
    ("queue.buffering.max.kbytes", "set `queue_bytes`"),
    ("message.max.bytes", "set `message_max_bytes`"),
    ("message.timeout.ms", "set `delivery_timeout`"),
    ("delivery.timeout.ms", "set `delivery_timeout`"),
    ("group.id", "Shoal names its groups after the region"),
    ("session.timeout.ms", "set `session_timeout`"),
    ("max.poll.interval.ms", "set `rebalance_timeout`"),
    (
        "partition.assignment.strategy",
        "a revoked shard is handed over step by step",
    ),
    (
        "enable.auto.commit",
        "a shard's own checkpoint is the truth",
    ),
    (
        "enable.auto.offset.store",
        "a shard's own checkpoint is the truth",
    ),
    ("auto.offset.reset", "start offsets are always explicit"),
    (
        "enable.partition.eof",
        "a shard has to know when it has caught up",
    ),
    ("isolation.level", "Shoal reads committed records only"),
    ("queued.max.messages.kbytes", "set `fetch_buffer_bytes`"),
];

/// What librdkafka asks for of a partition at once, if it is not told.
const USUAL_FETCH_BYTES: u64 = 1 << 20;
/// Parts of option names whose values are never printed.
const SECRET: [&str; 4] = ["password", "secret", "key.pem", "token"];

/// How Shoal talks to one Kafka cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Brokers to ask first, `host:port` with commas between. Default `127.0.0.1:9092`.
    pub bootstrap: String,
    /// Further librdkafka options by their own names: TLS, SASL, timeouts. Default none.
    ///
    /// Those that Shoal's promises rest on are refused.
    pub client: BTreeMap<String, String>,
    /// How long a batch waits for more records. Default 5 ms.
    ///
    /// Less lowers the latency of a write, more makes larger batches and costs less.
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
    /// How batches are compressed. Default none: embeddings are near random, and zstd halves
    /// the rate for little.
    pub compression: Compression,
    /// Largest batch to one partition, bytes. Default 256 KiB.
    pub batch_bytes: u32,
    /// Records that wait to be sent or acknowledged; more are refused. Default 100,000.
    pub queue_records: u32,
    /// Bytes that wait to be sent or acknowledged; more are refused. Default 256 MiB.
    pub queue_bytes: u64,
    /// How long a record may wait for its acknowledgement. Default 2 min.
    #[serde(with = "humantime_serde")]
    pub delivery_timeout: Duration,
    /// Largest record, bytes; the broker and the topic have their own limit. Default 8 MiB.
    pub message_max_bytes: u32,
    /// How long the broker may hold a fetch that has nothing to answer. Default 100 ms.
    ///
    /// A partition's end is reported that long after its last record. Less asks idle brokers
    /// more often; records are answered at once in any case.
    #[serde(with = "humantime_serde")]
    pub fetch_wait: Duration,
    /// Bytes fetched ahead for one partition. Default 16 MiB.
    pub fetch_buffer_bytes: u64,
    /// Longest call that asks the broker something. Default 15 s.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// After this long unheard, a node's shards go to others. Default 10 s.
    ///
    /// Less hands over sooner and takes a short pause for a death; brokers allow 6 s to 30 min.
    #[serde(with = "humantime_serde")]
    pub session_timeout: Duration,
    /// Longest a node may take to let go of a revoked shard. Default 1 min.
    #[serde(with = "humantime_serde")]
    pub rebalance_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bootstrap: "127.0.0.1:9092".into(),
            client: BTreeMap::new(),
            linger: Duration::from_millis(5),
            compression: Compression::None,
            batch_bytes: 256 << 10,
            queue_records: 100_000,
            queue_bytes: 256 << 20,
            delivery_timeout: Duration::from_secs(120),
            message_max_bytes: 8 << 20,
            fetch_wait: Duration::from_millis(100),
            fetch_buffer_bytes: 16 << 20,
            request_timeout: Duration::from_secs(15),
            session_timeout: Duration::from_secs(10),
            rebalance_timeout: Duration::from_secs(60),
        }
    }
}

/// How batches are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Not.
    None,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
    /// Snappy.
    Snappy,
    /// Gzip.
    Gzip,
}

impl Compression {
    fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Snappy => "snappy",
            Self::Gzip => "gzip",
        }
    }
}

impl fmt::Debug for Config {
    /// Everything but the values of secret options.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let client: BTreeMap<&str, &str> = self
            .client
            .iter()
            .map(|(key, value)| {
                let secret = SECRET.iter().any(|part| key.contains(part));
                (key.as_str(), if secret { "***" } else { value.as_str() })
            })
            .collect();
        f.debug_struct("Config")
            .field("bootstrap", &self.bootstrap)
            .field("client", &client)
            .field("linger", &self.linger)
            .field("compression", &self.compression)
            .field("batch_bytes", &self.batch_bytes)
            .field("queue_records", &self.queue_records)
            .field("queue_bytes", &self.queue_bytes)
            .field("delivery_timeout", &self.delivery_timeout)
            .field("message_max_bytes", &self.message_max_bytes)
            .field("fetch_wait", &self.fetch_wait)
            .field("fetch_buffer_bytes", &self.fetch_buffer_bytes)
            .field("request_timeout", &self.request_timeout)
            .field("session_timeout", &self.session_timeout)
            .field("rebalance_timeout", &self.rebalance_timeout)
            .finish()
    }
}

impl Config {
    /// The defaults for one cluster.
    pub fn to(bootstrap: impl Into<String>) -> Self {
        Self {
            bootstrap: bootstrap.into(),
            ..Self::default()
        }
    }

    /// All faults, each a sentence that names its setting; empty if there is none.
    pub fn validate(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self
            .bootstrap
            .split(',')
            .any(|broker| !is_address(broker.trim()))
        {
            faults.push(format!(
                "kafka.bootstrap is `{}`, wanted is host:port with commas between",
                self.bootstrap
            ));
        }
        for (key, value) in &self.client {
            if let Some((_, instead)) = OWNED.iter().find(|(owned, _)| owned == key) {
                faults.push(format!("kafka.client.{key} cannot be set: {instead}"));
            } else if let Err(fault) = option_fault(key, value) {
                faults.push(fault);
            }
        }
        let seconds = Duration::from_secs;
        let millis = Duration::from_millis;
        let times = [
            ("linger", self.linger, millis(0), seconds(60)),
            (
                "delivery_timeout",
                self.delivery_timeout,
                seconds(1),
                seconds(3600),
            ),
            ("fetch_wait", self.fetch_wait, millis(1), seconds(60)),
            (
                "request_timeout",
                self.request_timeout,
                millis(100),
                seconds(300),
            ),
            (
                "session_timeout",
                self.session_timeout,
                seconds(6),
                seconds(1800),
            ),
            (
                "rebalance_timeout",
                self.rebalance_timeout,
                seconds(6),
                seconds(3600),
            ),
        ];
        for (name, found, min, max) in times {
            if !(min..=max).contains(&found) {
                faults.push(format!(
                    "kafka.{name} is {found:?}, allowed are {min:?} to {max:?}"
                ));
            }
        }
        let sizes = [
            (
                "batch_bytes",
                u64::from(self.batch_bytes),
                1 << 10,
                64 << 20,
            ),
            ("queue_records", u64::from(self.queue_records), 1, 1_000_000),
            ("queue_bytes", self.queue_bytes, 1 << 20, 512 << 30),
            (
                "message_max_bytes",
                u64::from(self.message_max_bytes),
                1 << 10,
                64 << 20,
            ),
            (
                "fetch_buffer_bytes",
                self.fetch_buffer_bytes,
                1 << 20,
                1 << 30,
            ),
        ];
        for (name, found, min, max) in sizes {
            if !(min..=max).contains(&found) {
                faults.push(format!(
                    "kafka.{name} is {found}, allowed are {min} to {max}"
                ));
            }
        }
        if self.rebalance_timeout < self.session_timeout {
            faults.push(format!(
                "kafka.rebalance_timeout is {:?}, it must not be below session_timeout {:?}",
                self.rebalance_timeout, self.session_timeout
            ));
        }
        if self.delivery_timeout <= self.linger {
            faults.push(format!(
                "kafka.delivery_timeout is {:?}, it must be above linger {:?}",
                self.delivery_timeout, self.linger
            ));
        }
        faults
    }

    /// What every client of this cluster has in common.
    pub(super) fn common(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("client.id", "shoal")
            .set("socket.keepalive.enable", "true")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set("log.connection.close", "false")
            // The first answer that names a new topic may come from a broker that has not heard
            // of it; longer than this it is missing.
            .set("topic.metadata.propagation.max.ms", "3000");
        for (key, value) in &self.client {
            config.set(key, value);
        }
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("message.max.bytes", self.message_max_bytes.to_string());
        config
    }

    pub(super) fn producer(&self) -> ClientConfig {
        let mut config = self.common();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", self.linger.as_millis().to_string())
            .set("compression.type", self.compression.name())
            .set("batch.size", self.batch_bytes.to_string())
            .set("batch.num.messages", "100000")
            // The writer counts by itself; see there why these are twice as much.
            .set(
                "queue.buffering.max.messages",
                (2 * self.queue_records + 1).to_string(),
            )
            .set(
                "queue.buffering.max.kbytes",
                ((self.queue_bytes + u64::from(self.message_max_bytes)) >> 9).to_string(),
            )
            .set(
                "message.timeout.ms",
                self.delivery_timeout.as_millis().to_string(),
            );
        config
    }

    /// A consumer that says where it starts and commits nothing by itself.
    pub(super) fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.common();
        let fetch_bytes = self.fetch_buffer_bytes.min(50 << 20);
        let fetch_bytes = fetch_bytes.max(u64::from(self.message_max_bytes));
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .set("allow.auto.create.topics", "false")
            .set("check.crcs", "true")
            .set("fetch.min.bytes", "1")
            .set("fetch.wait.max.ms", self.fetch_wait.as_millis().to_string())
            .set("fetch.max.bytes", fetch_bytes.to_string())
            .set(
                "receive.message.max.bytes",
                (fetch_bytes + (64 << 10)).to_string(),
            )
            .set(
                "queued.max.messages.kbytes",
                (self.fetch_buffer_bytes >> 10).max(1).to_string(),
            )
            // The default of 1 s stalls a reader that has just made room.
            .set("fetch.queue.backoff.ms", "5")
            .set("fetch.error.backoff.ms", "100");
        if self.fetch_buffer_bytes < USUAL_FETCH_BYTES {
            // A batch that is larger comes all the same.
            let bytes = self.fetch_buffer_bytes.max(1).to_string();
            config.set("fetch.message.max.bytes", bytes);
        }
        config
    }

    pub(super) fn member(&self, group: &str) -> ClientConfig {
        let mut config = self.consumer(group);
        let heartbeat = (self.session_timeout / 10).max(Duration::from_millis(300));
        config
            .set(
                "session.timeout.ms",
                self.session_timeout.as_millis().to_string(),
            )
            .set("heartbeat.interval.ms", heartbeat.as_millis().to_string())
            .set(
                "max.poll.interval.ms",
                self.rebalance_timeout.as_millis().to_string(),
            )
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("topic.metadata.refresh.interval.ms", "5000");
        config
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Vec<String>) {
        faults.extend(Self::validate(self));
    }
}

fn is_address(broker: &str) -> bool {
    // librdkafka also takes `protocol://host:port`.
    let address = broker
        .split_once("://")
        .map_or(broker, |(_, address)| address);
    match address.rsplit_once(':') {
        Some((host, port)) => !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0),
        None => false,
    }
}

/// Asks librdkafka itself whether it knows an option and takes its value.
fn option_fault(key: &str, value: &str) -> Result<(), String> {
    let mut alone = ClientConfig::new();
    alone.set(key, value);
    match alone.create_native_config() {
        Ok(_) => Ok(()),
        Err(KafkaError::ClientConfig(_, detail, _, _)) => Err(format!(
            "kafka.client.{key} is refused by librdkafka: {detail}"
        )),
        Err(error) => Err(format!(
            "kafka.client.{key} is refused by librdkafka: {error}"
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use super::Config;

    #[test]
    fn defaults_have_no_fault() {
        assert_eq!(Config::default().validate(), Vec::<String>::new());
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let mut config = Config::to("nowhere");
        config
            .client
            .insert("auto.offset.reset".into(), "earliest".into());
        config.client.insert("no.such.option".into(), "1".into());
        config
            .client
            .insert("socket.timeout.ms".into(), "soon".into());
        config.client.insert("client.id".into(), "mine".into());
        config.rebalance_timeout = Duration::from_secs(7);
        config.queue_records = 0;
        let faults = config.validate();
        let named = [
            "kafka.bootstrap",
            "kafka.client.auto.offset.reset cannot be set",
            "kafka.client.no.such.option",
            "kafka.client.socket.timeout.ms",
            "kafka.queue_records",
            "kafka.rebalance_timeout",
        ];
        for name in named {
            assert!(
                faults.iter().any(|fault| fault.contains(name)),
                "{name}: {faults:?}"
            );
        }
        assert_eq!(faults.len(), named.len(), "{faults:?}");
    }

    #[test]
    fn unknown_fields_are_refused_and_times_read() {
        let config: Config =
            serde_json::from_str(r#"{"linger":"1ms","compression":"lz4"}"#).unwrap();
        assert_eq!(config.linger, Duration::from_millis(1));
        assert!(serde_json::from_str::<Config>(r#"{"lingr":"1ms"}"#).is_err());
    }

    #[test]
    fn passwords_are_not_printed() {
        let mut config = Config::default();
        config
            .client
            .insert("sasl.password".into(), "hunter2".into());
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
