//! How much is worked on at a time, and how much may wait for a thread.
//!
//! Work beyond the threads waits in the order it came; beyond the queue it is refused at once, so
//! that whoever asked can ask another replica while there is time.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Code;

use super::Refusal;

/// A way in for one kind of work. Cloning shares it.
#[derive(Clone)]
pub(super) struct Gate {
    permits: Arc<Semaphore>,
    waiting: Arc<AtomicU32>,
    queue: u32,
}

impl Gate {
    pub(super) fn new(threads: usize, queue: u32) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(threads)),
            waiting: Arc::default(),
            queue,
        }
    }

    /// Lets work in once a thread is free.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if too much waits already.
    /// # Cancel safety
    /// Cancel safe: who does not wait any more leaves the queue.
    pub(super) async fn enter(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        if let Ok(permit) = self.permits.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _place = Place(&self.waiting);
        if waiting >= self.queue {
            return Err(Refusal {
                code: Code::ResourceExhausted,
                message: format!(
                    "{waiting} searches or reads wait for a thread already; ask again later"
                ),
            });
        }
        let permit = self.permits.clone().acquire_owned().await;
        permit.map_err(|_| Refusal::stopping())
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
        pin::pin,
        task::{Context, Waker},
    };

    use tonic::Code;

    use super::Gate;

    #[tokio::test]
    async fn work_beyond_the_queue_is_refused_and_who_leaves_makes_room() {
        let gate = Gate::new(1, 1);
        let running = gate.enter().await.unwrap();
        let mut context = Context::from_waker(Waker::noop());
        {
            let mut waits = pin!(gate.enter());
            assert!(waits.as_mut().poll(&mut context).is_pending());
            let refused = gate.enter().await.unwrap_err();
            assert_eq!(refused.code, Code::ResourceExhausted);
            assert!(refused.message.starts_with("1 searches"), "{refused:?}");
        }
        let mut waits = pin!(gate.enter());
        assert!(waits.as_mut().poll(&mut context).is_pending());
        drop(running);
        drop(waits.await.unwrap());
    }
}
