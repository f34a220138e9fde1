//! The headers of a record: its version, where it was born, where it may live, its trace.
//!
//! All are optional, so that any Kafka client can write. Without a version the record's own
//! timestamp is its version; without an origin it is the region of its topic.

use bytes::Bytes;

use crate::{
    event::Record,
    name::RegionName,
    reject::{Reason, Rejection},
    version::Version,
};

mod trace;

pub use trace::{TraceParent, TraceParentError};

/// The version: decimal text, or 8 bytes, big endian, of which the first is below 0x20.
///
/// So no text is ever taken for a number it does not say: every text begins at 0x20 or above,
/// and every honest binary version below (the first byte reaches 0x20 in the year 3084).
pub const VERSION: &str = "shoal-version";
/// The region the write was made in.
pub const ORIGIN: &str = "shoal-origin";
/// The region or jurisdiction the record must not leave.
pub const RESIDENCY: &str = "shoal-residency";
/// Of a record that a re-indexing has copied: where it was, `<topic>/<partition>/<offset>`.
pub const FED_FROM: &str = "shoal-fed-from";
/// Of a record that a re-indexing has copied: the run that did.
pub const FED_BY: &str = "shoal-fed-by";
/// Of a record that a re-indexing has written once more because a copy had come behind it: where it
/// was, as in [`FED_FROM`].
pub const FED_AGAIN: &str = "shoal-fed-again";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";

/// Binary versions begin below this byte, text at it or above: it is a space.
const FIRST_OF_TEXT: u8 = b' ';

/// Longest residency tag, in bytes.
pub const MAX_RESIDENCY_BYTES: usize = 128;

/// What the headers of a record say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// When the write happened.
    pub version: Version,
    /// The region it was made in; `None` = that of the topic.
    pub origin: Option<RegionName>,
    /// The tag that keeps the record in one region or jurisdiction.
    pub residency: Option<String>,
    /// The trace it belongs to.
    pub trace: Option<TraceParent>,
}

impl Meta {
    /// Reads a record's headers; where a name repeats the last one counts.
    ///
    /// A `traceparent` that does not parse is passed over, as its specification asks.
    ///
    /// # Errors
    /// [`Reason::BadHeader`], naming the header and what it holds.
    pub fn decode(record: &Record) -> Result<Self, Rejection> {
        let version = match record.header(VERSION) {
            None => Version::from_timestamp(record.timestamp_ms),
            Some(value) => decode_version(value)?,
        };
        let origin = match record.header(ORIGIN) {
            None => None,
            Some(value) => Some(
                text(ORIGIN, value)?
                    .parse()
                    .map_err(|error| refuse(ORIGIN, error))?,
            ),
        };
        let residency = match record.header(RESIDENCY) {
            None => None,
            Some(value) => Some(decode_residency(value)?),
        };
        let trace = record
            .header(TRACEPARENT)
            .and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        Ok(Self {
            version,
            origin,
            residency,
            trace,
        })
    }

    /// Appends what is set, the version in its binary form where it has one.
    pub fn encode(&self, out: &mut Vec<(String, Bytes)>) {
        out.push((VERSION.to_owned(), encode_version(self.version)));
        let texts = [
            (ORIGIN, self.origin.as_ref().map(ToString::to_string)),
            (RESIDENCY, self.residency.clone()),
            (TRACEPARENT, self.trace.as_ref().map(ToString::to_string)),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                out.push((name.to_owned(), Bytes::from(value)));
            }
        }
    }
}

fn encode_version(version: Version) -> Bytes {
    match version.raw().to_be_bytes() {
        binary if binary[0] < FIRST_OF_TEXT => Bytes::copy_from_slice(&binary),
        _ => Bytes::from(version.to_string()),
    }
}

fn decode_version(value: &[u8]) -> Result<Version, Rejection> {
    let decimal = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    if decimal && let Ok(raw) = text(VERSION, value)?.parse() {
        return Ok(Version::from_raw(raw));
    }
    match <[u8; 8]>::try_from(value) {
        Ok(binary) if binary[0] < FIRST_OF_TEXT => {
            Ok(Version::from_raw(u64::from_be_bytes(binary)))
        }
        _ => Err(refuse(
            VERSION,
            format_args!(
                "it holds {} bytes `{}`, allowed are a decimal number below 2^64, or 8 bytes \
                 big endian of which the first is below 0x20",
                value.len(),
                value
                    .iter()
                    .take(24)
                    .copied()
                    .collect::<Vec<u8>>()
                    .escape_ascii()
            ),
        )),
    }
}

fn decode_residency(value: &[u8]) -> Result<String, Rejection> {
    let tag = text(RESIDENCY, value)?;
    if (1..=MAX_RESIDENCY_BYTES).contains(&tag.len()) {
        Ok(tag.to_owned())
    } else {
        Err(refuse(
            RESIDENCY,
            format_args!(
                "it has {} bytes, allowed are 1 to {MAX_RESIDENCY_BYTES}",
                tag.len()
            ),
        ))
    }
}

