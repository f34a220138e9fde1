//! An edge node: no shards and no Kafka. It forwards every call to the nearest region that answers.
//!
//! ```text
//! call -> kept and fresh? -> equal one under way? -> nearest region -> next one -> kept, though old
//! ```
//!
//! A call is passed on as it came, tokens and all, and a region's answer comes back as it was, with
//! the region's name in it. Where a region cannot be reached, takes more than half of the time that
//! is left, or says that it cannot answer now, the next one is asked, within the caller's deadline.
//! What is wrong with the call is wrong everywhere and is told at once. Answers are kept whole
//! (`query.cache`): given without asking while they are younger than `ttl`, and up to `max_stale`
//! while no region answers; both say their age. A call with tokens gets neither, one with
//! `max_staleness_ms` only what is no more behind than that.

mod choice;
mod config;
mod forwarded;
mod probe;

use std::{
    any::Any,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use prost::Message as _;
use shoal_runtime::ErrorKind;
use shoal_schemas::v1;
use tracing::debug;

pub use self::config::{Config, Region as RegionConfig};
pub(crate) use self::forwarded::Forwarded;
use self::{choice::order, probe::Place};
use crate::{
    cache::{Cache, KeptAnswer, Key, KeyOf, Lookup},
    call::{Call, Deadline},
    client::{
        ShardCall,
        regions::{Region, RegionError},
    },
    coordinator::QueryError,
    flight::{Flights, Takes},
    metrics::{Ending, Meters},
};

/// What names of kept answers begin with; another form of question or answer needs another text.
const KEPT: &str = "shoal 2026 kept edge answers v1";
/// The same for calls under way.
const UNDER_WAY: &str = "shoal 2026 edge call under way v1";
/// No region was asked yet.
const NONE: usize = usize::MAX;

/// Forwards calls to regions.
pub(crate) struct Edge {
    places: Vec<Arc<Place>>,
    /// The place of the region that was asked first the last time.
    current: AtomicUsize,
    cache: Option<Arc<Cache>>,
    flights: Option<Flights<Key, Result<Told, EdgeError>>>,
    max_stale: Duration,
    /// The regions, as a part of every name.
    named: KeyOf,
    meters: Meters,
}

/// What the node knows of a region.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RegionState {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) is_up: bool,
    pub(crate) rtt_ms: Option<f64>,
}

/// Why an edge node has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EdgeError {
    /// No region can be reached.
    #[error("no region answers: {}", Listed(.0))]
    Unreachable(Vec<Tried>),
    /// None answered before the deadline.
    #[error("no region answered before the deadline: {}; allow more time", Listed(.0))]
    NoTime(Vec<Tried>),
    /// A region answered with an error.
    #[error("region `{region}`: {message}")]
    Refused {
        /// The region.
        region: String,
        /// A `google.rpc.Code` number.
        code: i32,
        /// What it says.
        message: String,
        /// When to try again, if it says so.
        retry_after: Option<Duration>,
    },
    /// What a region answered does not read.
    #[error("the answer of a region does not read; is it of another version?")]
    Malformed,
}

/// A region that was asked, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The region.
    pub region: String,
    /// Why it gave no answer.
    pub why: String,
}

struct Listed<'a>(&'a [Tried]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Tried { region, why }) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}`{region}` {why}")?;
        }
        Ok(())
    }
}

impl EdgeError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreachable(_) | Self::NoTime(_) => ErrorKind::Retry,
            Self::Refused { .. } if self.may_be_bridged() => ErrorKind::Retry,
            Self::Refused { .. } => ErrorKind::Caller,
            Self::Malformed => ErrorKind::Bug,
        }
    }

    /// Whether an old answer is better than this: not where the call itself is wrong.
    fn may_be_bridged(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::NoTime(_) => true,
            Self::Refused { code, .. } => RegionError::is_passing(*code),
            Self::Malformed => false,
        }
    }
}

/// What a region told to one call, for all that wait for it.
#[derive(Clone)]
struct Told {
    /// The answer, of the type that the call's verb has: it is made into bytes only to be kept.
    answer: Arc<dyn Any + Send + Sync>,
    /// How far behind its shards were at most.
    lag: Duration,
}

impl Told {
    /// The answer to a call, which is no copy if nobody else waits for it.
    fn into_answer<R: Forwarded>(self) -> R::Answer {
        let answer = self.answer.downcast::<R::Answer>();
        Arc::unwrap_or_clone(answer.expect("the verb is in the name of what is under way"))
    }
}

