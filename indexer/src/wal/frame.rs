//! The frame codec: one payload between a length and a checksum. Pure.
//!
//! ```text
//! start     u32 LE   length of the whole frame: 8 + payload bytes, so never 0
//!           u32 LE   CRC-32 (IEEE) over: position u64 LE, length u32 LE, payload
//! payload   bytes
//! end       the next frame, or the end of the file
//! ```
//!
//! A frame is broken if fewer than 8 bytes are left, its length is below 8 or beyond the end of the segment, or its
//! checksum differs. The position is in the checksum but not in the file: bytes that look like a frame, inside a
//! payload or left over from elsewhere, do not pass as one. Zeros, which a crash or a preallocation leaves, are broken
//! by their length alone.

use super::{Position, to_u64, to_usize};

/// Bytes before the payload.
pub(super) const HEAD_BYTES: usize = 8;

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The segment ends within the head of a frame.
    #[error("{has_bytes} bytes are left, the head of a frame takes {HEAD_BYTES}")]
    Short {
        /// Bytes up to the end of the segment.
        has_bytes: u64,
    },
    /// The length cannot be one.
    #[error(
        "length of the frame is {frame_bytes} bytes, it can be from {HEAD_BYTES} to {left_bytes}"
    )]
    Length {
        /// What the head says.
        frame_bytes: u32,
        /// Bytes up to the end of the segment.
        left_bytes: u64,
    },
    /// The bytes are not those that were written here.
    #[error("checksum in the frame is {stored:#010x}, its bytes give {computed:#010x}")]
    Checksum {
        /// What the head says.
        stored: u32,
        /// What the bytes give.
        computed: u32,
    },
}

/// Length of the frame that holds `parts`, in bytes, whether or not a frame can be that long.
pub(super) fn size(parts: &[&[u8]]) -> u64 {
    let payload: u64 = parts.iter().map(|part| to_u64(part.len())).sum();
    to_u64(HEAD_BYTES) + payload
}

/// Appends to `into` the frame that holds `parts` one after the other and stands at `at`.
///
/// `frame_bytes` is their [`size`].
pub(super) fn encode(at: Position, frame_bytes: u32, parts: &[&[u8]], into: &mut Vec<u8>) {
    debug_assert_eq!(u64::from(frame_bytes), size(parts));
    into.extend_from_slice(&frame_bytes.to_le_bytes());
    into.extend_from_slice(&checksum(at, frame_bytes, parts).to_le_bytes());
    for part in parts {
        into.extend_from_slice(part);
    }
}

/// Length of the frame that begins `bytes`, in bytes, if up to `left_bytes` it may have.
pub(super) fn decode_length(bytes: &[u8], left_bytes: u64) -> Result<usize, Fault> {
    let head = bytes.first_chunk::<HEAD_BYTES>();
    let head = head.ok_or_else(|| Fault::Short {
        has_bytes: to_u64(bytes.len()),
    })?;
    let [a, b, c, d, ..] = *head;
    let frame_bytes = u32::from_le_bytes([a, b, c, d]);
    let wide = u64::from(frame_bytes);
    if wide < to_u64(HEAD_BYTES) || wide > left_bytes {
        return Err(Fault::Length {
            frame_bytes,
            left_bytes,
        });
    }
    Ok(to_usize(wide))
}

/// Payload of the frame that begins `bytes`, if it is one and stands at `at`. More bytes may follow it.
pub(super) fn decode(at: Position, bytes: &[u8]) -> Result<&[u8], Fault> {
    let frame_bytes = decode_length(bytes, to_u64(bytes.len()))?;
    let short = Fault::Short {
        has_bytes: to_u64(bytes.len()),
    };
    let ([a, b, c, d, e, f, g, h], _) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(short)?;
    let length = u32::from_le_bytes([*a, *b, *c, *d]);
    let stored = u32::from_le_bytes([*e, *f, *g, *h]);
    let payload = bytes.get(HEAD_BYTES..frame_bytes).ok_or(short)?;
    let computed = checksum(at, length, &[payload]);
    if stored != computed {
        return Err(Fault::Checksum { stored, computed });
    }
    Ok(payload)
}

fn checksum(at: Position, frame_bytes: u32, parts: &[&[u8]]) -> u32 {
    let [p0, p1, p2, p3, p4, p5, p6, p7] = at.as_u64().to_le_bytes();
    let [l0, l1, l2, l3] = frame_bytes.to_le_bytes();
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[p0, p1, p2, p3, p4, p5, p6, p7, l0, l1, l2, l3]);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::{collection::vec, prelude::*};

    use super::{Fault, HEAD_BYTES, Position, decode, decode_length, encode, size};

    fn encoded(at: Position, parts: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(at, u32::try_from(size(parts)).unwrap(), parts, &mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn parts_come_back_as_one_payload(
            at in any::<u64>(),
            parts in vec(vec(any::<u8>(), 0..50), 0..5),
            after in vec(any::<u8>(), 0..20),
        ) {
            let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let mut bytes = encoded(Position(at), &slices);
            prop_assert_eq!(decode_length(&bytes, u64::MAX).unwrap(), bytes.len());
            bytes.extend(after);
            prop_assert_eq!(decode(Position(at), &bytes).unwrap(), parts.concat());
        }

        #[test]
        fn no_flipped_bit_passes(payload in vec(any::<u8>(), 0..50), bit in any::<prop::sample::Index>()) {
            let mut bytes = encoded(Position(7), &[&payload]);
            let bit = bit.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(Position(7), &bytes).is_err());
        }

        #[test]
        fn no_shortened_frame_passes(payload in vec(any::<u8>(), 0..50), keep in any::<prop::sample::Index>()) {
            let bytes = encoded(Position(7), &[&payload]);
            prop_assert!(decode(Position(7), &bytes[..keep.index(bytes.len())]).is_err());
        }

        #[test]
        fn frame_of_another_place_does_not_pass(at in any::<u64>(), other in any::<u64>()) {
            prop_assume!(at != other);
            let bytes = encoded(Position(at), &[b"payload"]);
            let refused = matches!(decode(Position(other), &bytes), Err(Fault::Checksum { .. }));
            prop_assert!(refused);
        }
    }

    #[test]
    fn zeros_are_no_frame() {
        let fault = decode(Position::START, &[0; 64]).unwrap_err();
        assert_eq!(
            fault,
            Fault::Length {
                frame_bytes: 0,
                left_bytes: 64
            }
        );
        let fault = decode(Position::START, &[0; HEAD_BYTES - 1]).unwrap_err();
        assert_eq!(fault, Fault::Short { has_bytes: 7 });
    }
}
