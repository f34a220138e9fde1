//! What a collection is: the shape of its vectors, its partitions, its index.

mod field;
mod proto;
mod ranges;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    name::CollectionName,
    placement::{self, Labels, PlacementError},
    vector::{Dim, DimError},
};

pub use field::{FIELD_KINDS, FieldKind, FieldKindError, MAX_DECLARED_FIELDS};
pub use ranges::SplitError;

/// How near two vectors are. Smaller is nearer in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// 1 - cosine similarity, 0 to 2.
    Cosine,
    /// 1 - inner product.
    InnerProduct,
    /// Squared Euclidean distance.
    L2,
}

/// How a key picks its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partitioner {
    /// The Java client's default.
    Murmur2,
    /// librdkafka's default, `consistent_random`.
    Crc32,
}

/// How the graph keeps its copy of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantization {
    /// 4 bytes a component.
    F32,
    /// 2 bytes, 11 significant bits.
    F16,
    /// 2 bytes, 8 significant bits, the range of f32.
    Bf16,
    /// 1 byte: the vector is rotated first, so that no component is much larger than the others.
    I8,
    /// Half a byte, likewise. More candidates are re-scored for it.
    I4,
}

/// Fewest components with which codes of half a byte say enough: what rounding adds to a distance falls
/// with the root of their number. Measured with 384.
const DIM_FOR_I4: u32 = 256;

/// The least number of candidates that are re-scored where every row was looked at. Of the true ten nearest of 20,000
/// all were among the first 50 by any of these codes.
const FLAT_RESCORED: u32 = 50;

impl Quantization {
    /// What is taken where a definition says nothing: the fastest that keeps recall. Under cosine all
    /// vectors have one length, so that few steps suffice.
    pub fn suited(dim: Dim, metric: Metric) -> Self {
        match metric {
            Metric::Cosine if u32::from(dim) >= DIM_FOR_I4 => Self::I4,
            Metric::Cosine | Metric::InnerProduct | Metric::L2 => Self::I8,
        }
    }

    /// How many candidates' exact distances are computed for `k` hits of all rows.
    ///
    /// Measured on 116,659 rows of 384 components, k = 10, against all rows: of the true ten nearest
    /// 1.0000 are among the first 16 by codes of one byte; by codes of half a byte .9983 are among the
    /// first 16, and .9997 among the first 20.
    pub fn rescored(self, k: u32) -> u32 {
        let more = match self {
            Self::I4 => (k - k / 4).max(8),
            Self::I8 | Self::Bf16 | Self::F16 | Self::F32 => (k / 2).max(6),
        };
        k.saturating_add(more)
    }
}

/// How rows are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexKind {
    /// By a graph, of which a search meets a few thousand rows however many there are: nearly exact.
    #[default]
    Hnsw,
    /// By looking at all of them: no edges are made or kept, and a search takes longer with every row. What is
    /// missed is what codes hide, of which so many candidates are re-scored that it is next to nothing.
    Flat,
}

impl IndexKind {
    /// As definitions and the command line spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hnsw => "hnsw",
            Self::Flat => "flat",
        }
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What is built of a shard's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IndexParameters {
    /// Its kind. Default a graph. Where there is none, the parameters of a graph have to be the defaults.
    #[serde(skip_serializing_if = "IndexKind::is_default")]
    pub kind: IndexKind,
    /// Edges a node, 4 to 128. Default 16. More costs memory and build time and raises recall.
    pub m: u16,
    /// Beam width while building, 8 to 4096. Default 128. More builds slower, better edges.
    pub ef_construction: u16,
    /// Beam width of a search that names none, 1 to 10,000. Default 96.
    pub ef_search: u16,
    /// The copy of the vectors that searches go by. Default none: what suits the vectors
    /// ([`Quantization::suited`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
}

impl Default for IndexParameters {
    fn default() -> Self {
        Self {
            kind: IndexKind::default(),
            m: 16,
            ef_construction: 128,
            ef_search: 96,
            quantization: None,
        }
    }
}

