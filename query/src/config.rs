//! Settings of a query node: what a person tunes, with the faults they can have.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};
use shoal_runtime::config::Validate;

use crate::{admission, hedge};

/// Settings of the query role, section `[query]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where gRPC listens. Default `127.0.0.1:7730`; port 0 picks a free one.
    pub grpc_listen: SocketAddr,
    /// Where JSON over HTTP, `/healthz`, `/readyz` and `/metrics` listen. Default
    /// `127.0.0.1:7731`; port 0 picks a free one.
    pub http_listen: SocketAddr,
    /// Time a call may take that names none. Default 2 s.
    ///
    /// Too short and a slow shard is missing from answers; too long and a dead one is waited for.
    #[serde(with = "humantime_serde")]
    pub default_deadline: Duration,
    /// Largest `k` of one query, 1 to 10,000, which is also what a shard takes. Default 10,000.
    ///
    /// Every shard sends up to `k` hits, so it bounds the memory of one call.
    pub max_k: u32,
    /// Most queries in one batch. Default 1,000.
    pub max_batch_queries: u32,
    /// Most ids in one get, and points in one page of a scroll. Default 10,000.
    pub max_get_ids: u32,
    /// Time to open a connection to an indexer. Default 1 s.
    #[serde(with = "humantime_serde")]
    pub shard_connect_timeout: Duration,
    /// Largest message taken or sent, bytes, on either side of this node. Default 64 MiB.
    ///
    /// 10,000 hits with 1,024-component vectors are about 40 MiB.
    pub max_message_bytes: u32,
    /// How many calls are worked on at a time, and how many wait.
    pub admission: admission::Config,
    /// When a second replica is asked while the first one may still answer.
    pub hedge: hedge::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            grpc_listen: SocketAddr::from(([127, 0, 0, 1], 7730)),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 7731)),
            default_deadline: Duration::from_secs(2),
            max_k: 10_000,
            max_batch_queries: 1_000,
            max_get_ids: 10_000,
            shard_connect_timeout: Duration::from_secs(1),
            max_message_bytes: 64 << 20,
            admission: admission::Config::default(),
            hedge: hedge::Config::default(),
        }
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Vec<String>) {
        let numbers = [
            ("max_k", self.max_k, 1, 10_000),
            ("max_batch_queries", self.max_batch_queries, 1, 100_000),
            ("max_get_ids", self.max_get_ids, 1, 1_000_000),
            (
                "max_message_bytes",
                self.max_message_bytes,
                64 << 10,
                1 << 30,
            ),
        ];
        for (key, found, min, max) in numbers {
            if !(min..=max).contains(&found) {
                faults.push(format!(
                    "query.{key} is {found}, allowed are {min} to {max}"
                ));
            }
        }
        let times = [
            ("default_deadline", self.default_deadline),
            ("shard_connect_timeout", self.shard_connect_timeout),
        ];
        let (min, max) = (Duration::from_millis(1), Duration::from_secs(600));
        for (key, found) in times {
            if !(min..=max).contains(&found) {
                faults.push(format!(
                    "query.{key} is {found:?}, allowed are {min:?} to {max:?}"
                ));
            }
        }
        self.admission.validate(faults);
        self.hedge.validate(faults);
        if self.grpc_listen == self.http_listen && self.grpc_listen.port() != 0 {
            faults.push(format!(
                "query.grpc_listen and query.http_listen are both {}, they need two ports",
                self.grpc_listen
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shoal_runtime::config::Validate;

    use super::Config;

    fn faults(config: &Config) -> Vec<String> {
        let mut faults = Vec::new();
        config.validate(&mut faults);
        faults
    }

    #[test]
    fn defaults_have_no_fault() {
        assert_eq!(faults(&Config::default()), Vec::<String>::new());
    }

    #[test]
    fn every_fault_names_its_key() {
        let mut config = Config {
            max_k: 0,
            max_message_bytes: 1,
            default_deadline: Duration::ZERO,
            ..Config::default()
        };
        config.http_listen = config.grpc_listen;
        let found = faults(&config);
        let keys = [
            "max_k",
            "max_message_bytes",
            "default_deadline",
            "http_listen",
        ];
        assert_eq!(found.len(), keys.len(), "{found:?}");
        for key in keys {
            assert!(
                found.iter().any(|fault| fault.contains(key)),
                "{key}: {found:?}"
            );
        }
    }
}
