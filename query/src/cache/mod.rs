//! Answers that are kept, so that the same question costs the shards less the next time.
//!
//! ```text
//! question -> key -> memory -> Redis ----> kept answer -> still good? -> shown
//!                                  |                         | no
//!                                  +--------> shards <-------+
//! ```
//!
//! This folder keeps bytes under names and knows nothing of searches; whether a kept answer may be
//! shown is decided where it is asked for (`coordinator/kept.rs` and [`crate::edge`]). A store that
//! fails, is slow or holds nonsense is a store that has nothing: it costs speed, never an answer.

mod breaker;
mod config;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod faulty;
mod guard;
mod key;
mod memory;
mod meters;
mod remote;
mod tiers;
mod value;

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;

pub use self::{config::Config, remote::AddressError};
pub(crate) use self::{
    key::{Key, KeyOf},
    meters::Lookup,
    tiers::Cache,
    value::{Dated, KeptAnswer, KeptShard, KeptShards, soonest},
};

/// Where kept answers are.
pub(crate) trait Store: Send + Sync {
    /// What is kept under a name; `None` if nothing is, any more or yet.
    ///
    /// # Errors
    /// [`StoreError`].
    fn find(&self, key: Key) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>>;

    /// Keeps a value for a while, in place of what was there. A store that is full may forget any.
    ///
    /// # Errors
    /// [`StoreError`]; the value may be kept all the same.
    fn keep(&self, key: Key, value: Bytes, time: Duration)
    -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// It took too long.
    #[error("store of kept answers did not answer within {} ms", .waited.as_millis())]
    TimedOut {
        /// How long it had.
        waited: Duration,
    },
    /// It cannot be reached, or refuses.
    #[error("store of kept answers fails: {detail}")]
    Failed {
        /// What it says.
        detail: String,
    },
    /// It failed so often that it is left alone for a while.
    #[error("store of kept answers is left alone after it failed")]
    LeftAlone,
}
