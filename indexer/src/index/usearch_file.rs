//! Reads the edges out of what usearch writes. Uses nothing of usearch.
//!
//! The form, as of usearch 2.26, all little-endian: a matrix of the vectors (u32 rows, u32 bytes
//! a vector, the vectors), a head of 64 bytes that begins with `usearch`, five u64 (rows, places a
//! node above level 0, places at level 0, highest level, entry node), an i16 a node with its
//! level, and the nodes: u64 key, i16 level, and for each level from 0 on a u32 count and places
//! for u32 neighbours. Keys have to be numbers of rows, rising; neighbours are counted among the
//! nodes there are.

use shoal_runtime::ErrorKind;

use crate::index::adjacency::{Adjacency, Level, MAX_UPPER_LEVELS, NONE};

const HEAD_BYTES: usize = 64;
const MAGIC: &[u8] = b"usearch";
/// Most places a node: `m` is at most 128, and level 0 has twice as many.
const MAX_DEGREE: usize = 1024;

/// Why a serialized graph does not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It is cut short.
    #[error("serialized graph ends at byte {length}, {wanted} more are wanted at byte {at}")]
    Short {
        /// All of it.
        length: usize,
        /// Where something is to stand.
        at: usize,
        /// How long that is.
        wanted: usize,
    },
    /// It is not usearch's.
    #[error("serialized graph does not say `usearch` at byte {at}")]
    Magic {
        /// Where it is to stand.
        at: usize,
    },
    /// A number is not what it has to be.
    #[error("serialized graph says {found} for its {what}, that cannot be")]
    Number {
        /// Which number.
        what: &'static str,
        /// As found.
        found: u64,
    },
}

impl ParseError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Corrupt
    }
}

impl Adjacency {
    /// Reads the edges of a serialized graph, whose vectors are skipped, for a segment of `rows`
    /// rows. One that is no node there has no edges.
    ///
    /// # Errors
    /// [`ParseError`] at the first thing that cannot be.
    pub fn from_usearch(serialized: &[u8], rows: u32) -> Result<Self, ParseError> {
        let mut reader = Reader {
            bytes: serialized,
            at: 0,
        };
        let nodes = reader.u32()?;
        let vector_bytes = reader.size()?;
        let node_count = to_usize(u64::from(nodes), "number of rows")?;
        let matrix = node_count
            .checked_mul(vector_bytes)
            .ok_or(number("bytes a vector", vector_bytes))?;
        reader.take(matrix)?;
        let at = reader.at;
        if !reader.take(HEAD_BYTES)?.starts_with(MAGIC) {
            return Err(ParseError::Magic { at });
        }
        let head = Head::read(&mut reader, nodes)?;
        let levels = reader.levels(node_count)?;
        let (read, keys) = head.read_nodes(&mut reader, &levels, rows)?;
        Ok(read.spread(&keys, rows))
    }
}

struct Head {
    rows: u32,
    degree: usize,
    upper_degree: usize,
    top_level: usize,
    entry: u32,
}

impl Head {
    fn read(reader: &mut Reader<'_>, rows: u32) -> Result<Self, ParseError> {
        let size = reader.u64()?;
        if size != u64::from(rows) {
            return Err(number("number of nodes", size));
        }
        let upper_degree = reader.limited("places above level 0", MAX_DEGREE)?;
        let degree = reader.limited("places at level 0", MAX_DEGREE)?;
        let top_level = reader.u64()?;
        let entry = reader.u64()?;
        if rows == 0 {
            return Ok(Self {
                rows,
                degree,
                upper_degree,
                top_level: 0,
                entry: 0,
            });
        }
        if entry >= u64::from(rows) {
            return Err(number("entry node", entry));
        }
        Ok(Self {
            rows,
            degree,
            upper_degree,
            top_level: to_usize(top_level, "highest level")?,
            entry: u32::try_from(entry).map_err(|_| number("entry node", entry))?,
        })
    }

