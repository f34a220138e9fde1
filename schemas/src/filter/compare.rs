//! How two payload values compare inside a filter.
//!
//! Whole and floating numbers compare with each other by their exact values: no whole number is
//! rounded to a float first, so 2^53 + 1 is not 2^53.

use std::{cmp::Ordering, ops::Bound};

use super::Bounds;
use crate::payload::Value;

/// 2^63, which no `i64` reaches.
const ABOVE_EVERY_INTEGER: f64 = 9_223_372_036_854_775_808.0;

/// Orders two values; `None` if they are of kinds that do not compare. Lists never do: their
/// items are compared one by one.
pub fn compare(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::String(left), Value::String(right)) => Some(left.as_bytes().cmp(right.as_bytes())),
        (Value::Integer(left), Value::Integer(right))
        | (Value::Timestamp(left), Value::Timestamp(right)) => Some(left.cmp(right)),
        (Value::Float(left), Value::Float(right)) => left.partial_cmp(right),
        (Value::Integer(whole), Value::Float(float)) => compare_exactly(*whole, *float),
        (Value::Float(float), Value::Integer(whole)) => {
            compare_exactly(*whole, *float).map(Ordering::reverse)
        }
        (Value::Boolean(left), Value::Boolean(right)) => Some(left.cmp(right)),
        _ => None,
    }
}

/// Orders a whole number and a float by their exact values; `None` for NaN.
fn compare_exactly(whole: i64, float: f64) -> Option<Ordering> {
    if float.is_nan() {
        return None;
    }
    if float >= ABOVE_EVERY_INTEGER {
        return Some(Ordering::Less);
    }
    if float < -ABOVE_EVERY_INTEGER {
        return Some(Ordering::Greater);
    }
    let truncated = as_whole(float.trunc())?;
    let fraction = float.fract();
    Some(
        whole
            .cmp(&truncated)
            .then(0.0_f64.total_cmp(&(fraction + 0.0))),
    )
}

/// A float as the whole number that it is, if it is one of 64 bits.
pub(super) fn as_whole(float: f64) -> Option<i64> {
    let is_whole = float.fract() == 0.0;
    let fits = (-ABOVE_EVERY_INTEGER..ABOVE_EVERY_INTEGER).contains(&float);
    #[expect(
        clippy::as_conversions,
        clippy::cast_possible_truncation,
        reason = "a float without fraction within the range of i64 converts exactly"
    )]
    let converted = float as i64;
    (is_whole && fits).then_some(converted)
}

impl Bounds {
    /// Whether a value that is no list lies within. A value that does not compare with a bound
    /// lies outside; booleans have no ranges.
    pub fn contain(&self, value: &Value) -> bool {
        if matches!(value, Value::Boolean(_) | Value::Strings(_)) {
            return false;
        }
        let above = match &self.lower {
            Bound::Unbounded => true,
            Bound::Included(end) => compare(value, end).is_some_and(Ordering::is_ge),
            Bound::Excluded(end) => compare(value, end).is_some_and(Ordering::is_gt),
        };
        let below = match &self.upper {
            Bound::Unbounded => true,
            Bound::Included(end) => compare(value, end).is_some_and(Ordering::is_le),
            Bound::Excluded(end) => compare(value, end).is_some_and(Ordering::is_lt),
        };
        above && below
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::prelude::*;

    use super::{ABOVE_EVERY_INTEGER, compare};
    use crate::payload::Value;

    #[test]
    fn whole_numbers_that_a_float_cannot_hold_are_told_apart() {
        let two_53 = 9_007_199_254_740_992.0;
        let cases = [
            (9_007_199_254_740_993, two_53, Ordering::Greater),
            (9_007_199_254_740_992, two_53, Ordering::Equal),
            (9_007_199_254_740_991, two_53, Ordering::Less),
            (i64::MAX, ABOVE_EVERY_INTEGER, Ordering::Less),
            (i64::MIN, -ABOVE_EVERY_INTEGER, Ordering::Equal),
            (i64::MIN, f64::MIN, Ordering::Greater),
            (i64::MAX, f64::MAX, Ordering::Less),
            (0, -0.0, Ordering::Equal),
            (0, 0.5, Ordering::Less),
            (0, -0.5, Ordering::Greater),
            (-1, -0.5, Ordering::Less),
            (-1, -1.5, Ordering::Greater),
            (1, 0.5, Ordering::Greater),
            (1, f64::MIN_POSITIVE, Ordering::Greater),
        ];
        for (whole, float, expected) in cases {
            let (whole, float) = (Value::Integer(whole), Value::Float(float));
            assert_eq!(
                compare(&whole, &float),
                Some(expected),
                "{whole:?} {float:?}"
            );
            assert_eq!(compare(&float, &whole), Some(expected.reverse()));
        }
    }

    #[test]
    fn kinds_that_are_not_both_numbers_do_not_compare() {
        let values = [
            Value::String("1".to_owned()),
            Value::Integer(1),
            Value::Boolean(true),
            Value::Timestamp(1),
            Value::Strings(vec!["1".to_owned()]),
        ];
        for (at, left) in values.iter().enumerate() {
            for right in values.iter().skip(at + 1) {
                assert_eq!(compare(left, right), None, "{left:?} {right:?}");
            }
        }
    }

    fn number() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<i64>().prop_map(Value::Integer),
            (-3i64..3).prop_map(Value::Integer),
            (-3.0f64..3.0).prop_map(Value::Float),
            (-6i8..6).prop_map(|half| Value::Float(f64::from(half) / 2.0)),
            any::<f64>()
                .prop_filter("finite", |float| float.is_finite())
                .prop_map(Value::Float),
        ]
    }

    proptest! {
        #[test]
        fn numbers_are_totally_ordered(a in number(), b in number(), c in number()) {
            let (ab, ba) = (compare(&a, &b).unwrap(), compare(&b, &a).unwrap());
            prop_assert_eq!(ab, ba.reverse());
            let (bc, ac) = (compare(&b, &c).unwrap(), compare(&a, &c).unwrap());
            if ab == bc {
                prop_assert_eq!(ac, ab);
            }
            if ab.is_eq() {
                prop_assert_eq!(ac, bc);
            }
        }
    }
}
