//! The one place where this service chooses gRPC codes.

use shoal_runtime::{ErrorKind, chain};
use tonic::{Code, Status};

use crate::{
    shard::{buckets::BucketsError, search::ReadError},
    snapshot::taker::TakeError,
};

/// Why one shard does not answer: part of an answer, not of the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What the caller should do, as gRPC says it.
    pub code: Code,
    /// What a person should know.
    pub message: String,
}

impl Refusal {
    /// From a failed read. Logged here, because only the text goes on.
    pub(super) fn from_read(error: &ReadError) -> Self {
        let kind = match error {
            ReadError::Catalog(error) => error.kind(),
            ReadError::Log(error) => error.kind(),
            ReadError::Search(_) | ReadError::Entry(_) => ErrorKind::Corrupt,
        };
        let message = chain(error).to_string();
        tracing::error!(error = %message, "shard cannot answer");
        Self {
            code: code_of(kind),
            message,
        }
    }

    /// From a digest in parts that is not told. Logged here if a person has to act.
    pub(super) fn from_buckets(error: &BucketsError) -> Self {
        let message = chain(error).to_string();
        let code = match error {
            BucketsError::Elsewhere { .. } => Code::FailedPrecondition,
            BucketsError::DoesNotAddUp | BucketsError::Catalog(_) => {
                tracing::error!(error = %message, "shard cannot answer");
                code_of(error.kind())
            }
            BucketsError::Busy => Code::Unavailable,
        };
        Self { code, message }
    }

    /// From a snapshot that was not taken; its caller tells it.
    pub(super) fn from_take(error: &TakeError) -> Self {
        let code = match error.kind() {
            // Not what the caller wrote: this node's own settings or claim.
            ErrorKind::Caller | ErrorKind::Closed => Code::FailedPrecondition,
            kind => code_of(kind),
        };
        Self {
            code,
            message: chain(error).to_string(),
        }
    }

    /// The whole call's status.
    pub(super) fn into_status(self) -> Status {
        Status::new(self.code, self.message)
    }

    /// The code's number, as a shard's part of an answer carries it.
    pub(super) fn number(&self) -> i32 {
        i32::from(self.code)
    }
}

fn code_of(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Retry | ErrorKind::Closed => Code::Unavailable,
        ErrorKind::Caller => Code::InvalidArgument,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Bug => Code::Internal,
    }
}
