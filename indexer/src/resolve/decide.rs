//! What becomes of a change, given the point as it is. Pure.

use bytes::Bytes;
use shoal_schemas::{Condition, Patch, Point, PointId, Version};

use crate::entry::check_point;

/// A point as it is served.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Current {
    /// The point.
    pub(super) point: Point,
    /// Its version.
    pub(super) version: Version,
}

/// What a caller wants of one point.
#[derive(Clone, Debug)]
pub enum Want {
    /// This value as its record, or a tombstone.
    Write(Option<Bytes>),
    /// Part of it changed.
    Patch(Patch),
}

/// One change that a caller asks for.
#[derive(Clone, Debug)]
pub struct Change {
    /// The point.
    pub id: PointId,
    /// What is wanted.
    pub want: Want,
    /// What has to hold.
    pub condition: Condition,
}

impl Refusal {
    /// The same, of a point that was put back as it was and has this version now.
    pub(super) fn put_back(self, version: Version) -> Self {
        match self {
            Self::Condition {
                id,
                condition,
                current: Some(_),
            } => Self::Condition {
                id,
                condition,
                current: Some(version),
            },
            other => other,
        }
    }
}

impl Change {
    /// Whether what becomes of it depends on the point as it is.
    pub(super) fn looks(&self) -> bool {
        matches!(self.want, Want::Patch(_)) || self.condition != Condition::Always
    }
}

/// What is to be published.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Decided {
    /// A complete point.
    Put(Point),
    /// A value that is encoded already.
    Value(Bytes),
    /// A tombstone.
    Remove,
}

/// Why nothing is to be published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to change.
    #[error("there is no point `{id}` to change")]
    Missing {
        /// The id.
        id: PointId,
    },
    /// The condition does not hold.
    #[error("`{id}` {}, the condition wants {}", found(.current), wanted(.condition))]
    Condition {
        /// The id.
        id: PointId,
        /// The condition.
        condition: Condition,
        /// The version there is, if there is a point.
        current: Option<Version>,
    },
    /// The point that would come out is no point.
    #[error("`{id}` cannot be changed so: {detail}")]
    Outcome {
        /// The id.
        id: PointId,
        /// What is wrong with it.
        detail: String,
    },
}

fn found(current: &Option<Version>) -> String {
    current.map_or("does not exist".to_owned(), |version| {
        format!("is at version {version}")
    })
}

fn wanted(condition: &Condition) -> String {
    match condition {
        Condition::Always => "nothing".to_owned(),
        Condition::Absent => "that it does not exist".to_owned(),
        Condition::Version(version) => format!("version {version}"),
    }
}

