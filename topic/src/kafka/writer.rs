//! Appending: one idempotent producer for the process.
//!
//! A record costs one copy into librdkafka and three small allocations, no task and no text.
//! Acknowledgements come back on the producer's own thread, which only hands them over.
//!
//! What waits is counted here and not left to librdkafka, which frees a record's room only after
//! a whole batch of acknowledgements is handed over: a caller could then be told "full" with
//! nothing left to wait for. Its own limits are set to twice ours, which covers that batch.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
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
use crate::{
    Delivery, TopicPartition, WriteError, Writer, metrics::WRITE_FAILURES, writer::DeliveryFuture,
};

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
        let reason = dead
            .client()
            .context()
            .client
            .reason("the producer lost its identity");
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
    let context = Acknowledge {
        client: Context::default(),
        room: Room::new(config),
    };
    Client::from_config_and_context(&config.producer(), context)
}

impl Writer for KafkaWriter {
    fn send(&self, to: &TopicPartition, record: &Record) -> Result<DeliveryFuture, WriteError> {
        let producer = self.producer.load();
        let room = &producer.client().context().room;
        let record_bytes = record.size_bytes();
        if !room.take(record_bytes) {
            return Err(WriteError::QueueFull);
        }
        let (done, outcome) = oneshot::channel();
        let waiting = Box::new(Waiting { done, record_bytes });
        let mut message =
            BaseRecord::<[u8], [u8], Box<Waiting>>::with_opaque_to(&to.topic, waiting)
                .partition(to.partition.to_broker());
        message.key = record.key.as_deref();
        message.payload = record.value.as_deref();
        if record.timestamp_ms > 0 {
            message.timestamp = Some(record.timestamp_ms);
        }
        if !record.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(record.headers.len());
            message.headers = Some(
                record
                    .headers
                    .iter()
                    .fold(headers, |headers, (key, value)| {
                        headers.insert(Header {
                            key,
                            value: Some(&value[..]),
                        })
                    }),
            );
        }
        let error = match producer.send(message) {
            Ok(()) => return Ok(Box::pin(Delivering(outcome))),
            Err((error, _)) => error,
        };
        room.give_back(record_bytes);
        if error == KafkaError::MessageProduction(RDKafkaErrorCode::Fatal) {
            self.replace(&producer);
            return Err(WriteError::Unreachable {
                partition: to.to_string(),
                detail: "the producer is being made anew".into(),
            });
        }
        Err(refused(&error, to, record_bytes))
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
                    detail: producer.client().context().client.reason(&otherwise),
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

/// How much may wait, and how much does.
struct Room {
    records: AtomicUsize,
    bytes: AtomicUsize,
    max_records: usize,
    max_bytes: usize,
}

impl Room {
    fn new(config: &Config) -> Self {
        Self {
            records: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            max_records: usize::try_from(config.queue_records).unwrap_or(usize::MAX),
            max_bytes: usize::try_from(config.queue_bytes).unwrap_or(usize::MAX),
        }
    }

    /// False if it is full. One record always fits into an empty queue.
    fn take(&self, record_bytes: usize) -> bool {
        let records = self.records.fetch_add(1, Ordering::AcqRel);
        let bytes = self.bytes.fetch_add(record_bytes, Ordering::AcqRel);
        let fits = records < self.max_records
            && (records == 0 || bytes.saturating_add(record_bytes) <= self.max_bytes);
        if !fits {
            self.give_back(record_bytes);
        }
        fits
    }

    fn give_back(&self, record_bytes: usize) {
        self.bytes.fetch_sub(record_bytes, Ordering::AcqRel);
        self.records.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The sender's side of a delivery, as librdkafka carries it along.
struct Waiting {
    done: oneshot::Sender<Outcome>,
    record_bytes: usize,
}

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
struct Acknowledge {
    client: Context,
    room: Room,
}

impl ClientContext for Acknowledge {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.client.error(error, reason);
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
                Err(refused(
                    error,
                    &to,
                    message.key_len() + message.payload_len(),
                ))
            }
        };
        if let Err(error) = &outcome {
            metrics::counter!(WRITE_FAILURES, "reason" => label(error)).increment(1);
        }
        // Before the waiter is told, so that it finds the room it waited for.
        self.room.give_back(waiting.record_bytes);
        // Nobody waits for it any more: that does not take the record back.
        let _unheard = waiting.done.send(outcome);
    }
}

fn label(error: &WriteError) -> &'static str {
    match error {
        WriteError::QueueFull => "queue_full",
        WriteError::TooLarge { .. } => "too_large",
        WriteError::Unreachable { .. } => "unreachable",
        WriteError::Missing { .. } => "missing",
        WriteError::Refused { .. } => "refused",
    }
}

fn refused(error: &KafkaError, to: &TopicPartition, record_bytes: usize) -> WriteError {
    let code = error
        .rdkafka_error_code()
        .unwrap_or(RDKafkaErrorCode::Unknown);
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
