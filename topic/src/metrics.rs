//! Names of this crate's metrics. `docs/metrics.md` lists them under "topic".

use metrics::{Unit, describe_counter, describe_gauge};

/// Records of the control topic that did not read and were skipped.
pub const CONTROL_SKIPPED: &str = "shoal_control_skipped_total";
/// Offset up to which the control topic is known.
pub const CONTROL_NEXT_OFFSET: &str = "shoal_control_next_offset";
/// Lookups of writer schemas at the registry, by `outcome`: `found`, `unknown`, `unusable`,
/// `unavailable`.
pub const REGISTRY_LOOKUPS: &str = "shoal_registry_lookups_total";
/// Records that Kafka did not take, by `reason`: `unreachable`, `missing`, `too_large`, `refused`.
pub const WRITE_FAILURES: &str = "shoal_kafka_write_failures_total";
/// Changes of what this node owns, by `change`: `assigned`, `revoked`, `lost`.
pub const REBALANCES: &str = "shoal_kafka_rebalances_total";

/// Tells the recorder what each metric means. Call once, after the recorder is installed.
pub fn describe() {
    describe_counter!(
        CONTROL_SKIPPED,
        Unit::Count,
        "Records of the control topic that did not read"
    );
    describe_gauge!(
        CONTROL_NEXT_OFFSET,
        Unit::Count,
        "Offset up to which the control topic is known"
    );
    describe_counter!(
        REGISTRY_LOOKUPS,
        Unit::Count,
        "Lookups of writer schemas at the registry, by outcome"
    );
    describe_counter!(
        WRITE_FAILURES,
        Unit::Count,
        "Records that Kafka did not take, by reason"
    );
    describe_counter!(
        REBALANCES,
        Unit::Count,
        "Changes of what this node owns, by change"
    );
}
