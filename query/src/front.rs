//! Who answers a call: this node, from the shards it knows of, or a region that it forwards to.
//!
//! gRPC and HTTP ask here and do not know which it is.

use std::{sync::Arc, time::Duration};

use shoal_schemas::{Collection, v1};
use shoal_topic::collections::Created;
use tracing::Instrument as _;

use crate::{
    call::{Call, Deadline},
    coordinator::{Coordinator, QueryError},
    definitions::{Definitions, DefinitionsError},
    edge::{Edge, EdgeError, Forwarded, RegionState, span_of},
};

/// Who answers searches and reads. Cloning shares it.
#[derive(Clone)]
pub(crate) enum Searches {
    /// This node.
    Shards(Arc<Coordinator>),
    /// A region.
    Regions(Arc<Edge>),
}

async fn forwarded<R: Forwarded>(
    edge: &Edge,
    request: R,
    call: Call,
) -> Result<R::Answer, QueryError> {
    let span = span_of(&request, &call);
    edge.ask(request, call).instrument(span).await
}

impl Searches {
    pub(crate) async fn search(
        &self,
        request: v1::SearchRequest,
        call: Call,
    ) -> Result<v1::SearchResponse, QueryError> {
        match self {
            Self::Shards(node) => node.search(request, call).await,
            Self::Regions(edge) => forwarded(edge, request, call).await,
        }
    }

    pub(crate) async fn search_batch(
        &self,
        request: v1::SearchBatchRequest,
        call: Call,
    ) -> Result<v1::SearchBatchResponse, QueryError> {
        match self {
            Self::Shards(node) => node.search_batch(request, call).await,
            Self::Regions(edge) => forwarded(edge, request, call).await,
        }
    }

    pub(crate) async fn recommend(
        &self,
        request: v1::RecommendRequest,
        call: Call,
    ) -> Result<v1::SearchResponse, QueryError> {
        match self {
            Self::Shards(node) => node.recommend(request, call).await,
            Self::Regions(edge) => forwarded(edge, request, call).await,
        }
    }

    pub(crate) async fn get(
        &self,
        request: v1::GetRequest,
        call: Call,
    ) -> Result<v1::GetResponse, QueryError> {
        match self {
            Self::Shards(node) => node.get(request, call).await,
            Self::Regions(edge) => forwarded(edge, request, call).await,
        }
    }

    pub(crate) async fn scroll(
        &self,
        request: v1::ScrollRequest,
        call: Call,
    ) -> Result<v1::ScrollResponse, QueryError> {
        match self {
            Self::Shards(node) => node.scroll(request, call).await,
            Self::Regions(edge) => forwarded(edge, request, call).await,
        }
    }

    pub(crate) async fn count(
        &self,
        request: v1::CountRequest,
        call: Call,
    ) -> Result<v1::CountResponse, QueryError> {
        match self {
            Self::Shards(node) => node.count(request, call).await,
            Self::Regions(edge) => forwarded(edge, request, call).await,
        }
    }

    pub(crate) async fn shards_of(
        &self,
        request: v1::ShardsRequest,
        call: Call,
    ) -> Result<v1::ShardsResponse, QueryError> {
        match self {
            Self::Shards(node) => node.shards_of(request, call).await,
            Self::Regions(edge) => forwarded(edge, request, call).await,
        }
    }

    /// The regions of an edge node; none elsewhere.
    pub(crate) fn regions(&self) -> Vec<RegionState> {
        match self {
            Self::Shards(_) => Vec::new(),
            Self::Regions(edge) => edge.regions(),
        }
    }
}

/// Who knows the collections. Cloning shares it.
#[derive(Clone)]
pub(crate) enum Directory {
    /// The log that this node follows.
    Own(Definitions),
    /// A region, which is asked each time.
    Regions {
        edge: Arc<Edge>,
        /// How long it may take.
        patience: Duration,
    },
}

impl Directory {
    pub(crate) async fn list(&self) -> Result<Vec<Collection>, DefinitionsError> {
        match self {
            Self::Own(definitions) => definitions.list(),
            Self::Regions { edge, patience } => {
                let asked = edge.collections(Deadline::within(*patience)).await;
                let found = asked.map_err(DefinitionsError::Edge)?;
                found.into_iter().map(read).collect()
            }
        }
    }

    pub(crate) async fn find(
        &self,
        name: &str,
    ) -> Result<(Collection, Vec<v1::ShardOwner>), DefinitionsError> {
        match self {
            Self::Own(definitions) => definitions.find(name),
            Self::Regions { edge, patience } => {
                let asked = edge.collection(name, Deadline::within(*patience)).await;
                let found = asked.map_err(DefinitionsError::Edge)?;
                let collection = found.collection.ok_or_else(malformed)?;
                Ok((read(collection)?, found.shards))
            }
        }
    }

    pub(crate) async fn create(&self, collection: Collection) -> Result<Created, DefinitionsError> {
        match self {
            Self::Own(definitions) => definitions.create(collection).await,
            Self::Regions { .. } => Err(DefinitionsError::OnEdge),
        }
    }

    pub(crate) async fn drop(
        &self,
        name: &str,
        delete_topics: bool,
    ) -> Result<(), DefinitionsError> {
        match self {
            Self::Own(definitions) => definitions.drop(name, delete_topics).await,
            Self::Regions { .. } => Err(DefinitionsError::OnEdge),
        }
    }

    pub(crate) async fn aliases(&self) -> Result<Vec<(String, String)>, DefinitionsError> {
        match self {
            Self::Own(definitions) => definitions.aliases(),
            Self::Regions { edge, patience } => {
                let asked = edge.aliases(Deadline::within(*patience)).await;
                let found = asked.map_err(DefinitionsError::Edge)?.into_iter();
                Ok(found.map(|one| (one.name, one.collection)).collect())
            }
        }
    }

    pub(crate) async fn set_alias(
        &self,
        name: &str,
        collection: &str,
    ) -> Result<Option<String>, DefinitionsError> {
        match self {
            Self::Own(definitions) => definitions.set_alias(name, collection).await,
            Self::Regions { .. } => Err(DefinitionsError::OnEdge),
        }
    }

    pub(crate) async fn drop_alias(&self, name: &str) -> Result<(), DefinitionsError> {
        match self {
            Self::Own(definitions) => definitions.drop_alias(name).await,
            Self::Regions { .. } => Err(DefinitionsError::OnEdge),
        }
    }
}

fn read(collection: v1::Collection) -> Result<Collection, DefinitionsError> {
    Collection::from_proto(collection).map_err(|_| malformed())
}

fn malformed() -> DefinitionsError {
    DefinitionsError::Edge(EdgeError::Malformed)
}
