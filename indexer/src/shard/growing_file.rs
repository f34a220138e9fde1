//! The rows of a growing segment in a checkpoint: a file that is read back as a whole.
//!
//! Little-endian: magic, rows u32, then each row (length of the id u16, id, version u64, source
//! u16, offset u64, place in the own log u64, digest hash 16 bytes, expiry i64, flags u8: 1 alive, 2
//! rides), then entries to the end. On which row one rides is in a file of that one's segment
//! ([`super::riders_file`]).

use std::{fs, path::Path};

use shoal_schemas::{Offset, Payload, PointId, Version, digest::RowHash};

use crate::{
    rule::SourceIndex,
    segment::{
        NewRow, Segment, Sequence,
        entries::Entry,
        files::{FileError, FileMark, Sink, damaged, io_error},
        growing::Growing,
    },
    wal::Position,
};

const MAGIC: &[u8; 8] = b"SHOALRW2";
const NO_TIME: i64 = i64::MIN;
const ALIVE: u8 = 1;
const RIDES: u8 = 2;

/// Writes the first `rows` rows and `entries` entries, as far as there are any.
///
/// # Errors
/// [`FileError::Io`].
pub(super) fn write(
    path: &Path,
    segment: Option<&Segment>,
    (rows, entries): (u32, usize),
    sequence: Sequence,
) -> Result<FileMark, FileError> {
    let growing = segment.and_then(Segment::as_growing);
    let mut sink = Sink::create(path.to_owned())?;
    sink.put(MAGIC)?;
    sink.put(&rows.to_le_bytes())?;
    let mut bytes = Vec::new();
    for (number, row) in (0..rows).filter_map(|row| Some((row, growing?.row(row)?))) {
        bytes.clear();
        let id = row.id.as_bytes();
        let length = u16::try_from(id.len()).expect("a point id has at most 512 bytes");
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(id);
        bytes.extend_from_slice(&row.version.raw().to_le_bytes());
        bytes.extend_from_slice(&row.source.0.to_le_bytes());
        bytes.extend_from_slice(&row.offset.0.to_le_bytes());
        bytes.extend_from_slice(&row.wal.as_u64().to_le_bytes());
        bytes.extend_from_slice(&row.hash.to_bytes());
        bytes.extend_from_slice(&row.expires_at_ms.unwrap_or(NO_TIME).to_le_bytes());
        let rides = segment.is_some_and(|segment| segment.rides.is_rider(number));
        let alive = row.outlives(sequence);
        bytes.push((u8::from(alive) * ALIVE) | (u8::from(rides) * RIDES));
        sink.put(&bytes)?;
    }
    bytes.clear();
    let all = growing.into_iter().flat_map(Growing::entries);
    for entry in all.take(entries) {
        entry.encode(&mut bytes);
    }
    sink.put(&bytes)?;
    sink.finish()
}

/// Reads a file into a segment, oldest row first; ended rows are ended again. `payload` gives a
/// row's payload as it is indexed.
///
/// # Errors
/// [`FileError`].
pub(super) fn read(
    path: &Path,
    segment: &Segment,
    payload: impl Fn(&NewRow) -> Result<Payload, FileError>,
) -> Result<(), FileError> {
    let bytes = fs::read(path).map_err(io_error(path))?;
    let mut failed = None;
    let read = parse(&bytes, segment, |row| {
        payload(row).map_err(|error| failed = Some(error)).ok()
    });
    match (read, failed) {
        (Some(()), _) => Ok(()),
        (None, Some(error)) => Err(error),
        (None, None) => Err(damaged(path, "its rows do not read")),
    }
}

fn parse(
    bytes: &[u8],
    segment: &Segment,
    mut payload: impl FnMut(&NewRow) -> Option<Payload>,
) -> Option<()> {
    let growing = segment.as_growing()?;
    let rest = &mut &*bytes;
    if take(rest, MAGIC.len())? != MAGIC {
        return None;
    }
    for _ in 0..u32::from_le_bytes(word(rest)?) {
        let length = u16::from_le_bytes(word(rest)?);
        let id = std::str::from_utf8(take(rest, usize::from(length))?).ok()?;
        let new = NewRow {
            id: PointId::new(id).ok()?,
            version: Version::from_raw(u64::from_le_bytes(word(rest)?)),
            source: SourceIndex(u16::from_le_bytes(word(rest)?)),
            offset: Offset(u64::from_le_bytes(word(rest)?)),
            wal: Position::new(u64::from_le_bytes(word(rest)?)),
            hash: RowHash::from_bytes(word(rest)?),
            expires_at_ms: Some(i64::from_le_bytes(word(rest)?)).filter(|time| *time != NO_TIME),
        };
        let [flags] = word(rest)?;
        let payload = payload(&new)?;
        let number = growing.push(new, &payload, Sequence::default());
        if flags & ALIVE == 0 {
            segment.end(number, Sequence::default());
        }
        if flags & RIDES != 0 {
            segment.rides.rode(number);
        }
    }
    for entry in Entry::decode_all(rest)? {
        growing.push_entry(entry);
    }
    Some(())
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(count)?;
    *rest = after;
    Some(taken)
}

fn word<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    take(rest, N)?.try_into().ok()
}
