//! A sealed payload index says what asking row by row says, whatever its bytes are.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::Bound;

use proptest::{collection::vec, prelude::*, sample::Index};
use shoal_runtime::ErrorKind;
use shoal_schemas::{
    FieldKind,
    filter::{Bounds, Fields, Filter},
    payload::{Payload, Value},
};

use super::{
    super::{Columns, RowSet, arbitrary::*},
    ReadError, Sealed,
};

fn sealed(rows: &[Payload]) -> Vec<u8> {
    let mut columns = Columns::new(&fields());
    for (row, payload) in (0..).zip(rows) {
        columns.push(row, payload);
    }
    columns.seal()
}

fn open(bytes: &[u8]) -> Sealed<&[u8]> {
    Sealed::open(bytes).unwrap()
}

fn set(rows: Vec<u32>) -> RowSet {
    RowSet::from_rising(rows)
}

/// Rows of one field, and a filter on it.
fn of(kind: FieldKind, values: impl Iterator<Item = Value>) -> Sealed<Vec<u8>> {
    let fields: Fields = [("field".to_owned(), kind)].into();
    let mut columns = Columns::new(&fields);
    for (row, value) in (0..).zip(values) {
        columns.push(row, &Payload([("field".to_owned(), value)].into()));
    }
    Sealed::open(columns.seal()).unwrap()
}

fn is_in(values: impl IntoIterator<Item = Value>) -> Filter {
    Filter::In {
        field: "field".to_owned(),
        values: values.into_iter().collect(),
    }
}

fn below(end: i64) -> Filter {
    Filter::Range {
        field: "field".to_owned(),
        bounds: Bounds {
            lower: Bound::Unbounded,
            upper: Bound::Excluded(Value::Integer(end)),
        },
    }
}

