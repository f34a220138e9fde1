//! One method of one path: what its examples send, and how its answers are described.

use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::{Document, escaped};

/// The methods of a path, in an order in which a thing is made before it is changed and dropped.
const METHODS: [&str; 5] = ["put", "get", "post", "patch", "delete"];

/// One method of one path.
#[derive(Clone, Debug)]
pub struct Operation {
    /// As the document writes it, with `{names}`.
    pub path: String,
    /// In lower case.
    pub method: String,
    /// Its place in the document, a JSON pointer.
    place: String,
}

impl Operation {
    /// Every method of every path: all that make first, all that drop last.
    pub(super) fn all(document: &Document) -> Vec<Self> {
        let paths = document.paths();
        let all = METHODS.iter().flat_map(|method| {
            paths.iter().filter_map(move |path| {
                let place = format!("/paths/{}/{method}", escaped(path));
                (!document.at(&place).is_null()).then(|| Self {
                    path: path.clone(),
                    method: (*method).to_owned(),
                    place,
                })
            })
        });
        all.collect()
    }

    /// Its path and its query string with the examples of its parameters.
    pub fn target(&self, document: &Document) -> (String, String) {
        let (mut path, mut query) = (self.path.clone(), String::new());
        for parameter in self.parameters(document) {
            let text = |name: &str| {
                parameter
                    .get(name)
                    .and_then(Json::as_str)
                    .unwrap_or_default()
            };
            let name = text("name");
            let example = match parameter.get("example") {
                Some(Json::String(text)) => text.clone(),
                Some(other) => other.to_string(),
                None => String::new(),
            };
            if text("in") == "path" {
                path = path.replace(&format!("{{{name}}}"), &example);
            } else if text("in") == "query" {
                let parted = if query.is_empty() { "" } else { "&" };
                query.push_str(&format!("{parted}{name}={example}"));
            }
        }
        (path, query)
    }

    /// The names of its query string.
    pub fn query_names(&self, document: &Document) -> BTreeSet<String> {
        let of_query = (self.parameters(document).into_iter())
            .filter(|one| one.get("in").and_then(Json::as_str) == Some("query"));
        let names = of_query.filter_map(|one| Some(one.get("name")?.as_str()?.to_owned()));
        names.collect()
    }

    /// The media type of its body, and the examples of it; none where it takes no body.
    pub fn bodies(&self, document: &Document) -> Vec<(String, Json)> {
        let content = document.at(&format!("{}/requestBody/content", self.place));
        let kinds = content.as_object().into_iter().flatten();
        let all = kinds.flat_map(|(kind, media)| {
            let examples = media.get("examples").and_then(Json::as_object);
            let values = examples.into_iter().flatten();
            values.filter_map(|(_, example)| Some((kind.clone(), example.get("value")?.clone())))
        });
        all.collect()
    }

    /// The place of its body's schema.
    pub fn body_schema(&self, document: &Document) -> String {
        self.schema_in(document, &format!("{}/requestBody/content", self.place))
    }

    /// The place of the schema of an answer with this status.
    pub fn answer_schema(&self, document: &Document, status: u16) -> String {
        let responses = format!("{}/responses", self.place);
        let status = status.to_string();
        let is_told = document.at(&responses).get(&status).is_some();
        let told = if is_told { &status } else { "default" };
        self.schema_in(document, &format!("{responses}/{told}/content"))
    }

    /// The places of closed objects in a body of it, each with the place of its schema. Below a
    /// schema whose name is among `but`, none are looked for.
    pub fn objects(&self, document: &Document, body: &Json, but: &[&str]) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let schema = self.body_schema(document);
        objects(document, &schema, body, "", but, &mut found);
        found
    }

    fn schema_in(&self, document: &Document, content: &str) -> String {
        let kinds = document.at(content).as_object();
        let kind = kinds.and_then(|kinds| kinds.keys().next().cloned());
        format!("{content}/{}/schema", escaped(&kind.unwrap_or_default()))
    }

    fn parameters<'a>(&self, document: &'a Document) -> Vec<&'a Json> {
        let all = document.at(&self.place).get("parameters");
        all.and_then(Json::as_array).into_iter().flatten().collect()
    }
}

