//! Which canonical code a failed call answers with, over gRPC and over HTTP.

use axum::http::StatusCode;
use shoal_runtime::{ErrorKind, chain};
use tonic::{Code, Status};

use super::CallError;

/// The call's canonical code.
pub(super) fn code(error: &CallError) -> Code {
    match error {
        CallError::Name(_)
        | CallError::Empty { .. }
        | CallError::TooMany { .. }
        | CallError::Point { .. }
        | CallError::Unpublishable { .. }
        | CallError::Id { .. }
        | CallError::Patch { .. }
        | CallError::Conditions { .. }
        | CallError::Body { .. }
        | CallError::BodyTooLarge { .. } => Code::InvalidArgument,
        CallError::UnknownCollection { .. } => Code::NotFound,
        CallError::NotCaughtUp | CallError::Away { .. } => Code::Unavailable,
        CallError::QueueFull { .. } => Code::ResourceExhausted,
        CallError::Deadline { .. } => Code::DeadlineExceeded,
        CallError::Schema(error) => match error.kind() {
            ErrorKind::Retry => Code::Unavailable,
            // The call was good; it is the registry that has to be mended.
            _ => Code::FailedPrecondition,
        },
        CallError::Refused(error) => match error.kind() {
            ErrorKind::Retry => Code::Unavailable,
            // The record was good when it was sent, so it is the topic that has to be mended.
            ErrorKind::Caller => Code::FailedPrecondition,
            ErrorKind::Closed | ErrorKind::Corrupt | ErrorKind::Bug => Code::Internal,
        },
    }
}

/// The call's answer over gRPC.
pub(super) fn status(error: &CallError) -> Status {
    Status::new(code(error), chain(error).to_string())
}

/// The call's status over HTTP.
pub(super) fn http(error: &CallError) -> StatusCode {
    if matches!(error, CallError::BodyTooLarge { .. }) {
        return StatusCode::PAYLOAD_TOO_LARGE;
    }
    http_of(code(error))
}

/// A code's status over HTTP.
pub(super) fn http_of(code: Code) -> StatusCode {
    match code {
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::FailedPrecondition | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The code's name as it is written in JSON and in metrics.
pub(super) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::NotFound => "NOT_FOUND",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::Unknown => "UNKNOWN",
        Code::DataLoss => "DATA_LOSS",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::Unavailable => "UNAVAILABLE",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::Unimplemented => "UNIMPLEMENTED",
        _ => "INTERNAL",
    }
}

/// What came of a call, for the metrics.
pub(super) fn outcome<T>(result: &Result<T, CallError>) -> &'static str {
    name(result.as_ref().map_or_else(code, |_| Code::Ok))
}
