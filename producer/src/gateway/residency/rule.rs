//! The rule that a call's records are placed by. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::http::HeaderMap;
use shoal_schemas::{
    Collection, CollectionName, PointId, RegionName,
    headers::{MAX_RESIDENCY_BYTES, RESIDENCY},
    route::PREFIX_END,
};

use super::{FORWARDED_FROM, ResidencyConfig, config::is_tag};

/// Characters of a caller's text that an error shows.
const SHOWN: usize = 80;

/// Why a record is written nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResidencyError {
    /// The header does not read.
    #[error(
        "header `{RESIDENCY}` does not read: allowed is one tag of 1 to {MAX_RESIDENCY_BYTES} bytes"
    )]
    Malformed,
    /// This gateway does not know where it is.
    #[error(
        "residency `{tag}` cannot be kept: this gateway has no gateway.residency.region; set it, or send the call to a gateway that has"
    )]
    Off {
        /// What the call says.
        tag: String,
    },
    /// No region has the tag.
    #[error(
        "residency `{tag}` is of no region that this gateway knows: they are {known}; use one of these, or set its region in gateway.residency.tags"
    )]
    Unknown {
        /// What the call says.
        tag: String,
        /// The tags there are.
        known: String,
    },
    /// The configuration says otherwise.
    #[error(
        "residency `{tag}` (region `{region}`) is not allowed: {whose} is kept in region `{kept_in}` by gateway.residency; leave the tag out, or say one of that region"
    )]
    NotAllowed {
        /// What the call says.
        tag: String,
        /// Its region.
        region: RegionName,
        /// The tenant or the collection.
        whose: String,
        /// The region of its tag.
        kept_in: RegionName,
    },
    /// Several names of one collection are kept in several regions.
    #[error(
        "collection `{collection}` is kept in `{region}` and, under another of its names, in `{other}`: mend gateway.residency.collections"
    )]
    Torn {
        /// As the call names it.
        collection: CollectionName,
        /// One region.
        region: RegionName,
        /// Another one.
        other: RegionName,
    },
    /// Another region's, and no way there.
    #[error(
        "residency `{tag}` is of region `{region}`, this gateway writes in `{own}` and sends nothing there; send the call to a gateway of `{region}`, or name one in gateway.residency.regions.{region}.gateways"
    )]
    NoWay {
        /// The tag.
        tag: String,
        /// Its region.
        region: RegionName,
        /// This gateway's.
        own: RegionName,
    },
    /// Another gateway takes this one for one of that region.
    #[error(
        "residency `{tag}` is of region `{region}`, and the gateway of `{from}` sent it to one of `{own}`; mend gateway.residency on both, they have to agree"
    )]
    NotHere {
        /// The tag.
        tag: String,
        /// Its region.
        region: RegionName,
        /// This gateway's.
        own: RegionName,
        /// Where the call comes from.
        from: String,
    },
}

impl ResidencyError {
    /// The reason in a word, for the metrics.
    pub(in crate::gateway) fn reason(&self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Off { .. } => "off",
            Self::Unknown { .. } => "unknown",
            Self::NotAllowed { .. } => "not_allowed",
            Self::Torn { .. } => "torn",
            Self::NoWay { .. } => "no_way",
            Self::NotHere { .. } => "not_here",
        }
    }
}

/// What a call says of where its records have to stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::gateway) struct Said {
    tag: Option<String>,
    /// The region of the gateway that sent it on.
    from: Option<String>,
}

