//! Making one change: read, decide, publish, see what it was published over.
//!
//! Up to the first record sent nothing has happened, and every way out says so. From then on the
//! attempt goes on to its end whoever still waits for it, because it may have written over a record
//! that somebody else published meanwhile. Then the change is decided anew on top of that record;
//! and if it is refused there, that record is published once more, so that a condition that did not
//! hold leaves the point as it was.

use std::{future::Future, sync::Arc, sync::Mutex, time::Duration};

use bytes::Bytes;
use metrics::counter;
use shoal_runtime::{chain, clock::Clock, crash, tasks::blocking};
use shoal_schemas::{Offset, Point, Record, Token, Version, avro, headers::Meta, version};
use shoal_topic::{Cluster, TopicPartition, WriteError, writer::DeliveryFuture};

use crate::{
    entry::{self, Entry},
    metrics as names,
    rule::{Latest, Says, SourceIndex, winner},
    segment::{PointError, Segment},
    shard::{Shared, search::ReadError},
    wal::Position,
};

use super::{
    Answer, Job, ResolveError,
    between::{Between, between},
    decide::{Current, Decided, Refusal, decide},
};

/// How often a change is made anew because somebody else's record came between.
const ROUNDS: u32 = 8;
/// How long to wait for the queue to Kafka where there is no way back.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a record that was sent may take to be acknowledged when its shard is let go of.
const LAST_WORD: Duration = Duration::from_secs(2);

/// What every attempt needs.
pub(super) struct World {
    cluster: Cluster,
    clock: Arc<dyn Clock>,
    versions: Mutex<version::Clock>,
}

impl World {
    pub(super) fn new(cluster: Cluster, clock: Arc<dyn Clock>) -> Self {
        Self {
            cluster,
            clock,
            versions: Mutex::default(),
        }
    }

    /// A version above all of this node's and above `floor`.
    ///
    /// What others wrote does not move this node's clock: a version from the far future stays
    /// that point's own.
    fn version_above(&self, floor: Version) -> Version {
        let mut versions = self
            .versions
            .lock()
            .expect("nothing panics under this lock");
        let tick = versions.tick(self.clock.now_ms());
        tick.max(Version::from_raw(floor.raw().saturating_add(1)))
    }
}

/// What a change is decided on.
#[derive(Default)]
struct Base {
    known: Vec<Latest>,
    current: Option<Current>,
}

impl Base {
    fn newest_version(&self) -> Version {
        let versions = self.known.iter().map(|one| one.version);
        versions.max().unwrap_or_default()
    }
}

/// Makes a change.
pub(super) async fn make(world: &World, job: &Job) -> Answer {
    let shared = &job.target.shared;
    let home = shared.spec.sources.first().ok_or(ResolveError::Closing)?;
    let index = shared.source_index(&home.source.cluster.0, &home.source.topic);
    let index = index.and_then(|at| u16::try_from(at).ok());
    let attempt = Attempt {
        world,
        job,
        shared,
        home: SourceIndex(index.ok_or(ResolveError::Closing)?),
        to: TopicPartition {
            topic: home.source.topic.clone(),
            partition: home.source.partition,
        },
    };
    attempt.make().await
}

struct Attempt<'a> {
    world: &'a World,
    job: &'a Job,
    shared: &'a Arc<Shared>,
    home: SourceIndex,
    to: TopicPartition,
}