fn objects(
    document: &Document,
    schema: &str,
    value: &Json,
    at: &str,
    but: &[&str],
    found: &mut Vec<(String, String)>,
) {
    let schema = document.resolved(schema);
    let name = schema.rsplit('/').next().unwrap_or_default();
    if but.contains(&name) {
        return;
    }
    match value {
        Json::Object(fields) => {
            if document.properties(&schema).is_some() {
                found.push((at.to_owned(), schema.clone()));
            }
            for (name, inner) in fields {
                let below = format!("{schema}/properties/{}", escaped(name));
                let at = format!("{at}/{}", escaped(name));
                objects(document, &below, inner, &at, but, found);
            }
        }
        Json::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let below = format!("{schema}/items");
                objects(document, &below, item, &format!("{at}/{index}"), but, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use serde_json::json;

    use crate::openapi::Document;

    fn document() -> Document {
        let hit = json!({
            "type": "object",
            "properties": {"id": {"type": "string"}, "by": {"$ref": "#/components/schemas/By"}},
            "additionalProperties": false,
        });
        let media = |schema: &str, value: serde_json::Value| {
            json!({"application/json": {
                "schema": {"$ref": format!("#/components/schemas/{schema}")},
                "examples": {"one": {"value": value}},
            }})
        };
        let parameters = json!([
            {"name": "id", "in": "path", "example": "x/1"},
            {"name": "deep", "in": "query", "example": true},
            {"name": "ms", "in": "query", "example": 5},
        ]);
        let text = json!({
            "paths": {
                "/b": {"delete": {}},
                "/a/{id}": {"get": {}, "put": {
                    "parameters": parameters,
                    "requestBody": {"content": media("Hit", json!({"id": "a", "by": {"f": [1]}}))},
                    "responses": {"200": {"content": media("Hit", json!({}))},
                                  "default": {"content": media("By", json!({}))}},
                }},
            },
            "components": {"schemas": {
                "Hit": hit,
                "By": {"type": "object", "properties": {"f": {}}, "additionalProperties": false},
            }},
        });
        Document::parse(&text.to_string()).unwrap()
    }

    #[test]
    fn operations_make_before_they_drop() {
        let operations = document().operations();
        let shown: Vec<String> = operations
            .iter()
            .map(|one| format!("{} {}", one.method, one.path))
            .collect();
        assert_eq!(shown, ["put /a/{id}", "get /a/{id}", "delete /b"]);
    }

    #[test]
    fn an_operation_is_sent_as_its_examples_say() {
        let document = document();
        let put = document.operations().swap_remove(0);
        let (path, query) = put.target(&document);
        assert_eq!(
            (path.as_str(), query.as_str()),
            ("/a/x/1", "deep=true&ms=5")
        );
        let names: Vec<String> = put.query_names(&document).into_iter().collect();
        assert_eq!(names, ["deep", "ms"]);
        let bodies = put.bodies(&document);
        let [(kind, body)] = &bodies[..] else {
            panic!("{bodies:?}");
        };
        assert_eq!(kind, "application/json");
        let (hit, by) = ("/components/schemas/Hit", "/components/schemas/By");
        assert_eq!(document.resolved(&put.body_schema(&document)), hit);
        assert_eq!(document.resolved(&put.answer_schema(&document, 200)), hit);
        assert_eq!(document.resolved(&put.answer_schema(&document, 404)), by);
        let all = [
            (String::new(), hit.to_owned()),
            ("/by".to_owned(), by.to_owned()),
        ];
        assert_eq!(put.objects(&document, body, &[]), all);
        assert_eq!(put.objects(&document, body, &["By"]), all[..1]);
    }
}
