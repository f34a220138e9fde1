//! Writes a packed graph, in one pass over its rows.

use std::io::{self, Write};

use shoal_runtime::ErrorKind;

use crate::index::{
    adjacency::Adjacency,
    packed::header::{self, ALIGNMENT, Header},
    space::Space,
};

/// Zeros to fill up with.
const ZEROS: [u8; ALIGNMENT] = [0; ALIGNMENT];

/// Why a packed graph is not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The edges are of more or fewer rows than the codes.
    #[error("graph has edges of {edges} rows and codes of {codes}")]
    Rows {
        /// Rows with edges.
        edges: u32,
        /// Codes that came, as far as they were taken.
        codes: u32,
    },
    /// A code is not of this space.
    #[error("code of row {row} has {found} bytes, {expected} are expected")]
    Code {
        /// The row.
        row: u32,
        /// As it came.
        found: usize,
        /// A code of the space.
        expected: usize,
    },
    /// More than can be addressed.
    #[error("graph of {rows} rows is too large")]
    TooLarge {
        /// Rows.
        rows: u32,
    },
    /// The output.
    #[error("cannot write packed graph")]
    Write(#[from] io::Error),
}

impl WriteError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Rows { .. } | Self::Code { .. } => ErrorKind::Bug,
            Self::TooLarge { .. } => ErrorKind::Caller,
            Self::Write(_) => ErrorKind::Closed,
        }
    }
}

/// Writes a graph whose row `n` has the `n`th of `codes`, each with its bias, and gives its
/// length in bytes. It wants to lie at a multiple of 64 in memory later.
///
/// # Errors
/// [`WriteError`]; what was written by then is of no use.
pub fn write<C: AsRef<[u8]>>(
    out: &mut impl Write,
    space: &Space,
    adjacency: &Adjacency,
    codes: impl IntoIterator<Item = (C, f32)>,
) -> Result<usize, WriteError> {
    let rows = adjacency.rows();
    let too_large = || WriteError::TooLarge { rows };
    let number = |size: usize| u32::try_from(size).map_err(|_| too_large());
    let stride = header::stride(space.code_bytes());
    let level_rows = adjacency.upper.iter().map(|level| number(level.rows.len()));
    let header = Header {
        space: space.clone(),
        rows,
        entry: adjacency.entry(),
        degree: number(adjacency.degree)?,
        upper_degree: number(adjacency.upper_degree)?,
        stride: number(stride)?,
        level_rows: level_rows.collect::<Result<_, _>>()?,
    };
    let layout = header.layout().ok_or_else(too_large)?;
    let mut out = Counted { out, written: 0 };
    out.write(&header.encode())?;
    let biases = write_codes(&mut out, space, rows, stride, codes)?;
    out.numbers(&adjacency.base)?;
    out.align()?;
    for bias in biases {
        out.write(&bias.to_le_bytes())?;
    }
    for level in &adjacency.upper {
        out.numbers(&level.rows)?;
        out.numbers(&level.links)?;
    }
    debug_assert_eq!(out.written, layout.end);
    Ok(out.written)
}

/// Writes the codes and gives the biases, if the space has any.
fn write_codes<C: AsRef<[u8]>>(
    out: &mut Counted<'_, impl Write>,
    space: &Space,
    rows: u32,
    stride: usize,
    codes: impl IntoIterator<Item = (C, f32)>,
) -> Result<Vec<f32>, WriteError> {
    let expected = space.code_bytes();
    let padding = ZEROS.get(..stride - expected).unwrap_or_default();
    let mut biases = Vec::new();
    let mut codes = codes.into_iter();
    for row in 0..rows {
        let Some((code, bias)) = codes.next() else {
            return Err(WriteError::Rows {
                edges: rows,
                codes: row,
            });
        };
        let code = code.as_ref();
        if code.len() != expected {
            return Err(WriteError::Code {
                row,
                found: code.len(),
                expected,
            });
        }
        out.write(code)?;
        out.write(padding)?;
        if space.has_bias() {
            biases.push(bias);
        }
    }
    if codes.next().is_some() {
        return Err(WriteError::Rows {
            edges: rows,
            codes: rows.saturating_add(1),
        });
    }
    Ok(biases)
}

struct Counted<'a, W> {
    out: &'a mut W,
    written: usize,
}

impl<W: Write> Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.written += bytes.len();
        Ok(())
    }

    /// A section of numbers.
    fn numbers(&mut self, numbers: &[u32]) -> io::Result<()> {
        self.align()?;
        for number in numbers {
            self.write(&number.to_le_bytes())?;
        }
        Ok(())
    }

    fn align(&mut self) -> io::Result<()> {
        let missing = self.written.next_multiple_of(ALIGNMENT) - self.written;
        self.write(ZEROS.get(..missing).unwrap_or_default())
    }
}