impl Attempt<'_> {
    async fn make(&self) -> Answer {
        if !self.job.change.looks() {
            let value = self.value(&Base::default())?;
            let version = self.world.version_above(Version::default());
            return self
                .acknowledged(self.send_first(value, version)?, version)
                .await;
        }
        let watch = self.shared.catalog.watch(&self.job.change.id);
        self.in_time(self.hold_everything()).await??;
        let mut base = self.in_time(self.read()).await??;
        let value = self.value(&base)?;
        let mut version = self.world.version_above(base.newest_version());
        let mut sent = self.send_first(value, version)?;
        let mut refused: Option<Refusal> = None;
        for round in 1.. {
            let token = self.acknowledged(sent, version).await?;
            let unknown = |why: &str| self.unknown(format!("{why}, at offset {}", token.offset));
            if !self.applied(token.offset.next()).await {
                return Err(unknown(
                    "its record was written when the shard was let go of",
                ));
            }
            let seen = watch.seen();
            let seen = seen.ok_or_else(|| unknown("too many others write it"))?;
            let before = match between(&base.known, &seen, self.home, token.offset) {
                Between::Nothing => {
                    let refused = refused.map(|why| why.put_back(token.version));
                    return refused.map_or(Ok(token), |why| Err(why.into()));
                }
                Between::Refused => return Err(unknown("the shard refused its record")),
                Between::Gone => return Err(unknown("its record was compacted away")),
                Between::Foreign(before) => before,
            };
            let shard = self.shared.spec.label();
            counter!(names::RESOLVED_AGAIN_TOTAL, "shard" => shard).increment(1);
            if round == ROUNDS {
                return Err(unknown(
                    "its record was written over another, as those before it",
                ));
            }
            base = self.read_foreign(before, &token).await?;
            let (value, why) = match self.value(&base) {
                Ok(value) => (value, None),
                Err(why) => (self.as_it_was(&base), Some(why)),
            };
            refused = why;
            version = self.world.version_above(base.newest_version());
            sent = self.send_again(value, version).await?;
        }
        unreachable!("a round returns or makes the next one, the last one returns")
    }

    /// Waits until the shard holds everything that is in the log now.
    async fn hold_everything(&self) -> Result<(), ResolveError> {
        let end = self.job.ends.ask(&self.world.cluster, &self.to).await;
        let end = end.map_err(ResolveError::Broker)?;
        if self.applied(end).await {
            Ok(())
        } else {
            Err(ResolveError::Closing)
        }
    }

    /// Waits until everything of the home log below `next` is applied; false if the shard is let
    /// go of before.
    async fn applied(&self, next: Offset) -> bool {
        let home = usize::from(self.home.0);
        let mut progress = self.shared.progress();
        loop {
            let now = progress.borrow_and_update().next.get(home).copied();
            if now.unwrap_or_default() >= next {
                return true;
            }
            tokio::select! {
                biased;
                () = self.job.target.cancel.cancelled() => return false,
                changed = progress.changed() => if changed.is_err() {
                    return false;
                },
            }
        }
    }

    /// Work before anything is sent: over with the deadline.
    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, ResolveError> {
        let left = self.job.deadline.left();
        let done = tokio::time::timeout(left, work).await;
        done.map_err(|_| ResolveError::Late {
            id: self.job.change.id.clone(),
        })
    }

    /// The point as it is served.
    async fn read(&self) -> Result<Base, ResolveError> {
        let (shared, id) = (self.shared.clone(), self.job.change.id.clone());
        let read = blocking(move || read_served(&shared, id.as_str())).await;
        read.map_err(ResolveError::Read)
    }

    /// The point as it was just before the record of `token`, with that record known too.
    async fn read_foreign(&self, before: Vec<Latest>, token: &Token) -> Result<Base, ResolveError> {
        let regions: Vec<_> = self
            .shared
            .sources
            .iter()
            .map(|one| one.region.clone())
            .collect();
        let current = match winner(&before, &regions) {
            Some(Says::Live(position)) => {
                let shared = self.shared.clone();
                let read = blocking(move || read_at(&shared, position)).await;
                Some(read.map_err(|error| {
                    self.unknown(format!(
                        "its record at offset {} was written over another that does not read: {}",
                        token.offset,
                        chain(&error)
                    ))
                })?)
            }
            _ => None,
        };
        let mut known = before;
        known.retain(|one| one.source != self.home);
        known.push(Latest {
            source: self.home,
            offset: token.offset,
            version: token.version,
            // Ours; what it says is decided anew.
            says: Says::Deleted,
        });
        Ok(Base { known, current })
    }

    /// The value that the change comes to on this base.
    fn value(&self, base: &Base) -> Result<Option<Bytes>, Refusal> {
        let change = &self.job.change;
        let now_ms = i64::try_from(self.world.clock.now_ms()).unwrap_or(i64::MAX);
        let value = match decide(change, base.current.as_ref(), now_ms)? {
            Decided::Put(point) => Some(self.encoded(&point)),
            Decided::Value(value) => Some(value),
            Decided::Remove => None,
        };
        let record_bytes = change.id.as_str().len() + value.as_ref().map_or(0, Bytes::len);
        let limit_bytes = self.shared.spec.collection.max_record_bytes;
        if u32::try_from(record_bytes).is_ok_and(|bytes| bytes <= limit_bytes) {
            return Ok(value);
        }
        Err(Refusal::Outcome {
            id: change.id.clone(),
            detail: format!(
                "it would have {record_bytes} bytes, the collection takes {limit_bytes}"
            ),
        })
    }

    /// The value of the base itself.
    fn as_it_was(&self, base: &Base) -> Option<Bytes> {
        let current = base.current.as_ref();
        current.map(|current| self.encoded(&current.point))
    }

    fn encoded(&self, point: &Point) -> Bytes {
        let mut value = Vec::new();
        avro::encode(point, self.job.style.framing, &mut value);
        value.into()
    }

    /// Sends a record, if the change may still be made.
    fn send_first(
        &self,
        value: Option<Bytes>,
        version: Version,
    ) -> Result<DeliveryFuture, ResolveError> {
        if self.job.target.cancel.is_cancelled() {
            return Err(ResolveError::Closing);
        }
        if !self.job.ticket.send() {
            return Err(ResolveError::Late {
                id: self.job.change.id.clone(),
            });
        }
        let sent = self.send(value, version).map_err(|error| match error {
            WriteError::QueueFull => ResolveError::QueueFull,
            error => ResolveError::Write(error),
        });
        crash::point("resolve_sent");
        sent
    }

    /// Sends a further record: one has been sent, so this one has to be as well.
    async fn send_again(
        &self,
        value: Option<Bytes>,
        version: Version,
    ) -> Result<DeliveryFuture, ResolveError> {
        loop {
            match self.send(value.clone(), version) {
                Ok(delivery) => return Ok(delivery),
                Err(WriteError::QueueFull) => tokio::time::sleep(PAUSE).await,
                Err(error) => {
                    return Err(self.unknown(format!(
                        "it was written over another record and not again: {}",
                        chain(&error)
                    )));
                }
            }
        }
    }

    fn send(&self, value: Option<Bytes>, version: Version) -> Result<DeliveryFuture, WriteError> {
        let now_ms = self.world.clock.now_ms();
        let meta = Meta {
            version,
            origin: self.job.style.origin.clone(),
            residency: self.job.style.residency.as_ref().map(ToString::to_string),
            trace: self.job.style.trace,
        };
        let mut headers = Vec::with_capacity(3);
        meta.encode(&mut headers);
        let record = Record {
            key: Some(Bytes::copy_from_slice(
                self.job.change.id.as_str().as_bytes(),
            )),
            value,
            headers,
            timestamp_ms: i64::try_from(now_ms).unwrap_or(i64::MAX),
        };
        self.world.cluster.writer.send(&self.to, &record)
    }

    /// Waits until the log has a record; if it may have it or not, that is unknown.
    async fn acknowledged(&self, mut sent: DeliveryFuture, version: Version) -> Answer {
        let delivered = tokio::select! {
            biased;
            delivered = &mut sent => Some(delivered),
            () = self.job.target.cancel.cancelled() => None,
        };
        let delivered = match delivered {
            Some(delivered) => delivered,
            None => {
                let late = tokio::time::timeout(LAST_WORD, sent).await;
                late.map_err(|_| self.unknown("the shard was let go of, its record was sent"))?
            }
        };
        crash::point("resolve_acked");
        match delivered {
            Ok(place) => Ok(Token {
                cluster: self.home_cluster(),
                topic: self.to.topic.clone(),
                partition: place.partition,
                offset: place.offset,
                key: self.job.change.id.clone(),
                version,
                region: None,
            }),
            Err(error @ (WriteError::TooLarge { .. } | WriteError::Missing { .. })) => {
                Err(ResolveError::Write(error))
            }
            Err(error) => Err(self.unknown(chain(&error).to_string())),
        }
    }

    fn home_cluster(&self) -> shoal_schemas::ClusterId {
        let home = self.shared.spec.sources.first();
        home.map_or_else(|| "".into(), |one| one.source.cluster.clone())
    }

    fn unknown(&self, why: impl Into<String>) -> ResolveError {
        ResolveError::Unknown {
            id: self.job.change.id.clone(),
            why: why.into(),
        }
    }
}

