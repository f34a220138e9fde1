//! Fields, payloads and filters for property tests: few names and values, so that they meet.

use std::ops::Bound;

use proptest::{collection::vec, option, prelude::*};

use super::{Bounds, Fields, Filter};
use crate::{
    FieldKind,
    payload::{Payload, Value},
};

/// One field of every kind, named after it.
pub(crate) fn fields() -> Fields {
    crate::collection::FIELD_KINDS
        .into_iter()
        .map(|kind| (kind.to_string(), kind))
        .collect()
}

fn text() -> impl Strategy<Value = String> {
    "[ab]{0,3}"
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        (-3i64..4).prop_map(Value::Integer),
        (-6i8..7).prop_map(|half| Value::Float(f64::from(half) / 2.0)),
        prop_oneof![Just(i64::MAX), Just(i64::MAX - 1), Just(i64::MIN)].prop_map(Value::Integer),
        prop_oneof![Just(9.223_372_036_854_776e18), Just(1e300)].prop_map(Value::Float),
    ]
}

/// A value that a filter may compare a field of this kind with.
fn comparable(kind: FieldKind) -> BoxedStrategy<Value> {
    match kind {
        FieldKind::Keyword => text().prop_map(Value::String).boxed(),
        FieldKind::Integer | FieldKind::Float => number().boxed(),
        FieldKind::Boolean => any::<bool>().prop_map(Value::Boolean).boxed(),
        FieldKind::Timestamp => (-3i64..4).prop_map(Value::Timestamp).boxed(),
    }
}

/// Any value, of the field's kind or not.
fn stored() -> impl Strategy<Value = Value> {
    prop_oneof![
        text().prop_map(Value::String),
        vec(text(), 0..3).prop_map(Value::Strings),
        number(),
        any::<bool>().prop_map(Value::Boolean),
        (-3i64..4).prop_map(Value::Timestamp),
    ]
}

/// A payload over [`fields`], some of whose values are not of the declared kind.
pub(crate) fn payload() -> impl Strategy<Value = Payload> {
    let names: Vec<String> = fields().into_keys().collect();
    vec(option::weighted(0.8, stored()), names.len()).prop_map(move |values| {
        let named = names.iter().cloned().zip(values);
        Payload(
            named
                .filter_map(|(name, value)| Some((name, value?)))
                .collect(),
        )
    })
}

fn bounds(kind: FieldKind) -> impl Strategy<Value = Bounds> {
    let end = move || {
        prop_oneof![
            comparable(kind).prop_map(Bound::Included),
            comparable(kind).prop_map(Bound::Excluded),
        ]
    };
    prop_oneof![
        (end(), end()).prop_map(|(lower, upper)| Bounds { lower, upper }),
        end().prop_map(|lower| Bounds {
            lower,
            upper: Bound::Unbounded
        }),
        end().prop_map(|upper| Bounds {
            lower: Bound::Unbounded,
            upper
        }),
    ]
}

fn leaf() -> impl Strategy<Value = Filter> {
    let kinds = crate::collection::FIELD_KINDS;
    proptest::sample::select(kinds.to_vec()).prop_flat_map(|kind| {
        let field = kind.to_string();
        let name = field.clone();
        let is_in = vec(comparable(kind), 0..3).prop_map(move |values| Filter::In {
            field: name.clone(),
            values,
        });
        let exists = Just(Filter::Exists {
            field: field.clone(),
        });
        if kind == FieldKind::Boolean {
            return prop_oneof![is_in, exists].boxed();
        }
        let name = field.clone();
        let range = bounds(kind).prop_map(move |bounds| Filter::Range {
            field: name.clone(),
            bounds,
        });
        if kind == FieldKind::Keyword {
            let prefix = text().prop_map(move |prefix| Filter::Prefix {
                field: field.clone(),
                prefix,
            });
            return prop_oneof![is_in, exists, range, prefix].boxed();
        }
        prop_oneof![is_in, exists, range].boxed()
    })
}

/// A filter that fits [`fields`].
pub(crate) fn filter() -> impl Strategy<Value = Filter> {
    leaf().prop_recursive(4, 24, 4, |part| {
        prop_oneof![
            vec(part.clone(), 0..4).prop_map(Filter::All),
            vec(part.clone(), 0..4).prop_map(Filter::Any),
            part.prop_map(|part| Filter::Not(Box::new(part))),
        ]
    })
}