/// What a caller insists on, as far as kept answers are concerned.
struct Insists {
    tokens: bool,
    bound: Option<Duration>,
}

impl Edge {
    pub(super) fn of(
        config: &Config,
        places: Vec<Arc<Place>>,
        cache: Option<Arc<Cache>>,
        shares: bool,
    ) -> Self {
        let named = config.regions.iter().fold(KeyOf::new(KEPT), |named, one| {
            named.with(&one.name).with(&one.address)
        });
        Self {
            places,
            current: AtomicUsize::new(NONE),
            cache,
            flights: shares.then(Flights::default),
            max_stale: config.max_stale,
            named,
            meters: Meters::new(),
        }
    }

    /// What is known of the regions.
    pub(crate) fn regions(&self) -> Vec<RegionState> {
        self.places.iter().map(|place| place.state()).collect()
    }

    /// Whether any region is asked, as far as is known.
    pub(crate) fn reaches_any(&self) -> bool {
        self.places.iter().any(|place| place.is_up())
    }

    /// Whether it has something to give while it reaches no region.
    pub(crate) fn bridges(&self) -> bool {
        self.cache.is_some() && !self.max_stale.is_zero()
    }

    /// Answers a call: from what is kept, or by a region.
    pub(crate) async fn ask<R: Forwarded>(
        &self,
        request: R,
        call: Call,
    ) -> Result<R::Answer, QueryError> {
        let answered = self.answer(request, call).await;
        let ending = match &answered {
            Ok(answer) => R::coverage(answer).map_or(Ending::Ok, |coverage| {
                match coverage.shards_answered < coverage.shards_asked {
                    true => Ending::Partial,
                    false => Ending::Ok,
                }
            }),
            Err(error) => {
                debug!(verb = R::VERB.label(), %error, "call got no answer");
                error.ending()
            }
        };
        self.meters.request(R::VERB, ending);
        answered
    }

    async fn answer<R: Forwarded>(
        &self,
        mut request: R,
        call: Call,
    ) -> Result<R::Answer, QueryError> {
        let read = request.take_read();
        let key = self.name_of(&request);
        let insists = Insists {
            tokens: read.as_ref().is_some_and(|read| !read.at_least.is_empty()),
            bound: (read.as_ref())
                .and_then(|read| read.max_staleness_ms)
                .map(Duration::from_millis),
        };
        let under_way = KeyOf::new(UNDER_WAY).with(key.bytes());
        let under_way = under_way.with(read.clone().unwrap_or_default().encode_to_vec());
        let queries = request.queries();
        let may_keep = request.may_be_kept() && !insists.tokens;
        request.put_read(read);

        let cache = self.cache.as_ref().filter(|_| may_keep);
        let mut held = None;
        if let Some(cache) = cache {
            let is_fresh = |kept: &KeptAnswer| is_good(cache, kept, cache.ttl, &insists);
            let found = cache.find(key, call.deadline, |kept| {
                cache.ttl.is_zero() || is_fresh(kept)
            });
            held = found.await;
            if let Some(kept) = held.as_ref().filter(|kept| is_fresh(kept)) {
                cache.meters.looked_up(Lookup::Fresh);
                return given::<R>(cache, kept);
            }
        }
        let is_old_enough = |kept: &&KeptAnswer| {
            cache.is_some_and(|cache| is_good(cache, kept, self.max_stale, &insists))
        };
        let bridge = || held.as_ref().filter(is_old_enough);
        // Where nobody is known to answer, what there is comes first.
        if !self.reaches_any()
            && let (Some(kept), Some(cache)) = (bridge(), cache)
        {
            cache.meters.looked_up(Lookup::Stale);
            return given::<R>(cache, kept);
        }
        if let Some(cache) = cache {
            cache.meters.looked_up(Lookup::Missing);
        }
        let keep_under = cache.map(|_| key);
        let work = self.forward(request, keep_under, call);
        let answered = match &self.flights {
            None => work.await,
            Some(flights) => {
                let takes =
                    |told: &Result<Told, EdgeError>, since| may_take(told, since, insists.bound);
                let landed = flights.once(under_way.finish(), call.deadline, work, takes);
                let landed = landed.await;
                if landed.is_shared {
                    self.meters.shared(queries);
                }
                landed.value
            }
        };
        match answered {
            Ok(told) => Ok(told.into_answer::<R>()),
            // By its age now: asking took time.
            Err(error) => match (bridge(), cache) {
                (Some(kept), Some(cache)) if error.may_be_bridged() => {
                    cache.meters.looked_up(Lookup::Stale);
                    given::<R>(cache, kept)
                }
                _ => Err(error.into()),
            },
        }
    }

