//! A growing payload index says what asking row by row says, at every moment.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicBool, Ordering};

use proptest::{collection::vec, prelude::*};
use shoal_schemas::{
    filter::Filter,
    payload::{Payload, Value},
};

use super::{
    super::{RowSet, Sealed, arbitrary::*},
    Growing, TAIL_ROWS,
};

fn even() -> Filter {
    Filter::In {
        field: "integer".to_owned(),
        values: vec![Value::Integer(0)],
    }
}

/// A row whose field says whether its number is even.
fn parity(row: u32) -> Payload {
    Payload([("integer".to_owned(), Value::Integer(i64::from(row % 2)))].into())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn evaluation_equals_asking_every_row(
        rows in payloads(3_000),
        merges in vec(0usize..3_000, 0..4),
        filters in vec(filter(), 1..5),
    ) {
        let growing = Growing::new(fields());
        for (row, payload) in rows.iter().enumerate() {
            growing.push(u32::try_from(row).unwrap(), payload);
            if merges.contains(&row) {
                while growing.merge().unwrap() {}
            }
        }
        let bytes = growing.seal().unwrap();
        let resumed = Growing::resume(fields(), Sealed::open(bytes.clone()).unwrap()).unwrap();
        let mut both = rows.clone();
        for payload in rows.iter().rev() {
            let row = u32::try_from(both.len()).unwrap();
            resumed.push(row, payload);
            both.push(payload.clone());
        }
        for filter in filters {
            let expected = matching(&rows, &filter);
            let estimate = growing.estimate(&filter).unwrap();
            prop_assert!((estimate.lower..=estimate.upper).contains(&expected.len()));
            let expected = RowSet::from_rising(expected);
            prop_assert_eq!(&growing.evaluate(&filter).unwrap(), &expected, "{:?}", filter);
            let sealed = Sealed::open(&bytes).unwrap();
            prop_assert_eq!(&sealed.evaluate(&filter).unwrap(), &expected, "{:?}", filter);
            let expected = RowSet::from_rising(matching(&both, &filter));
            prop_assert_eq!(&resumed.evaluate(&filter).unwrap(), &expected, "{:?}", filter);
        }
    }
}

#[test]
fn a_number_that_is_passed_over_is_a_row_without_fields() {
    let growing = Growing::new(fields());
    growing.push(2, &parity(2));
    growing.push(600, &parity(600));
    assert_eq!(growing.end_row(), 601);
    let found = growing.evaluate(&even()).unwrap();
    assert_eq!(found.iter().collect::<Vec<_>>(), [2, 600]);
    let others = growing.evaluate(&Filter::Not(Box::new(even()))).unwrap();
    assert_eq!(others.len(), 599);
}

#[test]
fn a_list_of_many_values_is_answered_from_the_tail_too() {
    let growing = Growing::new(fields());
    (0..100).for_each(|row| growing.push(row, &parity(row)));
    let many = Filter::In {
        field: "integer".to_owned(),
        values: (0..10_000).map(|half| Value::Integer(half * 2)).collect(),
    };
    assert_eq!(growing.evaluate(&many).unwrap().len(), 50);
}

#[test]
fn merging_leaves_few_parts_and_every_row() {
    let growing = Growing::new(fields());
    let rows = TAIL_ROWS * 100 + 7;
    for row in 0..rows {
        growing.push(row, &parity(row));
    }
    while growing.merge().unwrap() {}
    // 100 is 144 to the base of eight.
    assert_eq!(growing.state.load().parts.len(), 1 + 4 + 4);
    assert_eq!(growing.evaluate(&even()).unwrap().len(), 12_804);
    assert!(growing.bytes() < 12_000 * 25);
}

#[test]
fn searches_see_every_row_from_before_them_while_rows_come_and_parts_merge() {
    let growing = Growing::new(fields());
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let searcher = || {
            while !is_done.load(Ordering::Acquire) {
                let before = growing.end_row();
                let found = growing.evaluate(&even()).unwrap();
                let early = found.iter().take_while(|row| *row < before);
                assert!(early.eq((0..before).step_by(2)), "of {before}");
            }
        };
        let merger = || {
            while !is_done.load(Ordering::Acquire) {
                growing.merge().unwrap();
            }
        };
        scope.spawn(searcher);
        scope.spawn(searcher);
        scope.spawn(merger);
        for row in 0..TAIL_ROWS * 80 {
            growing.push(row, &parity(row));
        }
        is_done.store(true, Ordering::Release);
    });
}
