//! The one place where this service chooses gRPC codes.

use shoal_runtime::{ErrorKind, chain};
use tonic::Code;

use crate::{find::SearchError, shard::search::ReadError};

/// Why one shard does not answer: part of an answer, not of the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the caller should do, as gRPC says it.
    pub code: Code,
    /// What a person should know.
    pub message: String,
}

impl Refusal {
    /// Of work that comes too late.
    pub(super) fn stopping() -> Self {
        Self {
            code: Code::Unavailable,
            message: "indexer is stopping".into(),
        }
    }

    /// From a failed read. Logged here, because only the text goes on; but a caller that is gone
    /// is no fault of the shard.
    pub(super) fn from_read(error: &ReadError) -> Self {
        if let ReadError::Search(SearchError::Stopped) = error {
            return Self {
                code: Code::DeadlineExceeded,
                message: chain(error).to_string(),
            };
        }
        let kind = match error {
            ReadError::Catalog(error) => error.kind(),
            ReadError::Point(error) => error.kind(),
            ReadError::Search(error) => error.kind(),
            ReadError::Entry(_) => ErrorKind::Corrupt,
        };
        let message = chain(error).to_string();
        tracing::error!(error = %message, "shard cannot answer");
        Self {
            code: match kind {
                ErrorKind::Retry | ErrorKind::Closed => Code::Unavailable,
                ErrorKind::Caller => Code::InvalidArgument,
                ErrorKind::Corrupt => Code::DataLoss,
                ErrorKind::Bug => Code::Internal,
            },
            message,
        }
    }

    /// The code's number, as a shard's part of an answer carries it.
    pub(super) fn number(&self) -> i32 {
        i32::from(self.code)
    }
}
