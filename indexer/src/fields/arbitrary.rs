//! Rows and filters for property tests: few names and values, so that they meet.

use std::ops::Bound;

use proptest::{collection::vec, option, prelude::*};
use shoal_schemas::{
    FieldKind,
    filter::{Bounds, Fields, Filter},
    payload::{Payload, Value},
};

const KINDS: [FieldKind; 5] = [
    FieldKind::Keyword,
    FieldKind::Integer,
    FieldKind::Float,
    FieldKind::Boolean,
    FieldKind::Timestamp,
];

/// One field of every kind, named after it.
pub(super) fn fields() -> Fields {
    KINDS.map(|kind| (kind.to_string(), kind)).into()
}

fn text() -> impl Strategy<Value = String> {
    "[abé]{0,3}"
}

fn number() -> impl Strategy<Value = Value> {
    let edges = [i64::MAX, i64::MAX - 1, i64::MIN, 9_007_199_254_740_993];
    let float_edges = [
        9.223_372_036_854_776e18,
        1e300,
        -0.0,
        9_007_199_254_740_992.0,
    ];
    prop_oneof![
        4 => (-3i64..4).prop_map(Value::Integer),
        4 => (-6i8..7).prop_map(|half| Value::Float(f64::from(half) / 2.0)),
        1 => proptest::sample::select(edges.to_vec()).prop_map(Value::Integer),
        1 => proptest::sample::select(float_edges.to_vec()).prop_map(Value::Float),
        1 => (0i64..500).prop_map(Value::Integer),
    ]
}

/// A value that a filter may compare a field of this kind with.
fn comparable(kind: FieldKind) -> BoxedStrategy<Value> {
    match kind {
        FieldKind::Keyword => text().prop_map(Value::String).boxed(),
        FieldKind::Integer | FieldKind::Float => number().boxed(),
        FieldKind::Boolean => any::<bool>().prop_map(Value::Boolean).boxed(),
        FieldKind::Timestamp => (-3i64..40).prop_map(Value::Timestamp).boxed(),
    }
}

/// A value, now and then of another kind than the field's.
fn stored(kind: FieldKind) -> impl Strategy<Value = Value> {
    let list = vec(text(), 0..4).prop_map(Value::Strings);
    let list = if kind == FieldKind::Keyword {
        list.boxed()
    } else {
        comparable(kind)
    };
    prop_oneof![
        12 => comparable(kind),
        4 => list,
        1 => proptest::sample::select(KINDS.to_vec()).prop_flat_map(comparable),
    ]
}

pub(super) fn payload() -> impl Strategy<Value = Payload> {
    let present = option::weighted(0.8, Just(()));
    KINDS
        .map(|kind| (present.clone(), stored(kind)))
        .prop_map(|values| {
            let named = KINDS.iter().zip(values);
            let there = named
                .filter_map(|(kind, (present, value))| present.map(|()| (kind.to_string(), value)));
            Payload(there.collect())
        })
}

/// Rows as they would be drawn, and as a collection has them: few kinds of rows, each often.
pub(super) fn payloads(most: usize) -> impl Strategy<Value = Vec<Payload>> {
    let few = vec(payload(), 1..12);
    let repeated = (few, vec(any::<proptest::sample::Index>(), 0..most));
    prop_oneof![
        vec(payload(), 0..most.min(60)),
        repeated.prop_map(|(few, picks)| picks.iter().map(|pick| pick.get(&few).clone()).collect()),
    ]
}

fn end(kind: FieldKind) -> impl Strategy<Value = Bound<Value>> {
    prop_oneof![
        2 => comparable(kind).prop_map(Bound::Included),
        2 => comparable(kind).prop_map(Bound::Excluded),
        1 => Just(Bound::Unbounded),
    ]
}

/// A condition; now and then one that does not fit its field and matches nothing.
fn condition() -> impl Strategy<Value = Filter> {
    let kind = || proptest::sample::select(KINDS.to_vec());
    let fitting = prop_oneof![
        9 => kind().prop_map(|kind| (kind, kind)),
        1 => (kind(), kind()),
    ];
    fitting.prop_flat_map(|(of, with)| {
        let field = of.to_string();
        prop_oneof![
            vec(comparable(with), 0..4).prop_map({
                let field = field.clone();
                move |values| Filter::In {
                    field: field.clone(),
                    values,
                }
            }),
            (end(with), end(with)).prop_map({
                let field = field.clone();
                move |(lower, upper)| Filter::Range {
                    field: field.clone(),
                    bounds: Bounds { lower, upper },
                }
            }),
            Just(Filter::Exists {
                field: field.clone()
            }),
            text().prop_map(move |prefix| Filter::Prefix {
                field: field.clone(),
                prefix
            }),
        ]
    })
}

pub(super) fn filter() -> impl Strategy<Value = Filter> {
    condition().prop_recursive(4, 24, 4, |part| {
        prop_oneof![
            vec(part.clone(), 0..4).prop_map(Filter::All),
            vec(part.clone(), 0..4).prop_map(Filter::Any),
            part.prop_map(|part| Filter::Not(Box::new(part))),
        ]
    })
}

/// The rows that match, asked one by one.
pub(super) fn matching(rows: &[Payload], filter: &Filter) -> Vec<u32> {
    let fields = fields();
    let rows = (0u32..).zip(rows);
    rows.filter(|(_, payload)| filter.matches_declared(payload, &fields))
        .map(|(row, _)| row)
        .collect()
}
