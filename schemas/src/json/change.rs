//! Patches and conditions as JSON.
//!
//! ```json
//! {"id": "a", "set": {"title": "new", "n": 3}, "unset": ["draft"], "expires_at": null,
//!  "vector": [0.1, 0.2], "model": "m", "if_version": "111411200000000005"}
//! ```
//! `null` takes the expiry or the model away. A version is a text or a number: it does not fit
//! the numbers of JavaScript, so reads answer it as text.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value as Json, value::RawValue};

use super::{Id, time::Time};
use crate::{
    collection::Collection,
    patch::{Assign, Condition, Patch, PatchError},
    payload::Payload,
    point::PointId,
    reject::Rejection,
    vector::Vector,
};

const IF_VERSION: &str = "if_version";
const IF_ABSENT: &str = "if_absent";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    id: Option<Id>,
    #[serde(default)]
    set: Map<String, Json>,
    #[serde(default)]
    unset: Vec<String>,
    #[serde(default, deserialize_with = "some_components")]
    vector: Option<Vec<f32>>,
    #[serde(default, deserialize_with = "said")]
    model: Option<Option<String>>,
    #[serde(default, deserialize_with = "said")]
    expires_at: Option<Option<Time>>,
    if_version: Option<Number>,
}

/// A version as JSON has it.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a version as text or as a whole number")]
enum Number {
    Text(String),
    Whole(u64),
}

impl Number {
    fn read(&self) -> Result<u64, PatchError> {
        match self {
            Self::Whole(raw) => Ok(*raw),
            Self::Text(text) => decode_wanted_version(text),
        }
    }
}

/// Reads `if_version` where it is text.
///
/// # Errors
/// [`PatchError::Json`].
pub fn decode_wanted_version(text: &str) -> Result<u64, PatchError> {
    text.parse().map_err(|_| PatchError::Json {
        detail: format!(
            "{IF_VERSION} is `{}`, wanted is a version as reads answer it",
            text.chars().take(40).collect::<String>()
        ),
    })
}

fn some_components<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Vec<f32>>, D::Error> {
    super::components(from).map(Some)
}

/// Tells a field that is null from one that is not there.
fn said<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(from).map(Some)
}

fn assign<T>(said: Option<Option<T>>) -> Assign<T> {
    match said {
        None => Assign::Keep,
        Some(None) => Assign::Clear,
        Some(Some(new)) => Assign::To(new),
    }
}

/// Reads a patch. Its id is `id`, if that is given, and has to be the one it says, if it says one.
///
/// # Errors
/// [`PatchError`].
pub fn decode_patch(
    json: &[u8],
    id: Option<&str>,
    collection: &Collection,
) -> Result<(PointId, Patch, Condition), PatchError> {
    let refused = |detail: String| PatchError::Json { detail };
    let read: Document =
        serde_json::from_slice(json).map_err(|error| refused(error.to_string()))?;
    let said = read.id.map(Id::into_text);
    let id = match (id, said) {
        (Some(id), Some(said)) if id != said => {
            return Err(refused(format!(
                "it says id `{}`, the path says `{id}`",
                said.chars().take(80).collect::<String>()
            )));
        }
        (Some(id), _) => id.to_owned(),
        (None, Some(said)) => said,
        (None, None) => return Err(refused("it has no `id`".to_owned())),
    };
    if let Some((field, _)) = read.set.iter().find(|(_, value)| value.is_null()) {
        return Err(refused(format!(
            "`set` has field `{field}` as null; name it in `unset` to take it away"
        )));
    }
    let vector = match read.vector {
        Some(components) => {
            let checked = Vector::new(&components, collection.dim, collection.metric);
            Some(checked.map_err(Rejection::from)?)
        }
        None => None,
    };
    let patch = Patch {
        set: Payload::from_json(read.set).map_err(Rejection::from)?,
        unset: read.unset.into_iter().collect(),
        vector,
        model: assign(read.model),
        expires_at_ms: assign(read.expires_at.map(|time| time.map(Time::millis))),
    };
    let wanted = read.if_version.map(|number| number.read()).transpose()?;
    let condition = Condition::from_wire(wanted);
    patch.check(condition)?;
    Ok((PointId::new(&id)?, patch, condition))
}

