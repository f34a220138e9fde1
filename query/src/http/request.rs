//! The JSON bodies and query strings that callers send. An unknown field is refused by name.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value as Json;
use shoal_schemas::{
    Collection, CollectionName, FieldKind, Filter, IndexParameters, Metric, Partitioner,
    collection::{default_delete_retention_ms, default_max_record_bytes},
    placement::Labels,
    v1,
    vector::Dim,
};

use crate::{http::read_options, serve::status::Refusal};

/// A body that has the fields of a query beside its own. A struct of them, flattened, would lose the
/// refusal of unknown fields.
macro_rules! with_query {
    ($(#[$about:meta])* $name:ident { $($own:tt)* }) => {
        $(#[$about])*
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name {
            $($own)*
            k: u32,
            #[serde(default)]
            ef: u32,
            #[serde(default)]
            with_payload: bool,
            #[serde(default)]
            with_vector: bool,
            #[serde(default)]
            exact: bool,
            filter: Option<Json>,
            max_distance: Option<f32>,
            group_by: Option<GroupBy>,
            #[serde(default)]
            include_payload: Vec<String>,
            #[serde(default)]
            exclude_payload: Vec<String>,
            #[serde(default)]
            offset: u32,
            after: Option<After>,
            #[serde(default)]
            explain: bool,
            #[serde(default)]
            tenant: String,
        }

        impl $name {
            /// The query in it, for a vector.
            fn query_for(self, vector: Vec<f32>) -> Result<v1::Query, Refusal> {
                Ok(v1::Query {
                    vector,
                    k: self.k,
                    ef: self.ef,
                    with_vector: self.with_vector,
                    with_payload: self.with_payload,
                    exact: self.exact,
                    filter: filter(self.filter.as_ref())?,
                    max_distance: self.max_distance,
                    group_by: self.group_by.map(GroupBy::into_proto),
                    include_payload: self.include_payload,
                    exclude_payload: self.exclude_payload,
                    offset: self.offset,
                    after: self.after.map(After::into_proto),
                    explain: self.explain,
                    tenant: self.tenant,
                })
            }
        }
    };
}

with_query! {
    /// Body of a search.
    Search {
        #[serde(deserialize_with = "shoal_schemas::json::components")]
        vector: Vec<f32>,
        #[serde(default)]
        at_least: Vec<String>,
        #[serde(default)]
        require_all: bool,
        max_staleness_ms: Option<u64>,
    }
}

with_query! {
    /// One query of a batch.
    Query {
        #[serde(deserialize_with = "shoal_schemas::json::components")]
        vector: Vec<f32>,
    }
}

with_query! {
    /// Body of a recommendation: a search's, with examples in place of the vector.
    Recommend {
        positive: Vec<String>,
        #[serde(default)]
        negative: Vec<String>,
        #[serde(default)]
        at_least: Vec<String>,
        #[serde(default)]
        require_all: bool,
        max_staleness_ms: Option<u64>,
    }
}

impl Search {
    pub(crate) fn into_proto(mut self, collection: String) -> Result<v1::SearchRequest, Refusal> {
        let read = read_options(
            self.at_least.iter().map(String::as_str),
            self.require_all,
            self.max_staleness_ms,
        )?;
        let vector = std::mem::take(&mut self.vector);
        let query = self.query_for(vector)?;
        Ok(v1::SearchRequest {
            collection,
            vector: query.vector,
            k: query.k,
            ef: query.ef,
            with_vector: query.with_vector,
            with_payload: query.with_payload,
            read,
            exact: query.exact,
            filter: query.filter,
            max_distance: query.max_distance,
            group_by: query.group_by,
            include_payload: query.include_payload,
            exclude_payload: query.exclude_payload,
            offset: query.offset,
            after: query.after,
            explain: query.explain,
            tenant: query.tenant,
        })
    }
}

/// A line of a stream: a search or a recommendation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    #[serde(default)]
    pub(crate) request_id: u64,
    #[serde(default)]
    timeout_ms: u32,
    search: Option<Search>,
    recommend: Option<Recommend>,
}

impl Line {
    pub(crate) fn into_proto(self, collection: &str) -> Result<v1::SearchStreamRequest, Refusal> {
        use v1::search_stream_request::Call;

        let collection = collection.to_owned();
        let call = match (self.search, self.recommend) {
            (Some(search), None) => Call::Search(search.into_proto(collection)?),
            (None, Some(wanted)) => Call::Recommend(wanted.into_proto(collection)?),
            _ => {
                let why = "it holds one of `search` and `recommend`, no more and no less";
                return Err(Refusal::invalid(why));
            }
        };
        Ok(v1::SearchStreamRequest {
            request_id: self.request_id,
            call: Some(call),
            timeout_ms: self.timeout_ms,
        })
    }
}

impl Query {
    pub(crate) fn into_proto(mut self) -> Result<v1::Query, Refusal> {
        let vector = std::mem::take(&mut self.vector);
        self.query_for(vector)
    }
}

impl Recommend {
    pub(crate) fn into_proto(
        mut self,
        collection: String,
    ) -> Result<v1::RecommendRequest, Refusal> {
        let read = read_options(
            self.at_least.iter().map(String::as_str),
            self.require_all,
            self.max_staleness_ms,
        )?;
        let positive = std::mem::take(&mut self.positive);
        let negative = std::mem::take(&mut self.negative);
        Ok(v1::RecommendRequest {
            collection,
            positive,
            negative,
            query: Some(self.query_for(Vec::new())?),
            read,
        })
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
    pub(crate) max_staleness_ms: Option<u64>,
}

/// How hits are grouped.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GroupBy {
    field: String,
    #[serde(default = "one")]
    group_size: u32,
}

impl GroupBy {
    fn into_proto(self) -> v1::GroupBy {
        v1::GroupBy {
            field: self.field,
            group_size: self.group_size,
        }
    }
}

fn one() -> u32 {
    1
}

/// The last hit of the page before.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct After {
    distance: f32,
    id: String,
}

