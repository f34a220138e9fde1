//! Searches whose answers are kept, and equal ones that are asked once.
//!
//! Kept is what each shard answered, with what the shard called its content then. Where kept
//! answers may be no older than others (`ttl` is 0), every shard is asked all the same, and told
//! what is known: one that has not changed says so and does not search. So whatever holds for an
//! answer without a cache holds with one: tokens are waited for by the shard before it compares,
//! lag is what the shard says now, and a point that has expired by the shard's clock makes the
//! known answer void. Where answers may be older, they are given without asking for so long, if
//! all shards have one, and say their age.

use std::time::Duration;

use prost::Message as _;
use shoal_runtime::ErrorKind;
use shoal_schemas::{Partition, v1};

use crate::{
    cache::{Cache, KeptShard, KeptShards, Key, KeyOf, Lookup},
    call::Call,
    coordinator::{
        Coordinator, QueryError, Told,
        question::{Nearest, SearchOf},
    },
    coverage::{Gathered, judge},
    flight::{Flights, Takes},
    scatter::Terms,
    shard_map::Shards,
};

/// One list a query, in order, and which shards they rest on.
type Searched = Result<(Vec<v1::HitList>, v1::Coverage), QueryError>;

/// Searches under way.
pub(super) type SearchFlights = Flights<Key, Searched>;

/// What names of kept answers begin with; another form of question or answer needs another text.
const KEPT: &str = "shoal 2026 kept shard answers v1";
/// The same for searches under way.
const UNDER_WAY: &str = "shoal 2026 search under way v1";

/// What shards answered, now or earlier.
pub(super) struct Kept {
    pub(super) gathered: Gathered<Vec<v1::HitList>>,
    /// How long the shards were waited for.
    pub(super) waited: Duration,
    /// How old it is, if no shard was asked.
    pub(super) age_ms: Option<u64>,
}

impl Coordinator {
    /// Searches, or waits for an equal search under way.
    pub(super) async fn searched(&self, asked: v1::SearchBatchRequest, call: Call) -> Searched {
        let queries = asked.queries.len();
        let Some(flights) = &self.flights else {
            let search = self.nearest(asked.collection, asked.queries, asked.read, call);
            return self.admitted(call, search).await;
        };
        let key = KeyOf::new(UNDER_WAY).with(asked.encode_to_vec()).finish();
        let bound_ms = (asked.read.as_ref()).and_then(|read| read.max_staleness_ms);
        let search = self.nearest(asked.collection, asked.queries, asked.read, call);
        let work = self.admitted(call, search);
        let takes = |searched: &Searched, since: Duration| may_take(searched, since, bound_ms);
        let landed = flights.once(key, call.deadline, work, takes).await;
        if landed.is_shared {
            self.meters.shared(queries);
        }
        landed.value
    }

    /// Asks shards for what is not kept of their answers, and judges what came back.
    pub(super) async fn ask_once(
        &self,
        shards: &Shards,
        question: SearchOf,
        wanted: Vec<Partition>,
        terms: &Terms,
        call: Call,
    ) -> Result<Told<Vec<v1::HitList>>, QueryError> {
        let kept = self.gather_kept(shards, question, wanted, terms, call);
        let Kept {
            gathered,
            waited,
            age_ms,
        } = kept.await?;
        let (bodies, mut coverage) = judge(gathered, terms)?;
        coverage.age_ms = age_ms;
        coverage.collection = shards.collection.name.to_string();
        Ok(Told {
            bodies,
            coverage,
            waited,
        })
    }

    /// Asks shards for what is not kept of their answers, and keeps what they say.
    pub(super) async fn gather_kept(
        &self,
        shards: &Shards,
        mut question: SearchOf,
        wanted: Vec<Partition>,
        terms: &Terms,
        call: Call,
    ) -> Result<Kept, QueryError> {
        // An explanation is of what was done just now.
        let may_keep = !question.queries.iter().any(|query| query.explain);
        let named = self.cache.as_ref().filter(|_| may_keep);
        let named = named.and_then(|cache| Some((cache, self.name_of(shards, &mut question)?)));
        let Some((cache, key)) = named else {
            let (gathered, waited) = self.gather(shards, &question, wanted, terms, call).await?;
            return Ok(Kept {
                gathered: gathered.map(|nearest| nearest.lists),
                waited,
                age_ms: None,
            });
        };
        let fresh =
            |kept: &KeptShards| cache.ttl.is_zero() || is_fresh(cache, kept, &wanted, terms);
        let mut held = cache
            .find(key, call.deadline, fresh)
            .await
            .unwrap_or_default();
        if is_fresh(cache, &held, &wanted, terms) {
            cache.meters.looked_up(Lookup::Fresh);
            return Ok(given(cache, held, &wanted));
        }
        question.known = (held.shards.iter()).map(known).collect();
        // What is kept of a shard has to hold whatever the others say.
        question.together.clear();
        let asked_ms = cache.now_ms();
        let gathered = self.gather(shards, &question, wanted, terms, call);
        let (gathered, waited) = gathered.await?;
        let told = gathered.answers.iter();
        let unchanged = told.filter(|(_, body)| body.is_unchanged).count();
        cache.meters.looked_up(match unchanged {
            0 if held.shards.is_empty() => Lookup::Missing,
            all if all == gathered.answers.len() => Lookup::Unchanged,
            _ => Lookup::Changed,
        });
        // Where age counts, an answer that still holds is as good as new.
        let is_new = unchanged < gathered.answers.len() || !cache.ttl.is_zero();
        let Gathered { answers, misses } = gathered;
        let answered = filled_in(&mut held, answers, asked_ms);
        let answered = match is_new {
            true => keep(cache, key, answered, held),
            false => answered,
        };
        let answers = answered.into_iter().map(|part| (part.coverage, part.lists));
        Ok(Kept {
            gathered: Gathered {
                answers: answers.collect(),
                misses,
            },
            waited,
            age_ms: None,
        })
    }

