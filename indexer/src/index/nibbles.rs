//! Inner products with codes of half a byte a component.
//!
//! A code holds each component and [`ZERO`] more, so that it is no negative number: the sum over
//! unsigned halves of bytes times signed bytes is what processors have an instruction for, and what
//! was added comes off at the end, by the sum of the other side. A crate's kernel for two codes of
//! signed halves takes three sums in place of one.

/// What a component of 0 is in a code.
pub(super) const ZERO: i8 = 8;
/// Bytes of a code that are looked at together.
const LANES: usize = 64;
/// The lower half of a byte.
const LOW: u8 = 0xf;

/// Components of a query, one byte each, in the order in which a code has its halves.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// Those of lower halves, filled up with zeros to whole [`LANES`].
    low: Vec<i8>,
    high: Vec<i8>,
    sum: i32,
}

impl Asked {
    /// From components.
    pub(super) fn new(components: &[i8]) -> Self {
        let bytes = components.len().div_ceil(2).next_multiple_of(LANES);
        let (mut low, mut high) = (vec![0; bytes], vec![0; bytes]);
        let places = low.iter_mut().zip(&mut high);
        for (pair, (low, high)) in components.chunks(2).zip(places) {
            *low = pair.first().copied().unwrap_or_default();
            *high = pair.get(1).copied().unwrap_or_default();
        }
        Self {
            low,
            high,
            sum: components.iter().map(|one| i32::from(*one)).sum(),
        }
    }

    /// The inner product with what a code says; of a longer one, with its beginning.
    #[inline(always)]
    pub(super) fn dot(&self, code: &[u8]) -> i32 {
        let code = code.get(..self.low.len()).unwrap_or(code);
        products(&self.low, &self.high, code) - i32::from(ZERO) * self.sum
    }

    /// The same by a loop that runs on any processor.
    #[inline(always)]
    pub(super) fn dot_plainly(&self, code: &[u8]) -> i32 {
        products_one_by_one(&self.low, &self.high, code) - i32::from(ZERO) * self.sum
    }
}

/// The inner product of what two codes say; of a longer one, with its beginning.
pub(super) fn dot_codes(a: &[u8], b: &[u8]) -> i32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bw") {
        #[expect(unsafe_code, reason = "the processor was asked")]
        // SAFETY: it has the features.
        return unsafe { x86::codes_by_vnni(a, b) };
    } else if is_x86_feature_detected!("avx2") {
        #[expect(unsafe_code, reason = "the processor was asked")]
        // SAFETY: it has the features.
        return unsafe { x86::codes_by_avx2(a, b) };
    }
    codes_one_by_one(a, b)
}

fn codes_one_by_one(a: &[u8], b: &[u8]) -> i32 {
    let pairs = a.iter().zip(b);
    let products = pairs.map(|(a, b)| {
        let (a, b) = (halves(*a), halves(*b));
        i32::from(a.0) * i32::from(b.0) + i32::from(a.1) * i32::from(b.1)
    });
    products.sum()
}

/// A code of components that fit.
pub(super) fn push(components: &[i8], out: &mut Vec<u8>) {
    out.extend(components.chunks(2).map(|pair| {
        let half =
            |at: usize| (pair.get(at).copied().unwrap_or_default() + ZERO).cast_unsigned() & LOW;
        half(0) | half(1) << 4
    }));
}

/// What a code says; one more than was coded if that was an odd number.
pub(super) fn components(code: &[u8]) -> impl Iterator<Item = i8> {
    code.iter().flat_map(|byte| {
        let (low, high) = halves(*byte);
        [low, high]
    })
}

#[inline(always)]
fn halves(byte: u8) -> (i8, i8) {
    let low = (byte & LOW).cast_signed() - ZERO;
    (low, (byte >> 4).cast_signed() - ZERO)
}

/// The sum over the halves of a code, as unsigned numbers, times numbers of which there are as many.
#[inline(always)]
fn products(low: &[i8], high: &[i8], code: &[u8]) -> i32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512bw") {
        #[expect(unsafe_code, reason = "the processor was asked")]
        // SAFETY: it has the features.
        return unsafe { x86::products_by_vnni(low, high, code) };
    } else if is_x86_feature_detected!("avx2") {
        #[expect(unsafe_code, reason = "the processor was asked")]
        // SAFETY: it has the features.
        return unsafe { x86::products_by_avx2(low, high, code) };
    }
    products_one_by_one(low, high, code)
}