impl After {
    fn into_proto(self) -> v1::After {
        v1::After {
            distance: self.distance,
            id: self.id,
        }
    }
}

/// Reads a filter; whether it fits the collection is checked with the rest of the call.
fn filter(json: Option<&Json>) -> Result<Option<v1::Filter>, Refusal> {
    let read = json.map(|json| Filter::from_json(json).map(|filter| filter.to_proto()));
    read.transpose()
        .map_err(|error| Refusal::invalid(error.to_string()))
}

/// Body of a get of several points.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Get {
    pub(crate) ids: Vec<String>,
    #[serde(default)]
    pub(crate) with_vector: bool,
    #[serde(default)]
    pub(crate) tenant: String,
    #[serde(default)]
    pub(crate) at_least: Vec<String>,
    #[serde(default)]
    pub(crate) require_all: bool,
    pub(crate) max_staleness_ms: Option<u64>,
}

/// Body of a count; may be empty.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Count {
    filter: Option<Json>,
    #[serde(default)]
    tenant: String,
    #[serde(default)]
    pub(crate) at_least: Vec<String>,
    #[serde(default)]
    pub(crate) require_all: bool,
    pub(crate) max_staleness_ms: Option<u64>,
}

impl Count {
    pub(crate) fn into_proto(
        self,
        collection: String,
        read: Option<v1::ReadOptions>,
    ) -> Result<v1::CountRequest, Refusal> {
        Ok(v1::CountRequest {
            collection,
            read,
            filter: filter(self.filter.as_ref())?,
            tenant: self.tenant,
        })
    }
}

/// Body of a scroll; may be empty.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scroll {
    filter: Option<Json>,
    #[serde(default)]
    tenant: String,
    #[serde(default)]
    after_id: String,
    #[serde(default = "page")]
    limit: u32,
    #[serde(default)]
    pub(crate) with_vector: bool,
    #[serde(default)]
    include_payload: Vec<String>,
    #[serde(default)]
    exclude_payload: Vec<String>,
    #[serde(default)]
    pub(crate) at_least: Vec<String>,
    #[serde(default)]
    pub(crate) require_all: bool,
    pub(crate) max_staleness_ms: Option<u64>,
}

/// Points of a page whose size nobody says.
fn page() -> u32 {
    100
}

impl Scroll {
    pub(crate) fn into_proto(
        self,
        collection: String,
        read: Option<v1::ReadOptions>,
    ) -> Result<v1::ScrollRequest, Refusal> {
        Ok(v1::ScrollRequest {
            collection,
            filter: filter(self.filter.as_ref())?,
            tenant: self.tenant,
            after_id: self.after_id,
            limit: self.limit,
            with_vector: self.with_vector,
            include_payload: self.include_payload,
            exclude_payload: self.exclude_payload,
            read,
        })
    }
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
    #[serde(default)]
    pub(crate) tenant: String,
    /// Tokens, parted by commas.
    #[serde(default)]
    pub(crate) at_least: String,
    pub(crate) max_staleness_ms: Option<u64>,
    pub(crate) timeout_ms: Option<String>,
}

/// Query string of a drop.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Drop {
    #[serde(default)]
    pub(crate) delete_topic: bool,
}

/// Body of an alias: what it stands for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AliasTarget {
    pub(crate) collection: String,
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
    #[serde(default)]
    split_keys: Vec<String>,
    #[serde(default)]
    placement: Labels,
    #[serde(default)]
    tenant_placement: BTreeMap<String, Labels>,
    reads: Option<CollectionName>,
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
            split_keys: self.split_keys,
            placement: self.placement,
            tenant_placement: self.tenant_placement,
            reads: self.reads,
            fed_by: None,
        }
    }
}
