//! Feeding one collection's topic from another one's: each record by the new routing, until producers
//! have switched.
//!
//! A record is copied as it is, with its version, origin and time, and with a header that names where
//! it was. That header is what makes a feed restartable: what the target holds of a key says from which
//! record on the source is news, so a feed that begins anew copies nothing twice and never puts an
//! older record behind a newer one. Within a source partition the order of the log is kept. A record
//! that somebody wrote into the target directly goes before a copy of a lower version.
//!
//! A second header names the run that has copied. Two feeds at once may put an older copy behind a newer
//! one: the one that sees a copy of another begins anew, and what counts of a key is its last copy. A feed
//! that begins where another has been also compares: a key of which the source has nothing any more was
//! deleted, longer ago than Kafka keeps deletes, and is deleted in the target too.
//!
//! What the source's shards would not have taken, a record in the wrong partition or without a key, is
//! passed over.

mod follow;
mod held;

use std::{io, time::Duration};

use shoal_runtime::{ErrorKind, chain, clock::Stopwatch, tasks::Tasks};
use shoal_schemas::{Collection, Offset, Partition};
use shoal_topic::{AdminError, Cluster, ReadError, WriteError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long a feed rests after the broker was away.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How far a feed has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// By the source's partitions: the first offset whose record the target may not hold yet.
    pub next: Vec<Offset>,
    /// Records read from the source.
    pub seen: u64,
    /// Records copied.
    pub copied: u64,
    /// Records that the target has no use for: it holds newer ones, or its shards would refuse them.
    pub passed_over: u64,
    /// Keys deleted because the source has neither them nor their deletes any more.
    pub deleted: u64,
    /// Why it has ended before it was cancelled.
    pub failed: Option<String>,
}

/// Why a feed broke off.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The broker did not say where a partition ends.
    #[error("the topic's ends are not known")]
    Admin(#[from] AdminError),
    /// The source or the target cannot be read.
    #[error("records cannot be read")]
    Read(#[from] ReadError),
    /// The target does not take a record.
    #[error("a record was not copied")]
    Write(#[from] WriteError),
    /// Another feed has copied meanwhile, so that the order of copies is not sure.
    #[error("another feed copies into the same topic")]
    Mixed,
    /// What was copied is of another topic of that name.
    #[error(
        "topic `{topic}` was made anew: its partition {partition} ends at {end}, and there is a copy of \
         its record {copied}; take the run back with --abort and begin again"
    )]
    Anew {
        /// The source.
        topic: String,
        /// Its partition.
        partition: Partition,
        /// The offset of the newest copy there.
        copied: Offset,
        /// Where it ends.
        end: Offset,
    },
}

impl FeedError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Admin(error) => error.kind(),
            Self::Read(error) => error.kind(),
            Self::Write(error) => error.kind(),
            Self::Mixed => ErrorKind::Retry,
            Self::Anew { .. } => ErrorKind::Caller,
        }
    }
}

/// Copies the records of one collection into the topic of another.
pub struct Feed {
    cluster: Cluster,
    from: Collection,
    to: Collection,
    run: String,
}

impl Feed {
    /// A feed of `to` from `from`; both have their topics. `run` is a word unlike that of every other feed
    /// of them.
    pub fn new(cluster: Cluster, from: Collection, to: Collection, run: &str) -> Self {
        let run = run.to_owned();
        Self {
            cluster,
            from,
            to,
            run,
        }
    }

    /// Starts it on a thread of its own. It goes on until `cancel`, through outages of the broker.
    ///
    /// # Errors
    /// The system's own, when it has no more threads.
    pub fn spawn(
        self,
        tasks: &Tasks,
        cancel: CancellationToken,
    ) -> io::Result<watch::Receiver<Progress>> {
        let partitions = usize::try_from(self.from.partitions).unwrap_or(0);
        let (told, progress) = watch::channel(Progress {
            next: vec![Offset(0); partitions],
            ..Progress::default()
        });
        tasks.spawn_thread("feed", move || {
            self.run(&cancel, &told);
            Ok::<_, std::convert::Infallible>(())
        })?;
        Ok(progress)
    }

    fn run(&self, cancel: &CancellationToken, told: &watch::Sender<Progress>) {
        while !cancel.is_cancelled() {
            let Err(error) = self.follow(cancel, told) else {
                return;
            };
            if error.kind() != ErrorKind::Retry {
                let failed = Some(chain(&error).to_string());
                told.send_modify(|progress| progress.failed = failed);
                return;
            }
            warn!(error = %chain(&error), "feed begins anew");
            let watch = Stopwatch::start();
            while watch.elapsed() < RETRY_AFTER && !cancel.is_cancelled() {
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
    }
}

#[cfg(test)]
mod tests;
