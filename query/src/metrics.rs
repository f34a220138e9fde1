//! The numbers a query node shows. Listed for operators in `docs/metrics.md`.

use std::time::Duration;

use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    histogram,
};

use crate::client::Outcome;

/// Seconds a search took. Labels: `stage` (`total`, `shards`: the part spent waiting for shards).
pub const VECTOR_SEARCH_LATENCY_SECONDS: &str = "vector_search_latency_seconds";
/// Seconds this node and the network added to a search over its slowest shard's own time.
///
/// Only of complete answers without tokens: waiting for a write is nobody's overhead.
pub const QUERY_COORDINATOR_SECONDS: &str = "query_coordinator_seconds";
/// Calls answered. Labels: `verb` (`search`, `search_batch`, `recommend`, `get`, `count`, `scroll`,
/// `shards`), `outcome` (`ok`, `partial`, `caller`, `busy`, `deadline`, `unavailable`).
pub const QUERY_REQUESTS_TOTAL: &str = "query_requests_total";
/// Query vectors answered, those of batches one by one; its rate is queries a second.
pub const QUERY_VECTORS_TOTAL: &str = "query_vectors_total";
/// Shards missing from answers that were given all the same.
pub const QUERY_SHARDS_UNANSWERED_TOTAL: &str = "query_shards_unanswered_total";

/// Second calls made while the first one might still answer. Labels: `outcome` (`won`: it answered
/// first, `lost`).
pub const QUERY_HEDGES_TOTAL: &str = "query_hedges_total";
/// Shards asked for at another replica. Labels: `reason` (`unreachable`, `moved`, `busy`, `behind`,
/// `damaged`, `late`: the node was out meanwhile, or half of the time was over).
pub const QUERY_RETRIES_TOTAL: &str = "query_retries_total";
/// Times an indexer was left alone for a while. Labels: `reason` (`unreachable`, `slow`).
pub const QUERY_INDEXERS_OUT_TOTAL: &str = "query_indexers_out_total";
/// Calls that waited for others to end before they began.
pub const QUERY_CALLS_QUEUED_TOTAL: &str = "query_calls_queued_total";
/// Calls answered with what an equal one under way at the time was answered.
pub const QUERY_SHARED_TOTAL: &str = "query_shared_total";

/// Questions looked up among kept answers. Labels: `outcome` (`fresh`: given without asking,
/// `unchanged`: every shard said that it still holds, `changed`: some shard searched, `missing`,
/// `stale`: given by an edge node that reaches no region).
pub const QUERY_CACHE_LOOKUPS_TOTAL: &str = "query_cache_lookups_total";
/// Kept answers found. Labels: `store` (`memory`, `redis`).
pub const QUERY_CACHE_FOUND_TOTAL: &str = "query_cache_found_total";
/// Kept answers forgotten in memory, because others needed the room.
pub const QUERY_CACHE_EVICTED_TOTAL: &str = "query_cache_evicted_total";
/// Times Redis was not asked, did not answer, or was not sent an answer to keep.
pub const QUERY_CACHE_STORE_FAILURES_TOTAL: &str = "query_cache_store_failures_total";

/// Milliseconds to a region and back, as a smoothed mean of probes. Labels: `region`.
pub const NETWORK_CROSS_REGION_RTT_MS: &str = "network_cross_region_rtt_ms";
/// 1 while a region is asked, 0 while it is left alone. Labels: `region`.
pub const QUERY_EDGE_REGION_REACHABLE: &str = "query_edge_region_reachable";
/// Calls forwarded to a region. Labels: `region`, `outcome` (`answered`, `refused`: by the region
/// for good, `failed`: another one is asked).
pub const QUERY_EDGE_CALLS_TOTAL: &str = "query_edge_calls_total";

/// Shards asked a second time by a search, because all they named was among the nearest.
pub const QUERY_SHARDS_ASKED_AGAIN_TOTAL: &str = "query_shards_asked_again_total";
/// Seconds the embedding endpoint took for a text. Labels: `outcome` (`ok`, `caller`, `deadline`,
/// `unavailable`).
pub const QUERY_EMBED_SECONDS: &str = "query_embed_seconds";

