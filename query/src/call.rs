//! What one call brings along: how long it may take, and the trace it belongs to.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shoal_runtime::clock::Stopwatch;
use shoal_schemas::headers::TraceParent;
use tracing::Span;

/// A call's deadline and trace.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// When the answer has to be there.
    pub deadline: Deadline,
    /// The trace with this node's own span as the cause; `None` if the caller sent none.
    pub trace: Option<TraceParent>,
}

impl Call {
    /// A call that came in now, with this much time.
    pub fn within(budget: Duration) -> Self {
        Self {
            deadline: Deadline::within(budget),
            trace: None,
        }
    }

    /// The same call as part of the trace in a `traceparent`, under a span id of its own.
    ///
    /// One that does not parse is passed over, as its specification asks.
    #[must_use]
    pub fn traced(self, traceparent: Option<&str>) -> Self {
        let caller: Option<TraceParent> = traceparent.and_then(|text| text.parse().ok());
        Self {
            trace: caller.map(|caller| caller.child(new_span_id())),
            ..self
        }
    }

    /// The span of this call's log lines.
    pub fn span(&self, verb: &'static str, collection: &str) -> Span {
        let Some(trace) = self.trace else {
            // Nobody can join these lines to a trace, so the span is for debugging only.
            return tracing::debug_span!("call", verb, collection);
        };
        let text = trace.to_string();
        let mut parts = text.split('-').skip(1);
        let trace_id = parts.next().unwrap_or_default();
        let span_id = parts.next().unwrap_or_default();
        tracing::info_span!("call", verb, collection, trace_id, span_id)
    }
}

/// The moment an answer has to be there.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    since: Stopwatch,
    budget: Duration,
}

/// Largest part of the time kept back for the answer's own way.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);

impl Deadline {
    /// This long from now.
    pub fn within(budget: Duration) -> Self {
        Self {
            since: Stopwatch::start(),
            budget,
        }
    }

    /// What is left; zero once it is over.
    pub fn remaining(&self) -> Duration {
        self.budget.saturating_sub(self.since.elapsed())
    }

    /// The deadline the shards get: a tenth earlier, at most 100 ms, so that a partial answer
    /// still reaches a caller whose shard hangs.
    #[must_use]
    pub fn for_shards(&self) -> Self {
        Self {
            since: self.since,
            budget: self.budget - (self.budget / 10).min(ANSWER_MARGIN),
        }
    }
}

/// An id no other span is likely to have: a keyed hash of a counter, keyed at random once a
/// process.
fn new_span_id() -> u64 {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    KEYS.hash_one(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A time-out that does not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("time-out `{found}` does not read: {expected}")]
pub struct TimeoutError {
    /// As given, cut where it is long.
    found: String,
    /// What may stand there.
    expected: &'static str,
}

impl TimeoutError {
    fn new(found: &str, expected: &'static str) -> Self {
        Self {
            found: found.chars().take(32).collect(),
            expected,
        }
    }
}

/// Reads gRPC's `grpc-timeout`: up to 8 digits and a unit.
///
/// # Errors
/// [`TimeoutError`] if it is anything else, or zero.
pub fn parse_grpc_timeout(text: &str) -> Result<Duration, TimeoutError> {
    let refused = || {
        TimeoutError::new(
            text,
            "send 1 to 8 digits, not all 0, and one of H M S m u n",
        )
    };
    let (at, unit) = text.char_indices().next_back().ok_or_else(refused)?;
    let digits = text.get(..at).unwrap_or_default();
    let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let count: u64 = (plain.then(|| digits.parse().ok()).flatten()).ok_or_else(refused)?;
    let timeout = match unit {
        'H' => Duration::from_secs(count * 3600),
        'M' => Duration::from_secs(count * 60),
        'S' => Duration::from_secs(count),
        'm' => Duration::from_millis(count),
        'u' => Duration::from_micros(count),
        'n' => Duration::from_nanos(count),
        _ => return Err(refused()),
    };
    if timeout.is_zero() {
        return Err(refused());
    }
    Ok(timeout)
}

/// Reads a number of milliseconds, as HTTP callers give it.
///
/// # Errors
/// [`TimeoutError`] if it is no number from 1 to 86,400,000 (a day).
pub fn parse_timeout_ms(text: &str) -> Result<Duration, TimeoutError> {
    match text.parse::<u64>() {
        Ok(millis @ 1..=86_400_000) => Ok(Duration::from_millis(millis)),
        _ => Err(TimeoutError::new(
            text,
            "send a number of milliseconds, 1 to 86400000",
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use super::{Call, Deadline, parse_grpc_timeout, parse_timeout_ms};

    #[test]
    fn grpc_timeouts_read_in_every_unit() {
        let cases = [
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("99999999S", Duration::from_secs(99_999_999)),
            ("250m", Duration::from_millis(250)),
            ("5u", Duration::from_micros(5)),
            ("7n", Duration::from_nanos(7)),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_grpc_timeout(text).unwrap(), expected, "{text}");
        }
        for text in ["", "m", "5", "5x", "-5m", "+5m", "123456789m", "0m", "5µ"] {
            assert!(parse_grpc_timeout(text).is_err(), "{text}");
        }
    }

    #[test]
    fn milliseconds_are_a_plain_number_above_zero() {
        assert_eq!(parse_timeout_ms("15").unwrap(), Duration::from_millis(15));
        for text in ["", "0", "-1", "1.5", "1s", "86400001"] {
            assert!(parse_timeout_ms(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_trace_goes_on_under_a_span_of_our_own() {
        let caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let first = Call::within(Duration::from_secs(1)).traced(Some(caller));
        let second = Call::within(Duration::from_secs(1)).traced(Some(caller));
        let (first, second) = (first.trace.unwrap(), second.trace.unwrap());
        assert_eq!(
            first.trace_id,
            caller
                .parse::<shoal_schemas::headers::TraceParent>()
                .unwrap()
                .trace_id
        );
        assert_ne!(first.parent_id, second.parent_id);
        assert!(
            Call::within(Duration::ZERO)
                .traced(Some("nonsense"))
                .trace
                .is_none()
        );
    }

    #[test]
    fn shards_get_a_little_less_than_the_caller() {
        let deadline = Deadline::within(Duration::from_secs(100));
        let shards = deadline.for_shards();
        assert!(shards.remaining() < deadline.remaining());
        assert!(shards.remaining() > Duration::from_secs(90));
        assert_eq!(
            Deadline::within(Duration::ZERO).for_shards().remaining(),
            Duration::ZERO
        );
    }
}
