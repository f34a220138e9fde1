//! Every setting of the program: a section a part, checked together.
//!
//! Defaults, then the file of `--config`, then variables such as `SHOAL_QUERY__GRPC_LISTEN`, then
//! flags. A key that nobody knows is a fault, and all faults are told at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use shoal_runtime::{
    config::{ConfigError, ENV_PREFIX, ENV_SEPARATOR, Layers, Validate},
    telemetry,
};
use shoal_topic::kafka;

/// The sections, which are also the first parts of the variables' names.
pub const SECTIONS: [&str; 7] = [
    "kafka",
    "registry",
    "telemetry",
    "gateway",
    "indexer",
    "query",
    "local",
];

/// Parts of an option's name whose value is not shown.
const SECRET: [&str; 4] = ["password", "secret", "key.pem", "token"];

/// All settings.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The cluster.
    pub kafka: kafka::Config,
    /// The schema registry, if there is one.
    pub registry: RegistryConfig,
    /// Logs.
    pub telemetry: telemetry::Config,
    /// The role that takes writes over gRPC and HTTP.
    pub gateway: shoal_producer::gateway::Config,
    /// The role that holds shards.
    pub indexer: shoal_indexer::Config,
    /// The role that answers searches.
    pub query: shoal_query::Config,
    /// What `shoal up` runs beside the roles.
    pub local: LocalConfig,
}

/// Where writer schemas are kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// A registry that speaks Confluent's API, path included. Default none: values carry the
    /// fingerprint of their schema instead of a registry's id.
    pub url: Option<String>,
}

/// The Kafka that `shoal up` starts for itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LocalConfig {
    /// Where everything of `shoal up` is kept. Default `.shoal`.
    pub data_dir: PathBuf,
    /// Where Kafka listens on 127.0.0.1. Default none: where it listened last time, else any
    /// free port.
    pub kafka_port: Option<u16>,
    /// Largest heap of Kafka, MiB. Default 512, 128 to 65,536.
    pub kafka_heap_mib: u32,
    /// Further broker settings by Kafka's names. Default none.
    pub kafka_settings: BTreeMap<String, String>,
    /// The Java program, 17 or newer. Default `java`.
    pub java: PathBuf,
    /// Longest Kafka may take to start. Default 2 min; recovery after an abrupt end takes time.
    #[serde(with = "humantime_serde")]
    pub start_timeout: Duration,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self {
            data_dir: ".shoal".into(),
            kafka_port: None,
            kafka_heap_mib: 512,
            kafka_settings: BTreeMap::new(),
            java: "java".into(),
            start_timeout: Duration::from_secs(120),
        }
    }
}

impl Validate for RegistryConfig {
    fn validate(&self, faults: &mut Vec<String>) {
        if let Some(url) = &self.url
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            faults.push(format!(
                "registry.url is `{url}`, wanted is http://host:port/path"
            ));
        }
    }
}

impl Validate for LocalConfig {
    fn validate(&self, faults: &mut Vec<String>) {
        if !(128..=65_536).contains(&self.kafka_heap_mib) {
            faults.push(format!(
                "local.kafka_heap_mib is {}, allowed are 128 to 65536",
                self.kafka_heap_mib
            ));
        }
        if self.kafka_port == Some(0) {
            faults.push("local.kafka_port is 0; leave it out for any free port".into());
        }
        if self.start_timeout < Duration::from_secs(1) {
            faults.push(format!(
                "local.start_timeout is {:?}, allowed is 1s and more",
                self.start_timeout
            ));
        }
    }
}

impl Validate for Settings {
    fn validate(&self, faults: &mut Vec<String>) {
        faults.extend(self.kafka.validate());
        self.registry.validate(faults);
        self.telemetry.validate(faults);
        self.gateway.validate(faults);
        self.indexer.validate(faults);
        self.query.validate(faults);
        self.local.validate(faults);
        let (drain, limit) = (self.indexer.drain_timeout, self.kafka.rebalance_timeout);
        if drain >= limit {
            faults.push(format!(
                "indexer.drain_timeout is {drain:?}, has to be below kafka.rebalance_timeout, \
                 {limit:?}, or another node takes a shard over before this one has let go"
            ));
        }
        if let Some(region) = &self.gateway.residency.region
            && self.indexer.region != *region
            && self.indexer.region != shoal_indexer::Config::default().region
        {
            faults.push(format!(
                "gateway.residency.region is `{region}`, indexer.region is `{}`; they have to be the \
                 same, or the indexer refuses what the gateway tags",
                self.indexer.region
            ));
        }
        self.listeners(faults);
    }
}

