//! One point into the log: check, encode, route, send; a token once the log has it.
//!
//! A [`Publisher`] belongs to one collection and is shared by cloning. Calls for one id made one
//! after the other stand in the log in that order, with rising versions: the version is drawn and
//! the record queued under one lock, with nothing in between that waits.
//!
//! Memory is bounded by the writer's queue. When it is full, [`Publisher::publish`] waits for the
//! oldest delivery and [`Publisher::try_send`] refuses.

mod config;
mod delivery;
mod room;

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use metrics::Counter;
use shoal_runtime::{ErrorKind, clock::Clock, tasks::blocking};
use shoal_schemas::{
    ClusterId, Collection, Metric, Partition, Point, PointId, Record, RegionName, Version, avro,
    dlq,
    headers::{ORIGIN, RESIDENCY, TRACEPARENT, TraceParent, VERSION},
    route,
    vector::VectorError,
    version,
};
use shoal_topic::{Cluster, TopicPartition, WriteError, Writer};

use crate::{
    metrics::{
        QUEUE_FULL_TOTAL, RECORDS_ACKNOWLEDGED_TOTAL, RECORDS_FAILED_TOTAL, RECORDS_SENT_TOTAL,
        SENT_BYTES_TOTAL,
    },
    trace,
};
use room::Room;

pub use config::PublishConfig;
pub use delivery::Delivery;

/// Why a point was not published.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PublishError {
    /// Over the collection's limit.
    #[error(
        "record of `{id}` has {record_bytes} bytes, collection `{collection}` takes {limit_bytes}"
    )]
    TooLarge {
        /// The point.
        id: PointId,
        /// The collection.
        collection: String,
        /// Key and value as encoded.
        record_bytes: usize,
        /// The collection's `max_record_bytes`.
        limit_bytes: u32,
    },
    /// The vector was checked for another collection.
    #[error("vector of `{id}` does not fit collection `{collection}`")]
    Vector {
        /// The point.
        id: PointId,
        /// The collection.
        collection: String,
        /// Why.
        #[source]
        source: VectorError,
    },
    /// The log did not take it.
    #[error("record of `{id}` was not written")]
    Write {
        /// The point.
        id: PointId,
        /// Why.
        #[source]
        source: WriteError,
    },
}

impl PublishError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooLarge { .. } | Self::Vector { .. } => ErrorKind::Caller,
            Self::Write { source, .. } => source.kind(),
        }
    }

    /// Whether the local queue was full: nothing was sent, and there will be room.
    pub fn is_queue_full(&self) -> bool {
        matches!(
            self,
            Self::Write {
                source: WriteError::QueueFull,
                ..
            }
        )
    }
}

/// A record that has passed every check and only has to be sent.
#[derive(Clone, Debug)]
pub struct Prepared {
    id: PointId,
    value: Option<Bytes>,
    residency: Option<Bytes>,
}

impl Prepared {
    /// The point.
    pub fn id(&self) -> &PointId {
        &self.id
    }

    /// The encoded point; `None` is a delete.
    pub fn value(&self) -> Option<&Bytes> {
        self.value.as_ref()
    }

    /// The same, tagged with the region that it must not leave, if there is one.
    #[must_use]
    pub fn resident(mut self, region: Option<&RegionName>) -> Self {
        self.residency = region.map(|region| Bytes::copy_from_slice(region.as_str().as_bytes()));
        self
    }
}

/// Publishes to one collection. Cloning shares it.
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
}

struct Shared {
    collection: Collection,
    config: PublishConfig,
    origin: Option<Bytes>,
    cluster: ClusterId,
    topic: Arc<str>,
    partitions: Vec<TopicPartition>,
    writer: Arc<dyn Writer>,
    clock: Arc<dyn Clock>,
    lane: Mutex<Lane>,
    room: Room,
    upserts: Counter,
    deletes: Counter,
    retries: Counter,
    bytes: Counter,
    queue_full: Counter,
    acknowledged: Counter,
    failed: Counter,
}

/// What one record after the other goes through.
struct Lane {
    versions: version::Clock,
    /// Holds one encoded value and is used again.
    buffer: Vec<u8>,
}

impl Publisher {
    /// A publisher for `collection`, which has to exist.
    ///
    /// Asks the cluster for its id, which stands in every token.
    ///
    /// # Errors
    /// [`WriteError::Unreachable`] if no broker answers.
    pub async fn new(
        cluster: &Cluster,
        clock: Arc<dyn Clock>,
        collection: Collection,
        config: PublishConfig,
    ) -> Result<Self, WriteError> {
        let writer = cluster.writer.clone();
        let id = blocking(move || writer.cluster_id()).await?;
        let topic: Arc<str> = collection.topic().into();
        let partitions = (0..collection.partitions).map(|partition| TopicPartition {
            topic: topic.clone(),
            partition: Partition(partition),
        });
        let origin = config
            .origin
            .as_ref()
            .map(|region| region.to_string().into());
        let sent = |kind| metrics::counter!(RECORDS_SENT_TOTAL, "kind" => kind);
        Ok(Self {
            shared: Arc::new(Shared {
                partitions: partitions.collect(),
                config,
                origin,
                cluster: id,
                topic,
                writer: cluster.writer.clone(),
                clock,
                lane: Mutex::new(Lane {
                    versions: version::Clock::default(),
                    buffer: Vec::new(),
                }),
                room: Room::default(),
                collection,
                upserts: sent("upsert"),
                deletes: sent("delete"),
                retries: sent("retry"),
                bytes: metrics::counter!(SENT_BYTES_TOTAL),
                queue_full: metrics::counter!(QUEUE_FULL_TOTAL),
                acknowledged: metrics::counter!(RECORDS_ACKNOWLEDGED_TOTAL),
                failed: metrics::counter!(RECORDS_FAILED_TOTAL),
            }),
        })
    }