/// Decides about a change of the point as it is; one that is hidden by its expiry is not there.
///
/// # Errors
/// [`Refusal`].
pub(super) fn decide(
    change: &Change,
    current: Option<&Current>,
    now_ms: i64,
) -> Result<Decided, Refusal> {
    let is_hidden = |current: &Current| current.point.expires_at_ms.is_some_and(|at| at <= now_ms);
    let current = current.filter(|current| !is_hidden(current));
    let id = || change.id.clone();
    let condition = change.condition;
    if matches!(change.want, Want::Patch(_)) && current.is_none() {
        return Err(Refusal::Missing { id: id() });
    }
    let version = current.map(|current| current.version);
    if !condition.holds(version) {
        return Err(Refusal::Condition {
            id: id(),
            condition,
            current: version,
        });
    }
    match (&change.want, current) {
        (Want::Write(Some(value)), _) => Ok(Decided::Value(value.clone())),
        (Want::Write(None), _) => Ok(Decided::Remove),
        (Want::Patch(_), None) => Err(Refusal::Missing { id: id() }),
        (Want::Patch(patch), Some(current)) => {
            let outcome = |detail| Refusal::Outcome { id: id(), detail };
            let point = patch
                .apply(&current.point)
                .map_err(|error| outcome(error.to_string()))?;
            check_point(&point).map_err(outcome)?;
            Ok(Decided::Put(point))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;
    use shoal_schemas::{Metric, Payload, Value, Vector};

    use super::*;

    fn point(n: i64, expires_at_ms: Option<i64>) -> Point {
        let field = ("n".to_owned(), Value::Integer(n));
        Point {
            vector: Vector::new(&[0.5, -0.0], 2.try_into().unwrap(), Metric::L2).unwrap(),
            payload: Payload([field].into()),
            model: None,
            event_time_ms: Some(0),
            expires_at_ms,
        }
    }

    fn change(want: Want, condition: Condition) -> Change {
        Change {
            id: PointId::new("a").unwrap(),
            want,
            condition,
        }
    }

    fn set(field: &str, n: i64) -> Want {
        let field = (field.to_owned(), Value::Integer(n));
        Want::Patch(Patch {
            set: Payload([field].into()),
            ..Patch::default()
        })
    }

    fn at(version: u64, point: Point) -> Current {
        Current {
            point,
            version: Version::from_raw(version),
        }
    }

    #[test]
    fn a_patch_needs_a_point_that_is_seen() {
        let patch = change(set("m", 1), Condition::Always);
        let missing = Err(Refusal::Missing {
            id: patch.id.clone(),
        });
        assert_eq!(decide(&patch, None, 0), missing);
        let expired = at(1, point(1, Some(10)));
        assert_eq!(decide(&patch, Some(&expired), 10), missing);
        let decided = decide(&patch, Some(&expired), 9).unwrap();
        let Decided::Put(put) = decided else {
            panic!("{decided:?}");
        };
        assert_eq!(put.payload.0.len(), 2);
        assert_eq!((put.event_time_ms, put.expires_at_ms), (Some(0), Some(10)));
        let bits: Vec<u32> = put.vector.as_slice().iter().map(|v| v.to_bits()).collect();
        assert_eq!(bits, [0.5f32.to_bits(), (-0.0f32).to_bits()]);
    }

    #[test]
    fn a_condition_that_fails_tells_the_version_there_is() {
        let one = Condition::Version(Version::from_raw(1));
        let current = at(2, point(1, None));
        for want in [
            Want::Write(Some(Bytes::new())),
            Want::Write(None),
            set("m", 1),
        ] {
            let refused = decide(&change(want, one), Some(&current), 0).unwrap_err();
            assert_eq!(
                refused.to_string(),
                "`a` is at version 2, the condition wants version 1"
            );
        }
        let absent = change(Want::Write(Some(Bytes::new())), Condition::Absent);
        assert!(decide(&absent, Some(&current), 0).is_err());
        assert_eq!(decide(&absent, None, 0), Ok(Decided::Value(Bytes::new())));
        let expired = at(2, point(1, Some(0)));
        assert!(decide(&absent, Some(&expired), 0).is_ok());
    }

    #[test]
    fn what_would_come_out_is_checked() {
        let many = (0..256).map(|n| (format!("f{n}"), Value::Integer(n)));
        let mut full = point(1, None);
        full.payload = Payload(many.collect());
        let refused = decide(
            &change(set("one more", 1), Condition::Always),
            Some(&at(1, full)),
            0,
        );
        assert!(refused.unwrap_err().to_string().contains("257 fields"));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(i64),
        Remove,
        Patch(&'static str, i64),
    }

    fn step() -> impl Strategy<Value = (Step, Option<u64>)> {
        let step = prop_oneof![
            (0i64..9).prop_map(Step::Put),
            Just(Step::Remove),
            (prop_oneof![Just("n"), Just("m"), Just("o")], 0i64..9)
                .prop_map(|(field, n)| Step::Patch(field, n)),
        ];
        // Versions a sequence gets, and some it does not.
        (step, proptest::option::of(0u64..8))
    }

    proptest! {
        #[test]
        fn a_sequence_of_changes_is_a_fold_over_a_model(
            steps in proptest::collection::vec(step(), 1..24),
        ) {
            let mut current: Option<Current> = None;
            // Fields and version of the point, the dullest way.
            let mut model: Option<(std::collections::BTreeMap<String, i64>, u64)> = None;
            for (number, (step, wanted)) in (1u64..).zip(steps) {
                let condition = Condition::from_wire(wanted);
                let want = match &step {
                    Step::Put(n) => Want::Write(Some(Bytes::copy_from_slice(&n.to_le_bytes()))),
                    Step::Remove => Want::Write(None),
                    Step::Patch(field, n) => set(field, *n),
                };
                let decided = decide(&change(want, condition), current.as_ref(), 0);
                let holds = match wanted {
                    None => true,
                    Some(0) => model.is_none(),
                    Some(version) => model.as_ref().is_some_and(|(_, now)| *now == version),
                };
                let is_patch = matches!(step, Step::Patch(..));
                let done = holds && !(is_patch && model.is_none());
                prop_assert_eq!(decided.is_ok(), done, "{:?}", decided);
                let Ok(decided) = decided else { continue };
                current = match decided {
                    Decided::Put(point) => Some(at(number, point)),
                    Decided::Value(value) => {
                        let n = i64::from_le_bytes(value[..].try_into().unwrap());
                        Some(at(number, point(n, None)))
                    }
                    Decided::Remove => None,
                };
                model = match (step, model) {
                    (Step::Put(n), _) => Some(([("n".to_owned(), n)].into(), number)),
                    (Step::Remove, _) => None,
                    (Step::Patch(field, n), model) => model.map(|(mut fields, _)| {
                        fields.insert(field.to_owned(), n);
                        (fields, number)
                    }),
                };
                let shown = current.as_ref().map(|now| {
                    let fields = now.point.payload.0.iter().map(|(name, value)| match value {
                        Value::Integer(n) => (name.clone(), *n),
                        other => panic!("{other:?}"),
                    });
                    (fields.collect(), now.version.raw())
                });
                prop_assert_eq!(shown, model.clone());
            }
        }
    }
}