    fn read_nodes(
        &self,
        reader: &mut Reader<'_>,
        levels: &[usize],
        rows: u32,
    ) -> Result<(Adjacency, Vec<u32>), ParseError> {
        let top = levels.iter().copied().max().unwrap_or(0);
        let of_entry = levels.get(crate::index::adjacency::index(self.entry));
        if top != self.top_level || of_entry.is_some_and(|level| *level != top) {
            return Err(number("highest level", self.top_level));
        }
        let mut base = Vec::with_capacity(levels.len().saturating_mul(self.degree));
        let mut upper = vec![Level::default(); top];
        let mut keys: Vec<u32> = Vec::with_capacity(levels.len());
        for (row, level) in (0u32..).zip(levels) {
            let found = reader.u64()?;
            let key = u32::try_from(found).ok().filter(|key| *key < rows);
            let key = key.filter(|key| keys.last().is_none_or(|last| last < key));
            keys.push(key.ok_or(number("key of a node", found))?);
            reader.take(size_of::<i16>())?;
            reader.neighbours(self.degree, self.rows, &mut base)?;
            for level in upper.iter_mut().take(*level) {
                level.rows.push(row);
                reader.neighbours(self.upper_degree, self.rows, &mut level.links)?;
            }
        }
        let read = Adjacency {
            rows: self.rows,
            entry: self.entry,
            degree: self.degree,
            upper_degree: self.upper_degree,
            base,
            upper,
        };
        Ok((read, keys))
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, wanted: usize) -> Result<&'a [u8], ParseError> {
        let end = self.at.checked_add(wanted);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(ParseError::Short {
            length: self.bytes.len(),
            at: self.at,
            wanted,
        })?;
        self.at += wanted;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ParseError> {
        let taken = self.take(N)?;
        Ok(*taken.first_chunk().expect("N bytes were taken"))
    }

    fn u32(&mut self) -> Result<u32, ParseError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ParseError> {
        self.array().map(u64::from_le_bytes)
    }

    fn size(&mut self) -> Result<usize, ParseError> {
        let size = self.u32()?;
        to_usize(u64::from(size), "size")
    }

    /// A u64 of 1 to `limit`.
    fn limited(&mut self, what: &'static str, limit: usize) -> Result<usize, ParseError> {
        let found = self.u64()?;
        let size = to_usize(found, what)?;
        if (1..=limit).contains(&size) {
            Ok(size)
        } else {
            Err(number(what, found))
        }
    }

    fn levels(&mut self, rows: usize) -> Result<Vec<usize>, ParseError> {
        let bytes = rows.checked_mul(size_of::<i16>());
        let bytes = bytes.ok_or(number("number of rows", rows))?;
        let (levels, _) = self.take(bytes)?.as_chunks();
        let levels = levels.iter().map(|level| {
            let level = i16::from_le_bytes(*level);
            let known = usize::try_from(level).ok();
            known
                .filter(|level| *level <= MAX_UPPER_LEVELS)
                .ok_or(number("level of a node", level.unsigned_abs()))
        });
        levels.collect()
    }

    /// One level's list of a node: as many numbers as it has places.
    fn neighbours(
        &mut self,
        places: usize,
        rows: u32,
        out: &mut Vec<u32>,
    ) -> Result<(), ParseError> {
        let count = self.size()?;
        if count > places {
            return Err(number("neighbours of a node", count));
        }
        let (numbers, _) = self.take(places * size_of::<u32>())?.as_chunks();
        for bytes in numbers.iter().take(count) {
            let neighbour = u32::from_le_bytes(*bytes);
            if neighbour >= rows {
                return Err(number("neighbour of a node", neighbour));
            }
            out.push(neighbour);
        }
        out.extend(std::iter::repeat_n(NONE, places - count));
        Ok(())
    }
}

fn to_usize(found: u64, what: &'static str) -> Result<usize, ParseError> {
    usize::try_from(found).map_err(|_| number(what, found))
}

fn number(what: &'static str, found: impl TryInto<u64>) -> ParseError {
    ParseError::Number {
        what,
        found: found.try_into().unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
#[path = "usearch_file_tests.rs"]
mod tests;
