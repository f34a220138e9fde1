//! The bytes of a sealed payload index: its header and directory.
//!
//! Little endian throughout. A header of [`HEADER_BYTES`]: 8 bytes magic, `u32` version, `u32`
//! bytes of the directory, `u64` bytes of everything, `u32` first row, `u32` row behind the last,
//! `u32` crc32 of the 32 bytes before it and of the directory, 4 bytes of zero. The directory
//! follows, then, from a multiple of 8 on, the body. The directory says for every field where in
//! the body its sections lie, so that a reader of a mapped file touches the pages it needs:
//!
//! - `exists`: the rows that have the field, unless none or all do; `u32`s or bits.
//! - Per form of keys, of which a number field may have two (whole and floating):
//!   - `keys`: the distinct values, rising. 8 bytes each, or for texts where each begins in
//!     `texts` as `u64`s, and one more for where the last one ends.
//!   - `texts`: the bytes of the texts.
//!   - `starts`: a `u32` a key and one more: where its rows begin in `rows`. Left out if every
//!     key has one row in `rows`.
//!   - `rows`: `u32`s; of a key, rising.
//!   - `frequents`: a `u32` key and a `u32` count for each key that many rows have. Such a key
//!     has no rows in `rows`; its rows are bits.
//!   - `bits`: for each frequent key 64-bit words that cover the rows there are; bit `n` of word
//!     `w` is row `64 * (w + first row / 64) + n`.
//!   - `ranks`: for each row which key it has, in 1, 2 or 4 bytes, all ones for none. Left out
//!     if a row has several, or few rows have one.
//!
//! Header and directory are checksummed here. The sections are not: the caller keeps a checksum
//! of the whole and checks it when it likes to; a reader takes any bytes there without a panic.

use std::ops::Range;

use shoal_runtime::ErrorKind;
use shoal_schemas::FieldKind;

use super::rows::{Span, at};

/// Bytes before the directory.
pub(super) const HEADER_BYTES: usize = 40;
const MAGIC: &[u8; 8] = b"shoalfld";
const VERSION: u32 = 1;
/// Bytes of the header that the checksum covers.
const SUMMED: usize = 32;

const EXISTS_NONE: u8 = 0;
const EXISTS_ALL: u8 = 1;
const EXISTS_LIST: u8 = 2;
const EXISTS_BITS: u8 = 3;

/// Why bytes do not open as a sealed payload index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Not the length that the header says, or too short for a header.
    #[error("sealed payload index is {found} bytes, expected {expected}")]
    Length {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: u64,
    },
    /// The first bytes are others.
    #[error("bytes are no sealed payload index")]
    Magic,
    /// Written by a version that this one does not know.
    #[error("sealed payload index has version {found}, known is {VERSION}")]
    Version {
        /// As written.
        found: u32,
    },
    /// The checksum of header and directory differs.
    #[error(
        "directory of the sealed payload index has checksum {found:08x}, expected {expected:08x}"
    )]
    Checksum {
        /// Of the bytes there are.
        found: u32,
        /// As written.
        expected: u32,
    },
    /// The directory contradicts itself.
    #[error("directory of the sealed payload index does not read: {what}")]
    Directory {
        /// What is wrong.
        what: &'static str,
    },
}

impl OpenError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

/// A range of the body, in bytes from its beginning.
pub(super) type Section = Range<usize>;

/// What the directory says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Directory {
    pub(super) span: Span,
    /// Sorted by name.
    pub(super) columns: Vec<Column>,
}

/// One declared field.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: FieldKind,
    pub(super) exists: Exists,
    pub(super) keyed: Vec<Keyed>,
}

/// Which rows have a field.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Exists {
    None,
    All,
    List(Section),
    /// With their number.
    Bits(u32, Section),
}

/// What the keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `i64`: whole numbers, timestamps, booleans.
    Whole,
    /// `f64`.
    Float,
    /// Bytes.
    Text,
}

/// The values of one form that a field has, and their rows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Keyed {
    pub(super) form: Form,
    /// Whether a row may have several.
    pub(super) several: bool,
    pub(super) keys: Section,
    pub(super) texts: Section,
    pub(super) starts: Section,
    pub(super) rows: Section,
    pub(super) frequents: Section,
    pub(super) bits: Section,
    pub(super) ranks: Section,
}

impl Keyed {
    fn sections(&self) -> [&Section; 7] {
        let Self { keys, texts, .. } = self;
        let Self { starts, rows, .. } = self;
        let Self {
            frequents, bits, ..
        } = self;
        [keys, texts, starts, rows, frequents, bits, &self.ranks]
    }

