//! Which code every failure gets: the only place that chooses, for gRPC and HTTP alike.

use std::time::Duration;

use shoal_runtime::{ErrorKind, chain, grpc};
use shoal_topic::collections::{AliasError, CreateError, DropError};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    coordinator::{ExampleFault, QueryError},
    coverage::{BUSY_PATIENCE, CoverageError},
    definitions::DefinitionsError,
    edge::EdgeError,
    embedding::EmbeddingError,
};

/// A failure as it is told to a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    code: Code,
    message: String,
    /// When the same call may succeed, where that is known.
    retry_after: Option<Duration>,
}

impl Refusal {
    /// The caller sent something that does not read.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self {
            code: Code::InvalidArgument,
            message: message.into(),
            retry_after: None,
        }
    }

    /// What was asked for is not there.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self {
            code: Code::NotFound,
            message: message.into(),
            retry_after: None,
        }
    }

    /// What failed, and what to do.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// When the same call may succeed, where that is known.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The code's number.
    pub(crate) fn number(&self) -> i32 {
        self.code.into()
    }

    /// The code's canonical name.
    pub(crate) fn name(&self) -> &'static str {
        grpc::code_name(self.code)
    }

    /// Its HTTP status.
    pub(crate) fn http_status(&self) -> u16 {
        grpc::http_status(self.code)
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal.retry_after {
            None => Self::new(refusal.code, refusal.message),
            Some(after) => Self::with_error_details(
                refusal.code,
                refusal.message,
                ErrorDetails::with_retry_info(Some(after)),
            ),
        }
    }
}

impl From<QueryError> for Refusal {
    fn from(error: QueryError) -> Self {
        let code = match &error {
            QueryError::NotCaughtUp | QueryError::HomeUnknown => Code::Unavailable,
            QueryError::UnknownCollection { .. }
            | QueryError::Examples(ExampleFault::Unknown { .. }) => Code::NotFound,
            QueryError::Query { .. }
            | QueryError::Examples(_)
            | QueryError::Filter(_)
            | QueryError::Tenant(_)
            | QueryError::ForeignId { .. }
            | QueryError::Range { .. }
            | QueryError::Id { .. }
            | QueryError::Token(_)
            | QueryError::Timeout(_) => Code::InvalidArgument,
            QueryError::Busy { .. } => Code::ResourceExhausted,
            QueryError::NoTime => Code::DeadlineExceeded,
            QueryError::Coverage(CoverageError::Refused(_)) => Code::InvalidArgument,
            QueryError::Coverage(CoverageError::Unsupported(_)) => Code::Unimplemented,
            QueryError::Coverage(CoverageError::TokenTooLate(_)) => Code::DeadlineExceeded,
            QueryError::Coverage(CoverageError::Busy { .. }) => Code::ResourceExhausted,
            QueryError::Coverage(CoverageError::Missing { .. }) => Code::Unavailable,
            QueryError::Edge(error) => of_region(error),
        };
        let retry_after = match &error {
            QueryError::Busy { retry_after, .. } => Some(*retry_after),
            QueryError::Edge(EdgeError::Refused { retry_after, .. }) => *retry_after,
            QueryError::Coverage(CoverageError::Busy { .. }) => Some(BUSY_PATIENCE),
            _ => None,
        };
        Self {
            code,
            message: chain(&error).to_string(),
            retry_after,
        }
    }
}

impl From<DefinitionsError> for Refusal {
    fn from(error: DefinitionsError) -> Self {
        let code = match &error {
            DefinitionsError::NotCaughtUp => Code::Unavailable,
            DefinitionsError::NoKafka => Code::FailedPrecondition,
            DefinitionsError::Unknown { .. } => Code::NotFound,
            DefinitionsError::Empty | DefinitionsError::Definition(_) => Code::InvalidArgument,
            DefinitionsError::Create(error) => match error {
                CreateError::Definition(_) => Code::InvalidArgument,
                CreateError::Differs { .. } | CreateError::Alias { .. } => Code::AlreadyExists,
                CreateError::Misfit { .. } | CreateError::Reads { .. } => Code::FailedPrecondition,
                CreateError::Dropped { .. } => Code::Aborted,
                other => of_kind(other.kind()),
            },
            DefinitionsError::Drop(DropError::Missing { .. }) => Code::NotFound,
            DefinitionsError::Drop(error) => of_kind(error.kind()),
            DefinitionsError::Edge(error) => of_region(error),
            DefinitionsError::OnEdge => Code::FailedPrecondition,
            DefinitionsError::AliasName(_) => Code::InvalidArgument,
            DefinitionsError::Alias(AliasError::Target { .. } | AliasError::Missing { .. }) => {
                Code::NotFound
            }
            DefinitionsError::Alias(AliasError::Overtaken { .. }) => Code::Aborted,
            DefinitionsError::Alias(error) => of_kind(error.kind()),
        };
        Self {
            code,
            message: chain(&error).to_string(),
            retry_after: None,
        }
    }
}

impl From<EmbeddingError> for Refusal {
    fn from(error: EmbeddingError) -> Self {
        let code = match &error {
            EmbeddingError::Length { .. } => Code::InvalidArgument,
            EmbeddingError::NotConfigured => Code::FailedPrecondition,
            EmbeddingError::TimedOut(_) => Code::DeadlineExceeded,
            EmbeddingError::Unreachable { .. } => Code::Unavailable,
            EmbeddingError::Refused { .. } | EmbeddingError::Answer { .. } => match error.kind() {
                ErrorKind::Retry => Code::Unavailable,
                _ => Code::FailedPrecondition,
            },
        };
        Self {
            code,
            message: chain(&error).to_string(),
            retry_after: None,
        }
    }
}

/// A region's own code goes through.
fn of_region(error: &EdgeError) -> Code {
    match error {
        EdgeError::Unreachable(_) => Code::Unavailable,
        EdgeError::NoTime(_) => Code::DeadlineExceeded,
        EdgeError::Refused { code, .. } => Code::from(*code),
        EdgeError::Malformed => Code::Internal,
    }
}

fn of_kind(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Retry | ErrorKind::Closed => Code::Unavailable,
        // What the broker refuses is not wrong in itself: rights or settings are.
        ErrorKind::Caller => Code::FailedPrecondition,
        ErrorKind::Corrupt | ErrorKind::Bug => Code::Internal,
    }
}