/// Readings of the shard map's source that failed.
pub const QUERY_MAP_FAILURES_TOTAL: &str = "query_map_failures_total";
/// 1 while the shard map is the last good one because its source cannot be read.
pub const QUERY_MAP_STALE: &str = "query_map_stale";

/// What is asked. A label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Search,
    SearchBatch,
    Recommend,
    Get,
    Count,
    Scroll,
    Shards,
}

impl Verb {
    const ALL: [Self; 7] = [
        Self::Search,
        Self::SearchBatch,
        Self::Recommend,
        Self::Get,
        Self::Count,
        Self::Scroll,
        Self::Shards,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::SearchBatch => "search_batch",
            Self::Recommend => "recommend",
            Self::Get => "get",
            Self::Count => "count",
            Self::Scroll => "scroll",
            Self::Shards => "shards",
        }
    }
}

/// How a call ended. A label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Ok,
    Partial,
    Caller,
    Busy,
    Deadline,
    Unavailable,
}

impl Ending {
    const ALL: [Self; 6] = [
        Self::Ok,
        Self::Partial,
        Self::Caller,
        Self::Busy,
        Self::Deadline,
        Self::Unavailable,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Partial => "partial",
            Self::Caller => "caller",
            Self::Busy => "busy",
            Self::Deadline => "deadline",
            Self::Unavailable => "unavailable",
        }
    }
}

/// What a hedge was good for. A label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hedged {
    Won,
    Lost,
}

/// Why another replica was asked. A label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retried {
    Unreachable,
    Moved,
    Busy,
    Behind,
    Damaged,
    Late,
}

impl Retried {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Unreachable, "unreachable"),
        (Self::Moved, "moved"),
        (Self::Busy, "busy"),
        (Self::Behind, "behind"),
        (Self::Damaged, "damaged"),
        (Self::Late, "late"),
    ];

    /// After that outcome, which is one to retry.
    pub(crate) fn after(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Moved => Self::Moved,
            Outcome::Busy => Self::Busy,
            Outcome::Behind => Self::Behind,
            Outcome::Damaged => Self::Damaged,
            _ => Self::Unreachable,
        }
    }
}

/// Why an indexer is left alone. A label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WentOut {
    Unreachable,
    Slow,
}

/// The metrics' handles, looked up once.
pub(crate) struct Meters {
    total: Histogram,
    shards: Histogram,
    coordinator: Histogram,
    vectors: Counter,
    unanswered: Counter,
    requests: Vec<(Verb, Ending, Counter)>,
    hedges_won: Counter,
    hedges_lost: Counter,
    retries: Vec<(Retried, Counter)>,
    out_unreachable: Counter,
    out_slow: Counter,
    queued: Counter,
    shared: Counter,
    asked_again: Counter,
}

impl Meters {
    pub(crate) fn new() -> Self {
        describe();
        let by_verb = Verb::ALL.into_iter().flat_map(|verb| {
            Ending::ALL.into_iter().map(move |ending| {
                let labels = [("verb", verb.label()), ("outcome", ending.label())];
                (verb, ending, counter!(QUERY_REQUESTS_TOTAL, &labels))
            })
        });
        Self {
            total: histogram!(VECTOR_SEARCH_LATENCY_SECONDS, "stage" => "total"),
            shards: histogram!(VECTOR_SEARCH_LATENCY_SECONDS, "stage" => "shards"),
            coordinator: histogram!(QUERY_COORDINATOR_SECONDS),
            vectors: counter!(QUERY_VECTORS_TOTAL),
            unanswered: counter!(QUERY_SHARDS_UNANSWERED_TOTAL),
            requests: by_verb.collect(),
            hedges_won: counter!(QUERY_HEDGES_TOTAL, "outcome" => "won"),
            hedges_lost: counter!(QUERY_HEDGES_TOTAL, "outcome" => "lost"),
            retries: (Retried::ALL.into_iter())
                .map(|(why, label)| (why, counter!(QUERY_RETRIES_TOTAL, "reason" => label)))
                .collect(),
            out_unreachable: counter!(QUERY_INDEXERS_OUT_TOTAL, "reason" => "unreachable"),
            out_slow: counter!(QUERY_INDEXERS_OUT_TOTAL, "reason" => "slow"),
            queued: counter!(QUERY_CALLS_QUEUED_TOTAL),
            shared: counter!(QUERY_SHARED_TOTAL),
            asked_again: counter!(QUERY_SHARDS_ASKED_AGAIN_TOTAL),
        }
    }

