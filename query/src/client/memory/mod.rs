//! Indexers in memory: exact answers from a few points, for tests, examples and simulation.
//!
//! A [`Node`] keeps the points of some shards and answers what an indexer would, message for
//! message, except that it waits for nothing: a token's write is there or its time is over.

mod brute;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, ready};
use shoal_schemas::{
    Collection, CollectionName, Offset, Partition, Point, PointId, Version, route, v1,
};

use crate::client::{
    CallError, ShardCall, ShardClient,
    memory::brute::{Points, Which},
};

/// `google.rpc.Code` numbers that a shard answers with.
const ANSWERED: i32 = 0;
const DEADLINE_EXCEEDED: i32 = 4;
const FAILED_PRECONDITION: i32 = 9;

/// Indexers by their address.
#[derive(Clone, Default)]
pub struct Nodes(HashMap<String, Arc<Node>>);

impl Nodes {
    /// Adds a node under an address.
    #[must_use]
    pub fn with(mut self, address: &str, node: Arc<Node>) -> Self {
        self.0.insert(address.to_owned(), node);
        self
    }

    fn answer<'a, T: Send + 'a>(
        &self,
        address: &str,
        answer: impl FnOnce(&Node) -> T,
    ) -> BoxFuture<'a, Result<T, CallError>> {
        let found = self.0.get(address).map(|node| answer(node));
        let answer = found.ok_or_else(|| CallError::Unreachable {
            address: address.to_owned(),
            detail: "nobody is there".into(),
        });
        ready(answer).boxed()
    }
}

/// A verb of the service, done by the node at an address.
macro_rules! verb {
    ($method:ident, $request:ident, $response:ident, $by:ident) => {
        fn $method<'a>(
            &'a self,
            address: &'a str,
            request: v1::$request,
            _call: ShardCall,
        ) -> BoxFuture<'a, Result<v1::$response, CallError>> {
            self.answer(address, |node| node.$by(&request))
        }
    };
}

impl ShardClient for Nodes {
    verb!(
        search_shards,
        SearchShardsRequest,
        SearchShardsResponse,
        search
    );
    verb!(get_points, GetPointsRequest, GetPointsResponse, get);
    verb!(
        shard_status,
        ShardStatusRequest,
        ShardStatusResponse,
        status
    );
    verb!(count_points, CountPointsRequest, CountPointsResponse, count);
    verb!(
        shard_scroll,
        ShardScrollRequest,
        ShardScrollResponse,
        scroll
    );

    fn retain(&self, _addresses: &BTreeSet<String>) {}
}

/// One indexer: its name and the shards it serves.
#[derive(Debug)]
pub struct Node {
    name: String,
    shards: RwLock<BTreeMap<(CollectionName, Partition), Shard>>,
}

#[derive(Clone, Debug)]
struct Shard {
    collection: Collection,
    number: Partition,
    points: Points,
    next_offset: Offset,
}

impl Shard {
    fn digest(&self) -> Vec<u8> {
        let digest = brute::digest(&self.collection, &self.points);
        digest.to_bytes().to_vec()
    }

    /// Changes with every record, as an indexer's does. What expires is none of its business: no
    /// point expires here.
    fn version(&self) -> Bytes {
        Bytes::copy_from_slice(&self.next_offset.0.to_be_bytes())
    }
}

