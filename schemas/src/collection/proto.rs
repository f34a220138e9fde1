//! A collection's definition as the protobuf API carries it.
//!
//! Zeros take their defaults on the way in, so that a client names only what it cares about.

use std::collections::BTreeMap;

use super::{
    Collection, DefinitionError, FieldKind, IndexKind, IndexParameters, Metric, Partitioner,
    Quantization, default_delete_retention_ms, default_max_record_bytes,
};
use crate::{name::CollectionName, v1, vector::Dim};

const METRICS: &str = "METRIC_COSINE, METRIC_INNER_PRODUCT, METRIC_L2";
const PARTITIONERS: &str = "PARTITIONER_MURMUR2, PARTITIONER_CRC32";
const QUANTIZATIONS: &str =
    "QUANTIZATION_F32, QUANTIZATION_F16, QUANTIZATION_BF16, QUANTIZATION_I8, QUANTIZATION_I4";
const INDEX_KINDS: &str = "INDEX_KIND_HNSW, INDEX_KIND_FLAT";
const KINDS: &str = "FIELD_KIND_KEYWORD, FIELD_KIND_INTEGER, FIELD_KIND_FLOAT, FIELD_KIND_BOOLEAN, FIELD_KIND_TIMESTAMP";

impl Collection {
    /// The definition as the protobuf API carries it.
    pub fn to_proto(&self) -> v1::Collection {
        let metric = match self.metric {
            Metric::Cosine => v1::Metric::Cosine,
            Metric::InnerProduct => v1::Metric::InnerProduct,
            Metric::L2 => v1::Metric::L2,
        };
        let partitioner = match self.partitioner {
            Partitioner::Murmur2 => v1::Partitioner::Murmur2,
            Partitioner::Crc32 => v1::Partitioner::Crc32,
        };
        v1::Collection {
            name: self.name.as_str().to_owned(),
            dim: self.dim.into(),
            metric: metric.into(),
            partitions: self.partitions,
            partitioner: partitioner.into(),
            route_by_key_prefix: self.route_by_key_prefix,
            index: Some(self.index.to_proto()),
            replication_factor: self.replication_factor.unwrap_or(0).into(),
            delete_retention_ms: self.delete_retention_ms,
            max_record_bytes: self.max_record_bytes,
            fields: self
                .fields
                .iter()
                .map(|(name, kind)| (name.clone(), kind.to_proto().into()))
                .collect(),
            split_keys: self.split_keys.clone(),
            placement: self.placement.clone().into_iter().collect(),
            tenant_placement: (self.tenant_placement.iter())
                .map(|(tenant, labels)| {
                    let labels = labels.clone().into_iter().collect();
                    (tenant.clone(), v1::Labels { labels })
                })
                .collect(),
            reads: named(self.reads.as_ref()),
            fed_by: named(self.fed_by.as_ref()),
        }
    }

    /// Checks a definition that came over the protobuf API; what is zero takes its default.
    ///
    /// # Errors
    /// [`DefinitionError`] for the first fault. The metric has no default: it cannot be changed
    /// later, so nobody should get one by accident.
    pub fn from_proto(collection: v1::Collection) -> Result<Self, DefinitionError> {
        let metric = match known("metric", collection.metric, METRICS)? {
            v1::Metric::Unspecified => {
                return Err(DefinitionError::Missing {
                    field: "metric",
                    allowed: METRICS,
                });
            }
            v1::Metric::Cosine => Metric::Cosine,
            v1::Metric::InnerProduct => Metric::InnerProduct,
            v1::Metric::L2 => Metric::L2,
        };
        let partitioner = match known("partitioner", collection.partitioner, PARTITIONERS)? {
            v1::Partitioner::Unspecified | v1::Partitioner::Murmur2 => Partitioner::Murmur2,
            v1::Partitioner::Crc32 => Partitioner::Crc32,
        };
        let replicas = small("replication_factor", collection.replication_factor, 64)?;
        let checked = Self {
            name: collection.name.parse()?,
            dim: Dim::try_from(collection.dim)?,
            metric,
            partitions: collection.partitions,
            partitioner,
            route_by_key_prefix: collection.route_by_key_prefix,
            index: IndexParameters::from_proto(collection.index.unwrap_or_default())?,
            replication_factor: (replicas != 0).then_some(replicas),
            delete_retention_ms: match collection.delete_retention_ms {
                0 => default_delete_retention_ms(),
                given => given,
            },
            max_record_bytes: match collection.max_record_bytes {
                0 => default_max_record_bytes(),
                given => given,
            },
            fields: declared(collection.fields)?,
            split_keys: collection.split_keys,
            placement: collection.placement.into_iter().collect(),
            tenant_placement: (collection.tenant_placement.into_iter())
                .map(|(tenant, labels)| (tenant, labels.labels.into_iter().collect()))
                .collect(),
            reads: other(&collection.reads)?,
            fed_by: other(&collection.fed_by)?,
        };
        checked.check()?;
        Ok(checked)
    }
}