    /// What the answer to a question is kept under; `None` as long as the cluster is not known.
    fn name_of(&self, shards: &Shards, question: &mut SearchOf) -> Option<Key> {
        let home = self.home.get()?;
        let asked = v1::SearchShardsRequest {
            queries: std::mem::take(&mut question.queries),
            rescore: std::mem::take(&mut question.rescore),
            ..v1::SearchShardsRequest::default()
        };
        let queries = asked.encode_to_vec();
        (question.queries, question.rescore) = (asked.queries, asked.rescore);
        let mut definition = shards.collection.to_proto();
        // Where shards are says nothing of what they answer.
        definition.placement.clear();
        definition.tenant_placement.clear();
        // A map, whose order is by chance.
        let mut fields: Vec<_> = definition.fields.drain().collect();
        fields.sort_unstable();
        let mut name = KeyOf::new(KEPT).with(home.0.as_bytes());
        name = name.with(definition.encode_to_vec());
        for (field, kind) in fields {
            name = name.with(field).with(kind.to_le_bytes());
        }
        Some(name.with(queries).finish())
    }
}

/// Whether somebody who waits may take what another search got.
fn may_take(searched: &Searched, since: Duration, bound_ms: Option<u64>) -> Takes {
    match searched {
        Ok((_, coverage)) => {
            let is_whole = coverage.shards_answered == coverage.shards_asked;
            let holds = bound_ms.is_none_or(|bound_ms| {
                let shards = coverage.shards.iter().filter(|shard| shard.answered);
                let lag = shards.map(|shard| shard.lag_seconds).fold(0.0, f64::max);
                let age = Duration::from_millis(coverage.age_ms.unwrap_or_default());
                lag + (age + since).as_secs_f64() <= Duration::from_millis(bound_ms).as_secs_f64()
            });
            match (holds, is_whole) {
                (false, _) => Takes::Never,
                (true, true) => Takes::Always,
                (true, false) => Takes::WithoutMoreTime,
            }
        }
        Err(QueryError::Busy { .. }) => Takes::Always,
        Err(error) if error.kind() == ErrorKind::Caller => Takes::Always,
        Err(_) => Takes::WithoutMoreTime,
    }
}

fn known(kept: &KeptShard) -> v1::KnownAnswer {
    v1::KnownAnswer {
        shard: kept.coverage.shard,
        version: kept.version.clone(),
        expires_at_ms: kept.expires_at_ms(),
    }
}

fn of_shard(held: &KeptShards, shard: Partition) -> Option<&KeptShard> {
    (held.shards.iter()).find(|kept| kept.coverage.shard == shard.0)
}

/// Whether kept answers may be given without asking.
fn is_fresh(cache: &Cache, held: &KeptShards, wanted: &[Partition], terms: &Terms) -> bool {
    let is_good = |kept: &KeptShard| {
        let Some(age) = cache.age(kept.asked_ms) else {
            return false;
        };
        let behind = kept.coverage.lag_seconds + age.as_secs_f64();
        let bound = terms.max_staleness.map(|bound| bound.as_secs_f64());
        age < cache.ttl
            && !cache.has_expired(kept.expires_at_ms())
            && bound.is_none_or(|bound| behind <= bound)
    };
    !cache.ttl.is_zero()
        && terms.tokens.is_empty()
        && !wanted.is_empty()
        && (wanted.iter()).all(|shard| of_shard(held, *shard).is_some_and(is_good))
}

