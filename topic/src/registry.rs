//! Writer schemas from a schema registry that speaks Confluent's API.
//!
//! A shard's thread asks by id while it decodes, so the question blocks; the client itself runs
//! on a small runtime of its own and can be asked from anywhere. What an id stands for never
//! changes, so it is remembered for good. An id that is not there, and a registry that does not
//! answer, are remembered for a moment, so that a flood of bad records is not a flood of requests.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use schema_registry_converter::{
    async_impl::schema_registry::{SrSettings, get_schema_by_id, post_schema},
    error::SRCError,
    schema_registry_common::{RawError, SchemaType, SuppliedSchema},
};
use shoal_runtime::{ErrorKind, clock::Clock};
use shoal_schemas::avro::{LookupError, SchemaError, WriterSchema, WriterSchemas};
use tokio::{runtime::Runtime, sync::oneshot};

use crate::{metrics::REGISTRY_LOOKUPS, park::block_on};

/// How long "not there" and "no answer" are believed.
const NEGATIVE: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Confluent's code of an id that is not there, beside the plain 404.
const SCHEMA_NOT_FOUND: [u32; 2] = [404, 40_403];

/// A client of one registry. Share it in an `Arc`.
pub struct Registry {
    url: String,
    settings: SrSettings,
    clock: Arc<dyn Clock>,
    known: Mutex<HashMap<u32, Known>>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

enum Known {
    Schema(Arc<WriterSchema>),
    Absent { until: Duration },
    Silent { until: Duration, why: String },
    Unusable { until: Duration, json: String },
}

/// Why the registry cannot be used, or did not take a schema.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The address is none.
    #[error("registry address `{url}` is refused, wanted is http://host:port/path")]
    Address {
        /// As given.
        url: String,
    },
    /// The client cannot be made.
    #[error("cannot make the registry's client")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nobody answered.
    #[error("schema registry {url} does not answer")]
    Unavailable {
        /// Its address.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It refuses the schema: an incompatible change, for one.
    #[error("schema registry {url} refuses the schema of subject `{subject}`: {detail}")]
    Refused {
        /// Its address.
        url: String,
        /// The subject.
        subject: String,
        /// Its words.
        detail: String,
    },
}

impl RegistryError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unavailable { .. } => ErrorKind::Retry,
            Self::Address { .. } | Self::Client(_) | Self::Refused { .. } => ErrorKind::Caller,
        }
    }
}

impl Registry {
    /// A client of the registry at `url`, path included. Asks nothing yet.
    ///
    /// # Errors
    /// [`RegistryError::Address`], [`RegistryError::Client`].
    pub fn new(url: &str, clock: Arc<dyn Clock>) -> Result<Self, RegistryError> {
        let url = url.trim_end_matches('/');
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            return Err(RegistryError::Address { url: url.into() });
        }
        let settings = SrSettings::new_builder(url.to_owned())
            .set_timeout(TIMEOUT)
            .build()
            .map_err(|error| RegistryError::Client(error.into()))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("registry")
            .enable_all()
            .build()
            .map_err(|error| RegistryError::Client(error.into()))?;
        Ok(Self {
            url: url.to_owned(),
            settings,
            clock,
            known: Mutex::default(),
            runtime: Some(runtime),
        })
    }

    /// Registers a schema under a subject, and returns the id values are framed with.
    ///
    /// A schema that is there already keeps its id.
    ///
    /// # Errors
    /// [`RegistryError::Unavailable`], [`RegistryError::Refused`].
    pub async fn register(&self, subject: &str, schema_json: &str) -> Result<u32, RegistryError> {
        let settings = self.settings.clone();
        let schema = SuppliedSchema::new(None, SchemaType::Avro, schema_json.to_owned());
        let name = subject.to_owned();
        let posted = self
            .ask(async move { post_schema(&settings, name, schema).await })
            .await;
        match posted {
            Ok(found) => Ok(found.id),
            Err(error) => match answered(&error) {
                Some(raw) => Err(RegistryError::Refused {
                    url: self.url.clone(),
                    subject: subject.to_owned(),
                    detail: raw.to_string(),
                }),
                None => Err(RegistryError::Unavailable {
                    url: self.url.clone(),
                    source: error.into(),
                }),
            },
        }
    }

    /// [`Registry::register`] for a thread without a runtime.
    ///
    /// # Errors
    /// As [`Registry::register`].
    pub fn register_blocking(
        &self,
        subject: &str,
        schema_json: &str,
    ) -> Result<u32, RegistryError> {
        block_on(self.register(subject, schema_json))
    }

    /// Runs a request on the client's own runtime, whatever runtime or thread asks.
    async fn ask<T: Send + 'static>(
        &self,
        request: impl Future<Output = Result<T, SRCError>> + Send + 'static,
    ) -> Result<T, SRCError> {
        let (done, answer) = oneshot::channel();
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move {
                let _nobody_waits = done.send(request.await);
            });
        }
        answer
            .await
            .unwrap_or_else(|_| Err(SRCError::new("the registry's client ended", None, true)))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u32, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, id: u32) -> Option<Result<Arc<WriterSchema>, LookupError>> {
        let now = self.clock.monotonic();
        match self.known().get(&id)? {
            Known::Schema(schema) => Some(Ok(Arc::clone(schema))),
            Known::Absent { until } if now < *until => Some(Err(self.unknown(id))),
            Known::Silent { until, why } if now < *until => Some(Err(LookupError::Unavailable {
                id,
                source: why.clone().into(),
            })),
            Known::Unusable { until, json } if now < *until => WriterSchema::parse(json)
                .err()
                .map(|source| Err(unusable(id, source))),
            _ => None,
        }
    }

    fn unknown(&self, id: u32) -> LookupError {
        LookupError::Unknown {
            id,
            registry: self.url.clone(),
        }
    }
}

