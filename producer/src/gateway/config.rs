//! Settings of the gateway.

use std::{net::SocketAddr, num::NonZeroUsize, time::Duration};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use shoal_runtime::config::Validate;
use shoal_schemas::RegionName;

use super::{QuotaConfig, ResidencyConfig};

/// How the gateway listens and answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where gRPC is answered. Default `127.0.0.1:7710`; port 0 picks a free one.
    pub grpc_listen: SocketAddr,
    /// Where JSON, health and metrics are answered. Default `127.0.0.1:7711`.
    pub http_listen: SocketAddr,
    /// Threads that serve gRPC. Default: the number of processors.
    ///
    /// A caller's connection stays on one of them.
    pub grpc_threads: NonZeroUsize,
    /// How long a call waits for the log to acknowledge its records. Default 10 s, 10 ms to 10 min.
    ///
    /// A caller's own shorter deadline counts. Too short, and calls fail that the log was about
    /// to take; too long, and callers learn late that it is away.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// Largest call taken, bytes of its message or body. Default 32 MiB, 64 KiB to 256 MiB.
    ///
    /// A point of 384 components takes 1.5 KiB in gRPC and up to 8 KiB as JSON.
    pub max_body: ByteSize,
    /// Region named as the origin of every record. Default none: the topic's region counts.
    pub origin: Option<RegionName>,
    /// Id that a schema registry gave the schema of our events, for every collection. Default
    /// none: with `registry.url` each collection's topic has a subject of its own there, which is
    /// asked for the id; without, values carry the schema's fingerprint.
    pub schema_id: Option<u32>,
    /// Most requests of one `WriteStream`, and parts of one NDJSON body, that wait for the log at
    /// once. Default 16, 1 to 1,000.
    ///
    /// As many as wait, the stream is read no further: too few and a writer waits for round trips,
    /// too many and one stream takes the gateway's memory.
    pub max_stream_calls: u32,
    /// What each tenant may write. Default no limit.
    pub quota: QuotaConfig,
    /// Where records may live. Default: anywhere.
    pub residency: ResidencyConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            grpc_listen: SocketAddr::from(([127, 0, 0, 1], 7710)),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 7711)),
            grpc_threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            deadline: Duration::from_secs(10),
            max_body: ByteSize::mib(32),
            origin: None,
            schema_id: None,
            max_stream_calls: 16,
            quota: QuotaConfig::default(),
            residency: ResidencyConfig::default(),
        }
    }
}

impl Config {
    /// Parts of a stream that wait for the log at once.
    pub(super) fn max_stream_calls(&self) -> usize {
        usize::try_from(self.max_stream_calls).unwrap_or(usize::MAX)
    }

    /// The largest call in bytes.
    pub(super) fn max_body_bytes(&self) -> usize {
        usize::try_from(self.max_body.as_u64()).unwrap_or(usize::MAX)
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Vec<String>) {
        let (shortest, longest) = (Duration::from_millis(10), Duration::from_secs(600));
        if !(shortest..=longest).contains(&self.deadline) {
            faults.push(format!(
                "gateway.deadline is {:?}, allowed are {shortest:?} to {longest:?}",
                self.deadline
            ));
        }
        let (smallest, largest) = (ByteSize::kib(64), ByteSize::mib(256));
        if !(smallest..=largest).contains(&self.max_body) {
            faults.push(format!(
                "gateway.max_body is {}, allowed are {smallest} to {largest}",
                self.max_body
            ));
        }
        if !(1..=1_000).contains(&self.max_stream_calls) {
            faults.push(format!(
                "gateway.max_stream_calls is {}, allowed are 1 to 1000",
                self.max_stream_calls
            ));
        }
        self.quota.validate(faults);
        self.residency.validate(faults);
        if self.grpc_listen == self.http_listen && self.grpc_listen.port() != 0 {
            faults.push(format!(
                "gateway.grpc_listen and gateway.http_listen are both {}, they need a port each",
                self.grpc_listen
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use bytesize::ByteSize;
    use shoal_runtime::config::Validate;

    use super::Config;

    fn faults(config: &Config) -> Vec<String> {
        let mut faults = Vec::new();
        config.validate(&mut faults);
        faults
    }

    #[test]
    fn every_fault_is_told_by_its_key() {
        assert_eq!(faults(&Config::default()), Vec::<String>::new());
        let bad = Config {
            deadline: Duration::ZERO,
            max_body: ByteSize::gib(1),
            max_stream_calls: 0,
            http_listen: Config::default().grpc_listen,
            ..Config::default()
        };
        let found = faults(&bad);
        for key in [
            "gateway.deadline",
            "gateway.max_body",
            "gateway.max_stream_calls",
            "gateway.grpc_listen",
        ] {
            assert!(
                found.iter().any(|fault| fault.starts_with(key)),
                "{key}: {found:?}"
            );
        }
        assert_eq!(found.len(), 4, "{found:?}");
    }

    #[test]
    fn it_reads_sizes_and_times_with_units() {
        let text = r#"{"deadline": "2s", "max_body": "1 MiB", "http_listen": "127.0.0.1:0"}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert_eq!(
            (config.deadline, config.max_body),
            (Duration::from_secs(2), ByteSize::mib(1))
        );
        assert!(serde_json::from_str::<Config>(r#"{"dedline": "2s"}"#).is_err());
    }
}
