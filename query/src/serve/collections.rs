//! The gRPC service `Collections`.

use shoal_schemas::{Collection, v1};
use tonic::{Request, Response, Status};

use crate::{
    definitions::{Definitions, DefinitionsError},
    serve::status::Refusal,
};

/// Serves the collection verbs.
pub(crate) struct CollectionsService {
    definitions: Definitions,
}

impl CollectionsService {
    pub(crate) fn new(definitions: Definitions) -> Self {
        Self { definitions }
    }
}

fn checked(collection: Option<v1::Collection>) -> Result<Collection, DefinitionsError> {
    let collection = collection.ok_or(DefinitionsError::Empty)?;
    Collection::from_proto(collection).map_err(DefinitionsError::Definition)
}

#[tonic::async_trait]
impl v1::collections_server::Collections for CollectionsService {
    async fn create_collection(
        &self,
        request: Request<v1::CreateCollectionRequest>,
    ) -> Result<Response<v1::CreateCollectionResponse>, Status> {
        let wanted = checked(request.into_inner().collection).map_err(Refusal::from)?;
        let made = self
            .definitions
            .create(wanted)
            .await
            .map_err(Refusal::from)?;
        Ok(Response::new(v1::CreateCollectionResponse {
            collection: Some(made.collection.to_proto()),
            created: made.created,
        }))
    }

    async fn get_collection(
        &self,
        request: Request<v1::GetCollectionRequest>,
    ) -> Result<Response<v1::GetCollectionResponse>, Status> {
        let found = self.definitions.find(&request.into_inner().name);
        let (collection, shards) = found.map_err(Refusal::from)?;
        Ok(Response::new(v1::GetCollectionResponse {
            collection: Some(collection.to_proto()),
            shards,
        }))
    }

    async fn list_collections(
        &self,
        _request: Request<v1::ListCollectionsRequest>,
    ) -> Result<Response<v1::ListCollectionsResponse>, Status> {
        let collections = self.definitions.list().map_err(Refusal::from)?;
        Ok(Response::new(v1::ListCollectionsResponse {
            collections: collections.iter().map(Collection::to_proto).collect(),
        }))
    }

    async fn drop_collection(
        &self,
        request: Request<v1::DropCollectionRequest>,
    ) -> Result<Response<v1::DropCollectionResponse>, Status> {
        let v1::DropCollectionRequest { name, delete_topic } = request.into_inner();
        let dropped = self.definitions.drop(&name, delete_topic).await;
        dropped.map_err(Refusal::from)?;
        Ok(Response::new(v1::DropCollectionResponse {}))
    }
}
