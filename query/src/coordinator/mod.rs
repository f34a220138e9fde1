//! The query node itself: check, plan, scatter, merge, answer. Knows no transport.
//!
//! gRPC and HTTP both end here, with the same messages, so they cannot disagree. Nothing is kept
//! between calls; everything a call needs is the newest shard map and the clients.

mod check;
mod question;

use std::{sync::Arc, time::Duration};

use shoal_runtime::{ErrorKind, clock::Stopwatch};
use shoal_schemas::{ClusterId, Partition, point::IdError, route, v1, vector::VectorError};
use tokio::sync::SetOnce;
use tracing::{Instrument as _, debug};

pub use check::Limits;

use crate::{
    call::{Call, TimeoutError},
    client::ShardClient,
    coordinator::question::{CountOf, PointsOf, SearchOf},
    coverage::{CoverageError, Gathered, judge},
    merge::merge,
    metrics::{Ending, Meters, Verb},
    scatter::{Question, Scatter},
    shard_map::{Maps, Shards},
    tokens::{TokenError, TokensByShard, by_shard},
};

/// The id of the cluster whose tokens name their shard; empty until a broker has told it.
pub type HomeCluster = Arc<SetOnce<ClusterId>>;

/// Answers searches, gets and counts. Share it in an `Arc`.
pub struct Coordinator {
    limits: Limits,
    maps: Maps,
    client: Arc<dyn ShardClient>,
    home: HomeCluster,
    meters: Meters,
}

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The definitions have not been read yet.
    #[error("collections have not been read from the control topic yet; try again in a moment")]
    NotCaughtUp,
    /// There is no such collection.
    #[error("collection `{name}` does not exist; there are: {existing}")]
    UnknownCollection {
        /// As asked for, cut where it is long.
        name: String,
        /// Names that exist, for reading.
        existing: String,
    },
    /// A query vector.
    #[error("query {at} is refused")]
    Vector {
        /// Its place in the request, from 0.
        at: usize,
        /// What is wrong with it.
        source: VectorError,
    },
    /// A number out of range.
    #[error("{field} is {found}, allowed are {min} to {max}")]
    Range {
        /// The field.
        field: &'static str,
        /// As given.
        found: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// An id.
    #[error("id {at} is refused")]
    Id {
        /// Its place in the request, from 0.
        at: usize,
        /// What is wrong with it.
        source: IdError,
    },
    /// A token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A time-out.
    #[error(transparent)]
    Timeout(#[from] TimeoutError),
    /// Tokens cannot be told apart yet.
    #[error(
        "the cluster's id is not known yet, so no token can be honoured; try again in a moment"
    )]
    HomeUnknown,
    /// The deadline was over before anything was asked.
    #[error("the deadline was over before a shard was asked; allow more time")]
    NoTime,
    /// What came back is no answer.
    #[error(transparent)]
    Coverage(#[from] CoverageError),
}

impl QueryError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotCaughtUp | Self::HomeUnknown | Self::NoTime => ErrorKind::Retry,
            Self::Coverage(error) => error.kind(),
            _ => ErrorKind::Caller,
        }
    }

    fn ending(&self) -> Ending {
        match self {
            Self::NoTime | Self::Coverage(CoverageError::TokenTooLate(_)) => Ending::Deadline,
            other if other.kind() == ErrorKind::Caller => Ending::Caller,
            _ => Ending::Unavailable,
        }
    }
}

/// What shards answered to one question, and how long they took.
struct Told<B> {
    bodies: Vec<B>,
    coverage: v1::Coverage,
    waited: Duration,
}

impl Coordinator {
    /// A coordinator that asks whom `maps` names through `client`.
    pub fn new(
        limits: Limits,
        maps: Maps,
        client: Arc<dyn ShardClient>,
        home: HomeCluster,
    ) -> Self {
        Self {
            limits,
            maps,
            client,
            home,
            meters: Meters::new(),
        }
    }

