//! Flags that say which points a search, a count or a scroll is about.

use std::collections::HashMap;

use clap::Args;
use shoal_schemas::{Filter, v1};

use super::Usage;

/// Which points.
#[derive(Clone, Debug, Args)]
pub(super) struct Narrow {
    /// Only points that match, such as '{"field": "year", "range": {"gte": 1990}}'
    #[arg(long, value_name = "JSON", value_parser = filter)]
    filter: Option<Filter>,
    /// Only points whose ids begin with this and a `/`
    #[arg(long)]
    tenant: Option<String>,
}

fn filter(text: &str) -> Result<Filter, Usage> {
    let json = serde_json::from_str(text)
        .map_err(|error| Usage(format!("the filter is no JSON: {error}")))?;
    Filter::from_json(&json).map_err(|error| Usage(error.to_string()))
}

impl Narrow {
    pub(super) fn filter(&self) -> Option<v1::Filter> {
        self.filter.as_ref().map(Filter::to_proto)
    }

    pub(super) fn tenant(&self) -> String {
        self.tenant.clone().unwrap_or_default()
    }
}

/// Which fields of a payload.
#[derive(Clone, Debug, Args)]
pub(super) struct Fields {
    /// Answer only this field of the payload; may be given several times
    #[arg(long, value_name = "FIELD")]
    pub(super) include: Vec<String>,
    /// Answer without this field of the payload; may be given several times
    #[arg(long, value_name = "FIELD")]
    pub(super) exclude: Vec<String>,
}

/// A payload's value as a person reads it.
pub(super) fn value(value: Option<&v1::Value>) -> serde_json::Value {
    let named = HashMap::from_iter(value.map(|value| (String::new(), value.clone())));
    match super::search::payload(&named) {
        serde_json::Value::Object(mut fields) => fields.remove("").unwrap_or_default(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::filter;

    #[test]
    fn a_filter_that_does_not_read_says_what_may_stand_there() {
        assert!(filter(r#"{"field": "year", "equals": 3}"#).is_ok());
        for text in ["year=3", r#"{"field": "year", "like": 3}"#] {
            let refused = filter(text).unwrap_err().to_string();
            assert!(refused.starts_with("the filter is no JSON") || refused.contains("equals"));
        }
    }
}
