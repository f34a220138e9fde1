//! Takes snapshots of a node's shards: when it is asked to, and every so often.
//!
//! Where a shard's checkpoint comes from is the shard's business ([`Source`]); one snapshot of a
//! shard is taken at a time. Old ones are pruned after each.

use std::{
    collections::HashMap,
    error::Error,
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex},
    time::Duration,
};

use metrics::{counter, histogram};
use shoal_runtime::{
    ErrorKind, chain,
    clock::{Clock, Stopwatch},
    tasks::blocking,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    metrics as names,
    node::ShardKey,
    snapshot::{
        Content, Files, Names, Owner, Settings, ShardPlace, Shelf, SourceNext,
        create::{CreateError, Created},
        store::Store,
    },
};

/// A checkpoint of a shard. Its files stay as they are until this is dropped.
pub struct Held {
    /// The shard.
    pub place: ShardPlace,
    /// Whose it is.
    pub owner: Owner,
    /// The checkpoint.
    pub content: Content,
    /// Opens its files.
    pub files: Box<dyn Files>,
    /// What is known of the folder's files: one for as long as the shard is open.
    pub names: Names,
}

/// Why there is no checkpoint to take a snapshot of.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The shard is not here.
    #[error("this node does not have the shard; ask for the shard map again")]
    NotOwned,
    /// It is here but not yet able.
    #[error("shard cannot be saved yet: {detail}")]
    NotYet {
        /// Why.
        detail: String,
    },
    /// Its checkpoint failed.
    #[error("checkpoint for the snapshot failed")]
    Failed {
        /// What its caller should do about it.
        kind: ErrorKind,
        /// Why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

/// Where checkpoints come from.
pub trait Source: Send + Sync {
    /// Shards that a snapshot can be taken of now.
    fn shards(&self) -> Vec<ShardKey>;

    /// Makes a checkpoint, or takes the newest if nothing changed since, and holds its files.
    /// May block.
    ///
    /// # Errors
    /// [`HoldError`].
    fn hold(&self, shard: &ShardKey) -> Result<Held, HoldError>;
}

/// What a snapshot that was taken holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// What was done.
    pub created: Created,
    /// When its checkpoint was taken, milliseconds since the Unix epoch.
    pub taken_ms: u64,
    /// How far it goes.
    pub checkpoint: Vec<SourceNext>,
}

/// Why no snapshot was taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// There is nothing to take one of.
    #[error("no snapshot of shard {shard}")]
    Hold {
        /// The shard.
        shard: String,
        /// Why.
        #[source]
        source: HoldError,
    },
    /// It could not be stored.
    #[error(transparent)]
    Create(#[from] CreateError),
}

impl TakeError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Hold { source, .. } => match source {
                HoldError::NotOwned => ErrorKind::Caller,
                HoldError::NotYet { .. } => ErrorKind::Retry,
                HoldError::Failed { kind, .. } => *kind,
            },
            Self::Create(error) => error.kind(),
        }
    }
}

/// What was last taken of a shard. Locked while one is taken.
type Last = Arc<tokio::sync::Mutex<Option<(ShardPlace, Vec<SourceNext>)>>>;

/// Takes snapshots. Cloning shares it.
#[derive(Clone)]
pub struct Taker {
    store: Arc<dyn Store>,
    source: Arc<dyn Source>,
    clock: Arc<dyn Clock>,
    settings: Settings,
    keep: NonZeroUsize,
    last: Arc<Mutex<HashMap<ShardKey, Last>>>,
}

impl fmt::Debug for Taker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let store = self.store.name();
        f.debug_struct("Taker")
            .field("store", &store)
            .finish_non_exhaustive()
    }
}

impl Taker {
    /// Takes snapshots of what `source` has, into `store`, and keeps so many of each shard.
    pub fn new(
        store: Arc<dyn Store>,
        source: Arc<dyn Source>,
        clock: Arc<dyn Clock>,
        settings: Settings,
        keep: NonZeroUsize,
    ) -> Self {
        Self {
            store,
            source,
            clock,
            settings,
            keep,
            last: Arc::default(),
        }
    }

    /// Takes a snapshot of a shard and prunes old ones.
    ///
    /// # Errors
    /// [`TakeError`]. That old ones could not be pruned is only logged: the next one prunes too.
    pub async fn take(&self, shard: &ShardKey) -> Result<Taken, TakeError> {
        let taken = self.take_if(shard, false).await?;
        Ok(taken.expect("only an unchanged shard is passed over, and this one is not"))
    }

