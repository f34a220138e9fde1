//! Memory for some rows of a graph: bytes that are appended to, and numbers that change, while others
//! read.
//!
//! It is asked of the system and given back to it at once, since a graph that is sealed leaves
//! megabytes that an allocator would keep for a while; and what no row has come near yet takes none.
//!
//! Searches read codes as plain slices, which is what vector instructions want. Nothing safe hands
//! out a part of a buffer while another part of it is written.

use std::{
    io, ptr, slice,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use memmap2::MmapRaw;

use crate::index::{
    adjacency::{NONE, Place},
    zeros::{sparse_zeros, zeros},
};

/// A place in a list, or another number of a row: [`NONE`] until it is set.
#[repr(transparent)]
pub(super) struct Link(AtomicU32);

impl Link {
    /// A place above level 0 has memory of its own.
    pub(super) fn empty() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Puts a number into it.
    #[inline(always)]
    pub(super) fn set(&self, number: u32) {
        self.0.store(number.wrapping_sub(NONE), Ordering::Release);
    }
}

impl Place for Link {
    /// Whoever reads a row's number here sees the row, too. Zeros are [`NONE`].
    #[inline(always)]
    fn number(&self) -> u32 {
        self.0.load(Ordering::Acquire).wrapping_add(NONE)
    }
}

/// Zeros at first: bytes in front, numbers behind.
pub(super) struct Page {
    map: MmapRaw,
    /// Bytes in front, a multiple of a number's size.
    bytes: usize,
    /// Numbers behind.
    numbers: usize,
    /// Bytes below are written, and never again.
    filled: AtomicUsize,
    appending: Mutex<()>,
}

impl Page {
    /// Room for so many bytes and numbers. A first one may stay nearly empty, and takes memory row by row; of one that
    /// comes after others, the system's large pages are but a part of what these hold.
    ///
    /// # Errors
    /// The system's, for want of memory.
    pub(super) fn new(bytes: usize, numbers: usize, is_first: bool) -> io::Result<Self> {
        let bytes = bytes.next_multiple_of(size_of::<AtomicU32>());
        let all = bytes + numbers * size_of::<AtomicU32>();
        let map = if is_first {
            sparse_zeros(all)?
        } else {
            zeros(all)?
        };
        Ok(Self {
            map: MmapRaw::from(map),
            bytes,
            numbers,
            filled: AtomicUsize::new(0),
            appending: Mutex::new(()),
        })
    }

    /// Appends bytes, and zeros up to `stride`; false if there is no room for them.
    pub(super) fn push(&self, bytes: &[u8], stride: usize) -> bool {
        // Nothing is half done when a holder panics: what it wrote was not counted yet.
        let _appending = self
            .appending
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let start = self.filled.load(Ordering::Relaxed);
        let stride = stride.max(bytes.len());
        if self.bytes - start < stride {
            return false;
        }
        #[expect(unsafe_code, reason = "see the file's text")]
        // SAFETY: the room was looked at, so the target is in bounds, and in front of the numbers.
        // Source and target do not overlap, for no slice of these bytes reaches beyond `filled`.
        // Nobody else writes, by the lock, and nobody reads beyond `filled`.
        unsafe {
            let to = self.map.as_mut_ptr().add(start);
            ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        self.filled.store(start + stride, Ordering::Release);
        true
    }

    /// So many bytes from `start` on; none if they have not all been appended.
    #[inline(always)]
    pub(super) fn bytes(&self, start: usize, length: usize) -> &[u8] {
        let end = start.saturating_add(length);
        if end > self.filled.load(Ordering::Acquire) {
            return &[];
        }
        #[expect(unsafe_code, reason = "see the file's text")]
        // SAFETY: bytes below `filled` are in bounds and not written any more, and were written
        // before it was raised, which this thread has seen.
        unsafe {
            slice::from_raw_parts(self.map.as_ptr().add(start), length)
        }
    }

    /// The numbers, none of which stands for anything before it is set.
    #[inline(always)]
    pub(super) fn numbers(&self) -> &[Link] {
        #[expect(unsafe_code, reason = "see the file's text")]
        // SAFETY: behind the bytes there is room for so many. A map begins at a page of memory, and
        // `bytes` is a multiple of a number's size. They are reached here alone, as atomic numbers (a
        // `Link` is nothing else), and zeros are such.
        unsafe {
            let first = self.map.as_ptr().add(self.bytes);
            slice::from_raw_parts(first.cast(), self.numbers)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::thread;

    use super::{NONE, Page, Place};

    #[test]
    fn what_was_appended_is_read_and_nothing_beyond_it() {
        let page = Page::new(126, 3, true).unwrap();
        assert!(page.push(&[1; 100], 104));
        assert_eq!(page.bytes(0, 100), [1; 100]);
        assert_eq!(page.bytes(96, 8), [1, 1, 1, 1, 0, 0, 0, 0]);
        assert!(page.bytes(100, 5).is_empty());
        assert!(page.bytes(usize::MAX, 2).is_empty());
        assert!(!page.push(&[2; 25], 25), "one byte too many");
        assert!(page.push(&[2; 24], 24));
        assert_eq!(page.bytes(104, 24), [2; 24]);
        assert_eq!(page.bytes(0, 100), [1; 100]);
        let numbers = || -> Vec<u32> { page.numbers().iter().map(Place::number).collect() };
        assert_eq!(numbers(), [NONE; 3]);
        page.numbers()[1].set(0);
        page.numbers()[2].set(7);
        assert_eq!(numbers(), [NONE, 0, 7]);
        page.numbers()[1].set(NONE);
        assert_eq!(numbers(), [NONE, NONE, 7]);
    }

    #[test]
    fn a_reader_beside_the_one_that_appends_sees_whole_codes() {
        const CODES: u8 = 200;
        const BYTES: usize = 64;
        let page = Page::new(usize::from(CODES) * BYTES, 1, true).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                for code in 1..=CODES {
                    assert!(page.push(&[code; BYTES], BYTES));
                    page.numbers()[0].set(code.into());
                }
            });
            scope.spawn(|| {
                for at in 0..CODES {
                    let come = || page.numbers()[0].number();
                    while come() == NONE || come() <= at.into() {
                        std::hint::spin_loop();
                    }
                    let start = usize::from(at) * BYTES;
                    assert_eq!(page.bytes(start, BYTES), [at + 1; BYTES]);
                }
            });
        });
    }
}
