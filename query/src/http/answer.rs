//! The JSON that is answered: the protobuf messages field by field, payload as plain values.
//!
//! A version does not fit the 53 bits of a JavaScript number, so it is text, as in protobuf's own
//! JSON; offsets and counts are numbers.

use std::collections::{BTreeMap, HashMap};

use serde::{Serialize, Serializer};
use shoal_schemas::{Collection, v1};

/// Answer to a search.
#[derive(Serialize)]
pub(crate) struct Searched<'a> {
    #[serde(flatten)]
    pub(crate) found: List<'a>,
    pub(crate) coverage: Coverage<'a>,
}

/// Answer to a batch.
#[derive(Serialize)]
pub(crate) struct Batch<'a> {
    pub(crate) results: Vec<List<'a>>,
    pub(crate) coverage: Coverage<'a>,
}

/// What a query asked to be told.
#[derive(Clone, Copy, Default)]
pub(crate) struct Parts {
    payload: bool,
    vector: bool,
    groups: bool,
    explain: bool,
}

impl Parts {
    pub(crate) fn of(query: &v1::Query) -> Self {
        let selects = !query.include_payload.is_empty() || !query.exclude_payload.is_empty();
        Self {
            payload: query.with_payload || selects,
            vector: query.with_vector,
            groups: query.group_by.is_some(),
            explain: query.explain,
        }
    }

    /// The same of a search.
    pub(crate) fn of_search(search: &v1::SearchRequest) -> Self {
        let selects = !search.include_payload.is_empty() || !search.exclude_payload.is_empty();
        Self {
            payload: search.with_payload || selects,
            vector: search.with_vector,
            groups: search.group_by.is_some(),
            explain: search.explain,
        }
    }
}

/// What one query found: hits, or groups of hits.
#[derive(Serialize)]
pub(crate) struct List<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    hits: Option<Vec<Hit<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<Vec<Group<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<Vec<Explain>>,
}

impl<'a> List<'a> {
    pub(crate) fn of(
        hits: &'a [v1::Hit],
        groups: &'a [v1::HitGroup],
        explain: &[v1::ShardExplain],
        parts: Parts,
    ) -> Self {
        let group = |group: &'a v1::HitGroup| Group {
            value: group.value.as_ref().map(Value),
            hits: hits_of(&group.hits, parts),
            may_lack_hits: group.may_lack_hits,
        };
        Self {
            hits: (!parts.groups).then(|| hits_of(hits, parts)),
            groups: parts.groups.then(|| groups.iter().map(group).collect()),
            explain: (parts.explain).then(|| explain.iter().map(Explain::from).collect()),
        }
    }
}

/// The nearest hits of one value.
#[derive(Serialize)]
struct Group<'a> {
    value: Option<Value<'a>>,
    hits: Vec<Hit<'a>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    may_lack_hits: bool,
}

/// What one shard did.
#[derive(Serialize)]
struct Explain {
    shard: u32,
    plan: &'static str,
    estimated_matches: u64,
    matches: Option<u64>,
    rows_scanned: u64,
    segments: u32,
    plan_us: u64,
    search_us: u64,
    rescore_us: u64,
    payload_us: u64,
}

impl From<&v1::ShardExplain> for Explain {
    fn from(told: &v1::ShardExplain) -> Self {
        Self {
            shard: told.shard,
            plan: match told.plan() {
                v1::SearchPlan::Unspecified => "unspecified",
                v1::SearchPlan::MemtableOnly => "memtable_only",
                v1::SearchPlan::Exact => "exact",
                v1::SearchPlan::FilteredGraph => "filtered_graph",
                v1::SearchPlan::Graph => "graph",
            },
            estimated_matches: told.estimated_matches,
            matches: told.matches,
            rows_scanned: told.rows_scanned,
            segments: told.segments,
            plan_us: told.plan_us,
            search_us: told.search_us,
            rescore_us: told.rescore_us,
            payload_us: told.payload_us,
        }
    }
}

/// One hit.
#[derive(Serialize)]
struct Hit<'a> {
    id: &'a str,
    distance: f32,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Payload<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vector: Option<&'a [f32]>,
}

/// Hits with those parts that were asked for.
fn hits_of(hits: &[v1::Hit], parts: Parts) -> Vec<Hit<'_>> {
    let told = hits.iter().map(|hit| Hit {
        id: &hit.id,
        distance: hit.distance,
        version: hit.version.to_string(),
        payload: parts.payload.then(|| Payload::from(&hit.payload)),
        vector: parts.vector.then_some(hit.vector.as_slice()),
    });
    told.collect()
}

