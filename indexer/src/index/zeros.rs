//! Zeros asked of the system and given back to it at once, in its large pages where there are many.

use std::io;

use memmap2::MmapMut;

/// Memory from this many bytes on is asked for in large pages: a walk reads all over it, and the
/// processor remembers where few pages are.
#[cfg(target_os = "linux")]
const LARGE: usize = 4 << 20;

/// So many bytes, which begin where a page of memory does; one at least.
///
/// # Errors
/// The system's, for want of memory.
pub(super) fn zeros(bytes: usize) -> io::Result<MmapMut> {
    let map = MmapMut::map_anon(bytes.max(1))?;
    #[cfg(target_os = "linux")]
    if bytes >= LARGE {
        // Where the system has no large ones, small ones do.
        map.advise(memmap2::Advice::HugePage).ok();
    }
    Ok(map)
}
