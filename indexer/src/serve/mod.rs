//! The gRPC service query nodes ask: several shards of a collection in one call.
//!
//! Every shard answers for itself: one that is not here, is still recovering or does not reach a
//! token in time says so in its own part of the answer, and the others are not held up by it.
//! Work whose caller is gone or waits no longer is given up.

mod ask;
mod gate;
mod pace;
mod patience;
mod pooled;
mod resolve;
mod status;
mod upkeep;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use metrics::{Histogram, histogram};
use shoal_runtime::{clock::Stopwatch, serving, tasks::blocking};
use shoal_schemas::{CollectionName, Partition, Token, v1};
use tonic::{Code, Request, Response, Status};
use tracing::{Instrument, debug, debug_span, field::display, info_span};

use self::{ask::Asked, gate::Gate, patience::Deadline};
use crate::{
    metrics as names,
    node::{Held, Node, NotServing, not_serving_text},
    resolve::Resolver,
    shard::{
        Shared,
        search::{Ask, ReadError},
    },
    snapshot::taker::Taker,
};

pub use self::{pace::Pace, status::Refusal};

/// Serves one node's shards.
#[derive(Clone)]
pub struct Service {
    node: Node,
    searches: Gate,
    /// The same for everything else, so that long searches hold up no question for a state.
    reads: Gate,
    meters: Meters,
    resolver: Resolver,
    /// Takes snapshots, where there is a store for them.
    snapshots: Option<Taker>,
}

/// Time for a request, by verb: looked up once.
#[derive(Clone)]
struct Meters {
    search: Histogram,
    get: Histogram,
    count: Histogram,
    scroll: Histogram,
    status: Histogram,
    resolve: Histogram,
    buckets: Histogram,
    bucket_ids: Histogram,
    expired_ids: Histogram,
    snapshot: Histogram,
}

/// A shard that serves: what the node knows of it, and the shard.
struct Ready {
    held: Arc<Held>,
    shared: Arc<Shared>,
}

impl Service {
    /// A service that searches with so many threads at a time, while so many more searches wait.
    pub fn new(node: Node, search_threads: usize, queue: u32, resolver: Resolver) -> Self {
        let meter = |verb: &'static str| histogram!(names::SHARD_REQUEST_SECONDS, "verb" => verb);
        Self {
            node,
            resolver,
            searches: Gate::new(search_threads, queue),
            reads: Gate::new(search_threads, queue),
            meters: Meters {
                search: meter("search"),
                get: meter("get"),
                count: meter("count"),
                scroll: meter("scroll"),
                status: meter("status"),
                resolve: meter("resolve"),
                buckets: meter("buckets"),
                bucket_ids: meter("bucket_ids"),
                expired_ids: meter("expired_ids"),
                snapshot: meter("snapshot"),
            },
            snapshots: None,
        }
    }

    /// The same service, which takes snapshots when it is asked to.
    #[must_use]
    pub fn with_snapshots(self, taker: Taker) -> Self {
        Self {
            snapshots: Some(taker),
            ..self
        }
    }

    /// Finds a shard that serves, and waits for the tokens asked for.
    async fn ready_shard(
        &self,
        collection: &CollectionName,
        ask: &v1::ShardAsk,
        deadline: Deadline,
    ) -> Result<Ready, Refusal> {
        let key = (collection.clone(), Partition(ask.shard));
        let refuse = |why: NotServing| not_serving(ask.shard, &why);
        let held = self
            .node
            .shard(&key)
            .ok_or_else(|| refuse(NotServing::NotOwned))?;
        let shared = held.answering().map_err(refuse)?.clone();
        for token in &ask.at_least {
            let token = Token::from_proto(token.clone()).map_err(|error| Refusal {
                code: Code::InvalidArgument,
                message: format!("token: {error}"),
            })?;
            match tokio::time::timeout(deadline.left(), shared.wait_for(&token)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(Refusal::from_read(&error)),
                Err(_) => {
                    return Err(Refusal {
                        code: Code::DeadlineExceeded,
                        message: format!(
                            "shard {} has not applied offset {} of {} within the deadline",
                            ask.shard, token.offset, token.topic
                        ),
                    });
                }
            }
        }
        Ok(Ready { held, shared })
    }

    /// Runs blocking work on one shard, within the number of works that may run and wait.
    async fn on_shard<T: Send + 'static>(
        &self,
        gate: &Gate,
        shared: Arc<Shared>,
        work: impl FnOnce(&Shared) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<(T, v1::ShardCoverage), Refusal> {
        let permit = gate.enter().await?;
        let node = self.node.name().to_owned();
        blocking(move || {
            let done = measured(&shared, &node, work);
            drop(permit);
            done
        })
        .await
    }

