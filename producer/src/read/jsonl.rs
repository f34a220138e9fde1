//! One point a line, as JSON; what [`shoal_schemas::json`] reads.

use shoal_schemas::{Collection, Reason, Rejection, json};

use super::{
    Input, Place, ReadError, Row, Rows,
    bytes::{self, Found, Lines},
};

/// JSON takes more room than the record it becomes: up to 14 characters a component of 4 bytes.
const TEXT_BYTES_A_RECORD_BYTE: usize = 8;

/// Opens a JSONL text, also one packed with gzip.
///
/// # Errors
/// [`ReadError::Io`].
pub fn open(input: &Input, collection: &Collection) -> Result<Rows, ReadError> {
    let lines = Lines::new(bytes::open(input)?, line_limit(collection));
    Ok(Rows::new(
        None,
        Points {
            input: input.clone(),
            collection: collection.clone(),
            lines,
            ended: false,
        },
    ))
}

/// The longest line of a collection's input, bytes.
pub(super) fn line_limit(collection: &Collection) -> usize {
    let record_bytes = usize::try_from(collection.max_record_bytes).unwrap_or(usize::MAX);
    record_bytes.saturating_mul(TEXT_BYTES_A_RECORD_BYTE)
}

/// The refusal of a line over the limit.
pub(super) fn too_long(limit_bytes: usize) -> Rejection {
    Rejection::new(
        Reason::TooLarge,
        format_args!("line is over {limit_bytes} bytes, which no record of the collection needs"),
    )
}

struct Points {
    input: Input,
    collection: Collection,
    lines: Lines,
    ended: bool,
}

impl Iterator for Points {
    type Item = Row;