fn text<'a>(name: &str, value: &'a [u8]) -> Result<&'a str, Rejection> {
    std::str::from_utf8(value).map_err(|error| refuse(name, error))
}

fn refuse(name: &str, why: impl std::fmt::Display) -> Rejection {
    Rejection::new(
        Reason::BadHeader,
        format_args!("header `{name}` does not read: {why}"),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{Meta, ORIGIN, RESIDENCY, TRACEPARENT, TraceParent, VERSION};
    use crate::{Reason, Record, Version};

    fn record(headers: &[(&str, &[u8])]) -> Record {
        Record {
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Bytes::copy_from_slice(value)))
                .collect(),
            timestamp_ms: 1_700_000_000_000,
            ..Record::default()
        }
    }

    #[test]
    fn without_headers_the_timestamp_is_the_version() {
        let meta = Meta::decode(&record(&[])).unwrap();
        assert_eq!(meta.version, Version::from_parts(1_700_000_000_000, 0));
        assert_eq!(
            (meta.origin, meta.residency, meta.trace),
            (None, None, None)
        );
    }

    #[test]
    fn a_version_is_binary_or_decimal() {
        let raw = Version::from_parts(1_700_000_000_000, 9).raw();
        let decimal = raw.to_string();
        for value in [&raw.to_be_bytes()[..], decimal.as_bytes()] {
            let meta = Meta::decode(&record(&[(VERSION, value)])).unwrap();
            assert_eq!(meta.version.raw(), raw);
        }
        let eight_digits = Meta::decode(&record(&[(VERSION, b"12345678")])).unwrap();
        assert_eq!(eight_digits.version.raw(), 12_345_678);
    }

    #[test]
    fn text_of_eight_letters_is_no_binary_version() {
        for value in [
            &b"tomorrow"[..],
            b"  123456",
            b"1.000000",
            "\u{fc}ber\u{fc}b".as_bytes(),
        ] {
            assert_eq!(value.len(), 8);
            let refused = Meta::decode(&record(&[(VERSION, value)])).unwrap_err();
            assert_eq!(refused.reason, Reason::BadHeader);
        }
    }

    #[test]
    fn versions_of_our_days_are_written_in_binary_and_those_of_the_far_future_as_text() {
        let written = |millis| super::encode_version(Version::from_parts(millis, 7));
        assert_eq!(written(1_700_000_000_000).len(), 8);
        let in_3084 = 35_184_372_088_832;
        assert_eq!(written(in_3084 - 1).len(), 8);
        assert!(written(in_3084).iter().all(u8::is_ascii_digit));
    }

    #[test]
    fn a_malformed_header_is_refused_by_name() {
        let bad: [(&str, &[u8]); 8] = [
            (VERSION, b""),
            (VERSION, b"-1"),
            (VERSION, b"18446744073709551616"),
            (VERSION, b"1.5"),
            (ORIGIN, b"Europe"),
            (ORIGIN, b"\xff"),
            (RESIDENCY, b""),
            (RESIDENCY, b"\xff"),
        ];
        for (name, value) in bad {
            let refused = Meta::decode(&record(&[(name, value)])).unwrap_err();
            assert_eq!(refused.reason, Reason::BadHeader);
            assert!(refused.detail.contains(name), "{refused}");
        }
    }

    #[test]
    fn a_malformed_traceparent_is_passed_over() {
        for value in [&b"00-nonsense"[..], b"", b"\xff\xfe"] {
            let meta = Meta::decode(&record(&[(TRACEPARENT, value)])).unwrap();
            assert_eq!(meta.trace, None);
        }
    }

    #[test]
    fn the_last_of_repeated_headers_counts() {
        let meta = Meta::decode(&record(&[(VERSION, b"1"), (VERSION, b"2")])).unwrap();
        assert_eq!(meta.version.raw(), 2);
    }

    proptest! {
        #[test]
        fn what_is_encoded_reads_back(
            raw: u64,
            origin in proptest::option::of("[a-z0-9]{1,6}x[0-9]"),
            residency in proptest::option::of("[a-z]{1,8}"),
            trace in proptest::option::of((1u128.., 1u64.., any::<u8>())),
        ) {
            let meta = Meta {
                version: Version::from_raw(raw),
                origin: origin.map(|name| name.parse().unwrap()),
                residency,
                trace: trace.map(|(trace, parent, flags)| TraceParent {
                    trace_id: trace.to_be_bytes(),
                    parent_id: parent.to_be_bytes(),
                    flags,
                }),
            };
            let mut record = record(&[]);
            meta.encode(&mut record.headers);
            prop_assert_eq!(Meta::decode(&record).unwrap(), meta);
        }
    }
}
