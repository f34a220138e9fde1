//! A store with planted faults.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};

use super::{Key, Store, StoreError};

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// It never answers.
    Hangs,
    /// It refuses.
    Fails,
    /// It gives back something else than was kept.
    Garbles,
}

/// A store that does what it is told.
pub(crate) struct Faulty<S> {
    store: S,
    fault: Mutex<Option<Fault>>,
    asked: AtomicU32,
}

impl<S: Store> Faulty<S> {
    pub(crate) fn new(store: S) -> Self {
        Self {
            store,
            fault: Mutex::default(),
            asked: AtomicU32::new(0),
        }
    }

    pub(crate) fn set(&self, fault: Option<Fault>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    pub(crate) fn asked(&self) -> u32 {
        self.asked.load(Ordering::SeqCst)
    }

    async fn meet(&self) -> Result<bool, StoreError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let fault = *self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        match fault {
            None => Ok(false),
            Some(Fault::Garbles) => Ok(true),
            Some(Fault::Hangs) => std::future::pending().await,
            Some(Fault::Fails) => Err(StoreError::Failed {
                detail: "planted".into(),
            }),
        }
    }
}

impl<S: Store> Store for Faulty<S> {
    fn find(&self, key: Key) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        async move {
            let is_garbled = self.meet().await?;
            let found = self.store.find(key).await?;
            Ok(found.map(|value| match is_garbled {
                true => value.iter().rev().copied().collect(),
                false => value,
            }))
        }
        .boxed()
    }

    fn keep(
        &self,
        key: Key,
        value: Bytes,
        time: Duration,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            self.meet().await?;
            self.store.keep(key, value, time).await
        }
        .boxed()
    }
}

impl<S: Store> Store for Arc<Faulty<S>> {
    fn find(&self, key: Key) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        (**self).find(key)
    }

    fn keep(
        &self,
        key: Key,
        value: Bytes,
        time: Duration,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        (**self).keep(key, value, time)
    }
}
