//! Which canonical code a failed call answers with, over gRPC and over HTTP.

use std::time::Duration;

use axum::http::StatusCode;
use shoal_runtime::{ErrorKind, chain, grpc};
use shoal_schemas::v1::{WriteResult, write_result::Outcome};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{CallError, ResidencyError};

/// When a full queue to Kafka may have room: it takes records again as soon as some are
/// acknowledged, and loses them all after the deadline where Kafka is away.
const QUEUE_PATIENCE: Duration = Duration::from_millis(500);

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
        | CallError::BodyTooLarge { .. }
        | CallError::BrokeOff { .. } => Code::InvalidArgument,
        CallError::Said(error) if **error == ResidencyError::Malformed => Code::InvalidArgument,
        CallError::Said(_) | CallError::Residency { .. } => Code::FailedPrecondition,
        CallError::Region(error) => error.code(),
        CallError::Line { source, .. } => code(source),
        CallError::UnknownCollection { .. } => Code::NotFound,
        CallError::NotCaughtUp | CallError::Moving { .. } | CallError::Away { .. } => {
            Code::Unavailable
        }
        CallError::QueueFull { .. } | CallError::Quota(_) => Code::ResourceExhausted,
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

/// The call's answer over gRPC, with `google.rpc.RetryInfo` where it is known when to come back.
pub(super) fn status(error: &CallError) -> Status {
    let (code, text) = (code(error), chain(error).to_string());
    match retry_after(error) {
        None => Status::new(code, text),
        Some(delay) => {
            let details = ErrorDetails::with_retry_info(Some(delay));
            Status::with_error_details(code, text, details)
        }
    }
}

/// When the same call may be taken, if that is known.
pub(super) fn retry_after(error: &CallError) -> Option<Duration> {
    match error {
        CallError::Quota(error) => Some(error.retry_after),
        CallError::QueueFull { .. } => Some(QUEUE_PATIENCE),
        CallError::Region(error) => error.retry_after(),
        CallError::Line { source, .. } => retry_after(source),
        _ => None,
    }
}

/// The call's status over HTTP.
pub(super) fn http(error: &CallError) -> StatusCode {
    match error {
        CallError::BodyTooLarge { .. } => return StatusCode::PAYLOAD_TOO_LARGE,
        CallError::Line { source, .. } => return http(source),
        _ => {}
    }
    http_of(code(error))
}

/// A code's status over HTTP. A condition that does not hold conflicts with what there is.
pub(super) fn http_of(code: Code) -> StatusCode {
    let status = match code {
        Code::FailedPrecondition => return StatusCode::CONFLICT,
        code => grpc::http_status(code),
    };
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// What came of one point.
pub(super) fn of_result(result: &WriteResult) -> Code {
    match &result.outcome {
        Some(Outcome::Failure(failure)) => Code::from(failure.code),
        _ => Code::Ok,
    }
}

/// Why a call's residency is refused, if that is why.
pub(super) fn residency<T>(result: &Result<T, CallError>) -> Option<&'static str> {
    let mut error = result.as_ref().err()?;
    while let CallError::Line { source, .. } = error {
        error = source;
    }
    match error {
        CallError::Said(source) | CallError::Residency { source, .. } => Some(source.reason()),
        _ => None,
    }
}

/// What came of a call, for the metrics.
pub(super) fn outcome<T>(result: &Result<T, CallError>) -> &'static str {
    grpc::code_name(result.as_ref().map_or_else(code, |_| Code::Ok))
}
