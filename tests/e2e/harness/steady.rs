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
        let asks = (0..THREADS).map(|n| {
            let mut vector = vec![0.5_f32; usize::try_from(dim).unwrap()];
            vector[usize::from(n)] = 2.0;
            let ask = v1::SearchRequest {
                read: client::at_least(&[]),
                ..client::search(name, &vector, 10)
            };
            let mut client = query.search.clone();
            move || wait(client.search(within(PATIENCE, ask.clone()))).map(drop)
        });
        Self::repeating(asks, pause)
    }

    /// What is like these points, one a query: that can be asked for whatever model the vectors are of.
    pub(crate) fn recommending(query: &client::Query, name: &str, like: &[&str]) -> Self {
        let asks = like.iter().map(|id| {
            let ask = v1::RecommendRequest {
                collection: name.to_owned(),
                positive: vec![(*id).to_owned()],
                query: Some(v1::Query {
                    k: 10,
                    ..v1::Query::default()
                }),
                read: client::at_least(&[]),
                ..v1::RecommendRequest::default()
            };
            let mut client = query.search.clone();
            move || {
                let found = wait(client.recommend(within(PATIENCE, ask.clone())))?;
                let hits = found.into_inner().hits.len();
                match hits {
                    10 => Ok(()),
                    _ => Err(Status::data_loss(format!("{hits} of 10 hits"))),
                }
            }
        });
        Self::repeating(asks, None)
    }

    /// Each goes on in a thread of its own.
    fn repeating<A>(asks: impl Iterator<Item = A>, pause: Option<Duration>) -> Self
    where
        A: FnMut() -> Result<(), Status> + Send + 'static,
    {
        let mut steady = Self {
            stop: Arc::default(),
            answered: Arc::default(),
            failed: Arc::default(),
            threads: Vec::new(),
        };
        for mut ask in asks {
            let (stop, answered) = (steady.stop.clone(), steady.answered.clone());
            let failed = steady.failed.clone();
            steady.threads.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match ask() {
                        Ok(()) => {
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
