//! Collections: what there is, who serves it, and making and dropping one.
//!
//! Reading looks at the same shard map as a search. Making and dropping go through the log and
//! return once this node has read the change back.

use shoal_schemas::{
    Collection, CollectionName, Partition, collection::DefinitionError, name::NameError, v1,
};
use shoal_topic::{
    Cluster,
    collections::{self, AliasError, CreateError, Created, DropError, Taken},
    control::ControlHandle,
};

use crate::{
    edge::EdgeError,
    shard_map::{Maps, Replica, Shards},
};

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
    #[error(
        "collections have not been read yet from the control topic, or where query.map.source says; try again in a moment"
    )]
    NotCaughtUp,
    /// This node has no control topic to write to.
    #[error(
        "this query node has no Kafka (query.map.source), so it changes no collection; ask one that has, the gateway, or `shoal collection`"
    )]
    NoKafka,
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
    /// What the regions of an edge node did.
    #[error(transparent)]
    Edge(EdgeError),
    /// An edge node changes nothing.
    #[error(
        "an edge node changes no collections and no aliases; ask a gateway or a query node of each region"
    )]
    OnEdge,
    /// A name that no alias can have.
    #[error("alias is refused")]
    AliasName(#[source] NameError),
    /// An alias was not set or dropped.
    #[error("alias was not changed")]
    Alias(#[source] AliasError),
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
    /// [`DefinitionsError::Create`] and [`DefinitionsError::NoKafka`].
    pub async fn create(&self, collection: Collection) -> Result<Created, DefinitionsError> {
        self.can_change()?;
        collections::create(&self.cluster, &self.control, collection)
            .await
            .map_err(DefinitionsError::Create)
    }

    /// Forgets a collection, and deletes its topics if asked to.
    ///
    /// # Errors
    /// [`DefinitionsError::Drop`], [`DefinitionsError::Unknown`] and [`DefinitionsError::NoKafka`].
    pub async fn drop(&self, name: &str, delete_topics: bool) -> Result<(), DefinitionsError> {
        self.can_change()?;
        let Ok(checked): Result<CollectionName, NameError> = name.parse() else {
            return Err(self.unknown(name));
        };
        collections::drop(&self.cluster, &self.control, &checked, delete_topics)
            .await
            .map_err(DefinitionsError::Drop)
    }

    fn can_change(&self) -> Result<(), DefinitionsError> {
        if self.control.is_absent() {
            return Err(DefinitionsError::NoKafka);
        }
        Ok(())
    }

    /// Every alias with what it stands for, by name.
    ///
    /// # Errors
    /// [`DefinitionsError::NotCaughtUp`].
    pub fn aliases(&self) -> Result<Vec<(String, String)>, DefinitionsError> {
        let map = self.maps.now();
        if !map.is_complete() {
            return Err(DefinitionsError::NotCaughtUp);
        }
        let all = map.aliases();
        Ok(all
            .map(|(alias, target)| (alias.to_owned(), target.to_owned()))
            .collect())
    }

    /// Has a name stand for a collection, and says what it stood for before.
    ///
    /// # Errors
    /// [`DefinitionsError::AliasName`], [`DefinitionsError::Alias`] and [`DefinitionsError::NoKafka`].
    pub async fn set_alias(
        &self,
        name: &str,
        collection: &str,
    ) -> Result<Option<String>, DefinitionsError> {
        self.can_change()?;
        let name: CollectionName = name.parse().map_err(DefinitionsError::AliasName)?;
        let Ok(target): Result<CollectionName, NameError> = collection.parse() else {
            return Err(self.unknown(collection));
        };
        let before = collections::set_alias(&self.control, &name, &target, Taken::Refuse).await;
        Ok(before.map_err(DefinitionsError::Alias)?.map(String::from))
    }

    /// Takes an alias away.
    ///
    /// # Errors
    /// [`DefinitionsError::AliasName`], [`DefinitionsError::Alias`] and [`DefinitionsError::NoKafka`].
    pub async fn drop_alias(&self, name: &str) -> Result<(), DefinitionsError> {
        self.can_change()?;
        let name: CollectionName = name.parse().map_err(DefinitionsError::AliasName)?;
        let dropped = collections::drop_alias(&self.control, &name).await;
        dropped.map_err(DefinitionsError::Alias)
    }

    fn unknown(&self, name: &str) -> DefinitionsError {
        DefinitionsError::Unknown {
            name: name.chars().take(128).collect(),
            existing: self.maps.now().listed_names(),
        }
    }
}

fn owners(shards: &Shards) -> Vec<v1::ShardOwner> {
    let told = |replica: &Replica| v1::ShardReplica {
        set: (replica.set.as_ref()).map_or(String::new(), ToString::to_string),
        node: replica.claim.node.clone(),
        address: replica.claim.address.clone(),
        epoch: replica.epoch.0,
        ready: replica.claim.ready,
    };
    let owner = |shard: Partition| {
        let owner = shards.owner(shard);
        v1::ShardOwner {
            shard: shard.0,
            node: owner.map_or(String::new(), |owner| owner.claim.node.clone()),
            address: owner.map_or(String::new(), |owner| owner.claim.address.clone()),
            epoch: owner.map_or(0, |owner| owner.epoch.0),
            replicas: shards.replicas(shard).iter().map(told).collect(),
        }
    };
    shards.numbers().map(owner).collect()
}