    /// Number of distinct keys.
    pub(super) fn distinct(&self) -> usize {
        let words = self.keys.len() / 8;
        match self.form {
            Form::Text => words.saturating_sub(1),
            Form::Whole | Form::Float => words,
        }
    }

    /// Bytes of a rank.
    pub(super) fn rank_width(&self, span: Span) -> usize {
        self.ranks.len().checked_div(span.len()).unwrap_or(0)
    }

    fn fits(&self, span: Span, body_bytes: usize) -> bool {
        let distinct = self.distinct();
        let lies_within = |section: &&Section| section.end <= body_bytes;
        let starts_fit = match self.starts.len() {
            0 => self.rows.len() == 4 * distinct,
            len => len == 4 * (distinct + 1),
        };
        let bits = self.frequents.len() / 8 * 8 * span.words();
        let ranks = [0, 1, 2, 4].map(|width| width * span.len());
        self.sections().iter().all(lies_within)
            && self.keys.len().is_multiple_of(8)
            && (self.form != Form::Text || !self.keys.is_empty())
            && starts_fit
            && self.rows.len().is_multiple_of(4)
            && self.frequents.len().is_multiple_of(8)
            && self.bits.len() == bits
            && ranks.contains(&self.ranks.len())
    }
}

impl Directory {
    /// Header, directory and padding: everything before the body.
    pub(super) fn encode(&self, body_bytes: usize) -> Vec<u8> {
        let mut directory = Vec::new();
        put_u32(&mut directory, self.columns.len());
        for column in &self.columns {
            column.encode(&mut directory);
        }
        let body_at = (HEADER_BYTES + directory.len()).next_multiple_of(8);
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        put_u32(&mut out, directory.len());
        put_u64(&mut out, body_at + body_bytes);
        out.extend(self.span.first.to_le_bytes());
        out.extend(self.span.end.to_le_bytes());
        let sum = checksum(&out, &directory);
        out.extend(sum.to_le_bytes());
        out.extend([0; 4]);
        out.extend(directory);
        out.resize(body_at, 0);
        out
    }

    /// Reads header and directory and nothing else; gives where the body begins.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, usize), OpenError> {
        let found = bytes.len();
        let short = |expected: usize| OpenError::Length {
            found,
            expected: u64::try_from(expected).unwrap_or(u64::MAX),
        };
        let (header, rest) = bytes
            .split_at_checked(HEADER_BYTES)
            .ok_or_else(|| short(HEADER_BYTES))?;
        let mut input = Input { rest: header };
        if input.take(MAGIC.len())? != MAGIC {
            return Err(OpenError::Magic);
        }
        let version = input.u32()?;
        if version != VERSION {
            return Err(OpenError::Version { found: version });
        }
        let directory_bytes = at(input.u32()?);
        let total = input.u64()?;
        if u64::try_from(found) != Ok(total) {
            return Err(OpenError::Length {
                found,
                expected: total,
            });
        }
        let (first, end) = (input.u32()?, input.u32()?);
        let expected = input.u32()?;
        let directory = rest
            .get(..directory_bytes)
            .ok_or_else(|| short(HEADER_BYTES + directory_bytes))?;
        let found_sum = checksum(&header[..SUMMED], directory);
        if found_sum != expected {
            return Err(OpenError::Checksum {
                found: found_sum,
                expected,
            });
        }
        let body_at = (HEADER_BYTES + directory_bytes).next_multiple_of(8);
        let body_bytes = found.checked_sub(body_at).ok_or_else(|| short(body_at))?;
        let span = Span { first, end };
        let mut input = Input { rest: directory };
        let mut columns: Vec<Column> = Vec::new();
        for _ in 0..input.u32()? {
            let column = Column::decode(&mut input, span, body_bytes)?;
            let rises = columns.last().is_none_or(|last| last.name < column.name);
            rises
                .then(|| columns.push(column))
                .ok_or(wrong("fields are not sorted"))?;
        }
        if first > end {
            return Err(wrong("the rows end before they begin"));
        }
        if !input.rest.is_empty() {
            return Err(wrong("there are more bytes than the fields take"));
        }
        Ok((Self { span, columns }, body_at))
    }
}