/// A payload, by name.
#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct Payload<'a>(BTreeMap<&'a str, Value<'a>>);

impl<'a> From<&'a HashMap<String, v1::Value>> for Payload<'a> {
    fn from(payload: &'a HashMap<String, v1::Value>) -> Self {
        Self(
            payload
                .iter()
                .map(|(name, value)| (name.as_str(), Value(value)))
                .collect(),
        )
    }
}

/// One value as the JSON that reads most like it.
struct Value<'a>(&'a v1::Value);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use v1::value::Kind;
        match &self.0.kind {
            None => serializer.serialize_none(),
            Some(Kind::String(text)) => serializer.serialize_str(text),
            Some(Kind::Integer(number) | Kind::TimestampMs(number)) => {
                serializer.serialize_i64(*number)
            }
            Some(Kind::Float(number)) => serializer.serialize_f64(*number),
            Some(Kind::Boolean(truth)) => serializer.serialize_bool(*truth),
            Some(Kind::Strings(list)) => serializer.collect_seq(&list.items),
        }
    }
}

/// Which shards an answer rests on.
#[derive(Serialize)]
pub(crate) struct Coverage<'a> {
    shards_asked: u32,
    shards_answered: u32,
    shards: Vec<ShardCoverage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    region: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<i64>,
    collection: &'a str,
}

#[derive(Serialize)]
struct ShardCoverage<'a> {
    shard: u32,
    answered: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
    node: &'a str,
    next_offset: u64,
    lag_seconds: f64,
    shard_us: u64,
}

impl<'a> Coverage<'a> {
    /// The coverage of an answer, which always has one.
    pub(crate) fn of(coverage: &'a Option<v1::Coverage>) -> Self {
        let told = coverage.as_ref();
        let shards = coverage.iter().flat_map(|coverage| &coverage.shards);
        Self {
            shards_asked: coverage
                .as_ref()
                .map_or(0, |coverage| coverage.shards_asked),
            shards_answered: coverage
                .as_ref()
                .map_or(0, |coverage| coverage.shards_answered),
            shards: shards
                .map(|shard| ShardCoverage {
                    shard: shard.shard,
                    answered: shard.answered,
                    error: &shard.error,
                    node: &shard.node,
                    next_offset: shard.next_offset,
                    lag_seconds: shard.lag_seconds,
                    shard_us: shard.shard_us,
                })
                .collect(),
            age_ms: told.and_then(|told| told.age_ms),
            region: (told.map(|told| told.region.as_str())).filter(|name| !name.is_empty()),
            expires_at_ms: told.map(|told| told.expires_at_ms).filter(|at| *at != 0),
            collection: (coverage.as_ref()).map_or("", |coverage| &coverage.collection),
        }
    }
}

/// Answer to a get of several points.
#[derive(Serialize)]
pub(crate) struct Points<'a> {
    pub(crate) points: Vec<Stored<'a>>,
    pub(crate) coverage: Coverage<'a>,
}

/// Answer to a scroll.
#[derive(Serialize)]
pub(crate) struct Page<'a> {
    pub(crate) points: Vec<Stored<'a>>,
    /// Null behind the last page.
    pub(crate) next_after_id: Option<&'a str>,
    pub(crate) coverage: Coverage<'a>,
}

/// Answer to a get of one point.
#[derive(Serialize)]
pub(crate) struct OnePoint<'a> {
    #[serde(flatten)]
    pub(crate) stored: Stored<'a>,
    pub(crate) coverage: Coverage<'a>,
}

/// A point and where its record is.
#[derive(Serialize)]
pub(crate) struct Stored<'a> {
    point: Point<'a>,
    version: String,
    topic: &'a str,
    partition: u32,
    offset: u64,
}

#[derive(Serialize)]
struct Point<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    vector: Option<&'a [f32]>,
    payload: Payload<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    model: &'a str,
    #[serde(skip_serializing_if = "is_unset")]
    event_time_ms: i64,
    #[serde(skip_serializing_if = "is_unset")]
    expires_at_ms: i64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks with a reference"
)]
fn is_unset(time_ms: &i64) -> bool {
    *time_ms == 0
}

/// A point as served; `None` if the message holds none.
pub(crate) fn stored(stored: &v1::StoredPoint, with_vector: bool) -> Option<Stored<'_>> {
    let point = stored.point.as_ref()?;
    Some(Stored {
        point: Point {
            id: &point.id,
            vector: with_vector.then_some(point.vector.as_slice()),
            payload: Payload::from(&point.payload),
            model: &point.model,
            event_time_ms: point.event_time_ms,
            expires_at_ms: point.expires_at_ms,
        },
        version: stored.version.to_string(),
        topic: &stored.topic,
        partition: stored.partition,
        offset: stored.offset,
    })
}

