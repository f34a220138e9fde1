//! Queries that go on while something changes, each of which wants every shard.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use shoal_runtime::eventually;
use shoal_schemas::{Collection, v1};
use tonic::Status;

use super::{
    DEADLINE,
    client::{self, within},
    wait,
};

/// How long one query may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Queries under way at a time.
const THREADS: u8 = 4;

/// Queries that go on until they are stopped.
pub(crate) struct Steady {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    failed: Arc<Mutex<Vec<Status>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Steady {
    /// Each of the threads asks again as soon as it is answered, or after a pause.
    pub(crate) fn start(
        query: &client::Query,
        collection: &Collection,
        pause: Option<Duration>,
    ) -> Self {
        Self::asking(
            query,
            collection.name.as_str(),
            collection.dim.into(),
            pause,
        )
    }

    /// The same by a name, which may be an alias.
    pub(crate) fn asking(
        query: &client::Query,
        name: &str,
        dim: u32,
        pause: Option<Duration>,
    ) -> Self {
        let mut steady = Self {
            stop: Arc::default(),
            answered: Arc::default(),
            failed: Arc::default(),
            threads: Vec::new(),
        };
        for n in 0..THREADS {
            let mut vector = vec![0.5_f32; usize::try_from(dim).unwrap()];
            vector[usize::from(n)] = 2.0;
            let ask = v1::SearchRequest {
                read: client::at_least(&[]),
                ..client::search(name, &vector, 10)
            };
            let (stop, answered) = (steady.stop.clone(), steady.answered.clone());
            let (failed, mut client) = (steady.failed.clone(), query.search.clone());
            steady.threads.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match wait(client.search(within(PATIENCE, ask.clone()))) {
                        Ok(_) => {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(status) => failed.lock().unwrap().push(status),
                    }
                    if let Some(pause) = pause {
                        thread::park_timeout(pause);
                    }
                }
            }));
        }
        steady
    }

    /// Waits until so many more are answered.
    #[track_caller]
    pub(crate) fn more(&self, queries: u64) {
        let wanted = self.answered() + queries;
        eventually(DEADLINE, "queries to be answered", || {
            (self.answered() >= wanted).then_some(())
        });
    }

    /// How many were answered so far.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends them; none may have failed.
    #[track_caller]
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        let failed = self.failed.lock().unwrap();
        assert!(failed.is_empty(), "{} failed: {failed:#?}", failed.len());
    }
}
