//! What the node itself offers: `GET /v1/node`, `POST /v1/embed`, `GET /openapi.json`.

use axum::{
    body::Bytes,
    extract::{
        Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serialize};

use crate::{
    embedding::EmbeddingError,
    http::{Api, Failure, asked, call, json, read, request::Timing},
};

/// The document that describes all of this; a test holds it and the routes together.
pub(crate) const OPENAPI: &str = include_str!("openapi.json");

#[derive(Serialize)]
struct Node<'a> {
    version: &'static str,
    /// The model that texts are embedded with; null where none is configured.
    embedding_model: Option<&'a str>,
}

pub(crate) async fn describe(State(api): State<Api>) -> Response {
    json(&Node {
        version: env!("CARGO_PKG_VERSION"),
        embedding_model: api.embedding.as_ref().map(|embedding| embedding.model()),
    })
}

pub(crate) async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

/// Body of a text to embed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    text: String,
}

#[derive(Serialize)]
struct Embedded<'a> {
    vector: Vec<f32>,
    model: &'a str,
}

pub(crate) async fn embed(
    State(api): State<Api>,
    query: Result<Query<Timing>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let call = call(&api, &headers, asked(query)?.timeout_ms.as_deref())?;
    let Text { text } = read(body)?;
    let embedding = api
        .embedding
        .as_ref()
        .ok_or(EmbeddingError::NotConfigured)?;
    let vector = embedding.embed(&text, call.deadline.remaining()).await?;
    Ok(json(&Embedded {
        vector,
        model: embedding.model(),
    }))
}
