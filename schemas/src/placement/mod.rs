//! Which nodes may serve a shard, and which of them is given it.
//!
//! A node has labels, a collection names those it asks for: for all of its shards, and further ones
//! for the shards that hold a tenant's ids. [`assign`] gives each shard to one node that has them,
//! by a consistent-hash ring. Everything here is pure: nodes that see the same nodes and
//! definitions come to the same result without a word between them.

mod ring;

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{collection::Collection, log::Partition, point::MAX_ID_BYTES, route};

pub use ring::{Member, Wanted, assign};

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// Most labels of a node or of a requirement.
pub const MAX_LABELS: usize = 16;
/// Longest name or value of a label.
const MAX_LABEL_BYTES: usize = 64;
/// Most tenants with labels of their own.
const MAX_TENANTS: usize = 1024;

/// Why labels are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Too many.
    #[error("{found} labels are given, allowed are {MAX_LABELS}")]
    Labels {
        /// As given.
        found: usize,
    },
    /// A name or a value.
    #[error(
        "label `{label}` has a name or a value of {bytes} bytes, allowed are 1 to {MAX_LABEL_BYTES}"
    )]
    Length {
        /// The name's first characters.
        label: String,
        /// The length of the name or the value.
        bytes: usize,
    },
    /// Too many tenants.
    #[error("tenant_placement names {found} tenants, allowed are {MAX_TENANTS}")]
    Tenants {
        /// As given.
        found: usize,
    },
    /// A tenant that no id can have.
    #[error("tenant_placement names `{tenant}`, which is no part of an id before its first `/`")]
    Tenant {
        /// Its first characters.
        tenant: String,
    },
    /// Ids without tenants.
    #[error(
        "tenant_placement is set, but a tenant has no shards of its own; it needs route_by_key_prefix or split_keys"
    )]
    NotRouted,
    /// A shard that no node could serve.
    #[error(
        "shard {shard} would need {label}=`{one}` and {label}=`{other}`, which no indexer can have"
    )]
    Conflict {
        /// The shard.
        shard: Partition,
        /// The label's name.
        label: String,
        /// One value.
        one: String,
        /// Another one.
        other: String,
    },
}

/// Checks a node's labels, or those of a requirement.
///
/// # Errors
/// [`PlacementError`] for the first fault.
pub fn check_labels(labels: &Labels) -> Result<(), PlacementError> {
    if labels.len() > MAX_LABELS {
        return Err(PlacementError::Labels {
            found: labels.len(),
        });
    }
    for (name, value) in labels {
        let lengths = [name.len(), value.len()];
        let wrong = lengths
            .iter()
            .find(|len| !(1..=MAX_LABEL_BYTES).contains(*len));
        if let Some(bytes) = wrong {
            return Err(PlacementError::Length {
                label: name.chars().take(32).collect(),
                bytes: *bytes,
            });
        }
    }
    Ok(())
}

/// Checks a definition's placement.
pub(crate) fn check(collection: &Collection) -> Result<(), PlacementError> {
    check_labels(&collection.placement)?;
    let tenants = &collection.tenant_placement;
    if tenants.is_empty() {
        return Ok(());
    }
    if !collection.has_tenants() {
        return Err(PlacementError::NotRouted);
    }
    if tenants.len() > MAX_TENANTS {
        return Err(PlacementError::Tenants {
            found: tenants.len(),
        });
    }
    let mut of_shards: BTreeMap<Partition, Labels> = BTreeMap::new();
    for (tenant, labels) in tenants {
        check_labels(labels)?;
        let is_tenant =
            (1..=MAX_ID_BYTES - 2).contains(&tenant.len()) && !tenant.contains(route::PREFIX_END);
        if !is_tenant {
            return Err(PlacementError::Tenant {
                tenant: tenant.chars().take(80).collect(),
            });
        }
        for shard in shards_of(collection, tenant) {
            let of_shard = of_shards.entry(shard).or_default();
            for (name, value) in labels {
                let asked = of_shard
                    .get(name)
                    .or_else(|| collection.placement.get(name));
                if let Some(other) = asked.filter(|other| *other != value) {
                    return Err(PlacementError::Conflict {
                        shard,
                        label: name.clone(),
                        one: other.clone(),
                        other: value.clone(),
                    });
                }
                of_shard.insert(name.clone(), value.clone());
            }
        }
    }
    Ok(())
}

