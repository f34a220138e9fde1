//! The questions a node is asked: nearest points, points by id, pages of points, counts.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use shoal_schemas::{Partition, PointId, v1};

use crate::{
    client::{CallError, ShardCall, ShardClient},
    hedge::Kind,
    scatter::{Question, Reply},
};

/// `google.rpc.Code.INTERNAL`.
const INTERNAL: i32 = 13;

/// The nearest points to some queries.
pub(crate) struct SearchOf {
    pub(crate) collection: String,
    pub(crate) queries: Vec<v1::Query>,
    /// Of each query, how many candidates a shard computes exact distances of; none or 0 is for the
    /// shard to say.
    pub(crate) rescore: Vec<u32>,
    /// Of each query, how many hits of all shards are merged, where a node may leave out what cannot be
    /// among them; none, or 0 of any, where each shard has to answer for itself.
    pub(crate) together: Vec<u32>,
    /// What is known of shards' answers already.
    pub(crate) known: Vec<v1::KnownAnswer>,
}

/// One shard's answer to queries.
pub(crate) struct Nearest {
    /// One a query.
    pub(crate) lists: Vec<v1::HitList>,
    /// What the shard called its content; empty if it did not tell.
    pub(crate) version: Bytes,
    /// The known answer still holds, and there are no lists.
    pub(crate) is_unchanged: bool,
}

impl Question for SearchOf {
    type Body = Nearest;

    const KIND: Kind = Kind::Search;

    fn ask<'a>(
        &'a self,
        client: &'a dyn ShardClient,
        address: &'a str,
        shards: Vec<v1::ShardAsk>,
        call: ShardCall,
    ) -> BoxFuture<'a, Result<Vec<Reply<Self::Body>>, CallError>> {
        let is_asked = |known: &&v1::KnownAnswer| shards.iter().any(|ask| ask.shard == known.shard);
        let request = v1::SearchShardsRequest {
            collection: self.collection.clone(),
            known: self.known.iter().filter(is_asked).cloned().collect(),
            shards,
            queries: self.queries.clone(),
            rescore: self.rescore.clone(),
            together: self.together.clone(),
        };
        let answered = async move {
            let response = client.search_shards(address, request, call).await?;
            let replies = response.shards.into_iter().map(|answer| self.read(answer));
            Ok(replies.collect())
        };
        answered.boxed()
    }
}

impl SearchOf {
    /// These queries, with nothing known.
    pub(crate) fn new(collection: String, queries: Vec<v1::Query>) -> Self {
        Self {
            collection,
            queries,
            rescore: Vec::new(),
            together: Vec::new(),
            known: Vec::new(),
        }
    }

    fn read(&self, answer: v1::ShardAnswer) -> Reply<Nearest> {
        let mut coverage = answer.coverage.unwrap_or_default();
        let mut code = answer.code;
        let (found, wanted) = (answer.results.len(), self.queries.len());
        let is_known = self.known.iter().any(|one| one.shard == coverage.shard);
        if code == 0 && answer.unchanged && !is_known {
            code = INTERNAL;
            coverage.error = "node says that nothing has changed and was not asked".into();
        } else if code == 0 && !answer.unchanged && found != wanted {
            code = INTERNAL;
            coverage.error = format!("node answered {found} of {wanted} queries");
        }
        Reply {
            coverage,
            code,
            body: Nearest {
                lists: answer.results,
                version: answer.version,
                is_unchanged: answer.unchanged,
            },
        }
    }
}

/// Points by id.
pub(crate) struct PointsOf {
    collection: String,
    with_vector: bool,
    by_shard: BTreeMap<Partition, Vec<String>>,
    places: HashMap<PointId, usize>,
}

impl PointsOf {
    pub(crate) fn new(collection: String, with_vector: bool) -> Self {
        Self {
            collection,
            with_vector,
            by_shard: BTreeMap::new(),
            places: HashMap::new(),
        }
    }

    /// Adds an id that lives in `shard`; one that is asked for twice counts once.
    pub(crate) fn add(&mut self, shard: Partition, id: PointId) {
        let place = self.places.len();
        if self.places.contains_key(&id) {
            return;
        }
        let ids = self.by_shard.entry(shard).or_default();
        ids.push(id.as_str().to_owned());
        self.places.insert(id, place);
    }

    /// Whether any id lives there.
    pub(crate) fn names(&self, shard: Partition) -> bool {
        self.by_shard.contains_key(&shard)
    }

    /// The points in the order their ids were added.
    pub(crate) fn in_order(
        &self,
        points: impl Iterator<Item = v1::StoredPoint>,
    ) -> Vec<v1::StoredPoint> {
        let placed = points.filter_map(|stored| {
            let id = stored.point.as_ref()?.id.as_str();
            Some((*self.places.get(id)?, stored))
        });
        let mut placed: Vec<_> = placed.collect();
        placed.sort_unstable_by_key(|(place, _)| *place);
        placed.into_iter().map(|(_, stored)| stored).collect()
    }
}

impl Question for PointsOf {
    type Body = Vec<v1::StoredPoint>;

    const KIND: Kind = Kind::Get;

