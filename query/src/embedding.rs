//! Texts to vectors, by an endpoint that speaks OpenAI's `/v1/embeddings`.
//!
//! Whoever searches by text needs the vector that the collection's model makes of it. The node
//! keeps no model: it asks the one that is configured, with its key, so that a browser needs
//! neither. reqwest is named here only.

use std::time::Duration;

use reqwest::{Client, StatusCode, redirect::Policy};
use serde::{Deserialize, Serialize};
use shoal_runtime::{ErrorKind, chain};

use crate::config::EmbeddingConfig;

/// Largest text, bytes: above what models take.
const MAX_TEXT_BYTES: usize = 64 << 10;
/// Largest answer, bytes: a vector of 4,096 components takes less than 128 KiB.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Of a refusal's text, the part that is told.
const SHOWN_CHARS: usize = 300;

/// Asks the configured endpoint. Cloning shares its connections.
#[derive(Clone)]
pub struct Embedding {
    client: Client,
    url: String,
    model: String,
    api_key: Option<String>,
    timeout: Duration,
}

/// The HTTP client cannot be made, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ClientError(String);

/// Why a text has no vector.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddingError {
    /// No endpoint.
    #[error(
        "no embedding endpoint is configured, set query.embedding.url and query.embedding.model, or search by vector"
    )]
    NotConfigured,
    /// Its length.
    #[error("text has {bytes} bytes, allowed are 1 to {MAX_TEXT_BYTES}")]
    Length {
        /// As given.
        bytes: usize,
    },
    /// Nobody answers there.
    #[error("embedding endpoint does not answer: {detail}")]
    Unreachable {
        /// What the transport says.
        detail: String,
    },
    /// No answer in time.
    #[error("embedding endpoint did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// It refuses.
    #[error("embedding endpoint refuses with status {status}: {detail}")]
    Refused {
        /// The status.
        status: u16,
        /// The start of what it says.
        detail: String,
    },
    /// Its answer is not the one that is wanted.
    #[error("embedding endpoint answers no vector: {detail}")]
    Answer {
        /// Where it stops reading.
        detail: String,
    },
}

impl EmbeddingError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotConfigured | Self::Length { .. } => ErrorKind::Caller,
            Self::Unreachable { .. } | Self::TimedOut(_) => ErrorKind::Retry,
            Self::Refused { status, .. } if *status == 429 || *status >= 500 => ErrorKind::Retry,
            // The text was good; it is the endpoint or the key that has to be mended.
            Self::Refused { .. } | Self::Answer { .. } => ErrorKind::Closed,
        }
    }
}

#[derive(Serialize)]
struct Asked<'a> {
    model: &'a str,
    input: [&'a str; 1],
    encoding_format: &'static str,
}

#[derive(Deserialize)]
struct Answered {
    data: Vec<Embedded>,
}

#[derive(Deserialize)]
struct Embedded {
    embedding: Vec<f32>,
}

impl Embedding {
    /// The endpoint that is configured; `None` if none is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn new(config: &EmbeddingConfig) -> Result<Option<Self>, ClientError> {
        let (Some(url), Some(model)) = (&config.url, &config.model) else {
            return Ok(None);
        };
        // Elsewhere it would take the key along.
        let client = Client::builder().redirect(Policy::none()).build();
        let client = client.map_err(|error| ClientError(error.to_string()))?;
        Ok(Some(Self {
            client,
            url: url.clone(),
            model: model.clone(),
            api_key: config.api_key.clone(),
            timeout: config.timeout,
        }))
    }

    /// The model that is asked for.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The vector of a text, as the endpoint answers it.
    ///
    /// # Errors
    /// [`EmbeddingError`].
    pub async fn embed(&self, text: &str, budget: Duration) -> Result<Vec<f32>, EmbeddingError> {
        if !(1..=MAX_TEXT_BYTES).contains(&text.len()) {
            return Err(EmbeddingError::Length { bytes: text.len() });
        }
        let timeout = self.timeout.min(budget);
        match tokio::time::timeout(timeout, self.ask(text)).await {
            Ok(answered) => answered,
            Err(_elapsed) => Err(EmbeddingError::TimedOut(timeout)),
        }
    }

    async fn ask(&self, text: &str) -> Result<Vec<f32>, EmbeddingError> {
        let asked = Asked {
            model: &self.model,
            input: [text],
            encoding_format: "float",
        };
        let mut request = self.client.post(&self.url).json(&asked);
        if let Some(key) = &self.api_key {
            request = request.bearer_auth(key);
        }
        let mut response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(unreachable)? {
            if body.len() + piece.len() > MAX_ANSWER_BYTES {
                let detail = format!("it is over {MAX_ANSWER_BYTES} bytes");
                return Err(EmbeddingError::Answer { detail });
            }
            body.extend_from_slice(&piece);
        }
        if status != StatusCode::OK {
            let detail = String::from_utf8_lossy(&body);
            return Err(EmbeddingError::Refused {
                status: status.as_u16(),
                detail: detail.chars().take(SHOWN_CHARS).collect(),
            });
        }
        let answered: Answered =
            serde_json::from_slice(&body).map_err(|error| EmbeddingError::Answer {
                detail: error.to_string(),
            })?;
        let found = answered.data.len();
        match (answered.data.into_iter().next(), found) {
            (Some(one), 1) => Ok(one.embedding),
            _ => Err(EmbeddingError::Answer {
                detail: format!("it holds {found} embeddings of 1 text"),
            }),
        }
    }
}

/// The address may hold a key, so it is not told.
fn unreachable(error: reqwest::Error) -> EmbeddingError {
    EmbeddingError::Unreachable {
        detail: chain(&error.without_url()).to_string(),
    }
}
