//! Asking indexers: the seam, the real client over gRPC, and one in memory.
//!
//! An address is asked for several shards at once. What a whole call fails with is a
//! [`CallError`]; what a single shard answers instead of hits is a code in its answer. Both are
//! sorted into the same few outcomes, which is all the rest of the crate looks at.

mod grpc;
pub mod memory;
pub(crate) mod regions;

use std::{collections::BTreeSet, time::Duration};

use futures::future::BoxFuture;
use shoal_runtime::ErrorKind;
use shoal_schemas::{headers::TraceParent, v1};

pub use grpc::Channels;

/// What goes with a call to an indexer.
#[derive(Clone, Copy, Debug)]
pub struct ShardCall {
    /// The time the indexer has.
    pub timeout: Duration,
    /// The trace it belongs to.
    pub trace: Option<TraceParent>,
}

/// Asks the indexer at an address. Dropping a call gives it up.
pub trait ShardClient: Send + Sync {
    /// Searches some shards.
    ///
    /// # Errors
    /// [`CallError`] if nothing came back for any of them.
    fn search_shards<'a>(
        &'a self,
        address: &'a str,
        request: v1::SearchShardsRequest,
        call: ShardCall,
    ) -> BoxFuture<'a, Result<v1::SearchShardsResponse, CallError>>;

    /// Fetches points by id.
    ///
    /// # Errors
    /// [`CallError`] if nothing came back for any shard.
    fn get_points<'a>(
        &'a self,
        address: &'a str,
        request: v1::GetPointsRequest,
        call: ShardCall,
    ) -> BoxFuture<'a, Result<v1::GetPointsResponse, CallError>>;

    /// Counts points.
    ///
    /// # Errors
    /// [`CallError`] if nothing came back for any shard.
    fn shard_status<'a>(
        &'a self,
        address: &'a str,
        request: v1::ShardStatusRequest,
        call: ShardCall,
    ) -> BoxFuture<'a, Result<v1::ShardStatusResponse, CallError>>;

    /// Counts points that match.
    ///
    /// # Errors
    /// [`CallError`] if nothing came back for any shard.
    fn count_points<'a>(
        &'a self,
        address: &'a str,
        request: v1::CountPointsRequest,
        call: ShardCall,
    ) -> BoxFuture<'a, Result<v1::CountPointsResponse, CallError>>;

    /// Fetches the next points by id.
    ///
    /// # Errors
    /// [`CallError`] if nothing came back for any shard.
    fn shard_scroll<'a>(
        &'a self,
        address: &'a str,
        request: v1::ShardScrollRequest,
        call: ShardCall,
    ) -> BoxFuture<'a, Result<v1::ShardScrollResponse, CallError>>;

    /// Lets go of every connection to an address that is not among these.
    fn retain(&self, addresses: &BTreeSet<String>);
}

/// Why a call to an indexer brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Nobody answers there.
    #[error("indexer at {address} does not answer: {detail}")]
    Unreachable {
        /// The address.
        address: String,
        /// What the transport says.
        detail: String,
    },
    /// No answer in time.
    #[error("indexer at {address} did not answer within {waited_ms} ms")]
    TimedOut {
        /// The address.
        address: String,
        /// How long it had.
        waited_ms: u128,
    },
    /// It answered with an error.
    #[error("indexer at {address} refused with code {code}: {detail}")]
    Refused {
        /// The address.
        address: String,
        /// A `google.rpc.Code` number.
        code: i32,
        /// What it says.
        detail: String,
    },
}

impl CallError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } => ErrorKind::Retry,
            Self::Refused { code, .. } => match Outcome::of_code(*code) {
                Outcome::Refused | Outcome::Unsupported => ErrorKind::Caller,
                _ => ErrorKind::Retry,
            },
        }
    }

    /// The class of the failure.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Unreachable { .. } => Outcome::Unreachable,
            Self::TimedOut { .. } => Outcome::TimedOut,
            Self::Refused { code, .. } => match Outcome::of_code(*code) {
                // A refusal is no answer, whatever its number.
                Outcome::Answered => Outcome::Failed,
                outcome => outcome,
            },
        }
    }
}

/// What became of a shard that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It answered.
    Answered,
    /// The node does not have it (any more).
    Moved,
    /// The node cannot be reached.
    Unreachable,
    /// Not in time: it is slow, or a token's write has not come.
    TimedOut,
    /// The request itself is wrong.
    Refused,
    /// The node does not know how to do what is asked.
    Unsupported,
    /// The node has more to do than it takes.
    Busy,
    /// The shard is further behind than the caller accepts.
    Behind,
    /// This copy of the shard is damaged.
    Damaged,
    /// Anything else: most likely it fails everywhere.
    Failed,
}

impl Outcome {
    /// Reads a `google.rpc.Code` number.
    pub(crate) fn of_code(code: i32) -> Self {
        match code {
            0 => Self::Answered,
            // CANCELLED is what a server's own time limit gives.
            1 | 4 => Self::TimedOut,
            3 | 11 => Self::Refused,
            5 | 9 => Self::Moved,
            8 => Self::Busy,
            12 => Self::Unsupported,
            14 => Self::Unreachable,
            15 => Self::Damaged,
            _ => Self::Failed,
        }
    }

    /// Whether another replica may do better.
    pub(crate) fn is_retryable(self) -> bool {
        match self {
            Self::Moved | Self::Unreachable | Self::Busy | Self::Behind | Self::Damaged => true,
            // Time is over for everybody.
            Self::TimedOut => false,
            Self::Answered | Self::Refused | Self::Unsupported | Self::Failed => false,
        }
    }
}
