//! Tests of numpy arrays and their metadata, on files written here byte by byte.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, io::Write, path::PathBuf};

use flate2::{Compression, write::GzEncoder};
use half::f16;
use proptest::prelude::*;
use shoal_schemas::{Collection, Metric, Reason, Value};
use tempfile::TempDir;

use crate::read::{Input, Options, Place, ReadError, Row, open};

fn collection(dim: usize) -> Collection {
    let dim = u32::try_from(dim).unwrap().try_into().unwrap();
    Collection::new("docs".parse().unwrap(), dim, Metric::L2, 1)
}

/// A file as `numpy.save` writes it.
fn npy(version: u8, descr: &str, shape: &str, order: &str, data: &[u8]) -> Vec<u8> {
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}");
    let prefix = if version == 1 { 10 } else { 12 };
    while (prefix + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY".to_vec();
    file.extend([version, 0]);
    if version == 1 {
        file.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    } else {
        file.extend(u32::try_from(header.len()).unwrap().to_le_bytes());
    }
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

fn floats(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn read(&self, array: &[u8], dim: usize, options: &Options) -> Result<Vec<Row>, ReadError> {
        let path = self.write("array.npy", array);
        Ok(open(&Input::File(path), &collection(dim), options)?.collect())
    }
}

fn with_metadata(path: PathBuf) -> Options {
    Options {
        metadata: Some(path),
        ..Options::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn rows_are_the_arrays_rows_in_every_width_and_version(
        rows in prop::collection::vec(prop::collection::vec(-1000_i16..1000, 3), 0..20),
        version in 1_u8..=3,
    ) {
        // Small whole numbers are exact in every width.
        let values: Vec<f32> = rows.iter().flatten().map(|value| f32::from(*value)).collect();
        let shape = format!("({}, 3)", rows.len());
        let halves: Vec<u8> =
            values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect();
        let doubles: Vec<u8> =
            values.iter().flat_map(|value| f64::from(*value).to_le_bytes()).collect();
        for (descr, data) in [("<f2", halves), ("<f4", floats(&values)), ("<f8", doubles)] {
            let array = npy(version, descr, &shape, "False", &data);
            let read = Files::new().read(&array, 3, &Options::default()).unwrap();
            prop_assert_eq!(read.len(), rows.len());
            for ((at, row), read) in rows.iter().enumerate().zip(read) {
                let (id, point) = read.unwrap();
                prop_assert_eq!(id.as_str(), at.to_string());
                let row: Vec<f32> = row.iter().map(|value| f32::from(*value)).collect();
                prop_assert_eq!(point.vector.as_slice(), row.as_slice());
            }
        }
    }
}

#[test]
fn a_line_of_metadata_gives_id_payload_and_times() {
    let files = Files::new();
    let lines = r#"{"id": 17, "text": "fox", "pos": "n", "score": 1.5, "gone": null, "vec": [1]}

{"id": "b", "payload": {"deep": true}, "more": ["x"], "model": "m", "event_time": 7, "expires_at": "1970-01-01T00:00:01Z"}
"#;
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(lines.as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    for metadata in [lines.as_bytes(), packed.as_slice()] {
        let mut options = with_metadata(files.write("meta.jsonl", metadata));
        options.ignore = vec!["vec".into()];
        let array = npy(1, "<f4", "(2, 2)", "False", &floats(&[1.0, 2.0, 3.0, 4.0]));
        let read: Result<Vec<_>, _> = files
            .read(&array, 2, &options)
            .unwrap()
            .into_iter()
            .collect();
        let [(first_id, first), (second_id, second)] = read.unwrap().try_into().unwrap();
        assert_eq!((first_id.as_str(), second_id.as_str()), ("17", "b"));
        assert_eq!(second.vector.as_slice(), [3.0, 4.0]);
        let expected = [
            ("pos", Value::String("n".into())),
            ("score", Value::Float(1.5)),
            ("text", Value::String("fox".into())),
        ];
        assert_eq!(
            first.payload.0,
            expected.map(|(name, value)| (name.into(), value)).into()
        );
        let expected = [
            ("deep", Value::Boolean(true)),
            ("more", Value::Strings(vec!["x".into()])),
        ];
        assert_eq!(
            second.payload.0,
            expected.map(|(name, value)| (name.into(), value)).into()
        );
        assert_eq!(second.model.as_deref(), Some("m"));
        assert_eq!(
            (second.event_time_ms, second.expires_at_ms),
            (Some(7), Some(1000))
        );
    }
}

#[test]
fn the_id_may_have_another_name() {
    let files = Files::new();
    let mut options = with_metadata(files.write("meta.jsonl", b"{\"key\": \"x\", \"id\": 1}\n"));
    options.id_field = "key".into();
    let array = npy(1, "<f4", "(1, 2)", "False", &floats(&[1.0, 2.0]));
    let read = files.read(&array, 2, &options).unwrap();
    let (id, point) = read[0].as_ref().unwrap();
    assert_eq!(id.as_str(), "x");
    assert_eq!(point.payload.0["id"], Value::Integer(1));
}

#[test]
fn a_faulty_row_or_line_is_named_and_the_next_one_reads() {
    let files = Files::new();
    let options = with_metadata(files.write(
        "meta.jsonl",
        b"{\"id\": \"a\"}\n{\"id\": \"b\"}\n{\"text\": \"no id\"}\nnot json\n{\"id\": \"e\"}\n",
    ));
    let values = [1.0, 2.0, f32::NAN, 2.0, 1.0, 2.0, 1.0, 2.0, 5.0, 6.0];
    let array = npy(1, "<f4", "(5, 2)", "False", &floats(&values));
    let read = files.read(&array, 2, &options).unwrap();
    let faults: Vec<(usize, Reason, Place)> = read
        .iter()
        .enumerate()
        .filter_map(|(at, read)| match read {
            Ok(_) => None,
            Err(ReadError::Record {
                place, rejection, ..
            }) => Some((at, rejection.reason, place.clone())),
            Err(other) => panic!("{other}"),
        })
        .collect();
    assert_eq!(
        faults,
        [
            (1, Reason::NotFinite, Place::Row(1)),
            (2, Reason::BadKey, Place::Line(3)),
            (3, Reason::Undecodable, Place::Line(4)),
        ]
    );
    let (id, point) = read[4].as_ref().unwrap();
    assert_eq!(
        (id.as_str(), point.vector.as_slice()),
        ("e", &[5.0, 6.0][..])
    );
    let text = read[2].as_ref().unwrap_err().to_string();
    assert!(text.contains("meta.jsonl:3: "), "{text}");
}

#[test]
fn a_double_out_of_range_is_refused() {
    let array = npy(
        1,
        "<f8",
        "(1, 2)",
        "False",
        &[1e300_f64, 1.0].map(f64::to_le_bytes).concat(),
    );
    let read = Files::new().read(&array, 2, &Options::default()).unwrap();
    let refused = read[0].as_ref().unwrap_err();
    assert!(
        refused.is_record() && refused.to_string().contains("row 0"),
        "{refused}"
    );
}

#[test]
fn metadata_of_another_length_is_told() {
    let array = npy(1, "<f4", "(2, 2)", "False", &floats(&[1.0; 4]));
    for (lines, told) in [
        (
            "{\"id\": 1}\n",
            "metadata has 1 lines, the array has more rows",
        ),
        (
            "{\"id\": 1}\n{\"id\": 2}\n{\"id\": 3}\n",
            "metadata goes on at line 3 after the array's 2 rows",
        ),
    ] {
        let files = Files::new();
        let options = with_metadata(files.write("meta.jsonl", lines.as_bytes()));
        let read = files.read(&array, 2, &options).unwrap();
        let last = read.last().unwrap().as_ref().unwrap_err();
        assert!(
            !last.is_record() && last.to_string().contains(told),
            "{last}"
        );
    }
}

#[test]
fn an_array_of_another_kind_is_refused_before_the_first_row() {
    let one = floats(&[1.0, 2.0]);
    let whole = npy(1, "<f4", "(1, 2)", "False", &one);
    let mut cut = whole.clone();
    cut.truncate(40);
    let mut later = whole.clone();
    later[6] = 4;
    for (array, told) in [
        (npy(1, "<i4", "(1, 2)", "False", &one), "items of type <i4"),
        (npy(1, ">f4", "(1, 2)", "False", &one), "items of type >f4"),
        (npy(1, "<f4", "(1, 2)", "True", &one), "Fortran order"),
        (
            npy(1, "<f4", "(2,)", "False", &one),
            "array has 1 dimensions",
        ),
        (
            npy(1, "<f4", "(1, 3)", "False", &one),
            "array has 3 columns",
        ),
        (
            npy(1, "<f4", "(1, -2)", "False", &one),
            "header does not read",
        ),
        (
            b"{\"id\": 1}\n".to_vec(),
            "does not start as a numpy array does",
        ),
        (cut, "ends within its header"),
        (later, "version 4"),
    ] {
        let refused = Files::new()
            .read(&array, 2, &Options::default())
            .unwrap_err();
        assert!(refused.to_string().contains(told), "{told}: {refused}");
    }
}

#[test]
fn a_file_that_ends_early_names_the_row_and_reading_ends() {
    let array = npy(2, "<f4", "(3, 2)", "False", &floats(&[1.0, 2.0, 3.0]));
    let read = Files::new().read(&array, 2, &Options::default()).unwrap();
    assert_eq!(read.len(), 2);
    let last = read[1].as_ref().unwrap_err();
    assert!(
        last.to_string().contains("file ends within row 1 of 3"),
        "{last}"
    );
    assert!(!last.is_record());
}
