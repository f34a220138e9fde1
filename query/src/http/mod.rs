//! JSON over HTTP: the same calls and answers as gRPC, for `curl` and browsers.
//!
//! Bodies are read as JSON whatever their content type says, because `curl -d` names another one.
//! A failure is `{"error":{"code":"NOT_FOUND","message":"..."}}` with the fitting status.

mod answer;
mod collections;
mod points;
mod request;
mod search;

use std::{str::FromStr as _, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, Query,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Serialize, de::DeserializeOwned};
use shoal_schemas::{Token, headers::TRACEPARENT, v1};

use crate::{
    call::{Call, TimeoutError, parse_timeout_ms},
    coordinator::{Coordinator, QueryError},
    definitions::Definitions,
    serve::status::Refusal,
};

/// The header that says how many milliseconds a caller waits; `?timeout_ms=` goes before it.
const TIMEOUT_HEADER: &str = "shoal-timeout-ms";

/// What the routes need.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) coordinator: Arc<Coordinator>,
    pub(crate) definitions: Definitions,
    pub(crate) default_deadline: Duration,
}

/// The API's routes.
pub(crate) fn router(api: Api, max_body_bytes: usize) -> Router {
    let collection = get(collections::find)
        .put(collections::create)
        .delete(collections::drop);
    Router::new()
        .route("/v1/collections", get(collections::list))
        .route("/v1/collections/{collection}", collection)
        .route("/v1/collections/{collection}/search", post(search::search))
        .route(
            "/v1/collections/{collection}/search/batch",
            post(search::search_batch),
        )
        .route("/v1/collections/{collection}/get", post(points::get_many))
        .route(
            "/v1/collections/{collection}/points/{*id}",
            get(points::get_one),
        )
        .route("/v1/collections/{collection}/count", post(points::count))
        .route("/v1/collections/{collection}/scroll", post(points::scroll))
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(max_body_bytes))
        .with_state(api)
}

async fn no_route() -> Failure {
    Failure::from(Refusal::not_found(
        "no such route; there are /v1/collections, and under /v1/collections/<name>: /search, \
         /search/batch, /get, /points/<id>, /count, /scroll",
    ))
}

async fn wrong_method() -> Failure {
    let told = Refusal::invalid(
        "this route takes another method: POST to search, get, count or scroll, GET to read a point or \
         collection, PUT and DELETE for collections",
    );
    Failure {
        status: StatusCode::METHOD_NOT_ALLOWED,
        ..Failure::from(told)
    }
}

/// A failure on its way out.
struct Failure {
    status: StatusCode,
    refusal: Refusal,
}

#[derive(Serialize)]
struct FailureBody<'a> {
    error: FailureText<'a>,
}

#[derive(Serialize)]
struct FailureText<'a> {
    code: &'a str,
    message: &'a str,
}

impl<E: Into<Refusal>> From<E> for Failure {
    fn from(error: E) -> Self {
        let refusal = error.into();
        let status = StatusCode::from_u16(refusal.http_status());
        Self {
            status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            refusal,
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = FailureBody {
            error: FailureText {
                code: self.refusal.name(),
                message: self.refusal.message(),
            },
        };
        let mut response = (self.status, json(&body)).into_response();
        if let Some(after) = self.refusal.retry_after() {
            // Whole seconds, and never none.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            let value = HeaderValue::from(seconds.max(1));
            response.headers_mut().insert(RETRY_AFTER, value);
        }
        response
    }
}

/// Writes an answer.
fn json(body: &impl Serialize) -> Response {
    let encoded = serde_json::to_vec(body).expect("our own answers have text keys only");
    ([(CONTENT_TYPE, "application/json")], encoded).into_response()
}

/// Reads a body; an empty one counts as `{}`.
fn read<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Result<T, Refusal> {
    let body = body
        .map_err(|error| Refusal::invalid(format!("body does not read: {}", error.body_text())))?;
    let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
    serde_json::from_slice(text)
        .map_err(|error| Refusal::invalid(format!("body is not the JSON asked for: {error}")))
}

/// Reads a query string.
fn asked<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Refusal> {
    match query {
        Ok(Query(wanted)) => Ok(wanted),
        Err(error) => Err(Refusal::invalid(format!(
            "query string is not the one asked for: {}",
            error.body_text()
        ))),
    }
}

/// Deadline and trace of a call.
fn call(api: &Api, headers: &HeaderMap, timeout_ms: Option<&str>) -> Result<Call, QueryError> {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let timeout: Option<Result<Duration, TimeoutError>> = timeout_ms
        .or_else(|| header(TIMEOUT_HEADER))
        .map(parse_timeout_ms);
    let call = Call::within(timeout.transpose()?.unwrap_or(api.default_deadline));
    Ok(call.traced(header(TRACEPARENT)))
}

/// What the caller insists on, with tokens in their text form.
fn read_options<'a>(
    tokens: impl IntoIterator<Item = &'a str>,
    require_all: bool,
    max_staleness_ms: Option<u64>,
) -> Result<Option<v1::ReadOptions>, Refusal> {
    let read = |(at, text): (usize, &str)| {
        let token = Token::from_str(text).map_err(|error| {
            let cause = shoal_runtime::chain(&error);
            Refusal::invalid(format!(
                "at_least[{at}] is no token: {cause}; send tokens as an upsert or delete answered them"
            ))
        })?;
        Ok(token.to_proto())
    };
    let at_least: Vec<v1::Token> = tokens
        .into_iter()
        .enumerate()
        .map(read)
        .collect::<Result<_, Refusal>>()?;
    let is_any = require_all || max_staleness_ms.is_some() || !at_least.is_empty();
    Ok(is_any.then_some(v1::ReadOptions {
        at_least,
        require_all,
        max_staleness_ms,
    }))
}
