//! A tenant: all points whose ids share the part before the first `/`.
//!
//! Where a collection routes by that part, a tenant lives in one shard; where it routes by ranges of
//! ids, in those few whose ranges hold ids that begin so. A search that names a tenant asks these
//! shards alone. It is a way to ask, not a right: whoever may search a collection may name any
//! tenant of it.

use std::{fmt, ops::RangeInclusive};

use crate::{
    Collection, Partition,
    point::MAX_ID_BYTES,
    route::{self, PREFIX_END},
};

/// The part of ids before their first `/`; 1 to 510 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(String);

/// Why a tenant is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TenantError {
    /// The collection spreads one tenant's points over all shards.
    #[error(
        "tenant `{tenant}` cannot be asked for: collection `{collection}` routes by the whole id, so a tenant has no shard of its own; filter on a declared field instead, or make a collection with route_by_key_prefix or split_keys"
    )]
    NotRouted {
        /// As given.
        tenant: String,
        /// The collection.
        collection: String,
    },
    /// Its length.
    #[error("tenant has {bytes} bytes, allowed are 1 to {}", MAX_ID_BYTES - 2)]
    Length {
        /// As given.
        bytes: usize,
    },
    /// A `/`, where a tenant ends.
    #[error("tenant `{tenant}` holds a `/`; a tenant is the part of an id before its first `/`")]
    Slash {
        /// Its first characters.
        tenant: String,
    },
}

impl Tenant {
    /// Checks a tenant of a collection.
    ///
    /// # Errors
    /// [`TenantError`].
    pub fn new(text: &str, collection: &Collection) -> Result<Self, TenantError> {
        let shown = || text.chars().take(80).collect();
        if !collection.has_tenants() {
            return Err(TenantError::NotRouted {
                tenant: shown(),
                collection: collection.name.to_string(),
            });
        }
        // An id holds the tenant, the slash and at least one byte behind it.
        if !(1..=MAX_ID_BYTES - 2).contains(&text.len()) {
            return Err(TenantError::Length { bytes: text.len() });
        }
        if text.contains(PREFIX_END) {
            return Err(TenantError::Slash { tenant: shown() });
        }
        Ok(Self(text.to_owned()))
    }

    /// The tenant as it was given; the empty text is none.
    ///
    /// # Errors
    /// [`TenantError`].
    pub fn asked(text: &str, collection: &Collection) -> Result<Option<Self>, TenantError> {
        if text.is_empty() {
            return Ok(None);
        }
        Self::new(text, collection).map(Some)
    }

    /// Whether a point of this id is the tenant's.
    pub fn holds(&self, id: &str) -> bool {
        id.split_once(PREFIX_END)
            .is_some_and(|(prefix, _)| prefix == self.0)
    }

    /// The only shards with points of the tenant.
    pub fn shards(&self, collection: &Collection) -> RangeInclusive<Partition> {
        route::partitions_of_prefix(collection, &self.0)
    }

    /// The tenant's text, without the `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::{Tenant, TenantError};
    use crate::{Collection, Metric, PointId, route};

    fn collection(route_by_key_prefix: bool) -> Collection {
        let dim = 3.try_into().unwrap();
        Collection {
            route_by_key_prefix,
            ..Collection::new("docs".parse().unwrap(), dim, Metric::L2, 7)
        }
    }

    #[test]
    fn a_collection_without_prefix_routing_has_no_tenants() {
        let refused = Tenant::new("a", &collection(false)).unwrap_err();
        assert!(
            refused.to_string().contains("route_by_key_prefix"),
            "{refused}"
        );
        assert_eq!(Tenant::asked("", &collection(false)), Ok(None));
    }

    #[test]
    fn a_tenant_ends_before_the_slash() {
        let docs = collection(true);
        assert!(matches!(
            Tenant::new("a/b", &docs),
            Err(TenantError::Slash { .. })
        ));
        for text in [String::new(), "x".repeat(511)] {
            let refused = Tenant::new(&text, &docs);
            assert!(matches!(refused, Err(TenantError::Length { .. })));
        }
        let tenant = Tenant::new("a", &docs).unwrap();
        assert!(tenant.holds("a/1") && tenant.holds("a/b/c"));
        assert!(!tenant.holds("a") && !tenant.holds("ab/1") && !tenant.holds("b/a/1"));
    }

    proptest! {
        #[test]
        fn every_point_of_a_tenant_is_in_its_shard(tenant in "[^/]{1,20}", rest in ".{1,20}") {
            let docs = collection(true);
            let id = PointId::new(&format!("{tenant}/{rest}")).unwrap();
            let tenant = Tenant::new(&tenant, &docs).unwrap();
            prop_assert!(tenant.holds(id.as_str()));
            let shard = route::partition_of(&docs, &id);
            prop_assert_eq!(tenant.shards(&docs), shard..=shard);
        }

        #[test]
        fn every_point_of_a_tenant_is_in_a_shard_whose_range_can_hold_it(
            splits in proptest::collection::btree_set("[ab/0]{1,4}", 1..6),
            tenant in "[ab]{1,3}",
            rest in "[ab/0]{1,4}",
        ) {
            let mut docs = collection(false);
            docs.partitions = u32::try_from(splits.len() + 1).unwrap();
            docs.split_keys = splits.into_iter().collect();
            prop_assert!(docs.check().is_ok());
            let id = PointId::new(&format!("{tenant}/{rest}")).unwrap();
            let tenant = Tenant::new(&tenant, &docs).unwrap();
            prop_assert!(tenant.shards(&docs).contains(&route::partition_of(&docs, &id)));
            // None is asked in vain: each of its ranges begins before the tenant's ids end.
            let shards = tenant.shards(&docs);
            for shard in shards.start().0 + 1..=shards.end().0 {
                let split = &docs.split_keys[usize::try_from(shard - 1).unwrap()];
                prop_assert!(tenant.holds(split) || *split == format!("{tenant}/"), "{split}");
            }
        }
    }
}
