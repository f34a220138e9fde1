//! Collections: what there is, who serves it, and making and dropping one.
//!
//! Reading looks at the same shard map as a search. Making and dropping go through the log and
//! return once this node has read the change back.

use shoal_schemas::{Collection, CollectionName, collection::DefinitionError, name::NameError, v1};
use shoal_topic::{
    Cluster,
    collections::{self, CreateError, Created, DropError},
    control::ControlHandle,
};

use crate::shard_map::{Maps, Shards};

/// The collection verbs. Cloning shares everything.
#[derive(Clone)]
pub struct Definitions {
    cluster: Cluster,
    control: ControlHandle,
    maps: Maps,
}

/// Why a collection verb failed.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionsError {
    /// The definitions have not been read yet.
    #[error("collections have not been read from the control topic yet; try again in a moment")]
    NotCaughtUp,
    /// There is none of that name.
    #[error("collection `{name}` does not exist; there are: {existing}")]
    Unknown {
        /// As asked for, cut where it is long.
        name: String,
        /// Names that exist, for reading.
        existing: String,
    },
    /// The request says no collection.
    #[error("request says no collection")]
    Empty,
    /// What is asked for cannot be a collection.
    #[error("collection definition is refused")]
    Definition(#[source] DefinitionError),
    /// It was not made.
    #[error("collection was not made")]
    Create(#[source] CreateError),
    /// It was not dropped.
    #[error("collection was not dropped")]
    Drop(#[source] DropError),
}

impl Definitions {
    /// The verbs over these parts.
    pub fn new(cluster: Cluster, control: ControlHandle, maps: Maps) -> Self {
        Self {
            cluster,
            control,
            maps,
        }
    }

    /// All collections, by name.
    ///
    /// # Errors
    /// [`DefinitionsError::NotCaughtUp`].
    pub fn list(&self) -> Result<Vec<Collection>, DefinitionsError> {
        let map = self.maps.now();
        if !map.is_complete() {
            return Err(DefinitionsError::NotCaughtUp);
        }
        Ok(map
            .collections()
            .map(|shards| shards.collection.clone())
            .collect())
    }

    /// One collection, and who serves its shards.
    ///
    /// # Errors
    /// [`DefinitionsError::Unknown`] and [`DefinitionsError::NotCaughtUp`].
    pub fn find(&self, name: &str) -> Result<(Collection, Vec<v1::ShardOwner>), DefinitionsError> {
        let map = self.maps.now();
        match map.find(name) {
            Some(shards) => Ok((shards.collection.clone(), owners(shards))),
            None if !map.is_complete() => Err(DefinitionsError::NotCaughtUp),
            None => Err(self.unknown(name)),
        }
    }

    /// Makes a collection, or finds that an equal one is there.
    ///
    /// # Errors
    /// [`DefinitionsError::Create`].
    pub async fn create(&self, collection: Collection) -> Result<Created, DefinitionsError> {
        collections::create(&self.cluster, &self.control, collection)
            .await
            .map_err(DefinitionsError::Create)
    }

    /// Forgets a collection, and deletes its topics if asked to.
    ///
    /// # Errors
    /// [`DefinitionsError::Drop`] and [`DefinitionsError::Unknown`].
    pub async fn drop(&self, name: &str, delete_topics: bool) -> Result<(), DefinitionsError> {
        let Ok(checked): Result<CollectionName, NameError> = name.parse() else {
            return Err(self.unknown(name));
        };
        collections::drop(&self.cluster, &self.control, &checked, delete_topics)
            .await
            .map_err(DefinitionsError::Drop)
    }

    fn unknown(&self, name: &str) -> DefinitionsError {
        DefinitionsError::Unknown {
            name: name.chars().take(128).collect(),
            existing: self.maps.now().listed_names(),
        }
    }
}

fn owners(shards: &Shards) -> Vec<v1::ShardOwner> {
    let owner = |(shard, owner): (_, &Option<crate::shard_map::Owner>)| match owner {
        None => v1::ShardOwner {
            shard,
            ..v1::ShardOwner::default()
        },
        Some(owner) => v1::ShardOwner {
            shard,
            node: owner.claim.node.clone(),
            address: owner.claim.address.clone(),
            epoch: owner.epoch.0,
        },
    };
    (0..).zip(&shards.owners).map(owner).collect()
}
