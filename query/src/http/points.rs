//! `GET .../points/<id>`, `POST .../get`, `POST .../scroll` and `POST .../count`.

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

use crate::{
    http::{
        Api, Failure,
        answer::{self, Coverage},
        asked, call, json, read, read_options,
        request::{self, GetOne, Timing},
    },
    serve::status::Refusal,
};

pub(crate) async fn get_one(
    State(api): State<Api>,
    Path((collection, id)): Path<(String, String)>,
    query: Result<Query<GetOne>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let wanted = asked(query)?;
    let call = call(&api, &headers, wanted.timeout_ms.as_deref())?;
    let tokens = wanted.at_least.split(',').filter(|text| !text.is_empty());
    let request = v1::GetRequest {
        collection: collection.clone(),
        ids: vec![id.clone()],
        with_vector: wanted.with_vector,
        // Without its shard there is no telling whether the point exists.
        read: read_options(tokens, true, wanted.max_staleness_ms)?,
        tenant: wanted.tenant,
    };
    let found = api.coordinator.get(request, call).await?;
    let point = found
        .points
        .first()
        .and_then(|point| answer::stored(point, wanted.with_vector));
    let Some(stored) = point else {
        let missing = format!("collection `{collection}` has no point `{id}`");
        return Err(Refusal::not_found(missing).into());
    };
    Ok(json(&answer::OnePoint {
        stored,
        coverage: Coverage::of(&found.coverage),
    }))
}

pub(crate) async fn get_many(
    State(api): State<Api>,
    Path(collection): Path<String>,
    query: Result<Query<Timing>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let call = call(&api, &headers, asked(query)?.timeout_ms.as_deref())?;
    let wanted: request::Get = read(body)?;
    let request = v1::GetRequest {
        collection,
        read: read_options(
            wanted.at_least.iter().map(String::as_str),
            wanted.require_all,
            wanted.max_staleness_ms,
        )?,
        ids: wanted.ids,
        with_vector: wanted.with_vector,
        tenant: wanted.tenant,
    };
    let found = api.coordinator.get(request, call).await?;
    let points = found.points.iter();
    Ok(json(&answer::Points {
        points: points
            .filter_map(|point| answer::stored(point, wanted.with_vector))
            .collect(),
        coverage: Coverage::of(&found.coverage),
    }))
}

pub(crate) async fn count(
    State(api): State<Api>,
    Path(collection): Path<String>,
    query: Result<Query<Timing>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let call = call(&api, &headers, asked(query)?.timeout_ms.as_deref())?;
    let wanted: request::Count = read(body)?;
    let options = read_options(
        wanted.at_least.iter().map(String::as_str),
        wanted.require_all,
        wanted.max_staleness_ms,
    )?;
    let request = wanted.into_proto(collection, options)?;
    let found = api.coordinator.count(request, call).await?;
    Ok(json(&answer::Counted {
        points: found.points,
        contested: found.contested,
        coverage: Coverage::of(&found.coverage),
    }))
}

pub(crate) async fn scroll(
    State(api): State<Api>,
    Path(collection): Path<String>,
    query: Result<Query<Timing>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let call = call(&api, &headers, asked(query)?.timeout_ms.as_deref())?;
    let wanted: request::Scroll = read(body)?;
    let options = read_options(
        wanted.at_least.iter().map(String::as_str),
        wanted.require_all,
        wanted.max_staleness_ms,
    )?;
    let with_vector = wanted.with_vector;
    let request = wanted.into_proto(collection, options)?;
    let found = api.coordinator.scroll(request, call).await?;
    let points = found.points.iter();
    Ok(json(&answer::Page {
        points: points
            .filter_map(|point| answer::stored(point, with_vector))
            .collect(),
        next_after_id: (!found.next_after_id.is_empty()).then_some(&found.next_after_id),
        coverage: Coverage::of(&found.coverage),
    }))
}
