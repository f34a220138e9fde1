//! The query node itself: check, plan, scatter, merge, answer. Knows no transport.
//!
//! gRPC and HTTP both end here, with the same messages, so they cannot disagree. Everything a call
//! needs is the newest shard map and the clients; what is kept of answers (`kept.rs`) only spares
//! work.

mod check;
mod entry;
mod kept;
mod nearest;
mod question;
mod reads;
mod recommend;
mod served;
mod wanted;

use std::{sync::Arc, time::Duration};

use shoal_runtime::{ErrorKind, clock::Stopwatch};
use shoal_schemas::{
    ClusterId, Partition, filter::FilterError, point::IdError, tenant::TenantError, v1,
};
use tokio::sync::SetOnce;
use tracing::{Instrument as _, debug};

pub use check::Limits;
pub use recommend::ExampleFault;
pub use wanted::QueryFault;

use crate::{
    admission::{self, Admission},
    cache::Cache,
    call::{Call, TimeoutError},
    client::ShardClient,
    coordinator::kept::SearchFlights,
    coverage::{CoverageError, Gathered, judge},
    edge::EdgeError,
    fleet::Fleet,
    hedge::{self, Hedging},
    metrics::{Ending, Meters, Verb},
    scatter::{Question, Scatter, Terms},
    shard_map::{Maps, Shards},
    tokens::TokenError,
};

/// The id of the cluster whose tokens name their shard; empty until a broker has told it.
pub type HomeCluster = Arc<SetOnce<ClusterId>>;

/// Answers searches, gets, counts and scrolls. Clones are one to their callers: they share what they
/// let in and what they know of the indexers.
#[derive(Clone)]
pub struct Coordinator {
    limits: Limits,
    maps: Maps,
    client: Arc<dyn ShardClient>,
    home: HomeCluster,
    meters: Arc<Meters>,
    admission: Arc<Admission>,
    fleet: Arc<Fleet>,
    hedging: Arc<Hedging>,
    cache: Option<Arc<Cache>>,
    /// Equal searches under way; `None` where each is for itself.
    flights: Option<Arc<SearchFlights>>,
}