fn products_one_by_one(low: &[i8], high: &[i8], code: &[u8]) -> i32 {
    let rows = low.iter().zip(high).zip(code);
    let products = rows.map(|((low, high), byte)| {
        i32::from(*low) * i32::from(byte & LOW) + i32::from(*high) * i32::from(byte >> 4)
    });
    products.sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::{
        __m256i, __m512i, _mm_add_epi32, _mm_cvtsi128_si32, _mm_shuffle_epi32, _mm256_add_epi32,
        _mm256_and_si256, _mm256_castsi256_si128, _mm256_extracti128_si256, _mm256_loadu_si256,
        _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi8, _mm256_set1_epi16,
        _mm256_setzero_si256, _mm256_srli_epi16, _mm256_sub_epi8, _mm256_sub_epi16,
        _mm512_and_si512, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_maskz_loadu_epi8,
        _mm512_reduce_add_epi32, _mm512_set1_epi8, _mm512_setzero_si512, _mm512_srli_epi16,
        _mm512_sub_epi8, _mm512_sub_epi32,
    };

    use super::{LANES, ZERO, codes_one_by_one, products_one_by_one};

    /// Bytes of a code that are looked at together.
    const LANES_OF_AVX2: usize = 32;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn loaded(part: &[u8]) -> __m512i {
        #[expect(unsafe_code, reason = "loads take a pointer")]
        match part.len() {
            // SAFETY: so many bytes are there.
            LANES => unsafe { _mm512_loadu_si512(part.as_ptr().cast()) },
            // SAFETY: bytes beyond the part's end are masked, and those are not read.
            fewer => unsafe {
                let mask = (1u64 << (fewer % LANES)) - 1;
                _mm512_maskz_loadu_epi8(mask, part.as_ptr().cast())
            },
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn products_by_vnni(low: &[i8], high: &[i8], code: &[u8]) -> i32 {
        let half = _mm512_set1_epi8(0xf);
        let mut sum = _mm512_setzero_si512();
        let others = low.chunks_exact(LANES).zip(high.chunks_exact(LANES));
        for (part, (low, high)) in code.chunks(LANES).zip(others) {
            let part = loaded(part);
            let (low, high) = (bytemuck::cast_slice(low), bytemuck::cast_slice(high));
            let upper = _mm512_and_si512(_mm512_srli_epi16::<4>(part), half);
            sum = _mm512_dpbusd_epi32(sum, _mm512_and_si512(part, half), loaded(low));
            sum = _mm512_dpbusd_epi32(sum, upper, loaded(high));
        }
        _mm512_reduce_add_epi32(sum)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn codes_by_vnni(a: &[u8], b: &[u8]) -> i32 {
        let (half, zero) = (_mm512_set1_epi8(0xf), _mm512_set1_epi8(ZERO));
        let (mut sum, mut more) = (_mm512_setzero_si512(), _mm512_setzero_si512());
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            let bytes = a.len().min(b.len());
            let a = loaded(a.get(..bytes).unwrap_or_default());
            let b = loaded(b.get(..bytes).unwrap_or_default());
            let upper = |all| _mm512_and_si512(_mm512_srli_epi16::<4>(all), half);
            // What lies behind the end of `a` is nothing in the first sum, and has to be in the
            // second.
            let signed = |part| _mm512_sub_epi8(part, zero);
            let is_whole = bytes == LANES;
            for (a, b) in [
                (_mm512_and_si512(a, half), _mm512_and_si512(b, half)),
                (upper(a), upper(b)),
            ] {
                let b = match is_whole {
                    true => signed(b),
                    false => masked(signed(b), bytes),
                };
                sum = _mm512_dpbusd_epi32(sum, a, b);
                more = _mm512_dpbusd_epi32(more, zero, b);
            }
        }
        _mm512_reduce_add_epi32(_mm512_sub_epi32(sum, more))
    }

    /// The first so many bytes, fewer than all.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn masked(all: __m512i, bytes: usize) -> __m512i {
        core::arch::x86_64::_mm512_maskz_mov_epi8((1u64 << (bytes % LANES)) - 1, all)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn products_by_avx2(low: &[i8], high: &[i8], code: &[u8]) -> i32 {
        let half = _mm256_set1_epi8(0xf);
        let ones = _mm256_set1_epi16(1);
        let mut sum = _mm256_setzero_si256();
        let whole = code.len() / LANES_OF_AVX2 * LANES_OF_AVX2;
        let (parts, rest) = code.split_at_checked(whole).unwrap_or((code, &[]));
        let others = low.chunks_exact(LANES_OF_AVX2);
        let others = others.zip(high.chunks_exact(LANES_OF_AVX2));
        for (part, (low, high)) in parts.chunks_exact(LANES_OF_AVX2).zip(others) {
            #[expect(unsafe_code, reason = "loads take a pointer")]
            // SAFETY: all three have so many bytes.
            let (part, low, high): (__m256i, __m256i, __m256i) = unsafe {
                (
                    _mm256_loadu_si256(part.as_ptr().cast()),
                    _mm256_loadu_si256(low.as_ptr().cast()),
                    _mm256_loadu_si256(high.as_ptr().cast()),
                )
            };
            let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(part), half);
            // Two products of at most 15 * 128 each: far from what 16 bits hold.
            let pairs = _mm256_maddubs_epi16(_mm256_and_si256(part, half), low);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
            let pairs = _mm256_maddubs_epi16(upper, high);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
        }
        let behind = |all| <[i8]>::get(all, whole..).unwrap_or_default();
        added_up(sum) + products_one_by_one(behind(low), behind(high), rest)
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn codes_by_avx2(a: &[u8], b: &[u8]) -> i32 {
        let (half, zero) = (_mm256_set1_epi8(0xf), _mm256_set1_epi8(ZERO));
        let ones = _mm256_set1_epi16(1);
        let mut sum = _mm256_setzero_si256();
        let whole = a.len().min(b.len()) / LANES_OF_AVX2 * LANES_OF_AVX2;
        let (a_parts, a_rest) = a.split_at_checked(whole).unwrap_or((a, &[]));
        let (b_parts, b_rest) = b.split_at_checked(whole).unwrap_or((b, &[]));
        let pairs = a_parts.chunks_exact(LANES_OF_AVX2);
        for (a, b) in pairs.zip(b_parts.chunks_exact(LANES_OF_AVX2)) {
            #[expect(unsafe_code, reason = "loads take a pointer")]
            // SAFETY: both have so many bytes.
            let (a, b): (__m256i, __m256i) = unsafe {
                (
                    _mm256_loadu_si256(a.as_ptr().cast()),
                    _mm256_loadu_si256(b.as_ptr().cast()),
                )
            };
            let upper = |all| _mm256_and_si256(_mm256_srli_epi16::<4>(all), half);
            for (a, b) in [
                (_mm256_and_si256(a, half), _mm256_and_si256(b, half)),
                (upper(a), upper(b)),
            ] {
                let b = _mm256_sub_epi8(b, zero);
                // Two products of at most 15 * 8 each, less two of 8 * 8.
                let pairs =
                    _mm256_sub_epi16(_mm256_maddubs_epi16(a, b), _mm256_maddubs_epi16(zero, b));
                sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        added_up(sum) + codes_one_by_one(a_rest, b_rest)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn added_up(sum: __m256i) -> i32 {
        let four = _mm_add_epi32(
            _mm256_castsi256_si128(sum),
            _mm256_extracti128_si256::<1>(sum),
        );
        let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b_01_00_11_10>(four));
        let one = _mm_add_epi32(two, _mm_shuffle_epi32::<0b_10_11_00_01>(two));
        _mm_cvtsi128_si32(one)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Asked, codes_one_by_one, components, dot_codes, products_one_by_one, push};

    fn code(components: &[i8]) -> Vec<u8> {
        let mut code = Vec::new();
        push(components, &mut code);
        code
    }

    fn plainly(a: &[i8], b: &[i8]) -> i32 {
        let pairs = a.iter().zip(b);
        pairs.map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
    }

    fn of_one_length(
        a: impl Strategy<Value = i8> + Clone,
        b: impl Strategy<Value = i8> + Clone,
    ) -> impl Strategy<Value = (Vec<i8>, Vec<i8>)> {
        (1usize..700).prop_flat_map(move |dim| {
            (
                prop::collection::vec(a.clone(), dim),
                prop::collection::vec(b.clone(), dim),
            )
        })
    }

    proptest! {
        #[test]
        fn an_inner_product_is_that_of_the_components(
            (asked, row) in of_one_length(-127i8..=127, -7i8..=7),
        ) {
            let code = code(&row);
            prop_assert_eq!(code.len(), row.len().div_ceil(2));
            prop_assert_eq!(components(&code).take(row.len()).collect::<Vec<_>>(), row.clone());
            prop_assert_eq!(Asked::new(&asked).dot(&code), plainly(&asked, &row));
        }

        #[test]
        fn of_two_codes_too((a, b) in of_one_length(-7i8..=7, -7i8..=7)) {
            prop_assert_eq!(dot_codes(&code(&a), &code(&b)), plainly(&a, &b));
        }

        #[test]
        fn every_kind_of_processor_says_the_same(
            (asked, row) in of_one_length(-127i8..=127, -7i8..=7),
        ) {
            let other: Vec<i8> = asked.iter().map(|one| one % 8).collect();
            let (other, code) = (code(&other), code(&row));
            let asked = Asked::new(&asked);
            let plainly = codes_one_by_one(&code, &other);
            prop_assert_eq!(dot_codes(&code, &other), plainly);
            let expected = products_one_by_one(&asked.low, &asked.high, &code);
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                #[expect(unsafe_code, reason = "the processor was asked")]
                // SAFETY: it has the feature.
                let found = unsafe { super::x86::products_by_avx2(&asked.low, &asked.high, &code) };
                prop_assert_eq!(found, expected);
                #[expect(unsafe_code, reason = "the processor was asked")]
                // SAFETY: it has the feature.
                let found = unsafe { super::x86::codes_by_avx2(&code, &other) };
                prop_assert_eq!(found, plainly);
            }
            prop_assert_eq!(super::products(&asked.low, &asked.high, &code), expected);
        }
    }

    #[test]
    fn a_code_of_another_length_is_no_harm() {
        let asked = Asked::new(&[1, 2, 3]);
        assert_eq!(asked.dot(&[]), -8 * 6);
        // Two bytes of it are of the query, whose components behind the third are 0.
        assert_eq!(asked.dot(&[0xff; 500]), 7 * 6);
        assert_eq!(dot_codes(&[0xff; 70], &[0xff; 3]), 6 * 49);
    }
}