    /// The same for a search, which is done right here if it is expected to be short.
    ///
    /// `shards` is how many the request asks for: all of them together have to be short, one after
    /// the other, and no other call may wait for this thread.
    async fn search_on_shard(
        &self,
        ready: Ready,
        asks: Arc<[Ask]>,
        deadline: Deadline,
        shards: u64,
    ) -> Result<(Vec<v1::HitList>, v1::ShardCoverage), Refusal> {
        let Ready { held, shared } = ready;
        let walked = pace::walked(&asks, &shared.spec.collection.index);
        // The caller is told of by being dropped, which a search right here would not see.
        let (_caller, patience) = patience::of(deadline);
        let pace = held.clone();
        let work = move |shared: &Shared| {
            let watch = Stopwatch::start();
            let stop = || patience.is_over();
            let found = asks.iter().map(|ask| shared.answer(ask, &stop));
            let found = found.collect::<Result<Vec<_>, _>>();
            if let Some(points) = walked {
                pace.pace.took(points, watch.elapsed());
            }
            found
        };
        let is_short = |points: u64| held.pace.is_short(points, shards);
        if !walked.is_some_and(is_short) || serving::others_wait() {
            return self.on_shard(&self.searches, shared, work).await;
        }
        let _permit = self.searches.enter().await?;
        measured(&shared, self.node.name(), work)
    }

    fn uncovered(&self, shard: u32, refusal: &Refusal) -> v1::ShardCoverage {
        v1::ShardCoverage {
            shard,
            answered: false,
            error: refusal.message.clone(),
            node: self.node.name().to_owned(),
            ..v1::ShardCoverage::default()
        }
    }

    async fn search_shard(
        &self,
        collection: CollectionName,
        ask: v1::ShardAsk,
        of: &Asked,
        deadline: Deadline,
        shards: u64,
    ) -> v1::ShardAnswer {
        let answered = async {
            let ready = self.ready_shard(&collection, &ask, deadline).await?;
            let known = of.known.iter().find(|known| known.shard == ask.shard);
            if let Some(known) = known {
                // Before it is looked whether it still holds, as with every answer.
                let coverage = ready.shared.coverage(self.node.name());
                if (ready.shared).still_answers(&known.version, known.expires_at_ms) {
                    return Ok(v1::ShardAnswer {
                        coverage: Some(coverage),
                        version: known.version.clone(),
                        unchanged: true,
                        ..v1::ShardAnswer::default()
                    });
                }
            }
            let asks = of.checked(&ready.shared.spec.collection)?;
            let count = u64::try_from(asks.len()).unwrap_or(u64::MAX);
            ready.held.searches.increment(count);
            let version = ready.shared.version();
            let searched = self.search_on_shard(ready, asks, deadline, shards);
            let (results, coverage) = searched.await?;
            Ok(v1::ShardAnswer {
                coverage: Some(coverage),
                results,
                version,
                ..v1::ShardAnswer::default()
            })
        };
        answered
            .await
            .unwrap_or_else(|refusal: Refusal| v1::ShardAnswer {
                coverage: Some(self.uncovered(ask.shard, &refusal)),
                code: refusal.number(),
                ..v1::ShardAnswer::default()
            })
    }

    async fn points_of_shard(
        &self,
        collection: CollectionName,
        asked: v1::ShardIds,
        with_vector: bool,
        deadline: Deadline,
    ) -> v1::ShardPoints {
        let ask = asked.ask.unwrap_or_default();
        let answered = async {
            let Ready { shared, .. } = self.ready_shard(&collection, &ask, deadline).await?;
            let ids = asked.ids;
            let work = move |shared: &Shared| shared.points(&ids, with_vector);
            self.on_shard(&self.reads, shared, work).await
        };
        match answered.await {
            Ok((points, coverage)) => v1::ShardPoints {
                coverage: Some(coverage),
                points,
                code: 0,
            },
            Err(refusal) => v1::ShardPoints {
                coverage: Some(self.uncovered(ask.shard, &refusal)),
                points: Vec::new(),
                code: refusal.number(),
            },
        }
    }

