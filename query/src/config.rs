//! Settings of a query node: what a person tunes, with the faults they can have.

use std::{net::SocketAddr, num::NonZeroUsize, time::Duration};

use serde::{Deserialize, Serialize};
use shoal_runtime::config::Validate;

use crate::{admission, cache, edge, hedge, source};

/// Settings of the query role, section `[query]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where gRPC listens. Default `127.0.0.1:7730`; port 0 picks a free one.
    pub grpc_listen: SocketAddr,
    /// Where JSON over HTTP, `/healthz`, `/readyz` and `/metrics` listen. Default
    /// `127.0.0.1:7731`; port 0 picks a free one.
    pub http_listen: SocketAddr,
    /// Threads that serve gRPC. Default: the number of processors.
    ///
    /// A caller's connection stays on one of them, and each has its own connections to the
    /// indexers. Too few and processors idle; too many and the indexers have connections to spare.
    pub grpc_threads: NonZeroUsize,
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
    /// Most searches of one `SearchStream`, or NDJSON body, under way at once. Default 64, 1 to 10,000.
    ///
    /// With as many under way, or answered and not taken yet, the stream is read no further: too few and a caller
    /// far away waits for round trips, too many and one stream takes the node's memory.
    pub max_stream_searches: u32,
    /// Origins whose pages may ask this node from a browser, over JSON and grpc-web alike, such as
    /// `https://app.example.com`; `*` is any. Default none: only pages of the node's own origin.
    pub cors_origins: Vec<String>,
    /// Where the shard map is learned. Default from the control topic.
    pub map: source::Config,
    /// Where texts become vectors. Default nowhere: searches by text are refused.
    pub embedding: EmbeddingConfig,
    /// What is kept of answers. Default nothing.
    pub cache: cache::Config,
    /// The regions that an edge node forwards to. Default none: the node asks shards itself.
    pub edge: edge::Config,
}

/// An endpoint that turns texts into vectors, section `[query.embedding]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EmbeddingConfig {
    /// An endpoint that speaks OpenAI's `/v1/embeddings`, path included. Default none.
    pub url: Option<String>,
    /// The model it is asked for. Default none; needed with `url`.
    ///
    /// It has to be the one that the collections' vectors were made with.
    pub model: Option<String>,
    /// The key it is asked with, as a bearer token. Default none. Better set by the environment
    /// than in the file.
    pub api_key: Option<String>,
    /// Longest time for its answer. Default 5 s, 1 ms to 10 min; a caller's shorter deadline counts.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
}

impl Default for EmbeddingConfig {
    fn default() -> Self {
        Self {
            url: None,
            model: None,
            api_key: None,
            timeout: Duration::from_secs(5),
        }
    }
}

impl EmbeddingConfig {
    fn validate(&self, faults: &mut Vec<String>) {
        match (&self.url, &self.model) {
            (Some(url), _) if !is_web_address(url) => faults.push(format!(
                "query.embedding.url is `{url}`, wanted is http://host:port/v1/embeddings"
            )),
            (Some(_), None) => faults
                .push("query.embedding.model is not set, query.embedding.url needs it".to_owned()),
            (None, Some(_)) => faults
                .push("query.embedding.url is not set, query.embedding.model needs it".to_owned()),
            _ => {}
        }
    }
}

fn is_web_address(url: &str) -> bool {
    let behind = ["http://", "https://"]
        .iter()
        .find_map(|scheme| url.strip_prefix(scheme));
    behind.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
}

/// A scheme, a host and maybe a port, as browsers name origins.
fn is_origin(text: &str) -> bool {
    let host = text.split_once("://").map(|(_, host)| host);
    text == "*" || is_web_address(text) && host.is_some_and(|host| !host.contains('/'))
}

impl Default for Config {
    fn default() -> Self {
        Self {
            grpc_listen: SocketAddr::from(([127, 0, 0, 1], 7730)),
            http_listen: SocketAddr::from(([127, 0, 0, 1], 7731)),
            grpc_threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            default_deadline: Duration::from_secs(2),
            max_k: 10_000,
            max_batch_queries: 1_000,
            max_get_ids: 10_000,
            shard_connect_timeout: Duration::from_secs(1),
            max_message_bytes: 64 << 20,
            admission: admission::Config::default(),
            hedge: hedge::Config::default(),
            max_stream_searches: 64,
            cors_origins: Vec::new(),
            map: source::Config::default(),
            embedding: EmbeddingConfig::default(),
            cache: cache::Config::default(),
            edge: edge::Config::default(),
        }
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Vec<String>) {
        let numbers = [
            ("max_k", self.max_k, 1, 10_000),
            ("max_batch_queries", self.max_batch_queries, 1, 100_000),
            ("max_get_ids", self.max_get_ids, 1, 1_000_000),
            ("max_stream_searches", self.max_stream_searches, 1, 10_000),
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
            ("embedding.timeout", self.embedding.timeout),
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
        self.cache.validate(faults);
        self.edge.validate(faults);
        let (stale, keep) = (self.edge.max_stale, self.cache.keep);
        if !stale.is_zero() && !self.cache.keeps() {
            faults.push(
                "query.edge.max_stale is set, but neither query.cache.memory nor query.cache.redis \
                 is: there is nothing to give"
                    .to_owned(),
            );
        } else if stale > keep || self.cache.ttl > keep {
            faults.push(format!(
                "query.cache.keep is {keep:?}, it has to be no less than query.cache.ttl and \
                 query.edge.max_stale"
            ));
        }
        for origin in self.cors_origins.iter().filter(|one| !is_origin(one)) {
            faults.push(format!(
                "query.cors_origins has `{origin}`, wanted are origins such as \
                 https://app.example.com, without a path, or *"
            ));
        }
        self.map.validate(faults);
        self.embedding.validate(faults);
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

    use super::{Config, EmbeddingConfig};
    use crate::source;

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
            max_stream_searches: 0,
            cors_origins: vec![
                "https://a.example/path".into(),
                "https://good.example".into(),
            ],
            map: source::Config {
                source: source::Source::File,
                poll: Duration::ZERO,
                ..source::Config::default()
            },
            embedding: EmbeddingConfig {
                url: Some("localhost/v1".into()),
                timeout: Duration::ZERO,
                ..EmbeddingConfig::default()
            },
            ..Config::default()
        };
        config.http_listen = config.grpc_listen;
        let found = faults(&config);
        let keys = [
            "max_k",
            "max_message_bytes",
            "default_deadline",
            "max_stream_searches",
            "cors_origins",
            "map.path",
            "map.poll",
            "embedding.url",
            "embedding.timeout",
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
