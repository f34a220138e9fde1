//! Where the log ends, asked of the broker once for everybody who waits to know.
//!
//! A change is decided on a shard that holds everything acknowledged before the change was asked
//! for; otherwise a caller could be told of a version older than the one it just wrote. The end has
//! to be one that the broker told after the question came up.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use shoal_runtime::tasks::blocking;
use shoal_schemas::Offset;
use shoal_topic::{AdminError, Cluster, TopicPartition};
use tokio::sync::Mutex;

/// How long the broker may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// What is known of one partition's end.
#[derive(Default)]
pub(super) struct Ends {
    asked: AtomicU64,
    heard: Mutex<Heard>,
}

#[derive(Default)]
struct Heard {
    /// Questions up to this one came up before the broker told.
    answers: u64,
    end: Offset,
}

impl Ends {
    /// The partition's end at some moment after this call began.
    ///
    /// # Errors
    /// [`AdminError`].
    /// # Cancel safety
    /// Safe: the next one asks again.
    pub(super) async fn ask(
        &self,
        cluster: &Cluster,
        partition: &TopicPartition,
    ) -> Result<Offset, AdminError> {
        let question = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let mut heard = self.heard.lock().await;
        if heard.answers < question {
            let answers = self.asked.load(Ordering::Acquire);
            let (admin, at) = (cluster.admin.clone(), partition.clone());
            let ends = blocking(move || admin.watermarks(&at, TIMEOUT)).await?;
            *heard = Heard {
                answers,
                end: ends.high,
            };
        }
        Ok(heard.end)
    }
}
