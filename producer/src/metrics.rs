//! Names of this crate's metrics, and their texts.

use metrics::{describe_counter, describe_gauge, describe_histogram};

/// Records handed to the log. Labels: `kind` (`upsert`, `delete`, `retry`).
pub const RECORDS_SENT_TOTAL: &str = "producer_records_sent_total";
/// Records the log has acknowledged to somebody who waited for it.
pub const RECORDS_ACKNOWLEDGED_TOTAL: &str = "producer_records_acknowledged_total";
/// Records the log did not take, among those somebody waited for.
pub const RECORDS_FAILED_TOTAL: &str = "producer_records_failed_total";
/// Bytes of key and value handed to the log.
pub const SENT_BYTES_TOTAL: &str = "producer_sent_bytes_total";
/// Times a sender found the local queue full.
pub const QUEUE_FULL_TOTAL: &str = "producer_queue_full_total";
/// Calls to the gateway. Labels: `method`, `code` (canonical gRPC code).
pub const GATEWAY_CALLS_TOTAL: &str = "producer_gateway_calls_total";
/// Seconds a gateway call took, until the log had acknowledged it. Label: `method`.
pub const GATEWAY_CALL_SECONDS: &str = "producer_gateway_call_seconds";
/// Gateway calls under way.
pub const GATEWAY_OPEN_CALLS: &str = "producer_gateway_open_calls";

/// Points of conditional writes and patches forwarded to the owners of their shards. Labels: `code`.
pub const GATEWAY_FORWARDED_TOTAL: &str = "producer_gateway_forwarded_total";
/// Calls that a tenant's quota did not take.
pub const GATEWAY_QUOTA_REFUSALS_TOTAL: &str = "producer_gateway_quota_refusals_total";
/// Points sent on to another region's gateway. Labels: `region` (as configured), `code`.
pub const GATEWAY_REGION_POINTS_TOTAL: &str = "producer_gateway_region_points_total";
/// Calls that were refused for their residency. Labels: `reason`.
pub const GATEWAY_RESIDENCY_REFUSALS_TOTAL: &str = "producer_gateway_residency_refusals_total";

/// Gives every metric its text.
pub fn describe() {
    describe_counter!(RECORDS_SENT_TOTAL, "Records handed to the log");
    describe_counter!(
        RECORDS_ACKNOWLEDGED_TOTAL,
        "Records the log has acknowledged"
    );
    describe_counter!(RECORDS_FAILED_TOTAL, "Records the log did not take");
    describe_counter!(SENT_BYTES_TOTAL, "Bytes of key and value handed to the log");
    describe_counter!(
        QUEUE_FULL_TOTAL,
        "Times a sender found the local queue full"
    );
    describe_counter!(GATEWAY_CALLS_TOTAL, "Calls to the gateway");
    describe_histogram!(GATEWAY_CALL_SECONDS, "Seconds a gateway call took");
    describe_counter!(
        GATEWAY_FORWARDED_TOTAL,
        "Points forwarded to the owners of their shards"
    );
    describe_counter!(
        GATEWAY_QUOTA_REFUSALS_TOTAL,
        "Calls that a tenant's quota did not take"
    );
    describe_counter!(
        GATEWAY_REGION_POINTS_TOTAL,
        "Points sent on to another region's gateway"
    );
    describe_counter!(
        GATEWAY_RESIDENCY_REFUSALS_TOTAL,
        "Calls that were refused for their residency"
    );
    describe_gauge!(GATEWAY_OPEN_CALLS, "Gateway calls under way");
}
