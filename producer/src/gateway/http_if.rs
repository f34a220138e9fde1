//! Patches and conditional writes as JSON over HTTP.
//!
//! ```text
//! PATCH  /v1/collections/docs/points/a                   {"set": {"n": 1}, "unset": ["draft"]}
//! PATCH  /v1/collections/docs/points                     {"points": [{"id": "a", "set": {"n": 1}}]}
//! DELETE /v1/collections/docs/points/a?if_version=123
//! POST   /v1/collections/docs/points/delete              {"ids": [{"id": "a", "if_version": "123"}]}
//! PUT    /v1/collections/docs/points                     {"points": [{..., "if_absent": true}]}
//! ```
//! A path that names a point answers `{"tokens": ["..."]}` or an error; the others answer
//! `{"results": [{"token": "..."}, {"error": {...}}]}`, one a point, in order.

use axum::{
    Json,
    body::Bytes,
    extract::{
        Path, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use shoal_runtime::grpc::code_name;
use shoal_schemas::{
    Condition, Token,
    json::{decode_wanted_version, split_condition},
    patch::PatchError,
    v1::{self, write_result::Outcome},
};
use tonic::Code;

use super::{
    CallError,
    http::{Served, answer, measured, read, refused, traceparent},
    resolve::JsonPatch,
    status,
};
use crate::trace;

/// What the path's query may say of the point.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Only {
    if_version: Option<String>,
}

impl Only {
    fn condition(self) -> Result<Condition, CallError> {
        let wanted = self.if_version.map(|text| decode_wanted_version(&text));
        let wanted = wanted.transpose().map_err(faulty(0))?;
        Ok(Condition::from_wire(wanted))
    }
}

/// An id to delete, by itself or with what has to hold.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "an id, or {\"id\": \"...\", \"if_version\": \"...\"}"
)]
pub(super) enum Doomed {
    Id(String),
    If(DoomedIf),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DoomedIf {
    id: String,
    if_version: Option<WantedVersion>,
}

/// A version as JSON has it. (Not a raw value: there is none within an untagged enum.)
#[derive(Deserialize)]
#[serde(untagged, expecting = "a version as text or as a whole number")]
enum WantedVersion {
    Text(String),
    Whole(u64),
}

/// What a call is about, and what has to hold of each, if it says so of any.
pub(super) type Split<T> = (Vec<T>, Option<Vec<Condition>>);

fn faulty(index: usize) -> impl Fn(PatchError) -> CallError {
    move |source| CallError::Patch { index, source }
}

fn asked(query: Result<Query<Only>, QueryRejection>) -> Result<Condition, CallError> {
    let Query(only) = query.map_err(|rejection| CallError::Body {
        wanted: "?if_version=<version>",
        detail: rejection.body_text(),
    })?;
    only.condition()
}

/// Takes the conditions off points; `None` if none has one.
pub(super) fn split_points(points: Vec<Box<RawValue>>) -> Result<Split<Box<RawValue>>, CallError> {
    let mut conditions = Vec::with_capacity(points.len());
    let mut rest = Vec::with_capacity(points.len());
    for (index, point) in points.into_iter().enumerate() {
        let (point, condition) = split_condition(point).map_err(faulty(index))?;
        rest.push(point);
        conditions.push(condition);
    }
    let any = conditions.iter().any(|one| *one != Condition::Always);
    Ok((rest, any.then_some(conditions)))
}

/// Takes the conditions off ids; `None` if none has one.
pub(super) fn split_ids(doomed: Vec<Doomed>) -> Result<Split<String>, CallError> {
    let mut conditions = Vec::with_capacity(doomed.len());
    let mut ids = Vec::with_capacity(doomed.len());
    for (index, one) in doomed.into_iter().enumerate() {
        let (id, wanted) = match one {
            Doomed::Id(id) => (id, None),
            Doomed::If(DoomedIf { id, if_version }) => (id, if_version),
        };
        let wanted = match wanted {
            Some(WantedVersion::Whole(raw)) => Some(raw),
            Some(WantedVersion::Text(text)) => {
                Some(decode_wanted_version(&text).map_err(faulty(index))?)
            }
            None => None,
        };
        ids.push(id);
        conditions.push(Condition::from_wire(wanted));
    }
    let any = conditions.iter().any(|one| *one != Condition::Always);
    Ok((ids, any.then_some(conditions)))
}

pub(super) async fn patch_points(
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
    let call = async {
        let to = served.to(&collection, &headers)?;
        let wanted = r#"{"points": [{"id": "...", "set": {...}, "unset": [...]}, ...]}"#;
        let Body { points } = read(&served, body, wanted)?;
        let patches = points.into_iter().map(|raw| JsonPatch {
            id: None,
            text: raw.get().as_bytes().into(),
            condition: Condition::Always,
        });
        let patches: Vec<JsonPatch> = patches.collect();
        served.calls.patch(&to, patches).await
    };
    results(measured("patch", trace::scope(traceparent(&headers), call)).await)
}

pub(super) async fn patch_point(
    State(served): State<Served>,
    Path((collection, id)): Path<(String, String)>,
    query: Result<Query<Only>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let call = async {
        let to = served.to(&collection, &headers)?;
        let condition = asked(query)?;
        let wanted = r#"{"set": {...}, "unset": [...], "expires_at": ..., "vector": [...]}"#;
        let text: Box<RawValue> = read(&served, body, wanted)?;
        let patch = JsonPatch {
            id: Some(id),
            text: text.get().as_bytes().into(),
            condition,
        };
        served.calls.patch(&to, vec![patch]).await
    };
    one(measured("patch", trace::scope(traceparent(&headers), call)).await)
}

pub(super) async fn patch_called_delete(
    served: State<Served>,
    Path(collection): Path<String>,
    query: Result<Query<Only>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let path = Path((collection, "delete".to_owned()));
    patch_point(served, path, query, headers, body).await
}

pub(super) async fn delete_point(
    State(served): State<Served>,
    Path((collection, id)): Path<(String, String)>,
    query: Result<Query<Only>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let parent = traceparent(&headers);
    let ids = [id];
    let condition = match asked(query) {
        Ok(Condition::Always) => {
            let call = async {
                let to = served.to(&collection, &headers)?;
                served.calls.delete(&to, &ids).await
            };
            return answer(measured("delete", trace::scope(parent, call)).await);
        }
        asked => asked,
    };
    let call = async {
        let conditions = [condition?];
        let to = served.to(&collection, &headers)?;
        served.calls.delete_if(&to, &ids, &conditions).await
    };
    one(measured("delete", trace::scope(parent, call)).await)
}

/// The answer about the one point that the path names.
fn one(outcome: Result<Vec<v1::WriteResult>, CallError>) -> Response {
    let mut results = match outcome {
        Ok(results) => results,
        Err(error) => return refused(&error),
    };
    match results.pop().and_then(|result| result.outcome) {
        Some(Outcome::Token(token)) => {
            let tokens: Vec<String> = text(token).into_iter().collect();
            Json(json!({ "tokens": tokens })).into_response()
        }
        Some(Outcome::Failure(failure)) => {
            let http = status::http_of(Code::from(failure.code));
            (http, Json(json!({ "error": error(&failure) }))).into_response()
        }
        None => refused(&CallError::Empty { what: "points" }),
    }
}

/// The answer about each point of a batch.
pub(super) fn results(outcome: Result<Vec<v1::WriteResult>, CallError>) -> Response {
    let results = match outcome {
        Ok(results) => results,
        Err(error) => return refused(&error),
    };
    let results = results.into_iter().map(|result| match result.outcome {
        Some(Outcome::Token(token)) => json!({ "token": text(token) }),
        Some(Outcome::Failure(failure)) => json!({ "error": error(&failure) }),
        None => Value::Null,
    });
    Json(json!({ "results": results.collect::<Vec<_>>() })).into_response()
}

fn text(token: v1::Token) -> Option<String> {
    Token::from_proto(token).ok().map(|token| token.to_string())
}

fn error(failure: &v1::WriteFailure) -> Value {
    let mut error = json!({
        "code": code_name(Code::from(failure.code)),
        "message": failure.message,
    });
    if let Some(version) = failure.current_version {
        // As text, as reads answer it: it does not fit the numbers of JavaScript.
        error["current_version"] = json!(version.to_string());
    }
    error
}
