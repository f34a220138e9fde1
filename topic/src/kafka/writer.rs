//! Appending: one idempotent producer for the process.
//!
//! A record costs one copy into librdkafka and three small allocations, no task and no text.
//! Acknowledgements come back on the producer's own thread, which only hands them over.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use rdkafka::{
    ClientContext, Message,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode},
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
};
use shoal_schemas::{ClusterId, Offset, Partition, Record};
use tokio::sync::oneshot;
use tracing::error;

use super::{Config, Context, fault::Fault, log};
use crate::{Delivery, TopicPartition, WriteError, Writer, writer::DeliveryFuture};

type Outcome = Result<Delivery, WriteError>;

type Client = ThreadedProducer<Acknowledge>;

/// See [`Writer`].
pub(super) struct KafkaWriter {
    producer: ArcSwap<Client>,
    config: Config,
    cluster_id: OnceLock<ClusterId>,
}

impl KafkaWriter {
    pub(super) fn new(config: &Config) -> Result<Self, KafkaError> {
        Ok(Self {
            producer: ArcSwap::from_pointee(open(config)?),
            config: config.clone(),
            cluster_id: OnceLock::new(),
        })
    }

    /// A producer that lost its identity refuses everything from then on; the next one starts
    /// with a fresh one. What the old one had not delivered is answered as refused.
    fn replace(&self, dead: &Arc<Client>) {
        let reason = dead.client().context().0.reason("the producer lost its identity");
        let now = self.producer.load();
        if !Arc::ptr_eq(&now, dead) {
            return;
        }
        match open(&self.config) {
            Ok(fresh) => {
                error!(reason, "kafka producer failed for good, it was made anew");
                self.producer.compare_and_swap(dead, Arc::new(fresh));
            }
            Err(error) => error!(reason, %error, "kafka producer failed and cannot be made anew"),
        }
    }
}

fn open(config: &Config) -> Result<Client, KafkaError> {
    Client::from_config_and_context(&config.producer(), Acknowledge(Context::default()))
}

impl Writer for KafkaWriter {
    fn send(&self, to: &TopicPartition, record: &Record) -> Result<DeliveryFuture, WriteError> {
        let (done, outcome) = oneshot::channel();
        let mut message = BaseRecord::<[u8], [u8], Box<Waiting>>::with_opaque_to(
            &to.topic,
            Box::new(Waiting(done)),
        )
        .partition(to.partition.to_broker());
        message.key = record.key.as_deref();
        message.payload = record.value.as_deref();
        if record.timestamp_ms > 0 {
            message.timestamp = Some(record.timestamp_ms);
        }
        if !record.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(record.headers.len());
            message.headers = Some(record.headers.iter().fold(headers, |headers, (key, value)| {
                headers.insert(Header {
                    key,
                    value: Some(&value[..]),
                })
            }));
        }
        let producer = self.producer.load();
        match producer.send(message) {
            Ok(()) => Ok(Box::pin(Delivering(outcome))),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::Fatal), _)) => {
                self.replace(&producer);
                Err(WriteError::Unreachable {
                    partition: to.to_string(),
                    detail: "the producer is being made anew".into(),
                })
            }
            Err((error, _)) => Err(refused(&error, to, record.size_bytes())),
        }
    }

    fn cluster_id(&self) -> Result<ClusterId, WriteError> {
        if let Some(known) = self.cluster_id.get() {
            return Ok(known.clone());
        }
        let producer = self.producer.load();
        let timeout = self.config.request_timeout;
        match producer.client().fetch_cluster_id(timeout) {
            Some(id) => Ok(self.cluster_id.get_or_init(|| ClusterId(id.into())).clone()),
            None => {
                let otherwise = format!("no answer within {timeout:?}");
                Err(WriteError::Unreachable {
                    partition: "the cluster's id".into(),
                    detail: producer.client().context().0.reason(&otherwise),
                })
            }
        }
    }
}

impl Drop for KafkaWriter {
    /// Gives what is queued a moment; what is not acknowledged then resolves as unreachable.
    fn drop(&mut self) {
        let _late = self.producer.load().flush(Duration::from_secs(2));
    }
}

/// The sender's side of a delivery, as librdkafka carries it along.
struct Waiting(oneshot::Sender<Outcome>);

/// A delivery under way.
struct Delivering(oneshot::Receiver<Outcome>);

impl Future for Delivering {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Outcome> {
        Pin::new(&mut self.0).poll(task).map(|received| {
            received.unwrap_or_else(|_| {
                Err(WriteError::Unreachable {
                    partition: "a record".into(),
                    detail: "the client was closed".into(),
                })
            })
        })
    }
}

/// Hands each acknowledgement to its waiter.
struct Acknowledge(Context);

impl ClientContext for Acknowledge {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ProducerContext for Acknowledge {
    type DeliveryOpaque = Box<Waiting>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiting: Box<Waiting>) {
        let outcome = match result {
            Ok(message) => Ok(Delivery {
                partition: Partition::from_broker(message.partition()).unwrap_or_default(),
                offset: Offset::from_broker(message.offset()).unwrap_or_default(),
            }),
            Err((error, message)) => {
                let to = TopicPartition {
                    topic: message.topic().into(),
                    partition: Partition::from_broker(message.partition()).unwrap_or_default(),
                };
                Err(refused(error, &to, message.key_len() + message.payload_len()))
            }
        };
        // Nobody waits for it any more: that does not take the record back.
        let _unheard = waiting.0.send(outcome);
    }
}

fn refused(error: &KafkaError, to: &TopicPartition, record_bytes: usize) -> WriteError {
    let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
    if code == RDKafkaErrorCode::QueueFull {
        return WriteError::QueueFull;
    }
    match Fault::of(code) {
        Fault::Unreachable => WriteError::Unreachable {
            partition: to.to_string(),
            detail: code.to_string(),
        },
        Fault::Missing => WriteError::Missing {
            partition: to.clone(),
        },
        Fault::TooLarge => WriteError::TooLarge {
            record_bytes,
            partition: to.clone(),
        },
        Fault::Denied | Fault::OutOfRange | Fault::Other => WriteError::Refused {
            partition: to.clone(),
            detail: code.to_string(),
        },
    }
}
