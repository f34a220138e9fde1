//! What each tenant may write: records and bytes a second.
//!
//! A tenant is the part of an id before its first `/`, in collections that route by it or by range, and its
//! quota counts over all of them. Where ids have no tenant there is no quota. Writing is paid for
//! afterwards: a call is taken while its tenant is not over a second ahead of its rate, and then
//! as a whole, so that a batch that is larger than a second's worth is taken, too, and its tenant
//! waits the longer. Each gateway counts for itself; records that go to Kafka directly pass it by.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU64,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use shoal_runtime::clock::Clock;
use shoal_schemas::{Collection, route::PREFIX_END};

use crate::metrics::GATEWAY_QUOTA_REFUSALS_TOTAL;

/// How far ahead of its rate a tenant may be when a call is taken.
const AHEAD: Duration = Duration::from_secs(1);
/// Tenants remembered before those are forgotten that are not ahead of their rates.
const REMEMBERED: usize = 10_000;

/// Quotas of tenants, section `[gateway.quota]`. Default: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaConfig {
    /// Of every tenant that `tenants` does not name. Default no limit.
    pub each: Rate,
    /// Of the tenants named here, in place of `each`. Default none.
    pub tenants: BTreeMap<String, Rate>,
}

/// What may be written a second. What is not set is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rate {
    /// Records, deletes included. Default no limit.
    pub records_per_second: Option<NonZeroU64>,
    /// Bytes of their ids and encoded values; of patches, as they are sent. Default no limit.
    ///
    /// A point of 384 components takes about 1.6 KiB.
    pub bytes_per_second: Option<ByteSize>,
}

impl QuotaConfig {
    /// Adds its faults.
    pub(super) fn validate(&self, faults: &mut Vec<String>) {
        for tenant in self.tenants.keys() {
            if tenant.is_empty() || tenant.contains(PREFIX_END) {
                faults.push(format!(
                    "gateway.quota.tenants has `{tenant}`; a tenant is the part of an id before \
                     its first `/`"
                ));
            }
        }
        let named = self
            .tenants
            .iter()
            .map(|(name, rate)| (format!("tenants.{name}"), rate));
        let all = named.chain([("each".to_owned(), &self.each)]);
        for (key, rate) in all {
            if rate
                .bytes_per_second
                .is_some_and(|bytes| bytes.as_u64() == 0)
            {
                faults.push(format!(
                    "gateway.quota.{key}.bytes_per_second is 0, allowed is 1 B and more"
                ));
            }
        }
    }

    fn of(&self, tenant: &str) -> &Rate {
        self.tenants.get(tenant).unwrap_or(&self.each)
    }
}

/// A tenant has written as much as it may for now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "tenant `{tenant}` is over its quota of {limit} {unit} a second, nothing was published; repeat the call in {} ms", .retry_after.as_millis()
)]
pub struct QuotaError {
    /// The tenant.
    pub tenant: String,
    /// Its quota.
    pub limit: u64,
    /// `records` or `bytes`.
    pub unit: &'static str,
    /// When the call may be taken.
    pub retry_after: Duration,
}

/// When what a tenant has written is paid for, by the monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
struct Paid {
    records: Duration,
    bytes: Duration,
}

/// What a call writes of one tenant.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    records: u64,
    bytes: u64,
}

/// The quotas, and who has used how much.
pub(super) struct Quotas {
    config: QuotaConfig,
    clock: Arc<dyn Clock>,
    paid: Mutex<HashMap<String, Paid>>,
}

impl Quotas {
    pub(super) fn new(config: QuotaConfig, clock: Arc<dyn Clock>) -> Self {
        Self {
            config,
            clock,
            paid: Mutex::default(),
        }
    }

    /// Takes records, by id and bytes of value: all of them, or none where a tenant is ahead.
    pub(super) fn take<'a>(
        &self,
        collection: &Collection,
        records: impl Iterator<Item = (&'a str, usize)>,
    ) -> Result<(), QuotaError> {
        if !collection.has_tenants() || self.config == QuotaConfig::default() {
            return Ok(());
        }
        let mut wanted: BTreeMap<&str, Written> = BTreeMap::new();
        for (id, value_bytes) in records {
            if let Some((tenant, _)) = id.split_once(PREFIX_END) {
                let of_tenant = wanted.entry(tenant).or_default();
                of_tenant.records += 1;
                of_tenant.bytes += u64::try_from(id.len() + value_bytes).unwrap_or(u64::MAX);
            }
        }
        let now = self.clock.monotonic();
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        for tenant in wanted.keys() {
            let held = paid.get(*tenant).copied().unwrap_or_default();
            if let Err(error) = self.check(tenant, held, now) {
                metrics::counter!(GATEWAY_QUOTA_REFUSALS_TOTAL).increment(1);
                return Err(error);
            }
        }
        if paid.len() + wanted.len() > REMEMBERED {
            paid.retain(|_, held| held.records > now || held.bytes > now);
        }
        for (tenant, written) in wanted {
            let rate = self.config.of(tenant);
            let held = paid.entry(tenant.to_owned()).or_default();
            if let Some(limit) = rate.records_per_second {
                held.records = held.records.max(now) + time_of(written.records, limit.get());
            }
            if let Some(limit) = rate.bytes_per_second {
                held.bytes = held.bytes.max(now) + time_of(written.bytes, limit.as_u64());
            }
        }
        Ok(())
    }