impl IndexParameters {
    fn to_proto(self) -> v1::IndexParameters {
        let quantization = match self.quantization {
            None => v1::Quantization::Unspecified,
            Some(Quantization::F32) => v1::Quantization::F32,
            Some(Quantization::F16) => v1::Quantization::F16,
            Some(Quantization::Bf16) => v1::Quantization::Bf16,
            Some(Quantization::I8) => v1::Quantization::I8,
            Some(Quantization::I4) => v1::Quantization::I4,
        };
        let kind = match self.kind {
            IndexKind::Hnsw => v1::IndexKind::Hnsw,
            IndexKind::Flat => v1::IndexKind::Flat,
        };
        v1::IndexParameters {
            kind: kind.into(),
            m: self.m.into(),
            ef_construction: self.ef_construction.into(),
            ef_search: self.ef_search.into(),
            quantization: quantization.into(),
        }
    }

    fn from_proto(index: v1::IndexParameters) -> Result<Self, DefinitionError> {
        let default = Self::default();
        let or = |given: u16, default: u16| if given == 0 { default } else { given };
        Ok(Self {
            kind: match known("index.kind", index.kind, INDEX_KINDS)? {
                v1::IndexKind::Unspecified | v1::IndexKind::Hnsw => IndexKind::Hnsw,
                v1::IndexKind::Flat => IndexKind::Flat,
            },
            m: or(small("index.m", index.m, 128)?, default.m),
            ef_construction: or(
                small("index.ef_construction", index.ef_construction, 4096)?,
                default.ef_construction,
            ),
            ef_search: or(
                small("index.ef_search", index.ef_search, 10_000)?,
                default.ef_search,
            ),
            quantization: match known("index.quantization", index.quantization, QUANTIZATIONS)? {
                v1::Quantization::Unspecified => None,
                v1::Quantization::F32 => Some(Quantization::F32),
                v1::Quantization::F16 => Some(Quantization::F16),
                v1::Quantization::Bf16 => Some(Quantization::Bf16),
                v1::Quantization::I8 => Some(Quantization::I8),
                v1::Quantization::I4 => Some(Quantization::I4),
            },
        })
    }
}

impl FieldKind {
    fn to_proto(self) -> v1::FieldKind {
        match self {
            Self::Keyword => v1::FieldKind::Keyword,
            Self::Integer => v1::FieldKind::Integer,
            Self::Float => v1::FieldKind::Float,
            Self::Boolean => v1::FieldKind::Boolean,
            Self::Timestamp => v1::FieldKind::Timestamp,
        }
    }
}

/// Another collection's name; empty is none.
fn named(name: Option<&CollectionName>) -> String {
    name.map_or(String::new(), ToString::to_string)
}

fn other(name: &str) -> Result<Option<CollectionName>, DefinitionError> {
    Ok((!name.is_empty()).then(|| name.parse()).transpose()?)
}

/// Declared fields, whose kinds have no default.
fn declared(
    fields: std::collections::HashMap<String, i32>,
) -> Result<BTreeMap<String, FieldKind>, DefinitionError> {
    let kinds = fields.into_iter().map(|(name, number)| {
        let kind = match v1::FieldKind::try_from(number) {
            Ok(v1::FieldKind::Keyword) => FieldKind::Keyword,
            Ok(v1::FieldKind::Integer) => FieldKind::Integer,
            Ok(v1::FieldKind::Float) => FieldKind::Float,
            Ok(v1::FieldKind::Boolean) => FieldKind::Boolean,
            Ok(v1::FieldKind::Timestamp) => FieldKind::Timestamp,
            Ok(v1::FieldKind::Unspecified) | Err(_) => {
                return Err(DefinitionError::FieldKind {
                    field: name.chars().take(32).collect(),
                    found: number,
                    allowed: KINDS,
                });
            }
        };
        Ok((name, kind))
    });
    kinds.collect()
}

/// An enumeration's number as its value.
fn known<E: TryFrom<i32>>(
    field: &'static str,
    found: i32,
    allowed: &'static str,
) -> Result<E, DefinitionError> {
    E::try_from(found).map_err(|_| DefinitionError::Unknown {
        field,
        found,
        allowed,
    })
}

