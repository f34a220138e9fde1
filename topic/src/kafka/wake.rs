//! Wakes a reader when any of its queues gets its first entry.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A flag that one thread waits for and librdkafka's threads raise.
#[derive(Default)]
pub(super) struct Wake {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Wake {
    /// Called on librdkafka's threads, under its locks: does nothing but raise the flag.
    pub(super) fn raise(&self) {
        *self.lock() = true;
        self.changed.notify_one();
    }

    /// To be lowered before the queues are emptied, so that what comes while they are emptied
    /// is not slept over.
    pub(super) fn lower(&self) {
        *self.lock() = false;
    }

    pub(super) fn wait(&self, timeout: Duration) {
        let raised = self.lock();
        let _raised = self
            .changed
            .wait_timeout_while(raised, timeout, |raised| !*raised)
            .unwrap_or_else(PoisonError::into_inner);
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
