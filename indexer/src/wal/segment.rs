//! One file of the log: its header, and the frames in it one after the other.
//!
//! ```text
//!  0   8 bytes  "SHOALWAL"
//!  8   u32 LE   format version, 1
//! 12   u64 LE   base: position of the first frame; the file's name says the same
//! 20   u32 LE   CRC-32 (IEEE) over the 20 bytes before
//! 24   frames
//! ```
//!
//! These 24 bytes mean the same in every later version. They are durable before the first frame is written: a broken
//! header with bytes after it is damage, never a torn write. What the frames are, and which segment is the last,
//! is not known here.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Position,
    disk::{Disk, File},
    frame::Fault,
    to_u64, to_usize,
};

/// Bytes before the first frame.
pub(super) const HEADER_BYTES: u64 = 24;

const MAGIC: [u8; 8] = *b"SHOALWAL";

/// The format that is written, and the newest that is read.
pub(super) const VERSION: u32 = 1;

/// Digits of a position in a file's name: enough for every `u64`, so that names sort as positions do.
const NAME_DIGITS: usize = 20;
const NAME_SUFFIX: &str = ".wal";

/// What is wrong with a segment at the byte that the error names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// The file ends within its header.
    #[error("header is {has_bytes} bytes, it takes {HEADER_BYTES}")]
    HeaderShort {
        /// Length of the file.
        has_bytes: u64,
    },
    /// The file does not begin as a segment does.
    #[error("file does not begin with the mark of a segment")]
    Magic,
    /// The header is not what was written.
    #[error("checksum in the header is {stored:#010x}, its bytes give {computed:#010x}")]
    HeaderChecksum {
        /// What the header says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// The file was renamed or its header copied.
    #[error("segment begins at position {header}, its name says {name}")]
    Base {
        /// What the header says.
        header: Position,
        /// What the name says.
        name: Position,
    },
    /// Frames or files are missing between this segment and the next.
    #[error("segment ends at position {end}, the next one begins at {next}")]
    Gap {
        /// Where this one ends.
        end: Position,
        /// Where the next one begins.
        next: Position,
    },
    /// There is no frame where one should be.
    #[error("bytes are no frame")]
    Frame(#[source] Fault),
}

/// One file of the log, open.
pub(super) struct Segment {
    pub(super) base: Position,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
}

/// Why a segment file could not be made. `is_clean`: it is as if it had never been tried.
pub(super) struct CreateFailure {
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
    pub(super) is_clean: bool,
}

/// What a header that belongs to a segment says.
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) base: Position,
}

impl Segment {
    /// Creates the file that begins at `base`, with its header, durably.
    pub(super) fn create(
        disk: &dyn Disk,
        dir: &Path,
        base: Position,
    ) -> Result<Self, CreateFailure> {
        let path = dir.join(file_name(base));
        let file = disk.create(&path).map_err(|source| CreateFailure {
            path: path.clone(),
            source,
            is_clean: true,
        })?;
        let segment = Self { base, path, file };
        if let Err(source) = segment.write_header() {
            let is_clean = disk.remove(&segment.path).is_ok();
            return Err(segment.create_failed(source, is_clean));
        }
        let synced = segment.file.sync().and_then(|()| disk.sync_dir(dir));
        match synced {
            Ok(()) => Ok(segment),
            Err(source) => Err(segment.create_failed(source, false)),
        }
    }

    fn create_failed(self, source: io::Error, is_clean: bool) -> CreateFailure {
        CreateFailure {
            path: self.path,
            source,
            is_clean,
        }
    }

    /// Opens a file that [`decode_name`] took.
    pub(super) fn open(disk: &dyn Disk, path: PathBuf, base: Position) -> io::Result<Self> {
        let file = disk.open(&path)?;
        Ok(Self { base, path, file })
    }

    /// Puts the header where the file begins. Not synced.
    pub(super) fn write_header(&self) -> io::Result<()> {
        write_all(&*self.file, &encode_header(self.base), 0)
    }

    /// The header as it is on disk, shorter if the file is.
    pub(super) fn read_header(&self, file_bytes: u64) -> io::Result<Vec<u8>> {
        let mut header = vec![0; to_usize(file_bytes.min(HEADER_BYTES))];
        read_exact(&*self.file, &mut header, 0)?;
        Ok(header)
    }

