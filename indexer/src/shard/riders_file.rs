//! Which rows ride on those of a segment, in a checkpoint: a file beside the segment, like its mask.
//!
//! Little-endian: magic, then for each row that carries one that lives, rising: its number u32, the
//! other's segment u32 and row u32.

use std::{fs, path::Path};

use crate::{
    segment::{
        Place, Segment, SegmentId, Sequence,
        files::{self, FileError, FileMark, Sink, damaged, io_error, sync_folder},
        rides::newest_rider,
    },
    shard::leftover::riders_name,
};

const MAGIC: &[u8; 8] = b"SHOALRI1";

/// Writes who rides on the first `rows` rows of a segment at a moment, into its folder; `None` if
/// nobody does. If that is what `earlier` has, that one is still good.
///
/// # Errors
/// [`FileError::Io`].
pub(super) fn write<'a>(
    folder: &Path,
    number: u64,
    (segment, rows): (&Segment, u32),
    at: Sequence,
    find: impl Fn(SegmentId) -> Option<&'a Segment>,
    earlier: Option<&FileMark>,
) -> Result<Option<FileMark>, FileError> {
    let mut bytes = MAGIC.to_vec();
    for row in segment.rides.carriers().filter(|row| *row < rows) {
        let Some((rider, number)) = newest_rider(segment, row, at, &find) else {
            continue;
        };
        if rider.row(number).is_some_and(|row| row.outlives(at)) {
            for word in [row, rider.id.0, number] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
    }
    if bytes.len() == MAGIC.len() {
        return Ok(None);
    }
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let same = (length, crc32fast::hash(&bytes));
    if let Some(mark) = earlier.filter(|mark| (mark.bytes, mark.crc32) == same) {
        return Ok(Some(mark.clone()));
    }
    let mut sink = Sink::create(folder.join(riders_name(number)))?;
    sink.put(&bytes)?;
    let mark = sink.finish()?;
    sync_folder(folder)?;
    Ok(Some(mark))
}

/// Reads a file: each row that carries, and what rides on it.
///
/// # Errors
/// [`FileError`].
pub(super) fn read(folder: &Path, mark: &FileMark) -> Result<Vec<(u32, Place)>, FileError> {
    let path = files::verify(folder, mark)?;
    let bytes = fs::read(&path).map_err(io_error(&path))?;
    parse(&bytes).ok_or_else(|| damaged(&path, "its rows do not read"))
}

fn parse(bytes: &[u8]) -> Option<Vec<(u32, Place)>> {
    let (words, tail) = bytes.strip_prefix(MAGIC)?.as_chunks::<4>();
    let (records, left) = words.as_chunks::<3>();
    let records = records.iter().map(|record| {
        let [row, segment, rider] = record.map(u32::from_le_bytes);
        let place = Place {
            segment: SegmentId(segment),
            row: rider,
        };
        (row, place)
    });
    (tail.is_empty() && left.is_empty()).then(|| records.collect())
}

#[cfg(test)]
mod tests {
    use super::{MAGIC, parse};
    use crate::segment::{Place, SegmentId};

    #[test]
    fn a_file_reads_back_and_one_of_another_length_does_not() {
        let mut bytes = MAGIC.to_vec();
        for word in [3u32, 7, 1, 9, 8, 2] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        let place = |segment, row| Place {
            segment: SegmentId(segment),
            row,
        };
        let read = parse(&bytes);
        assert_eq!(read, Some(vec![(3, place(7, 1)), (9, place(8, 2))]));
        for length in (0..bytes.len()).filter(|length| ![8, 20].contains(length)) {
            assert_eq!(bytes.get(..length).and_then(parse), None, "{length}");
        }
    }
}