impl IndexParameters {
    /// The same codes for another kind of index, with that one's own parameters.
    #[must_use]
    pub fn of_kind(self, kind: IndexKind) -> Self {
        match kind == self.kind {
            true => self,
            false => Self {
                kind,
                quantization: self.quantization,
                ..Self::default()
            },
        }
    }

    /// Neighbours that a new row chooses on each level of the graph; 0 where there is none.
    pub fn edges(&self) -> usize {
        match self.kind {
            IndexKind::Hnsw => usize::from(self.m).max(2),
            IndexKind::Flat => 0,
        }
    }

    fn check(&self) -> Result<(), DefinitionError> {
        let none = Self::default();
        let of_graphs = [
            ("index.m", self.m, none.m),
            (
                "index.ef_construction",
                self.ef_construction,
                none.ef_construction,
            ),
            ("index.ef_search", self.ef_search, none.ef_search),
        ];
        let said = of_graphs.into_iter().find(|(_, is, none)| is != none);
        match (self.kind, said) {
            (IndexKind::Flat, Some((field, ..))) => Err(DefinitionError::NoGraph { field }),
            (IndexKind::Flat | IndexKind::Hnsw, _) => Ok(()),
        }
    }

    /// The quantization of such vectors' codes.
    pub fn quantization(&self, dim: Dim, metric: Metric) -> Quantization {
        self.quantization
            .unwrap_or_else(|| Quantization::suited(dim, metric))
    }
}

/// Definition of a collection, as the control topic keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collection {
    /// Its name.
    pub name: CollectionName,
    /// Components a vector.
    pub dim: Dim,
    /// Its distance.
    pub metric: Metric,
    /// Shards, 1 to 4096. Fixed once made: another count would move keys.
    pub partitions: u32,
    /// How a key picks its partition.
    pub partitioner: Partitioner,
    /// Whether only the key's part before the first `/` picks the partition.
    #[serde(default)]
    pub route_by_key_prefix: bool,
    /// What is built of its rows.
    #[serde(default)]
    pub index: IndexParameters,
    /// Replicas of the topic; `None` = the broker's default.
    #[serde(default)]
    pub replication_factor: Option<u16>,
    /// How long a tombstone outlives compaction, milliseconds.
    #[serde(default = "default_delete_retention_ms")]
    pub delete_retention_ms: u64,
    /// Largest record taken, key and value, bytes.
    #[serde(default = "default_max_record_bytes")]
    pub max_record_bytes: u32,
    /// Payload fields that searches can filter and group by. Default none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, FieldKind>,
    /// Where ranges of ids part, one less than there are shards. Default none: ids are hashed.
    ///
    /// Ids from one split key up to the next are one shard, so ids that begin alike stay together.
    /// Fixed once made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub split_keys: Vec<String>,
    /// Labels that a node has to have to be given a shard of it. Default none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub placement: Labels,
    /// Further labels for the shards that hold ids of a tenant, by tenant. Default none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tenant_placement: BTreeMap<String, Labels>,
    /// The collection whose topic it reads; `None` = its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reads: Option<CollectionName>,
    /// The collection whose records were copied into its topic: tokens of that one's writes hold here,
    /// by key and version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fed_by: Option<CollectionName>,
}

/// 7 days: a shard or region away for less sees every delete.
pub fn default_delete_retention_ms() -> u64 {
    7 * 24 * 60 * 60 * 1000
}

/// Kafka's own usual limit of a message.
pub fn default_max_record_bytes() -> u32 {
    1 << 20
}

