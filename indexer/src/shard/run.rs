//! The life of a shard: recover, replay, take turns until cancelled, close.
//!
//! One thread, the shard's own; the builder's is started and ended by it.

use std::{
    sync::{Arc, Mutex, OnceLock, atomic::Ordering},
    time::Duration,
};

use shoal_runtime::{
    ErrorKind, chain,
    clock::{Clock, Stopwatch},
    tasks::Tasks,
};
use shoal_schemas::avro::WriterSchemas;
use shoal_topic::{Cluster, ReadError};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    dlq,
    rule::SourceIndex,
    shard::{
        Shared, Spec, builder, gone,
        recover::{self, OpenError, Opened},
        rescue::{self, Snapshots},
        turns::{Ended, Turns},
        writer::WriteError,
    },
};

/// How long a shard that does not open rests before it is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Why a shard stopped.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// It did not open.
    #[error("shard `{shard}` does not open")]
    Open {
        /// The shard.
        shard: String,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// It cannot write.
    #[error("shard `{shard}` cannot go on writing")]
    Write {
        /// The shard.
        shard: String,
        /// Why.
        #[source]
        source: WriteError,
    },
    /// It cannot read its partitions.
    #[error("shard `{shard}` cannot read its partition")]
    Read {
        /// The shard.
        shard: String,
        /// Why.
        #[source]
        source: ReadError,
    },
    /// The system has no more threads.
    #[error("shard `{shard}` gets no thread for its work")]
    Thread {
        /// The shard.
        shard: String,
        /// The system's own.
        #[source]
        source: std::io::Error,
    },
}

/// What a shard's thread is given.
pub struct Context {
    /// Its definition.
    pub spec: Spec,
    /// Where it reads and where refusals go.
    pub cluster: Cluster,
    /// Writer schemas.
    pub schemas: Arc<dyn WriterSchemas>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where its builder is started.
    pub tasks: Tasks,
    /// Where a shard without a folder begins.
    pub snapshots: Option<Snapshots>,
    /// Ends it.
    pub cancel: CancellationToken,
    /// Gets the readable half as soon as it can be searched.
    pub opened: Arc<OnceLock<Arc<Shared>>>,
}

/// Runs a shard until it is cancelled; everything applied is durable when it returns.
///
/// It also returns, without being cancelled, when its folder does not lead on to the topic: the
/// folder is set aside then, and the shard is to be taken again, from the beginning.
///
/// # Errors
/// [`ShardError`], when it cannot go on.
pub fn run(context: Context) -> Result<(), ShardError> {
    let shard = context.spec.label();
    let open_error = |source| ShardError::Open {
        shard: shard.clone(),
        source,
    };
    let watch = Stopwatch::start();
    rescue::restore_newest(&context);
    let Some(mut opened) = open_in_time(&context).map_err(open_error)? else {
        return Ok(());
    };
    let shared = opened.writer.shared.clone();
    let builder = Builder::start(&mut opened, &context)?;
    let replayed = opened
        .replay(|| context.cancel.is_cancelled())
        .map_err(open_error)?;
    let Some(frames) = replayed else {
        return Ok(());
    };
    let Opened { writer, .. } = opened;
    info!(
        shard,
        replayed = frames,
        points = writer.shared.progress().borrow().points,
        next_offset = writer.next_offset(SourceIndex(0)).0,
        seconds = watch.seconds(),
        "shard recovered"
    );
    let first = context.opened.set(shared.clone());
    debug_assert!(first.is_ok(), "a context opens one shard");
    let mut turns = Turns::new(
        writer,
        context.cluster.clone(),
        context.schemas.clone(),
        context.cancel.clone(),
    );
    let outcome = turns.run();
    shared.closed.store(true, Ordering::Release);
    let closed = match &outcome {
        Ok(_) => turns.close(),
        Err(_) => Ok(()),
    };
    drop(turns);
    drop(builder);
    closed?;
    if let Ended::Gone(why) = outcome? {
        warn!(
            shard,
            why,
            "what the shard holds is damaged or does not lead on to the topic; it is set aside and rebuilt"
        );
        gone::set_aside(&context.spec).map_err(open_error)?;
    }
    Ok(())
}

/// Opens the shard's folder, and waits for one that is still held by a shard that is closing, or
/// for a disk that comes back. `None` once cancelled.
fn open_in_time(context: &Context) -> Result<Option<Opened>, OpenError> {
    while !context.cancel.is_cancelled() {
        match recover::open(context.spec.clone(), context.clock.clone()) {
            Err(OpenError::Identity { path, field }) => {
                warn!(
                    shard = %context.spec.label(),
                    folder = %path.display(),
                    differs = field,
                    "folder holds another shard; it is set aside and this one is rebuilt from Kafka"
                );
                gone::set_aside(&context.spec)?;
            }
            Err(error @ OpenError::Incomplete { .. }) => {
                warn!(
                    shard = %context.spec.label(),
                    error = %chain(&error),
                    "folder is set aside and the shard is rebuilt from Kafka"
                );
                gone::set_aside(&context.spec)?;
            }
            Err(error) if error.kind() == ErrorKind::Retry => {
                warn!(shard = %context.spec.label(), error = %chain(&error), "shard waits to open");
                dlq::wait(&context.cancel, RETRY_AFTER);
            }
            other => return other.map(Some),
        }
    }
    Ok(None)
}

/// The builder's thread, ended together with the shard.
struct Builder {
    cancel: CancellationToken,
    ended: Arc<Mutex<()>>,
}

impl Builder {
    fn start(opened: &mut Opened, context: &Context) -> Result<Self, ShardError> {
        let shard = context.spec.label();
        let cancel = CancellationToken::new();
        let ended = Arc::new(Mutex::new(()));
        let (started, has_started) = std::sync::mpsc::sync_channel(1);
        let body = {
            let shared = opened.writer.shared.clone();
            let storer = std::mem::take(&mut opened.storer);
            let numbers = opened.numbers.clone();
            let (cancel, ended) = (cancel.clone(), ended.clone());
            move || {
                let _running = super::lock(&ended);
                // The shard waits for this, so it always has a receiver.
                let _sent = started.send(());
                builder::run(&shared, storer, || numbers.take(), &cancel)
            }
        };
        context
            .tasks
            .spawn_thread(format!("builder {shard}"), body)
            .map_err(|source| ShardError::Thread { shard, source })?;
        // Held by the builder from here on, so that locking it means waiting for its end.
        let _started = has_started.recv();
        Ok(Self { cancel, ended })
    }
}

impl Drop for Builder {
    /// Ends it and waits until it has.
    fn drop(&mut self) {
        self.cancel.cancel();
        drop(self.ended.lock());
    }
}
