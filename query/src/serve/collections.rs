//! The gRPC service `Collections`.

use shoal_schemas::{Collection, v1};
use tonic::{Request, Response, Status};

use crate::{definitions::DefinitionsError, front::Directory, serve::status::Refusal};

/// Serves the collection verbs.
pub(crate) struct CollectionsService {
    definitions: Directory,
}

impl CollectionsService {
    pub(crate) fn new(definitions: Directory) -> Self {
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
        let found = self.definitions.find(&request.into_inner().name).await;
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
        let collections = self.definitions.list().await.map_err(Refusal::from)?;
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

    async fn set_alias(
        &self,
        request: Request<v1::SetAliasRequest>,
    ) -> Result<Response<v1::SetAliasResponse>, Status> {
        let v1::Alias { name, collection } = request.into_inner().alias.unwrap_or_default();
        let before = self.definitions.set_alias(&name, &collection).await;
        let before = before.map_err(Refusal::from)?.unwrap_or_default();
        Ok(Response::new(v1::SetAliasResponse { before }))
    }

    async fn list_aliases(
        &self,
        _request: Request<v1::ListAliasesRequest>,
    ) -> Result<Response<v1::ListAliasesResponse>, Status> {
        let aliases = self.definitions.aliases().await.map_err(Refusal::from)?;
        let aliases = aliases.into_iter();
        Ok(Response::new(v1::ListAliasesResponse {
            aliases: aliases
                .map(|(name, collection)| v1::Alias { name, collection })
                .collect(),
        }))
    }

    async fn drop_alias(
        &self,
        request: Request<v1::DropAliasRequest>,
    ) -> Result<Response<v1::DropAliasResponse>, Status> {
        let v1::DropAliasRequest { name } = request.into_inner();
        let dropped = self.definitions.drop_alias(&name).await;
        dropped.map_err(Refusal::from)?;
        Ok(Response::new(v1::DropAliasResponse {}))
    }
}
