//! Writer schemas: which one wrote a value, and whether it is ours.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock},
};

use apache_avro::{Schema, schema::ResolvedSchema};

use super::{
    canonical,
    plan::{Node, PlanError},
};

/// Our schema, as it is registered and published.
pub const SCHEMA_JSON: &str = include_str!("../../avro/point.avsc");

/// Every version there ever was, the newest last. A version that was released never changes.
const HISTORY: [&str; 1] = [include_str!("../../avro/history/1.avsc")];

static KNOWN: LazyLock<Known> =
    LazyLock::new(|| Known::new(&HISTORY, SCHEMA_JSON).expect("our own schemas parse"));

/// Schemas that single-object fingerprints are looked up in.
struct Known {
    current: u64,
    by_fingerprint: HashMap<u64, WriterSchema>,
}

impl Known {
    fn new(history: &[&str], current: &str) -> Result<Self, SchemaError> {
        let mut by_fingerprint = HashMap::new();
        for json in history.iter().chain([&current]) {
            let schema = WriterSchema::parse(json)?;
            by_fingerprint.insert(schema.fingerprint, schema);
        }
        Ok(Self {
            current: WriterSchema::parse(current)?.fingerprint,
            by_fingerprint,
        })
    }
}

/// CRC-64-AVRO of our schema, which single-object values start with.
pub fn fingerprint() -> u64 {
    KNOWN.current
}

/// The schema of that fingerprint, if it is one of our versions.
pub(super) fn known(fingerprint: u64) -> Option<&'static WriterSchema> {
    KNOWN.by_fingerprint.get(&fingerprint)
}

/// Text that is no Avro schema, or one that no value is decoded with.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// It does not parse.
    #[error("text is no Avro schema")]
    Parse(#[from] apache_avro::Error),
    /// It parses, but recurses or unfolds into too much.
    #[error("Avro schema cannot be decoded with")]
    Plan(#[from] PlanError),
}

/// A schema that values were written with, ready to decode them.
pub struct WriterSchema {
    name: String,
    fingerprint: u64,
    layout: Layout,
}

/// How values of a schema are read.
pub(super) enum Layout {
    /// Equal to ours in canonical form: by hand.
    Ours,
    /// By walking the schema.
    Other(Node),
}

impl WriterSchema {
    /// Parses a schema, complete in itself.
    ///
    /// Any schema is taken; whether its values are points shows when one is decoded.
    ///
    /// # Errors
    /// [`SchemaError`] if it does not parse, refers to itself, or is absurdly large.
    pub fn parse(json: &str) -> Result<Self, SchemaError> {
        static OURS: LazyLock<String> = LazyLock::new(|| {
            let ours = Schema::parse_str(SCHEMA_JSON).expect("our own schema parses");
            canonical::form(&ours)
        });
        let schema = Schema::parse_str(json)?;
        let form = canonical::form(&schema);
        let layout = if form == *OURS {
            Layout::Ours
        } else {
            let names = ResolvedSchema::new(&schema)?;
            Layout::Other(Node::compile(&schema, names.get_names())?)
        };
        Ok(Self {
            name: schema.name().map_or_else(
                || json.chars().take(40).collect(),
                |name| name.fullname(None),
            ),
            fingerprint: canonical::fingerprint(&form),
            layout,
        })
    }

    /// Whether it equals ours in canonical form, so that values take the fast path.
    pub fn is_ours(&self) -> bool {
        matches!(self.layout, Layout::Ours)
    }

    /// CRC-64-AVRO of its canonical form.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Its full name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.layout
    }
}

impl fmt::Debug for WriterSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriterSchema")
            .field("name", &self.name)
            .field("fingerprint", &format_args!("{:016x}", self.fingerprint))
            .field("is_ours", &self.is_ours())
            .finish()
    }
}

/// Finds writer schemas by the ids of the Confluent wire format.
pub trait WriterSchemas: Send + Sync {
    /// The schema of an id. May wait for a registry, and should remember what it learnt.
    ///
    /// # Errors
    /// [`LookupError`], which tells a wrong id from a registry that does not answer.
    fn by_id(&self, id: u32) -> Result<Arc<WriterSchema>, LookupError>;
}

/// Why the schema of an id is not at hand.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// There is none: the record is at fault.
    #[error("schema id {id} is unknown to {registry}")]
    Unknown {
        /// The id.
        id: u32,
        /// Who was asked, or what to configure.
        registry: String,
    },
    /// There is one, but it decodes nothing: the record is at fault.
    #[error("schema id {id} is not usable")]
    Unusable {
        /// The id.
        id: u32,
        /// Why.
        #[source]
        source: SchemaError,
    },
    /// Nobody answered: wait, then ask again.
    #[error("schema id {id} cannot be looked up now")]
    Unavailable {
        /// The id.
        id: u32,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Knows no id: for topics without a registry.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRegistry;

impl WriterSchemas for NoRegistry {
    fn by_id(&self, id: u32) -> Result<Arc<WriterSchema>, LookupError> {
        let registry = "this node, which has no schema registry; configure the registry's URL, or \
                        write Avro single-object encoding";
        Err(LookupError::Unknown {
            id,
            registry: registry.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{
        HISTORY, Known, LookupError, NoRegistry, SCHEMA_JSON, WriterSchema, WriterSchemas,
    };

    /// Values written with a released version stay in topics for ever.
    #[test]
    fn the_schema_changes_only_together_with_its_history() {
        let newest = WriterSchema::parse(HISTORY[HISTORY.len() - 1]).unwrap();
        assert!(
            newest.is_ours(),
            "a changed schema needs a file in avro/history"
        );
        assert_eq!(
            HISTORY.len(),
            1,
            "a new version needs its golden fingerprint here"
        );
        let golden = 0xba31_cde2_2729_0ba6;
        assert_eq!(
            WriterSchema::parse(HISTORY[0]).unwrap().fingerprint(),
            golden
        );
    }

    #[test]
    fn every_file_of_the_history_is_known() {
        let folder = format!(
            "{}/avro/history",
            std::env::var("CARGO_MANIFEST_DIR").unwrap()
        );
        assert_eq!(std::fs::read_dir(folder).unwrap().count(), HISTORY.len());
    }

    #[test]
    fn an_older_version_is_found_by_its_fingerprint() {
        let older = include_str!("../../tests/fixtures/schemas/older.avsc");
        let known = Known::new(&[older, HISTORY[0]], SCHEMA_JSON).unwrap();
        let older = WriterSchema::parse(older).unwrap();
        assert_ne!(older.fingerprint(), known.current);
        assert!(!known.by_fingerprint[&older.fingerprint()].is_ours());
        assert!(known.by_fingerprint[&known.current].is_ours());
    }

    #[test]
    fn without_a_registry_the_error_says_what_to_configure() {
        let refused = NoRegistry.by_id(7).unwrap_err();
        assert!(matches!(refused, LookupError::Unknown { id: 7, .. }));
        assert!(refused.to_string().contains("registry's URL"), "{refused}");
    }
}