    /// The collection as it was when this was made.
    pub fn collection(&self) -> &Collection {
        &self.shared.collection
    }

    /// How it encodes points.
    pub fn framing(&self) -> avro::Framing {
        self.shared.config.framing
    }

    /// Publishes a complete point; waits while the local queue is full.
    ///
    /// # Errors
    /// [`PublishError`]; nothing was sent then.
    ///
    /// # Cancel safety
    /// Safe: a record is sent when this returns, or not at all.
    pub async fn publish(&self, id: &PointId, point: &Point) -> Result<Delivery, PublishError> {
        loop {
            match self.try_publish(id, point) {
                Err(error) if error.is_queue_full() => self.shared.room.wait().await,
                outcome => return outcome,
            }
        }
    }

    /// Publishes a delete; waits while the local queue is full.
    ///
    /// # Errors
    /// [`PublishError`]; nothing was sent then.
    ///
    /// # Cancel safety
    /// As [`Publisher::publish`].
    pub async fn delete(&self, id: &PointId) -> Result<Delivery, PublishError> {
        self.send(&self.prepare_delete(id)).await
    }

    /// Publishes a complete point, unless the local queue is full.
    ///
    /// # Errors
    /// [`PublishError`]; nothing was sent then.
    pub fn try_publish(&self, id: &PointId, point: &Point) -> Result<Delivery, PublishError> {
        self.check_vector(id, point)?;
        let mut lane = self.lane();
        let mut buffer = std::mem::take(&mut lane.buffer);
        buffer.clear();
        avro::encode(point, self.shared.config.framing, &mut buffer);
        if let Err(error) = self.check_size(id, buffer.len()) {
            lane.buffer = buffer;
            return Err(error);
        }
        let value = Bytes::from(buffer);
        let sent = self.queue(
            &mut lane,
            id,
            Some(value.clone()),
            &[],
            &self.shared.upserts,
        );
        // The real log has copied it by now; one in memory keeps it, and a new buffer is made.
        if value.is_unique() {
            lane.buffer = value.into();
        }
        sent
    }

    /// Checks and encodes a point, to be sent later.
    ///
    /// # Errors
    /// [`PublishError::TooLarge`] and [`PublishError::Vector`].
    pub fn prepare(&self, id: &PointId, point: &Point) -> Result<Prepared, PublishError> {
        self.check_vector(id, point)?;
        let mut value = Vec::new();
        avro::encode(point, self.shared.config.framing, &mut value);
        self.check_size(id, value.len())?;
        Ok(Prepared {
            id: id.clone(),
            value: Some(value.into()),
            residency: None,
        })
    }

    /// A delete, to be sent later.
    pub fn prepare_delete(&self, id: &PointId) -> Prepared {
        Prepared {
            id: id.clone(),
            value: None,
            residency: None,
        }
    }

    /// Sends a prepared record; waits while the local queue is full.
    ///
    /// # Errors
    /// [`PublishError::Write`]; nothing was sent then.
    ///
    /// # Cancel safety
    /// As [`Publisher::publish`].
    pub async fn send(&self, prepared: &Prepared) -> Result<Delivery, PublishError> {
        loop {
            match self.try_send(prepared) {
                Err(error) if error.is_queue_full() => self.shared.room.wait().await,
                outcome => return outcome,
            }
        }
    }

    /// Sends a prepared record, unless the local queue is full.
    ///
    /// # Errors
    /// [`PublishError::Write`]; nothing was sent then.
    pub fn try_send(&self, prepared: &Prepared) -> Result<Delivery, PublishError> {
        let counter = match prepared.value {
            Some(_) => &self.shared.upserts,
            None => &self.shared.deletes,
        };
        let residency = prepared.residency.clone();
        let residency = residency.map(|region| (RESIDENCY.to_owned(), region));
        let mut lane = self.lane();
        self.queue(
            &mut lane,
            &prepared.id,
            prepared.value.clone(),
            residency.as_slice(),
            counter,
        )
    }