/// A message's number as the 16 bits a definition keeps; its own range is checked later.
fn small(field: &'static str, found: u32, max: u16) -> Result<u16, DefinitionError> {
    u16::try_from(found).map_err(|_| DefinitionError::Range {
        field,
        found: found.into(),
        min: 0,
        max: max.into(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use crate::{
        Collection, IndexKind, IndexParameters, Metric, Partitioner, Quantization,
        collection::{DefinitionError, FIELD_KINDS},
        placement::Labels,
        v1,
    };

    fn minimal() -> v1::Collection {
        v1::Collection {
            name: "docs".to_owned(),
            dim: 384,
            metric: v1::Metric::Cosine.into(),
            partitions: 4,
            ..v1::Collection::default()
        }
    }

    #[test]
    fn zeros_of_a_message_take_the_defaults() {
        let expected = Collection::new(
            "docs".parse().unwrap(),
            384.try_into().unwrap(),
            Metric::Cosine,
            4,
        );
        assert_eq!(Collection::from_proto(minimal()).unwrap(), expected);
    }

    #[test]
    fn a_definition_reads_back_from_message_and_json() {
        let mut given = Collection::from_proto(minimal()).unwrap();
        given.metric = Metric::InnerProduct;
        given.partitioner = Partitioner::Crc32;
        given.route_by_key_prefix = true;
        given.index = IndexParameters {
            kind: IndexKind::Hnsw,
            m: 32,
            ef_construction: 200,
            ef_search: 10,
            quantization: Some(Quantization::I8),
        };
        given.replication_factor = Some(3);
        given.delete_retention_ms = 1;
        given.max_record_bytes = 4096;
        given.fields = FIELD_KINDS.map(|kind| (kind.to_string(), kind)).into();
        let gpu = Labels::from([("gpu".to_owned(), "true".to_owned())]);
        given.placement = Labels::from([("region".to_owned(), "eu".to_owned())]);
        given.tenant_placement = [("hot".to_owned(), gpu)].into();
        given.reads = Some("older".parse().unwrap());
        assert_eq!(Collection::from_proto(given.to_proto()).unwrap(), given);
        let json = serde_json::to_string(&given).unwrap();
        assert_eq!(serde_json::from_str::<Collection>(&json).unwrap(), given);

        let mut ranged = Collection::from_proto(minimal()).unwrap();
        ranged.split_keys = ["b", "c/d", "x"].map(str::to_owned).into();
        let back = Collection::from_proto(ranged.to_proto()).unwrap();
        assert_eq!(back, ranged);
        let json = serde_json::to_string(&ranged).unwrap();
        assert_eq!(serde_json::from_str::<Collection>(&json).unwrap(), ranged);
    }

    #[test]
    fn each_fault_of_a_message_is_named() {
        let with = |change: fn(&mut v1::Collection)| {
            let mut collection = minimal();
            change(&mut collection);
            Collection::from_proto(collection).unwrap_err()
        };
        let missing = with(|c| c.metric = 0);
        assert!(missing.to_string().contains("METRIC_COSINE"), "{missing}");
        assert!(matches!(
            missing,
            DefinitionError::Missing {
                field: "metric",
                ..
            }
        ));
        let unknown = with(|c| c.partitioner = 9);
        assert!(matches!(unknown, DefinitionError::Unknown { found: 9, .. }));
        let unknown = with(|c| c.index.get_or_insert_default().kind = 9);
        assert!(unknown.to_string().contains("INDEX_KIND_FLAT"), "{unknown}");
        for refused in [
            with(|c| c.partitions = 0),
            with(|c| c.replication_factor = 70_000),
            with(|c| c.index.get_or_insert_default().m = 3),
        ] {
            assert!(
                matches!(refused, DefinitionError::Range { .. }),
                "{refused}"
            );
        }
        let unknown = with(|c| c.fields = [("year".to_owned(), 9)].into());
        assert!(unknown.to_string().contains("`year`"), "{unknown}");
        let unsaid = with(|c| c.fields = [("year".to_owned(), 0)].into());
        assert!(
            unsaid.to_string().contains("FIELD_KIND_KEYWORD"),
            "{unsaid}"
        );
        let nameless = with(|c| c.fields = [(String::new(), 1)].into());
        assert!(matches!(nameless, DefinitionError::FieldName { .. }));
        for lineage in [
            with(|c| c.reads = "docs".into()),
            with(|c| c.fed_by = "docs".into()),
            with(|c| (c.reads, c.fed_by) = ("a".into(), "b".into())),
        ] {
            assert!(
                matches!(lineage, DefinitionError::Lineage { .. }),
                "{lineage}"
            );
        }
        let many = with(|c| c.fields = (0..65).map(|n| (n.to_string(), 1)).collect());
        assert!(matches!(many, DefinitionError::Fields { found: 65 }));
        assert!(matches!(with(|c| c.dim = 1), DefinitionError::Dim(_)));
        assert!(matches!(with(|c| c.name.clear()), DefinitionError::Name(_)));
    }
}
