//! A verb's own link to a query node, and how its refusals are told.

use std::time::Duration;

use anyhow::{Context as _, anyhow};
use shoal_schemas::{CollectionName, Token, v1};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use super::Usage;

const CONNECT: Duration = Duration::from_secs(5);
/// How long the query node may take to say who serves what.
const OWNERS: Duration = Duration::from_secs(10);
/// As large as a node answers.
const MAX_MESSAGE_BYTES: usize = 256 << 20;

/// Connects to a gRPC service.
pub(super) async fn connect(what: &str, address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| Usage(format!("`{address}` is no address, wanted is host:port")))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true);
    endpoint.connect().await.with_context(|| {
        format!("cannot reach {what} at {address}; is `shoal up` or `shoal query` running?")
    })
}

/// A client for searches.
pub(super) async fn searches(
    address: &str,
) -> anyhow::Result<v1::search_client::SearchClient<Channel>> {
    let channel = connect("the query node", address).await?;
    Ok(v1::search_client::SearchClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES))
}

/// Who serves a collection's shards, or one of them, and the collection's own name, where it was asked for by an alias.
pub(super) async fn owners(
    query: &str,
    collection: &CollectionName,
    shard: Option<u32>,
) -> anyhow::Result<(String, Vec<v1::ShardOwner>)> {
    let channel = connect("the query node", query).await?;
    let mut node = v1::collections_client::CollectionsClient::new(channel);
    let name = collection.to_string();
    let wanted = request(v1::GetCollectionRequest { name: name.clone() }, OWNERS);
    let found = node.get_collection(wanted).await;
    let found = found.map_err(|status| told(&status))?.into_inner();
    let name = found.collection.map_or(name, |found| found.name);
    let owners = found.shards.into_iter();
    let owners: Vec<_> = owners
        .filter(|owner| shard.is_none_or(|shard| shard == owner.shard))
        .collect();
    if owners.is_empty() {
        let shard = shard.unwrap_or_default();
        return Err(Usage(format!("`{name}` has no shard {shard}")).into());
    }
    Ok((name, owners))
}

/// A request with the time it may take.
pub(super) fn request<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

/// A refusal as a person reads it.
pub(super) fn told(status: &Status) -> anyhow::Error {
    match status.code() {
        Code::InvalidArgument => Usage(status.message().to_owned()).into(),
        code => anyhow!("{} ({code:?})", status.message()),
    }
}

/// What the caller insists on; `None` if nothing.
pub(super) fn read_options(
    at_least: &[String],
    require_all: bool,
    max_staleness_ms: Option<u64>,
) -> anyhow::Result<Option<v1::ReadOptions>> {
    let tokens = at_least.iter().map(|text| {
        let token: Token = text
            .parse()
            .with_context(|| format!("`{text}` is no token as `shoal publish` prints them"))?;
        Ok(token.to_proto())
    });
    let tokens: Vec<v1::Token> = tokens.collect::<anyhow::Result<_>>()?;
    let wanted = require_all || max_staleness_ms.is_some() || !tokens.is_empty();
    Ok(wanted.then_some(v1::ReadOptions {
        at_least: tokens,
        require_all,
        max_staleness_ms,
    }))
}

/// A note on standard error if shards are missing from an answer.
pub(super) fn missing(coverage: Option<&v1::Coverage>) -> Option<String> {
    let coverage = coverage?;
    if coverage.shards_answered == coverage.shards_asked {
        return None;
    }
    let silent = coverage.shards.iter().filter(|shard| !shard.answered);
    let why: Vec<String> = silent
        .map(|shard| format!("shard {}: {}", shard.shard, shard.error))
        .collect();
    Some(format!(
        "partial answer, {} of {} shards: {}",
        coverage.shards_answered,
        coverage.shards_asked,
        why.join("; ")
    ))
}
