//! What a client sees: an indexer's shard service and a query node, over gRPC.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context as _;
use shoal_schemas::{Collection, CollectionName, v1};
use tonic::transport::{Channel, Endpoint};

use crate::{embeddings::K, role::Role};

/// How often a state is asked for that is waited for.
const ASK_EVERY: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(600);

/// Does something on the calling thread, connections and all: for what is to have a thread of its own.
pub(crate) fn on_this_thread<T>(
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build()?.block_on(work)
}

async fn channel(address: SocketAddr) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    Ok(endpoint.connect().await?)
}

/// An indexer's own service, for shard 0 of a collection.
#[derive(Clone)]
pub(crate) struct Shard {
    stub: v1::shard_client::ShardClient<Channel>,
    collection: String,
}

impl Shard {
    pub(crate) async fn connect(grpc: SocketAddr, collection: &Collection) -> anyhow::Result<Self> {
        Ok(Self {
            stub: v1::shard_client::ShardClient::new(channel(grpc).await?),
            collection: collection.name.to_string(),
        })
    }

    pub(crate) async fn search(&mut self, vector: &[f32]) -> anyhow::Result<Vec<v1::Hit>> {
        let query = v1::Query {
            vector: vector.to_vec(),
            k: K as u32,
            ..v1::Query::default()
        };
        let answer = self.ask(query).await?;
        answer.map_err(|code| anyhow::anyhow!("the shard answered with code {code}"))
    }

    /// One query of any kind; the inner error is the code of a shard that does not answer yet.
    pub(crate) async fn ask(
        &mut self,
        query: v1::Query,
    ) -> anyhow::Result<Result<Vec<v1::Hit>, i32>> {
        let request = v1::SearchShardsRequest {
            collection: self.collection.clone(),
            shards: vec![v1::ShardAsk::default()],
            queries: vec![query],
            ..v1::SearchShardsRequest::default()
        };
        let answer = self.stub.search_shards(request).await?.into_inner();
        let shard = answer.shards.into_iter().next();
        let shard = shard.context("no shard answered")?;
        if shard.code != 0 {
            return Ok(Err(shard.code));
        }
        let hits = shard.results.into_iter().next();
        Ok(Ok(hits.context("the shard gave no hits")?.hits))
    }

    pub(crate) async fn status(&mut self) -> anyhow::Result<v1::ShardStatus> {
        let request = v1::ShardStatusRequest {
            collection: self.collection.clone(),
            shards: vec![v1::ShardAsk::default()],
        };
        let answer = self.stub.shard_status(request).await?.into_inner();
        answer
            .shards
            .into_iter()
            .next()
            .context("no shard answered")
    }

    /// Waits until the shard serves `rows` points and `is_done` with its state.
    pub(crate) async fn wait(
        &mut self,
        indexer: &mut Role,
        rows: usize,
        is_done: impl Fn(&v1::ShardStatus) -> bool,
    ) -> anyhow::Result<v1::ShardStatus> {
        let mut ticks = tokio::time::interval(ASK_EVERY);
        let search = async {
            loop {
                ticks.tick().await;
                indexer.lives()?;
                // Not serving yet is an answer with a code, not an error.
                let status = self.status().await;
                let status = status.with_context(|| {
                    format!("no state of the shard; the indexer: {}", indexer.state())
                })?;
                if status.code == 0 && status.live_points as usize == rows && is_done(&status) {
                    return Ok(status);
                }
            }
        };
        tokio::time::timeout(PATIENCE, search)
            .await
            .with_context(|| format!("{rows} rows were not served within {PATIENCE:?}"))?
    }
}

/// Whether every row is in the graph.
pub(crate) fn is_folded(status: &v1::ShardStatus) -> bool {
    status.memtable_rows == 0 && status.graph_rows >= status.live_points
}

/// A query node.
#[derive(Clone)]
pub(crate) struct Node {
    stub: v1::search_client::SearchClient<Channel>,
    collection: String,
}

impl Node {
    pub(crate) async fn connect(grpc: SocketAddr, collection: &Collection) -> anyhow::Result<Self> {
        Self::by_name(grpc, &collection.name).await
    }

