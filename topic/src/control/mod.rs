//! The control topic as a map: collections, and who owns which shard.
//!
//! `shoal.control` has one partition and is compacted, so reading it from its beginning gives
//! everything that holds. [`ControlLog::spawn`] keeps a copy that follows it; readers take
//! [`ControlHandle::snapshot`], which never waits. A write counts once it is read back
//! ([`ControlHandle::wait_for`]): its offset is its place among all writers' and, for a claim,
//! its epoch. The latest claim of a shard owns it.
//!
//! The copy outlives the broker's absence: it goes on answering, and says by
//! [`ControlState::caught_up_at`] how old it may be.

mod ensure;
mod follow;
mod state;

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use shoal_runtime::{ErrorKind, clock::Clock, tasks::Tasks};
use shoal_schemas::{
    Offset, Partition, Record,
    control::{Entry, Key},
    name::CONTROL_TOPIC,
};
use tokio::sync::watch;

use crate::{
    Cluster, TopicPartition, WriteError, Writer,
    park::{block_on, block_on_for},
};

pub use ensure::EnsureError;
pub use state::ControlState;

/// Makes and follows the control topic.
pub struct ControlLog;

impl ControlLog {
    /// Makes the control topic if it is missing, and checks it if it is there.
    ///
    /// `replication_factor`: `None` = the broker's default.
    ///
    /// # Errors
    /// [`EnsureError`].
    pub fn ensure(cluster: &Cluster, replication_factor: Option<u16>) -> Result<(), EnsureError> {
        ensure::ensure(&*cluster.admin, replication_factor)
    }

    /// Starts the thread that follows the control topic, and returns what it shares.
    ///
    /// It waits for a topic that is not there yet, goes on through broker outages, and ends with
    /// the tasks' cancellation.
    ///
    /// # Errors
    /// The system's own, when it has no more threads.
    pub fn spawn(
        cluster: &Cluster,
        tasks: &Tasks,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<ControlHandle> {
        let (progress, _) = watch::channel(Offset(0));
        let shared = Arc::new(Shared {
            state: ArcSwap::from_pointee(ControlState::default()),
            progress,
        });
        let follower = follow::Follower::new(
            cluster.clone(),
            Arc::clone(&shared),
            clock,
            tasks.cancel().clone(),
        );
        tasks.spawn_thread("control-log", move || {
            follower.run();
            Ok::<_, std::convert::Infallible>(())
        })?;
        Ok(ControlHandle {
            shared,
            writer: Arc::clone(&cluster.writer),
            is_absent: false,
        })
    }
}

struct Shared {
    state: ArcSwap<ControlState>,
    progress: watch::Sender<Offset>,
}

/// What a role sees of the control topic. Cloning shares it.
#[derive(Clone)]
pub struct ControlHandle {
    shared: Arc<Shared>,
    writer: Arc<dyn Writer>,
    is_absent: bool,
}

/// Why a control record was not written, or not read back.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The log did not take it.
    #[error("control record `{key}` was not written")]
    Write {
        /// Its key.
        key: String,
        /// Why.
        #[source]
        source: WriteError,
    },
    /// It was not read back in time. Whether it was written is known by the offset.
    #[error("control topic is read up to offset {next}, {wanted} did not come within {waited:?}")]
    NotReadBack {
        /// The offset waited for.
        wanted: Offset,
        /// The first offset not read.
        next: Offset,
        /// How long.
        waited: Duration,
    },
    /// The follower has stopped.
    #[error("control topic is not followed any more")]
    Stopped,
}

impl ControlError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Write { source, .. } => source.kind(),
            Self::NotReadBack { .. } => ErrorKind::Retry,
            Self::Stopped => ErrorKind::Closed,
        }
    }
}

