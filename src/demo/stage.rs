//! The running system as the tour uses it: a collection, a publisher, clients over gRPC.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, anyhow};
use shoal_producer::{PublishConfig, Publisher};
use shoal_runtime::tasks::blocking;
use shoal_schemas::{Partition, Token, v1};
use shoal_topic::{TopicPartition, collections};
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

use super::{COLLECTION, K};
use crate::{
    config::{Loaded, Settings},
    up::{self, Broker, Up},
};

/// Longest any answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Settings of a tour: everything under one folder, on free ports.
pub(super) fn settings(loaded: &Loaded, folder: &Path) -> Settings {
    let mut settings = up::settings(loaded, &Broker::Own);
    settings.local.data_dir = folder.to_owned();
    settings.local.kafka_port = None;
    settings.indexer.data_dir = folder.join("indexer");
    settings.any_port();
    settings
}

/// What the tour works with.
pub(super) struct Stage {
    pub(super) publisher: Publisher,
    pub(super) searches: v1::search_client::SearchClient<Channel>,
    pub(super) second: v1::search_client::SearchClient<Channel>,
    indexer: v1::shard_client::ShardClient<Channel>,
    deps: shoal_topic::Deps,
}

/// How far the shards have come, summed up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Records in the topic.
    pub(super) published: u64,
    /// Records applied.
    pub(super) applied: u64,
    /// Points that answers may hold.
    pub(super) live: u64,
    /// Points not yet in a graph; searches scan them exactly.
    pub(super) memtable: u64,
}

impl Stage {
    /// Makes the collection and the clients.
    pub(super) async fn build(up: &Up) -> anyhow::Result<Self> {
        let deps = up.deps().clone();
        let definition = super::data::definition()?;
        let made = collections::create(&deps.cluster, &deps.control, definition).await?;
        let publisher = Publisher::new(
            &deps.cluster,
            deps.clock.clone(),
            made.collection,
            PublishConfig::default(),
        )
        .await?;
        // It is ready again once every shard of the new collection is served.
        up.ready().await?;
        let running = up.running();
        let query = running.query.grpc.to_string();
        Ok(Self {
            publisher,
            searches: v1::search_client::SearchClient::new(channel(&query).await?),
            second: v1::search_client::SearchClient::new(channel(&query).await?),
            indexer: v1::shard_client::ShardClient::new(
                channel(&running.indexer.grpc.to_string()).await?,
            ),
            deps,
        })
    }

    /// A search that has to see these writes.
    pub(super) async fn search(
        &mut self,
        vector: &[f32],
        seen: &[Token],
    ) -> anyhow::Result<Vec<v1::Hit>> {
        search(&mut self.searches, vector, seen, true).await
    }

    /// Live points, once these writes are seen.
    pub(super) async fn count(&mut self, seen: &[Token]) -> anyhow::Result<u64> {
        let wanted = v1::CountRequest {
            collection: COLLECTION.into(),
            read: Some(insisting(seen)),
            ..v1::CountRequest::default()
        };
        let answer = self.searches.count(timed(wanted)).await;
        Ok(answer.map_err(refused)?.into_inner().points)
    }

    /// Asks the broker for the topic's ends and the indexer for its shards.
    pub(super) async fn progress(&mut self) -> anyhow::Result<Progress> {
        let collection = self.publisher.collection();
        let topic = collection.topic();
        let partitions: Vec<TopicPartition> = (0..collection.partitions)
            .map(|partition| TopicPartition {
                topic: topic.clone().into(),
                partition: Partition(partition),
            })
            .collect();
        let admin = self.deps.cluster.admin.clone();
        let published = blocking(move || {
            let ends = partitions.iter().map(|partition| {
                let marks = admin.watermarks(partition, TIMEOUT)?;
                Ok::<u64, shoal_topic::AdminError>(marks.high.0)
            });
            ends.sum::<Result<u64, _>>()
        });
        let wanted = v1::ShardStatusRequest {
            collection: COLLECTION.into(),
            shards: Vec::new(),
        };
        let mut progress = Progress {
            published: published.await?,
            ..Progress::default()
        };
        let answer = self.indexer.shard_status(timed(wanted)).await;
        for shard in answer.map_err(refused)?.into_inner().shards {
            let coverage = shard.coverage.context("a shard answers without coverage")?;
            progress.applied += coverage.next_offset;
            progress.live += shard.live_points;
            progress.memtable += shard.memtable_rows;
        }
        Ok(progress)
    }
}

/// A search over gRPC.
pub(super) async fn search(
    client: &mut v1::search_client::SearchClient<Channel>,
    vector: &[f32],
    seen: &[Token],
    with_payload: bool,
) -> anyhow::Result<Vec<v1::Hit>> {
    let wanted = v1::SearchRequest {
        collection: COLLECTION.into(),
        vector: vector.to_vec(),
        k: K,
        with_payload,
        read: Some(insisting(seen)),
        ..v1::SearchRequest::default()
    };
    let answer = client.search(timed(wanted)).await;
    Ok(answer.map_err(refused)?.into_inner().hits)
}

/// Every shard has to answer, and to have seen these writes.
fn insisting(seen: &[Token]) -> v1::ReadOptions {
    v1::ReadOptions {
        at_least: seen.iter().map(Token::to_proto).collect(),
        require_all: true,
        max_staleness_ms: None,
    }
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

fn refused(status: tonic::Status) -> anyhow::Error {
    anyhow!("{} ({:?})", status.message(), status.code())
}

async fn channel(address: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true);
    endpoint
        .connect()
        .await
        .with_context(|| format!("cannot reach {address}"))
}