/// An answer without asking.
fn given(cache: &Cache, held: KeptShards, wanted: &[Partition]) -> Kept {
    let mut gathered = Gathered::default();
    let mut oldest = Duration::ZERO;
    for kept in held.shards {
        if !wanted.contains(&Partition(kept.coverage.shard)) {
            continue;
        }
        oldest = oldest.max(cache.age(kept.asked_ms).unwrap_or_default());
        gathered.answers.push((kept.coverage, kept.lists));
    }
    Kept {
        gathered,
        waited: Duration::ZERO,
        age_ms: Some(u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// Puts the known answers in where shards say that they still hold; what was known of other shards
/// stays where it was.
fn filled_in(
    held: &mut KeptShards,
    answers: Vec<(v1::ShardCoverage, Nearest)>,
    asked_ms: u64,
) -> Vec<KeptShard> {
    let answered = answers.into_iter().map(|(coverage, body)| {
        let is_it = |held: &KeptShard| held.coverage.shard == coverage.shard;
        let at = held.shards.iter().position(is_it);
        let before = at.map(|at| held.shards.swap_remove(at));
        let lists = match before {
            Some(before) if body.is_unchanged => before.lists,
            _ => body.lists,
        };
        KeptShard {
            version: body.version,
            lists,
            coverage,
            asked_ms,
        }
    });
    answered.collect()
}

/// Keeps what shards answered, where they gave it a name, beside what is known of others; gives it
/// back as it is, since answers are large.
fn keep(cache: &Cache, key: Key, answered: Vec<KeptShard>, others: KeptShards) -> Vec<KeptShard> {
    let parts = answered.into_iter();
    let (mut named, mut unnamed): (Vec<_>, Vec<_>) =
        parts.partition(|part| !part.version.is_empty());
    let count = named.len();
    named.extend(others.shards);
    let kept = KeptShards { shards: named };
    cache.keep(key, &kept);
    let mut answered = kept.shards;
    answered.truncate(count);
    answered.append(&mut unnamed);
    answered
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::time::Duration;

    use bytes::Bytes;
    use bytesize::ByteSize;
    use shoal_runtime::{clock::Manual, tasks::Tasks};
    use shoal_schemas::v1;
    use tokio_util::sync::CancellationToken;

    use super::{filled_in, keep, may_take};
    use crate::{
        cache::{self, Cache, KeptShard, KeptShards, KeyOf},
        call::Deadline,
        coordinator::question::Nearest,
        flight::Takes,
    };

    #[test]
    fn an_answer_that_was_kept_is_as_far_behind_as_its_age_says() {
        let found = v1::Coverage {
            shards: vec![v1::ShardCoverage {
                answered: true,
                lag_seconds: 0.25,
                ..coverage(0)
            }],
            age_ms: Some(500),
            ..v1::Coverage::default()
        };
        let searched = Ok((Vec::new(), found));
        let since = Duration::from_millis(200);
        let takes = |bound_ms| may_take(&searched, since, Some(bound_ms));
        assert!(matches!(takes(1000), Takes::Always));
        assert!(matches!(takes(900), Takes::Never));
    }

    fn coverage(shard: u32) -> v1::ShardCoverage {
        v1::ShardCoverage {
            shard,
            ..v1::ShardCoverage::default()
        }
    }

    fn part(shard: u32, asked_ms: u64) -> KeptShard {
        KeptShard {
            version: Bytes::from_static(b"v"),
            lists: vec![v1::HitList::default()],
            coverage: coverage(shard),
            asked_ms,
        }
    }

    #[tokio::test]
    async fn an_answer_that_still_holds_is_given_and_kept_without_a_copy() {
        let config = cache::Config {
            memory: ByteSize::mib(1),
            ..cache::Config::default()
        };
        let tasks = Tasks::new(CancellationToken::new());
        let cache = Cache::start(&config, Manual::at(0), &tasks);
        let cache = cache.unwrap().unwrap();
        let key = KeyOf::new("test").finish();
        let mut held = KeptShards {
            shards: vec![part(0, 1), part(1, 1), part(2, 1)],
        };
        let at = |shards: &[KeptShard]| shards[1].lists.as_ptr();
        let before = at(&held.shards);
        let nearest = |version: &'static [u8], is_unchanged| Nearest {
            lists: Vec::new(),
            version: Bytes::from_static(version),
            is_unchanged,
        };
        let answers = vec![
            (coverage(0), nearest(b"", false)),
            (coverage(1), nearest(b"v", true)),
        ];
        let told = filled_in(&mut held, answers, 9);
        assert_eq!(at(&told), before);
        let told = keep(&cache, key, told, held);
        let unnamed = KeptShard {
            version: Bytes::new(),
            lists: Vec::new(),
            ..part(0, 9)
        };
        assert_eq!(told, [part(1, 9), unnamed]);
        assert_eq!(told[0].lists.as_ptr(), before);
        let patient = Deadline::within(Duration::from_secs(60));
        let kept: Option<KeptShards> = cache.find(key, patient, |_| true).await;
        assert_eq!(kept.unwrap().shards, [part(1, 9), part(2, 1)]);
    }
}
