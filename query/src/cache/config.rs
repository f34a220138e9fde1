//! Settings of kept answers, section `[query.cache]`.

use std::{path::PathBuf, time::Duration};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use shoal_runtime::config::Validate;

use super::remote::{check_address, is_over_tls};

/// Settings of kept answers, section `[query.cache]`. By default nothing is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Memory for kept answers. Default none; at most 64 GiB.
    ///
    /// The ones not asked for longest make room. Too little and they are gone before they are asked for again.
    pub memory: ByteSize,
    /// A Redis for kept answers, `redis://host:port/number`, or `rediss://` over TLS, shared by whatever
    /// nodes name it. Default none.
    ///
    /// Where it wants a password, `user:password@` or `:password@` stands before the host, `%`-encoded.
    /// Is it away or slow, answers come from the shards. It holds what points hold: keep it where
    /// they may be.
    pub redis: Option<String>,
    /// A file in PEM with the certificates that a Redis over TLS is trusted by. Default none: those of
    /// the system.
    pub redis_ca: Option<PathBuf>,
    /// Longest time for Redis to answer. Default 20 ms, 1 ms to 1 s.
    ///
    /// A search waits so long for a Redis that hangs, but no longer than a tenth of the time it has
    /// left; three times, then it is left alone for a while.
    #[serde(with = "humantime_serde")]
    pub redis_timeout: Duration,
    /// How old an answer may be that is given without asking a shard. Default 0: none is; at most
    /// a day.
    ///
    /// At 0 every shard is asked whether its answer still holds, which costs the call and spares
    /// the search. Above, an answer may lack the writes of that time, says its age, and asks
    /// nobody. A call with tokens, or that wants to be less stale, asks all the same.
    #[serde(with = "humantime_serde")]
    pub ttl: Duration,
    /// How long an answer is kept that nobody asks for. Default 1 h, 1 s to 30 days.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
    /// Largest answer that is kept. Default 1 MiB, at most 64 MiB.
    pub largest: ByteSize,
    /// Whether equal searches that come while the first is under way wait for its answer. Default
    /// true.
    ///
    /// The answer then is of a search that began before the call; tokens and bounds hold all the same.
    pub share: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            memory: ByteSize(0),
            redis: None,
            redis_ca: None,
            redis_timeout: Duration::from_millis(20),
            ttl: Duration::ZERO,
            keep: Duration::from_secs(3600),
            largest: ByteSize::mib(1),
            share: true,
        }
    }
}

impl Config {
    /// Whether anything is kept.
    pub fn keeps(&self) -> bool {
        self.memory.as_u64() > 0 || self.redis.is_some()
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Vec<String>) {
        let day = Duration::from_secs(86_400);
        let times = [
            (
                "redis_timeout",
                self.redis_timeout,
                Duration::from_millis(1),
                Duration::from_secs(1),
            ),
            ("ttl", self.ttl, Duration::ZERO, day),
            ("keep", self.keep, Duration::from_secs(1), day * 30),
        ];
        for (key, found, min, max) in times {
            if !(min..=max).contains(&found) {
                faults.push(format!(
                    "query.cache.{key} is {found:?}, allowed are {min:?} to {max:?}"
                ));
            }
        }
        let sizes = [
            ("memory", self.memory, ByteSize::gib(64)),
            ("largest", self.largest, ByteSize::mib(64)),
        ];
        for (key, found, max) in sizes {
            if found > max {
                faults.push(format!(
                    "query.cache.{key} is {found}, allowed are 0 B to {max}"
                ));
            }
        }
        if let Some(address) = &self.redis
            && let Err(fault) = check_address(address)
        {
            faults.push(format!("query.cache.redis: {fault}"));
        }
        if self.redis_ca.is_some() && !self.redis.as_deref().is_some_and(is_over_tls) {
            faults.push(
                "query.cache.redis_ca is set, but query.cache.redis is no rediss:// address: nothing \
                 is over TLS"
                    .to_owned(),
            );
        }
        if !self.ttl.is_zero() && !self.keeps() {
            faults.push(
                "query.cache.ttl is set, but neither query.cache.memory nor query.cache.redis is: \
                 nothing is kept"
                    .to_owned(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
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
    fn every_fault_names_its_key() {
        assert_eq!(faults(&Config::default()), Vec::<String>::new());
        let config = Config {
            memory: ByteSize::gib(65),
            redis: Some("http://redis.example".into()),
            redis_ca: Some("ca.pem".into()),
            redis_timeout: Duration::from_secs(2),
            ttl: Duration::from_secs(90_000),
            keep: Duration::ZERO,
            largest: ByteSize::mib(65),
            share: false,
        };
        let found = faults(&config);
        let keys = [
            "redis_timeout",
            "ttl",
            "keep",
            "memory",
            "largest",
            "redis:",
            "redis_ca",
        ];
        assert_eq!(found.len(), keys.len(), "{found:?}");
        for key in keys {
            let named = format!("query.cache.{key}");
            assert!(
                found.iter().any(|fault| fault.contains(&named)),
                "{key}: {found:?}"
            );
        }
        let nowhere = Config {
            ttl: Duration::from_secs(1),
            ..Config::default()
        };
        assert_eq!(faults(&nowhere).len(), 1);
        let safe = Config {
            redis: Some("rediss://me:secret@safe.example/1".into()),
            redis_ca: Some("ca.pem".into()),
            ..Config::default()
        };
        assert_eq!(faults(&safe), Vec::<String>::new());
    }
}
