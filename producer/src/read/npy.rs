//! Vectors from a numpy array file, with ids and payload from JSONL beside it.
//!
//! The array is two-dimensional, `rows x dim`, of f16, f32 or f64 in C order, little endian:
//! what `numpy.save` writes. Line n of the metadata belongs to row n. Its `id` field is the
//! point's id, `model`, `event_time` and `expires_at` are the point's own, a `payload` object is
//! the payload as it stands, and every other field becomes a payload field. Without metadata the
//! row's number is the id.
//!
//! # Source
//! NEP 1, "A simple file format for NumPy arrays", versions 1.0 to 3.0.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use half::f16;
use serde_json::{Map, Value as Json, json};
use shoal_schemas::{
    Collection, Dim, Metric, Payload, Point, PointId, Reason, Rejection, Vector, json as line_json,
};

use super::{
    Input, Options, Place, ReadError, Row, Rows,
    bytes::{self, Found, Lines},
    file_input,
    jsonl::{line_limit, too_long},
};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// numpy's own headers have under 200 bytes; this keeps a damaged length from being believed.
const MAX_HEADER_BYTES: usize = 64 << 10;
const BUFFER_BYTES: usize = 256 << 10;

/// Opens an array and, if the options name some, its metadata.
///
/// # Errors
/// [`ReadError::Io`], and [`ReadError::File`] for an array of another kind or dimension.
pub fn open(path: &Path, collection: &Collection, options: &Options) -> Result<Rows, ReadError> {
    let input = file_input(path);
    let file = File::open(path).map_err(|source| ReadError::io(&input, source))?;
    let mut from = BufReader::with_capacity(BUFFER_BYTES, file);
    let header = Header::read(&mut from, &input)?;
    if header.columns != collection.dim.len() {
        return Err(ReadError::file(
            &input,
            format_args!(
                "array has {} columns, collection `{}` has vectors of {}",
                header.columns, collection.name, collection.dim
            ),
        ));
    }
    let metadata = options
        .metadata
        .as_deref()
        .map(|path| Metadata::open(path, collection, options))
        .transpose()?;
    let row_bytes = header.columns * header.item.bytes();
    Ok(Rows::new(
        Some(header.rows),
        Points {
            input,
            from,
            header,
            metadata,
            dim: collection.dim,
            metric: collection.metric,
            row: 0,
            raw: vec![0; row_bytes],
            values: Vec::with_capacity(collection.dim.len()),
            ended: false,
        },
    ))
}

/// Type of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    F16,
    F32,
    F64,
}

impl Item {
    fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// Appends a row's components. A double out of f32's range turns infinite and is refused
    /// with the row.
    fn widen(self, raw: &[u8], values: &mut Vec<f32>) {
        match self {
            Self::F16 => {
                let (items, _) = raw.as_chunks::<2>();
                values.extend(items.iter().map(|item| f16::from_le_bytes(*item).to_f32()));
            }
            Self::F32 => {
                let (items, _) = raw.as_chunks::<4>();
                values.extend(items.iter().map(|item| f32::from_le_bytes(*item)));
            }
            Self::F64 => {
                let (items, _) = raw.as_chunks::<8>();
                values.extend(items.iter().map(|item| narrow(f64::from_le_bytes(*item))));
            }
        }
    }
}

/// The nearest f32.
#[expect(
    clippy::as_conversions,
    reason = "std has no other rounding conversion"
)]
pub(super) fn narrow(value: f64) -> f32 {
    value as f32
}

/// What the file says of its array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    item: Item,
    rows: u64,
    columns: usize,
}

