//! The object store as a seam: a flat space of named, whole, immutable objects.
//!
//! Everything a snapshot needs and every store has: an object appears whole or not at all, a name
//! can be taken once ([`Store::create`]), a listing shows what was stored before it. There is no
//! rename, no append and no update here, because not every store has them.
//! [`super::conformance`] is what an implementation has to do.

use std::{error::Error, fmt, fs::File, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};
use shoal_runtime::ErrorKind;

/// The content of an object, piece by piece.
pub type Chunks = BoxStream<'static, Result<Bytes, StoreError>>;

/// What a call of a [`Store`] will give.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Whether a name was free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It was, and holds the bytes now.
    Created,
    /// Somebody has it already, or is taking it right now; nothing was changed.
    Exists,
}

/// An object, as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its name, with all folders.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// When it was stored, by the store's clock, milliseconds since the Unix epoch.
    pub stored_ms: u64,
}

/// Keeps objects. Names are relative, with `/` between their parts.
pub trait Store: fmt::Debug + Send + Sync {
    /// Which store it is, as a person knows it: its URL.
    fn name(&self) -> &str;

    /// Stores an object if nobody has that name. Of several at once exactly one is told
    /// [`Put::Created`], unless its answer is lost on the way: then it may be told
    /// [`Put::Exists`] of its own bytes.
    fn create<'a>(&'a self, path: &'a str, content: Bytes) -> Answer<'a, Put>;

    /// Stores a file's first `bytes` bytes, in place of what may have that name.
    fn upload<'a>(&'a self, path: &'a str, file: Arc<File>, bytes: u64) -> Answer<'a, ()>;

    /// Reads an object.
    fn read<'a>(&'a self, path: &'a str) -> Answer<'a, Chunks>;

    /// All objects whose names begin with `folder/`, by name.
    fn list<'a>(&'a self, folder: &'a str) -> Answer<'a, Vec<Listed>>;

    /// Names of the folders right below `folder` (the top, if empty), without it, sorted.
    fn folders<'a>(&'a self, folder: &'a str) -> Answer<'a, Vec<String>>;

    /// Removes an object; one that is not there is removed already.
    fn delete<'a>(&'a self, path: &'a str) -> Answer<'a, ()>;
}

/// What is wrong, as far as a store can say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No such object, or no such bucket.
    Missing,
    /// The credentials are absent, wrong, or not enough.
    Denied,
    /// The store cannot do this, or the URL or a variable is wrong.
    Unusable,
    /// It did not answer, or answered that it cannot now.
    Unreachable,
    /// The local file that was to be sent does not read.
    LocalFile,
}

/// A call that a store did not do.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} `{object}` in `{store}`; {}", self.advice())]
pub struct StoreError {
    /// The store's URL.
    pub store: String,
    /// The object or folder.
    pub object: String,
    /// What was tried: `upload`, `read`, ...
    pub doing: &'static str,
    /// What is wrong.
    pub cause: Cause,
    /// The store's own words.
    #[source]
    pub source: Box<dyn Error + Send + Sync>,
}

impl StoreError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self.cause {
            Cause::Missing | Cause::Denied | Cause::Unusable => ErrorKind::Caller,
            Cause::Unreachable => ErrorKind::Retry,
            Cause::LocalFile => ErrorKind::Closed,
        }
    }

    fn advice(&self) -> &'static str {
        match self.cause {
            Cause::Missing => "it is not there: check the bucket, the prefix and the name",
            Cause::Denied => "access is denied: check the credentials and what they may do",
            Cause::Unusable => "the store cannot do this: check its URL and variables",
            Cause::Unreachable => "the store does not answer as it should: try again",
            Cause::LocalFile => "the local file does not read: check the disk",
        }
    }
}

/// How often, and how far apart, a call is made again that a store could not do just now.
///
/// The client of an object store repeats single requests by itself; this is for what it gives up
/// on, such as an object whose stream breaks off.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    /// Calls in all, at least 1.
    pub attempts: u32,
    /// Pause after the first; doubles each time.
    pub first_pause: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 4,
            first_pause: Duration::from_millis(250),
        }
    }
}

impl Retries {
    /// Makes a call until it is done, is refused for good, or was made often enough.
    ///
    /// # Errors
    /// The last one.
    pub async fn run<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let mut pause = self.first_pause;
        for _ in 1..self.attempts {
            match call().await {
                Err(error) if error.kind() == ErrorKind::Retry => {
                    let error = shoal_runtime::chain(&error).to_string();
                    tracing::debug!(error, "object store call is made again");
                }
                outcome => return outcome,
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2);
        }
        call().await
    }
}