    fn ask<'a>(
        &'a self,
        client: &'a dyn ShardClient,
        address: &'a str,
        shards: Vec<v1::ShardAsk>,
        call: ShardCall,
    ) -> BoxFuture<'a, Result<Vec<Reply<Self::Body>>, CallError>> {
        let shards = shards.into_iter().map(|ask| {
            let ids = self.by_shard.get(&Partition(ask.shard));
            v1::ShardIds {
                ids: ids.cloned().unwrap_or_default(),
                ask: Some(ask),
            }
        });
        let request = v1::GetPointsRequest {
            collection: self.collection.clone(),
            shards: shards.collect(),
            with_vector: self.with_vector,
        };
        let answered = async move {
            let response = client.get_points(address, request, call).await?;
            let replies = response.shards.into_iter().map(|answer| Reply {
                coverage: answer.coverage.unwrap_or_default(),
                code: answer.code,
                body: answer.points,
            });
            Ok(replies.collect())
        };
        answered.boxed()
    }
}

/// How many points there are.
pub(crate) struct CountOf {
    pub(crate) collection: String,
}

/// One shard's counts.
pub(crate) struct Counted {
    pub(crate) live_points: u64,
    pub(crate) contested: u64,
}

impl Question for CountOf {
    type Body = Counted;

    const KIND: Kind = Kind::Status;

    fn ask<'a>(
        &'a self,
        client: &'a dyn ShardClient,
        address: &'a str,
        shards: Vec<v1::ShardAsk>,
        call: ShardCall,
    ) -> BoxFuture<'a, Result<Vec<Reply<Self::Body>>, CallError>> {
        let request = v1::ShardStatusRequest {
            collection: self.collection.clone(),
            shards,
        };
        let answered = async move {
            let response = client.shard_status(address, request, call).await?;
            let replies = response.shards.into_iter().map(|status| Reply {
                coverage: status.coverage.unwrap_or_default(),
                code: status.code,
                body: Counted {
                    live_points: status.live_points,
                    contested: status.contested,
                },
            });
            Ok(replies.collect())
        };
        answered.boxed()
    }
}

/// How many points match.
pub(crate) struct MatchesOf {
    pub(crate) collection: String,
    pub(crate) filter: Option<v1::Filter>,
    pub(crate) tenant: String,
}

impl Question for MatchesOf {
    type Body = u64;

    const KIND: Kind = Kind::Count;

    fn ask<'a>(
        &'a self,
        client: &'a dyn ShardClient,
        address: &'a str,
        shards: Vec<v1::ShardAsk>,
        call: ShardCall,
    ) -> BoxFuture<'a, Result<Vec<Reply<Self::Body>>, CallError>> {
        let request = v1::CountPointsRequest {
            collection: self.collection.clone(),
            shards,
            filter: self.filter.clone(),
            tenant: self.tenant.clone(),
        };
        let answered = async move {
            let response = client.count_points(address, request, call).await?;
            let replies = response.shards.into_iter().map(|counted| Reply {
                coverage: counted.coverage.unwrap_or_default(),
                code: counted.code,
                body: counted.points,
            });
            Ok(replies.collect())
        };
        answered.boxed()
    }
}

/// The next points by id: a request without its shards.
pub(crate) struct PageOf(pub(crate) v1::ShardScrollRequest);

impl Question for PageOf {
    type Body = Vec<v1::StoredPoint>;

    const KIND: Kind = Kind::Scroll;

    fn ask<'a>(
        &'a self,
        client: &'a dyn ShardClient,
        address: &'a str,
        shards: Vec<v1::ShardAsk>,
        call: ShardCall,
    ) -> BoxFuture<'a, Result<Vec<Reply<Self::Body>>, CallError>> {
        let request = v1::ShardScrollRequest {
            shards,
            ..self.0.clone()
        };
        let answered = async move {
            let response = client.shard_scroll(address, request, call).await?;
            let replies = response.shards.into_iter().map(|answer| Reply {
                coverage: answer.coverage.unwrap_or_default(),
                code: answer.code,
                body: answer.points,
            });
            Ok(replies.collect())
        };
        answered.boxed()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use shoal_schemas::{Partition, PointId, v1};

    use super::PointsOf;

    #[test]
    fn points_come_in_the_order_of_their_ids_each_once() {
        let mut question = PointsOf::new("docs".into(), false);
        for (shard, id) in [(1, "c"), (0, "a"), (1, "c"), (1, "b")] {
            question.add(Partition(shard), PointId::new(id).unwrap());
        }
        let stored = |id: &str| v1::StoredPoint {
            point: Some(v1::Point {
                id: id.into(),
                ..v1::Point::default()
            }),
            ..v1::StoredPoint::default()
        };
        let points = question.in_order(["a", "b", "c", "uncalled"].into_iter().map(stored));
        let ids: Vec<_> = points
            .into_iter()
            .map(|stored| stored.point.unwrap().id)
            .collect();
        assert_eq!(ids, ["c", "a", "b"]);
        assert!(question.names(Partition(0)) && !question.names(Partition(2)));
    }
}
