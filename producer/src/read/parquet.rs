//! Points from a Parquet file: a column of ids, one of vectors, every other one is payload.
//!
//! Row groups are streamed, a few hundred rows at a time. Types are those of Parquet itself: the
//! Arrow schema that some writers leave in the file is passed over, so a category is the text it
//! stands for and a list of fixed size is a list. The columns `model`, `event_time` and
//! `expires_at` are the point's own, as in JSON. An empty cell leaves its field out.

use std::{fs::File, path::Path, vec};

use arrow_array::{
    Array, RecordBatch,
    cast::AsArray,
    types::{Float16Type, Float32Type, Float64Type},
};
use arrow_schema::{DataType, Schema};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{
            ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
        },
    },
    basic::Compression,
    file::metadata::ParquetMetaData,
};
use shoal_schemas::{Collection, Dim, Metric, Payload, Point, PointId, Reason, Rejection, Vector};

use super::{Input, Options, Place, ReadError, Row, Rows, file_input, npy::narrow, parquet_cell};

/// Rows held at a time.
const BATCH_ROWS: usize = 256;

/// Opens a Parquet file and checks its columns.
///
/// # Errors
/// [`ReadError::Io`], and [`ReadError::File`] that names the column that is missing or of a type
/// with no meaning here.
pub fn open(path: &Path, collection: &Collection, options: &Options) -> Result<Rows, ReadError> {
    let input = file_input(path);
    let fault = |detail: &dyn std::fmt::Display| ReadError::file(&input, detail);
    let file = File::open(path).map_err(|source| ReadError::io(&input, source))?;
    let settings = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file, settings)
        .map_err(|error| fault(&error))?;
    let columns = Columns::check(builder.schema(), options).map_err(|detail| fault(&detail))?;
    let total = u64::try_from(builder.metadata().file_metadata().num_rows()).ok();
    let kept = builder.schema().fields().iter().enumerate();
    let kept = kept.filter(|(_, field)| !options.ignore.contains(field.name()));
    let mask = ProjectionMask::roots(
        builder.parquet_schema(),
        kept.map(|(at, _)| at).collect::<Vec<_>>(),
    );
    if let Some(column) = packed_beyond_us(builder.metadata(), &mask) {
        return Err(fault(&format_args!(
            "column `{column}` is packed with Brotli or LZO, packings read are Snappy, gzip, LZ4 \
             and Zstandard"
        )));
    }
    let batches = builder
        .with_projection(mask)
        .with_batch_size(BATCH_ROWS)
        .build()
        .map_err(|error| fault(&error))?;
    Ok(Rows::new(
        total,
        Points {
            input: input.clone(),
            batches,
            columns,
            dim: collection.dim,
            metric: collection.metric,
            next_row: 0,
            ready: Vec::new().into_iter(),
            ended: false,
        },
    ))
}

/// The first column that is packed in a way this program was built without.
fn packed_beyond_us(file: &ParquetMetaData, mask: &ProjectionMask) -> Option<String> {
    let groups = file.row_groups().iter();
    let mut columns = groups.flat_map(|group| group.columns().iter().enumerate());
    let beyond = columns.find(|(leaf, column)| {
        let packing = column.compression();
        mask.leaf_included(*leaf) && matches!(packing, Compression::BROTLI(_) | Compression::LZO)
    });
    beyond.map(|(_, column)| column.column_path().string())
}

/// Which column means what.
struct Columns {
    id: String,
    vector: String,
    payload: Vec<String>,
    model: bool,
    event_time: bool,
    expires_at: bool,
}