fn read_served(shared: &Shared, id: &str) -> Result<Base, ReadError> {
    loop {
        let state = shared.catalog.read(id)?;
        let Some(place) = state.place else {
            return Ok(Base {
                known: state.known,
                current: None,
            });
        };
        // A row that moves between two looks is found at the second.
        let Some(segment) = shared.segment(place.segment) else {
            continue;
        };
        match read_row(shared, &segment, place.row) {
            Err(error) if error.is_outdated() => {}
            current => {
                return Ok(Base {
                    known: state.known,
                    current: current?,
                });
            }
        }
    }
}

/// The point of a row; `None` if it was reclaimed.
fn read_row(shared: &Shared, segment: &Segment, row: u32) -> Result<Option<Current>, ReadError> {
    if segment.is_reclaimed() {
        return Ok(None);
    }
    let frame = segment.frame(row, &shared.log)?;
    let mut components = Vec::new();
    segment.vector(row, &shared.log, &mut components)?;
    point_of(shared, &frame, &components).map(Some)
}

/// The point of a frame that was written a moment ago: its place in the own log is not cut yet.
fn read_at(shared: &Shared, position: Position) -> Result<Current, ReadError> {
    let frame = shared.log.read(position).map_err(PointError::Log)?;
    let components = entry::upsert_body(&frame)?.components();
    point_of(shared, &frame, &components)
}

fn point_of(shared: &Shared, frame: &[u8], components: &[f32]) -> Result<Current, ReadError> {
    let kind = frame.first().copied().unwrap_or_default();
    let Entry::Upsert(stamp, _, body) = Entry::decode(frame)? else {
        return Err(entry::EntryError::Kind { kind }.into());
    };
    let collection = &shared.spec.collection;
    let vector = shoal_schemas::Vector::new(components, collection.dim, collection.metric);
    let field = "vector";
    Ok(Current {
        point: Point {
            vector: vector.map_err(|_| entry::EntryError::Malformed { kind, field })?,
            payload: body.payload()?,
            model: body.model.map(str::to_owned),
            event_time_ms: body.event_time_ms,
            expires_at_ms: body.expires_at_ms,
        },
        version: stamp.version,
    })
}