/// Evaluates, estimates and reads back; only that nothing panics is asked.
fn use_all_of(bytes: &[u8], filter: &Filter) {
    if let Ok(sealed) = Sealed::open(bytes) {
        let _ = sealed.estimate(filter);
        let _ = sealed.evaluate(filter).map(|rows| rows.iter().count());
        let _ = Columns::new(&fields()).absorb(&sealed, Some);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn evaluation_equals_asking_every_row(rows in payloads(300), filters in vec(filter(), 1..8)) {
        let bytes = sealed(&rows);
        let sealed = open(&bytes);
        for filter in filters {
            let found = sealed.evaluate(&filter).unwrap();
            let expected = matching(&rows, &filter);
            let estimate = sealed.estimate(&filter).unwrap();
            prop_assert!(
                (estimate.lower..=estimate.upper).contains(&expected.len()),
                "{} of {estimate:?} for {filter:?}", expected.len()
            );
            prop_assert_eq!(found, set(expected), "{:?}", filter);
        }
    }

    #[test]
    fn rows_move_to_another_index_without_their_payloads(
        left in payloads(150),
        right in payloads(150),
        kept in vec(any::<bool>(), 300),
        filter in filter(),
    ) {
        let (left_bytes, right_bytes) = (sealed(&left), sealed(&right));
        let keeps = |at: usize| *kept.get(at).unwrap_or(&true);
        let mut columns = Columns::new(&fields());
        let mut expected = Vec::new();
        for (rows, bytes) in [(&left, &left_bytes), (&right, &right_bytes)] {
            let mut places = Vec::new();
            for payload in rows {
                let is_kept = keeps(expected.len() + places.len());
                let next = u32::try_from(expected.len()).unwrap();
                places.push(is_kept.then_some(next));
                if is_kept {
                    expected.push(payload.clone());
                }
            }
            let place = |row: u32| places.get(usize::try_from(row).unwrap()).copied().flatten();
            columns.absorb(&open(bytes), place).unwrap();
        }
        let bytes = columns.seal();
        prop_assert_eq!(&bytes, &sealed(&expected));
        let found = open(&bytes).evaluate(&filter).unwrap();
        prop_assert_eq!(found, set(matching(&expected, &filter)));
    }

    #[test]
    fn no_truncation_opens(rows in payloads(60), cut in any::<Index>()) {
        let bytes = sealed(&rows);
        let refused = Sealed::open(&bytes[..cut.index(bytes.len())]).unwrap_err();
        prop_assert_eq!(refused.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn damage_is_an_error_or_another_answer_and_never_a_panic(
        rows in payloads(200),
        filter in filter(),
        damage in vec((any::<Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = sealed(&rows);
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        use_all_of(&bytes, &filter);
    }

    #[test]
    fn a_flipped_bit_of_the_directory_is_found(rows in payloads(20), place in any::<Index>(), bit in 0u8..8) {
        let mut bytes = sealed(&rows);
        let directory_bytes = u32::from_le_bytes(bytes[12..16].try_into().unwrap());
        let covered = 40 + usize::try_from(directory_bytes).unwrap();
        let place = place.index(covered);
        bytes[place] ^= 1 << bit;
        // The last four bytes of the header say nothing.
        prop_assert_eq!(Sealed::open(&bytes).is_ok(), (36..40).contains(&place));
    }
}

#[test]
fn every_width_of_ranks_answers() {
    for (distinct, rows) in [
        (255_u32, 3_000),
        (256, 3_000),
        (65_535, 70_000),
        (65_536, 70_000),
    ] {
        let value = |row: u32| i64::from(row.wrapping_mul(2_654_435_761) % distinct);
        let sealed = of(
            FieldKind::Integer,
            (0..rows).map(|row| Value::Integer(value(row))),
        );
        for end in [1, i64::from(distinct) / 3, i64::from(distinct) - 1] {
            let expected = |row: &u32| value(*row) < end;
            let found = sealed.evaluate(&below(end)).unwrap();
            assert_eq!(found, set((0..rows).filter(expected).collect()));
            let both = Filter::All(vec![is_in([Value::Integer(value(7))]), below(end)]);
            let expected = |row: &u32| value(*row) == value(7) && value(*row) < end;
            let found = sealed.evaluate(&both).unwrap();
            assert_eq!(found, set((0..rows).filter(expected).collect()));
        }
    }
}

#[test]
fn a_long_list_of_values_is_found_whole() {
    let name = |row: u32| Value::String(format!("tenant-{:05}", row / 10));
    let sealed = of(FieldKind::Keyword, (0..20_000).map(name));
    let even = (0..2_000).step_by(2).map(|tenant| name(tenant * 10));
    let found = sealed.evaluate(&is_in(even)).unwrap();
    assert_eq!(
        found,
        set((0..20_000).filter(|row| row / 10 % 2 == 0).collect())
    );
    let estimate = sealed.estimate(&is_in([name(55)])).unwrap();
    assert_eq!((estimate.lower, estimate.upper), (10, 10));
}

#[test]
fn a_field_that_was_not_declared_then_is_named() {
    let sealed = of(FieldKind::Integer, [Value::Integer(1)].into_iter());
    let asked = Filter::Exists {
        field: "other".to_owned(),
    };
    let refused = sealed.evaluate(&asked).unwrap_err();
    assert!(matches!(&refused, ReadError::NotIndexed { field, .. } if field == "other"));
    let redeclared: Fields = [("field".to_owned(), FieldKind::Keyword)].into();
    let refused = Columns::new(&redeclared).absorb(&sealed, Some).unwrap_err();
    assert!(refused.to_string().ends_with("as keyword"), "{refused}");
}

#[test]
fn bytes_once_written_keep_their_meaning() {
    let bytes = include_bytes!("../../tests/fixtures/fields-v1/seventy-rows");
    let rows = fixture_rows();
    assert_eq!(sealed(&rows), bytes);
    let found = open(bytes).evaluate(&Filter::Prefix {
        field: "keyword".to_owned(),
        prefix: "r".to_owned(),
    });
    assert_eq!(
        found.unwrap(),
        set((0..70).filter(|row| row % 3 != 1).collect())
    );
}

/// Every section there is: frequent keys, rare ones, lists, both forms of numbers, gaps.
fn fixture_rows() -> Vec<Payload> {
    let row = |row: i64| {
        let keyword = match row % 3 {
            0 => Value::String("red".to_owned()),
            1 => Value::String("blue".to_owned()),
            _ => Value::Strings(vec!["rose".to_owned(), format!("shade {row}")]),
        };
        let number = if row % 2 == 0 {
            Value::Integer(row)
        } else {
            Value::Float(0.5)
        };
        let mut fields = vec![
            ("keyword", keyword),
            ("integer", number),
            ("boolean", Value::Boolean(row < 65)),
        ];
        if row % 5 == 0 {
            fields.push(("timestamp", Value::Timestamp(row * 1_000)));
        }
        let named = fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        Payload(named.collect())
    };
    (0..70).map(row).collect()
}
