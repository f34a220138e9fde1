//! The header of a packed graph: what is where, under its own checksum.

use shoal_runtime::ErrorKind;

use crate::index::{
    adjacency::MAX_UPPER_LEVELS,
    space::{self, Space, SpaceError},
};

/// What the file begins with.
const MAGIC: [u8; 8] = *b"SHOALHNS";
/// Changes when an older reader would read something else than what is meant.
const VERSION: u32 = 1;
/// Bytes of the header; the codes follow.
pub(super) const BYTES: usize = 512;
/// Every section begins at a multiple of this.
pub(super) const ALIGNMENT: usize = 64;
/// Of the header itself, over everything before it.
const CHECKSUM_AT: usize = BYTES - size_of::<u32>();
/// A row may waste a quarter of its place to begin where a cache line does.
const WORTH_ALIGNING: usize = 4;

/// Sizes and places of a packed graph, in bytes where nothing else is said.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) space: Space,
    pub(super) rows: u32,
    pub(super) entry: u32,
    /// Places at level 0, and above, in numbers.
    pub(super) degree: u32,
    pub(super) upper_degree: u32,
    /// From one row's code to the next's.
    pub(super) stride: u32,
    /// Rows a level, level 1 first.
    pub(super) level_rows: Vec<u32>,
}

/// Where the sections are.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) codes: Section,
    pub(super) links: Section,
    /// Empty where rows have no bias.
    pub(super) biases: Section,
    /// For each level its rows and its links.
    pub(super) upper: Vec<(Section, Section)>,
    /// All of the file.
    pub(super) end: usize,
}

/// A part of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Section {
    pub(super) start: usize,
    pub(super) end: usize,
}

impl Section {
    #[inline(always)]
    pub(super) fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start..self.end).unwrap_or_default()
    }
}

/// Why a packed graph does not open.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// The file is shorter than its header says, or than a header.
    #[error("packed graph has {found} bytes, {expected} are expected")]
    Length {
        /// As found.
        found: usize,
        /// What it has to be, at least.
        expected: usize,
    },
    /// It is something else.
    #[error("packed graph does not begin as one")]
    Magic,
    /// A later version wrote it.
    #[error("packed graph has version {found}, this program reads version {VERSION}")]
    Version {
        /// As found.
        found: u32,
    },
    /// The header is damaged.
    #[error("packed graph's header has checksum {found:08x}, {expected:08x} is expected")]
    Checksum {
        /// Over what stands there.
        found: u32,
        /// As stored.
        expected: u32,
    },
    /// A size cannot be.
    #[error("packed graph has an impossible {what}")]
    Size {
        /// Which.
        what: &'static str,
    },
    /// The space.
    #[error("packed graph's space does not read")]
    Space(#[from] SpaceError),
    /// The bytes do not begin at a multiple of four, or this machine is big-endian.
    #[error("packed graph cannot be read where it lies in memory")]
    Memory,
}

impl OpenError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Memory => ErrorKind::Bug,
            _ => ErrorKind::Corrupt,
        }
    }
}

impl Header {
    /// The bytes of it.
    pub(super) fn encode(&self) -> [u8; BYTES] {
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.space.to_header());
        let levels = u32::try_from(self.level_rows.len()).unwrap_or(u32::MAX);
        let numbers = [
            self.rows,
            self.entry,
            self.degree,
            self.upper_degree,
            self.stride,
            levels,
        ];
        for number in numbers.iter().chain(&self.level_rows) {
            bytes.extend(number.to_le_bytes());
        }
        bytes.resize(CHECKSUM_AT, 0);
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        *bytes.first_chunk().expect("it was filled up to its length")
    }

    /// Reads and checks the header at the front of `bytes`.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, OpenError> {
        let header: &[u8; BYTES] = bytes.first_chunk().ok_or(OpenError::Length {
            found: bytes.len(),
            expected: BYTES,
        })?;
        let mut fields = Fields(header);
        if fields.array() != MAGIC {
            return Err(OpenError::Magic);
        }
        let (checked, stored) = header.split_at(CHECKSUM_AT);
        let (found, expected) = (crc32fast::hash(checked), Fields(stored).u32());
        let version = fields.u32();
        if version != VERSION {
            return Err(OpenError::Version { found: version });
        }
        if found != expected {
            return Err(OpenError::Checksum { found, expected });
        }
        let space = Space::from_header(&fields.array::<{ space::HEADER_BYTES }>())?;
        let [rows, entry, degree, upper_degree, stride, levels] =
            std::array::from_fn(|_| fields.u32());
        let levels = usize::try_from(levels).unwrap_or(usize::MAX);
        if levels > MAX_UPPER_LEVELS {
            return Err(OpenError::Size { what: "level" });
        }
        let level_rows = (0..levels).map(|_| fields.u32()).collect();
        let header = Self {
            space,
            rows,
            entry,
            degree,
            upper_degree,
            stride,
            level_rows,
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), OpenError> {
        let size = |what| Err(OpenError::Size { what });
        let stride = usize::try_from(self.stride).unwrap_or(0);
        if stride < self.space.code_bytes() {
            return size("row length");
        }
        if self.rows > 0 && self.entry >= self.rows {
            return size("entry row");
        }
        if self.level_rows.iter().any(|rows| *rows > self.rows) {
            return size("number of rows on a level");
        }
        Ok(())
    }

    /// Where everything is; `None` if no machine has so much memory.
    pub(super) fn layout(&self) -> Option<Layout> {
        let mut end = BYTES;
        let mut section = |count: u32, each: usize| {
            let start = end.checked_next_multiple_of(ALIGNMENT)?;
            let length = usize::try_from(count).ok()?.checked_mul(each)?;
            end = start.checked_add(length)?;
            Some(Section { start, end })
        };
        let number = size_of::<u32>();
        let degree = usize::try_from(self.degree).ok()?;
        let upper_degree = usize::try_from(self.upper_degree).ok()?;
        let stride = usize::try_from(self.stride).ok()?;
        let codes = section(self.rows, stride)?;
        let links = section(self.rows, degree.checked_mul(number)?)?;
        let with_bias = if self.space.has_bias() { self.rows } else { 0 };
        let biases = section(with_bias, size_of::<f32>())?;
        let mut upper = Vec::with_capacity(self.level_rows.len());
        for rows in &self.level_rows {
            let places = upper_degree.checked_mul(number)?;
            upper.push((section(*rows, number)?, section(*rows, places)?));
        }
        Some(Layout {
            codes,
            links,
            biases,
            upper,
            end,
        })
    }
}

/// From one row's code to the next's: whole cache lines if that wastes little, else what f32 and
/// vector instructions like.
pub(in crate::index) fn stride(code_bytes: usize) -> usize {
    let fits = |alignment: &usize| {
        let padded = code_bytes.next_multiple_of(*alignment);
        padded - code_bytes <= code_bytes / WORTH_ALIGNING
    };
    let alignment = [ALIGNMENT, 16].into_iter().find(fits).unwrap_or(4);
    code_bytes.next_multiple_of(alignment)
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn array<const N: usize>(&mut self) -> [u8; N] {
        let (array, rest) = self
            .0
            .split_first_chunk()
            .expect("all fields together are shorter than a header");
        self.0 = rest;
        *array
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }
}