    pub(crate) fn hedged(&self, outcome: Hedged) {
        match outcome {
            Hedged::Won => self.hedges_won.increment(1),
            Hedged::Lost => self.hedges_lost.increment(1),
        }
    }

    pub(crate) fn retried(&self, why: Retried) {
        let found = self.retries.iter().find(|(one, _)| *one == why);
        if let Some((_, counter)) = found {
            counter.increment(1);
        }
    }

    pub(crate) fn went_out(&self, why: WentOut) {
        match why {
            WentOut::Unreachable => self.out_unreachable.increment(1),
            WentOut::Slow => self.out_slow.increment(1),
        }
    }

    pub(crate) fn queued(&self) {
        self.queued.increment(1);
    }

    /// A call got the answer of another one, to so many queries.
    pub(crate) fn shared(&self, queries: usize) {
        self.shared.increment(1);
        self.vectors.increment(u64::try_from(queries).unwrap_or(0));
    }

    pub(crate) fn request(&self, verb: Verb, ending: Ending) {
        let found = self
            .requests
            .iter()
            .find(|(v, e, _)| (*v, *e) == (verb, ending));
        if let Some((_, _, counter)) = found {
            counter.increment(1);
        }
    }

    /// A search was answered.
    pub(crate) fn searched(&self, queries: usize, total: Duration, shards: Duration) {
        self.vectors.increment(u64::try_from(queries).unwrap_or(0));
        self.total.record(total);
        self.shards.record(shards);
    }

    pub(crate) fn coordinated(&self, own: Duration) {
        self.coordinator.record(own);
    }

    pub(crate) fn asked_again(&self, shards: usize) {
        self.asked_again
            .increment(u64::try_from(shards).unwrap_or(0));
    }

    pub(crate) fn unanswered(&self, shards: u32) {
        if shards > 0 {
            self.unanswered.increment(u64::from(shards));
        }
    }
}

/// A text was embedded, or not.
pub(crate) fn embedded(ending: Ending, took: Duration) {
    histogram!(QUERY_EMBED_SECONDS, "outcome" => ending.label()).record(took);
}

fn describe() {
    describe_histogram!(
        VECTOR_SEARCH_LATENCY_SECONDS,
        Unit::Seconds,
        "time a search took, and the part of it spent waiting for shards"
    );
    describe_histogram!(
        QUERY_COORDINATOR_SECONDS,
        Unit::Seconds,
        "time added to a search over its slowest shard's own"
    );
    describe_counter!(QUERY_REQUESTS_TOTAL, "calls answered, by verb and outcome");
    describe_counter!(QUERY_VECTORS_TOTAL, "query vectors answered");
    describe_counter!(
        QUERY_SHARDS_UNANSWERED_TOTAL,
        "shards missing from answers that were given all the same"
    );
    describe_counter!(
        QUERY_HEDGES_TOTAL,
        "second calls made while the first one might still answer"
    );
    describe_counter!(
        QUERY_MAP_FAILURES_TOTAL,
        "readings of the shard map's source that failed"
    );
    describe_gauge!(
        QUERY_MAP_STALE,
        "1 while the shard map is the last good one"
    );
    describe_counter!(QUERY_RETRIES_TOTAL, "shards asked for at another replica");
    describe_counter!(
        QUERY_INDEXERS_OUT_TOTAL,
        "times an indexer was left alone for a while"
    );
    describe_counter!(
        QUERY_SHARDS_ASKED_AGAIN_TOTAL,
        "shards asked a second time by a search"
    );
    describe_histogram!(
        QUERY_EMBED_SECONDS,
        Unit::Seconds,
        "time the embedding endpoint took for a text"
    );
    describe_counter!(
        QUERY_CALLS_QUEUED_TOTAL,
        "calls that waited for others to end before they began"
    );
    describe_counter!(
        QUERY_SHARED_TOTAL,
        "calls answered with what an equal one under way was answered"
    );
}
