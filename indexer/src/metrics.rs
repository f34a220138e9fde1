//! Names of the indexer's metrics, described once. Listed in `docs/metrics.md`.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};

/// Records fetched. Labels: `shard`.
pub const RECORDS_IN_TOTAL: &str = "indexer_records_in_total";
/// Records applied. Labels: `shard`, `outcome` (`upsert`, `delete`, `stale`, `contested`).
pub const RECORDS_APPLIED_TOTAL: &str = "indexer_records_applied_total";
/// Records refused and sent to the dead-letter topic. Labels: `shard`, `reason`.
pub const RECORDS_REJECTED_TOTAL: &str = "indexer_records_rejected_total";
/// Records whose version was below an earlier one of their source. Labels: `shard`.
pub const RECORDS_REORDERED_TOTAL: &str = "indexer_records_reordered_total";
/// From a record's Kafka timestamp to its first visibility. Labels: `shard`.
pub const EVENT_TO_SEARCHABLE_SECONDS: &str = "indexer_event_to_searchable_seconds";
/// Records between what is applied and the broker's end. Labels: `shard`.
pub const LAG_RECORDS: &str = "indexer_lag_records";
/// Time since the shard last held everything the broker had. Labels: `shard`.
pub const LAG_SECONDS: &str = "indexer_lag_seconds";
/// Bytes of the shard's own log on disk. Labels: `shard`.
pub const WAL_BYTES: &str = "indexer_wal_bytes";
/// Memory the shard's graphs hold. Labels: `shard`.
pub const INDEX_BYTES: &str = "indexer_index_bytes";
/// Served points, expired ones too. Labels: `shard`.
pub const POINTS: &str = "indexer_points";
/// Ids whose newest record was refused. Labels: `shard`.
pub const CONTESTED_IDS: &str = "indexer_contested_ids";
/// Rows not yet in a graph, scanned by every search. Labels: `shard`.
pub const MEMTABLE_ROWS: &str = "indexer_memtable_rows";
/// 1 while a limit of the node, or a full disk, stops ingest, else 0.
pub const INGEST_STOPPED: &str = "indexer_ingest_stopped";
/// Segments a search looks into. Labels: `shard`.
pub const SEGMENTS: &str = "indexer_segments";
/// Rows folded into a graph. Labels: `shard`.
pub const ROWS_FOLDED_TOTAL: &str = "indexer_rows_folded_total";
/// Time to store a checkpoint.
pub const CHECKPOINT_SECONDS: &str = "indexer_checkpoint_seconds";
/// Time to build a segment by compaction.
pub const INDEX_BUILD_SECONDS: &str = "index_build_duration_seconds";
/// Processor time a shard's own threads take, in processors. Labels: `shard`, `thread`
/// (`writer`, `builder`).
pub const SHARD_CPU: &str = "shard_cpu_utilization";
/// Time for one request of a query node, waiting for tokens included. Labels: `verb`.
pub const SHARD_REQUEST_SECONDS: &str = "indexer_request_seconds";
/// Searches answered, one a shard and query. Labels: `shard`.
pub const SEARCHES_TOTAL: &str = "indexer_searches_total";
/// Snapshots taken, or not. Labels: `shard`, `outcome` (`taken`, `failed`).
pub const SNAPSHOTS_TOTAL: &str = "indexer_snapshots_total";
/// Bytes sent to the object store for snapshots. Labels: `shard`.
pub const SNAPSHOT_SENT_BYTES_TOTAL: &str = "indexer_snapshot_sent_bytes_total";
/// Time to take one snapshot.
pub const SNAPSHOT_SECONDS: &str = "indexer_snapshot_seconds";

/// Partial and conditional changes resolved. Labels: `shard`, `outcome` (`written`, `condition`,
/// `missing`, `refused`, `busy`, `late`, `failed`, `unknown`).
pub const RESOLVES_TOTAL: &str = "indexer_resolves_total";
/// Times a change was made anew because somebody else's record came between. Labels: `shard`.
pub const RESOLVED_AGAIN_TOTAL: &str = "indexer_resolved_again_total";
/// Time to resolve one change, until the shard has applied it.
pub const RESOLVE_SECONDS: &str = "indexer_resolve_seconds";

/// Describes them all to the recorder.
pub fn describe() {
    for (name, text) in [
        (RECORDS_IN_TOTAL, "records fetched"),
        (RECORDS_APPLIED_TOTAL, "records applied"),
        (RECORDS_REJECTED_TOTAL, "records refused"),
        (
            RECORDS_REORDERED_TOTAL,
            "records with a version below an earlier one of their source",
        ),
        (ROWS_FOLDED_TOTAL, "rows folded into a graph"),
        (SEARCHES_TOTAL, "searches answered, one a shard and query"),
        (RESOLVES_TOTAL, "partial and conditional changes resolved"),
        (
            RESOLVED_AGAIN_TOTAL,
            "changes made anew because another record came between",
        ),
        (SNAPSHOTS_TOTAL, "snapshots taken, or not"),
        (
            SNAPSHOT_SENT_BYTES_TOTAL,
            "bytes sent to the object store for snapshots",
        ),
    ] {
        describe_counter!(name, Unit::Count, text);
    }
    for (name, unit, text) in [
        (LAG_RECORDS, Unit::Count, "records not yet applied"),
        (
            LAG_SECONDS,
            Unit::Seconds,
            "time since the shard held everything the broker had",
        ),
        (WAL_BYTES, Unit::Bytes, "the shard's own log on disk"),
        (INDEX_BYTES, Unit::Bytes, "memory of the graphs"),
        (POINTS, Unit::Count, "served points"),
        (
            CONTESTED_IDS,
            Unit::Count,
            "ids whose newest record was refused",
        ),
        (MEMTABLE_ROWS, Unit::Count, "rows not yet in a graph"),
        (SEGMENTS, Unit::Count, "segments a search looks into"),
        (
            INGEST_STOPPED,
            Unit::Count,
            "1 while a limit of the node or a full disk stops ingest",
        ),
        (
            SHARD_CPU,
            Unit::Count,
            "processors a shard's own threads take",
        ),
    ] {
        describe_gauge!(name, unit, text);
    }
    for (name, text) in [
        (
            EVENT_TO_SEARCHABLE_SECONDS,
            "from a record's timestamp to its visibility",
        ),
        (CHECKPOINT_SECONDS, "time to store a checkpoint"),
        (INDEX_BUILD_SECONDS, "time to build a segment"),
        (SNAPSHOT_SECONDS, "time to take one snapshot"),
        (SHARD_REQUEST_SECONDS, "time a shard takes for one request"),
        (RESOLVE_SECONDS, "time to resolve one change"),
    ] {
        describe_histogram!(name, Unit::Seconds, text);
    }
}
