//! `/v1/aliases`: other names of collections, listed, set and dropped.

use axum::{
    body::Bytes,
    extract::{Path, State, rejection::BytesRejection},
    response::Response,
};

use crate::{
    http::{
        Api, Failure,
        answer::{Alias, AliasSet, Aliases},
        json, read,
        request::AliasTarget,
    },
    serve::status::Refusal,
};

pub(crate) async fn list(State(api): State<Api>) -> Result<Response, Failure> {
    let aliases = api.definitions.aliases().await?;
    let aliases = aliases
        .iter()
        .map(|(name, collection)| Alias { name, collection });
    Ok(json(&Aliases {
        aliases: aliases.collect(),
    }))
}

pub(crate) async fn find(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    let aliases = api.definitions.aliases().await?;
    let found = aliases.iter().find(|(alias, _)| *alias == name);
    let Some((name, collection)) = found else {
        let name: String = name.chars().take(128).collect();
        return Err(Refusal::not_found(format!("alias `{name}` does not exist")).into());
    };
    Ok(json(&Alias { name, collection }))
}

pub(crate) async fn set(
    State(api): State<Api>,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let AliasTarget { collection } = read(body)?;
    let before = api.definitions.set_alias(&name, &collection).await?;
    Ok(json(&AliasSet { before }))
}

pub(crate) async fn drop(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    api.definitions.drop_alias(&name).await?;
    Ok(json(&serde_json::json!({})))
}
