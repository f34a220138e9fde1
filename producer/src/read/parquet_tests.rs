//! Tests of Parquet files, written here with the Arrow writer.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs::File, sync::Arc};

use arrow_array::{
    ArrayRef, BooleanArray, Date32Array, DictionaryArray, FixedSizeListArray, Float32Array,
    Int32Array, Int64Array, ListArray, RecordBatch, StringArray, TimestampMicrosecondArray,
    UInt64Array,
    types::{Float16Type, Float32Type, Float64Type, Int32Type},
};
use half::f16;
use parquet::{
    arrow::{ArrowWriter, ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder},
    basic::Compression,
    file::{metadata::ParquetMetaData, properties::WriterProperties},
};
use proptest::prelude::*;
use shoal_schemas::{Collection, Metric, Point, PointId, Reason, Value};
use tempfile::TempDir;

use super::packed_beyond_us;
use crate::read::{Input, Options, Place, ReadError, Row, open};

type Rows = Vec<Row>;

fn collection() -> Collection {
    Collection::new(
        "docs".parse().unwrap(),
        2.try_into().unwrap(),
        Metric::L2,
        1,
    )
}

fn write(columns: Vec<(&str, ArrayRef)>, group_rows: usize, codec: Compression) -> TempDir {
    let dir = TempDir::new().unwrap();
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(group_rows))
        .set_compression(codec)
        .build();
    let file = File::create(dir.path().join("a.parquet")).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    dir
}

fn read_with(columns: Vec<(&str, ArrayRef)>, options: &Options) -> Result<Rows, ReadError> {
    let dir = write(columns, 1000, Compression::SNAPPY);
    let input = Input::File(dir.path().join("a.parquet"));
    Ok(open(&input, &collection(), options)?.collect())
}

fn read(columns: Vec<(&str, ArrayRef)>) -> Result<Rows, ReadError> {
    read_with(columns, &Options::default())
}

fn column(array: impl arrow_array::Array + 'static) -> ArrayRef {
    Arc::new(array)
}

fn ids(ids: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(ids.to_vec()))
}

fn vectors(rows: &[[f32; 2]]) -> ArrayRef {
    let rows = rows.iter().map(|row| Some(row.map(Some)));
    Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(rows))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn rows_are_the_tables_rows_over_groups_and_batches(
        rows in prop::collection::vec((any::<i32>(), -1000_i16..1000), 1..700),
        group_rows in 1_usize..400,
    ) {
        let vectors: Vec<[f32; 2]> = rows.iter().map(|(_, value)| [f32::from(*value), 1.0]).collect();
        let numbers = Int32Array::from_iter_values(rows.iter().map(|(number, _)| *number));
        let names: Vec<String> = (0..rows.len()).map(|at| format!("id-{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("id", ids(&names)),
            ("vector", self::vectors(&vectors)),
            ("number", Arc::new(numbers)),
        ];
        let dir = write(columns, group_rows, Compression::ZSTD(Default::default()));
        let input = Input::File(dir.path().join("a.parquet"));
        let opened = open(&input, &collection(), &Options::default()).unwrap();
        prop_assert_eq!(opened.total, Some(u64::try_from(rows.len()).unwrap()));
        let found: Vec<(PointId, Point)> = opened.map(Result::unwrap).collect();
        prop_assert_eq!(found.len(), rows.len());
        for (((id, point), name), ((number, _), vector)) in
            found.iter().zip(&names).zip(rows.iter().zip(&vectors))
        {
            prop_assert_eq!(id.as_str(), *name);
            prop_assert_eq!(point.vector.as_slice(), vector.as_slice());
            prop_assert_eq!(&point.payload.0["number"], &Value::Integer((*number).into()));
        }
    }
}

