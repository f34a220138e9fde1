//! Settings of an edge node, section `[query.edge]`.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};
use shoal_runtime::config::Validate;
use shoal_schemas::RegionName;

/// Settings of an edge node, section `[query.edge]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The regions to forward to. Default none: the node is no edge node, it asks shards itself.
    ///
    /// With any, it needs no Kafka and has no shards.
    pub regions: Vec<Region>,
    /// How old a kept answer may be that is given while no region can be reached. Default 0: none
    /// is; at most 30 days. Needs `query.cache`.
    ///
    /// Such an answer says its age. A call with tokens, or that wants to be less stale, gets none.
    #[serde(with = "humantime_serde")]
    pub max_stale: Duration,
    /// How often each region is probed. Default 1 s, 50 ms to 1 min.
    ///
    /// Two probes in a row without an answer and a region is left alone, two with one and it is back.
    #[serde(with = "humantime_serde")]
    pub probe_interval: Duration,
}

/// A region to forward to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Its name, which answers and metrics show.
    pub name: String,
    /// The gRPC address of its query nodes, `host:port`, as a balancer or a name of several.
    pub address: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            regions: Vec::new(),
            max_stale: Duration::ZERO,
            probe_interval: Duration::from_secs(1),
        }
    }
}

impl Config {
    /// Whether the node is an edge node.
    pub fn is_edge(&self) -> bool {
        !self.regions.is_empty()
    }
}

fn is_address(address: &str) -> bool {
    let host_and_port = address.rsplit_once(':');
    host_and_port.is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

impl Validate for Config {
    fn validate(&self, faults: &mut Vec<String>) {
        let mut names = BTreeSet::new();
        for Region { name, address } in &self.regions {
            if let Err(error) = name.parse::<RegionName>() {
                faults.push(format!("query.edge.regions has the name `{name}`: {error}"));
            }
            if !names.insert(name) {
                faults.push(format!("query.edge.regions has `{name}` twice"));
            }
            if !is_address(address) {
                faults.push(format!(
                    "query.edge.regions has the address `{address}`, wanted is host:port"
                ));
            }
        }
        let times = [
            (
                "max_stale",
                self.max_stale,
                Duration::ZERO,
                Duration::from_secs(30 * 86_400),
            ),
            (
                "probe_interval",
                self.probe_interval,
                Duration::from_millis(50),
                Duration::from_secs(60),
            ),
        ];
        for (key, found, min, max) in times {
            if !(min..=max).contains(&found) {
                faults.push(format!(
                    "query.edge.{key} is {found:?}, allowed are {min:?} to {max:?}"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shoal_runtime::config::Validate;

    use super::{Config, Region};

    #[test]
    fn every_fault_is_told() {
        let region = |name: &str, address: &str| Region {
            name: name.into(),
            address: address.into(),
        };
        let mut config = Config {
            regions: vec![
                region("eu-1", "eu.example:7730"),
                region("us", "10.0.0.1:7730"),
            ],
            ..Config::default()
        };
        let mut faults = Vec::new();
        config.validate(&mut faults);
        assert_eq!(faults, Vec::<String>::new());
        config.regions.extend([
            region("eu-1", "http://eu.example:7730/"),
            region("No.Region", "eu.example:0"),
        ]);
        config.max_stale = Duration::from_secs(31 * 86_400);
        config.probe_interval = Duration::ZERO;
        config.validate(&mut faults);
        assert_eq!(faults.len(), 6, "{faults:#?}");
    }
}