/// Why a call got no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueryError {
    /// The definitions have not been read yet.
    #[error(
        "collections have not been read yet from the control topic, or where query.map.source says; try again in a moment"
    )]
    NotCaughtUp,
    /// There is no such collection.
    #[error("collection `{name}` does not exist; there are: {existing}")]
    UnknownCollection {
        /// As asked for, cut where it is long.
        name: String,
        /// Names that exist, for reading.
        existing: String,
    },
    /// A query.
    #[error("query {at} is refused")]
    Query {
        /// Its place in the request, from 0.
        at: usize,
        /// What is wrong with it.
        source: QueryFault,
    },
    /// The examples of a recommendation.
    #[error(transparent)]
    Examples(#[from] ExampleFault),
    /// The filter of a count or a scroll.
    #[error(transparent)]
    Filter(FilterError),
    /// The tenant of a get, a count or a scroll.
    #[error(transparent)]
    Tenant(#[from] TenantError),
    /// An id of somebody else.
    #[error("id {at} is not one of tenant `{tenant}`: its ids begin with `{tenant}/`")]
    ForeignId {
        /// Its place in the request, from 0.
        at: usize,
        /// The tenant.
        tenant: String,
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
    /// More calls are under way than this node takes.
    #[error(
        "as many calls are under way as this node takes, and {waiting} wait already; try again in \
         {} ms, or ask another query node",
        .retry_after.as_millis()
    )]
    Busy {
        /// Calls that wait.
        waiting: u32,
        /// When there may be room.
        retry_after: Duration,
    },
    /// The deadline was over before anything was asked.
    #[error("the deadline was over before a shard was asked; allow more time")]
    NoTime,
    /// What came back is no answer.
    #[error(transparent)]
    Coverage(#[from] CoverageError),
    /// What the regions of an edge node did.
    #[error(transparent)]
    Edge(#[from] EdgeError),
}

impl QueryError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotCaughtUp | Self::HomeUnknown | Self::NoTime | Self::Busy { .. } => {
                ErrorKind::Retry
            }
            Self::Coverage(error) => error.kind(),
            Self::Edge(error) => error.kind(),
            _ => ErrorKind::Caller,
        }
    }

    pub(crate) fn ending(&self) -> Ending {
        match self {
            Self::NoTime | Self::Coverage(CoverageError::TokenTooLate(_)) => Ending::Deadline,
            Self::Busy { .. } | Self::Coverage(CoverageError::Busy { .. }) => Ending::Busy,
            Self::Edge(EdgeError::NoTime(_)) => Ending::Deadline,
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
            meters: Arc::new(Meters::new()),
            admission: Arc::new(Admission::new(admission::Config::default())),
            fleet: Arc::new(Fleet::new()),
            hedging: Arc::new(Hedging::new(hedge::Config::default())),
            cache: None,
            flights: Some(Arc::default()),
        }
    }

    /// The same coordinator, which asks through another client: connections of its own for a
    /// thread of its own.
    #[must_use]
    pub fn through(&self, client: Arc<dyn ShardClient>) -> Self {
        Self {
            client,
            ..self.clone()
        }
    }

    /// The same coordinator, which lets calls in like that.
    #[must_use]
    pub fn admitting(self, config: admission::Config) -> Self {
        Self {
            admission: Arc::new(Admission::new(config)),
            ..self
        }
    }

    /// The same coordinator, which hedges like that.
    #[must_use]
    pub fn hedging(self, config: hedge::Config) -> Self {
        Self {
            hedging: Arc::new(Hedging::new(config)),
            ..self
        }
    }

    /// The same coordinator, which keeps answers there.
    #[must_use]
    pub(crate) fn keeping(self, cache: Option<Arc<Cache>>) -> Self {
        Self { cache, ..self }
    }

    /// The same coordinator, in which equal searches wait for each other, or do not.
    #[must_use]
    pub fn sharing(self, shares: bool) -> Self {
        Self {
            flights: shares.then(Arc::default),
            ..self
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
            filter: request.filter,
            max_distance: request.max_distance,
            group_by: request.group_by,
            include_payload: request.include_payload,
            exclude_payload: request.exclude_payload,
            offset: request.offset,
            after: request.after,
            explain: request.explain,
            tenant: request.tenant,
        };
        let asked = v1::SearchBatchRequest {
            collection: request.collection,
            queries: vec![query],
            read: request.read,
        };
        let answer = async {
            let answer = self.searched(asked, call).await;
            self.note(Verb::Search, &answer, |answer| &answer.1);
            answer
        };
        let (results, coverage) = answer.instrument(span).await?;
        let found = results.into_iter().next().unwrap_or_default();
        Ok(v1::SearchResponse {
            hits: found.hits,
            coverage: Some(coverage),
            groups: found.groups,
            explain: found.explain,
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
        let answer = async {
            let answer = self.searched(request, call).await;
            self.note(Verb::SearchBatch, &answer, |answer| &answer.1);
            answer
        };
        let (results, coverage) = answer.instrument(span).await?;
        Ok(v1::SearchBatchResponse {
            results,
            coverage: Some(coverage),
        })
    }

    /// The nearest points to examples, which are not among them.
    ///
    /// # Errors
    /// [`QueryError`]; [`ExampleFault::Unknown`] if an example is not there.
    pub async fn recommend(
        &self,
        request: v1::RecommendRequest,
        call: Call,
    ) -> Result<v1::SearchResponse, QueryError> {
        let span = call.span(Verb::Recommend.label(), &request.collection);
        let answer = async {
            let answer = self.admitted(call, self.alike(request, call)).await;
            self.note(Verb::Recommend, &answer, |answer| &answer.1);
            answer
        };
        let (found, coverage) = answer.instrument(span).await?;
        Ok(v1::SearchResponse {
            hits: found.hits,
            coverage: Some(coverage),
            groups: found.groups,
            explain: found.explain,
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
            let answer = self.admitted(call, self.fetch(request, call)).await;
            self.note(Verb::Get, &answer, covered_by_get);
            answer
        };
        answer.instrument(span).await
    }

    /// Points in the order of their ids, page by page.
    ///
    /// # Errors
    /// [`QueryError`].
    pub async fn scroll(
        &self,
        request: v1::ScrollRequest,
        call: Call,
    ) -> Result<v1::ScrollResponse, QueryError> {
        let span = call.span(Verb::Scroll.label(), &request.collection);
        let answer = async {
            let answer = self.admitted(call, self.page(request, call)).await;
            self.note(Verb::Scroll, &answer, covered_by_scroll);
            answer
        };
        answer.instrument(span).await
    }

    /// How many points there are, or how many match.
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
            let answer = self.admitted(call, self.tally(request, call)).await;
            self.note(Verb::Count, &answer, covered_by_count);
            answer
        };
        answer.instrument(span).await
    }

    /// Every shard of a collection: who serves it, what it holds, how far behind it is.
    ///
    /// # Errors
    /// [`QueryError`]; a shard that does not answer is none.
    pub async fn shards_of(
        &self,
        request: v1::ShardsRequest,
        call: Call,
    ) -> Result<v1::ShardsResponse, QueryError> {
        let span = call.span(Verb::Shards.label(), &request.collection);
        let answer = async {
            let answer = self.admitted(call, self.served(request, call)).await;
            let ending = answer.as_ref().map_or_else(QueryError::ending, |answer| {
                let is_whole = answer.shards.iter().all(|shard| shard.answered);
                if is_whole {
                    Ending::Ok
                } else {
                    Ending::Partial
                }
            });
            self.meters.request(Verb::Shards, ending);
            answer
        };
        answer.instrument(span).await
    }

    async fn ask<Q: Question>(
        &self,
        shards: &Shards,
        question: &Q,
        wanted: impl IntoIterator<Item = Partition>,
        terms: &Terms,
        call: Call,
    ) -> Result<Told<Q::Body>, QueryError> {
        let (gathered, waited) = self.gather(shards, question, wanted, terms, call).await?;
        let (bodies, mut coverage) = judge(gathered, terms)?;
        coverage.collection = shards.collection.name.to_string();
        Ok(Told {
            bodies,
            coverage,
            waited,
        })
    }

    async fn gather<Q: Question>(
        &self,
        shards: &Shards,
        question: &Q,
        wanted: impl IntoIterator<Item = Partition>,
        terms: &Terms,
        call: Call,
    ) -> Result<(Gathered<Q::Body>, Duration), QueryError> {
        let call = Call {
            deadline: call.deadline.for_shards(),
            ..call
        };
        if call.deadline.remaining().is_zero() {
            return Err(QueryError::NoTime);
        }
        let scatter = Scatter {
            client: &*self.client,
            fleet: &self.fleet,
            hedging: &self.hedging,
            meters: &self.meters,
            maps: &self.maps,
            shards,
            terms,
            call,
        };
        let since = Stopwatch::start();
        let gathered: Gathered<Q::Body> = scatter.gather(question, wanted).await;
        let waited = since.elapsed();
        for miss in &gathered.misses {
            debug!(shard = %miss.shard, node = miss.node, why = miss.why, "shard did not answer");
        }
        Ok((gathered, waited))
    }

    fn shards(&self, collection: &str) -> Result<Arc<Shards>, QueryError> {
        let map = self.maps.now();
        match map.find(collection) {
            Some(shards) => Ok(shards.clone()),
            None if !map.is_complete() => Err(QueryError::NotCaughtUp),
            None => Err(check::unknown_collection(collection, &map)),
        }
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
    age_ms: None,
    region: String::new(),
    expires_at_ms: 0,
    collection: String::new(),
};

fn covered_by_get(answer: &v1::GetResponse) -> &v1::Coverage {
    answer.coverage.as_ref().unwrap_or(&UNCOVERED)
}

fn covered_by_count(answer: &v1::CountResponse) -> &v1::Coverage {
    answer.coverage.as_ref().unwrap_or(&UNCOVERED)
}

fn covered_by_scroll(answer: &v1::ScrollResponse) -> &v1::Coverage {
    answer.coverage.as_ref().unwrap_or(&UNCOVERED)
}