impl Settings {
    /// Two roles on one address cannot run on one machine.
    fn listeners(&self, faults: &mut Vec<String>) {
        let of = |role, grpc, http| [(role, "grpc_listen", grpc), (role, "http_listen", http)];
        let all: [[(&str, &str, SocketAddr); 2]; 3] = [
            of(
                "gateway",
                self.gateway.grpc_listen,
                self.gateway.http_listen,
            ),
            of(
                "indexer",
                self.indexer.grpc_listen,
                self.indexer.http_listen,
            ),
            of("query", self.query.grpc_listen, self.query.http_listen),
        ];
        let all = all.as_flattened();
        for (at, (role, key, address)) in all.iter().enumerate() {
            for (other_role, other_key, other) in all.iter().skip(at + 1) {
                // The gateway and the query node look after their own two themselves.
                let told = role == other_role && *role != "indexer";
                if address == other && address.port() != 0 && !told {
                    faults.push(format!(
                        "{role}.{key} and {other_role}.{other_key} are both {address}, they need \
                         a port each"
                    ));
                }
            }
        }
    }

    /// Puts every listener on a free port.
    pub fn any_port(&mut self) {
        for address in [
            &mut self.gateway.grpc_listen,
            &mut self.gateway.http_listen,
            &mut self.indexer.grpc_listen,
            &mut self.indexer.http_listen,
            &mut self.query.grpc_listen,
            &mut self.query.http_listen,
        ] {
            address.set_port(0);
        }
    }

    /// The settings as TOML, secrets starred out.
    pub fn to_toml(&self) -> String {
        let mut all = serde_json::to_value(self).unwrap_or_default();
        let client = all
            .pointer_mut("/kafka/client")
            .and_then(Json::as_object_mut);
        for (option, value) in client.into_iter().flatten() {
            if SECRET.iter().any(|part| option.contains(part)) {
                *value = "***".into();
            }
        }
        if let Some(key) = all
            .pointer_mut("/query/embedding/api_key")
            .filter(|key| key.is_string())
        {
            *key = "***".into();
        }
        if let Some(address) = all.pointer_mut("/query/cache/redis")
            && let Some((before, host)) = address.as_str().and_then(|text| text.rsplit_once('@'))
        {
            let scheme = before
                .split_once("://")
                .map_or("redis", |(scheme, _)| scheme);
            *address = format!("{scheme}://***@{host}").into();
        }
        without_nulls(&mut all);
        toml::to_string_pretty(&all).unwrap_or_default()
    }
}

/// TOML has no word for "not set".
fn without_nulls(value: &mut Json) {
    if let Json::Object(fields) = value {
        fields.retain(|_, field| !field.is_null());
        fields.values_mut().for_each(without_nulls);
    }
}

/// Settings, and which of them somebody has set.
pub struct Loaded {
    /// All of them.
    pub settings: Settings,
    layers: Layers,
}

impl Loaded {
    /// Whether the file or the environment sets a key, `section.name`.
    pub fn sets(&self, key: &str) -> bool {
        self.layers.sets(key)
    }
}

/// Reads all layers.
///
/// # Errors
/// [`ConfigError`] with every fault.
pub fn load(file: Option<&Path>) -> Result<Loaded, ConfigError> {
    let layers = Layers::new(file, &SECTIONS);
    let settings = layers.load()?;
    Ok(Loaded { settings, layers })
}

/// Names of all variables that set a key, sorted.
///
/// Keys under `kafka.client` and `local.kafka_settings` are anybody's, so they are not listed.
pub fn env_names() -> BTreeSet<String> {
    let defaults = serde_json::to_value(Settings::default()).unwrap_or_default();
    let mut names = BTreeSet::new();
    name_leaves(&defaults, &mut Vec::new(), &mut names);
    names
}

fn name_leaves(value: &Json, path: &mut Vec<String>, names: &mut BTreeSet<String>) {
    if let Json::Object(fields) = value {
        for (key, field) in fields {
            path.push(key.to_ascii_uppercase());
            name_leaves(field, path, names);
            path.pop();
        }
    } else {
        names.insert(format!("{ENV_PREFIX}{}", path.join(ENV_SEPARATOR)));
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