    /// As [`Taker::take`]; nothing if `only_changed`, and nothing was applied since the last one.
    async fn take_if(
        &self,
        shard: &ShardKey,
        only_changed: bool,
    ) -> Result<Option<Taken>, TakeError> {
        let last = {
            let mut all = self.last.lock().expect("nothing panics under this lock");
            all.entry(shard.clone()).or_default().clone()
        };
        let mut last = last.lock().await;
        let label = format!("{}/{}", shard.0, shard.1);
        let watch = Stopwatch::start();
        let outcome = self
            .take_alone(shard, &label, only_changed, last.as_ref())
            .await;
        match outcome {
            Ok(None) => Ok(None),
            Ok(Some((place, taken))) => {
                count(&label, "taken");
                histogram!(names::SNAPSHOT_SECONDS).record(watch.seconds());
                counter!(names::SNAPSHOT_SENT_BYTES_TOTAL, "shard" => label.clone())
                    .increment(taken.created.sent_bytes);
                info!(
                    shard = label,
                    number = taken.created.number,
                    bytes = taken.created.bytes,
                    sent_bytes = taken.created.sent_bytes,
                    "snapshot taken"
                );
                *last = Some((place.clone(), taken.checkpoint.clone()));
                self.prune(place).await;
                Ok(Some(taken))
            }
            Err(error) => {
                count(&label, "failed");
                Err(error)
            }
        }
    }

    async fn take_alone(
        &self,
        shard: &ShardKey,
        label: &str,
        only_changed: bool,
        last: Option<&(ShardPlace, Vec<SourceNext>)>,
    ) -> Result<Option<(ShardPlace, Taken)>, TakeError> {
        let (source, key) = (self.source.clone(), shard.clone());
        let held = blocking(move || source.hold(&key)).await;
        let held = held.map_err(|source| TakeError::Hold {
            shard: label.to_owned(),
            source,
        })?;
        let is_last = last.is_some_and(|(place, checkpoint)| {
            *place == held.place && *checkpoint == held.content.checkpoint
        });
        if only_changed && is_last {
            return Ok(None);
        }
        let shelf = self.shelf(held.place.clone());
        let created = shelf
            .create(&held.owner, &held.content, &*held.files, &held.names)
            .await?;
        let taken = Taken {
            created,
            taken_ms: held.content.taken_ms,
            checkpoint: held.content.checkpoint,
        };
        Ok(Some((held.place, taken)))
    }

    fn shelf(&self, place: ShardPlace) -> Shelf {
        Shelf::new(self.store.clone(), place, self.clock.clone(), self.settings)
    }

    async fn prune(&self, place: ShardPlace) {
        let shard = place.to_string();
        match self.shelf(place).prune(self.keep).await {
            Ok(pruned) if pruned.snapshots + pruned.objects > 0 => {
                info!(
                    shard,
                    snapshots = pruned.snapshots,
                    objects = pruned.objects,
                    bytes = pruned.bytes,
                    "old snapshots pruned"
                );
            }
            Ok(_) => {}
            Err(error) => {
                warn!(shard, error = %chain(&error), "old snapshots not pruned; the next one tries again");
            }
        }
    }

    /// Takes a snapshot of every shard that changed, every so often, until it is cancelled.
    pub async fn run(&self, every: Duration, cancel: &CancellationToken) {
        loop {
            let watch = Stopwatch::start();
            for shard in self.source.shards() {
                // A stop waits for no upload: what was sent is used by the next snapshot.
                let taken = tokio::select! {
                    biased;
                    () = cancel.cancelled() => return,
                    taken = self.take_if(&shard, true) => taken,
                };
                if let Err(error) = taken {
                    let (name, number) = shard;
                    warn!(shard = %format!("{name}/{number}"), error = %chain(&error), "no snapshot taken");
                }
            }
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(every.saturating_sub(watch.elapsed())) => {}
            }
        }
    }
}

fn count(shard: &str, outcome: &'static str) {
    let shard = shard.to_owned();
    counter!(names::SNAPSHOTS_TOTAL, "shard" => shard, "outcome" => outcome).increment(1);
}

#[cfg(test)]
#[path = "taker_tests.rs"]
mod tests;
