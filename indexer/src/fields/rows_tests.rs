//! A set of rows does what a sorted set does.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{RowSet, Span};

fn rows() -> impl Strategy<Value = BTreeSet<u32>> {
    prop_oneof![
        proptest::collection::btree_set(0u32..600, 0..80),
        proptest::collection::btree_set(0u32..600, 300..500),
        proptest::collection::btree_set(1000u32..100_000, 0..20),
    ]
}

fn set(rows: &BTreeSet<u32>, walk: bool) -> RowSet {
    let set = RowSet::from_rising(rows.iter().copied());
    if walk { set.for_walk() } else { set }
}

proptest! {
    #[test]
    fn sets_do_as_sorted_sets_do(a in rows(), b in rows(), wa: bool, wb: bool) {
        let of = |rows: Vec<u32>| RowSet::list(rows);
        let (left, right) = (set(&a, wa), set(&b, wb));
        prop_assert_eq!(left.len(), a.len());
        prop_assert_eq!(&left, &of(a.iter().copied().collect()));
        for row in (0..600).chain(a.iter().copied()).chain(b.iter().copied()) {
            prop_assert_eq!(left.contains(row), a.contains(&row));
        }
        let both = left.clone().and(&right);
        prop_assert_eq!(both, of(a.intersection(&b).copied().collect()));
        let less = left.clone().minus(&right);
        prop_assert_eq!(less, of(a.difference(&b).copied().collect()));
        let odd = left.clone().retain(|row| row % 2 == 1);
        prop_assert_eq!(odd, of(a.iter().copied().filter(|row| row % 2 == 1).collect()));
        let either = left.or(right);
        prop_assert_eq!(either, of(a.union(&b).copied().collect()));
    }

    #[test]
    fn all_of_a_span_is_the_span(first in 0u32..300, len in 0u32..300) {
        let span = Span { first, end: first + len };
        prop_assert_eq!(RowSet::all(span), RowSet::list((first..first + len).collect()));
    }

    #[test]
    fn parts_in_order_join_to_all_of_them(parts in proptest::collection::vec((1u32..200, 1u32..40), 0..6)) {
        let (mut first, mut sets, mut expected) = (0, Vec::new(), Vec::new());
        for (len, step) in parts {
            let span = Span { first, end: first + len };
            let rows: Vec<u32> = (first..span.end).filter(|row| row % step == 0).collect();
            expected.extend(&rows);
            sets.push(RowSet::fitting(rows, span));
            first = span.end;
        }
        let joined = RowSet::join(sets, Span { first: 0, end: first });
        prop_assert_eq!(joined, RowSet::list(expected));
    }
}
