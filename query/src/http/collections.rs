//! `/v1/collections`: list, read, make and drop.

use axum::{
    body::Bytes,
    extract::{
        Path, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
};
use shoal_schemas::{CollectionName, collection::DefinitionError, v1};

use crate::{
    definitions::DefinitionsError,
    http::{
        Api, Failure,
        answer::{self, Owner},
        asked, call, json, read,
        request::{Definition, Drop, Timing},
    },
    serve::status::Refusal,
};

pub(crate) async fn list(State(api): State<Api>) -> Result<Response, Failure> {
    let collections = api.definitions.list().await?;
    Ok(json(&answer::Collections { collections }))
}

pub(crate) async fn find(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    let (collection, owners) = api.definitions.find(&name).await?;
    Ok(json(&answer::Found {
        collection,
        shards: owners.iter().map(Owner::from).collect(),
    }))
}

pub(crate) async fn shards(
    State(api): State<Api>,
    Path(collection): Path<String>,
    query: Result<Query<Timing>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let call = call(&api, &headers, asked(query)?.timeout_ms.as_deref())?;
    let request = v1::ShardsRequest { collection };
    let served = api.coordinator.shards_of(request, call).await?;
    Ok(json(&answer::Shards {
        shards: served.shards.iter().map(answer::Served::from).collect(),
    }))
}

pub(crate) async fn create(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let name: CollectionName = (name.parse())
        .map_err(|error| DefinitionsError::Definition(DefinitionError::Name(error)))?;
    let wanted: Definition = read(body)?;
    if let Some(other) = wanted
        .name
        .as_deref()
        .filter(|other| *other != name.as_str())
    {
        let told = format!("path names collection `{name}`, body names `{other}`; send one name");
        return Err(Refusal::invalid(told).into());
    }
    let made = api.definitions.create(wanted.named(name)).await?;
    let status = if made.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let body = json(&answer::Created {
        collection: made.collection,
        created: made.created,
    });
    Ok((status, body).into_response())
}

pub(crate) async fn drop(
    State(api): State<Api>,
    Path(name): Path<String>,
    query: Result<Query<Drop>, QueryRejection>,
) -> Result<Response, Failure> {
    let wanted = asked(query)?;
    api.definitions.drop(&name, wanted.delete_topic).await?;
    Ok(json(&serde_json::json!({})))
}
