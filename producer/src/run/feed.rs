//! The reading side of a run: a thread that decodes ahead, in chunks that fit the pace.
//!
//! While the sender keeps up every record goes over alone, so a slow standard input is published
//! as it comes; when the queue is full, records gather into chunks and cost less. A reader that
//! blocks for ever, as standard input may, is left behind: its thread ends with the process or
//! with its next record.

use shoal_runtime::tasks::Tasks;
use shoal_schemas::Event;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::read::ReadError;

/// Chunks read ahead. Full = the reader waits.
const CHUNKS: usize = 4;
/// Records in a chunk at most.
const CHUNK_RECORDS: usize = 64;

/// Some records in the input's order.
#[derive(Default)]
pub(super) struct Chunk {
    pub(super) events: Vec<Result<Event, ReadError>>,
    /// Whether nothing follows.
    pub(super) last: bool,
}

pub(super) struct Feed {
    chunks: mpsc::Receiver<Chunk>,
}

impl Feed {
    pub(super) fn start(
        events: impl Iterator<Item = Result<Event, ReadError>> + Send + 'static,
    ) -> Self {
        let (to, chunks) = mpsc::channel(CHUNKS);
        // Nobody joins it on purpose: dropping the receiver ends it.
        let tasks = Tasks::new(CancellationToken::new());
        let started = tasks.spawn_thread("publish-reader", move || {
            read(events, &to);
            Ok::<_, std::convert::Infallible>(())
        });
        if let Err(failed) = started {
            // The channel is closed then, and the run says that the reader ended.
            error!(error = %failed, "cannot start the reading thread");
        }
        Self { chunks }
    }

    /// The next chunk; `None` if the reader died without a last one.
    ///
    /// # Cancel safety
    /// Safe.
    pub(super) async fn next(&mut self) -> Option<Chunk> {
        self.chunks.recv().await
    }
}

/// Sends until the input or the interest ends.
fn read(events: impl Iterator<Item = Result<Event, ReadError>>, to: &mpsc::Sender<Chunk>) {
    let mut chunk = Chunk::default();
    for event in events {
        chunk.events.push(event);
        if chunk.events.len() >= CHUNK_RECORDS {
            if to.blocking_send(std::mem::take(&mut chunk)).is_err() {
                return;
            }
        } else {
            match to.try_send(std::mem::take(&mut chunk)) {
                Ok(()) => {}
                Err(TrySendError::Full(back)) => chunk = back,
                Err(TrySendError::Closed(_)) => return,
            }
        }
    }
    chunk.last = true;
    // Whoever waits no more needs no end either.
    let _unheard = to.blocking_send(chunk);
}
