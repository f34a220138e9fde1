//! In what two definitions of one collection differ, for a person to read.

use std::{collections::BTreeMap, fmt::Write as _};

use shoal_schemas::{
    Collection, CollectionName, FieldKind, IndexParameters,
    placement::{Labels, told},
};

/// A field in which two definitions differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field.
    pub field: &'static str,
    /// As it stands in the control topic.
    pub found: String,
    /// As it was asked for.
    pub wanted: String,
}

/// Every field in which two definitions differ, in the order of the definition.
pub(super) fn differences(found: &Collection, wanted: &Collection) -> Vec<Difference> {
    // Taken apart in full, so that a new field cannot be forgotten here.
    let Collection {
        name,
        dim,
        metric,
        partitions,
        partitioner,
        route_by_key_prefix,
        index,
        replication_factor,
        delete_retention_ms,
        max_record_bytes,
        fields,
        split_keys,
        placement,
        tenant_placement,
        reads,
        fed_by,
    } = wanted;
    let other =
        |name: &Option<CollectionName>| name.as_ref().map_or("none".into(), ToString::to_string);
    let replicas =
        |factor: Option<u16>| factor.map_or("the broker's default".into(), |n| n.to_string());
    let index_of = |i: &IndexParameters| {
        (
            i.m.to_string(),
            i.ef_construction.to_string(),
            i.ef_search.to_string(),
            i.kind.as_str().to_owned(),
        )
    };
    let (m, ef_construction, ef_search, kind) = index_of(index);
    let was = index_of(&found.index);
    let coded = |one: &Collection| format!("{:?}", one.quantization()).to_lowercase();
    // One that says nothing takes what there is.
    let quantization = match index.quantization {
        None => coded(found),
        Some(_) => coded(wanted),
    };
    let pairs = [
        ("name", found.name.to_string(), name.to_string()),
        ("dim", found.dim.to_string(), dim.to_string()),
        ("metric", snake(&found.metric), snake(metric)),
        (
            "partitions",
            found.partitions.to_string(),
            partitions.to_string(),
        ),
        ("partitioner", snake(&found.partitioner), snake(partitioner)),
        (
            "route_by_key_prefix",
            found.route_by_key_prefix.to_string(),
            route_by_key_prefix.to_string(),
        ),
        ("index.kind", was.3, kind),
        ("index.m", was.0, m),
        ("index.ef_construction", was.1, ef_construction),
        ("index.ef_search", was.2, ef_search),
        ("index.quantization", coded(found), quantization),
        (
            "replication_factor",
            replicas(found.replication_factor),
            replicas(*replication_factor),
        ),
        (
            "delete_retention_ms",
            found.delete_retention_ms.to_string(),
            delete_retention_ms.to_string(),
        ),
        (
            "max_record_bytes",
            found.max_record_bytes.to_string(),
            max_record_bytes.to_string(),
        ),
        ("fields", spelt(&found.fields), spelt(fields)),
        (
            "split_keys",
            listed_keys(&found.split_keys),
            listed_keys(split_keys),
        ),
        ("placement", told(&found.placement), told(placement)),
        (
            "tenant_placement",
            told_each(&found.tenant_placement),
            told_each(tenant_placement),
        ),
        ("reads", other(&found.reads), other(reads)),
        ("fed_by", other(&found.fed_by), other(fed_by)),
    ];
    pairs
        .into_iter()
        .filter(|(_, found, wanted)| found != wanted)
        .map(|(field, found, wanted)| Difference {
            field,
            found,
            wanted,
        })
        .collect()
}

/// Those that two collections with one topic may not differ in.
pub(super) fn log_differences(found: &Collection, wanted: &Collection) -> Vec<Difference> {
    const FREE: [&str; 11] = [
        "name",
        "metric",
        "index.kind",
        "index.m",
        "index.ef_construction",
        "index.ef_search",
        "index.quantization",
        "replication_factor",
        "fields",
        "reads",
        "fed_by",
    ];
    let mut all = differences(found, wanted);
    all.retain(|difference| !FREE.contains(&difference.field));
    all
}

/// Declared fields as the command line spells them.
fn spelt(fields: &BTreeMap<String, FieldKind>) -> String {
    if fields.is_empty() {
        return "none".into();
    }
    let all: Vec<String> = fields
        .iter()
        .map(|(name, kind)| format!("{name}={kind}"))
        .collect();
    all.join(",")
}

fn listed_keys(keys: &[String]) -> String {
    if keys.is_empty() {
        return "none".into();
    }
    // As JSON, where a comma within a key shows.
    serde_json::to_string(keys).unwrap_or_default()
}

fn told_each(placement: &BTreeMap<String, Labels>) -> String {
    if placement.is_empty() {
        return "none".into();
    }
    let all = placement.iter();
    let all: Vec<String> = all
        .map(|(tenant, labels)| format!("{tenant}: {}", told(labels)))
        .collect();
    all.join("; ")
}

/// An enum's value as the definition spells it.
fn snake(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

pub(super) fn listed(differences: &[Difference]) -> String {
    let mut text = String::new();
    for (n, difference) in differences.iter().enumerate() {
        let parted = if n == 0 { "" } else { "; " };
        let Difference {
            field,
            found,
            wanted,
        } = difference;
        // Writing to a string cannot fail.
        let _ = write!(text, "{parted}{field} is {found}, asked for was {wanted}");
    }
    text
}
