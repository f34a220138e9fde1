//! How many calls are worked on at a time, and how many may wait for their turn.
//!
//! A node that takes everything answers nobody in time once it is asked for more than it can do.
//! So calls beyond `concurrent` wait in the order they came, and one that finds the queue full is
//! refused at once, with a guess of when there is room again. A call that waits is given up at its
//! deadline.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use shoal_runtime::{clock::Stopwatch, config::Validate};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Settings of admission, section `[query.admission]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Searches, batches, gets, counts and scrolls worked on at a time. Default 256.
    ///
    /// Most of a call's time is spent waiting for shards, so this is far more than processors. Too
    /// low and the node idles while calls wait; too high and all of them are late together.
    pub concurrent: u32,
    /// Calls that wait for their turn, each at most until its deadline. Default 1,024; 0 refuses
    /// what cannot begin at once.
    ///
    /// More are refused with `RESOURCE_EXHAUSTED` (HTTP 429) and a time to wait.
    pub queue: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            concurrent: 256,
            queue: 1024,
        }
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Vec<String>) {
        for (key, found, min) in [("concurrent", self.concurrent, 1), ("queue", self.queue, 0)] {
            if !(min..=1_000_000).contains(&found) {
                faults.push(format!(
                    "query.admission.{key} is {found}, allowed are {min} to 1000000"
                ));
            }
        }
    }
}

/// The part that the newest call has in how long a call is expected to take.
const NEWEST: f64 = 0.05;
/// What a caller is told to wait, at least and at most.
const WAIT_AT_LEAST: Duration = Duration::from_millis(10);
const WAIT_AT_MOST: Duration = Duration::from_secs(5);

/// The way in.
#[derive(Debug)]
pub(crate) struct Admission {
    config: Config,
    permits: Semaphore,
    waiting: AtomicU32,
    /// Expected seconds of one call; zero before the first one.
    seconds: Mutex<f64>,
}

/// Why a call is not worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turned {
    /// Too many wait already.
    Away {
        /// How many.
        waiting: u32,
        /// When there may be room.
        retry_after: Duration,
    },
    /// Its time was over before its turn.
    Late,
}

/// A call that is worked on until this is dropped.
#[derive(Debug)]
pub(crate) struct Admitted<'a> {
    admission: &'a Admission,
    since: Stopwatch,
    _permit: SemaphorePermit<'a>,
}

impl Admission {
    pub(crate) fn new(config: Config) -> Self {
        let permits = usize::try_from(config.concurrent).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            permits: Semaphore::new(permits.min(Semaphore::MAX_PERMITS)),
            config,
            waiting: AtomicU32::new(0),
            seconds: Mutex::new(0.0),
        }
    }

    /// Lets a call in, at once or after at most `patience`; calls `queued` if it has to wait.
    ///
    /// # Errors
    /// [`Turned`].
    /// # Cancel safety
    /// Cancel safe: a call that is dropped leaves its place in the queue.
    pub(crate) async fn enter(
        &self,
        patience: Duration,
        queued: impl FnOnce(),
    ) -> Result<Admitted<'_>, Turned> {
        if let Ok(permit) = self.permits.try_acquire() {
            return Ok(self.admit(permit));
        }
        let _place = self.take_place()?;
        queued();
        match tokio::time::timeout(patience, self.permits.acquire()).await {
            Ok(Ok(permit)) => Ok(self.admit(permit)),
            // Nobody closes it, so this is the time-out.
            _ => Err(Turned::Late),
        }
    }

    fn admit<'a>(&'a self, permit: SemaphorePermit<'a>) -> Admitted<'a> {
        Admitted {
            admission: self,
            since: Stopwatch::start(),
            _permit: permit,
        }
    }

    fn take_place(&self) -> Result<Place<'_>, Turned> {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let place = Place(&self.waiting);
        if waiting < self.config.queue {
            return Ok(place);
        }
        Err(Turned::Away {
            waiting,
            retry_after: self.retry_after(waiting),
        })
    }

    /// When those that wait now will have begun, at the pace of the latest calls.
    fn retry_after(&self, waiting: u32) -> Duration {
        let seconds = *self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        let rounds = f64::from(waiting) / f64::from(self.config.concurrent.max(1)) + 1.0;
        Duration::try_from_secs_f64(seconds * rounds)
            .unwrap_or(WAIT_AT_MOST)
            .clamp(WAIT_AT_LEAST, WAIT_AT_MOST)
    }

    fn took(&self, took: Duration) {
        let took = took.as_secs_f64();
        let mut seconds = self.seconds.lock().unwrap_or_else(PoisonError::into_inner);
        *seconds += (took - *seconds) * NEWEST;
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.admission.took(self.since.elapsed());
    }
}

