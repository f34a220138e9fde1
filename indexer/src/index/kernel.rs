//! Inner products of codes, by numkong (the only file that names it) and by [`nibbles`].
//!
//! A code is bytes, because it may lie in a memory map. Bytes are read as i8 and f32 where they
//! lie; halves are copied through a small buffer first, which no alignment can break.

use numkong::{Dot, bf16, f16};

use crate::index::nibbles;

/// Halves copied at a time.
const HALVES: usize = 128;

/// A query, prepared for inner products with codes of one kind.
pub(super) trait Kernel {
    /// The inner product with a code of as many components; 0 if it has another number of them.
    fn dot(&self, code: &[u8]) -> f32;

    /// The inner product of two codes.
    fn dot_codes(a: &[u8], b: &[u8]) -> f32;

    /// What [`Kernel::dot`] says, by a loop that runs on any processor; `None` where there is none of ours.
    fn dot_plainly(&self, _code: &[u8]) -> Option<f32> {
        None
    }
}

/// Components of half a byte.
#[derive(Clone, Debug)]
pub(super) struct Nibbles(pub(super) nibbles::Asked);

/// Components of one byte.
#[derive(Clone, Debug)]
pub(super) struct Bytes(pub(super) Vec<i8>);

/// Components as f16.
#[derive(Clone)]
pub(super) struct Halves(Vec<f16>);

/// Components as bf16.
#[derive(Clone)]
pub(super) struct Brains(Vec<bf16>);

/// Components as f32.
#[derive(Clone, Debug)]
pub(super) struct Floats(pub(super) Vec<f32>);

impl Kernel for Nibbles {
    #[inline(always)]
    fn dot(&self, code: &[u8]) -> f32 {
        rounded(self.0.dot(code))
    }

    #[inline(always)]
    fn dot_codes(a: &[u8], b: &[u8]) -> f32 {
        rounded(nibbles::dot_codes(a, b))
    }

    #[inline(always)]
    fn dot_plainly(&self, code: &[u8]) -> Option<f32> {
        Some(rounded(self.0.dot_plainly(code)))
    }
}

impl Kernel for Bytes {
    #[inline(always)]
    fn dot(&self, code: &[u8]) -> f32 {
        dot_bytes(&self.0, bytemuck::cast_slice(code))
    }

    #[inline(always)]
    fn dot_codes(a: &[u8], b: &[u8]) -> f32 {
        dot_bytes(bytemuck::cast_slice(a), bytemuck::cast_slice(b))
    }

    #[inline(always)]
    fn dot_plainly(&self, code: &[u8]) -> Option<f32> {
        let pairs = self.0.iter().zip(code);
        let products = pairs.map(|(one, other)| i32::from(*one) * i32::from(other.cast_signed()));
        Some(rounded(products.sum()))
    }
}

#[inline(always)]
#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "rounding of a sum that is approximate already"
)]
fn rounded(sum: i32) -> f32 {
    sum as f32
}

#[inline(always)]
fn dot_bytes(a: &[i8], b: &[i8]) -> f32 {
    rounded(i8::dot(a, b).unwrap_or(0))
}

impl Kernel for Halves {
    #[inline(always)]
    fn dot(&self, code: &[u8]) -> f32 {
        copied_dot(&self.0, code, f16)
    }

    fn dot_codes(a: &[u8], b: &[u8]) -> f32 {
        Self::of_code(a).dot(b)
    }
}

impl Kernel for Brains {
    #[inline(always)]
    fn dot(&self, code: &[u8]) -> f32 {
        copied_dot(&self.0, code, bf16)
    }

    fn dot_codes(a: &[u8], b: &[u8]) -> f32 {
        Self::of_code(a).dot(b)
    }
}

impl Kernel for Floats {
    #[inline(always)]
    fn dot(&self, code: &[u8]) -> f32 {
        match bytemuck::try_cast_slice(code) {
            Ok(code) => dot_floats(&self.0, code),
            Err(_) => dot_floats(&self.0, &floats(code).collect::<Vec<_>>()),
        }
    }

    fn dot_codes(a: &[u8], b: &[u8]) -> f32 {
        match bytemuck::try_cast_slice(a) {
            Ok(a) => match bytemuck::try_cast_slice(b) {
                Ok(b) => dot_floats(a, b),
                Err(_) => dot_floats(a, &floats(b).collect::<Vec<_>>()),
            },
            Err(_) => Self(floats(a).collect()).dot(b),
        }
    }
}

#[inline(always)]
#[expect(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "the sum is made in f64, an approximate distance is an f32"
)]
fn dot_floats(a: &[f32], b: &[f32]) -> f32 {
    f32::dot(a, b).unwrap_or(0.0) as f32
}

impl Halves {
    /// From a code.
    pub(super) fn of_code(code: &[u8]) -> Self {
        Self(words(code).map(f16).collect())
    }
}

impl Brains {
    /// From a code.
    pub(super) fn of_code(code: &[u8]) -> Self {
        Self(words(code).map(bf16).collect())
    }
}

/// Appends components as f16, the largest finite number instead of infinity.
pub(super) fn push_f16(components: &[f32], out: &mut Vec<u8>) {
    out.extend(
        components
            .iter()
            .flat_map(|component| to_f16(*component).0.to_le_bytes()),
    );
}

/// Appends components as bf16.
pub(super) fn push_bf16(components: &[f32], out: &mut Vec<u8>) {
    out.extend(
        components
            .iter()
            .flat_map(|component| bf16::from_f32(*component).0.to_le_bytes()),
    );
}

/// The components of a code of f16.
pub(super) fn f16_components(code: &[u8]) -> impl Iterator<Item = f32> {
    words(code).map(|word| f16(word).to_f32())
}

/// The components of a code of bf16.
pub(super) fn bf16_components(code: &[u8]) -> impl Iterator<Item = f32> {
    words(code).map(|word| bf16(word).to_f32())
}

/// The components of a code of f32.
pub(super) fn floats(code: &[u8]) -> impl Iterator<Item = f32> {
    code.as_chunks::<4>()
        .0
        .iter()
        .map(|word| f32::from_le_bytes(*word))
}

fn words(code: &[u8]) -> impl Iterator<Item = u16> {
    code.as_chunks::<2>()
        .0
        .iter()
        .map(|word| u16::from_le_bytes(*word))
}

fn to_f16(component: f32) -> f16 {
    /// The largest f16.
    const LARGEST: f32 = 65504.0;
    f16::from_f32(component.clamp(-LARGEST, LARGEST))
}

#[inline(always)]
fn copied_dot<H>(query: &[H], code: &[u8], from_bits: impl Fn(u16) -> H) -> f32
where
    H: Dot<Output = f32> + Copy + Default,
{
    let mut sum = 0.0;
    let mut buffer = [H::default(); HALVES];
    for (part, bytes) in query.chunks(HALVES).zip(code.chunks(2 * HALVES)) {
        let (words, _) = bytes.as_chunks::<2>();
        for (half, word) in buffer.iter_mut().zip(words) {
            *half = from_bits(u16::from_le_bytes(*word));
        }
        let copied = buffer.get(..words.len()).unwrap_or_default();
        sum += H::dot(part, copied).unwrap_or(0.0);
    }
    // A sum of infinities has no place in an order.
    if sum.is_nan() { 0.0 } else { sum }
}
