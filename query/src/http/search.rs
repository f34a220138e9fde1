//! `POST .../search` and `POST .../search/batch`.

use axum::{
    body::Bytes,
    extract::{
        Path, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::HeaderMap,
    response::Response,
};
use shoal_schemas::v1;

use crate::http::{
    Api, Failure,
    answer::{self, Coverage, List, Parts},
    asked, call, json, read, read_options,
    request::{self, Timing},
};

pub(crate) async fn search(
    State(api): State<Api>,
    Path(collection): Path<String>,
    query: Result<Query<Timing>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let call = call(&api, &headers, asked(query)?.timeout_ms.as_deref())?;
    let wanted: request::Search = read(body)?;
    let request = wanted.into_proto(collection)?;
    let parts = Parts::of_search(&request);
    let found = api.coordinator.search(request, call).await?;
    Ok(json(&answer::Searched {
        found: List::of(&found.hits, &found.groups, &found.explain, parts),
        coverage: Coverage::of(&found.coverage),
    }))
}

pub(crate) async fn search_batch(
    State(api): State<Api>,
    Path(collection): Path<String>,
    query: Result<Query<Timing>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let call = call(&api, &headers, asked(query)?.timeout_ms.as_deref())?;
    let wanted: request::Batch = read(body)?;
    let options = read_options(
        wanted.at_least.iter().map(String::as_str),
        wanted.require_all,
        wanted.max_staleness_ms,
    )?;
    let queries: Vec<v1::Query> = wanted
        .queries
        .into_iter()
        .map(request::Query::into_proto)
        .collect::<Result<_, _>>()?;
    let parts: Vec<Parts> = queries.iter().map(Parts::of).collect();
    let request = v1::SearchBatchRequest {
        collection,
        queries,
        read: options,
    };
    let found = api.coordinator.search_batch(request, call).await?;
    let lists = found.results.iter().zip(parts);
    Ok(json(&answer::Batch {
        results: lists
            .map(|(list, parts)| List::of(&list.hits, &list.groups, &list.explain, parts))
            .collect(),
        coverage: Coverage::of(&found.coverage),
    }))
}