#[test]
fn usual_packings_are_read_and_others_are_named() {
    let columns = || -> Vec<(&str, ArrayRef)> {
        vec![("id", ids(&["a"])), ("vector", vectors(&[[1.0, 2.0]]))]
    };
    for packing in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(Default::default()),
    ] {
        let dir = write(columns(), 10, packing);
        let input = Input::File(dir.path().join("a.parquet"));
        let found: Vec<_> = open(&input, &collection(), &Options::default())
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(found.len(), 1, "{packing}");
    }
    let dir = write(columns(), 10, Compression::SNAPPY);
    let file = File::open(dir.path().join("a.parquet")).unwrap();
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
    let all = ProjectionMask::all();
    assert_eq!(packed_beyond_us(builder.metadata(), &all), None);
    // As if its vectors were packed with Brotli.
    let group = builder.metadata().row_group(0);
    let vector = group.column(1).clone().into_builder();
    let vector = vector.set_compression(Compression::BROTLI(Default::default()));
    let columns = vec![group.column(0).clone(), vector.build().unwrap()];
    let group = group.clone().into_builder().set_column_metadata(columns);
    let file = builder.metadata().file_metadata().clone();
    let file = ParquetMetaData::new(file, vec![group.build().unwrap()]);
    let named = packed_beyond_us(&file, &all).unwrap();
    assert!(named.starts_with("vector"), "{named}");
    let without = ProjectionMask::leaves(builder.parquet_schema(), [0]);
    assert_eq!(packed_beyond_us(&file, &without), None);
}

#[test]
fn every_scalar_column_is_payload_and_an_empty_cell_is_left_out() {
    let category: DictionaryArray<Int32Type> = ["n", "v"].into_iter().collect();
    let found = read(vec![
        ("id", column(UInt64Array::from(vec![u64::MAX, 2]))),
        ("vector", vectors(&[[1.0, 2.0], [3.0, 4.0]])),
        ("text", Arc::new(StringArray::from(vec![Some("fox"), None]))),
        ("truth", Arc::new(BooleanArray::from(vec![true, false]))),
        ("score", Arc::new(Float32Array::from(vec![Some(0.5), None]))),
        ("day", Arc::new(Date32Array::from(vec![Some(1), None]))),
        (
            "at",
            Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), None])),
        ),
        ("category", Arc::new(category)),
        ("model", Arc::new(StringArray::from(vec![Some("m"), None]))),
        (
            "event_time",
            Arc::new(TimestampMicrosecondArray::from(vec![Some(5000), None])),
        ),
        (
            "expires_at",
            Arc::new(Int64Array::from(vec![None, Some(9)])),
        ),
    ])
    .unwrap();
    let rows: Vec<(PointId, Point)> = found.into_iter().map(Result::unwrap).collect();
    let (id, point) = &rows[0];
    assert_eq!(id.as_str(), u64::MAX.to_string());
    let expected = [
        ("at", Value::Timestamp(-1)),
        ("category", Value::String("n".into())),
        ("day", Value::Timestamp(86_400_000)),
        ("score", Value::Float(0.5)),
        ("text", Value::String("fox".into())),
        ("truth", Value::Boolean(true)),
    ];
    assert_eq!(
        point.payload.0,
        expected.map(|(name, value)| (name.into(), value)).into()
    );
    assert_eq!(
        (point.model.as_deref(), point.event_time_ms),
        (Some("m"), Some(5))
    );
    let (_, second) = &rows[1];
    assert_eq!(
        second.payload.0.keys().collect::<Vec<_>>(),
        ["category", "truth"]
    );
    assert_eq!((&second.model, second.expires_at_ms), (&None, Some(9)));
}

#[test]
fn vectors_may_be_wider_narrower_or_of_fixed_size() {
    let doubles = [Some([Some(1.0_f64), Some(2.0)])];
    let halves = [Some([1.0, 2.0].map(|value| Some(f16::from_f32(value))))];
    let singles = [Some([Some(1.0_f32), Some(2.0)])];
    let columns: [ArrayRef; 3] = [
        Arc::new(ListArray::from_iter_primitive::<Float64Type, _, _>(doubles)),
        Arc::new(ListArray::from_iter_primitive::<Float16Type, _, _>(halves)),
        Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(singles, 2)),
    ];
    for column in columns {
        let found = read(vec![("id", ids(&["a"])), ("vector", column)]).unwrap();
        let (_, point) = found[0].as_ref().unwrap();
        assert_eq!(point.vector.as_slice(), [1.0, 2.0]);
    }
}

