//! How a publisher writes its records.

use shoal_schemas::{
    CollectionName, RegionName,
    avro::{Framing, SCHEMA_JSON},
};
use shoal_topic::registry::{Registry, RegistryError};

/// How records are written.
#[derive(Clone, Debug)]
pub struct PublishConfig {
    /// Region named in `shoal-origin`; `None` leaves the header out, and the topic's region counts.
    pub origin: Option<RegionName>,
    /// How the Avro value is framed: by fingerprint, or by a registry's schema id.
    pub framing: Framing,
    /// Whether `shoal-version` is written; without it the record's timestamp is its version.
    pub versions: bool,
}

impl Default for PublishConfig {
    fn default() -> Self {
        Self {
            origin: None,
            framing: Framing::SingleObject,
            versions: true,
        }
    }
}

impl PublishConfig {
    /// Frames values by the id that a registry gives our schema for this collection's topic.
    ///
    /// The subject is `<topic>-value`, as Confluent's own clients name it.
    ///
    /// # Errors
    /// [`RegistryError`] if the registry does not answer or refuses the schema.
    pub async fn through(
        self,
        registry: &Registry,
        collection: &CollectionName,
    ) -> Result<Self, RegistryError> {
        let subject = format!("{}-value", collection.topic());
        let schema_id = registry.register(&subject, SCHEMA_JSON).await?;
        Ok(Self {
            framing: Framing::Confluent { schema_id },
            ..self
        })
    }
}
