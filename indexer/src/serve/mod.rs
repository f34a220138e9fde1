//! The gRPC service query nodes ask: several shards of a collection in one call.
//!
//! Every shard answers for itself: one that is not here, is still recovering or does not reach a
//! token in time says so in its own part of the answer, and the others are not held up by it.

mod ask;
mod status;
mod upkeep;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use metrics::{counter, histogram};
use shoal_runtime::{clock::Stopwatch, tasks::blocking};
use shoal_schemas::{CollectionName, Partition, Token, v1};
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status};
use tracing::{Instrument, debug, info_span};

use crate::{
    metrics as names,
    node::{Node, NotServing, not_serving_text},
    shard::{Shared, search::Ask},
    snapshot::taker::Taker,
};

pub use self::status::Refusal;

/// What is left of a caller's deadline for the answer's way back.
const WAY_BACK: Duration = Duration::from_millis(5);
/// How long a token is waited for when the caller sets no deadline.
const DEFAULT_WAIT: Duration = Duration::from_secs(10);

/// Serves one node's shards.
#[derive(Clone)]
pub struct Service {
    node: Node,
    /// One permit a search that may run at a time.
    searches: Arc<Semaphore>,
    /// Takes snapshots, where there is a store for them.
    snapshots: Option<Taker>,
}