    /// What the answer to a request, without what its caller insists on, is kept under.
    fn name_of<R: Forwarded>(&self, request: &R) -> Key {
        let name = self.named.clone().with(R::VERB.label());
        name.with(request.encode_to_vec()).finish()
    }

    /// Asks one region after the other, and keeps what the first answers.
    async fn forward<R: Forwarded>(
        &self,
        request: R,
        keep_under: Option<Key>,
        call: Call,
    ) -> Result<Told, EdgeError> {
        let trace = call.trace;
        let now_ms = || self.cache.as_ref().map_or(0, |cache| cache.now_ms());
        let asked_ms = now_ms();
        let told = self.try_each(call.deadline.for_shards(), |region, timeout| {
            let call = ShardCall { timeout, trace };
            request.clone().send(region, call)
        });
        let (place, mut answer) = told.await?;
        let (mut lag, mut age) = (Duration::ZERO, Duration::ZERO);
        if let Some(coverage) = R::coverage_mut(&mut answer) {
            coverage.region.clone_from(&place.name);
            let shards = coverage.shards.iter().filter(|shard| shard.answered);
            let seconds = shards.map(|shard| shard.lag_seconds).fold(0.0, f64::max);
            lag = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
            // The region may have kept it.
            age = Duration::from_millis(coverage.age_ms.unwrap_or_default());
        }
        if let (Some(key), Some(cache)) = (keep_under, &self.cache)
            && let Some(coverage) = R::coverage(&answer)
            && coverage.shards_answered == coverage.shards_asked
        {
            let kept = KeptAnswer {
                message: answer.encode_to_vec().into(),
                asked_ms: asked_ms.saturating_sub(coverage.age_ms.unwrap_or(0)),
                expires_at_ms: coverage.expires_at_ms,
                lag_ms: u64::try_from(lag.as_millis()).unwrap_or(u64::MAX),
            };
            cache.keep(key, &kept);
        }
        Ok(Told {
            answer: Arc::new(answer),
            lag: lag.saturating_add(age),
        })
    }