    /// Whatever a name stands for.
    pub(crate) async fn by_name(grpc: SocketAddr, name: &CollectionName) -> anyhow::Result<Self> {
        Ok(Self {
            stub: v1::search_client::SearchClient::new(channel(grpc).await?),
            collection: name.to_string(),
        })
    }

    /// The nearest points, from every shard or not at all.
    pub(crate) async fn search(
        &mut self,
        vector: &[f32],
        at_least: Option<v1::Token>,
    ) -> anyhow::Result<Vec<v1::Hit>> {
        Ok(self.ask(vector, 0, at_least).await?.hits)
    }

    /// The same with who answered.
    pub(crate) async fn answer(&mut self, vector: &[f32]) -> anyhow::Result<v1::SearchResponse> {
        self.ask(vector, 0, None).await
    }

    /// The same with a beam width; 0 leaves it to Shoal.
    pub(crate) async fn search_with(
        &mut self,
        vector: &[f32],
        ef: usize,
    ) -> anyhow::Result<Vec<v1::Hit>> {
        Ok(self.ask(vector, u32::try_from(ef)?, None).await?.hits)
    }

    async fn ask(
        &mut self,
        vector: &[f32],
        ef: u32,
        at_least: Option<v1::Token>,
    ) -> anyhow::Result<v1::SearchResponse> {
        let request = v1::SearchRequest {
            ef,
            collection: self.collection.clone(),
            vector: vector.to_vec(),
            k: K as u32,
            read: Some(v1::ReadOptions {
                at_least: at_least.into_iter().collect(),
                require_all: true,
                max_staleness_ms: None,
            }),
            ..v1::SearchRequest::default()
        };
        Ok(self.stub.search(request).await?.into_inner())
    }

    /// Waits until the node knows the shard's owner and gets answers from it.
    pub(crate) async fn wait(&mut self, query: &mut Role, vector: &[f32]) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(ASK_EVERY);
        let answered = async {
            loop {
                ticks.tick().await;
                query.lives()?;
                if self.search(vector, None).await.is_ok() {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(PATIENCE, answered)
            .await
            .with_context(|| format!("the query node answered nothing within {PATIENCE:?}"))?
    }
}

/// Who serves a collection's shards, as a query node knows it.
pub(crate) struct Replicas {
    stub: v1::collections_client::CollectionsClient<Channel>,
    collection: String,
}

impl Replicas {
    pub(crate) async fn connect(grpc: SocketAddr, collection: &Collection) -> anyhow::Result<Self> {
        Ok(Self {
            stub: v1::collections_client::CollectionsClient::new(channel(grpc).await?),
            collection: collection.name.to_string(),
        })
    }

    /// Waits until every shard is served at these addresses.
    pub(crate) async fn wait(&mut self, addresses: &[String]) -> anyhow::Result<()> {
        let is_served = |shard: &v1::ShardOwner| {
            addresses.iter().all(|address| {
                let mut replicas = shard.replicas.iter();
                replicas.any(|one| one.ready && one.address == *address)
            })
        };
        self.wait_until(|shards| shards.iter().all(is_served))
            .await
            .with_context(|| format!("not served at {addresses:?}"))
    }

    /// Waits until every shard is served by somebody.
    pub(crate) async fn wait_for_all(&mut self) -> anyhow::Result<()> {
        let is_served = |shard: &v1::ShardOwner| shard.replicas.iter().any(|one| one.ready);
        self.wait_until(|shards| shards.iter().all(is_served)).await
    }

    /// Waits until the node knows so of a collection's shards.
    pub(crate) async fn wait_until(
        &mut self,
        is_known: impl Fn(&[v1::ShardOwner]) -> bool,
    ) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(ASK_EVERY);
        let known = async {
            loop {
                ticks.tick().await;
                let request = v1::GetCollectionRequest {
                    name: self.collection.clone(),
                };
                // The node may not have read the definition yet.
                let Ok(found) = self.stub.get_collection(request).await else {
                    continue;
                };
                let shards = found.into_inner().shards;
                if !shards.is_empty() && is_known(&shards) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, known)
            .await
            .with_context(|| format!("the query node did not know of it within {PATIENCE:?}"))
    }
}
