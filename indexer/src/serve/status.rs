//! The one place where this service chooses gRPC codes.

use shoal_runtime::{ErrorKind, chain};
use shoal_schemas::{Version, v1};
use tonic::{Code, Status};

use crate::{
    find::SearchError,
    resolve::{self, ResolveError},
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
        let message = chain(error).to_string();
        tracing::error!(error = %message, "shard cannot answer");
        Self {
            code: of_kind(error.kind()),
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
                of_kind(error.kind())
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
            kind => of_kind(kind),
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

fn of_kind(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Retry | ErrorKind::Closed => Code::Unavailable,
        ErrorKind::Caller => Code::InvalidArgument,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Bug => Code::Internal,
    }
}

/// What a caller is told of a change that was not made, or is not known to be made.
pub(super) fn write_failure(error: &ResolveError) -> v1::WriteFailure {
    let mut current_version = None;
    let code = match error {
        ResolveError::Refused(resolve::Refusal::Condition { current, .. }) => {
            current_version = Some(current.map_or(0, Version::raw));
            Code::Aborted
        }
        ResolveError::Refused(resolve::Refusal::Missing { .. }) => Code::NotFound,
        ResolveError::Refused(resolve::Refusal::Outcome { .. }) => Code::InvalidArgument,
        ResolveError::Busy | ResolveError::QueueFull => Code::ResourceExhausted,
        ResolveError::Late { .. } => Code::DeadlineExceeded,
        ResolveError::Closing | ResolveError::Broker(_) => Code::Unavailable,
        ResolveError::Read(read) => Refusal::from_read(read).code,
        ResolveError::Write(write) => match write.kind() {
            ErrorKind::Retry => Code::Unavailable,
            _ => Code::FailedPrecondition,
        },
        ResolveError::Unknown { .. } => Code::Unknown,
    };
    v1::WriteFailure {
        code: i32::from(code),
        message: chain(error).to_string(),
        current_version,
    }
}