impl Columns {
    fn check(schema: &Schema, options: &Options) -> Result<Self, String> {
        let names = || {
            let names = schema.fields().iter().map(|field| field.name().as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        let column = |name: &str| {
            let found = schema.field_with_name(name);
            found.map_err(|_| format!("there is no column `{name}`; there are: {}", names()))
        };
        let id = column(&options.id_field)?;
        if !parquet_cell::is_id(id.data_type()) {
            return Err(format!(
                "column `{}` is of type {}, an id is a text or a whole number",
                id.name(),
                id.data_type()
            ));
        }
        let vector = column(&options.vector_field)?;
        let is_vector = match vector.data_type() {
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                matches!(
                    item.data_type(),
                    DataType::Float16 | DataType::Float32 | DataType::Float64
                )
            }
            _ => false,
        };
        if !is_vector {
            return Err(format!(
                "column `{}` is of type {}, a vector is a list of floats",
                vector.name(),
                vector.data_type()
            ));
        }
        let mut columns = Self {
            id: options.id_field.clone(),
            vector: options.vector_field.clone(),
            payload: Vec::new(),
            model: false,
            event_time: false,
            expires_at: false,
        };
        for field in schema.fields() {
            let (name, kind) = (field.name().as_str(), field.data_type());
            if options.ignore.iter().any(|left_out| left_out == name) {
                if name == columns.id || name == columns.vector {
                    return Err(format!("column `{name}` is needed, it cannot be ignored"));
                }
                continue;
            }
            match name {
                _ if name == columns.id || name == columns.vector => {}
                "model" if kind == &DataType::Utf8 => columns.model = true,
                "event_time" if parquet_cell::is_time(kind) => columns.event_time = true,
                "expires_at" if parquet_cell::is_time(kind) => columns.expires_at = true,
                "model" => return Err(format!("column `model` is of type {kind}, not a text")),
                "event_time" | "expires_at" => {
                    return Err(format!(
                        "column `{name}` is of type {kind}, not a time or whole milliseconds"
                    ));
                }
                _ if parquet_cell::is_payload(kind) => columns.payload.push(name.to_owned()),
                _ => {
                    return Err(format!(
                        "column `{name}` is of type {kind}, which no payload field has; leave it \
                         out with `ignore`"
                    ));
                }
            }
        }
        Ok(columns)
    }
}

struct Points {
    input: Input,
    batches: ParquetRecordBatchReader,
    columns: Columns,
    dim: Dim,
    metric: Metric,
    /// Number of the first row that is not in `ready` yet.
    next_row: u64,
    ready: vec::IntoIter<Row>,
    ended: bool,
}

impl Iterator for Points {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        loop {
            if let Some(row) = self.ready.next() {
                return Some(row);
            }
            if self.ended {
                return None;
            }
            match self.batches.next() {
                None => self.ended = true,
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(Err(ReadError::file(
                        &self.input,
                        format_args!("rows from {} on do not read: {error}", self.next_row),
                    )));
                }
                Some(Ok(batch)) => {
                    let rows: Vec<Row> = (0..batch.num_rows())
                        .zip(self.next_row..)
                        .map(|(at, row)| {
                            self.point(&batch, at).map_err(|rejection| {
                                ReadError::record(&self.input, Place::Row(row), rejection)
                            })
                        })
                        .collect();
                    self.next_row += u64::try_from(rows.len()).unwrap_or(u64::MAX);
                    self.ready = rows.into_iter();
                }
            }
        }
    }
}

impl Points {
    fn point(&self, batch: &RecordBatch, at: usize) -> Result<(PointId, Point), Rejection> {
        let column = |name: &str| {
            let column = batch.column_by_name(name);
            column
                .expect("the reader gives the columns it was asked for")
                .as_ref()
        };
        let bad = |reason: Reason, name: &str, detail: &dyn std::fmt::Display| {
            Rejection::new(reason, format_args!("column `{name}` {detail}"))
        };
        let id = parquet_cell::id(column(&self.columns.id), at)
            .ok_or_else(|| bad(Reason::BadKey, &self.columns.id, &"is empty"))?;
        let name = &self.columns.vector;
        let values = vector(column(name), at)
            .map_err(|detail| bad(Reason::WrongDimension, name, &detail))?;
        let vector = Vector::new(&values, self.dim, self.metric)?;
        let mut payload = Payload::default();
        for name in &self.columns.payload {
            match parquet_cell::value(column(name), at) {
                Ok(None) => {}
                Ok(Some(value)) => {
                    payload.0.insert(name.clone(), value);
                }
                Err(detail) => return Err(bad(Reason::BadPayload, name, &detail)),
            }
        }
        payload.check()?;
        let time = |set: bool, name: &str| match set {
            true => parquet_cell::time_ms(column(name), at),
            false => None,
        };
        let point = Point {
            vector,
            payload,
            model: match self.columns.model {
                true => parquet_cell::id(column("model"), at),
                false => None,
            },
            event_time_ms: time(self.columns.event_time, "event_time"),
            expires_at_ms: time(self.columns.expires_at, "expires_at"),
        };
        Ok((PointId::new(&id)?, point))
    }
}

/// The components in one cell.
fn vector(column: &dyn Array, at: usize) -> Result<Vec<f32>, &'static str> {
    if column.is_null(at) {
        return Err("is empty");
    }
    let items = if let Some(list) = column.as_list_opt::<i32>() {
        list.value(at)
    } else if let Some(list) = column.as_list_opt::<i64>() {
        list.value(at)
    } else if let Some(list) = column.as_fixed_size_list_opt() {
        list.value(at)
    } else {
        return Err("is no list");
    };
    if items.null_count() > 0 {
        return Err("has empty components");
    }
    if let Some(items) = items.as_primitive_opt::<Float32Type>() {
        Ok(items.values().to_vec())
    } else if let Some(items) = items.as_primitive_opt::<Float64Type>() {
        Ok(items.values().iter().map(|value| narrow(*value)).collect())
    } else if let Some(items) = items.as_primitive_opt::<Float16Type>() {
        Ok(items.values().iter().map(|value| value.to_f32()).collect())
    } else {
        Err("holds no floats")
    }
}

#[cfg(test)]
#[path = "parquet_tests.rs"]
mod tests;
