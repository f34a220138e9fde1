//! Tests of patches and conditions.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{Assign, Condition, Patch, PatchError};
use crate::{
    Collection, Metric, Payload, Point, PointId, Value, Vector, Version,
    payload::{PayloadError, arbitrary},
    v1,
};

fn collection() -> Collection {
    let dim = 2.try_into().unwrap();
    Collection::new("docs".parse().unwrap(), dim, Metric::L2, 1)
}

fn vector(values: [f32; 2]) -> Vector {
    Vector::new(&values, collection().dim, Metric::L2).unwrap()
}

fn name() -> impl Strategy<Value = String> {
    // Few names, so that patches meet.
    "[a-d]{1}"
}

fn payload() -> impl Strategy<Value = Payload> {
    proptest::collection::btree_map(name(), arbitrary::value(), 0..4).prop_map(Payload)
}

fn components() -> impl Strategy<Value = Vector> {
    let finite = any::<u32>()
        .prop_map(f32::from_bits)
        .prop_filter("finite", |value| value.is_finite());
    [finite.clone(), finite].prop_map(vector)
}

fn point() -> impl Strategy<Value = Point> {
    let times = (any::<Option<i64>>(), any::<Option<i64>>());
    let model = proptest::option::of("[a-z]{1,4}");
    (components(), payload(), model, times).prop_map(|(vector, payload, model, times)| Point {
        vector,
        payload,
        model,
        event_time_ms: times.0,
        expires_at_ms: times.1,
    })
}

fn assign<T: Clone + std::fmt::Debug>(
    value: impl Strategy<Value = T>,
) -> impl Strategy<Value = Assign<T>> {
    prop_oneof![
        2 => Just(Assign::Keep),
        1 => Just(Assign::Clear),
        2 => value.prop_map(Assign::To),
    ]
}

fn patch() -> impl Strategy<Value = Patch> {
    let parts = (
        payload(),
        proptest::collection::btree_set(name(), 0..3),
        proptest::option::of(components()),
        assign("[a-z]{1,4}"),
        assign(any::<i64>().prop_filter("0 is not set", |millis| *millis != 0)),
    );
    parts.prop_map(|(set, unset, vector, model, expires_at_ms)| {
        let unset: BTreeSet<String> = unset
            .into_iter()
            .filter(|name| !set.0.contains_key(name))
            .collect();
        Patch {
            set,
            unset,
            vector,
            model,
            expires_at_ms,
        }
    })
}

/// The same, written in the dullest way: a map of everything a point has.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    fields: BTreeMap<String, Value>,
    bits: Vec<u32>,
    model: Option<String>,
    expires: Option<i64>,
}

impl Model {
    fn of(point: &Point) -> Self {
        let bits = point.vector.as_slice().iter().map(|one| one.to_bits());
        Self {
            fields: point.payload.0.clone(),
            bits: bits.collect(),
            model: point.model.clone(),
            expires: point.expires_at_ms,
        }
    }

    fn change(&mut self, patch: &Patch) {
        for name in &patch.unset {
            self.fields.remove(name);
        }
        for (name, value) in &patch.set.0 {
            self.fields.insert(name.clone(), value.clone());
        }
        if let Some(vector) = &patch.vector {
            self.bits = vector.as_slice().iter().map(|one| one.to_bits()).collect();
        }
        match &patch.model {
            Assign::Keep => {}
            Assign::Clear => self.model = None,
            Assign::To(model) => self.model = Some(model.clone()),
        }
        match patch.expires_at_ms {
            Assign::Keep => {}
            Assign::Clear => self.expires = None,
            Assign::To(millis) => self.expires = Some(millis),
        }
    }
}

