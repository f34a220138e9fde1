//! W3C trace context, as far as a record carries it.
//!
//! Only `traceparent` is kept; `tracestate` belongs to the tracing systems and travels as the
//! opaque header it is.
//!
//! # Source
//! W3C Recommendation "Trace Context", section 3.2.

use std::{fmt, str::FromStr};

const VERSION_00_BYTES: usize = 55;

/// A trace and the span in it that caused a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// The whole trace. Not all zeros.
    pub trace_id: [u8; 16],
    /// The causing span. Not all zeros.
    pub parent_id: [u8; 8],
    /// Bit 0: the caller may have recorded the trace.
    pub flags: u8,
}

/// Text that is no `traceparent`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("traceparent has no {0}")]
pub struct TraceParentError(&'static str);

impl TraceParent {
    /// The same trace with another span as the cause.
    ///
    /// Zero is no span id, so it is taken as 1.
    #[must_use]
    pub fn child(&self, span_id: u64) -> Self {
        Self {
            parent_id: span_id.max(1).to_be_bytes(),
            ..*self
        }
    }

    /// Whether the caller may have recorded the trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & 1 == 1
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("00-")?;
        self.trace_id
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("-")?;
        self.parent_id
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))?;
        write!(f, "-{:02x}", self.flags)
    }
}

impl FromStr for TraceParent {
    type Err = TraceParentError;

    /// Reads version 00, and of later versions the part that version 00 defines.
    fn from_str(text: &str) -> Result<Self, TraceParentError> {
        let mut parts = text.splitn(5, '-');
        let mut part = || parts.next().unwrap_or_default();
        let [version] = hex(part()).ok_or(TraceParentError("version of 2 hex digits"))?;
        let trace_id = hex(part()).ok_or(TraceParentError("trace id of 32 hex digits"))?;
        let parent_id = hex(part()).ok_or(TraceParentError("parent id of 16 hex digits"))?;
        let [flags] = hex(part()).ok_or(TraceParentError("flags of 2 hex digits"))?;
        if version == 0xff || version == 0 && text.len() != VERSION_00_BYTES {
            return Err(TraceParentError("known version"));
        }
        if trace_id == [0; 16] || parent_id == [0; 8] {
            return Err(TraceParentError("ids other than zero"));
        }
        Ok(Self {
            trace_id,
            parent_id,
            flags,
        })
    }
}

/// Exactly `N` bytes of lower-case hex.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

fn digit(ascii: u8) -> Option<u8> {
    match ascii {
        b'0'..=b'9' => Some(ascii - b'0'),
        b'a'..=b'f' => Some(ascii - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::TraceParent;

    /// The examples of the recommendation's section 3.2.4.
    #[test]
    fn the_examples_of_the_specification_read_and_print() {
        for (text, sampled) in [
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                true,
            ),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
                false,
            ),
        ] {
            let parsed: TraceParent = text.parse().unwrap();
            assert_eq!(parsed.trace_id[..2], [0x4b, 0xf9]);
            assert_eq!(parsed.parent_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
            assert_eq!(parsed.is_sampled(), sampled);
            assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn a_child_keeps_trace_and_flags() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let child = text.parse::<TraceParent>().unwrap().child(0xabc);
        assert_eq!(
            child.to_string(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000abc-01"
        );
        assert!(child.child(0).to_string().parse::<TraceParent>().is_ok());
    }

    #[test]
    fn a_later_version_is_read_by_its_known_part() {
        let later = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future";
        assert!(later.parse::<TraceParent>().is_ok());
    }

    #[test]
    fn what_the_specification_forbids_is_refused() {
        for text in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert!(text.parse::<TraceParent>().is_err(), "{text}");
        }
    }
}
