//! A store that may be away, asked with patience that ends: a time limit, and a rest after failures.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use shoal_runtime::{chain, clock::Clock};
use tracing::{info, warn};

use super::{Key, Store, StoreError, breaker::Breaker};

/// A store with a time limit.
pub(crate) struct Guard<S> {
    store: S,
    timeout: Duration,
    breaker: Mutex<Breaker>,
    clock: Arc<dyn Clock>,
}

impl<S: Store> Guard<S> {
    pub(crate) fn new(store: S, timeout: Duration, clock: Arc<dyn Clock>) -> Self {
        Self {
            store,
            timeout,
            breaker: Mutex::default(),
            clock,
        }
    }

    async fn ask<T>(
        &self,
        asked: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let now = self.clock.monotonic();
        if !self.with_breaker(|breaker| breaker.may_ask(now)) {
            return Err(StoreError::LeftAlone);
        }
        let waited = self.timeout;
        let answered = tokio::time::timeout(waited, asked).await;
        let answered = answered.unwrap_or(Err(StoreError::TimedOut { waited }));
        match &answered {
            Ok(_) => {
                if self.with_breaker(Breaker::worked) {
                    info!("store of kept answers works again");
                }
            }
            Err(error) => {
                let now = self.clock.monotonic();
                if self.with_breaker(|breaker| breaker.failed(now)) {
                    warn!(error = %chain(error), "store of kept answers is left alone for a while");
                }
            }
        }
        answered
    }

    fn with_breaker<T>(&self, look: impl FnOnce(&mut Breaker) -> T) -> T {
        look(&mut self.breaker.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: Store> Store for Guard<S> {
    fn find(&self, key: Key) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        self.ask(self.store.find(key)).boxed()
    }

    fn keep(
        &self,
        key: Key,
        value: Bytes,
        time: Duration,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        self.ask(self.store.keep(key, value, time)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use shoal_runtime::clock::{Manual, System};

    use super::Guard;
    use crate::cache::{
        KeyOf, Store as _, StoreError, conformance,
        faulty::{Fault, Faulty},
        memory::Memory,
    };

    #[tokio::test]
    async fn a_guarded_store_is_a_store() {
        let memory = Memory::new(1 << 20, System::shared());
        conformance::all(&Guard::new(
            memory,
            Duration::from_secs(60),
            System::shared(),
        ))
        .await;
    }

    #[tokio::test]
    async fn a_store_that_hangs_or_fails_is_left_alone_and_taken_up_again() {
        for fault in [Fault::Hangs, Fault::Fails] {
            let clock = Manual::at(0);
            let faulty = Arc::new(Faulty::new(Memory::new(1 << 20, clock.clone())));
            let guard = Guard::new(faulty.clone(), Duration::from_millis(1), clock.clone());
            let key = KeyOf::new("test").finish();
            faulty.set(Some(fault));
            for _ in 0..3 {
                let refused = guard.find(key).await.unwrap_err();
                assert_ne!(refused, StoreError::LeftAlone);
            }
            let asked = faulty.asked();
            assert_eq!(guard.find(key).await, Err(StoreError::LeftAlone));
            assert_eq!(faulty.asked(), asked);
            faulty.set(None);
            clock.advance(Duration::from_secs(1));
            assert_eq!(guard.find(key).await, Ok(None));
            assert_eq!(guard.find(key).await, Ok(None));
        }
    }
}
