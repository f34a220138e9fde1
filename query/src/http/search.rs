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
    answer::{self, Coverage},
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
    let (with_payload, with_vector) = (wanted.with_payload, wanted.with_vector);
    let options = read_options(
        wanted.at_least.iter().map(String::as_str),
        wanted.require_all,
    )?;
    let request = wanted.into_proto(collection, options);
    let found = api.coordinator.search(request, call).await?;
    Ok(json(&answer::Hits {
        hits: answer::hits(&found.hits, with_payload, with_vector),
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
    )?;
    let parts: Vec<(bool, bool)> = wanted
        .queries
        .iter()
        .map(|query| (query.with_payload, query.with_vector))
        .collect();
    let request = v1::SearchBatchRequest {
        collection,
        queries: wanted.queries.into_iter().map(v1::Query::from).collect(),
        read: options,
    };
    let found = api.coordinator.search_batch(request, call).await?;
    let lists = found.results.iter().zip(parts);
    Ok(json(&answer::Batch {
        results: lists
            .map(|(list, (payload, vector))| list_of(list, payload, vector))
            .collect(),
        coverage: Coverage::of(&found.coverage),
    }))
}

fn list_of(list: &v1::HitList, with_payload: bool, with_vector: bool) -> answer::HitList<'_> {
    answer::HitList {
        hits: answer::hits(&list.hits, with_payload, with_vector),
    }
}