    /// Asks one region after the other until one answers; also which one that was.
    pub(crate) async fn try_each<'a, T, F>(
        &'a self,
        deadline: Deadline,
        ask: impl Fn(&'a Region, Duration) -> F,
    ) -> Result<(&'a Place, T), EdgeError>
    where
        F: Future<Output = Result<T, RegionError>>,
    {
        let order = self.order();
        let mut tried = Vec::new();
        let mut refused = None;
        let mut is_late = false;
        for (number, place) in order.iter().copied().enumerate() {
            let left = deadline.remaining();
            if left.is_zero() {
                is_late = true;
                break;
            }
            let mut others = order.iter().skip(number + 1);
            let has_other = others.any(|other| other.is_up());
            let timeout = if has_other { left / 2 } else { left };
            let asked = ask(&place.client, timeout);
            let answered = tokio::select! {
                biased;
                answered = asked => answered,
                // Others have found out that it is gone.
                () = place.goes_down(), if has_other => Err(RegionError::Unreachable {
                    detail: "it was lost while it was asked".to_owned(),
                }),
            };
            match answered {
                Ok(answer) => {
                    place.answered();
                    return Ok((place, answer));
                }
                Err(error) if !error.is_retryable() => {
                    place.refused();
                    return Err(refusal(place, error, &tried));
                }
                Err(error) => {
                    place.failed(&error);
                    is_late |= error == RegionError::TimedOut;
                    tried.push(Tried {
                        region: place.name.clone(),
                        why: error.told(),
                    });
                    if matches!(error, RegionError::Refused { .. }) {
                        refused = refused.or(Some((place, error)));
                    }
                }
            }
        }
        Err(match refused {
            Some((place, error)) => refusal(place, error, &tried),
            None if is_late => EdgeError::NoTime(tried),
            None => EdgeError::Unreachable(tried),
        })
    }

    /// The regions in the order in which they are asked.
    fn order(&self) -> Vec<&Place> {
        let health: Vec<_> = self.places.iter().map(|place| place.health()).collect();
        let current = match self.current.load(Ordering::Relaxed) {
            NONE => None,
            at => Some(at),
        };
        let order = order(&health, current);
        let first = order.first().copied();
        self.current.store(first.unwrap_or(NONE), Ordering::Relaxed);
        let places = order.into_iter().filter_map(|at| self.places.get(at));
        places.map(|place| &**place).collect()
    }
}

/// A region's own error, as it is told.
fn refusal(place: &Place, error: RegionError, tried: &[Tried]) -> EdgeError {
    match error {
        RegionError::Refused {
            code,
            message,
            retry_after,
        } => EdgeError::Refused {
            region: place.name.clone(),
            code,
            message,
            retry_after,
        },
        _ => EdgeError::Unreachable(tried.to_vec()),
    }
}

/// Whether a kept answer is younger than that, and all that the caller insists on.
fn is_good(cache: &Cache, kept: &KeptAnswer, limit: Duration, insists: &Insists) -> bool {
    let Some(age) = cache.age(kept.asked_ms) else {
        return false;
    };
    let behind = Duration::from_millis(kept.lag_ms).saturating_add(age);
    age < limit
        && !insists.tokens
        && !cache.has_expired(kept.expires_at_ms)
        && insists.bound.is_none_or(|bound| behind <= bound)
}

/// Whether somebody who waits may take what another call got.
fn may_take(told: &Result<Told, EdgeError>, since: Duration, bound: Option<Duration>) -> Takes {
    match told {
        Ok(told) => {
            let behind = told.lag.saturating_add(since);
            match bound.is_none_or(|bound| behind <= bound) {
                true => Takes::Always,
                false => Takes::Never,
            }
        }
        Err(error) if error.may_be_bridged() => Takes::WithoutMoreTime,
        Err(_) => Takes::Always,
    }
}

/// A kept answer, which says how old it is.
fn given<R: Forwarded>(cache: &Cache, kept: &KeptAnswer) -> Result<R::Answer, QueryError> {
    let read = R::Answer::decode(kept.message.clone());
    let mut answer = read.map_err(|_| EdgeError::Malformed)?;
    let age = cache.age(kept.asked_ms).unwrap_or_default();
    if let Some(coverage) = R::coverage_mut(&mut answer) {
        coverage.age_ms = Some(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    }
    Ok(answer)
}

/// The collection of a request, for logs.
pub(crate) fn span_of<R: Forwarded>(request: &R, call: &Call) -> tracing::Span {
    call.span(R::VERB.label(), request.collection())
}

/// Reads the health of a place; nothing panics while it holds this lock.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a region is asked about its collections.
impl Edge {
    /// All collections of the nearest region.
    ///
    /// # Errors
    /// [`EdgeError`].
    pub(crate) async fn collections(
        &self,
        deadline: Deadline,
    ) -> Result<Vec<v1::Collection>, EdgeError> {
        let asked = self.try_each(deadline, |region, timeout| {
            let request = v1::ListCollectionsRequest {};
            region.collections(request, timeout, |mut client, request| async move {
                client.list_collections(request).await
            })
        });
        Ok(asked.await?.1.collections)
    }

    /// The aliases of the nearest region.
    ///
    /// # Errors
    /// [`EdgeError`].
    pub(crate) async fn aliases(&self, deadline: Deadline) -> Result<Vec<v1::Alias>, EdgeError> {
        let asked = self.try_each(deadline, |region, timeout| {
            let request = v1::ListAliasesRequest {};
            region.collections(request, timeout, |mut client, request| async move {
                client.list_aliases(request).await
            })
        });
        Ok(asked.await?.1.aliases)
    }

    /// One collection of the nearest region.
    ///
    /// # Errors
    /// [`EdgeError`].
    pub(crate) async fn collection(
        &self,
        name: &str,
        deadline: Deadline,
    ) -> Result<v1::GetCollectionResponse, EdgeError> {
        let asked = self.try_each(deadline, |region, timeout| {
            let request = v1::GetCollectionRequest {
                name: name.to_owned(),
            };
            region.collections(request, timeout, |mut client, request| async move {
                client.get_collection(request).await
            })
        });
        Ok(asked.await?.1)
    }
}

#[cfg(test)]
#[path = "bridge_tests.rs"]
mod tests;