    /// The nearest `k` points, by (distance, id); fewer if there are fewer.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn search(
        &self,
        request: v1::SearchRequest,
        call: Call,
    ) -> Result<v1::SearchResponse, QueryError> {
        let span = call.span(Verb::Search.label(), &request.collection);
        let query = v1::Query {
            vector: request.vector,
            k: request.k,
            ef: request.ef,
            with_vector: request.with_vector,
            with_payload: request.with_payload,
            exact: request.exact,
        };
        let search = self.nearest(request.collection, vec![query], request.read, call);
        let answer = async {
            let answer = search.await;
            self.note(Verb::Search, &answer, |answer| &answer.1);
            answer
        };
        let (results, coverage) = answer.instrument(span).await?;
        Ok(v1::SearchResponse {
            hits: results.into_iter().next().unwrap_or_default(),
            coverage: Some(coverage),
        })
    }

    /// Many searches of one collection at once; answers in the order of the queries.
    ///
    /// # Errors
    /// [`QueryError`]; one bad query fails the call.
    pub async fn search_batch(
        &self,
        request: v1::SearchBatchRequest,
        call: Call,
    ) -> Result<v1::SearchBatchResponse, QueryError> {
        let span = call.span(Verb::SearchBatch.label(), &request.collection);
        let search = self.nearest(request.collection, request.queries, request.read, call);
        let answer = async {
            let answer = search.await;
            self.note(Verb::SearchBatch, &answer, |answer| &answer.1);
            answer
        };
        let (results, coverage) = answer.instrument(span).await?;
        Ok(v1::SearchBatchResponse {
            results: results
                .into_iter()
                .map(|hits| v1::HitList { hits })
                .collect(),
            coverage: Some(coverage),
        })
    }

    /// Points by id, in the order of the ids; those that are not there are left out.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn get(
        &self,
        request: v1::GetRequest,
        call: Call,
    ) -> Result<v1::GetResponse, QueryError> {
        let span = call.span(Verb::Get.label(), &request.collection);
        let answer = async {
            let answer = self.fetch(request, call).await;
            self.note(Verb::Get, &answer, covered_by_get);
            answer
        };
        answer.instrument(span).await
    }

    /// How many points there are.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn count(
        &self,
        request: v1::CountRequest,
        call: Call,
    ) -> Result<v1::CountResponse, QueryError> {
        let span = call.span(Verb::Count.label(), &request.collection);
        let answer = async {
            let answer = self.tally(request, call).await;
            self.note(Verb::Count, &answer, covered_by_count);
            answer
        };
        answer.instrument(span).await
    }

    async fn nearest(
        &self,
        collection: String,
        queries: Vec<v1::Query>,
        read: Option<v1::ReadOptions>,
        call: Call,
    ) -> Result<(Vec<Vec<v1::Hit>>, v1::Coverage), QueryError> {
        let since = Stopwatch::start();
        let shards = self.shards(&collection)?;
        self.limits.check_queries(&shards.collection, &queries)?;
        let (tokens, require_all) = self.tokens(&shards, read, &call).await?;
        let question = SearchOf {
            collection,
            queries,
        };
        let wanted = shards.numbers();
        let asked = self.ask(&shards, &question, wanted, &tokens, require_all, call);
        let Told {
            bodies,
            coverage,
            waited,
        } = asked.await?;
        let results = merge_each(&question.queries, bodies);
        let total = since.elapsed();
        self.meters.searched(question.queries.len(), total, waited);
        if tokens.is_empty() && coverage.shards_answered == coverage.shards_asked {
            let slowest_us = coverage.shards.iter().map(|shard| shard.shard_us).max();
            let slowest = Duration::from_micros(slowest_us.unwrap_or(0));
            self.meters.coordinated(total.saturating_sub(slowest));
        }
        Ok((results, coverage))
    }

    async fn fetch(
        &self,
        request: v1::GetRequest,
        call: Call,
    ) -> Result<v1::GetResponse, QueryError> {
        let shards = self.shards(&request.collection)?;
        let ids = self.limits.check_ids(&request.ids)?;
        let (tokens, require_all) = self.tokens(&shards, request.read, &call).await?;
        let mut question = PointsOf::new(request.collection, request.with_vector);
        for id in ids {
            let shard = route::partition_of(&shards.collection, &id);
            question.add(shard, id);
        }
        // A shard without ids is asked too if a token names it: the token still has to hold.
        let wanted: Vec<_> = (shards.numbers())
            .filter(|shard| question.names(*shard) || tokens.contains_key(shard))
            .collect();
        let asked = self.ask(&shards, &question, wanted, &tokens, require_all, call);
        let Told {
            bodies, coverage, ..
        } = asked.await?;
        Ok(v1::GetResponse {
            points: question.in_order(bodies.into_iter().flatten()),
            coverage: Some(coverage),
        })
    }

    async fn tally(
        &self,
        request: v1::CountRequest,
        call: Call,
    ) -> Result<v1::CountResponse, QueryError> {
        let shards = self.shards(&request.collection)?;
        let (tokens, require_all) = self.tokens(&shards, request.read, &call).await?;
        let question = CountOf {
            collection: request.collection,
        };
        let wanted = shards.numbers();
        let asked = self.ask(&shards, &question, wanted, &tokens, require_all, call);
        let Told {
            bodies, coverage, ..
        } = asked.await?;
        Ok(v1::CountResponse {
            points: bodies.iter().map(|counted| counted.live_points).sum(),
            contested: bodies.iter().map(|counted| counted.contested).sum(),
            coverage: Some(coverage),
        })
    }

    async fn ask<Q: Question>(
        &self,
        shards: &Shards,
        question: &Q,
        wanted: impl IntoIterator<Item = Partition>,
        tokens: &TokensByShard,
        require_all: bool,
        call: Call,
    ) -> Result<Told<Q::Body>, QueryError> {
        let call = Call {
            deadline: call.deadline.for_shards(),
            ..call
        };
        if call.deadline.remaining().is_zero() {
            return Err(QueryError::NoTime);
        }
        let scatter = Scatter {
            client: &*self.client,
            maps: &self.maps,
            shards,
            tokens,
            call,
        };
        let since = Stopwatch::start();
        let gathered: Gathered<Q::Body> = scatter.gather(question, wanted).await;
        let waited = since.elapsed();
        for miss in &gathered.misses {
            debug!(shard = %miss.shard, node = miss.node, why = miss.why, "shard did not answer");
        }
        let (bodies, coverage) = judge(gathered, tokens, require_all)?;
        Ok(Told {
            bodies,
            coverage,
            waited,
        })
    }

    fn shards(&self, collection: &str) -> Result<Arc<Shards>, QueryError> {
        let map = self.maps.now();
        match map.find(collection) {
            Some(shards) => Ok(shards.clone()),
            None if !map.is_complete() => Err(QueryError::NotCaughtUp),
            None => Err(check::unknown_collection(collection, &map)),
        }
    }

    async fn tokens(
        &self,
        shards: &Shards,
        read: Option<v1::ReadOptions>,
        call: &Call,
    ) -> Result<(TokensByShard, bool), QueryError> {
        let read = read.unwrap_or_default();
        if read.at_least.is_empty() {
            return Ok((TokensByShard::new(), read.require_all));
        }
        // Known a moment after the start: worth a wait, but no longer than the caller has.
        let patience = call.deadline.for_shards().remaining();
        let home = tokio::time::timeout(patience, self.home.wait()).await;
        let home = home.map_err(|_| QueryError::HomeUnknown)?;
        let tokens = by_shard(&shards.collection, home, read.at_least)?;
        Ok((tokens, read.require_all))
    }

    fn note<T>(
        &self,
        verb: Verb,
        answer: &Result<T, QueryError>,
        coverage: impl FnOnce(&T) -> &v1::Coverage,
    ) {
        let ending = match answer {
            Ok(answer) => {
                let coverage = coverage(answer);
                let missing = coverage.shards_asked - coverage.shards_answered;
                self.meters.unanswered(missing);
                if missing == 0 {
                    Ending::Ok
                } else {
                    Ending::Partial
                }
            }
            Err(error) => {
                debug!(verb = verb.label(), error = %error, "call got no answer");
                error.ending()
            }
        };
        self.meters.request(verb, ending);
    }
}

static UNCOVERED: v1::Coverage = v1::Coverage {
    shards_asked: 0,
    shards_answered: 0,
    shards: Vec::new(),
};

fn covered_by_get(answer: &v1::GetResponse) -> &v1::Coverage {
    answer.coverage.as_ref().unwrap_or(&UNCOVERED)
}

fn covered_by_count(answer: &v1::CountResponse) -> &v1::Coverage {
    answer.coverage.as_ref().unwrap_or(&UNCOVERED)
}

/// Merges the shards' hits query by query.
fn merge_each(queries: &[v1::Query], bodies: Vec<Vec<v1::HitList>>) -> Vec<Vec<v1::Hit>> {
    let mut shards: Vec<_> = bodies.into_iter().map(Vec::into_iter).collect();
    let merged = queries.iter().map(|query| {
        let lists = shards
            .iter_mut()
            .filter_map(Iterator::next)
            .map(|list| list.hits);
        merge(
            lists.collect(),
            usize::try_from(query.k).unwrap_or(usize::MAX),
        )
    });
    merged.collect()
}