impl Header {
    fn read(from: &mut impl Read, input: &Input) -> Result<Self, ReadError> {
        let refuse = |fault: &str| ReadError::file(input, fault);
        let io = |source: io::Error| match source.kind() {
            io::ErrorKind::UnexpectedEof => refuse("file ends within its header"),
            _ => ReadError::io(input, source),
        };
        let mut start = [0; 8];
        from.read_exact(&mut start).map_err(io)?;
        let [magic @ .., major, _minor] = &start;
        if magic != MAGIC {
            return Err(refuse("file does not start as a numpy array does"));
        }
        let header_bytes = match major {
            1 => {
                let mut raw = [0; 2];
                from.read_exact(&mut raw).map_err(io)?;
                usize::from(u16::from_le_bytes(raw))
            }
            2 | 3 => {
                let mut raw = [0; 4];
                from.read_exact(&mut raw).map_err(io)?;
                usize::try_from(u32::from_le_bytes(raw)).unwrap_or(usize::MAX)
            }
            other => {
                return Err(ReadError::file(
                    input,
                    format_args!("numpy format has version {other}, known are 1 to 3"),
                ));
            }
        };
        if header_bytes > MAX_HEADER_BYTES {
            return Err(ReadError::file(
                input,
                format_args!("header has {header_bytes} bytes, allowed are {MAX_HEADER_BYTES}"),
            ));
        }
        let mut raw = vec![0; header_bytes];
        from.read_exact(&mut raw).map_err(io)?;
        let text = std::str::from_utf8(&raw).map_err(|_| refuse("header is no text"))?;
        Self::parse(text).map_err(|fault| ReadError::file(input, fault))
    }

    /// Reads the header's Python dictionary, which has three known keys in any order.
    fn parse(text: &str) -> Result<Self, String> {
        let unreadable = || format!("header does not read: {}", text.trim_end());
        let entry = |key: &str| {
            let quoted = [format!("'{key}':"), format!("\"{key}\":")];
            let at = quoted
                .iter()
                .find_map(|key| Some((text.find(key)?, key.len())));
            let (at, key_bytes) = at?;
            text.get(at + key_bytes..).map(str::trim_start)
        };
        let descr = entry("descr").ok_or_else(unreadable)?;
        let descr = descr
            .strip_prefix(['\'', '"'])
            .and_then(|rest| rest.split(['\'', '"']).next());
        let item = match descr {
            Some("<f2") => Item::F16,
            Some("<f4") => Item::F32,
            Some("<f8") => Item::F64,
            _ => {
                return Err(format!(
                    "array holds items of type {}, known are <f2, <f4 and <f8; convert it with \
                     `array.astype('<f4')`",
                    descr.unwrap_or("that is no plain number")
                ));
            }
        };
        let order = entry("fortran_order").ok_or_else(unreadable)?;
        if order.starts_with("True") {
            return Err(
                "array is in Fortran order; save it with `numpy.ascontiguousarray(array)`".into(),
            );
        }
        let shape = entry("shape").ok_or_else(unreadable)?;
        let shape = shape
            .strip_prefix('(')
            .and_then(|rest| rest.split(')').next());
        let lengths: Option<Vec<u64>> = shape
            .ok_or_else(unreadable)?
            .split(',')
            .map(str::trim)
            .filter(|length| !length.is_empty())
            .map(|length| length.trim_end_matches('L').parse().ok())
            .collect();
        match lengths.ok_or_else(unreadable)?.as_slice() {
            [rows, columns] => Ok(Self {
                item,
                rows: *rows,
                columns: usize::try_from(*columns).map_err(|_| unreadable())?,
            }),
            other => Err(format!(
                "array has {} dimensions, wanted are 2: rows and components",
                other.len()
            )),
        }
    }
}

struct Points {
    input: Input,
    from: BufReader<File>,
    header: Header,
    metadata: Option<Metadata>,
    dim: Dim,
    metric: Metric,
    /// The row read next.
    row: u64,
    raw: Vec<u8>,
    values: Vec<f32>,
    ended: bool,
}

impl Points {
    fn end(&mut self, error: ReadError) -> Option<Row> {
        self.ended = true;
        Some(Err(error))
    }
}

impl Iterator for Points {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        if self.ended {
            return None;
        }
        if self.row == self.header.rows {
            self.ended = true;
            let excess = self
                .metadata
                .as_mut()
                .and_then(|m| m.refuse_more(self.header.rows));
            return excess.map(Err);
        }
        let row = self.row;
        self.row += 1;
        if let Err(source) = self.from.read_exact(&mut self.raw) {
            let error = match source.kind() {
                io::ErrorKind::UnexpectedEof => ReadError::file(
                    &self.input,
                    format_args!("file ends within row {row} of {}", self.header.rows),
                ),
                _ => ReadError::io(&self.input, source),
            };
            return self.end(error);
        }
        self.values.clear();
        self.header.item.widen(&self.raw, &mut self.values);
        let described = match &mut self.metadata {
            Some(metadata) => match metadata.next(row) {
                Ok(described) => described,
                Err(error) if error.is_record() => return Some(Err(error)),
                Err(error) => return self.end(error),
            },
            None => Described::by_number(row),
        };
        let point = Vector::new(&self.values, self.dim, self.metric)
            .map(|vector| described.with(vector))
            .map_err(|fault| {
                ReadError::record(&self.input, Place::Row(row), Rejection::from(fault))
            });
        Some(point)
    }
}