    /// Writes encoded frames at their position.
    pub(super) fn write(&self, at: Position, frames: &[u8]) -> io::Result<()> {
        write_all(&*self.file, frames, self.offset(at))
    }

    /// Fills `into` with the bytes at a position.
    pub(super) fn read(&self, at: Position, into: &mut [u8]) -> io::Result<()> {
        read_exact(&*self.file, into, self.offset(at))
    }

    /// Takes away everything from `end` on.
    pub(super) fn cut(&self, end: Position) -> io::Result<()> {
        self.file.set_bytes(self.offset(end))
    }

    /// Where in the file a position stands.
    pub(super) fn offset(&self, at: Position) -> u64 {
        HEADER_BYTES.saturating_add(at.bytes_since(self.base))
    }
}

fn write_all(file: &dyn File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = bytes.get(written..).unwrap_or_default();
                offset += to_u64(written);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn read_exact(file: &dyn File, mut into: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !into.is_empty() {
        match file.read_at(into, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                into = into.get_mut(read..).unwrap_or_default();
                offset += to_u64(read);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Name of the file that begins at `base`.
pub(super) fn file_name(base: Position) -> String {
    format!("{:0NAME_DIGITS$}{NAME_SUFFIX}", base.as_u64())
}

/// Whether a name is meant to be a segment's, and if so, where that one begins, if it says so rightly.
pub(super) fn decode_name(name: &str) -> Option<Option<Position>> {
    let digits = name.strip_suffix(NAME_SUFFIX)?;
    let is_address = digits.len() == NAME_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
    let address = is_address.then(|| digits.parse().ok()).flatten();
    Some(address.map(Position))
}

fn encode_header(base: Position) -> Vec<u8> {
    let mut header = Vec::with_capacity(to_usize(HEADER_BYTES));
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&base.as_u64().to_le_bytes());
    header.extend_from_slice(&crc32fast::hash(&header).to_le_bytes());
    header
}

/// Reads a header. Its version and base are for the caller to judge.
pub(super) fn decode_header(bytes: &[u8]) -> Result<Header, Damage> {
    let fields = || {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let (version, rest) = rest.split_first_chunk::<4>()?;
        let (base, rest) = rest.split_first_chunk::<8>()?;
        Some((magic, version, base, rest.first_chunk::<4>()?))
    };
    let (magic, version, base, stored) = fields().ok_or(Damage::HeaderShort {
        has_bytes: to_u64(bytes.len()),
    })?;
    if *magic != MAGIC {
        return Err(Damage::Magic);
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(magic);
    hasher.update(version);
    hasher.update(base);
    let (stored, computed) = (u32::from_le_bytes(*stored), hasher.finalize());
    if stored != computed {
        return Err(Damage::HeaderChecksum { stored, computed });
    }
    Ok(Header {
        version: u32::from_le_bytes(*version),
        base: Position(u64::from_le_bytes(*base)),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{Damage, Position, decode_header, decode_name, encode_header, file_name};

    #[test]
    fn names_sort_as_positions_do_and_read_back() {
        let positions = [0, 9, 10, 1 << 40, u64::MAX].map(Position);
        let names = positions.map(file_name);
        assert!(names.is_sorted());
        assert_eq!(names[2], "00000000000000000010.wal");
        assert_eq!(
            names.map(|name| decode_name(&name)),
            positions.map(|position| Some(Some(position)))
        );
    }

    #[test]
    fn only_our_names_are_segments() {
        assert_eq!(decode_name("checkpoint.json"), None);
        for stray in [
            "7.wal",
            "99999999999999999999.wal",
            "+0000000000000000007.wal",
        ] {
            assert_eq!(decode_name(stray), Some(None), "{stray}");
        }
    }

    #[test]
    fn no_flipped_bit_of_a_header_passes() {
        let header = encode_header(Position(77));
        assert_eq!(decode_header(&header).unwrap().base, Position(77));
        for bit in 0..header.len() * 8 {
            let mut flipped = header.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_header(&flipped).is_err(), "bit {bit}");
        }
        let fault = decode_header(&header[..23]).err().unwrap();
        assert_eq!(fault, Damage::HeaderShort { has_bytes: 23 });
    }
}
