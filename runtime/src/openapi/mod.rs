//! An OpenAPI document held against what a server does, so that neither changes alone.
//!
//! A test of a role sends every example of its document, checks every answer against the schema that
//! the document gives for it, and asks which properties of answers it never saw. Schemas are closed
//! (`additionalProperties: false`), so a field that the document lacks is a fault too; and a keyword
//! that is not checked here is one, so that nothing is only thought to be checked.

mod operation;

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json};

pub use operation::Operation;

/// Keywords that say something to people only.
const ANNOTATIONS: [&str; 6] = [
    "description",
    "title",
    "default",
    "example",
    "examples",
    "format",
];

/// A document, and what of it was met.
pub struct Document {
    root: Json,
    /// Places of properties that some value had.
    seen: BTreeSet<String>,
}

/// Why a document cannot be read, or a value is not what it says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {what}")]
pub struct Fault {
    /// The place in the value, or in the document.
    pub at: String,
    /// What is wrong there.
    pub what: String,
}

fn fault(at: impl Into<String>, what: impl Into<String>) -> Fault {
    Fault {
        at: at.into(),
        what: what.into(),
    }
}

impl Document {
    /// Reads a document.
    ///
    /// # Errors
    /// [`Fault`] if it is no JSON.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let root = serde_json::from_str(text).map_err(|error| fault("/", error.to_string()))?;
        Ok(Self {
            root,
            seen: BTreeSet::new(),
        })
    }

    /// What stands at a JSON pointer; null if nothing does.
    pub fn at(&self, place: &str) -> &Json {
        self.root.pointer(place).unwrap_or(&Json::Null)
    }

    /// The paths.
    pub fn paths(&self) -> BTreeSet<String> {
        let paths = self.at("/paths").as_object();
        paths
            .into_iter()
            .flatten()
            .map(|(path, _)| path.clone())
            .collect()
    }

    /// The codes that a failure may have, by their names.
    pub fn failure_codes(&self) -> BTreeSet<&str> {
        let names = self.at("/components/schemas/Failure/properties/code/enum");
        let names = names.as_array().into_iter().flatten();
        names.filter_map(Json::as_str).collect()
    }

    /// Every method of every path: all that make first, all that drop last.
    pub fn operations(&self) -> Vec<Operation> {
        Operation::all(self)
    }

    /// Checks a value against the schema at a place.
    ///
    /// # Errors
    /// [`Fault`] with the first thing that does not fit.
    pub fn check(&mut self, schema: &str, value: &Json) -> Result<(), Fault> {
        let mut seen = BTreeSet::new();
        self.matches(schema, value, "", &mut seen)?;
        self.seen.append(&mut seen);
        Ok(())
    }

    /// The properties below the schemas at these places that no checked value had.
    pub fn unseen<'a>(&self, schemas: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        for schema in schemas {
            self.properties_below(schema, &mut all);
        }
        all.retain(|place| !self.seen.contains(place));
        all
    }

    /// The names of an object's properties at a schema, following references; `None` if it is no
    /// closed object.
    pub fn properties(&self, schema: &str) -> Option<BTreeSet<String>> {
        let schema = self.resolved(schema);
        let found = self.at(&schema);
        if found.get("additionalProperties") != Some(&Json::Bool(false)) {
            return None;
        }
        let properties = found.get("properties").and_then(Json::as_object);
        Some(
            properties
                .into_iter()
                .flatten()
                .map(|(name, _)| name.clone())
                .collect(),
        )
    }

    /// The place that a schema's references lead to.
    pub fn resolved(&self, schema: &str) -> String {
        let mut place = schema.to_owned();
        while let Some(next) = self.at(&place).get("$ref").and_then(Json::as_str) {
            place = next.trim_start_matches('#').to_owned();
        }
        place
    }

    fn properties_below(&self, schema: &str, all: &mut BTreeSet<String>) {
        let place = self.resolved(schema);
        let found = self.at(&place);
        let properties = found.get("properties").and_then(Json::as_object);
        for (name, _) in properties.into_iter().flatten() {
            let below = format!("{place}/properties/{}", escaped(name));
            if all.insert(below.clone()) {
                self.properties_below(&below, all);
            }
        }
        for inner in ["items", "additionalProperties"] {
            if found.get(inner).is_some_and(Json::is_object) {
                self.properties_below(&format!("{place}/{inner}"), all);
            }
        }
        let choices = found.get("oneOf").and_then(Json::as_array);
        for at in 0..choices.map_or(0, Vec::len) {
            self.properties_below(&format!("{place}/oneOf/{at}"), all);
        }
    }

    fn matches(
        &self,
        schema: &str,
        value: &Json,
        at: &str,
        seen: &mut BTreeSet<String>,
    ) -> Result<(), Fault> {
        let place = self.resolved(schema);
        let Json::Object(rules) = self.at(&place) else {
            return Err(fault(place, "there is no schema"));
        };
        for (keyword, rule) in rules {
            let broken = match keyword.as_str() {
                "type" => !is_of(rule, value),
                "enum" => !rule.as_array().is_some_and(|all| all.contains(value)),
                "minimum" => !compares(value, rule, |value, least| value >= least),
                "maximum" => !compares(value, rule, |value, most| value <= most),
                "minLength" => value
                    .as_str()
                    .is_none_or(|text| u64::try_from(text.chars().count()).ok() < rule.as_u64()),
                "pattern" => !is_digits(rule, value)
                    .ok_or_else(|| fault(&place, format!("pattern {rule} is not known here")))?,
                "required" => {
                    let names = rule
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(Json::as_str);
                    names.into_iter().any(|name| value.get(name).is_none())
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.matches(
                            &format!("{place}/items"),
                            item,
                            &format!("{at}/{index}"),
                            seen,
                        )?;
                    }
                    false
                }
                "properties" | "additionalProperties" => {
                    if keyword == "additionalProperties" {
                        self.open(&place, rules, value, at, seen)?;
                    } else {
                        self.named(&place, rule, value, at, seen)?;
                    }
                    false
                }
                "oneOf" => {
                    self.one_of(&place, rule, value, at, seen)?;
                    false
                }
                other if ANNOTATIONS.contains(&other) => false,
                other => {
                    return Err(fault(
                        place,
                        format!("keyword `{other}` is not checked here"),
                    ));
                }
            };
            if broken {
                let shown: String = value.to_string().chars().take(200).collect();
                return Err(fault(
                    at,
                    format!("{shown} breaks {keyword} {rule} of {place}"),
                ));
            }
        }
        Ok(())
    }

    fn named(
        &self,
        place: &str,
        properties: &Json,
        value: &Json,
        at: &str,
        seen: &mut BTreeSet<String>,
    ) -> Result<(), Fault> {
        for (name, inner) in value.as_object().into_iter().flatten() {
            if properties.get(name).is_some() {
                let below = format!("{place}/properties/{}", escaped(name));
                self.matches(&below, inner, &format!("{at}/{name}"), seen)?;
                seen.insert(below);
            }
        }
        Ok(())
    }

    fn open(
        &self,
        place: &str,
        rules: &Map<String, Json>,
        value: &Json,
        at: &str,
        seen: &mut BTreeSet<String>,
    ) -> Result<(), Fault> {
        let named = rules.get("properties");
        for (name, inner) in value.as_object().into_iter().flatten() {
            if named.is_some_and(|named| named.get(name).is_some()) {
                continue;
            }
            match rules.get("additionalProperties") {
                Some(Json::Bool(false)) => {
                    return Err(fault(at, format!("`{name}` is not in {place}")));
                }
                Some(Json::Object(_)) => {
                    let below = format!("{place}/additionalProperties");
                    self.matches(&below, inner, &format!("{at}/{name}"), seen)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn one_of(
        &self,
        place: &str,
        choices: &Json,
        value: &Json,
        at: &str,
        seen: &mut BTreeSet<String>,
    ) -> Result<(), Fault> {
        let mut fitting = 0;
        let mut faults = Vec::new();
        for index in 0..choices.as_array().map_or(0, Vec::len) {
            let mut met = BTreeSet::new();
            match self.matches(&format!("{place}/oneOf/{index}"), value, at, &mut met) {
                Ok(()) => {
                    fitting += 1;
                    seen.append(&mut met);
                }
                Err(broken) => faults.push(broken.to_string()),
            }
        }
        if fitting == 1 {
            return Ok(());
        }
        let why = faults.join("; ");
        Err(fault(
            at,
            format!("fits {fitting} of oneOf of {place}: {why}"),
        ))
    }
}

/// The fields that a refusal of an unknown field names, as `serde` words it; `None` if it does not.
pub fn expected_fields(message: &str) -> Option<BTreeSet<String>> {
    let (_, rest) = message.split_once("unknown field `")?;
    let (_, rest) = rest.split_once('`')?;
    let rest = rest.split(" at line ").next().unwrap_or_default();
    Some(
        rest.split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect(),
    )
}

fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn is_of(rule: &Json, value: &Json) -> bool {
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    };
    match rule {
        Json::String(kind) => is(kind),
        Json::Array(kinds) => kinds.iter().filter_map(Json::as_str).any(is),
        _ => false,
    }
}

fn compares(value: &Json, bound: &Json, holds: impl Fn(f64, f64) -> bool) -> bool {
    match (value.as_f64(), bound.as_f64()) {
        (Some(value), Some(bound)) => holds(value, bound),
        // Of another type: that is what `type` is for.
        _ => true,
    }
}

/// The two patterns there are: a decimal number, and so many hexadecimal digits.
fn is_digits(rule: &Json, value: &Json) -> Option<bool> {
    let text = value.as_str().unwrap_or_default();
    match rule.as_str()? {
        "^[0-9]+$" => Some(!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())),
        "^[0-9a-f]{32}$" => {
            let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            Some(text.len() == 32 && text.bytes().all(is_hex))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use super::{Document, expected_fields};

    fn document() -> Document {
        let text = json!({
            "components": {"schemas": {
                "Hit": {
                    "type": "object",
                    "properties": {"id": {"type": "string"}, "far": {"type": "number", "minimum": 0}},
                    "required": ["id"],
                    "additionalProperties": false,
                },
                "Answer": {
                    "type": "object",
                    "properties": {
                        "hits": {"type": "array", "items": {"$ref": "#/components/schemas/Hit"}},
                        "next": {"type": ["string", "null"]},
                        "value": {"oneOf": [{"type": "string"}, {"type": "boolean"}]},
                        "open": {"type": "object", "additionalProperties": {"type": "integer"}},
                    },
                    "additionalProperties": false,
                },
                "Odd": {"type": "array", "uniqueItems": true},
            }},
        });
        Document::parse(&text.to_string()).unwrap()
    }

    const ANSWER: &str = "/components/schemas/Answer";

    #[test]
    fn a_value_that_does_not_fit_is_named_with_its_place() {
        let mut document = document();
        let good = json!({"hits": [{"id": "a", "far": 0.5}], "next": null, "open": {"x": 3}});
        document.check(ANSWER, &good).unwrap();
        let bad = [
            (json!({"hits": [{"far": 1}]}), "/hits/0"),
            (json!({"hits": [{"id": "a", "far": -1}]}), "/hits/0/far"),
            (json!({"hits": [{"id": "a", "near": 1}]}), "`near`"),
            (json!({"next": 3}), "/next"),
            (json!({"value": 3}), "fits 0 of oneOf"),
            (json!({"open": {"x": "y"}}), "/open/x"),
            (json!([]), "breaks type"),
        ];
        for (value, wanted) in bad {
            let told = document.check(ANSWER, &value).unwrap_err().to_string();
            assert!(told.contains(wanted), "{value}: {told}");
        }
        let told = document
            .check("/components/schemas/Odd", &json!([]))
            .unwrap_err();
        assert!(told.to_string().contains("uniqueItems"), "{told}");
    }

    #[test]
    fn properties_that_no_value_had_are_named() {
        let mut document = document();
        document
            .check(
                ANSWER,
                &json!({"hits": [{"id": "a"}], "value": true, "next": "n"}),
            )
            .unwrap();
        let unseen: Vec<String> = document.unseen([ANSWER]).into_iter().collect();
        let wanted = [
            "/components/schemas/Answer/properties/open",
            "/components/schemas/Hit/properties/far",
        ];
        assert_eq!(unseen, wanted);
    }

    #[test]
    fn a_refusal_of_an_unknown_field_names_the_known_ones() {
        let told = "x: unknown field `zz`, expected one of `a`, `b` at line 1 column 4";
        let fields: Vec<String> = expected_fields(told).unwrap().into_iter().collect();
        assert_eq!(fields, ["a", "b"]);
        let none = expected_fields("unknown field `zz`, there are no fields").unwrap();
        assert!(none.is_empty());
        assert!(expected_fields("something else").is_none());
    }
}
