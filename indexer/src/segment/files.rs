//! Files that are written once: their marks, and how damage is noticed.
//!
//! A file is made durable before its mark is written anywhere, and a mark is its length and
//! CRC-32. Lengths are checked whenever a file is opened, checksums where the whole file is read.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use shoal_runtime::ErrorKind;

/// A file with what it has to look like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    /// Its name in its folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// CRC-32 of its content.
    pub crc32: u32,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("file `{}` fails", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The system's own.
        #[source]
        source: io::Error,
    },
    /// It is not what its mark says, or does not read.
    #[error("file `{}` is damaged: {detail}", .path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

impl FileError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::Retry,
            Self::Damaged { .. } => ErrorKind::Corrupt,
        }
    }
}

/// Names the file of a system error.
pub fn io_error(path: &Path) -> impl FnOnce(io::Error) -> FileError + '_ {
    |source| FileError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Names a damaged file.
pub fn damaged(path: &Path, detail: impl Into<String>) -> FileError {
    FileError::Damaged {
        path: path.to_owned(),
        detail: detail.into(),
    }
}

/// A new file, buffered; its checksum is counted as it is written.
pub struct Sink {
    path: PathBuf,
    out: BufWriter<File>,
    hasher: crc32fast::Hasher,
    bytes: u64,
}

impl Sink {
    /// Makes the file, replacing one of that name.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn create(path: PathBuf) -> Result<Self, FileError> {
        let file = File::create(&path).map_err(io_error(&path))?;
        Ok(Self {
            path,
            out: BufWriter::with_capacity(1 << 18, file),
            hasher: crc32fast::Hasher::new(),
            bytes: 0,
        })
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.bytes
    }

    /// Appends.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.write_all(bytes).map_err(io_error(&self.path))
    }

    /// Makes the file durable and says what it looks like.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn finish(mut self) -> Result<FileMark, FileError> {
        let synced = self
            .out
            .flush()
            .and_then(|()| self.out.get_ref().sync_all());
        synced.map_err(io_error(&self.path))?;
        Ok(FileMark {
            name: name_of(&self.path),
            bytes: self.bytes,
            crc32: self.hasher.finalize(),
        })
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        self.bytes += u64::try_from(written).unwrap_or_default();
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Makes a file of another writer durable and says what it looks like.
///
/// # Errors
/// [`FileError::Io`].
pub fn mark(path: &Path) -> Result<FileMark, FileError> {
    let file = File::open(path).map_err(io_error(path))?;
    file.sync_all().map_err(io_error(path))?;
    let (bytes, crc32) = checksum(file).map_err(io_error(path))?;
    Ok(FileMark {
        name: name_of(path),
        bytes,
        crc32,
    })
}

/// Gives the path of a file that has the length its mark says.
///
/// # Errors
/// [`FileError::Damaged`] if it differs.
pub fn present(folder: &Path, mark: &FileMark) -> Result<PathBuf, FileError> {
    let path = folder.join(&mark.name);
    let found = path.metadata().map_err(io_error(&path))?.len();
    if found == mark.bytes {
        return Ok(path);
    }
    let detail = format!("it has {found} bytes, {} were written", mark.bytes);
    Err(damaged(&path, detail))
}

/// Reads a whole file, checks it against its mark and gives its path.
///
/// # Errors
/// [`FileError::Damaged`] if it differs.
pub fn verify(folder: &Path, mark: &FileMark) -> Result<PathBuf, FileError> {
    let path = folder.join(&mark.name);
    let file = File::open(&path).map_err(io_error(&path))?;
    let (bytes, crc32) = checksum(file).map_err(io_error(&path))?;
    if (bytes, crc32) == (mark.bytes, mark.crc32) {
        return Ok(path);
    }
    let detail = format!(
        "it has {bytes} bytes and checksum {crc32:08x}, written were {} and {:08x}",
        mark.bytes, mark.crc32
    );
    Err(damaged(&path, detail))
}

/// Makes the names in a folder durable.
///
/// # Errors
/// [`FileError::Io`].
pub fn sync_folder(folder: &Path) -> Result<(), FileError> {
    File::open(folder)
        .and_then(|opened| opened.sync_all())
        .map_err(io_error(folder))
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn checksum(mut file: File) -> io::Result<(u64, u32)> {
    let mut hasher = crc32fast::Hasher::new();
    let mut block = vec![0u8; 1 << 20];
    let mut bytes = 0u64;
    loop {
        let read = file.read(&mut block)?;
        let Some(filled) = block.get(..read).filter(|filled| !filled.is_empty()) else {
            return Ok((bytes, hasher.finalize()));
        };
        hasher.update(filled);
        bytes += u64::try_from(read).unwrap_or(u64::MAX);
    }
}