    async fn count_of_shard(
        &self,
        collection: CollectionName,
        ask: v1::ShardAsk,
        wanted: Arc<v1::CountPointsRequest>,
        deadline: Deadline,
    ) -> v1::ShardCount {
        let answered = async {
            let Ready { shared, .. } = self.ready_shard(&collection, &ask, deadline).await?;
            let of = &shared.spec.collection;
            let asked = ask::check_count(wanted.filter.as_ref(), &wanted.tenant, of)?;
            let work = move |shared: &Shared| shared.count(&asked);
            self.on_shard(&self.reads, shared, work).await
        };
        match answered.await {
            Ok((points, coverage)) => v1::ShardCount {
                coverage: Some(coverage),
                points,
                code: 0,
            },
            Err(refusal) => v1::ShardCount {
                coverage: Some(self.uncovered(ask.shard, &refusal)),
                points: 0,
                code: refusal.number(),
            },
        }
    }

    async fn scroll_of_shard(
        &self,
        collection: CollectionName,
        ask: v1::ShardAsk,
        wanted: Arc<v1::ShardScrollRequest>,
        deadline: Deadline,
    ) -> v1::ShardPoints {
        let answered = async {
            let Ready { shared, .. } = self.ready_shard(&collection, &ask, deadline).await?;
            let asked = ask::check_scroll(&wanted, &shared.spec.collection)?;
            let work = move |shared: &Shared| shared.scroll(&asked);
            self.on_shard(&self.reads, shared, work).await
        };
        match answered.await {
            Ok((points, coverage)) => v1::ShardPoints {
                coverage: Some(coverage),
                points,
                code: 0,
            },
            Err(refusal) => v1::ShardPoints {
                coverage: Some(self.uncovered(ask.shard, &refusal)),
                points: Vec::new(),
                code: refusal.number(),
            },
        }
    }

    async fn status_of_shard(
        &self,
        collection: CollectionName,
        ask: v1::ShardAsk,
        deadline: Deadline,
    ) -> v1::ShardStatus {
        let answered = async {
            let Ready { shared, .. } = self.ready_shard(&collection, &ask, deadline).await?;
            let work = |shared: &Shared| Ok(shared.status());
            self.on_shard(&self.reads, shared, work).await
        };
        match answered.await {
            Ok((status, coverage)) => v1::ShardStatus {
                coverage: Some(coverage),
                ..status
            },
            Err(refusal) => v1::ShardStatus {
                coverage: Some(self.uncovered(ask.shard, &refusal)),
                code: refusal.number(),
                ..v1::ShardStatus::default()
            },
        }
    }
}

#[tonic::async_trait]
impl v1::shard_server::Shard for Service {
    async fn search_shards(
        &self,
        request: Request<v1::SearchShardsRequest>,
    ) -> Result<Response<v1::SearchShardsResponse>, Status> {
        let deadline = Deadline::of(&request);
        let span = request_span("search_shards", &request);
        let mut request = request.into_inner();
        let collection = collection_name(&request.collection)?;
        let asks = std::mem::take(&mut request.shards);
        let of = Asked::new(request);
        timed(&self.meters.search, async {
            let together = self.search_together(&collection, &asks, &of, deadline);
            if let Some(shards) = together.await {
                return Ok(Response::new(v1::SearchShardsResponse { shards }));
            }
            let count = u64::try_from(asks.len()).unwrap_or(u64::MAX);
            let asks = asks
                .into_iter()
                .map(|ask| self.search_shard(collection.clone(), ask, &of, deadline, count));
            let shards = futures::future::join_all(asks).await;
            Ok(Response::new(v1::SearchShardsResponse { shards }))
        })
        .instrument(span)
        .await
    }

    async fn get_points(
        &self,
        request: Request<v1::GetPointsRequest>,
    ) -> Result<Response<v1::GetPointsResponse>, Status> {
        let deadline = Deadline::of(&request);
        let span = request_span("get_points", &request);
        let request = request.into_inner();
        let collection = collection_name(&request.collection)?;
        let with_vector = request.with_vector;
        timed(&self.meters.get, async {
            let asks = request.shards.into_iter().map(|asked| {
                self.points_of_shard(collection.clone(), asked, with_vector, deadline)
            });
            let shards = futures::future::join_all(asks).await;
            Ok(Response::new(v1::GetPointsResponse { shards }))
        })
        .instrument(span)
        .await
    }

    async fn count_points(
        &self,
        request: Request<v1::CountPointsRequest>,
    ) -> Result<Response<v1::CountPointsResponse>, Status> {
        let deadline = Deadline::of(&request);
        let span = request_span("count_points", &request);
        let mut request = request.into_inner();
        let collection = collection_name(&request.collection)?;
        let asks = std::mem::take(&mut request.shards);
        let wanted = Arc::new(request);
        timed(&self.meters.count, async {
            let asks = asks
                .into_iter()
                .map(|ask| self.count_of_shard(collection.clone(), ask, wanted.clone(), deadline));
            let shards = futures::future::join_all(asks).await;
            Ok(Response::new(v1::CountPointsResponse { shards }))
        })
        .instrument(span)
        .await
    }

