//! etcd, for those who have one: definitions and claims, so that query nodes need no Kafka.
//!
//! The control topic stays the truth; what stands in etcd is a copy that indexers keep. The keys are
//! those of the control topic behind a prefix. A claim stands under its indexer's lease and carries its
//! epoch: one that is older than what is there is not written, so a stale owner takes nothing back. With
//! the definitions stands how far their writer had read the control topic, which fences them in the same
//! way.

mod announce;
mod api;
mod client;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_schemas::{Offset, control::Claim};

pub use announce::Announcer;
pub use client::{Change, Client, EtcdError, Fenced, LeaseId, Pair, Watch};

/// The key of the Kafka cluster's id.
pub const CLUSTER_KEY: &str = "cluster";

/// The key of how far whoever wrote the definitions had read the control topic.
pub const READ_TO_KEY: &str = "read-to";

/// Where an etcd is, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Its members, such as `http://10.0.0.1:2379`. Default none.
    pub endpoints: Vec<String>,
    /// What all keys begin with. Default `/shoal/`; another one for each Shoal.
    pub prefix: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            prefix: "/shoal/".to_owned(),
        }
    }
}

impl Config {
    /// Tells every fault, naming keys of `section`.
    pub fn validate(&self, section: &str, faults: &mut Vec<String>) {
        if self.endpoints.is_empty() {
            faults.push(format!(
                "{section}.endpoints is empty; name at least one, such as http://127.0.0.1:2379"
            ));
        }
        for endpoint in &self.endpoints {
            let host = endpoint.strip_prefix("http://").unwrap_or_default();
            if host.is_empty() || host.contains('/') {
                faults.push(format!(
                    "{section}.endpoints has `{endpoint}`, wanted is http://host:port; TLS is not \
                     spoken to etcd yet"
                ));
            }
        }
        if self.prefix.is_empty() {
            faults.push(format!("{section}.prefix is empty; set /shoal/ or so"));
        }
    }
}

/// How long one call may take.
const CALL: Duration = Duration::from_secs(5);

/// A claim as it stands in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeasedClaim {
    /// The claim.
    #[serde(flatten)]
    pub claim: Claim,
    /// Its offset in the control topic.
    pub epoch: Offset,
}

impl LeasedClaim {
    /// The value's bytes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain values always encode")
    }

    /// Reads a value.
    ///
    /// # Errors
    /// JSON's own.
    pub fn decode(value: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(value)
    }
}

#[cfg(test)]
mod fake;

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn every_fault_names_its_key() {
        let told = |config: Config| {
            let mut faults = Vec::new();
            config.validate("query.map.etcd", &mut faults);
            faults
        };
        let one = |endpoint: &str| Config {
            endpoints: vec![endpoint.to_owned()],
            ..Config::default()
        };
        assert_eq!(told(one("http://127.0.0.1:2379")), Vec::<String>::new());
        assert!(told(Config::default())[0].contains("query.map.etcd.endpoints"));
        for wrong in ["https://a:1", "a:1", "http://a:1/v3", "http://"] {
            assert_eq!(told(one(wrong)).len(), 1, "{wrong}");
        }
    }
}