    fn next(&mut self) -> Option<Row> {
        if self.ended {
            return None;
        }
        let read = match self.lines.advance() {
            Ok(Found::Line) => json::decode_line(self.lines.line(), &self.collection),
            Ok(Found::TooLong) => Err(too_long(line_limit(&self.collection))),
            Ok(Found::End) => {
                self.ended = true;
                return None;
            }
            Err(source) => {
                self.ended = true;
                return Some(Err(ReadError::io(&self.input, source)));
            }
        };
        let place = Place::Line(self.lines.number());
        Some(read.map_err(|rejection| ReadError::record(&self.input, place, rejection)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{fs, io::Write, path::Path};

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;
    use shoal_schemas::{Collection, Metric, Payload, Point, PointId, Reason, Vector, json};
    use tempfile::TempDir;

    use super::super::{Format, Input, Options, Place, ReadError, Row, open};

    fn collection() -> Collection {
        Collection::new(
            "docs".parse().unwrap(),
            2.try_into().unwrap(),
            Metric::Cosine,
            1,
        )
    }

    fn read(path: &Path) -> Vec<Row> {
        let input = Input::File(path.to_owned());
        open(&input, &collection(), &Options::default())
            .unwrap()
            .collect()
    }

    fn point(values: [f32; 2]) -> Point {
        Point {
            vector: Vector::new(&values, 2.try_into().unwrap(), Metric::Cosine).unwrap(),
            payload: Payload::default(),
            model: None,
            event_time_ms: None,
            expires_at_ms: None,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_written_as_json_reads_back_plain_or_packed(
            rows in prop::collection::vec(("[a-zé/ ]{1,9}", -1e9_f32..1e9), 0..30),
        ) {
            let rows: Vec<(PointId, Point)> = rows
                .iter()
                .map(|(id, value)| (PointId::new(id).unwrap(), point([*value, 1.0])))
                .collect();
            let lines: String =
                rows.iter().map(|(id, point)| format!("{}\n", json::encode(id, point))).collect();
            // Two members, as `cat a.gz b.gz` makes.
            let (first, second) = lines.as_bytes().split_at(lines.len() / 2);
            let packed = [first, second].map(|part| {
                let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
                packed.write_all(part).unwrap();
                packed.finish().unwrap()
            });
            let dir = TempDir::new().unwrap();
            for (name, bytes) in [("a.jsonl", lines.into_bytes()), ("b.jsonl.gz", packed.concat())] {
                let path = dir.path().join(name);
                fs::write(&path, bytes).unwrap();
                let found: Vec<(PointId, Point)> = read(&path).into_iter().map(Result::unwrap).collect();
                prop_assert_eq!(&found, &rows);
            }
        }
    }

    #[test]
    fn a_faulty_line_is_named_with_its_reason_and_the_next_one_reads() {
        let long = format!("{{\"id\": \"{}\"}}", "x".repeat(9 << 20));
        let text = [
            r#"{"id": "a", "vector": [1, 2]}"#,
            r#"{"id": "b", "vector": [1, 2, 3]}"#,
            "",
            r#"{"id": "c", "vector": [0, 0]}"#,
            r#"{"vector": [1, 2]}"#,
            r#"{"id": "e", "vector": [1, 2"#,
            &long,
            r#"{"id": "", "vector": [1, 2]}"#,
            r#"{"id": "z", "vector": [1, 2]}"#,
        ]
        .join("\n");
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.jsonl");
        fs::write(&path, text).unwrap();
        let found = read(&path);
        let faults: Vec<(u64, Reason)> = found
            .iter()
            .filter_map(|row| match row.as_ref().err()? {
                ReadError::Record {
                    place: Place::Line(line),
                    rejection,
                    ..
                } => Some((*line, rejection.reason)),
                other => panic!("{other}"),
            })
            .collect();
        assert_eq!(
            faults,
            [
                (2, Reason::WrongDimension),
                (4, Reason::ZeroVector),
                (5, Reason::BadKey),
                (6, Reason::Undecodable),
                (7, Reason::TooLarge),
                (8, Reason::BadKey),
            ]
        );
        assert_eq!(found.first().unwrap().as_ref().unwrap().0.as_str(), "a");
        assert_eq!(found.last().unwrap().as_ref().unwrap().0.as_str(), "z");
        let text = found[1].as_ref().unwrap_err().to_string();
        assert!(
            text.ends_with(
                "a.jsonl:2: wrong_dimension: vector has 3 components, the collection has 2"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_packed_file_that_is_cut_short_is_an_error_and_the_end() {
        let mut packed = GzEncoder::new(Vec::new(), Compression::none());
        packed
            .write_all(b"{\"id\": \"a\", \"vector\": [1, 2]}\n")
            .unwrap();
        let mut packed = packed.finish().unwrap();
        packed.truncate(packed.len() - 4);
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.jsonl.gz");
        fs::write(&path, packed).unwrap();
        let found = read(&path);
        let last = found.last().unwrap().as_ref().unwrap_err();
        assert!(matches!(last, ReadError::Io { .. }), "{last}");
        assert_eq!(found.iter().filter(|row| row.is_err()).count(), 1);
    }

    #[test]
    fn the_name_says_the_format_or_the_options_do() {
        for (name, format) in [
            ("-", Some(Format::Jsonl)),
            ("a.jsonl", Some(Format::Jsonl)),
            ("x/b.NDJSON.gz", Some(Format::Jsonl)),
            ("c.npy", Some(Format::Npy)),
            ("d.parquet", Some(Format::Parquet)),
            ("e.csv", None),
            ("f", None),
        ] {
            assert_eq!(Format::of(&Input::parse(name)), format, "{name}");
        }
        let nowhere = open(&Input::parse("e.csv"), &collection(), &Options::default());
        assert!(matches!(nowhere.unwrap_err(), ReadError::Format { .. }));
        let missing = open(
            &Input::parse("no/such.jsonl"),
            &collection(),
            &Options::default(),
        );
        assert!(matches!(missing.unwrap_err(), ReadError::Io { .. }));
    }

    #[test]
    fn ids_are_lines() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("ids.txt");
        fs::write(&path, format!("a\n\n b/c \n{}\nlast", "x".repeat(600))).unwrap();
        let found: Vec<_> = super::super::ids::open(&Input::File(path))
            .unwrap()
            .collect();
        let read: Vec<&str> = found
            .iter()
            .filter_map(|id| id.as_ref().ok())
            .map(PointId::as_str)
            .collect();
        assert_eq!(read, ["a", "b/c", "last"]);
        let refused = found[2].as_ref().unwrap_err().to_string();
        assert!(refused.contains("ids.txt:4: bad_key"), "{refused}");
    }
}