/// Takes the condition off a point, which then is one as the log takes it.
///
/// Costs a look at the text where there is no condition in it.
///
/// # Errors
/// [`PatchError::Json`] for a condition that does not read.
pub fn split_condition(point: Box<RawValue>) -> Result<(Box<RawValue>, Condition), PatchError> {
    let text = point.get();
    if !text.contains(IF_VERSION) && !text.contains(IF_ABSENT) {
        return Ok((point, Condition::Always));
    }
    // What is no object is refused by whoever reads the point.
    let Ok(mut fields) = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(text) else {
        return Ok((point, Condition::Always));
    };
    let refused = |error: serde_json::Error| PatchError::Json {
        detail: error.to_string(),
    };
    let wanted = match fields.remove(IF_VERSION) {
        Some(raw) => {
            let number: Number = serde_json::from_str(raw.get()).map_err(refused)?;
            Some(number.read()?)
        }
        None => None,
    };
    let absent = match fields.remove(IF_ABSENT) {
        Some(raw) => serde_json::from_str(raw.get()).map_err(refused)?,
        None => false,
    };
    let condition = match (wanted, absent) {
        (Some(1..), true) => {
            return Err(PatchError::Json {
                detail: format!("it says both {IF_VERSION} and {IF_ABSENT}"),
            });
        }
        (_, true) => Condition::Absent,
        (wanted, false) => Condition::from_wire(wanted),
    };
    let rest = serde_json::value::to_raw_value(&fields).map_err(refused)?;
    Ok((rest, condition))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::value::RawValue;

    use super::{decode_patch, split_condition};
    use crate::{
        Collection, Metric, Value, Version,
        patch::{Assign, Condition, PatchError},
    };

    fn collection() -> Collection {
        let dim = 2.try_into().unwrap();
        Collection::new("docs".parse().unwrap(), dim, Metric::L2, 1)
    }

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn a_patch_reads_with_every_part() {
        let text = br#"{"id": 7, "set": {"title": "new"}, "unset": ["draft"], "vector": [1, 2],
            "model": "m", "expires_at": null, "if_version": "18446744073709551615"}"#;
        let (id, patch, condition) = decode_patch(text, None, &collection()).unwrap();
        assert_eq!(id.as_str(), "7");
        assert_eq!(patch.set.0["title"], Value::String("new".to_owned()));
        assert!(patch.unset.contains("draft"));
        assert_eq!(patch.vector.unwrap().as_slice(), [1.0, 2.0]);
        assert_eq!(patch.model, Assign::To("m".to_owned()));
        assert_eq!(patch.expires_at_ms, Assign::Clear);
        let last = Version::from_raw(u64::MAX);
        assert_eq!(condition, Condition::Version(last));
        let text = br#"{"unset": ["draft"], "expires_at": "1970-01-01T00:00:01Z"}"#;
        let (id, patch, condition) = decode_patch(text, Some("x/y"), &collection()).unwrap();
        assert_eq!((id.as_str(), condition), ("x/y", Condition::Always));
        assert_eq!(
            (patch.model, patch.expires_at_ms),
            (Assign::Keep, Assign::To(1000))
        );
    }

    #[test]
    fn what_does_not_read_is_named() {
        for (text, told) in [
            ("{", "EOF"),
            (r#"{"id": "b", "unset": ["x"]}"#, "the path says `a`"),
            (r#"{"sett": {}}"#, "sett"),
            (r#"{"set": {"x": null}}"#, "`x` as null"),
            (r#"{"set": {"x": {"y": 1}}}"#, "`x`"),
            (r#"{"set": {"x": 1}, "if_version": "abc"}"#, "`abc`"),
            (r#"{"set": {"x": 1}, "if_version": 1.5}"#, "version"),
            (r#"{"set": {"x": 1}, "if_version": 0}"#, "upsert it instead"),
            (r#"{"vector": [1]}"#, "1 components"),
            ("{}", "changes nothing"),
        ] {
            let refused = decode_patch(text.as_bytes(), Some("a"), &collection()).unwrap_err();
            let whole = match &refused {
                PatchError::Rejected(source) => source.to_string(),
                other => other.to_string(),
            };
            assert!(whole.contains(told), "{text}: {whole}");
        }
    }

    #[test]
    fn a_condition_comes_off_a_point_and_the_rest_stays_as_it_was() {
        let number = r#"{"id":"a","payload":{"if_version":3},"vector":[0.1,2e-40]}"#;
        let (rest, condition) = split_condition(raw(number)).unwrap();
        assert_eq!((rest.get(), condition), (number, Condition::Always));
        for (text, expected) in [
            (
                r#"{"id":"a","if_version":"5","vector":[0.1,2e-40]}"#,
                Condition::Version(Version::from_raw(5)),
            ),
            (
                r#"{"if_version":5,"id":"a","vector":[0.1,2e-40]}"#,
                Condition::Version(Version::from_raw(5)),
            ),
            (
                r#"{"id":"a","vector":[0.1,2e-40],"if_version":0}"#,
                Condition::Absent,
            ),
            (
                r#"{"id":"a","if_absent":true,"vector":[0.1,2e-40]}"#,
                Condition::Absent,
            ),
            (
                r#"{"id":"a","if_absent":false,"vector":[0.1,2e-40]}"#,
                Condition::Always,
            ),
        ] {
            let (rest, condition) = split_condition(raw(text)).unwrap();
            assert_eq!(condition, expected, "{text}");
            assert_eq!(rest.get(), r#"{"id":"a","vector":[0.1,2e-40]}"#);
        }
        for text in [
            r#"{"if_version":-1}"#,
            r#"{"if_version":"x"}"#,
            r#"{"if_version":4,"if_absent":true}"#,
            r#"{"if_absent":3}"#,
        ] {
            assert!(split_condition(raw(text)).is_err(), "{text}");
        }
    }
}