impl WriterSchemas for Registry {
    fn by_id(&self, id: u32) -> Result<Arc<WriterSchema>, LookupError> {
        if let Some(remembered) = self.remembered(id) {
            return remembered;
        }
        let settings = self.settings.clone();
        let answer = block_on(self.ask(async move { get_schema_by_id(id, &settings).await }));
        let until = self.clock.monotonic() + NEGATIVE;
        let (known, outcome, result) = match answer {
            Ok(found) => match WriterSchema::parse(&found.schema) {
                Ok(schema) => {
                    let schema = Arc::new(schema);
                    (Known::Schema(Arc::clone(&schema)), "found", Ok(schema))
                }
                Err(source) => (
                    Known::Unusable {
                        until,
                        json: found.schema,
                    },
                    "unusable",
                    Err(unusable(id, source)),
                ),
            },
            Err(error) => {
                let absent =
                    answered(&error).is_some_and(|raw| SCHEMA_NOT_FOUND.contains(&raw.error_code));
                if absent {
                    (Known::Absent { until }, "unknown", Err(self.unknown(id)))
                } else {
                    let why = error.to_string();
                    let source = error.into();
                    (
                        Known::Silent { until, why },
                        "unavailable",
                        Err(LookupError::Unavailable { id, source }),
                    )
                }
            }
        };
        metrics::counter!(REGISTRY_LOOKUPS, "outcome" => outcome).increment(1);
        self.known().insert(id, known);
        result
    }
}

impl Drop for Registry {
    /// A runtime may not be dropped where another one runs; this way it may.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn unusable(id: u32, source: SchemaError) -> LookupError {
    LookupError::Unusable { id, source }
}

/// The registry's own refusal, if it was the registry that answered.
fn answered(error: &SRCError) -> Option<RawError> {
    let mut cause = std::error::Error::source(error);
    while let Some(found) = cause {
        if let Some(raw) = found.downcast_ref::<RawError>() {
            // 0 stands for an answer that was not the registry's: a proxy's, say.
            return (raw.error_code != 0).then(|| raw.clone());
        }
        cause = found.source();
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{net::TcpListener, sync::Arc, time::Duration};

    use shoal_runtime::{ErrorKind, clock::Manual};
    use shoal_schemas::avro::{LookupError, WriterSchemas};

    use super::{Registry, RegistryError};

    fn nobody() -> String {
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        format!("http://{address}")
    }

    #[test]
    fn a_registry_that_is_away_is_unavailable_and_not_asked_again_at_once() {
        let clock = Manual::at(0);
        let registry = Registry::new(&nobody(), clock.clone()).unwrap();
        let failed = registry.by_id(1).unwrap_err();
        assert!(
            matches!(failed, LookupError::Unavailable { id: 1, .. }),
            "{failed}"
        );
        assert!(registry.remembered(1).is_some());
        clock.advance(Duration::from_secs(2));
        assert!(registry.remembered(1).is_none());
        let refused = registry.register_blocking("s", "\"string\"").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Retry, "{refused}");
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        let clock: Arc<Manual> = Manual::at(0);
        let refused = Registry::new("localhost:8081", clock).err().unwrap();
        assert!(
            matches!(refused, RegistryError::Address { .. }),
            "{refused}"
        );
    }

    #[tokio::test]
    async fn it_may_be_used_and_dropped_within_a_runtime() {
        let registry = Registry::new(&nobody(), Manual::at(0)).unwrap();
        assert!(registry.register("s", "\"string\"").await.is_err());
        drop(registry);
    }
}