proptest! {
    #[test]
    fn a_sequence_of_patches_is_a_fold_over_the_model(
        start in point(),
        patches in proptest::collection::vec(patch(), 0..12),
    ) {
        let mut model = Model::of(&start);
        let mut current = start.clone();
        for patch in &patches {
            current = patch.apply(&current).unwrap();
            model.change(patch);
            prop_assert_eq!(Model::of(&current), model.clone());
            prop_assert_eq!(current.event_time_ms, start.event_time_ms);
        }
    }

    #[test]
    fn a_patch_made_twice_is_made_once(start in point(), patch in patch()) {
        let once = patch.apply(&start).unwrap();
        prop_assert_eq!(patch.apply(&once).unwrap(), once);
    }

    #[test]
    fn patches_of_different_fields_come_to_the_same_in_any_order(
        start in point(),
        one in arbitrary::value(),
        other in arbitrary::value(),
    ) {
        let set = |name: &str, value: Value| Patch {
            set: Payload([(name.to_owned(), value)].into()),
            ..Patch::default()
        };
        let (one, other) = (set("a", one), set("b", other));
        prop_assert_eq!(
            other.apply(&one.apply(&start).unwrap()).unwrap(),
            one.apply(&other.apply(&start).unwrap()).unwrap()
        );
    }

    #[test]
    fn messages_read_back(patch in patch(), version in proptest::option::of(1u64..)) {
        let id = PointId::new("a").unwrap();
        let condition = Condition::from_wire(version);
        prop_assume!(patch.check(condition).is_ok());
        let message = patch.to_proto(&id, condition);
        let read = Patch::from_proto(message, &collection()).unwrap();
        prop_assert_eq!(read, (id, patch, condition));
    }
}

#[test]
fn conditions_hold_of_their_version_alone() {
    let (one, two) = (Version::from_raw(1), Version::from_raw(2));
    for (condition, current, holds) in [
        (Condition::Always, None, true),
        (Condition::Always, Some(one), true),
        (Condition::Absent, None, true),
        (Condition::Absent, Some(one), false),
        (Condition::Version(one), None, false),
        (Condition::Version(one), Some(one), true),
        (Condition::Version(one), Some(two), false),
    ] {
        assert_eq!(condition.holds(current), holds, "{condition:?} {current:?}");
        assert_eq!(Condition::from_wire(condition.to_wire()), condition);
    }
}

#[test]
fn each_fault_of_a_patch_is_named() {
    let read = |change: fn(&mut v1::PointPatch)| {
        let one = Value::Integer(1);
        let mut message = v1::PointPatch {
            id: "a".to_owned(),
            set: Payload([("n".to_owned(), one)].into()).to_proto(),
            ..v1::PointPatch::default()
        };
        change(&mut message);
        Patch::from_proto(message, &collection()).map(|(_, patch, _)| patch)
    };
    assert!(read(|_| ()).is_ok());
    assert!(matches!(read(|p| p.id.clear()), Err(PatchError::Id(_))));
    assert_eq!(read(|p| p.set.clear()), Err(PatchError::Empty));
    assert_eq!(read(|p| p.if_version = Some(0)), Err(PatchError::Absent));
    let both = read(|p| p.unset.push("n".to_owned())).unwrap_err();
    assert_eq!(
        both.to_string(),
        "patch both sets and unsets payload field `n`"
    );
    for bad in [
        read(|p| p.vector.push(1.0)),
        read(|p| p.vector.extend([1.0, f32::NAN])),
        read(|p| {
            p.set.insert(String::new(), v1::Value::default());
        }),
    ] {
        assert!(matches!(bad, Err(PatchError::Rejected(_))), "{bad:?}");
    }
}

#[test]
fn a_patch_that_outgrows_the_payload_s_limit_is_refused() {
    let fields = |from: usize, count: usize| {
        let fields = (from..from + count).map(|n| (format!("f{n}"), Value::Boolean(true)));
        Payload(fields.collect())
    };
    let start = Point {
        vector: vector([1.0, -0.0]),
        payload: fields(0, 256),
        model: None,
        event_time_ms: None,
        expires_at_ms: None,
    };
    let patch = Patch {
        set: fields(1000, 1),
        ..Patch::default()
    };
    let refused = patch.apply(&start).unwrap_err();
    assert_eq!(refused, PayloadError::TooManyFields { found: 257 });
}