/// The labels that a node has to have to be given this shard.
pub fn required(collection: &Collection, shard: Partition) -> Labels {
    let mut labels = collection.placement.clone();
    for (tenant, further) in &collection.tenant_placement {
        if route::partitions_of_prefix(collection, tenant).contains(&shard) {
            labels.extend(further.clone());
        }
    }
    labels
}

/// Whether a node with these labels may serve what requires those.
pub fn fits(required: &Labels, has: &Labels) -> bool {
    (required.iter()).all(|(name, value)| has.get(name) == Some(value))
}

/// Labels for a person to read, `none` if there are none.
pub fn told(labels: &Labels) -> String {
    let mut text = String::new();
    for (name, value) in labels {
        let parted = if text.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(text, "{parted}{name}={value}");
    }
    if text.is_empty() {
        "none".clone_into(&mut text);
    }
    text
}

fn shards_of(collection: &Collection, tenant: &str) -> impl Iterator<Item = Partition> + use<> {
    let shards = route::partitions_of_prefix(collection, tenant);
    (shards.start().0..=shards.end().0).map(Partition)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{Labels, PlacementError, fits, required, told};
    use crate::{Collection, Metric, Partition, collection::DefinitionError};

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    /// Three ranges: below `hot/`, tenant `hot`, and behind it.
    fn ranged() -> Collection {
        let dim = 3.try_into().unwrap();
        let mut docs = Collection::new("docs".parse().unwrap(), dim, Metric::L2, 3);
        docs.split_keys = vec!["hot/".into(), "hot0".into()];
        docs
    }

    fn refused(collection: &Collection) -> PlacementError {
        match collection.check() {
            Err(DefinitionError::Placement(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_tenants_labels_are_asked_for_its_shards_alone() {
        let mut docs = ranged();
        docs.placement = labels(&[("region", "eu")]);
        docs.tenant_placement = [("hot".to_owned(), labels(&[("gpu", "true")]))].into();
        docs.check().unwrap();
        let of = |shard| told(&required(&docs, Partition(shard)));
        assert_eq!(of(0), "region=eu");
        assert_eq!(of(1), "gpu=true, region=eu");
        assert_eq!(of(2), "region=eu");
    }

    #[test]
    fn a_node_fits_if_it_has_every_label_with_its_value() {
        let node = labels(&[("gpu", "true"), ("region", "eu"), ("disk", "nvme")]);
        assert!(fits(&labels(&[]), &labels(&[])));
        assert!(fits(&labels(&[("gpu", "true"), ("region", "eu")]), &node));
        assert!(!fits(&labels(&[("region", "us")]), &node));
        assert!(!fits(&labels(&[("zone", "a")]), &node));
    }

    #[test]
    fn a_definition_that_no_node_can_satisfy_is_refused() {
        let mut docs = ranged();
        docs.placement = labels(&[("region", "eu")]);
        docs.tenant_placement = [("hot".to_owned(), labels(&[("region", "us")]))].into();
        let told = refused(&docs).to_string();
        assert!(told.contains("shard 1") && told.contains("`us`"), "{told}");

        docs.tenant_placement = [("a/b".to_owned(), labels(&[]))].into();
        assert!(matches!(refused(&docs), PlacementError::Tenant { .. }));
        docs.split_keys = Vec::new();
        assert_eq!(refused(&docs), PlacementError::NotRouted);
        docs.tenant_placement.clear();
        docs.placement = labels(&[("", "eu")]);
        assert!(matches!(refused(&docs), PlacementError::Length { .. }));
        docs.placement = (0..17).map(|n| (n.to_string(), "x".to_owned())).collect();
        assert_eq!(refused(&docs), PlacementError::Labels { found: 17 });
    }
}
