//! JSON over HTTP: the same calls and answers as gRPC, for `curl` and browsers.
//!
//! Bodies are read as JSON whatever their content type says, because `curl -d` names another one.
//! `openapi.json` describes them all, at `/openapi.json`; the console for people is at `/`.
//!
//! A failure is `{"error":{"code":"NOT_FOUND","message":"..."}}` with the fitting status.

mod aliases;
mod answer;
mod collections;
mod console;
mod node;
mod points;
mod recommend;
mod request;
mod search;
mod stream;

use std::{str::FromStr as _, time::Duration};

use axum::{
    Router,
    body::Bytes,
    extract::{
        DefaultBodyLimit, Query,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use serde::{Serialize, de::DeserializeOwned};
use shoal_schemas::{Token, headers::TRACEPARENT, v1};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::{
    call::{Call, TimeoutError, parse_timeout_ms},
    coordinator::QueryError,
    embedding::Embedding,
    front::{Directory, Searches},
    serve::{status::Refusal, stream::Streams},
};

/// The header that says how many milliseconds a caller waits; `?timeout_ms=` goes before it.
const TIMEOUT_HEADER: &str = "shoal-timeout-ms";
/// How long a browser may remember what it may ask.
const PREFLIGHT: Duration = Duration::from_secs(3600);

/// What the routes need.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) coordinator: Searches,
    pub(crate) definitions: Directory,
    pub(crate) default_deadline: Duration,
    /// `None` where no endpoint is configured.
    pub(crate) embedding: Option<Embedding>,
    /// The longest body, and the longest line of a stream.
    pub(crate) max_body_bytes: usize,
    pub(crate) streams: Streams,
}

/// The API's routes.
pub(crate) fn router(api: Api) -> Router {
    let routes = routes().into_iter();
    let router = routes.fold(console::router(), |router, (path, methods)| {
        router.route(path, methods)
    });
    router
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(api.max_body_bytes))
        .with_state(api)
}

/// Every path of the API, and what answers there.
fn routes() -> [(&'static str, MethodRouter<Api>); 16] {
    let alias = get(aliases::find).put(aliases::set).delete(aliases::drop);
    let collection = get(collections::find)
        .put(collections::create)
        .delete(collections::drop);
    [
        ("/openapi.json", get(node::openapi)),
        ("/v1/node", get(node::describe)),
        ("/v1/embed", post(node::embed)),
        ("/v1/aliases", get(aliases::list)),
        ("/v1/aliases/{alias}", alias),
        ("/v1/collections", get(collections::list)),
        ("/v1/collections/{collection}", collection),
        (
            "/v1/collections/{collection}/shards",
            get(collections::shards),
        ),
        ("/v1/collections/{collection}/search", post(search::search)),
        (
            "/v1/collections/{collection}/search/batch",
            post(search::search_batch),
        ),
        (
            "/v1/collections/{collection}/search/stream",
            post(stream::search_stream),
        ),
        (
            "/v1/collections/{collection}/recommend",
            post(recommend::recommend),
        ),
        ("/v1/collections/{collection}/get", post(points::get_many)),
        (
            "/v1/collections/{collection}/points/{*id}",
            get(points::get_one),
        ),
        ("/v1/collections/{collection}/count", post(points::count)),
        ("/v1/collections/{collection}/scroll", post(points::scroll)),
    ]
}

/// Which pages of other origins a browser lets ask; without any it answers as if it knew of none.
pub(crate) fn cors(origins: &[String]) -> CorsLayer {
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        // One that is no header's value is none that a browser sends.
        AllowOrigin::list(origins.iter().filter_map(|origin| origin.parse().ok()))
    };
    let headers = [
        CONTENT_TYPE,
        HeaderName::from_static(TRACEPARENT),
        HeaderName::from_static(TIMEOUT_HEADER),
        HeaderName::from_static("grpc-timeout"),
        HeaderName::from_static("x-grpc-web"),
        HeaderName::from_static("x-user-agent"),
    ];
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers(headers)
        .expose_headers(["grpc-status", "grpc-message"].map(HeaderName::from_static))
        .max_age(PREFLIGHT)
}

async fn no_route() -> Failure {
    Failure::from(Refusal::not_found(
        "no such route; there are /v1/aliases and /v1/collections, and under /v1/collections/<name>: /search, \
         /search/batch, /search/stream, /recommend, /get, /points/<id>, /count, /scroll, /shards; \
         /openapi.json describes them",
    ))
}

async fn wrong_method() -> Failure {
    let told = Refusal::invalid(
        "this route takes another method: POST to search, recommend, get, count or scroll, GET to \
         read a point, a collection or its shards, PUT and DELETE for collections and aliases",
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

impl<'a> From<&'a Refusal> for FailureText<'a> {
    fn from(refusal: &'a Refusal) -> Self {
        Self {
            code: refusal.name(),
            message: refusal.message(),
        }
    }
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
            error: FailureText::from(&self.refusal),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeSet;

    use shoal_runtime::{grpc::code_name, openapi::Document};

    use super::{node::OPENAPI, routes};

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