impl ControlHandle {
    /// The control topic of a node without Kafka: nothing is known and nothing can be written.
    pub fn absent() -> Self {
        let (progress, _) = watch::channel(Offset(0));
        let state = ArcSwap::from_pointee(ControlState {
            stopped: true,
            ..ControlState::default()
        });
        Self {
            shared: Arc::new(Shared { state, progress }),
            writer: Cluster::absent().writer,
            is_absent: true,
        }
    }

    /// Whether this node has no control topic at all.
    pub fn is_absent(&self) -> bool {
        self.is_absent
    }

    /// What holds now. Cheap, never waits.
    pub fn snapshot(&self) -> Arc<ControlState> {
        self.shared.state.load_full()
    }

    /// Tells of every step: its value is the first offset not read.
    ///
    /// Also marked changed when the end is reached for the first time.
    pub fn changed(&self) -> watch::Receiver<Offset> {
        self.shared.progress.subscribe()
    }

    /// Writes an entry and returns its offset once the log has acknowledged it.
    ///
    /// # Errors
    /// [`ControlError::Write`].
    /// # Cancel safety
    /// Not cancel safe: an entry that is not waited for may be written all the same.
    pub async fn put(&self, key: &Key, entry: &Entry) -> Result<Offset, ControlError> {
        self.write(key, Some(entry.encode())).await
    }

    /// Takes an entry away and returns the offset of its tombstone.
    ///
    /// # Errors
    /// [`ControlError::Write`].
    /// # Cancel safety
    /// Not cancel safe, as [`ControlHandle::put`].
    pub async fn remove(&self, key: &Key) -> Result<Offset, ControlError> {
        self.write(key, None).await
    }

    /// [`ControlHandle::put`] for a thread without a runtime.
    ///
    /// # Errors
    /// [`ControlError::Write`].
    pub fn put_blocking(&self, key: &Key, entry: &Entry) -> Result<Offset, ControlError> {
        block_on(self.put(key, entry))
    }

    /// [`ControlHandle::put`] of several at once for a thread without a runtime, for at most
    /// `deadline`; what was not acknowledged by then may still be written.
    ///
    /// # Errors
    /// [`ControlError::Write`], the first; `None` if it took too long.
    pub fn put_all_blocking(
        &self,
        entries: &[(Key, Entry)],
        deadline: Duration,
    ) -> Option<Result<(), ControlError>> {
        let puts = entries.iter().map(|(key, entry)| self.put(key, entry));
        let all = futures::future::try_join_all(puts);
        block_on_for(all, deadline).map(|done| done.map(drop))
    }

    /// [`ControlHandle::put`] for a thread without a runtime, for at most `deadline`; an entry that was
    /// not acknowledged by then may still be written.
    ///
    /// # Errors
    /// [`ControlError::Write`]; `None` if it took too long.
    pub fn put_within(
        &self,
        key: &Key,
        entry: &Entry,
        deadline: Duration,
    ) -> Option<Result<Offset, ControlError>> {
        block_on_for(self.put(key, entry), deadline)
    }

    /// [`ControlHandle::remove`] for a thread without a runtime, for at most `deadline`; a tombstone
    /// that was not acknowledged by then may still be written.
    ///
    /// # Errors
    /// [`ControlError::Write`]; `None` if it took too long.
    pub fn remove_within(
        &self,
        key: &Key,
        deadline: Duration,
    ) -> Option<Result<Offset, ControlError>> {
        block_on_for(self.remove(key), deadline)
    }

    /// [`ControlHandle::remove`] of several at once for a thread without a runtime, for at most
    /// `deadline`; what was not acknowledged by then may still be written.
    ///
    /// # Errors
    /// [`ControlError::Write`], the first; `None` if it took too long.
    pub fn remove_all_within(
        &self,
        keys: &[Key],
        deadline: Duration,
    ) -> Option<Result<(), ControlError>> {
        let all = futures::future::try_join_all(keys.iter().map(|key| self.remove(key)));
        block_on_for(all, deadline).map(|done| done.map(drop))
    }

