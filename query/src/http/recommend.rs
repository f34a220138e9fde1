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

use crate::http::{
    Api, Failure,
    answer::{self, Coverage, List, Parts},
    asked, call, json, read,
    request::{self, Timing},
};

pub(crate) async fn recommend(
    State(api): State<Api>,
    Path(collection): Path<String>,
    query: Result<Query<Timing>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let call = call(&api, &headers, asked(query)?.timeout_ms.as_deref())?;
    let wanted: request::Recommend = read(body)?;
    let request = wanted.into_proto(collection)?;
    let parts = request.query.as_ref().map(Parts::of).unwrap_or_default();
    let found = api.coordinator.recommend(request, call).await?;
    Ok(json(&answer::Searched {
        found: List::of(&found.hits, &found.groups, &found.explain, parts),
        coverage: Coverage::of(&found.coverage),
    }))
}