impl Said {
    /// Reads the headers of a call, over gRPC or HTTP.
    pub(in crate::gateway) fn of(headers: &HeaderMap) -> Result<Self, ResidencyError> {
        let mut tags = BTreeSet::new();
        for value in headers.get_all(RESIDENCY) {
            let tag = value.to_str().map(str::trim);
            let tag = tag.ok().filter(|tag| is_tag(tag));
            tags.insert(tag.ok_or(ResidencyError::Malformed)?);
        }
        if tags.len() > 1 {
            return Err(ResidencyError::Malformed);
        }
        let from = headers.get(FORWARDED_FROM);
        Ok(Self {
            tag: tags.first().map(|tag| (*tag).to_owned()),
            from: from.map(|region| shown(&String::from_utf8_lossy(region.as_bytes()))),
        })
    }
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

/// Where one record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) enum Place<'a> {
    /// By this gateway, tagged with its region if the record has a residency.
    Here(Option<&'a RegionName>),
    /// By a gateway of that region.
    There(&'a RegionName),
}

/// A tag and its region.
#[derive(Clone, Debug)]
struct Wanted {
    tag: String,
    region: RegionName,
}

/// The rule that the records of one call are placed by. Cloning shares it.
#[derive(Clone, Debug)]
pub(in crate::gateway) struct Rule {
    config: Arc<ResidencyConfig>,
    said: Option<Wanted>,
    from: Option<String>,
    collection: CollectionName,
    of_collection: Option<Wanted>,
    /// The regions of tenants, by tenant; none where ids have no tenants.
    of_tenants: Arc<BTreeMap<String, Wanted>>,
}

/// What records are placed by.
pub(in crate::gateway) struct Residency {
    config: Arc<ResidencyConfig>,
    tenants: Arc<BTreeMap<String, Wanted>>,
    nobody: Arc<BTreeMap<String, Wanted>>,
}

impl Residency {
    pub(in crate::gateway) fn new(config: ResidencyConfig) -> Self {
        let tenants = config.tenants.iter();
        let tenants = tenants.filter_map(|(name, tag)| {
            let region = config.region_of(tag)?.clone();
            let tag = tag.clone();
            Some((name.clone(), Wanted { tag, region }))
        });
        Self {
            tenants: Arc::new(tenants.collect()),
            nobody: Arc::default(),
            config: Arc::new(config),
        }
    }

    /// The region that this gateway writes in, if it knows.
    pub(in crate::gateway) fn own(&self) -> Option<&RegionName> {
        self.config.region.as_ref()
    }

    /// The rule for a call to a collection, by the name that it is called.
    pub(in crate::gateway) fn rule(
        &self,
        called: &CollectionName,
        collection: &Collection,
        said: &Said,
    ) -> Result<Rule, ResidencyError> {
        let wanted = |tag: &str| {
            let region = self.config.region_of(tag).cloned();
            region.map(|region| Wanted {
                tag: tag.to_owned(),
                region,
            })
        };
        let said_tag = match &said.tag {
            None => None,
            Some(tag) if self.config.region.is_none() => {
                return Err(ResidencyError::Off { tag: shown(tag) });
            }
            Some(tag) => Some(wanted(tag).ok_or_else(|| ResidencyError::Unknown {
                tag: shown(tag),
                known: self.config.known(),
            })?),
        };
        let names = [called, &collection.name, collection.home()].into_iter();
        let names = names.chain(&collection.fed_by);
        let mut of_collection: Option<Wanted> = None;
        for name in names {
            let tag = self.config.collections.get(name);
            let Some(found) = tag.and_then(|tag| wanted(tag)) else {
                continue;
            };
            match &of_collection {
                Some(other) if other.region != found.region => {
                    return Err(ResidencyError::Torn {
                        collection: called.clone(),
                        region: other.region.clone(),
                        other: found.region,
                    });
                }
                Some(_) => {}
                None => of_collection = Some(found),
            }
        }
        let tenants = if collection.has_tenants() {
            &self.tenants
        } else {
            &self.nobody
        };
        Ok(Rule {
            config: Arc::clone(&self.config),
            said: said_tag,
            from: said.from.clone(),
            collection: called.clone(),
            of_collection,
            of_tenants: Arc::clone(tenants),
        })
    }
}

impl Rule {
    /// Where the record of an id is written.
    pub(in crate::gateway) fn place(&self, id: &PointId) -> Result<Place<'_>, ResidencyError> {
        let tenant = id.as_str().split_once(PREFIX_END).map(|(tenant, _)| tenant);
        let of_tenant = tenant.and_then(|tenant| Some((tenant, self.of_tenants.get(tenant)?)));
        let kept = of_tenant
            .map(|(_, wanted)| wanted)
            .or(self.of_collection.as_ref());
        let wanted = match (kept, &self.said) {
            (None, None) => return Ok(Place::Here(None)),
            (Some(kept), Some(said)) if kept.region != said.region => {
                let whose = of_tenant.map_or_else(
                    || format!("collection `{}`", self.collection),
                    |(tenant, _)| format!("tenant `{}`", shown(tenant)),
                );
                return Err(ResidencyError::NotAllowed {
                    tag: said.tag.clone(),
                    region: said.region.clone(),
                    whose,
                    kept_in: kept.region.clone(),
                });
            }
            (Some(wanted), _) | (None, Some(wanted)) => wanted,
        };
        let region = &wanted.region;
        let Some(own) = &self.config.region else {
            let tag = wanted.tag.clone();
            return Err(ResidencyError::Off { tag });
        };
        if region == own {
            return Ok(Place::Here(Some(own)));
        }
        let (tag, own) = (wanted.tag.clone(), own.clone());
        if let Some(from) = self.from.clone() {
            let region = region.clone();
            return Err(ResidencyError::NotHere {
                tag,
                region,
                own,
                from,
            });
        }
        let there = self.config.regions.get(region);
        if there.is_none_or(|there| there.gateways.is_empty()) {
            let region = region.clone();
            return Err(ResidencyError::NoWay { tag, region, own });
        }
        Ok(Place::There(region))
    }
}

#[cfg(test)]
#[path = "rule_tests.rs"]
mod tests;
