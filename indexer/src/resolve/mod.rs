//! Resolving: partial and conditional changes become complete records, by the shard's owner.
//!
//! Changes of one id are resolved one after the other: read the point as it is, `decide`, publish
//! the complete record that comes out, wait until the shard has applied it, and look at what came
//! `between`. Whoever writes straight to Kafka can get there; then the change is made again on top
//! of it (`attempt.rs`). Changes of different ids go on beside each other,
//! `indexer.resolves` of them at most.
//!
//! Once a record is sent there is no way back, so an attempt outlives whoever asked for it: the
//! next one of the id starts when it is known what became of this one. A caller whose time is over
//! is told that nothing was sent, or that it is unknown. See `docs/adr/009-conditional-updates.md`.

mod attempt;
mod between;
mod decide;
mod ends;
mod ticket;

use std::{
    collections::{HashMap, VecDeque, hash_map},
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::stream::{FuturesUnordered, StreamExt as _};
use metrics::{counter, histogram};
use shoal_runtime::{ErrorKind, clock::Clock, clock::Stopwatch};
use shoal_schemas::{PointId, RegionName, Token, avro::Framing, headers::TraceParent};
use shoal_topic::{AdminError, Cluster, WriteError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics as names,
    node::ShardKey,
    shard::{Shared, search::ReadError},
};

use self::{attempt::World, ends::Ends, ticket::Ticket};

pub use self::decide::{Change, Refusal, Want};

/// A shard that this node owns.
#[derive(Clone)]
pub struct Target {
    /// The shard.
    pub shared: Arc<Shared>,
    /// Ends when this node lets go of it.
    pub cancel: CancellationToken,
}

/// How records are written: as whoever forwards the change writes its own.
#[derive(Clone, Debug)]
pub struct Style {
    /// How values are framed.
    pub framing: Framing,
    /// Region named as the record's origin.
    pub origin: Option<RegionName>,
    /// Region that the record must not leave: the one this node stands in.
    pub residency: Option<RegionName>,
    /// The trace the change belongs to.
    pub trace: Option<TraceParent>,
}

/// When a caller has to be answered.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    since: Stopwatch,
    time: Duration,
}

impl Deadline {
    /// So long from now.
    pub fn within(time: Duration) -> Self {
        Self {
            since: Stopwatch::start(),
            time,
        }
    }

    fn left(&self) -> Duration {
        self.time.saturating_sub(self.since.elapsed())
    }
}

/// Why a change was not made, or is not known to be made.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// It is not to be made.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Too many changes are under way.
    #[error("this node has as many changes under way as it takes; nothing was written")]
    Busy,
    /// The queue to Kafka is full.
    #[error("the queue to Kafka is full; nothing was written")]
    QueueFull,
    /// Time was over before anything was sent.
    #[error("the deadline passed before `{id}` was changed; nothing was written")]
    Late {
        /// The point.
        id: PointId,
    },
    /// The shard or the node is being closed.
    #[error("the shard is being let go of; nothing was written")]
    Closing,
    /// The broker does not say where its end is.
    #[error("Kafka does not say what it holds; nothing was written")]
    Broker(#[source] AdminError),
    /// The point cannot be read.
    #[error("cannot read the point as it is; nothing was written")]
    Read(#[source] ReadError),
    /// Kafka did not take the record.
    #[error("Kafka did not take the record; nothing was written")]
    Write(#[source] WriteError),
    /// A record was sent and it is not known what became of it.
    #[error(
        "it is unknown whether `{id}` was changed: {why}; read the point, and repeat the change with if_version"
    )]
    Unknown {
        /// The point.
        id: PointId,
        /// What is known.
        why: String,
    },
}

impl ResolveError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(_) => ErrorKind::Caller,
            Self::Busy | Self::QueueFull | Self::Late { .. } | Self::Closing => ErrorKind::Retry,
            Self::Broker(_) | Self::Unknown { .. } => ErrorKind::Retry,
            Self::Read(error) => error.kind(),
            Self::Write(error) => error.kind(),
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::Refused(Refusal::Condition { .. }) => "condition",
            Self::Refused(Refusal::Missing { .. }) => "missing",
            Self::Refused(Refusal::Outcome { .. }) => "refused",
            Self::Busy | Self::QueueFull => "busy",
            Self::Late { .. } | Self::Closing => "late",
            Self::Broker(_) | Self::Read(_) | Self::Write(_) => "failed",
            Self::Unknown { .. } => "unknown",
        }
    }
}

type Answer = Result<Token, ResolveError>;

/// One change on its way.
struct Job {
    target: Target,
    ends: Arc<Ends>,
    change: Change,
    style: Style,
    deadline: Deadline,
    ticket: Ticket,
    answer: oneshot::Sender<Answer>,
    _permit: OwnedSemaphorePermit,
}

impl Job {
    fn lane(&self) -> Lane {
        (shard_key(&self.target.shared), self.change.id.clone())
    }
}

/// Changes of one id go one after the other.
type Lane = (ShardKey, PointId);

fn shard_key(shared: &Shared) -> ShardKey {
    (shared.spec.collection.name.clone(), shared.spec.shard)
}

/// Takes changes. Cloning shares it.
///
/// Full, it makes callers wait, each until its own deadline.
#[derive(Clone)]
pub struct Resolver {
    jobs: mpsc::Sender<Job>,
    permits: Arc<Semaphore>,
    ends: Arc<Mutex<HashMap<ShardKey, Arc<Ends>>>>,
}