#[test]
fn a_faulty_row_is_named_and_the_next_one_reads() {
    let rows = [
        Some(vec![Some(1.0)]),
        Some(vec![Some(1.0), None]),
        None,
        Some(vec![Some(f32::NAN), Some(1.0)]),
        Some(vec![Some(1.0), Some(2.0)]),
        Some(vec![Some(1.0), Some(2.0)]),
        Some(vec![Some(1.0), Some(2.0)]),
    ];
    let vectors = ListArray::from_iter_primitive::<Float32Type, _, _>(rows);
    let names = StringArray::from(vec![
        Some("a"),
        Some("b"),
        Some("c"),
        Some("d"),
        None,
        Some(""),
        Some("g"),
    ]);
    let found = read(vec![("id", column(names)), ("vector", Arc::new(vectors))]).unwrap();
    let faults: Vec<Reason> = found[..6]
        .iter()
        .zip(0..)
        .map(|(row, at)| match row {
            Err(ReadError::Record {
                place: Place::Row(row),
                rejection,
                ..
            }) if *row == at => rejection.reason,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        faults,
        [
            Reason::WrongDimension,
            Reason::WrongDimension,
            Reason::WrongDimension,
            Reason::NotFinite,
            Reason::BadKey,
            Reason::BadKey,
        ]
    );
    assert_eq!(found[6].as_ref().unwrap().0.as_str(), "g");
}

#[test]
fn a_table_that_does_not_fit_is_refused_by_column() {
    let id = || ("id", ids(&["a"]));
    let vector = || ("vector", vectors(&[[1.0, 2.0]]));
    let numbers: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([Some([
        Some(1),
    ])]));
    for (columns, told) in [
        (vec![id()], "there is no column `vector`; there are: id"),
        (vec![vector()], "there is no column `id`"),
        (
            vec![id(), ("vector", ids(&["x"]))],
            "column `vector` is of type Utf8",
        ),
        (
            vec![("id", vectors(&[[1.0, 2.0]])), vector()],
            "column `id` is of type List",
        ),
        (
            vec![id(), vector(), ("odd", numbers.clone())],
            "leave it out with `ignore`",
        ),
        (
            vec![id(), vector(), ("model", numbers.clone())],
            "column `model`",
        ),
    ] {
        let refused = read(columns).unwrap_err().to_string();
        assert!(refused.contains(told), "{told}: {refused}");
    }
    let options = Options {
        ignore: vec!["odd".into()],
        ..Options::default()
    };
    let found = read_with(vec![id(), ("odd", numbers), vector()], &options).unwrap();
    assert_eq!(found[0].as_ref().unwrap().1.payload.0.len(), 0);
}

#[test]
fn columns_may_have_other_names() {
    let options = Options {
        id_field: "key".into(),
        vector_field: "embedding".into(),
        ..Options::default()
    };
    let columns = vec![
        ("embedding", vectors(&[[1.0, 2.0]])),
        ("key", ids(&["a"])),
        ("id", ids(&["x"])),
    ];
    let found = read_with(columns, &options).unwrap();
    let (id, point) = found[0].as_ref().unwrap();
    assert_eq!(
        (id.as_str(), &point.payload.0["id"]),
        ("a", &Value::String("x".into()))
    );
}

#[test]
fn a_file_that_is_no_table_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.parquet");
    std::fs::write(&path, "not a table at all").unwrap();
    let refused = open(&Input::File(path), &collection(), &Options::default()).unwrap_err();
    assert!(matches!(refused, ReadError::File { .. }), "{refused}");
}
