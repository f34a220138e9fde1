//! The JSON bodies and query strings that callers send. An unknown field is refused by name.

use std::collections::BTreeMap;

use serde::Deserialize;
use shoal_schemas::{
    Collection, CollectionName, FieldKind, IndexParameters, Metric, Partitioner,
    collection::{default_delete_retention_ms, default_max_record_bytes},
    v1,
    vector::Dim,
};

/// Body of a search.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Search {
    #[serde(deserialize_with = "shoal_schemas::json::components")]
    vector: Vec<f32>,
    k: u32,
    #[serde(default)]
    ef: u32,
    #[serde(default)]
    pub(crate) with_payload: bool,
    #[serde(default)]
    pub(crate) with_vector: bool,
    #[serde(default)]
    exact: bool,
    #[serde(default)]
    pub(crate) at_least: Vec<String>,
    #[serde(default)]
    pub(crate) require_all: bool,
}

impl Search {
    pub(crate) fn into_proto(
        self,
        collection: String,
        read: Option<v1::ReadOptions>,
    ) -> v1::SearchRequest {
        v1::SearchRequest {
            collection,
            vector: self.vector,
            k: self.k,
            ef: self.ef,
            with_vector: self.with_vector,
            with_payload: self.with_payload,
            read,
            exact: self.exact,
        }
    }
}

/// Body of a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Batch {
    pub(crate) queries: Vec<Query>,
    #[serde(default)]
    pub(crate) at_least: Vec<String>,
    #[serde(default)]
    pub(crate) require_all: bool,
}

/// One query of a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Query {
    #[serde(deserialize_with = "shoal_schemas::json::components")]
    vector: Vec<f32>,
    k: u32,
    #[serde(default)]
    ef: u32,
    #[serde(default)]
    pub(crate) with_payload: bool,
    #[serde(default)]
    pub(crate) with_vector: bool,
    #[serde(default)]
    exact: bool,
}

impl From<Query> for v1::Query {
    fn from(query: Query) -> Self {
        Self {
            vector: query.vector,
            k: query.k,
            ef: query.ef,
            with_vector: query.with_vector,
            with_payload: query.with_payload,
            exact: query.exact,
        }
    }
}

/// Body of a get of several points.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Get {
    pub(crate) ids: Vec<String>,
    #[serde(default)]
    pub(crate) with_vector: bool,
    #[serde(default)]
    pub(crate) at_least: Vec<String>,
    #[serde(default)]
    pub(crate) require_all: bool,
}

/// Body of a count; may be empty.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Count {
    #[serde(default)]
    pub(crate) at_least: Vec<String>,
    #[serde(default)]
    pub(crate) require_all: bool,
}

/// Query string of every call that takes time.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Timing {
    pub(crate) timeout_ms: Option<String>,
}

/// Query string of a get of one point.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GetOne {
    #[serde(default)]
    pub(crate) with_vector: bool,
    /// Tokens, parted by commas.
    #[serde(default)]
    pub(crate) at_least: String,
    pub(crate) timeout_ms: Option<String>,
}

/// Query string of a drop.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Drop {
    #[serde(default)]
    pub(crate) delete_topic: bool,
}

/// Body of a definition. The name stands in the path; here it may be repeated.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Definition {
    pub(crate) name: Option<String>,
    dim: Dim,
    metric: Metric,
    partitions: u32,
    #[serde(default = "murmur2")]
    partitioner: Partitioner,
    #[serde(default)]
    route_by_key_prefix: bool,
    #[serde(default)]
    index: IndexParameters,
    replication_factor: Option<u16>,
    #[serde(default = "default_delete_retention_ms")]
    delete_retention_ms: u64,
    #[serde(default = "default_max_record_bytes")]
    max_record_bytes: u32,
    #[serde(default)]
    fields: BTreeMap<String, FieldKind>,
}

fn murmur2() -> Partitioner {
    Partitioner::Murmur2
}

impl Definition {
    pub(crate) fn named(self, name: CollectionName) -> Collection {
        Collection {
            name,
            dim: self.dim,
            metric: self.metric,
            partitions: self.partitions,
            partitioner: self.partitioner,
            route_by_key_prefix: self.route_by_key_prefix,
            index: self.index,
            replication_factor: self.replication_factor,
            delete_retention_ms: self.delete_retention_ms,
            max_record_bytes: self.max_record_bytes,
            fields: self.fields,
        }
    }
}