    /// Sends a value that is encoded already, with further headers, as a new record of `id`.
    ///
    /// The value is not looked at, only its size. Version, origin and trace are this publisher's;
    /// `headers` must not name them.
    ///
    /// # Errors
    /// [`PublishError::TooLarge`] and [`PublishError::Write`]; nothing was sent then.
    ///
    /// # Cancel safety
    /// As [`Publisher::publish`].
    pub async fn resend(
        &self,
        id: &PointId,
        value: Option<Bytes>,
        headers: &[(String, Bytes)],
    ) -> Result<Delivery, PublishError> {
        self.check_size(id, value.as_ref().map_or(0, Bytes::len))?;
        loop {
            let sent = {
                let mut lane = self.lane();
                let counter = &self.shared.retries;
                self.queue(&mut lane, id, value.clone(), headers, counter)
            };
            match sent {
                Err(error) if error.is_queue_full() => self.shared.room.wait().await,
                outcome => return outcome,
            }
        }
    }

    /// Writes behind a refused record's entry that it was put back.
    ///
    /// # Errors
    /// [`WriteError`].
    pub(crate) async fn mark_put_back(&self, entry: &dlq::Entry) -> Result<(), WriteError> {
        let to = TopicPartition {
            topic: self.shared.collection.home().dlq_topic().into(),
            partition: entry.source.partition,
        };
        let mark = dlq::mark(entry, self.shared.clock.now_ms());
        self.shared.writer.send(&to, &mark)?.await.map(drop)
    }

    fn check_vector(&self, id: &PointId, point: &Point) -> Result<(), PublishError> {
        let collection = &self.shared.collection;
        let values = point.vector.as_slice();
        // A `Vector` is finite; what else it has to be depends on the collection.
        let source = if values.len() != collection.dim.len() {
            VectorError::WrongDim {
                found: values.len(),
                expected: collection.dim,
            }
        } else if collection.metric == Metric::Cosine && values.iter().all(|v| *v == 0.0) {
            VectorError::Zero
        } else {
            return Ok(());
        };
        Err(PublishError::Vector {
            id: id.clone(),
            collection: collection.name.to_string(),
            source,
        })
    }

    fn check_size(&self, id: &PointId, value_bytes: usize) -> Result<(), PublishError> {
        let record_bytes = id.as_str().len() + value_bytes;
        let limit_bytes = self.shared.collection.max_record_bytes;
        match u32::try_from(record_bytes) {
            Ok(fits) if fits <= limit_bytes => Ok(()),
            _ => Err(PublishError::TooLarge {
                id: id.clone(),
                collection: self.shared.collection.name.to_string(),
                record_bytes,
                limit_bytes,
            }),
        }
    }

    /// Draws a version and queues the record; both under the lane's lock, for order.
    fn queue(
        &self,
        lane: &mut Lane,
        id: &PointId,
        value: Option<Bytes>,
        headers: &[(String, Bytes)],
        counter: &Counter,
    ) -> Result<Delivery, PublishError> {
        let shared = &*self.shared;
        let now_ms = shared.clock.now_ms();
        let timestamp_ms = i64::try_from(now_ms).unwrap_or(i64::MAX);
        let version = if shared.config.versions {
            lane.versions.tick(now_ms)
        } else {
            Version::from_timestamp(timestamp_ms)
        };
        let record = Record {
            key: Some(Bytes::copy_from_slice(id.as_str().as_bytes())),
            value,
            headers: self.headers(version, trace::current(), headers),
            timestamp_ms,
        };
        let partition = route::partition_of(&shared.collection, id);
        let to = usize::try_from(partition.0)
            .ok()
            .and_then(|at| shared.partitions.get(at));
        let to = to.expect("routing stays below the collection's partition count");
        let size_bytes = record.size_bytes();
        match shared.writer.send(to, &record) {
            Ok(delivery) => {
                counter.increment(1);
                shared
                    .bytes
                    .increment(u64::try_from(size_bytes).unwrap_or(u64::MAX));
                Ok(Delivery {
                    outcome: shared.room.note(delivery),
                    id: id.clone(),
                    version,
                    publisher: Arc::clone(&self.shared),
                    size_bytes,
                })
            }
            Err(source) => {
                if matches!(source, WriteError::QueueFull) {
                    shared.queue_full.increment(1);
                }
                Err(PublishError::Write {
                    id: id.clone(),
                    source,
                })
            }
        }
    }

    fn headers(
        &self,
        version: Version,
        trace: Option<TraceParent>,
        further: &[(String, Bytes)],
    ) -> Vec<(String, Bytes)> {
        let shared = &*self.shared;
        let mut headers = Vec::with_capacity(further.len() + 3);
        headers.extend_from_slice(further);
        if shared.config.versions {
            let raw = Bytes::copy_from_slice(&version.raw().to_be_bytes());
            headers.push((VERSION.to_owned(), raw));
        }
        if let Some(origin) = &shared.origin {
            headers.push((ORIGIN.to_owned(), origin.clone()));
        }
        if let Some(trace) = trace {
            headers.push((TRACEPARENT.to_owned(), trace.to_string().into()));
        }
        headers
    }

    fn lane(&self) -> MutexGuard<'_, Lane> {
        self.shared
            .lane
            .lock()
            .expect("nothing panics while it holds this lock")
    }
}

#[cfg(test)]
pub(crate) mod tests;
