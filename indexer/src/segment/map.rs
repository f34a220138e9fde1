//! A file as bytes, mapped by the kernel: the only place that maps one.

use std::{fs::File, path::Path};

use memmap2::Mmap;

use crate::segment::files::{FileError, io_error};

/// Bytes of an immutable file.
pub struct Map(Option<Mmap>);

impl Map {
    /// Maps a file that nobody writes any more.
    ///
    /// # Errors
    /// [`FileError::Io`].
    #[expect(unsafe_code, reason = "the kernel's map of a file has no safe form")]
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(io_error(path))?;
        // An empty file cannot be mapped.
        if file.metadata().map_err(io_error(path))?.len() == 0 {
            return Ok(Self(None));
        }
        // SAFETY: the bytes must not change while they are mapped. Files of a segment are written
        // whole, synced and renamed into place before anyone opens them, and never written again;
        // removing one leaves the map as it is. Readers check every number they take from it.
        let map = unsafe { Mmap::map(&file) };
        Ok(Self(Some(map.map_err(io_error(path))?)))
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}