impl Service {
    /// A service that searches with so many threads at a time.
    pub fn new(node: Node, search_threads: usize) -> Self {
        Self {
            node,
            searches: Arc::new(Semaphore::new(search_threads)),
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
    ) -> Result<Arc<Shared>, Refusal> {
        let key = (collection.clone(), Partition(ask.shard));
        let refuse = |why: NotServing| Refusal {
            code: match why {
                NotServing::NotOwned => Code::FailedPrecondition,
                NotServing::Recovering | NotServing::CatchingUp(_) => Code::Unavailable,
            },
            message: format!("shard {}: {}", ask.shard, not_serving_text(&why)),
        };
        let held = self
            .node
            .shard(&key)
            .ok_or_else(|| refuse(NotServing::NotOwned))?;
        let shared = held.serving().map_err(refuse)?.clone();
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
        Ok(shared)
    }

    /// Runs blocking work on one shard, within the number of searches that may run.
    async fn on_shard<T: Send + 'static>(
        &self,
        shared: Arc<Shared>,
        work: impl FnOnce(&Shared) -> Result<T, crate::shard::search::ReadError> + Send + 'static,
    ) -> Result<(T, v1::ShardCoverage), Refusal> {
        let permit = self.searches.clone().acquire_owned().await;
        let permit = permit.map_err(|_| Refusal {
            code: Code::Unavailable,
            message: "indexer is stopping".into(),
        })?;
        let node = self.node.name().to_owned();
        blocking(move || {
            let watch = Stopwatch::start();
            let outcome = work(&shared);
            drop(permit);
            outcome
                .map(|value| (value, shared.coverage(&node, watch)))
                .map_err(|error| Refusal::from_read(&error))
        })
        .await
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
        queries: Arc<[v1::Query]>,
        deadline: Deadline,
    ) -> v1::ShardAnswer {
        let answered = async {
            let shared = self.ready_shard(&collection, &ask, deadline).await?;
            let asks = ask::check(&queries, &shared.spec.collection)?;
            let label = shared.spec.label();
            counter!(names::SEARCHES_TOTAL, "shard" => label)
                .increment(u64::try_from(asks.len()).unwrap_or(u64::MAX));
            self.on_shard(shared, move |shared| {
                asks.iter().map(|ask: &Ask| shared.search(ask)).collect()
            })
            .await
        };
        match answered.await {
            Ok((results, coverage)) => {
                let results: Vec<Vec<v1::Hit>> = results;
                v1::ShardAnswer {
                    coverage: Some(coverage),
                    results: results
                        .into_iter()
                        .map(|hits| v1::HitList { hits })
                        .collect(),
                    code: 0,
                }
            }
            Err(refusal) => v1::ShardAnswer {
                coverage: Some(self.uncovered(ask.shard, &refusal)),
                results: Vec::new(),
                code: refusal.number(),
            },
        }
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
            let shared = self.ready_shard(&collection, &ask, deadline).await?;
            let ids = asked.ids;
            self.on_shard(shared, move |shared| shared.points(&ids, with_vector))
                .await
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
            let shared = self.ready_shard(&collection, &ask, deadline).await?;
            self.on_shard(shared, |shared| Ok(shared.status())).await
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
        let deadline = deadline(&request);
        let span = request_span("search_shards", &request);
        let request = request.into_inner();
        let collection = collection_name(&request.collection)?;
        let queries: Arc<[v1::Query]> = request.queries.into();
        timed("search", async {
            let asks = request
                .shards
                .into_iter()
                .map(|ask| self.search_shard(collection.clone(), ask, queries.clone(), deadline));
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
        let deadline = deadline(&request);
        let span = request_span("get_points", &request);
        let request = request.into_inner();
        let collection = collection_name(&request.collection)?;
        let with_vector = request.with_vector;
        timed("get", async {
            let asks = request.shards.into_iter().map(|asked| {
                self.points_of_shard(collection.clone(), asked, with_vector, deadline)
            });
            let shards = futures::future::join_all(asks).await;
            Ok(Response::new(v1::GetPointsResponse { shards }))
        })
        .instrument(span)
        .await
    }

    async fn shard_status(
        &self,
        request: Request<v1::ShardStatusRequest>,
    ) -> Result<Response<v1::ShardStatusResponse>, Status> {
        let deadline = deadline(&request);
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
        timed("status", async {
            let asks = asks
                .into_iter()
                .map(|ask| self.status_of_shard(collection.clone(), ask, deadline));
            let shards = futures::future::join_all(asks).await;
            Ok(Response::new(v1::ShardStatusResponse { shards }))
        })
        .instrument(span)
        .await
    }
}

async fn timed<T>(verb: &'static str, work: impl Future<Output = T>) -> T {
    let watch = Stopwatch::start();
    let outcome = work.await;
    let seconds = watch.seconds();
    histogram!(names::SHARD_REQUEST_SECONDS, "verb" => verb).record(seconds);
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

/// When a call has to be answered, all its waits together.
#[derive(Clone, Copy)]
struct Deadline {
    since: Stopwatch,
    time: Duration,
}

impl Deadline {
    fn left(&self) -> Duration {
        self.time.saturating_sub(self.since.elapsed())
    }
}

/// What the caller allows, less the way back.
fn deadline<T>(request: &Request<T>) -> Deadline {
    let told = request.metadata().get("grpc-timeout");
    let told = told.and_then(|value| parse_timeout(value.to_str().ok()?));
    Deadline {
        since: Stopwatch::start(),
        time: told.map_or(DEFAULT_WAIT, |left| left.saturating_sub(WAY_BACK)),
    }
}

/// Reads gRPC's own form: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count.checked_mul(3600)?),
        "M" => Duration::from_secs(count.checked_mul(60)?),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// The span of a request, in the caller's trace if it names one.
fn request_span<T>(verb: &'static str, request: &Request<T>) -> tracing::Span {
    let peer = request.remote_addr().as_ref().map(SocketAddr::to_string);
    let trace = request
        .metadata()
        .get(shoal_schemas::headers::TRACEPARENT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    info_span!("shard_request", verb, peer, traceparent = trace)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::parse_timeout;

    #[test]
    fn timeouts_read_in_every_unit() {
        assert_eq!(parse_timeout("2S"), Some(Duration::from_secs(2)));
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("7u"), Some(Duration::from_micros(7)));
        assert_eq!(parse_timeout(""), None);
        assert_eq!(parse_timeout("5x"), None);
        assert_eq!(parse_timeout("S"), None);
    }
}
