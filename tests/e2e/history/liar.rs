//! A planted fault: stands before an indexer and, once told to, answers from a state of long ago under today's offsets.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, RwLock},
};

use shoal_schemas::{
    Collection,
    v1::{
        self,
        shard_client::ShardClient,
        shard_server::{Shard, ShardServer},
    },
};
use tonic::{Request, Response, Status, transport::Channel};

use crate::harness::{client, runtime, wait};

type Points = BTreeMap<u32, Vec<v1::StoredPoint>>;

/// Passes everything on; lies if it holds an old state.
#[derive(Clone)]
pub(super) struct Liar {
    truth: ShardClient<Channel>,
    old: Arc<RwLock<Option<Points>>>,
}

impl Liar {
    /// Stands at `listen` before the indexer at `truth`.
    pub(super) fn start(listen: SocketAddr, truth: SocketAddr) -> Self {
        let liar = Self {
            truth: client::shard(truth),
            old: Arc::default(),
        };
        let service = ShardServer::new(liar.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        runtime().spawn(server.serve(listen));
        liar
    }

    /// From now on shows what the indexer holds now.
    pub(super) fn lie(&self, collection: &Collection) {
        let shards = (0..collection.partitions).map(|shard| v1::ShardAsk {
            shard,
            at_least: Vec::new(),
        });
        let ask = v1::ShardScrollRequest {
            collection: collection.name.to_string(),
            shards: shards.collect(),
            limit: 10_000,
            with_vector: true,
            ..v1::ShardScrollRequest::default()
        };
        let answer = wait(self.truth.clone().shard_scroll(ask)).unwrap();
        let shards = answer.into_inner().shards.into_iter();
        let points = shards.map(|one| (one.coverage.unwrap().shard, one.points));
        *self.old.write().unwrap() = Some(points.collect());
    }

    fn old(&self) -> Option<Points> {
        self.old.read().unwrap().clone()
    }
}

#[tonic::async_trait]
impl Shard for Liar {
    async fn search_shards(
        &self,
        request: Request<v1::SearchShardsRequest>,
    ) -> Result<Response<v1::SearchShardsResponse>, Status> {
        let queries = request.get_ref().queries.clone();
        let mut answer = self.truth.clone().search_shards(request).await?;
        if let Some(old) = self.old() {
            for shard in &mut answer.get_mut().shards {
                let points = old.get(&shard.coverage.as_ref().unwrap().shard);
                let queries = queries.iter();
                let results = queries.map(|query| nearest(points.unwrap(), query));
                shard.results = results.collect();
            }
        }
        Ok(answer)
    }

    async fn get_points(
        &self,
        request: Request<v1::GetPointsRequest>,
    ) -> Result<Response<v1::GetPointsResponse>, Status> {
        let asked = request.get_ref().shards.clone();
        let mut answer = self.truth.clone().get_points(request).await?;
        if let Some(old) = self.old() {
            for (shard, asked) in answer.get_mut().shards.iter_mut().zip(asked) {
                let points = &old[&shard.coverage.as_ref().unwrap().shard];
                let is_asked =
                    |one: &&v1::StoredPoint| asked.ids.contains(&one.point.as_ref().unwrap().id);
                shard.points = points.iter().filter(is_asked).cloned().collect();
            }
        }
        Ok(answer)
    }

    async fn shard_status(
        &self,
        request: Request<v1::ShardStatusRequest>,
    ) -> Result<Response<v1::ShardStatusResponse>, Status> {
        self.truth.clone().shard_status(request).await
    }

    async fn count_points(
        &self,
        request: Request<v1::CountPointsRequest>,
    ) -> Result<Response<v1::CountPointsResponse>, Status> {
        self.truth.clone().count_points(request).await
    }

    async fn shard_scroll(
        &self,
        request: Request<v1::ShardScrollRequest>,
    ) -> Result<Response<v1::ShardScrollResponse>, Status> {
        self.truth.clone().shard_scroll(request).await
    }

    async fn resolve(
        &self,
        request: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveResponse>, Status> {
        self.truth.clone().resolve(request).await
    }
}

/// The nearest of some points, by (squared distance, id).
fn nearest(points: &[v1::StoredPoint], query: &v1::Query) -> v1::HitList {
    let hit = |stored: &v1::StoredPoint| {
        let point = stored.point.clone().unwrap();
        let pairs = point.vector.iter().zip(&query.vector);
        v1::Hit {
            distance: pairs.map(|(a, b)| (a - b) * (a - b)).sum(),
            id: point.id,
            version: stored.version,
            payload: point.payload,
            vector: point.vector,
        }
    };
    let mut hits: Vec<v1::Hit> = points.iter().map(hit).collect();
    hits.sort_by(|a, b| {
        a.distance
            .total_cmp(&b.distance)
            .then_with(|| a.id.cmp(&b.id))
    });
    hits.truncate(usize::try_from(query.k).unwrap());
    v1::HitList {
        hits,
        ..v1::HitList::default()
    }
}
