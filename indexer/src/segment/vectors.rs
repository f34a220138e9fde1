//! The exact vectors of a sealed segment: rows of equal length, read one by one.
//!
//! They are kept as they were published, to the last bit: in f16 where every component of every
//! row is a number that f16 holds, which halves the file, else in f32. They are read with plain
//! reads, not mapped: a search re-scores a handful of rows, and a mapped page would hold five
//! for each one it is asked for.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use half::{f16, slice::HalfFloatSliceExt};
use serde::{Deserialize, Serialize};

use crate::segment::files::{FileError, io_error};

/// Components read at once: all of a usual row.
const PART: usize = 2048;
/// Components converted at once.
const TOGETHER: usize = 64;

/// How a component is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 2 bytes; only where nothing is lost.
    F16,
    /// 4 bytes.
    F32,
}

impl Precision {
    /// Bytes a component takes.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// Appends a row.
    pub fn encode(self, vector: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F16 => {
                let mut halves = [f16::ZERO; TOGETHER];
                for part in vector.chunks(TOGETHER) {
                    let halves = halves.get_mut(..part.len()).unwrap_or_default();
                    halves.convert_from_f32_slice(part);
                    out.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
                }
            }
            Self::F32 => {
                for component in vector {
                    out.extend_from_slice(&component.to_le_bytes());
                }
            }
        }
    }
}

/// Whether f16 holds every component as it is.
pub fn fits_f16(vector: &[f32]) -> bool {
    let (mut halves, mut again) = ([f16::ZERO; TOGETHER], [0.0; TOGETHER]);
    vector.chunks(TOGETHER).all(|part| {
        let halves = halves.get_mut(..part.len()).unwrap_or_default();
        let again = again.get_mut(..part.len()).unwrap_or_default();
        halves.convert_from_f32_slice(part);
        halves.convert_to_f32_slice(again);
        let mut pairs = part.iter().zip(again);
        pairs.all(|(one, again)| one.to_bits() == again.to_bits())
    })
}

/// A file of exact vectors.
pub struct Vectors {
    file: File,
    path: PathBuf,
    precision: Precision,
    row_bytes: usize,
}

impl Vectors {
    /// Opens a file of rows of `dim` components.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn open(path: &Path, dim: usize, precision: Precision) -> Result<Self, FileError> {
        Ok(Self {
            file: File::open(path).map_err(io_error(path))?,
            path: path.to_owned(),
            precision,
            row_bytes: dim * precision.bytes(),
        })
    }

    /// Reads a row into `out`.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn read(&self, row: u32, out: &mut Vec<f32>) -> Result<(), FileError> {
        let at = self.at(row);
        out.resize(self.row_bytes / self.precision.bytes(), 0.0);
        match self.precision {
            Precision::F16 => {
                let mut halves = [f16::ZERO; PART];
                let mut at = at;
                for part in out.chunks_mut(PART) {
                    let halves = halves.get_mut(..part.len()).unwrap_or_default();
                    self.read_at(at, bytemuck::cast_slice_mut(halves))?;
                    if cfg!(target_endian = "big") {
                        halves
                            .iter_mut()
                            .for_each(|half| *half = f16::from_bits(half.to_bits().swap_bytes()));
                    }
                    halves.convert_to_f32_slice(part);
                    at += u64::try_from(size_of_val(halves)).unwrap_or(u64::MAX);
                }
            }
            Precision::F32 => {
                self.read_at(at, bytemuck::cast_slice_mut(out))?;
                if cfg!(target_endian = "big") {
                    out.iter_mut()
                        .for_each(|one| *one = f32::from_bits(one.to_bits().swap_bytes()));
                }
            }
        }
        Ok(())
    }

    /// Appends a row's bytes as they stand in the file.
    ///
    /// # Errors
    /// [`FileError::Io`].
    pub fn copy(&self, row: u32, out: &mut Vec<u8>) -> Result<(), FileError> {
        let held = out.len();
        out.resize(held + self.row_bytes, 0);
        let place = out.get_mut(held..).unwrap_or_default();
        self.read_at(self.at(row), place)
    }

    fn at(&self, row: u32) -> u64 {
        u64::from(row) * u64::try_from(self.row_bytes).unwrap_or(u64::MAX)
    }

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> Result<(), FileError> {
        self.file
            .read_exact_at(bytes, at)
            .map_err(io_error(&self.path))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::{Precision, Vectors, fits_f16};

    proptest! {
        #[test]
        fn rows_read_back_to_the_last_bit(
            rows in (1usize..4).prop_flat_map(|parts| {
                let dim = [5, 2048, 4096][parts - 1];
                proptest::collection::vec(proptest::collection::vec(-9e4f32..9e4, dim), 1..6)
            }),
            halves in any::<bool>(),
        ) {
            let rows: Vec<Vec<f32>> = rows
                .into_iter()
                .map(|row| match halves {
                    true => row.iter().map(|x| half::f16::from_f32(x / 2.0).to_f32()).collect(),
                    false => row,
                })
                .collect();
            let precision = match rows.iter().all(|row| fits_f16(row)) {
                true => Precision::F16,
                false => Precision::F32,
            };
            prop_assert!(!halves || precision == Precision::F16);
            let mut bytes = Vec::new();
            for row in &rows {
                precision.encode(row, &mut bytes);
            }
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("vectors");
            std::fs::write(&path, &bytes).unwrap();
            let vectors = Vectors::open(&path, rows[0].len(), precision).unwrap();
            let mut read = Vec::new();
            for (number, row) in (0u32..).zip(&rows) {
                vectors.read(number, &mut read).unwrap();
                prop_assert_eq!(&read, row);
            }
            let mut copied = Vec::new();
            for (number, _) in (0u32..).zip(&rows) {
                vectors.copy(number, &mut copied).unwrap();
            }
            prop_assert_eq!(copied, bytes);
            prop_assert!(vectors.read(u32::try_from(rows.len()).unwrap(), &mut read).is_err());
        }
    }
}
