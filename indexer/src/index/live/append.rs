//! Bytes that are appended to while others read what is there.
//!
//! Codes of a page come one after the other, and searches read those that have come as plain
//! slices, which is what vector instructions want. Nothing safe hands out a part of a buffer while
//! another part of it is written.

use std::{
    cell::UnsafeCell,
    ptr, slice,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Bytes that come from memory at a time: where the first of them begins.
const LINE: usize = 64;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// A buffer of a fixed size that fills up.
pub(super) struct Appended {
    lines: Box<[UnsafeCell<Line>]>,
    /// Bytes below are written, and never again.
    filled: AtomicUsize,
    appending: Mutex<()>,
}

#[expect(unsafe_code, reason = "bytes are read beside others that are written")]
// SAFETY: bytes below `filled` are only read, those behind it are only written, and by one thread
// at a time, which holds `appending`. `filled` is raised after the bytes were written, and whoever
// loads it sees them.
unsafe impl Sync for Appended {}

impl Appended {
    /// Room for so many bytes, rounded up to whole lines.
    pub(super) fn with_room(bytes: usize) -> Self {
        let lines = std::iter::repeat_with(|| UnsafeCell::new(Line([0; LINE])));
        Self {
            lines: lines.take(bytes.div_ceil(LINE)).collect(),
            filled: AtomicUsize::new(0),
            appending: Mutex::new(()),
        }
    }

    /// Bytes there is room for.
    pub(super) fn room(&self) -> usize {
        self.lines.len() * LINE
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
        if self.room() - start < stride {
            return false;
        }
        #[expect(unsafe_code, reason = "see the file's text")]
        // SAFETY: the room was looked at, so source and target are in bounds; they do not overlap,
        // for no slice of these lines reaches beyond `filled`. Nobody else writes, by the lock, and
        // nobody reads beyond `filled`.
        unsafe {
            let first = UnsafeCell::raw_get(self.lines.as_ptr()).cast::<u8>();
            ptr::copy_nonoverlapping(bytes.as_ptr(), first.add(start), bytes.len());
        }
        self.filled.store(start + stride, Ordering::Release);
        true
    }

    /// So many bytes from `start` on; none if they have not all been appended.
    #[inline(always)]
    pub(super) fn get(&self, start: usize, length: usize) -> &[u8] {
        let end = start.saturating_add(length);
        if end > self.filled.load(Ordering::Acquire) {
            return &[];
        }
        #[expect(unsafe_code, reason = "see the file's text")]
        // SAFETY: bytes below `filled` are in bounds, initialised, and not written any more.
        unsafe {
            let first = UnsafeCell::raw_get(self.lines.as_ptr()).cast::<u8>();
            slice::from_raw_parts(first.add(start), length)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::{Appended, LINE};

    #[test]
    fn what_was_appended_is_read_and_nothing_beyond_it() {
        let bytes = Appended::with_room(LINE + 1);
        assert_eq!(bytes.room(), 2 * LINE);
        assert!(bytes.push(&[1; 100], 104));
        assert_eq!(bytes.get(0, 100), [1; 100]);
        assert_eq!(bytes.get(96, 8), [1, 1, 1, 1, 0, 0, 0, 0]);
        assert!(bytes.get(100, 5).is_empty());
        assert!(bytes.get(usize::MAX, 2).is_empty());
        assert!(!bytes.push(&[2; 25], 25), "one byte too many");
        assert!(bytes.push(&[2; 24], 24));
        assert_eq!(bytes.get(104, 24), [2; 24]);
        assert_eq!(bytes.get(0, 100), [1; 100]);
    }

    #[test]
    fn a_reader_beside_the_one_that_appends_sees_whole_codes() {
        const CODES: u8 = 200;
        let bytes = Appended::with_room(usize::from(CODES) * LINE);
        thread::scope(|scope| {
            scope.spawn(|| (1..=CODES).all(|code| bytes.push(&[code; LINE], LINE)));
            scope.spawn(|| {
                for at in 0..CODES {
                    let start = usize::from(at) * LINE;
                    while bytes.get(start, LINE).is_empty() {
                        std::hint::spin_loop();
                    }
                    assert_eq!(bytes.get(start, LINE), [at + 1; LINE]);
                }
            });
        });
    }
}