    async fn shard_scroll(
        &self,
        request: Request<v1::ShardScrollRequest>,
    ) -> Result<Response<v1::ShardScrollResponse>, Status> {
        let deadline = Deadline::of(&request);
        let span = request_span("shard_scroll", &request);
        let mut request = request.into_inner();
        let collection = collection_name(&request.collection)?;
        let asks = std::mem::take(&mut request.shards);
        let wanted = Arc::new(request);
        timed(&self.meters.scroll, async {
            let asks = asks
                .into_iter()
                .map(|ask| self.scroll_of_shard(collection.clone(), ask, wanted.clone(), deadline));
            let shards = futures::future::join_all(asks).await;
            Ok(Response::new(v1::ShardScrollResponse { shards }))
        })
        .instrument(span)
        .await
    }

    async fn shard_status(
        &self,
        request: Request<v1::ShardStatusRequest>,
    ) -> Result<Response<v1::ShardStatusResponse>, Status> {
        let deadline = Deadline::of(&request);
        let span = request_span("shard_status", &request);
        let request = request.into_inner();
        let collection = collection_name(&request.collection)?;
        let mut asks = request.shards;
        if asks.is_empty() {
            let held = self.node.shards_of(&collection).into_iter();
            asks = held
                .map(|(shard, _)| v1::ShardAsk {
                    shard: shard.0,
                    at_least: Vec::new(),
                })
                .collect();
        }
        timed(&self.meters.status, async {
            let asks = asks
                .into_iter()
                .map(|ask| self.status_of_shard(collection.clone(), ask, deadline));
            let shards = futures::future::join_all(asks).await;
            Ok(Response::new(v1::ShardStatusResponse { shards }))
        })
        .instrument(span)
        .await
    }

    async fn resolve(
        &self,
        request: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveResponse>, Status> {
        let deadline = resolve::Deadline::within(Deadline::of(&request).left());
        let span = request_span("resolve", &request);
        let trace = resolve::trace(&request);
        let request = request.into_inner();
        let answer = self.resolve_changes(request, trace, deadline);
        timed(&self.meters.resolve, async {
            answer.await.map(Response::new)
        })
        .instrument(span)
        .await
    }
}

fn not_serving(shard: u32, why: &NotServing) -> Refusal {
    Refusal {
        code: match why {
            NotServing::NotOwned => Code::FailedPrecondition,
            NotServing::Recovering | NotServing::CatchingUp { .. } => Code::Unavailable,
        },
        message: format!("shard {shard}: {}", not_serving_text(why)),
    }
}

/// Does work on a shard; the coverage says where the shard stood and how long it took.
fn measured<T>(
    shared: &Shared,
    node: &str,
    work: impl FnOnce(&Shared) -> Result<T, ReadError>,
) -> Result<(T, v1::ShardCoverage), Refusal> {
    let watch = Stopwatch::start();
    // Before the work: what is applied while it goes on need not be in the answer.
    let mut coverage = shared.coverage(node);
    let value = work(shared).map_err(|error| Refusal::from_read(&error))?;
    coverage.shard_us = micros(watch.elapsed());
    Ok((value, coverage))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

async fn timed<T>(meter: &Histogram, work: impl Future<Output = T>) -> T {
    let watch = Stopwatch::start();
    let outcome = work.await;
    let seconds = watch.seconds();
    meter.record(seconds);
    // Inside the request's span, which names the caller's trace.
    debug!(seconds, "shard request answered");
    outcome
}

fn collection_name(name: &str) -> Result<CollectionName, Status> {
    name.parse()
        .map_err(|error: shoal_schemas::name::NameError| {
            Status::invalid_argument(error.to_string())
        })
}

/// The span of a request, in the caller's trace if it names one.
fn request_span<T>(verb: &'static str, request: &Request<T>) -> tracing::Span {
    let peer = request.remote_addr().map(display::<SocketAddr>);
    let trace = request.metadata().get(shoal_schemas::headers::TRACEPARENT);
    match trace.and_then(|value| value.to_str().ok()) {
        Some(trace) => info_span!("shard_request", verb, peer, traceparent = trace),
        // Nobody can join these lines to a trace, so the span is for debugging only.
        None => debug_span!("shard_request", verb, peer),
    }
}