/// The loop that makes them.
pub struct Resolving {
    jobs: mpsc::Receiver<Job>,
    world: World,
}

impl Resolver {
    /// A resolver of so many changes at a time, and the loop that has to run for it.
    pub fn new(
        cluster: Cluster,
        clock: Arc<dyn Clock>,
        in_flight: NonZeroUsize,
    ) -> (Self, Resolving) {
        let (sender, receiver) = mpsc::channel(in_flight.get());
        let resolver = Self {
            jobs: sender,
            permits: Arc::new(Semaphore::new(in_flight.get())),
            ends: Arc::default(),
        };
        let resolving = Resolving {
            jobs: receiver,
            world: World::new(cluster, clock),
        };
        (resolver, resolving)
    }

    /// Hands a change over. Those of one id are made in the order of these calls.
    ///
    /// # Errors
    /// [`ResolveError::Busy`] and [`ResolveError::Closing`]; nothing was written.
    pub async fn submit(
        &self,
        target: Target,
        change: Change,
        style: Style,
        deadline: Deadline,
    ) -> Result<Pending, ResolveError> {
        let permit = self.permits.clone().acquire_owned();
        let permit = match tokio::time::timeout(deadline.left(), permit).await {
            Ok(Ok(permit)) => permit,
            Ok(Err(_)) => return Err(ResolveError::Closing),
            Err(_) => return Err(ResolveError::Busy),
        };
        let ends = self.ends_of(&target.shared);
        let (answer, answered) = oneshot::channel();
        let ticket = Ticket::default();
        let pending = Pending {
            id: change.id.clone(),
            answered,
            ticket: ticket.clone(),
            deadline,
        };
        let job = Job {
            target,
            ends,
            change,
            style,
            deadline,
            ticket,
            answer,
            _permit: permit,
        };
        // There is room: the channel is as long as there are permits.
        let taken = self.jobs.send(job).await;
        taken.map_err(|_| ResolveError::Closing)?;
        Ok(pending)
    }

    fn ends_of(&self, shared: &Shared) -> Arc<Ends> {
        let mut all = self.ends.lock().expect("nothing panics under this lock");
        let known = all.entry(shard_key(shared));
        known.or_default().clone()
    }
}

/// A change handed over. Dropped, it is not made unless it was sent already.
#[must_use = "the change is given up if nobody waits for it"]
pub struct Pending {
    id: PointId,
    answered: oneshot::Receiver<Answer>,
    ticket: Ticket,
    deadline: Deadline,
}

impl Pending {
    /// Waits for what becomes of it, at most until the deadline.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn outcome(mut self) -> Answer {
        let waited = tokio::time::timeout(self.deadline.left(), &mut self.answered).await;
        let why = match waited {
            Ok(Ok(answer)) => return answer,
            Ok(Err(_)) if self.ticket.give_up() => return Err(ResolveError::Closing),
            Ok(Err(_)) => "the node is stopping and the record was sent",
            Err(_) if self.ticket.give_up() => {
                return Err(ResolveError::Late {
                    id: self.id.clone(),
                });
            }
            Err(_) => "the deadline passed when the record was sent already",
        };
        Err(ResolveError::Unknown {
            id: self.id.clone(),
            why: why.to_owned(),
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.ticket.give_up();
    }
}

impl Resolving {
    /// Makes changes until cancelled; those that were sent are seen through, as far as their
    /// shards go.
    pub async fn run(self, cancel: CancellationToken) {
        let Self { mut jobs, world } = self;
        let mut lanes: HashMap<Lane, VecDeque<Job>> = HashMap::new();
        let mut running = FuturesUnordered::new();
        loop {
            let (job, done) = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                done = running.next(), if !running.is_empty() => (None, done),
                job = jobs.recv() => match job {
                    Some(job) => (Some(job), None),
                    None => break,
                },
            };
            if let Some(job) = job {
                match lanes.entry(job.lane()) {
                    hash_map::Entry::Occupied(mut lane) => lane.get_mut().push_back(job),
                    hash_map::Entry::Vacant(lane) => {
                        lane.insert(VecDeque::new());
                        running.push(make(&world, job));
                    }
                }
            }
            if let Some(lane) = done {
                match lanes.get_mut(&lane).and_then(VecDeque::pop_front) {
                    Some(next) => running.push(make(&world, next)),
                    None => {
                        lanes.remove(&lane);
                    }
                }
            }
        }
        // Whoever waits in a lane is told that nothing was sent.
        drop((jobs, lanes));
        while running.next().await.is_some() {}
    }
}

async fn make(world: &World, job: Job) -> Lane {
    let watch = Stopwatch::start();
    let answer = attempt::make(world, &job).await;
    let shard = job.target.shared.spec.label();
    let outcome = match &answer {
        Ok(_) => "written",
        Err(error) => error.label(),
    };
    counter!(names::RESOLVES_TOTAL, "shard" => shard, "outcome" => outcome).increment(1);
    histogram!(names::RESOLVE_SECONDS).record(watch.seconds());
    let lane = job.lane();
    // Whoever asked may be gone, or have been told that it is unknown.
    let _unheard = job.answer.send(answer);
    lane
}