impl Node {
    /// A node without shards.
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            shards: RwLock::default(),
        })
    }

    /// Takes on an empty shard.
    pub fn host(&self, collection: &Collection, number: Partition) {
        let shard = Shard {
            collection: collection.clone(),
            number,
            points: Points::new(),
            next_offset: Offset(0),
        };
        self.write()
            .insert((collection.name.clone(), number), shard);
    }

    /// Hands a shard with its points to another node. Nothing happens if it is not here.
    pub fn hand_over(&self, collection: &CollectionName, number: Partition, to: &Self) {
        let key = (collection.clone(), number);
        let shard = self.write().remove(&key);
        if let Some(shard) = shard {
            to.write().insert(key, shard);
        }
    }

    /// Puts a point into the shard its key routes to, and returns the place of its record.
    ///
    /// `None` if that shard is not here.
    pub fn upsert(
        &self,
        collection: &Collection,
        id: &PointId,
        point: &Point,
    ) -> Option<(Partition, Offset)> {
        let number = route::partition_of(collection, id);
        let mut shards = self.write();
        let shard = shards.get_mut(&(collection.name.clone(), number))?;
        let offset = shard.next_offset;
        shard.next_offset = offset.next();
        let stored = v1::StoredPoint {
            point: Some(point.to_proto(id)),
            version: Version::from_parts(offset.0 + 1, 0).raw(),
            topic: collection.topic(),
            partition: number.0,
            offset: offset.0,
        };
        shard.points.insert(id.as_str().to_owned(), stored);
        Some((number, offset))
    }

    /// What it answers to a search.
    pub fn search(&self, request: &v1::SearchShardsRequest) -> v1::SearchShardsResponse {
        let shards = self.read();
        let answer = |ask: &v1::ShardAsk| {
            let (coverage, shard) = self.look_up(&shards, &request.collection, ask);
            let version = shard.map_or_else(Bytes::new, Shard::version);
            let known = request.known.iter().find(|known| known.shard == ask.shard);
            let is_known = known.is_some_and(|known| known.version == version);
            let unchanged = shard.is_some() && is_known;
            let results = (shard.iter().filter(|_| !unchanged))
                .flat_map(|shard| {
                    let number = shard.number.0;
                    request.queries.iter().map(move |query| {
                        brute::search(&shard.collection, number, &shard.points, query)
                    })
                })
                .collect();
            v1::ShardAnswer {
                code: code(&coverage, shard),
                coverage: Some(coverage),
                results,
                version,
                unchanged,
            }
        };
        let mut answers: Vec<v1::ShardAnswer> = request.shards.iter().map(answer).collect();
        let is_told = request.together.len() == request.queries.len();
        let is_told = is_told && !request.together.contains(&0);
        if answers.len() > 1 && request.known.is_empty() && is_told {
            brute::leave_out(&mut answers, &request.together);
        }
        v1::SearchShardsResponse { shards: answers }
    }

    /// What it answers to a get.
    pub fn get(&self, request: &v1::GetPointsRequest) -> v1::GetPointsResponse {
        let shards = self.read();
        let answer = |wanted: &v1::ShardIds| {
            let ask = wanted.ask.clone().unwrap_or_default();
            let (coverage, shard) = self.look_up(&shards, &request.collection, &ask);
            let points = (shard.iter())
                .flat_map(|shard| wanted.ids.iter().filter_map(|id| shard.points.get(id)))
                .map(|stored| with_or_without_vector(stored, request.with_vector))
                .collect();
            v1::ShardPoints {
                code: code(&coverage, shard),
                coverage: Some(coverage),
                points,
            }
        };
        v1::GetPointsResponse {
            shards: request.shards.iter().map(answer).collect(),
        }
    }

    /// What it answers to a count of what matches.
    pub fn count(&self, request: &v1::CountPointsRequest) -> v1::CountPointsResponse {
        let shards = self.read();
        let answer = |ask: &v1::ShardAsk| {
            let (coverage, shard) = self.look_up(&shards, &request.collection, ask);
            let points = shard.map_or(0, |shard| {
                let of = &shard.collection;
                let which = Which::of(of, request.filter.as_ref(), &request.tenant);
                count(which.select(of, &shard.points).count())
            });
            v1::ShardCount {
                code: code(&coverage, shard),
                coverage: Some(coverage),
                points,
            }
        };
        v1::CountPointsResponse {
            shards: request.shards.iter().map(answer).collect(),
        }
    }

    /// What it answers to a scroll.
    pub fn scroll(&self, request: &v1::ShardScrollRequest) -> v1::ShardScrollResponse {
        let shards = self.read();
        let answer = |ask: &v1::ShardAsk| {
            let (coverage, shard) = self.look_up(&shards, &request.collection, ask);
            v1::ShardPoints {
                code: code(&coverage, shard),
                coverage: Some(coverage),
                points: shard.map_or_else(Vec::new, |shard| {
                    brute::page(&shard.collection, &shard.points, request)
                }),
            }
        };
        v1::ShardScrollResponse {
            shards: request.shards.iter().map(answer).collect(),
        }
    }

    /// What it answers to a question for its state.
    pub fn status(&self, request: &v1::ShardStatusRequest) -> v1::ShardStatusResponse {
        let shards = self.read();
        let answer = |ask: &v1::ShardAsk| {
            let (coverage, shard) = self.look_up(&shards, &request.collection, ask);
            v1::ShardStatus {
                code: code(&coverage, shard),
                coverage: Some(coverage),
                live_points: shard.map_or(0, |shard| count(shard.points.len())),
                digest: shard.map_or(Vec::new(), Shard::digest).into(),
                ..v1::ShardStatus::default()
            }
        };
        v1::ShardStatusResponse {
            shards: request.shards.iter().map(answer).collect(),
        }
    }

    fn look_up<'a>(
        &self,
        shards: &'a BTreeMap<(CollectionName, Partition), Shard>,
        collection: &str,
        ask: &v1::ShardAsk,
    ) -> (v1::ShardCoverage, Option<&'a Shard>) {
        let name: Option<CollectionName> = collection.parse().ok();
        let found = name.and_then(|name| shards.get(&(name, Partition(ask.shard))));
        let mut coverage = v1::ShardCoverage {
            shard: ask.shard,
            node: self.name.clone(),
            ..v1::ShardCoverage::default()
        };
        let Some(shard) = found else {
            coverage.error = format!("shard {} of `{collection}` is not on this node", ask.shard);
            return (coverage, None);
        };
        coverage.next_offset = shard.next_offset.0;
        if let Some(token) = ask
            .at_least
            .iter()
            .find(|token| token.offset >= shard.next_offset.0)
        {
            coverage.error = format!("offset {} is not applied yet", token.offset);
            return (coverage, None);
        }
        coverage.answered = true;
        (coverage, Some(shard))
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<(CollectionName, Partition), Shard>> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<(CollectionName, Partition), Shard>> {
        self.shards.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn code(coverage: &v1::ShardCoverage, shard: Option<&Shard>) -> i32 {
    match shard {
        Some(_) => ANSWERED,
        // Only a shard that is here knows its offsets.
        None if coverage.error.starts_with("offset") => DEADLINE_EXCEEDED,
        None => FAILED_PRECONDITION,
    }
}

fn with_or_without_vector(stored: &v1::StoredPoint, with_vector: bool) -> v1::StoredPoint {
    let mut stored = stored.clone();
    if !with_vector && let Some(point) = &mut stored.point {
        point.vector.clear();
    }
    stored
}

fn count(points: usize) -> u64 {
    u64::try_from(points).unwrap_or(u64::MAX)
}
