//! The thread that reads the control topic and keeps the copy.
//!
//! It never gives up: what stops it from reading is logged once when it begins and once when it
//! ends. While nothing comes it asks the broker for the end each second, so that the copy's age
//! is known from being told, not from having heard nothing.

use std::{sync::Arc, time::Duration};

use shoal_runtime::{
    ErrorKind, chain,
    clock::{Clock, Stopwatch},
};
use shoal_schemas::Offset;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{ControlState, Shared, control_partition};
use crate::{
    Cluster, Fetched, ReadError, Reader, Start, metrics::CONTROL_NEXT_OFFSET, park::block_on_for,
};

/// Longest that cancellation goes unnoticed.
const POLL: Duration = Duration::from_millis(250);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Between two tries to open the topic.
const REOPEN: Duration = Duration::from_millis(500);
const BATCH: usize = 1024;

pub(super) struct Follower {
    cluster: Cluster,
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    cancel: CancellationToken,
    state: ControlState,
    /// The topic was made anew and is not read to its end yet: what is shown is the old one's.
    shows_old: bool,
    /// Why it cannot read at the moment, as logged.
    trouble: Option<String>,
    heard: Stopwatch,
}

impl Follower {
    pub(super) fn new(
        cluster: Cluster,
        shared: Arc<Shared>,
        clock: Arc<dyn Clock>,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            cluster,
            shared,
            clock,
            cancel,
            state: ControlState::default(),
            shows_old: false,
            trouble: None,
            heard: Stopwatch::start(),
        }
    }

    pub(super) fn run(mut self) {
        while !self.cancel.is_cancelled() {
            let start = match self.state.next_offset {
                Offset(0) => Start::Beginning,
                next => Start::At(next),
            };
            let outcome = self
                .cluster
                .connect
                .open_reader(&[(control_partition(), start)])
                .and_then(|reader| self.follow(reader));
            let Err(error) = outcome else { break };
            self.in_trouble(&error);
            if matches!(error, ReadError::OutOfRange { .. }) {
                self.begin_anew();
                continue;
            }
            let _cancelled = block_on_for(self.cancel.cancelled(), REOPEN);
        }
        if std::mem::take(&mut self.shows_old) {
            self.state = (**self.shared.state.load()).clone();
        }
        self.state.stopped = true;
        self.publish();
    }

    /// The topic was made anew: nothing of the old one holds. But what is read of a topic in part says of the
    /// rest that it is gone, so the old one is shown until the new one is known.
    fn begin_anew(&mut self) {
        self.state = ControlState::default();
        self.shows_old = true;
    }

    /// Reads until cancelled, or until the reader has to be opened anew.
    fn follow(&mut self, mut reader: Box<dyn Reader>) -> Result<(), ReadError> {
        while !self.cancel.is_cancelled() {
            match reader.poll(BATCH, POLL) {
                Ok(fetched) => self.take(&fetched),
                Err(error) if error.kind() == ErrorKind::Retry => self.in_trouble(&error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take(&mut self, fetched: &Fetched) {
        let now = self.clock.monotonic();
        for record in &fetched.records {
            self.state.apply(record.offset, &record.record, now);
        }
        let end = fetched.ends.iter().map(|(_, end)| *end).max();
        if let Some(end) = end {
            self.state.next_offset = self.state.next_offset.max(end);
        }
        if end.is_some() {
            self.caught_up();
        } else if fetched.records.is_empty() {
            self.ask();
        } else {
            self.out_of_trouble();
            self.publish();
        }
    }

    /// Nothing came: is there nothing, or is nobody there?
    fn ask(&mut self) {
        if self.heard.elapsed() < HEARTBEAT {
            return;
        }
        self.heard = Stopwatch::start();
        match self
            .cluster
            .admin
            .watermarks(&control_partition(), HEARTBEAT)
        {
            Ok(marks) if marks.high <= self.state.next_offset => self.caught_up(),
            Ok(_) => {}
            Err(error) => self.say(chain(&error).to_string()),
        }
    }

    fn caught_up(&mut self) {
        self.heard = Stopwatch::start();
        self.out_of_trouble();
        self.state.caught_up_at = Some(self.clock.monotonic());
        self.publish();
    }

    fn in_trouble(&mut self, error: &ReadError) {
        self.say(chain(error).to_string());
    }

    fn say(&mut self, trouble: String) {
        if self.trouble.is_none() {
            warn!(error = trouble, "control topic cannot be read, trying on");
            self.trouble = Some(trouble);
        }
    }

    fn out_of_trouble(&mut self) {
        if self.trouble.take().is_some() {
            info!(next_offset = %self.state.next_offset, "control topic is read again");
        }
    }

    fn publish(&mut self) {
        if self.shows_old && self.state.caught_up_at.is_none() {
            return;
        }
        self.shows_old = false;
        let before = self.shared.state.swap(Arc::new(self.state.clone()));
        let first = before.caught_up_at.is_none() && self.state.caught_up_at.is_some();
        let moved = before.next_offset != self.state.next_offset;
        if moved || first || self.state.stopped {
            #[expect(
                clippy::as_conversions,
                reason = "a gauge is a float; offsets fit its 53 bits"
            )]
            metrics::gauge!(CONTROL_NEXT_OFFSET).set(self.state.next_offset.0 as f64);
            self.shared.progress.send_replace(self.state.next_offset);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::Arc;

    use arc_swap::ArcSwap;
    use shoal_runtime::clock::System;
    use shoal_schemas::{
        Collection, Metric, Offset, Record,
        control::{Entry, Key},
    };
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::{ControlState, Follower, Shared};
    use crate::{Fetched, FetchedRecord, memory::MemoryLog};

    fn defined(name: &str, at: u64) -> FetchedRecord {
        let name: shoal_schemas::CollectionName = name.parse().unwrap();
        let dim = 3.try_into().unwrap();
        let entry = Collection::new(name.clone(), dim, Metric::L2, 1);
        FetchedRecord {
            source: 0,
            offset: Offset(at),
            record: Record {
                key: Some(Key::Collection(name).encode().into()),
                value: Some(Entry::Collection(Box::new(entry)).encode().into()),
                ..Record::default()
            },
        }
    }

    fn follower() -> (Follower, Arc<Shared>) {
        let (progress, _) = watch::channel(Offset(0));
        let shared = Arc::new(Shared {
            state: ArcSwap::from_pointee(ControlState::default()),
            progress,
        });
        let log = MemoryLog::new("memory", System::shared());
        let follower = Follower::new(
            log.cluster(),
            shared.clone(),
            System::shared(),
            CancellationToken::new(),
        );
        (follower, shared)
    }

    /// What is shown: the names, and up to where it is read.
    fn shown(shared: &Shared) -> (Vec<String>, Offset) {
        let state = shared.state.load_full();
        let names = state.collections.keys().map(ToString::to_string);
        (names.collect(), state.next_offset)
    }

    #[test]
    fn a_topic_made_anew_is_shown_when_it_is_read_to_its_end() {
        let (mut follower, shared) = follower();
        follower.take(&Fetched {
            records: vec![defined("a", 5), defined("b", 6)],
            ends: vec![(0, Offset(9))],
        });
        let old = (vec!["a".to_owned(), "b".to_owned()], Offset(9));
        assert_eq!(shown(&shared), old);
        follower.begin_anew();
        follower.take(&Fetched {
            records: vec![defined("b", 0)],
            ends: Vec::new(),
        });
        assert_eq!(shown(&shared), old, "half of it says that `a` is gone");
        follower.take(&Fetched {
            records: vec![defined("c", 1)],
            ends: vec![(0, Offset(2))],
        });
        let new = (vec!["b".to_owned(), "c".to_owned()], Offset(2));
        assert_eq!(shown(&shared), new);
        follower.take(&Fetched {
            records: vec![defined("d", 2)],
            ends: Vec::new(),
        });
        assert_eq!(shown(&shared).0.len(), 3, "and goes on");
    }

    #[test]
    fn a_follower_that_ends_before_it_knows_the_new_topic_leaves_the_old_one() {
        let (mut follower, shared) = follower();
        follower.take(&Fetched {
            records: vec![defined("a", 5)],
            ends: vec![(0, Offset(9))],
        });
        follower.begin_anew();
        follower.cancel.cancel();
        follower.run();
        assert_eq!(shown(&shared), (vec!["a".to_owned()], Offset(9)));
        assert!(shared.state.load().stopped);
    }
}
