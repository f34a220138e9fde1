//! `POST .../recommend`: a search by examples.

use axum::{
    body::Bytes,
    extract::{
        Path, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::HeaderMap,
    response::Response,
};
use serde::Deserialize;
use serde_json::Value as Json;
use shoal_schemas::v1;

use crate::{
    http::{
        Api, Failure,
        answer::{self, Coverage, List, Parts},
        asked, call, json, read, read_options,
        request::{self, After, GroupBy, Timing},
    },
    serve::status::Refusal,
};

/// Body of a recommendation: a search's, with examples in place of the vector.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Recommend {
    positive: Vec<String>,
    #[serde(default)]
    negative: Vec<String>,
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
    #[serde(default)]
    at_least: Vec<String>,
    #[serde(default)]
    require_all: bool,
    max_staleness_ms: Option<u64>,
}

impl Recommend {
    fn into_proto(self, collection: String) -> Result<v1::RecommendRequest, Refusal> {
        let read = read_options(
            self.at_least.iter().map(String::as_str),
            self.require_all,
            self.max_staleness_ms,
        )?;
        let query = request::Query {
            vector: Vec::new(),
            k: self.k,
            ef: self.ef,
            with_payload: self.with_payload,
            with_vector: self.with_vector,
            exact: self.exact,
            filter: self.filter,
            max_distance: self.max_distance,
            group_by: self.group_by,
            include_payload: self.include_payload,
            exclude_payload: self.exclude_payload,
            offset: self.offset,
            after: self.after,
            explain: self.explain,
            tenant: self.tenant,
        };
        Ok(v1::RecommendRequest {
            collection,
            positive: self.positive,
            negative: self.negative,
            query: Some(query.into_proto()?),
            read,
        })
    }
}

pub(crate) async fn recommend(
    State(api): State<Api>,
    Path(collection): Path<String>,
    query: Result<Query<Timing>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let call = call(&api, &headers, asked(query)?.timeout_ms.as_deref())?;
    let wanted: Recommend = read(body)?;
    let request = wanted.into_proto(collection)?;
    let parts = request.query.as_ref().map(Parts::of).unwrap_or_default();
    let found = api.coordinator.recommend(request, call).await?;
    Ok(json(&answer::Searched {
        found: List::of(&found.hits, &found.groups, &found.explain, parts),
        coverage: Coverage::of(&found.coverage),
    }))
}
