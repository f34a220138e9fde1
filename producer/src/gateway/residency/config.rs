//! Settings of residency: which tags there are, and in which region each of them lives.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use shoal_schemas::{CollectionName, RegionName, headers::MAX_RESIDENCY_BYTES, route::PREFIX_END};

/// Where records may live, section `[gateway.residency]`. Default: nothing is tagged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResidencyConfig {
    /// The region that this gateway writes in. Default none: a call that says a residency is refused.
    ///
    /// Its indexers' `indexer.region` has to be the same: they refuse records that are tagged with another one.
    pub region: Option<RegionName>,
    /// The other regions, and what of them can be reached. Default none.
    pub regions: BTreeMap<RegionName, RegionConfig>,
    /// The regions of tags that are not named like one. Default none: a region's name is its only tag.
    pub tags: BTreeMap<String, RegionName>,
    /// The tags of collections. Default none.
    ///
    /// One counts under every name that stands for the collection, too.
    pub collections: BTreeMap<CollectionName, String>,
    /// The tags of tenants, in collections that route by them; before those of the collection. Default none.
    pub tenants: BTreeMap<String, String>,
}

/// Another region.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RegionConfig {
    /// Its gateways, `host:port` of gRPC, in the order in which they are tried. Default none: the region is
    /// known, and nothing is sent there from here.
    pub gateways: Vec<String>,
}

impl ResidencyConfig {
    /// Adds its faults.
    pub(in crate::gateway) fn validate(&self, faults: &mut Vec<String>) {
        let Some(own) = &self.region else {
            if *self != Self::default() {
                faults.push(
                    "gateway.residency.region is not set; without it no record with a residency is written"
                        .to_owned(),
                );
            }
            return;
        };
        if self.regions.contains_key(own) {
            faults.push(format!(
                "gateway.residency.regions has `{own}`, which is this gateway's own region"
            ));
        }
        for (region, RegionConfig { gateways }) in &self.regions {
            for address in gateways.iter().filter(|address| !is_address(address)) {
                faults.push(format!(
                    "gateway.residency.regions.{region}.gateways has `{address}`, wanted is host:port"
                ));
            }
        }
        for (tag, region) in &self.tags {
            if !self.knows(region) {
                faults.push(format!(
                    "gateway.residency.tags.{tag} is `{region}`, which is neither this gateway's region nor in gateway.residency.regions"
                ));
            }
            let named: Result<RegionName, _> = tag.parse();
            if named.is_ok_and(|named| self.knows(&named) && named != *region) {
                faults.push(format!(
                    "gateway.residency.tags.{tag} is `{region}`; the name of a region is the tag of that region alone"
                ));
            }
            if !is_tag(tag) {
                faults.push(format!(
                    "gateway.residency.tags has a tag of {} bytes, allowed are 1 to {MAX_RESIDENCY_BYTES}",
                    tag.len()
                ));
            }
        }
        let collections = self.collections.iter();
        let collections = collections.map(|(name, tag)| (format!("collections.{name}"), tag));
        let tenants = self.tenants.iter();
        let tenants = tenants.map(|(name, tag)| (format!("tenants.{name}"), tag));
        for (key, tag) in collections.chain(tenants) {
            if self.region_of(tag).is_none() {
                faults.push(format!(
                    "gateway.residency.{key} is `{tag}`, which is the tag of no region: they are {}",
                    self.known()
                ));
            }
        }
        for tenant in self.tenants.keys() {
            if tenant.is_empty() || tenant.contains(PREFIX_END) {
                faults.push(format!(
                    "gateway.residency.tenants has `{tenant}`; a tenant is the part of an id before \
                     its first `/`"
                ));
            }
        }
    }

    /// The region of a tag.
    pub(super) fn region_of(&self, tag: &str) -> Option<&RegionName> {
        let named = || {
            let mut all = self.region.iter().chain(self.regions.keys());
            all.find(|region| region.as_str() == tag)
        };
        self.tags.get(tag).or_else(named)
    }

    fn knows(&self, region: &RegionName) -> bool {
        self.region.as_ref() == Some(region) || self.regions.contains_key(region)
    }

    /// Every tag there is, for a person.
    pub(super) fn known(&self) -> String {
        let regions = self.region.iter().chain(self.regions.keys());
        let tags = regions.map(RegionName::as_str);
        let tags: BTreeSet<&str> = tags.chain(self.tags.keys().map(String::as_str)).collect();
        let tags: Vec<String> = tags.into_iter().map(|tag| format!("`{tag}`")).collect();
        tags.join(", ")
    }
}

pub(super) fn is_tag(text: &str) -> bool {
    (1..=MAX_RESIDENCY_BYTES).contains(&text.len())
}

fn is_address(address: &str) -> bool {
    let host_and_port = address.rsplit_once(':');
    host_and_port.is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::ResidencyConfig;

    fn faults(text: &str) -> Vec<String> {
        let config: ResidencyConfig = serde_json::from_str(text).unwrap();
        let mut faults = Vec::new();
        config.validate(&mut faults);
        faults
    }

    #[test]
    fn a_whole_configuration_has_no_fault() {
        let good = r#"{
            "region": "eu",
            "regions": {"us": {"gateways": ["gateway.us.example:7710"]}, "cn": {}},
            "tags": {"gdpr": "eu"},
            "collections": {"docs": "gdpr"},
            "tenants": {"acme": "us", "zhang": "cn"}
        }"#;
        assert_eq!(faults(good), Vec::<String>::new());
        assert_eq!(faults("{}"), Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_told_by_its_key() {
        let told = [
            (r#"{"tenants": {"a": "eu"}}"#, "residency.region is not set"),
            (
                r#"{"region": "eu", "regions": {"eu": {}}}"#,
                "this gateway's own region",
            ),
            (
                r#"{"region": "eu", "regions": {"us": {"gateways": ["http://us:1/"]}}}"#,
                "regions.us.gateways has `http://us:1/`",
            ),
            (
                r#"{"region": "eu", "tags": {"gdpr": "es"}}"#,
                "tags.gdpr is `es`, which is neither",
            ),
            (
                r#"{"region": "eu", "regions": {"us": {}}, "tags": {"us": "eu"}}"#,
                "tags.us is `eu`; the name of a region",
            ),
            (
                r#"{"region": "eu", "tags": {"": "eu"}}"#,
                "has a tag of 0 bytes",
            ),
            (
                r#"{"region": "eu", "collections": {"docs": "ue"}}"#,
                "collections.docs is `ue`, which is the tag of no region: they are `eu`",
            ),
            (
                r#"{"region": "eu", "tenants": {"acme": "us"}}"#,
                "tenants.acme is `us`",
            ),
            (
                r#"{"region": "eu", "tenants": {"a/b": "eu"}}"#,
                "tenants has `a/b`",
            ),
        ];
        for (text, wanted) in told {
            let found = faults(text);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].contains(wanted), "{wanted}: {found:?}");
        }
        assert!(serde_json::from_str::<ResidencyConfig>(r#"{"regoin": "eu"}"#).is_err());
    }
}
