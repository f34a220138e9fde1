//! The real log: Apache Kafka through librdkafka. The only module that names it.
//!
//! One producer and one admin client serve the whole process; every reader and every seat in a
//! group has a client of its own. Nothing here waits for a broker to be there: an absent one
//! shows in the calls that need it, as a retryable error, and the clients go on trying.

mod admin;
mod config;
mod fault;
mod membership;
mod reader;
mod topic_ids;
mod wake;
mod writer;

use std::sync::{Arc, Mutex};

use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
};
use tracing::{debug, info, warn};

use crate::{Cluster, Connect, Membership, ReadError, Reader, Start, TopicPartition};

pub use config::{Compression, Config};

/// Group id of readers. They never commit; librdkafka wants a name all the same.
const READER_GROUP: &str = "shoal-reader";

/// Why a cluster's clients cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The settings have faults.
    #[error("kafka settings are refused: {}", .faults.join("; "))]
    Faults {
        /// Each names its setting.
        faults: Vec<String>,
    },
    /// librdkafka refuses them together.
    #[error("kafka client refuses its settings")]
    Client(#[source] KafkaError),
}

impl ConfigError {
    /// What the caller should do about it.
    pub fn kind(&self) -> shoal_runtime::ErrorKind {
        shoal_runtime::ErrorKind::Caller
    }
}

/// Makes the clients of one cluster. Does not wait for a broker.
///
/// # Errors
/// [`ConfigError`] if the settings are refused.
pub fn connect(config: &Config) -> Result<Cluster, ConfigError> {
    let faults = config.validate();
    if !faults.is_empty() {
        return Err(ConfigError::Faults { faults });
    }
    let writer = writer::KafkaWriter::new(config).map_err(ConfigError::Client)?;
    let admin = admin::KafkaAdmin::new(config).map_err(ConfigError::Client)?;
    Ok(Cluster {
        admin: Arc::new(admin),
        writer: Arc::new(writer),
        connect: Arc::new(Opener {
            config: config.clone(),
        }),
    })
}

struct Opener {
    config: Config,
}

impl Connect for Opener {
    fn open_reader(
        &self,
        starts: &[(TopicPartition, Start)],
    ) -> Result<Box<dyn Reader>, ReadError> {
        Ok(Box::new(reader::KafkaReader::open(&self.config, starts)?))
    }

    fn open_reader_within(
        &self,
        starts: &[(TopicPartition, Start)],
        ahead_bytes: u64,
    ) -> Result<Box<dyn Reader>, ReadError> {
        // Each partition has a queue of its own.
        let partitions = u64::try_from(starts.len()).unwrap_or(u64::MAX);
        let ahead_bytes = ahead_bytes / partitions.max(1);
        let config = Config {
            fetch_buffer_bytes: self.config.fetch_buffer_bytes.min(ahead_bytes),
            ..self.config.clone()
        };
        Ok(Box::new(reader::KafkaReader::open(&config, starts)?))
    }

    fn join(&self, group: &str, topics: &[String]) -> Result<Box<dyn Membership>, ReadError> {
        Ok(Box::new(membership::KafkaMembership::join(
            &self.config,
            group,
            topics,
        )?))
    }
}

/// Takes librdkafka's log lines and its last error with its reason.
#[derive(Default)]
struct Context {
    last_error: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

impl Context {
    /// Why the client is in trouble, in its own words.
    fn reason(&self, otherwise: &str) -> String {
        let last = self
            .last_error
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*last {
            Some((_, reason)) if !reason.is_empty() => reason.clone(),
            _ => otherwise.to_owned(),
        }
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        remember(&self.last_error, &error, reason);
    }
}

impl ConsumerContext for Context {}

/// librdkafka reports a lost connection as an error, but it mends that by itself.
fn log(level: RDKafkaLogLevel, facility: &str, line: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            warn!(target: "librdkafka", facility, "{line}");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => {
            info!(target: "librdkafka", facility, "{line}");
        }
        RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
            debug!(target: "librdkafka", facility, "{line}");
        }
    }
}

fn remember(last: &Mutex<Option<(RDKafkaErrorCode, String)>>, error: &KafkaError, reason: &str) {
    if let Some(code) = error.rdkafka_error_code() {
        // The end of a partition comes through here too.
        if code != RDKafkaErrorCode::PartitionEOF {
            debug!(target: "librdkafka", ?code, "{reason}");
            *last
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner) =
                Some((code, reason.to_owned()));
        }
    }
}