/// All of a point but its vector.
struct Described {
    id: PointId,
    rest: Option<Point>,
}

impl Described {
    fn by_number(row: u64) -> Self {
        Self {
            id: PointId::new(&row.to_string()).expect("a number has 1 to 20 digits"),
            rest: None,
        }
    }

    fn with(self, vector: Vector) -> (PointId, Point) {
        let point = match self.rest {
            Some(rest) => Point { vector, ..rest },
            None => Point {
                vector,
                payload: Payload::default(),
                model: None,
                event_time_ms: None,
                expires_at_ms: None,
            },
        };
        (self.id, point)
    }
}

struct Metadata {
    input: Input,
    lines: Lines,
    limit_bytes: usize,
    id_field: String,
    ignore: Vec<String>,
    /// The collection, but with vectors that stand for those of the array: lines go through the
    /// contract's own reader.
    stand_in: Collection,
}

const STAND_IN: [f32; 2] = [1.0, 0.0];

impl Metadata {
    fn open(path: &Path, collection: &Collection, options: &Options) -> Result<Self, ReadError> {
        let input = file_input(path);
        let limit_bytes = line_limit(collection);
        let two = Dim::try_from(Dim::MIN).expect("the smallest dimension is one");
        Ok(Self {
            lines: Lines::new(bytes::open(&input)?, limit_bytes),
            input,
            limit_bytes,
            id_field: options.id_field.clone(),
            ignore: options.ignore.clone(),
            stand_in: Collection {
                dim: two,
                ..collection.clone()
            },
        })
    }

    fn next(&mut self, row: u64) -> Result<Described, ReadError> {
        let found = self
            .lines
            .advance()
            .map_err(|source| ReadError::io(&self.input, source))?;
        let read = match found {
            Found::Line => self.describe(),
            Found::TooLong => Err(too_long(self.limit_bytes)),
            Found::End => {
                return Err(ReadError::file(
                    &self.input,
                    format_args!("metadata has {row} lines, the array has more rows"),
                ));
            }
        };
        let place = Place::Line(self.lines.number());
        read.map_err(|rejection| ReadError::record(&self.input, place, rejection))
    }

    fn describe(&self) -> Result<Described, Rejection> {
        let unreadable = |detail: &dyn std::fmt::Display| {
            Rejection::new(
                Reason::Undecodable,
                format_args!("metadata does not read: {detail}"),
            )
        };
        let mut fields: Map<String, Json> =
            serde_json::from_slice(self.lines.line()).map_err(|error| unreadable(&error))?;
        for field in &self.ignore {
            fields.remove(field);
        }
        let id = fields.remove(&self.id_field).ok_or_else(|| {
            Rejection::new(
                Reason::BadKey,
                format_args!("metadata has no `{}`", self.id_field),
            )
        })?;
        let mut document = Map::new();
        document.insert("id".into(), id);
        document.insert("vector".into(), json!(STAND_IN));
        for own in ["model", "event_time", "expires_at"] {
            if let Some(value) = fields.remove(own) {
                document.insert(own.into(), value);
            }
        }
        let mut payload = match fields.remove("payload") {
            Some(Json::Object(payload)) => payload,
            Some(other) => [("payload".to_owned(), other)].into_iter().collect(),
            None => Map::new(),
        };
        payload.extend(fields);
        document.insert("payload".into(), payload.into());
        let line = serde_json::to_vec(&document).map_err(|error| unreadable(&error))?;
        let (id, rest) = line_json::decode_line(&line, &self.stand_in)?;
        Ok(Described {
            id,
            rest: Some(rest),
        })
    }

    fn refuse_more(&mut self, rows: u64) -> Option<ReadError> {
        match self.lines.advance() {
            Ok(Found::End) => None,
            Ok(_) => Some(ReadError::file(
                &self.input,
                format_args!(
                    "metadata goes on at line {} after the array's {rows} rows",
                    self.lines.number()
                ),
            )),
            Err(source) => Some(ReadError::io(&self.input, source)),
        }
    }
}

#[cfg(test)]
#[path = "npy_tests.rs"]
mod tests;