    fn check(&self, tenant: &str, held: Paid, now: Duration) -> Result<(), QuotaError> {
        let rate = self.config.of(tenant);
        let records = rate.records_per_second.map(NonZeroU64::get);
        let bytes = rate.bytes_per_second.map(|bytes| bytes.as_u64());
        for (limit, unit, paid) in [
            (records, "records", held.records),
            (bytes, "bytes", held.bytes),
        ] {
            let Some(limit) = limit else { continue };
            let retry_after = paid.saturating_sub(now + AHEAD);
            if !retry_after.is_zero() {
                return Err(QuotaError {
                    tenant: tenant.chars().take(80).collect(),
                    limit,
                    unit,
                    // Rounded up, so that whoever waits so long is taken.
                    retry_after: Duration::from_millis(
                        u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX - 1) + 1,
                    ),
                });
            }
        }
        Ok(())
    }
}

/// How long so much takes at this rate.
fn time_of(amount: u64, per_second: u64) -> Duration {
    let per_second = u128::from(per_second.max(1));
    let nanos = u128::from(amount) * 1_000_000_000 / per_second;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{sync::Arc, time::Duration};

    use bytesize::ByteSize;
    use shoal_runtime::clock::{Clock, Manual};
    use shoal_schemas::{Collection, Metric};

    use super::{QuotaConfig, Quotas, Rate};

    fn shop(route_by_key_prefix: bool) -> Collection {
        let dim = 3.try_into().unwrap();
        Collection {
            route_by_key_prefix,
            ..Collection::new("shop".parse().unwrap(), dim, Metric::L2, 2)
        }
    }

    fn quotas(clock: &Arc<Manual>) -> Quotas {
        let config = QuotaConfig {
            each: Rate {
                records_per_second: 10.try_into().ok(),
                bytes_per_second: None,
            },
            tenants: [
                ("big".to_owned(), Rate::default()),
                (
                    "heavy".to_owned(),
                    Rate {
                        records_per_second: None,
                        bytes_per_second: Some(ByteSize::b(100)),
                    },
                ),
            ]
            .into(),
        };
        let clock: Arc<dyn Clock> = Arc::<Manual>::clone(clock);
        Quotas::new(config, clock)
    }

    fn records(tenant: &str, count: usize) -> Vec<String> {
        (0..count).map(|n| format!("{tenant}/{n}")).collect()
    }

    fn take(quotas: &Quotas, ids: &[String]) -> Result<(), super::QuotaError> {
        quotas.take(&shop(true), ids.iter().map(|id| (id.as_str(), 0)))
    }

    #[test]
    fn a_tenant_writes_at_its_rate_with_a_second_ahead() {
        let clock = Manual::at(0);
        let quotas = quotas(&clock);
        take(&quotas, &records("acme", 10)).unwrap();
        // A second ahead is allowed, more is not.
        take(&quotas, &records("acme", 1)).unwrap();
        let refused = take(&quotas, &records("acme", 1)).unwrap_err();
        assert_eq!((refused.limit, refused.unit), (10, "records"));
        assert!(refused.to_string().contains("`acme`"), "{refused}");
        clock.advance(refused.retry_after);
        take(&quotas, &records("acme", 1)).unwrap();
        take(&quotas, &records("acme", 1)).unwrap_err();
        take(&quotas, &records("other", 10)).unwrap();
        take(&quotas, &records("big", 100_000)).unwrap();
        take(&quotas, &records("big", 100_000)).unwrap();
    }

    #[test]
    fn a_batch_above_the_rate_is_taken_and_paid_for_afterwards() {
        let clock = Manual::at(0);
        let quotas = quotas(&clock);
        take(&quotas, &records("acme", 100)).unwrap();
        let refused = take(&quotas, &records("acme", 1)).unwrap_err();
        assert!(refused.retry_after > Duration::from_secs(8), "{refused:?}");
        clock.advance(Duration::from_millis(8500));
        take(&quotas, &records("acme", 1)).unwrap_err();
        clock.advance(Duration::from_secs(1));
        take(&quotas, &records("acme", 1)).unwrap();
    }

    #[test]
    fn bytes_count_with_the_id() {
        let clock = Manual::at(0);
        let quotas = quotas(&clock);
        let shop = shop(true);
        let take = |bytes| quotas.take(&shop, [("heavy/1", bytes)].into_iter());
        take(93).unwrap();
        take(94).unwrap();
        let refused = take(0).unwrap_err();
        assert_eq!((refused.limit, refused.unit), (100, "bytes"));
    }

    #[test]
    fn one_tenant_over_its_quota_keeps_the_whole_call_out_and_nobody_pays() {
        let clock = Manual::at(0);
        let quotas = quotas(&clock);
        take(&quotas, &records("acme", 100)).unwrap();
        let both = [records("zoo", 10), records("acme", 1)].concat();
        take(&quotas, &both).unwrap_err();
        take(&quotas, &records("zoo", 10)).unwrap();
        take(&quotas, &records("zoo", 1)).unwrap();
    }

    #[test]
    fn ids_without_a_tenant_have_no_quota() {
        let clock = Manual::at(0);
        let quotas = quotas(&clock);
        let plain: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
        take(&quotas, &plain).unwrap();
        take(&quotas, &plain).unwrap();
        let ids = records("acme", 1000);
        for _ in 0..2 {
            let sizes = ids.iter().map(|id| (id.as_str(), 0));
            quotas.take(&shop(false), sizes).unwrap();
        }
    }

    #[test]
    fn faults_are_told_by_their_key() {
        let config = QuotaConfig {
            each: Rate {
                bytes_per_second: Some(ByteSize::b(0)),
                ..Rate::default()
            },
            tenants: [("a/b".to_owned(), Rate::default())].into(),
        };
        let mut faults = Vec::new();
        config.validate(&mut faults);
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(faults[0].contains("`a/b`") && faults[1].contains("each.bytes_per_second"));
    }
}