    /// [`ControlHandle::remove`] for a thread without a runtime.
    ///
    /// # Errors
    /// [`ControlError::Write`].
    pub fn remove_blocking(&self, key: &Key) -> Result<Offset, ControlError> {
        block_on(self.remove(key))
    }

    /// Waits until `offset` is read back, and returns what holds then.
    ///
    /// # Errors
    /// [`ControlError::NotReadBack`] after `deadline`, [`ControlError::Stopped`].
    pub async fn wait_for(
        &self,
        offset: Offset,
        deadline: Duration,
    ) -> Result<Arc<ControlState>, ControlError> {
        tokio::time::timeout(deadline, self.read_back(offset))
            .await
            .unwrap_or_else(|_| Err(self.not_read_back(offset, deadline)))
    }

    /// [`ControlHandle::wait_for`] for a thread without a runtime.
    ///
    /// # Errors
    /// As [`ControlHandle::wait_for`].
    pub fn wait_for_blocking(
        &self,
        offset: Offset,
        deadline: Duration,
    ) -> Result<Arc<ControlState>, ControlError> {
        block_on_for(self.read_back(offset), deadline)
            .unwrap_or_else(|| Err(self.not_read_back(offset, deadline)))
    }

    /// Waits until the end was reached once, and returns what holds then.
    ///
    /// # Errors
    /// [`ControlError::NotReadBack`] after `deadline`, [`ControlError::Stopped`].
    pub async fn caught_up(&self, deadline: Duration) -> Result<Arc<ControlState>, ControlError> {
        tokio::time::timeout(deadline, self.caught_up_once())
            .await
            .unwrap_or_else(|_| Err(self.not_read_back(self.snapshot().next_offset, deadline)))
    }

    /// [`ControlHandle::caught_up`] for a thread without a runtime.
    ///
    /// # Errors
    /// As [`ControlHandle::caught_up`].
    pub fn caught_up_blocking(
        &self,
        deadline: Duration,
    ) -> Result<Arc<ControlState>, ControlError> {
        block_on_for(self.caught_up_once(), deadline)
            .unwrap_or_else(|| Err(self.not_read_back(self.snapshot().next_offset, deadline)))
    }

    async fn write(&self, key: &Key, value: Option<Vec<u8>>) -> Result<Offset, ControlError> {
        let at = control_partition();
        let text = key.encode();
        let record = Record {
            key: Some(text.clone().into()),
            value: value.map(Into::into),
            ..Record::default()
        };
        let failed = |source| ControlError::Write { key: text, source };
        match self.writer.send(&at, &record) {
            Ok(delivery) => delivery
                .await
                .map(|delivery| delivery.offset)
                .map_err(failed),
            Err(error) => Err(failed(error)),
        }
    }

    async fn read_back(&self, offset: Offset) -> Result<Arc<ControlState>, ControlError> {
        self.until(|state| state.next_offset > offset).await
    }

    async fn caught_up_once(&self) -> Result<Arc<ControlState>, ControlError> {
        self.until(|state| state.caught_up_at.is_some()).await
    }

    async fn until(
        &self,
        holds: impl Fn(&ControlState) -> bool,
    ) -> Result<Arc<ControlState>, ControlError> {
        let mut progress = self.changed();
        loop {
            progress.mark_unchanged();
            let state = self.snapshot();
            if holds(&state) {
                return Ok(state);
            }
            if state.stopped || progress.changed().await.is_err() {
                return Err(ControlError::Stopped);
            }
        }
    }

    fn not_read_back(&self, wanted: Offset, waited: Duration) -> ControlError {
        ControlError::NotReadBack {
            wanted,
            next: self.snapshot().next_offset,
            waited,
        }
    }
}

fn control_partition() -> TopicPartition {
    TopicPartition {
        topic: CONTROL_TOPIC.into(),
        partition: Partition(0),
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