/// Answer to a count.
#[derive(Serialize)]
pub(crate) struct Counted<'a> {
    pub(crate) points: u64,
    pub(crate) contested: u64,
    pub(crate) coverage: Coverage<'a>,
}

/// Answer to a list of collections.
#[derive(Serialize)]
pub(crate) struct Collections {
    pub(crate) collections: Vec<Collection>,
}

/// Answer to a list of aliases.
#[derive(Serialize)]
pub(crate) struct Aliases<'a> {
    pub(crate) aliases: Vec<Alias<'a>>,
}

/// Another name of a collection.
#[derive(Serialize)]
pub(crate) struct Alias<'a> {
    pub(crate) name: &'a str,
    pub(crate) collection: &'a str,
}

/// Answer to setting an alias.
#[derive(Serialize)]
pub(crate) struct AliasSet {
    pub(crate) before: Option<String>,
}

/// Answer to a definition.
#[derive(Serialize)]
pub(crate) struct Created {
    pub(crate) collection: Collection,
    pub(crate) created: bool,
}

/// Answer to a question for one collection.
#[derive(Serialize)]
pub(crate) struct Found<'a> {
    pub(crate) collection: Collection,
    pub(crate) shards: Vec<Owner<'a>>,
}

/// Who serves a shard; empty texts where nobody does.
#[derive(Serialize)]
pub(crate) struct Owner<'a> {
    shard: u32,
    node: &'a str,
    address: &'a str,
    epoch: u64,
    replicas: Vec<Replica<'a>>,
}

/// One node that serves a shard; no set for the owner.
#[derive(Serialize)]
struct Replica<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    set: &'a str,
    node: &'a str,
    address: &'a str,
    epoch: u64,
    ready: bool,
}

impl<'a> From<&'a v1::ShardOwner> for Owner<'a> {
    fn from(owner: &'a v1::ShardOwner) -> Self {
        Self {
            shard: owner.shard,
            node: &owner.node,
            address: &owner.address,
            epoch: owner.epoch,
            replicas: owner.replicas.iter().map(Replica::from).collect(),
        }
    }
}

impl<'a> From<&'a v1::ShardReplica> for Replica<'a> {
    fn from(replica: &'a v1::ShardReplica) -> Self {
        Self {
            set: &replica.set,
            node: &replica.node,
            address: &replica.address,
            epoch: replica.epoch,
            ready: replica.ready,
        }
    }
}

/// Answer to a question for a collection's shards.
#[derive(Serialize)]
pub(crate) struct Shards<'a> {
    pub(crate) shards: Vec<Served<'a>>,
}

/// One shard as one node serves it.
#[derive(Serialize)]
pub(crate) struct Served<'a> {
    shard: u32,
    #[serde(skip_serializing_if = "str::is_empty")]
    set: &'a str,
    node: &'a str,
    address: &'a str,
    epoch: u64,
    ready: bool,
    answered: bool,
    #[serde(skip_serializing_if = "str::is_empty")]
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none", flatten)]
    state: Option<State>,
}

/// What a shard that answers says.
#[derive(Serialize)]
struct State {
    lag_seconds: f64,
    next_offset: u64,
    points: u64,
    contested: u64,
    digest: String,
    wal_bytes: u64,
    index_bytes: u64,
    memtable_rows: u64,
    graph_rows: u64,
    dead_rows: u64,
}

impl<'a> From<&'a v1::ServedShard> for Served<'a> {
    fn from(served: &'a v1::ServedShard) -> Self {
        let state = || State {
            lag_seconds: served.lag_seconds,
            next_offset: served.next_offset,
            points: served.live_points,
            contested: served.contested,
            digest: served
                .digest
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            wal_bytes: served.wal_bytes,
            index_bytes: served.index_bytes,
            memtable_rows: served.memtable_rows,
            graph_rows: served.graph_rows,
            dead_rows: served.dead_rows,
        };
        let owner = served.owner.as_ref();
        Self {
            shard: owner.map_or(0, |owner| owner.shard),
            set: &served.set,
            node: owner.map_or("", |owner| &owner.node),
            address: owner.map_or("", |owner| &owner.address),
            epoch: owner.map_or(0, |owner| owner.epoch),
            ready: served.ready,
            answered: served.answered,
            error: &served.error,
            state: served.answered.then(state),
        }
    }
}