/// A place in the queue.
struct Place<'a>(&'a AtomicU32);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{
        cell::Cell,
        pin::pin,
        task::{Context, Waker},
        time::Duration,
    };

    use shoal_runtime::config::Validate;

    use super::{Admission, Config, Turned, WAIT_AT_LEAST, WAIT_AT_MOST};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn admission(concurrent: u32, queue: u32) -> Admission {
        Admission::new(Config { concurrent, queue })
    }

    #[tokio::test]
    async fn calls_beyond_the_limit_wait_and_those_beyond_the_queue_are_refused() {
        let admission = admission(2, 1);
        let first = admission
            .enter(PATIENCE, || panic!("no wait"))
            .await
            .unwrap();
        let second = admission
            .enter(PATIENCE, || panic!("no wait"))
            .await
            .unwrap();
        let was_queued = Cell::new(false);
        let mut third = pin!(admission.enter(PATIENCE, || was_queued.set(true)));
        let mut context = Context::from_waker(Waker::noop());
        assert!(third.as_mut().poll(&mut context).is_pending());
        let refused = admission.enter(PATIENCE, || {}).await.unwrap_err();
        assert!(
            matches!(refused, Turned::Away { waiting: 1, retry_after } if retry_after >= WAIT_AT_LEAST),
            "{refused:?}"
        );
        drop(first);
        let third = third.await.unwrap();
        assert!(was_queued.get());
        drop((second, third));
        assert!(
            admission
                .enter(PATIENCE, || panic!("no wait"))
                .await
                .is_ok()
        );
    }

    #[tokio::test]
    async fn a_call_whose_time_is_over_or_that_is_dropped_leaves_its_place() {
        let admission = admission(1, 1);
        let _running = admission.enter(PATIENCE, || {}).await.unwrap();
        let late = admission.enter(Duration::from_millis(1), || {}).await;
        assert_eq!(late.unwrap_err(), Turned::Late);
        {
            let mut dropped = pin!(admission.enter(PATIENCE, || {}));
            let mut context = Context::from_waker(Waker::noop());
            assert!(dropped.as_mut().poll(&mut context).is_pending());
        }
        let late = admission.enter(Duration::from_millis(1), || {}).await;
        assert_eq!(late.unwrap_err(), Turned::Late, "its place was free");
    }

    #[test]
    fn the_wait_that_is_told_grows_with_the_queue_and_the_calls_within_bounds() {
        let admission = admission(10, 100);
        assert_eq!(
            admission.retry_after(100),
            WAIT_AT_LEAST,
            "nothing is known"
        );
        for _ in 0..200 {
            admission.took(Duration::from_millis(100));
        }
        let (empty, full) = (admission.retry_after(0), admission.retry_after(100));
        assert!((90..=110).contains(&empty.as_millis()), "{empty:?}");
        assert!((1000..=1200).contains(&full.as_millis()), "{full:?}");
        for _ in 0..200 {
            admission.took(Duration::from_secs(60));
        }
        assert_eq!(admission.retry_after(100), WAIT_AT_MOST);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let mut faults = Vec::new();
        Config::default().validate(&mut faults);
        assert_eq!(faults, Vec::<String>::new());
        let config = Config {
            concurrent: 0,
            queue: 2_000_000,
        };
        config.validate(&mut faults);
        let [concurrent, queue] = &faults[..] else {
            panic!("{faults:?}");
        };
        assert!(concurrent.contains("concurrent is 0") && queue.contains("queue is 2000000"));
    }
}
