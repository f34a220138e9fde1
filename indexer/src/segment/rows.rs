//! The table of a sealed segment's rows: fixed records and ids, in one mapped file.
//!
//! Little-endian. Head of 32 bytes: magic, rows u32, rows with a point and an expiry u32, where the ids begin
//! u64, zero u64. Then a record of 80 bytes a row: version u64, offset u64, place in the shard's
//! own log u64, expiry i64 (`i64::MIN` = none), digest hash 16 bytes, point's place u64, id's
//! place u64, point's length u32 (0 = the row had ended before, or is reclaimed), point's CRC-32 u32, source u16,
//! id's length u16, zero u32. Then the ids.

use std::path::{Path, PathBuf};

use shoal_schemas::{Offset, Version, digest::RowHash};

use crate::{
    rule::SourceIndex,
    segment::{
        Row,
        files::{FileError, FileMark, Sink, damaged},
        map::Map,
    },
    wal::Position,
};

const MAGIC: &[u8; 8] = b"SHOALRT1";
const HEAD_BYTES: usize = 32;
const RECORD_BYTES: usize = 80;
const NO_TIME: i64 = i64::MIN;

/// Where a row's point stands in the points file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PointPlace {
    /// First byte.
    pub at: u64,
    /// Length; 0 if there is no point.
    pub bytes: u32,
    /// CRC-32 of it.
    pub crc32: u32,
}

/// Writes a table, row after row.
pub struct Writer {
    sink: Sink,
    ids: Vec<u8>,
    written: u32,
}

impl Writer {
    /// Begins a table of so many rows, of which `expiring` have a point that expires.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn create(path: PathBuf, rows: u32, expiring: u32) -> Result<Self, FileError> {
        let mut sink = Sink::create(path)?;
        let ids_at = HEAD_BYTES + RECORD_BYTES * usize::try_from(rows).unwrap_or(usize::MAX);
        let ids_at = u64::try_from(ids_at).unwrap_or(u64::MAX);
        sink.put(MAGIC)?;
        sink.put(&rows.to_le_bytes())?;
        sink.put(&expiring.to_le_bytes())?;
        sink.put(&ids_at.to_le_bytes())?;
        sink.put(&[0; 8])?;
        Ok(Self {
            sink,
            ids: Vec::new(),
            written: 0,
        })
    }

    /// Rows appended so far: the number of the next one.
    pub fn len(&self) -> u32 {
        self.written
    }

    /// Whether no row was appended yet.
    pub fn is_empty(&self) -> bool {
        self.written == 0
    }

    /// Appends a row.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn push(&mut self, row: &Row<'_>, point: PointPlace) -> Result<(), FileError> {
        self.written += 1;
        let id_at = u64::try_from(self.ids.len()).unwrap_or(u64::MAX);
        let id = row.id.as_bytes();
        let id_bytes = u16::try_from(id.len()).expect("a point id has at most 512 bytes");
        self.ids.extend_from_slice(id);
        let mut record = Vec::with_capacity(RECORD_BYTES);
        record.extend_from_slice(&row.version.raw().to_le_bytes());
        record.extend_from_slice(&row.offset.0.to_le_bytes());
        record.extend_from_slice(&row.wal.as_u64().to_le_bytes());
        record.extend_from_slice(&row.expires_at_ms.unwrap_or(NO_TIME).to_le_bytes());
        record.extend_from_slice(&row.hash.to_bytes());
        record.extend_from_slice(&point.at.to_le_bytes());
        record.extend_from_slice(&id_at.to_le_bytes());
        record.extend_from_slice(&point.bytes.to_le_bytes());
        record.extend_from_slice(&point.crc32.to_le_bytes());
        record.extend_from_slice(&row.source.0.to_le_bytes());
        record.extend_from_slice(&id_bytes.to_le_bytes());
        record.extend_from_slice(&[0; 4]);
        self.sink.put(&record)
    }

    /// Writes the ids and makes the table durable.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn finish(mut self) -> Result<FileMark, FileError> {
        self.sink.put(&self.ids)?;
        self.sink.finish()
    }
}

/// A table of rows.
pub struct Table {
    map: Map,
    rows: u32,
    expiring: u32,
    ids_at: usize,
}

