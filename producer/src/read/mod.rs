//! Points from files: JSONL, numpy arrays with JSONL metadata, Parquet, standard input.
//!
//! Every reader streams: it holds one line, one row or one batch of rows, whatever the file's
//! size. A fault names the file and the line or row. A faulty *record* may be passed over, since
//! the reader stands at the next one already; a faulty *file* ends the reading.

mod bytes;
pub mod ids;
pub mod jsonl;
pub mod npy;
pub mod parquet;
mod parquet_cell;

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use shoal_runtime::ErrorKind;
use shoal_schemas::{Collection, Point, PointId, Rejection};

/// Where points come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Standard input, as JSONL.
    Stdin,
    /// A file.
    File(PathBuf),
}

impl Input {
    /// `-` is standard input, anything else a path.
    pub fn parse(text: &str) -> Self {
        if text == "-" {
            Self::Stdin
        } else {
            Self::File(text.into())
        }
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => f.write_str("standard input"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One point a line, as JSON; gzip is recognised by its first bytes.
    Jsonl,
    /// A numpy array of vectors.
    Npy,
    /// A Parquet file.
    Parquet,
}

impl Format {
    /// By the name's ending, `.gz` left out; standard input is JSONL.
    pub fn of(input: &Input) -> Option<Self> {
        let Input::File(path) = input else {
            return Some(Self::Jsonl);
        };
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        match name.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" | "json" => Some(Self::Jsonl),
            "npy" => Some(Self::Npy),
            "parquet" | "pq" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// How a file is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What it is; `None` = by its name.
    pub format: Option<Format>,
    /// JSONL (also gzip) with one line a row of an `.npy` file: the id and payload fields.
    pub metadata: Option<PathBuf>,
    /// The metadata's field or Parquet's column that holds the id. Default `id`.
    pub id_field: String,
    /// Parquet's column of vectors. Default `vector`.
    pub vector_field: String,
    /// Fields of the metadata and columns of a Parquet file that are left out.
    pub ignore: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            format: None,
            metadata: None,
            id_field: "id".into(),
            vector_field: "vector".into(),
            ignore: Vec::new(),
        }
    }
}

/// A place in an input, for a person to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of a text file, counted from 1.
    Line(u64),
    /// A row of an array or table, counted from 0.
    Row(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, ":{line}"),
            Self::Row(row) => write!(f, " row {row}"),
        }
    }
}

/// Why an input gave no point.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// One record is faulty; the next call goes on behind it.
    #[error("{input}{place}: {rejection}")]
    Record {
        /// The file.
        input: String,
        /// Where in it.
        place: Place,
        /// What is wrong.
        rejection: Rejection,
    },
    /// The file cannot be opened or read on.
    #[error("cannot read {input}")]
    Io {
        /// The file.
        input: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file as a whole is not what it should be.
    #[error("{input}: {fault}")]
    File {
        /// The file.
        input: String,
        /// What is wrong, and what to do.
        fault: String,
    },
    /// The name does not say what the file is.
    #[error(
        "{input}: its ending names no known format; known are .jsonl, .jsonl.gz, .npy and .parquet, or say the format"
    )]
    Format {
        /// The file.
        input: String,
    },
}

impl ReadError {
    /// Whether only one record is lost and reading may go on.
    pub fn is_record(&self) -> bool {
        matches!(self, Self::Record { .. })
    }

    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Record { .. } | Self::Format { .. } | Self::Io { .. } => ErrorKind::Caller,
            Self::File { .. } => ErrorKind::Corrupt,
        }
    }

    fn record(input: &Input, place: Place, rejection: Rejection) -> Self {
        Self::Record {
            input: input.to_string(),
            place,
            rejection,
        }
    }

    fn io(input: &Input, source: io::Error) -> Self {
        Self::Io {
            input: input.to_string(),
            source,
        }
    }

    fn file(input: &Input, fault: impl fmt::Display) -> Self {
        Self::File {
            input: input.to_string(),
            fault: fault.to_string(),
        }
    }
}

/// One point, or why there is none. After an error that is not of one record, nothing follows.
pub type Row = Result<(PointId, Point), ReadError>;

/// A stream of points. Reading blocks.
pub struct Rows {
    rows: Box<dyn Iterator<Item = Row> + Send>,
    /// How many there will be, where the file says so.
    pub total: Option<u64>,
}

impl Rows {
    /// Takes any iterator for an input.
    pub fn new(total: Option<u64>, rows: impl Iterator<Item = Row> + Send + 'static) -> Self {
        Self {
            rows: Box::new(rows),
            total,
        }
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows")
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl Iterator for Rows {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        self.rows.next()
    }
}

/// Opens an input and checks what can be checked before the first row.
///
/// # Errors
/// [`ReadError::Format`], [`ReadError::Io`] and [`ReadError::File`].
pub fn open(input: &Input, collection: &Collection, options: &Options) -> Result<Rows, ReadError> {
    let unknown = || ReadError::Format {
        input: input.to_string(),
    };
    let format = options
        .format
        .or_else(|| Format::of(input))
        .ok_or_else(unknown)?;
    if options.metadata.is_some() && format != Format::Npy {
        return Err(ReadError::file(
            input,
            "metadata goes with an .npy file only",
        ));
    }
    match (format, input) {
        (Format::Jsonl, _) => jsonl::open(input, collection),
        (Format::Npy, Input::File(path)) => npy::open(path, collection, options),
        (Format::Parquet, Input::File(path)) => parquet::open(path, collection, options),
        (Format::Npy | Format::Parquet, Input::Stdin) => Err(ReadError::file(
            input,
            "only JSONL is read from standard input",
        )),
    }
}

fn file_input(path: &Path) -> Input {
    Input::File(path.to_owned())
}
