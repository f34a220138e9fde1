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
use shoal_runtime::{ErrorKind, clock::Stopwatch};

use crate::{
    edge::RegionState,
    embedding::EmbeddingError,
    http::{Api, Failure, asked, call, json, read, request::Timing},
    metrics::{self, Ending},
};

/// The document that describes all of this; a test holds it and the routes together.
pub(crate) const OPENAPI: &str = include_str!("openapi.json");

#[derive(Serialize)]
struct Node<'a> {
    version: &'static str,
    /// The model that texts are embedded with; null where none is configured.
    embedding_model: Option<&'a str>,
    /// The regions that it forwards to; none where it asks shards itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    regions: Vec<Region>,
}

/// A region of an edge node.
#[derive(Serialize)]
struct Region {
    name: String,
    address: String,
    reachable: bool,
    /// Null before it was first reached.
    rtt_ms: Option<f64>,
}

impl From<RegionState> for Region {
    fn from(state: RegionState) -> Self {
        Self {
            name: state.name,
            address: state.address,
            reachable: state.is_up,
            rtt_ms: state.rtt_ms,
        }
    }
}

pub(crate) async fn describe(State(api): State<Api>) -> Response {
    json(&Node {
        version: env!("CARGO_PKG_VERSION"),
        embedding_model: api.embedding.as_ref().map(|embedding| embedding.model()),
        regions: (api.coordinator.regions().into_iter())
            .map(Region::from)
            .collect(),
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
    let watch = Stopwatch::start();
    let embedded = embedding.embed(&text, call.deadline.remaining()).await;
    let ending = embedded.as_ref().map_or_else(ending, |_| Ending::Ok);
    metrics::embedded(ending, watch.elapsed());
    let vector = embedded?;
    Ok(json(&Embedded {
        vector,
        model: embedding.model(),
    }))
}

fn ending(error: &EmbeddingError) -> Ending {
    match error {
        EmbeddingError::TimedOut(_) => Ending::Deadline,
        other if other.kind() == ErrorKind::Caller => Ending::Caller,
        _ => Ending::Unavailable,
    }
}
