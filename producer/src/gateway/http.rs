//! The same calls as JSON over HTTP.
//!
//! ```text
//! PUT    /v1/collections/docs/points         {"points": [{"id": "a", "vector": [0.1, 0.2]}]}
//! DELETE /v1/collections/docs/points/a
//! POST   /v1/collections/docs/points/delete  {"ids": ["a", "b"]}
//! ```
//! All answer `{"tokens": ["..."]}`, or `{"error": {"code": "NOT_FOUND", "message": "..."}}`.
//! Writes with conditions are told in `http_if.rs`.

use std::{future::Future, sync::Arc};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, Path, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{delete, post, put},
};
use metrics::Gauge;
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use shoal_runtime::{chain, clock::Stopwatch};
use shoal_schemas::{
    Token,
    headers::{TRACEPARENT, TraceParent},
};
use tonic::Code;

use super::{CallError, Config, calls::Calls, http_if, resolve::Deadline, status};
use crate::{
    metrics::{GATEWAY_CALL_SECONDS, GATEWAY_CALLS_TOTAL, GATEWAY_OPEN_CALLS},
    trace,
};

#[derive(Clone)]
pub(super) struct Served {
    pub(super) calls: Arc<Calls>,
    limit_bytes: usize,
}

/// The routes of the gateway.
pub(super) fn router(calls: Arc<Calls>, config: &Config) -> Router {
    let limit_bytes = config.max_body_bytes();
    Router::new()
        .route(
            "/v1/collections/{collection}/points",
            put(put_points).patch(http_if::patch_points),
        )
        // An id may hold slashes, and one may be called `delete`.
        .route(
            "/v1/collections/{collection}/points/{*id}",
            delete(http_if::delete_point).patch(http_if::patch_point),
        )
        .route(
            "/v1/collections/{collection}/points/delete",
            post(delete_points)
                .delete(delete_called_delete)
                .patch(http_if::patch_called_delete),
        )
        .fallback(async || {
            refusal(
                StatusCode::NOT_FOUND,
                Code::NotFound,
                "there is no such path",
            )
        })
        .method_not_allowed_fallback(async || {
            let text = "this path does not take that method";
            refusal(StatusCode::METHOD_NOT_ALLOWED, Code::Unimplemented, text)
        })
        .layer(DefaultBodyLimit::max(limit_bytes))
        .with_state(Served { calls, limit_bytes })
}

async fn put_points(
    State(served): State<Served>,
    Path(collection): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        points: Vec<Box<RawValue>>,
    }
    let wanted = r#"{"points": [{"id": "...", "vector": [...]}, ...]}"#;
    let call = read(&served, body, wanted);
    let call = call.and_then(|Body { points }| http_if::split_points(points));
    let parent = traceparent(&headers);
    let (points, conditions) = match call {
        Ok((points, Some(conditions))) => (points, conditions),
        other => {
            let call = async {
                let (points, _) = other?;
                served.calls.upsert(&collection, points).await
            };
            return answer(measured("upsert", trace::scope(parent, call)).await);
        }
    };
    let deadline = Deadline::within(served.calls.deadline);
    let calls = &served.calls;
    let call = calls.upsert_if(&collection, points, &conditions, deadline);
    http_if::results(measured("upsert", trace::scope(parent, call)).await)
}

async fn delete_points(
    State(served): State<Served>,
    Path(collection): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Body {
        ids: Vec<http_if::Doomed>,
    }
    let call = read(&served, body, r#"{"ids": ["...", ...]}"#);
    let call = call.and_then(|Body { ids }| http_if::split_ids(ids));
    let parent = traceparent(&headers);
    let (ids, conditions) = match call {
        Ok((ids, Some(conditions))) => (ids, conditions),
        other => {
            let call = async {
                let (ids, _) = other?;
                served.calls.delete(&collection, &ids).await
            };
            return answer(measured("delete", trace::scope(parent, call)).await);
        }
    };
    let deadline = Deadline::within(served.calls.deadline);
    let calls = &served.calls;
    let call = calls.delete_if(&collection, &ids, &conditions, deadline);
    http_if::results(measured("delete", trace::scope(parent, call)).await)
}

async fn delete_called_delete(
    served: State<Served>,
    Path(collection): Path<String>,
    query: Result<Query<http_if::Only>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let path = Path((collection, "delete".to_owned()));
    http_if::delete_point(served, path, query, headers).await
}

pub(super) fn read<T: for<'de> Deserialize<'de>>(
    served: &Served,
    body: Result<Bytes, BytesRejection>,
    wanted: &'static str,
) -> Result<T, CallError> {
    let body = body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => CallError::BodyTooLarge {
            limit_bytes: served.limit_bytes,
        },
        _ => CallError::Body {
            wanted,
            detail: rejection.body_text(),
        },
    })?;
    serde_json::from_slice(&body).map_err(|error| CallError::Body {
        wanted,
        detail: error.to_string(),
    })
}

pub(super) fn answer(outcome: Result<Vec<Token>, CallError>) -> Response {
    match outcome {
        Ok(tokens) => {
            let tokens: Vec<String> = tokens.iter().map(Token::to_string).collect();
            Json(json!({ "tokens": tokens })).into_response()
        }
        Err(error) => refused(&error),
    }
}

pub(super) fn refused(error: &CallError) -> Response {
    let text = chain(error).to_string();
    refusal(status::http(error), status::code(error), &text)
}

fn refusal(http: StatusCode, code: Code, message: &str) -> Response {
    let body = json!({ "error": { "code": status::name(code), "message": message } });
    (http, Json(body)).into_response()
}

/// The caller's trace; one that does not read is no reason to refuse a write.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<TraceParent> {
    headers.get(TRACEPARENT)?.to_str().ok()?.parse().ok()
}

/// Counts a call and its time, whichever way it came.
pub(super) async fn measured<T>(
    method: &'static str,
    call: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    let open = Open::new();
    let watch = Stopwatch::start();
    let result = call.await;
    drop(open);
    let code = status::outcome(&result);
    metrics::counter!(GATEWAY_CALLS_TOTAL, "method" => method, "code" => code).increment(1);
    metrics::histogram!(GATEWAY_CALL_SECONDS, "method" => method).record(watch.seconds());
    result
}

/// A call under way, also where its caller goes away in the middle.
struct Open(Gauge);

impl Open {
    fn new() -> Self {
        let open = metrics::gauge!(GATEWAY_OPEN_CALLS);
        open.increment(1.0);
        Self(open)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
