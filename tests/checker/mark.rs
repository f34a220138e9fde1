//! Marks: a write's number told twice, by its payload and by its vector.
//!
//! Every write has a number of its own, its *stamp*. The vector of stamp s holds s in its first half and a hash of it in
//! its second, six bits a component, so that it can be read back, and so that distances (squared Euclidean) are whole
//! numbers that single precision holds exactly.

/// Components of a vector.
pub(crate) const DIM: usize = 8;
/// Stamps are smaller.
pub(crate) const STAMPS: u64 = 1 << 24;

const BITS: u32 = 6;

/// The vector of a stamp.
pub(crate) fn vector(stamp: u64) -> [f32; DIM] {
    parts(stamp).map(f32::from)
}

/// The stamp a vector was made of; `None` if it was made of none.
pub(crate) fn stamp(vector: &[f32]) -> Option<u64> {
    let found = vector.iter().take(DIM / 2).rev().try_fold(0, |read, one| {
        let part = (0..1_u8 << BITS).find(|part| f32::from(*part) == *one)?;
        Some((read << BITS) | u64::from(part))
    })?;
    let expected = self::vector(found);
    (vector == expected).then_some(found)
}

/// The distance between the vectors of two stamps.
pub(crate) fn distance(a: u64, b: u64) -> u32 {
    let pairs = parts(a).into_iter().zip(parts(b));
    pairs.map(|(a, b)| u32::from(a.abs_diff(b)).pow(2)).sum()
}

fn parts(stamp: u64) -> [u8; DIM] {
    let hash = stamp.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let mut left = (stamp % STAMPS) | (hash << (BITS * 4));
    [(); DIM].map(|()| {
        let part = u8::try_from(left % (1 << BITS)).unwrap_or_default();
        left >>= BITS;
        part
    })
}
