//! The same calls as JSON over HTTP.
//!
//! ```text
//! PUT    /v1/collections/docs/points         {"points": [{"id": "a", "vector": [0.1, 0.2]}]}
//! DELETE /v1/collections/docs/points/a
//! POST   /v1/collections/docs/points         {"id": "a", "vector": [0.1, 0.2]}, a line each
//! POST   /v1/collections/docs/points/delete  {"ids": ["a", "b"]}
//! ```
//! All answer `{"tokens": ["..."]}`, or `{"error": {"code": "NOT_FOUND", "message": "..."}}`.
//! Writes with conditions are told in `http_if.rs`. Where its records have to stay, a call says in the header
//! `shoal-residency`.

use std::{future::Future, sync::Arc};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, Path, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{
        HeaderMap, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
    routing::{MethodRouter, delete, get, post, put},
};
use metrics::Gauge;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use shoal_runtime::{chain, clock::Stopwatch, grpc::code_name};
use shoal_schemas::{
    Token,
    headers::{TRACEPARENT, TraceParent},
};
use tonic::Code;

use super::{
    CallError, Config,
    calls::{Calls, To},
    http_if, lines,
    residency::Said,
    resolve::Deadline,
    status,
};
use crate::{
    metrics::{
        GATEWAY_CALL_SECONDS, GATEWAY_CALLS_TOTAL, GATEWAY_OPEN_CALLS,
        GATEWAY_RESIDENCY_REFUSALS_TOTAL,
    },
    trace,
};

/// The document that describes all of this; tests hold it and the routes together.
const OPENAPI: &str = include_str!("openapi.json");

#[derive(Clone)]
pub(super) struct Served {
    pub(super) calls: Arc<Calls>,
    pub(super) limit_bytes: usize,
    /// Parts of an NDJSON body that wait for the log at once.
    pub(super) max_waiting: usize,
}

impl Served {
    /// A call that begins now.
    pub(super) fn to<'a>(
        &self,
        collection: &'a str,
        headers: &HeaderMap,
    ) -> Result<To<'a>, CallError> {
        let deadline = Deadline::within(self.calls.deadline);
        To::new(collection, Said::of(headers), deadline)
    }
}

/// The routes of the gateway.
pub(super) fn router(calls: Arc<Calls>, config: &Config) -> Router {
    let limit_bytes = config.max_body_bytes();
    let routes = routes().into_iter();
    let router = routes.fold(Router::new(), |router, (path, methods)| {
        router.route(path, methods)
    });
    router
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
        .with_state(Served {
            calls,
            limit_bytes,
            max_waiting: config.max_stream_calls(),
        })
}

/// Every path, and what answers there.
fn routes() -> [(&'static str, MethodRouter<Served>); 4] {
    let points = put(put_points)
        .patch(http_if::patch_points)
        .post(lines::post_lines);
    // An id may hold slashes, and one may be called `delete`.
    let point = delete(http_if::delete_point).patch(http_if::patch_point);
    let delete = post(delete_points)
        .delete(delete_called_delete)
        .patch(http_if::patch_called_delete);
    [
        ("/openapi.json", get(openapi)),
        ("/v1/collections/{collection}/points", points),
        ("/v1/collections/{collection}/points/{*id}", point),
        ("/v1/collections/{collection}/points/delete", delete),
    ]
}

async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
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
                let to = served.to(&collection, &headers)?;
                served.calls.upsert(&to, points).await
            };
            return answer(measured("upsert", trace::scope(parent, call)).await);
        }
    };
    let call = async {
        let to = served.to(&collection, &headers)?;
        served.calls.upsert_if(&to, points, &conditions).await
    };
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
                let to = served.to(&collection, &headers)?;
                served.calls.delete(&to, &ids).await
            };
            return answer(measured("delete", trace::scope(parent, call)).await);
        }
    };
    let call = async {
        let to = served.to(&collection, &headers)?;
        served.calls.delete_if(&to, &ids, &conditions).await
    };
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
    refusal_of(error, json!({}))
}

/// A refusal beside what else is told.
pub(super) fn refusal_of(error: &CallError, mut body: Value) -> Response {
    let text = chain(error).to_string();
    body["error"] = json!({ "code": code_name(status::code(error)), "message": text });
    let mut response = (status::http(error), Json(body)).into_response();
    if let Some(after) = status::retry_after(error) {
        // In whole seconds, as the header wants it.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn refusal(http: StatusCode, code: Code, message: &str) -> Response {
    let body = json!({ "error": { "code": code_name(code), "message": message } });
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
    if let Some(reason) = status::residency(&result) {
        metrics::counter!(GATEWAY_RESIDENCY_REFUSALS_TOTAL, "reason" => reason).increment(1);
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeSet;

    use shoal_runtime::{grpc::code_name, openapi::Document};

    use super::{OPENAPI, routes};

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let ops = ["/healthz", "/readyz", "/metrics"].map(str::to_owned);
        let routes = routes()
            .into_iter()
            .map(|(path, _)| path.replace("{*", "{"));
        let routes: BTreeSet<String> = routes.chain(ops).collect();
        assert_eq!(Document::parse(OPENAPI).unwrap().paths(), routes);
    }

    #[test]
    fn the_document_names_every_code_of_a_failure() {
        let codes = (1..=16).map(|number| code_name(number.into()));
        let document = Document::parse(OPENAPI).unwrap();
        assert_eq!(document.failure_codes(), codes.collect());
    }
}