impl Column {
    fn encode(&self, out: &mut Vec<u8>) {
        put_u32(out, self.name.len());
        out.extend(self.name.as_bytes());
        out.push(kind_tag(self.kind));
        match &self.exists {
            Exists::None => out.push(EXISTS_NONE),
            Exists::All => out.push(EXISTS_ALL),
            Exists::List(rows) => {
                out.push(EXISTS_LIST);
                put_section(out, rows);
            }
            Exists::Bits(count, bits) => {
                out.push(EXISTS_BITS);
                out.extend(count.to_le_bytes());
                put_section(out, bits);
            }
        }
        put_u32(out, self.keyed.len());
        for keyed in &self.keyed {
            out.push(match keyed.form {
                Form::Whole => 0,
                Form::Float => 1,
                Form::Text => 2,
            });
            out.push(u8::from(keyed.several));
            for section in keyed.sections() {
                put_section(out, section);
            }
        }
    }

    fn decode(input: &mut Input<'_>, span: Span, body_bytes: usize) -> Result<Self, OpenError> {
        let name_bytes = at(input.u32()?);
        let name = str::from_utf8(input.take(name_bytes)?);
        let name = name
            .map_err(|_| wrong("a field's name is no UTF-8"))?
            .to_owned();
        let kind = kind_of(input.u8()?)?;
        let exists = match input.u8()? {
            EXISTS_NONE => Exists::None,
            EXISTS_ALL => Exists::All,
            EXISTS_LIST => Exists::List(input.section()?),
            EXISTS_BITS => Exists::Bits(input.u32()?, input.section()?),
            _ => return Err(wrong("a form of presence is unknown")),
        };
        let exists_fits = match &exists {
            Exists::None | Exists::All => true,
            Exists::List(rows) => rows.end <= body_bytes && rows.len().is_multiple_of(4),
            Exists::Bits(_, bits) => bits.end <= body_bytes && bits.len() == 8 * span.words(),
        };
        let mut keyed = Vec::new();
        for _ in 0..input.u32()? {
            keyed.push(Keyed::decode(input)?);
        }
        let fit = keyed.iter().all(|keyed| keyed.fits(span, body_bytes));
        if !(exists_fits && fit) {
            return Err(wrong("a section has another length than its field needs"));
        }
        Ok(Self {
            name,
            kind,
            exists,
            keyed,
        })
    }
}

impl Keyed {
    fn decode(input: &mut Input<'_>) -> Result<Self, OpenError> {
        let form = match input.u8()? {
            0 => Form::Whole,
            1 => Form::Float,
            2 => Form::Text,
            _ => return Err(wrong("a form of keys is unknown")),
        };
        Ok(Self {
            form,
            several: input.u8()? != 0,
            keys: input.section()?,
            texts: input.section()?,
            starts: input.section()?,
            rows: input.section()?,
            frequents: input.section()?,
            bits: input.section()?,
            ranks: input.section()?,
        })
    }
}

/// Numbers of the kinds; they never change.
fn kind_tag(kind: FieldKind) -> u8 {
    match kind {
        FieldKind::Keyword => 1,
        FieldKind::Integer => 2,
        FieldKind::Float => 3,
        FieldKind::Boolean => 4,
        FieldKind::Timestamp => 5,
    }
}

fn kind_of(tag: u8) -> Result<FieldKind, OpenError> {
    Ok(match tag {
        1 => FieldKind::Keyword,
        2 => FieldKind::Integer,
        3 => FieldKind::Float,
        4 => FieldKind::Boolean,
        5 => FieldKind::Timestamp,
        _ => return Err(wrong("a kind of field is unknown")),
    })
}

fn wrong(what: &'static str) -> OpenError {
    OpenError::Directory { what }
}

fn checksum(header: &[u8], directory: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(header);
    sum.update(directory);
    sum.finalize()
}

fn put_u32(out: &mut Vec<u8>, number: usize) {
    let number = u32::try_from(number).expect("a directory is far below 4 GiB");
    out.extend(number.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, number: usize) {
    let number = u64::try_from(number).expect("an address has at most 64 bits");
    out.extend(number.to_le_bytes());
}

fn put_section(out: &mut Vec<u8>, section: &Section) {
    put_u64(out, section.start);
    put_u64(out, section.len());
}

struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], OpenError> {
        let split = self.rest.split_at_checked(count);
        let (taken, rest) = split.ok_or(wrong("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], OpenError> {
        let taken = self.take(N)?;
        Ok(taken.try_into().expect("`take` gives as many as asked for"))
    }

    fn u8(&mut self) -> Result<u8, OpenError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    fn u32(&mut self) -> Result<u32, OpenError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, OpenError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn section(&mut self) -> Result<Section, OpenError> {
        let (start, len) = (self.u64()?, self.u64()?);
        let end = start
            .checked_add(len)
            .and_then(|end| usize::try_from(end).ok());
        let start = usize::try_from(start).ok();
        let (start, end) = start.zip(end).ok_or(wrong("a section has no end"))?;
        Ok(start..end)
    }
}
