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

/// As [`zeros`], for what may stay nearly empty: in small pages, none of which takes memory before it is written to.
///
/// # Errors
/// The system's, for want of memory.
pub(super) fn sparse_zeros(bytes: usize) -> io::Result<MmapMut> {
    let map = MmapMut::map_anon(bytes.max(1))?;
    #[cfg(target_os = "linux")]
    // A system without large pages refuses, and gives none.
    map.advise(memmap2::Advice::NoHugePage).ok();
    Ok(map)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{
        fs::File,
        io::{Read as _, Seek as _, SeekFrom},
    };

    use super::{LARGE, sparse_zeros};

    #[test]
    fn what_is_nearly_empty_takes_no_memory_but_where_it_is_written_to() {
        let page = rustix::param::page_size();
        let mut map = sparse_zeros(2 * LARGE).unwrap();
        for at in [0, LARGE, 2 * LARGE - 1] {
            *map.get_mut(at).unwrap() = 1;
        }
        // A number of 8 bytes for each page, whose highest bit tells that there is memory behind it.
        let first = map.as_ptr().addr() / page * 8;
        let mut told = vec![0; 2 * LARGE / page * 8];
        let mut pages = File::open("/proc/self/pagemap").unwrap();
        pages
            .seek(SeekFrom::Start(first.try_into().unwrap()))
            .unwrap();
        pages.read_exact(&mut told).unwrap();
        let present = told.chunks(8).filter(|page| page.last().unwrap() >> 7 == 1);
        assert_eq!(present.count(), 3);
    }
}