impl Table {
    /// Opens a table; only its head is read.
    ///
    /// # Errors
    /// [`FileError::Damaged`] if the head does not fit the file.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let map = Map::open(path)?;
        let bytes = map.as_ref();
        let head = parse_head(bytes).ok_or_else(|| damaged(path, "its head does not read"))?;
        let (rows, expiring, ids_at) = head;
        Ok(Self {
            rows,
            expiring,
            ids_at,
            map,
        })
    }

    /// Number of rows.
    pub fn len(&self) -> u32 {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Whether any row has a point that expires.
    pub fn has_expiring(&self) -> bool {
        self.expiring > 0
    }

    /// A row that ended at `died`, born before everything; `None` if it is not there or does not
    /// read.
    pub(super) fn row(&self, row: u32, died: u64) -> Option<Row<'_>> {
        let record = self.record(row)?;
        let id_at = usize::try_from(u64_at(record, 56)?).ok()?;
        let id_bytes = usize::from(u16_at(record, 74)?);
        let from = self.ids_at.checked_add(id_at)?;
        let id = self.map.as_ref().get(from..from.checked_add(id_bytes)?)?;
        let expires = i64::from_le_bytes(*record.get(24..)?.first_chunk()?);
        Some(Row {
            id: std::str::from_utf8(id).ok()?,
            version: Version::from_raw(u64_at(record, 0)?),
            source: SourceIndex(u16_at(record, 72)?),
            offset: Offset(u64_at(record, 8)?),
            wal: Position::new(u64_at(record, 16)?),
            hash: RowHash::from_bytes(*record.get(32..)?.first_chunk()?),
            expires_at_ms: (expires != NO_TIME).then_some(expires),
            born: 0,
            died,
        })
    }

    /// When a row is hidden for its age; `None` for never.
    pub fn expires_at_ms(&self, row: u32) -> Option<i64> {
        let record = self.record(row)?;
        let expires = i64::from_le_bytes(*record.get(24..)?.first_chunk()?);
        (expires != NO_TIME).then_some(expires)
    }

    /// Where a row's point stands; `None` if the row had ended before it was sealed, or is reclaimed.
    pub fn point(&self, row: u32) -> Option<PointPlace> {
        let record = self.record(row)?;
        let place = PointPlace {
            at: u64_at(record, 48)?,
            bytes: u32_at(record, 64)?,
            crc32: u32_at(record, 68)?,
        };
        (place.bytes > 0).then_some(place)
    }

    fn record(&self, row: u32) -> Option<&[u8]> {
        if row >= self.rows {
            return None;
        }
        let at = HEAD_BYTES + RECORD_BYTES * usize::try_from(row).ok()?;
        self.map.as_ref().get(at..at + RECORD_BYTES)
    }
}

fn parse_head(bytes: &[u8]) -> Option<(u32, u32, usize)> {
    if bytes.get(..8)? != MAGIC {
        return None;
    }
    let rows = u32_at(bytes, 8)?;
    let expiring = u32_at(bytes, 12)?;
    let ids_at = usize::try_from(u64_at(bytes, 16)?).ok()?;
    let records = RECORD_BYTES.checked_mul(usize::try_from(rows).ok()?)?;
    let fits = ids_at == HEAD_BYTES.checked_add(records)? && ids_at <= bytes.len();
    fits.then_some((rows, expiring, ids_at))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A row as a test makes it.
#[cfg(test)]
pub(super) fn test_row(id: &str, number: u64, expires_at_ms: Option<i64>) -> Row<'_> {
    Row {
        id,
        version: Version::from_raw(number << 20),
        source: SourceIndex(3),
        offset: Offset(number),
        wal: Position::new(number * 1000),
        hash: RowHash::from_bytes([7; 16]),
        expires_at_ms,
        born: 0,
        died: super::ALIVE,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{super::ALIVE, PointPlace, Table, Writer, test_row};

    #[test]
    fn rows_read_back_and_a_damaged_table_never_panics() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.bin");
        let rows = [("a", 1, None), ("bé", 2, Some(-5)), ("", 3, None)];
        let mut writer = Writer::create(path.clone(), 3, 1).unwrap();
        for (id, number, expires) in rows {
            let point = PointPlace {
                at: number * 10,
                bytes: u32::try_from(number).unwrap() - 1,
                crc32: 9,
            };
            writer.push(&test_row(id, number, expires), point).unwrap();
        }
        let mark = writer.finish().unwrap();
        let table = Table::open(&path).unwrap();
        assert!(table.has_expiring());
        assert_eq!(table.len(), 3);
        for (at, (id, number, expires)) in (0u32..).zip(rows) {
            let wanted = format!("{:?}", test_row(id, number, expires));
            assert_eq!(format!("{:?}", table.row(at, ALIVE).unwrap()), wanted);
            assert_eq!(table.expires_at_ms(at), expires);
        }
        assert_eq!(table.point(0), None);
        assert_eq!(table.point(1).unwrap().at, 20);
        assert!(table.row(3, ALIVE).is_none());

        let whole = std::fs::read(&path).unwrap();
        assert_eq!(mark.bytes, u64::try_from(whole.len()).unwrap());
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            if let Ok(table) = Table::open(&path) {
                let _whatever: Vec<_> = (0..4).map(|row| table.row(row, ALIVE).is_some()).collect();
            }
        }
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] ^= 0xff;
            std::fs::write(&path, &bent).unwrap();
            if let Ok(table) = Table::open(&path) {
                let _whatever: Vec<_> = (0..4).map(|row| table.row(row, ALIVE).is_some()).collect();
            }
        }
    }
}
