//! Asking for memory before it is read.
//!
//! A walk of a graph knows the next thirty rows it will compare before it compares the first, and
//! they lie anywhere in memory. Asking for all of them at once, every line of each, takes 40 % off
//! a walk; fewer lines, or rows asked for one after the other, take less off.

/// Bytes that come from memory at a time.
const LINE: usize = 64;

/// Says that `items` are about to be read.
#[inline(always)]
pub(crate) fn soon<T>(items: &[T]) {
    for line in items.chunks((LINE / size_of::<T>()).max(1)) {
        fetch(line);
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[expect(
    unsafe_code,
    reason = "there is no safe prefetch; it saves 40 % of a walk: docs/adr/007"
)]
fn fetch<T>(line: &[T]) {
    use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch is a hint: it neither faults nor changes anything a program can see, and
    // the address is that of a live slice.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
}

#[cfg(target_arch = "aarch64")]
#[inline(always)]
#[expect(
    unsafe_code,
    reason = "there is no safe prefetch; it saves 40 % of a walk: docs/adr/007"
)]
fn fetch<T>(line: &[T]) {
    // SAFETY: `prfm` is a hint: it neither faults nor changes anything a program can see, and the
    // address is that of a live slice.
    unsafe {
        core::arch::asm!(
            "prfm pldl1keep, [{address}]",
            address = in(reg) line.as_ptr(),
            options(nostack, preserves_flags, readonly)
        );
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
#[inline(always)]
fn fetch<T>(_line: &[T]) {}