/// Why a definition is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// The name.
    #[error("collection name is refused")]
    Name(#[from] crate::name::NameError),
    /// The dimension.
    #[error("collection dimension is refused")]
    Dim(#[from] DimError),
    /// A field is missing.
    #[error("collection says no {field}; set one of {allowed}")]
    Missing {
        /// The field's name.
        field: &'static str,
        /// What may stand there.
        allowed: &'static str,
    },
    /// An enumeration's number that this version does not know.
    #[error("{field} has the unknown number {found}; set one of {allowed}")]
    Unknown {
        /// The field's name.
        field: &'static str,
        /// As given.
        found: i32,
        /// What may stand there.
        allowed: &'static str,
    },
    /// A kind of field that this version does not know.
    #[error("field `{field}` has the unknown kind {found}; set one of {allowed}")]
    FieldKind {
        /// The field's name.
        field: String,
        /// As given.
        found: i32,
        /// What may stand there.
        allowed: &'static str,
    },
    /// Too many fields.
    #[error("collection declares {found} fields, allowed are {MAX_DECLARED_FIELDS}")]
    Fields {
        /// As given.
        found: usize,
    },
    /// A field's empty or overlong name.
    #[error(
        "field `{name_start}` has a name of {name_bytes} bytes, allowed are 1 to {}",
        crate::payload::MAX_NAME_BYTES
    )]
    FieldName {
        /// The name's first characters.
        name_start: String,
        /// Its length.
        name_bytes: usize,
    },
    /// A parameter of a graph, where there is none.
    #[error(
        "{field} is not the default, and a flat index has no graph; leave it out, or make it an hnsw index"
    )]
    NoGraph {
        /// The field's name.
        field: &'static str,
    },
    /// Its split keys.
    #[error(transparent)]
    Splits(#[from] SplitError),
    /// Its placement.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// It is to be another generation of itself, or of two.
    #[error("collection `{name}` {why}")]
    Lineage {
        /// Its name.
        name: CollectionName,
        /// What is wrong.
        why: &'static str,
    },
    /// A number is out of range.
    #[error("{field} is {found}, allowed are {min} to {max}")]
    Range {
        /// The field's name.
        field: &'static str,
        /// As given.
        found: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
}

impl Collection {
    /// A definition with everything at its default.
    pub fn new(name: CollectionName, dim: Dim, metric: Metric, partitions: u32) -> Self {
        Self {
            name,
            dim,
            metric,
            partitions,
            partitioner: Partitioner::Murmur2,
            route_by_key_prefix: false,
            index: IndexParameters::default(),
            replication_factor: None,
            delete_retention_ms: default_delete_retention_ms(),
            max_record_bytes: default_max_record_bytes(),
            fields: BTreeMap::new(),
            split_keys: Vec::new(),
            placement: Labels::new(),
            tenant_placement: BTreeMap::new(),
            reads: None,
            fed_by: None,
        }
    }

    /// The collection whose topic holds its records: itself, unless it reads another one's.
    pub fn home(&self) -> &CollectionName {
        self.reads.as_ref().unwrap_or(&self.name)
    }

    /// How the copy of a vector is kept that searches go by.
    pub fn quantization(&self) -> Quantization {
        self.index.quantization(self.dim, self.metric)
    }

    /// How many candidates' exact distances are computed for `k` hits of all rows.
    pub fn rescored(&self, k: u32) -> u32 {
        let own = self.quantization().rescored(k);
        match self.index.kind {
            IndexKind::Hnsw => own,
            IndexKind::Flat => own.max(FLAT_RESCORED),
        }
    }

    /// The topic that holds its records.
    pub fn topic(&self) -> String {
        self.home().topic()
    }

    /// Whether the part of an id before its first `/` decides, alone or by its range, which shards
    /// the id can be in: whether a tenant can be asked for.
    pub fn has_tenants(&self) -> bool {
        self.route_by_key_prefix || !self.split_keys.is_empty()
    }

    /// Checks every number that has a range, the split keys, the placement and the declared fields.
    ///
    /// # Errors
    /// [`DefinitionError`] for the first fault.
    pub fn check(&self) -> Result<(), DefinitionError> {
        let ranges = [
            ("partitions", u64::from(self.partitions), 1, 4096),
            ("index.m", u64::from(self.index.m), 4, 128),
            (
                "index.ef_construction",
                u64::from(self.index.ef_construction),
                8,
                4096,
            ),
            (
                "index.ef_search",
                u64::from(self.index.ef_search),
                1,
                10_000,
            ),
            (
                "max_record_bytes",
                u64::from(self.max_record_bytes),
                256,
                64 << 20,
            ),
            (
                "replication_factor",
                u64::from(self.replication_factor.unwrap_or(1)),
                1,
                64,
            ),
        ];
        for (field, found, min, max) in ranges {
            if !(min..=max).contains(&found) {
                return Err(DefinitionError::Range {
                    field,
                    found,
                    min,
                    max,
                });
            }
        }
        self.index.check()?;
        ranges::check(self)?;
        placement::check(self)?;
        let why = match (&self.reads, &self.fed_by) {
            (Some(other), _) if *other == self.name => Some("cannot read itself"),
            (_, Some(other)) if *other == self.name => Some("cannot be fed by itself"),
            (Some(_), Some(_)) => Some("either reads another's topic or is fed from it, not both"),
            _ => None,
        };
        if let Some(why) = why {
            let name = self.name.clone();
            return Err(DefinitionError::Lineage { name, why });
        }
        field::check(&self.fields)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{Collection, DefinitionError, IndexKind, IndexParameters, Metric, Quantization};

    #[test]
    fn what_suits_depends_on_the_vectors_and_may_be_said() {
        let of = |dim: u32, metric| {
            let name = "docs".parse().unwrap();
            Collection::new(name, dim.try_into().unwrap(), metric, 1)
        };
        let cases = [
            (384, Metric::Cosine, Quantization::I4),
            (256, Metric::Cosine, Quantization::I4),
            (255, Metric::Cosine, Quantization::I8),
            (384, Metric::L2, Quantization::I8),
            (384, Metric::InnerProduct, Quantization::I8),
        ];
        for (dim, metric, expected) in cases {
            let mut collection = of(dim, metric);
            assert_eq!(collection.quantization(), expected, "{dim} {metric:?}");
            for said in [None, Some(Quantization::F32), Some(Quantization::I4)] {
                collection.index.quantization = said;
                let sent = Collection::from_proto(collection.to_proto()).unwrap();
                assert_eq!(sent, collection);
                let json = serde_json::to_string(&collection).unwrap();
                let read: Collection = serde_json::from_str(&json).unwrap();
                assert_eq!(read, collection);
            }
        }
    }

    #[test]
    fn a_flat_index_has_no_parameters_of_a_graph() {
        let mut collection = Collection::new(
            "docs".parse().unwrap(),
            384.try_into().unwrap(),
            Metric::Cosine,
            1,
        );
        let json = serde_json::to_string(&collection).unwrap();
        assert!(
            !json.contains("kind"),
            "as versions knew it that had one kind: {json}"
        );
        collection.index = IndexParameters {
            m: 32,
            quantization: Some(Quantization::F16),
            ..IndexParameters::default()
        };
        let graph = collection.index;
        assert_eq!((graph.edges(), graph.of_kind(IndexKind::Hnsw)), (32, graph));
        collection.index.kind = IndexKind::Flat;
        let refused = collection.check().unwrap_err();
        assert_eq!(refused, DefinitionError::NoGraph { field: "index.m" });
        collection.index = graph.of_kind(IndexKind::Flat);
        assert_eq!(collection.check(), Ok(()));
        assert_eq!(collection.index.quantization, graph.quantization);
        assert_eq!(collection.index.edges(), 0);
        let json = serde_json::to_string(&collection).unwrap();
        assert!(json.contains(r#""kind":"flat""#), "{json}");
        assert_eq!(
            serde_json::from_str::<Collection>(&json).unwrap(),
            collection
        );
        let sent = Collection::from_proto(collection.to_proto()).unwrap();
        assert_eq!(sent, collection);
    }

    #[test]
    fn coarser_codes_have_more_candidates_re_scored() {
        let of = |k| [Quantization::I8, Quantization::I4].map(|one| one.rescored(k));
        assert_eq!(of(1), [7, 9]);
        assert_eq!(of(10), [16, 18]);
        assert_eq!(of(100), [150, 175]);
        assert_eq!(of(u32::MAX), [u32::MAX; 2]);
        let dim = 384.try_into().unwrap();
        let mut flat = Collection::new("docs".parse().unwrap(), dim, Metric::Cosine, 1);
        assert_eq!(flat.rescored(10), 18);
        flat.index.kind = IndexKind::Flat;
        assert_eq!([1, 10, 100].map(|k| flat.rescored(k)), [50, 50, 175]);
    }
}
