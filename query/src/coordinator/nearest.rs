//! Searches: ask the shards, merge, and ask once more where that was not enough: where groups are
//! spread, and where a shard held more of the nearest than it was asked for.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{Partition, v1};

use crate::{
    cache::soonest,
    call::Call,
    coordinator::{Coordinator, QueryError, Told, kept::Kept, question::SearchOf, wanted::Wanted},
    coverage::{self, Gathered, Miss},
    depth::Depth,
    scatter::Terms,
    shard_map::Shards,
    tokens::TokensByShard,
};

/// Most groups that shards are asked for again in one call, those of all its queries together. It is
/// one search each, all in one question a node.
const GROUPS_AGAIN: usize = 256;

/// What a search goes on with where its first answers were not enough.
struct Further<'a> {
    shards: &'a Shards,
    terms: &'a Terms,
    call: Call,
}

impl Coordinator {
    /// One list a query, in order.
    pub(super) async fn nearest(
        &self,
        collection: String,
        queries: Vec<v1::Query>,
        read: Option<v1::ReadOptions>,
        call: Call,
    ) -> Result<(Vec<v1::HitList>, v1::Coverage), QueryError> {
        let shards = self.shards(&collection)?;
        self.nearest_of(shards, queries, read, call).await
    }

    /// The same of a collection that was looked up already.
    pub(super) async fn nearest_of(
        &self,
        shards: Arc<Shards>,
        queries: Vec<v1::Query>,
        read: Option<v1::ReadOptions>,
        call: Call,
    ) -> Result<(Vec<v1::HitList>, v1::Coverage), QueryError> {
        let since = Stopwatch::start();
        let wanted = self.limits.check_queries(&shards.collection, queries)?;
        let terms = self.terms(&shards, read, &call).await?;
        let asked_shards = shards_of(&wanted, &shards, &terms.tokens);
        let is_grouped = wanted.iter().any(|wanted| wanted.ask.group_by.is_some());
        let depths: Vec<Depth> = match is_grouped {
            // One way for all queries of a batch.
            true => wanted.iter().map(Wanted::whole).collect(),
            false => {
                let of = |wanted: &Wanted| wanted.depth(&shards.collection, asked_shards.len());
                wanted.iter().map(of).collect()
            }
        };
        let asks = wanted.iter().zip(&depths);
        let queries = asks.map(|(wanted, depth)| wanted.at(*depth)).collect();
        let question = SearchOf {
            rescore: depths.iter().map(|depth| depth.rescore).collect(),
            together: match is_grouped {
                true => Vec::new(),
                false => wanted.iter().map(Wanted::together).collect(),
            },
            ..SearchOf::new(shards.collection.name.to_string(), queries)
        };
        let asked = self.ask_once(&shards, question, asked_shards, &terms, call);
        let Told {
            bodies,
            mut coverage,
            mut waited,
        } = asked.await?;
        let further = Further {
            shards: &shards,
            terms: &terms,
            call,
        };
        let before = Stopwatch::start();
        let (results, is_asked_again) = match is_grouped {
            true => {
                let grouped = self.grouped(&wanted, bodies, &mut coverage, &further);
                (grouped.await?, true)
            }
            false => {
                let ranked = self.ranked(&wanted, &depths, bodies, &mut coverage, &further);
                ranked.await?
            }
        };
        if is_asked_again {
            waited += before.elapsed();
        }
        coverage.expires_at_ms = soonest(results.iter().map(|list| list.expires_at_ms));
        let total = since.elapsed();
        self.meters.searched(wanted.len(), total, waited);
        if coverage.age_ms.is_none()
            && terms.tokens.is_empty()
            && coverage.shards_answered == coverage.shards_asked
        {
            let slowest_us = coverage.shards.iter().map(|shard| shard.shard_us).max();
            let slowest = Duration::from_micros(slowest_us.unwrap_or(0));
            self.meters.coordinated(total.saturating_sub(slowest));
        }
        Ok((results, coverage))
    }

    /// Merges, and asks shards again that may have more of the nearest than they were asked for.
    /// Also whether any was.
    async fn ranked(
        &self,
        wanted: &[Wanted],
        depths: &[Depth],
        bodies: Vec<Vec<v1::HitList>>,
        coverage: &mut v1::Coverage,
        by: &Further<'_>,
    ) -> Result<(Vec<v1::HitList>, bool), QueryError> {
        let answered = answered(coverage);
        let mut shards: Vec<_> = bodies.into_iter().map(Vec::into_iter).collect();
        let mut merged = Vec::with_capacity(wanted.len());
        let mut queries = Vec::new();
        let mut again = BTreeSet::new();
        for (at, (wanted, depth)) in wanted.iter().zip(depths).enumerate() {
            let lists: Vec<_> = shards.iter_mut().filter_map(Iterator::next).collect();
            let full: Vec<bool> = lists
                .iter()
                .map(|list| wanted.may_have_more(list, *depth))
                .collect();
            let left_out_from: Vec<Option<f32>> =
                lists.iter().map(|list| list.left_out_from).collect();
            let (list, used_up) = wanted.merge_noting(lists);
            let full = full.into_iter().zip(used_up);
            let is_short = full.map(|(is_full, is_used_up)| is_full && is_used_up);
            let lacks = left_out_from
                .iter()
                .map(|from| wanted.may_lack(&list, *from));
            let is_short = is_short
                .zip(lacks)
                .map(|(is_short, lacks)| is_short || lacks);
            let short = answered
                .iter()
                .zip(is_short)
                .filter(|(_, is_short)| *is_short);
            let short: Vec<Partition> = short.map(|(shard, _)| *shard).collect();
            merged.push(list);
            if !short.is_empty() {
                queries.push((at, wanted));
                again.extend(short);
            }
        }
        let is_asked_again = !again.is_empty();
        if is_asked_again {
            self.meters.asked_again(again.len());
            let asks = queries
                .iter()
                .map(|(_, wanted)| wanted.ask.clone())
                .collect();
            let second = self.ask_again(asks, again, coverage, by).await?;
            let mut second: Vec<_> = second.into_iter().map(Vec::into_iter).collect();
            for (at, wanted) in queries {
                let lists: Vec<_> = second.iter_mut().filter_map(Iterator::next).collect();
                if let Some(merged) = merged.get_mut(at) {
                    *merged = wanted.merge_again(std::mem::take(merged), lists);
                }
            }
        }
        for (wanted, merged) in wanted.iter().zip(&mut merged) {
            wanted.skip(merged);
        }
        Ok((merged, is_asked_again))
    }

    /// Asks shards once more that have answered; one that does not answer again counts as missing.
    async fn ask_again(
        &self,
        queries: Vec<v1::Query>,
        shards: impl IntoIterator<Item = Partition>,
        coverage: &mut v1::Coverage,
        by: &Further<'_>,
    ) -> Result<Vec<Vec<v1::HitList>>, QueryError> {
        let question = SearchOf::new(by.shards.collection.name.to_string(), queries);
        let shards: Vec<Partition> = shards.into_iter().collect();
        let asked = shards.len();
        let second = self.gather_kept(by.shards, question, shards.clone(), by.terms, by.call);
        let second = match second.await {
            Ok(Kept {
                gathered, age_ms, ..
            }) => {
                coverage.age_ms = coverage.age_ms.max(age_ms);
                gathered
            }
            // A shard that is missing already has taken it all.
            Err(QueryError::NoTime) => Gathered {
                answers: Vec::new(),
                misses: shards.into_iter().map(Miss::without_time).collect(),
            },
            Err(error) => return Err(error),
        };
        coverage::check(asked, &second.misses, by.terms)?;
        for miss in &second.misses {
            coverage::withdraw(coverage, miss);
        }
        Ok(second.answers.into_iter().map(|(_, lists)| lists).collect())
    }

    /// Merges, and asks for those hits of merged groups that a shard did not name; of the nearest
    /// groups where there are many. The others say that they may lack hits.
    async fn grouped(
        &self,
        wanted: &[Wanted],
        bodies: Vec<Vec<v1::HitList>>,
        coverage: &mut v1::Coverage,
        by: &Further<'_>,
    ) -> Result<Vec<v1::HitList>, QueryError> {
        let merged = merge_each(wanted, bodies.clone());
        // One further query a group, remembered with the query that it belongs to.
        let mut further = unnamed(wanted, &merged, &bodies);
        if further.is_empty() {
            return Ok(merged);
        }
        let left = further.split_off(further.len().min(GROUPS_AGAIN));
        let queries = further.iter().filter_map(|(at, value)| {
            let wanted = wanted.get(*at)?;
            wanted.of_group(value)
        });
        let answered = answered(coverage);
        let second = self.ask_again(queries.collect(), answered, coverage, by);
        let second = second.await?;
        let mut bodies = bodies;
        let more = second.into_iter();
        bodies.extend(more.map(|lists| of_groups(lists, &further, wanted.len())));
        bodies.push(lacking(left, wanted.len()));
        Ok(merge_each(wanted, bodies))
    }
}

/// The merged groups that a shard did not name and may have more hits of, each with the query it
/// belongs to: the nearest of all queries first.
fn unnamed(
    wanted: &[Wanted],
    merged: &[v1::HitList],
    bodies: &[Vec<v1::HitList>],
) -> Vec<(usize, v1::Value)> {
    let mut found = Vec::new();
    for (at, (wanted, merged)) in wanted.iter().zip(merged).enumerate() {
        let lists: Vec<&v1::HitList> = bodies.iter().filter_map(|body| body.get(at)).collect();
        let places = wanted.unnamed(&merged.groups, &lists).into_iter();
        found.extend(places.filter_map(|place| {
            let group = merged.groups.get(place)?;
            Some((place, at, group.value.clone()?))
        }));
    }
    found.sort_by_key(|(place, at, _)| (*place, *at));
    found
        .into_iter()
        .map(|(_, at, value)| (at, value))
        .collect()
}

/// Groups that nobody is asked for again, in the form of an answer to all queries.
fn lacking(left: Vec<(usize, v1::Value)>, queries: usize) -> Vec<v1::HitList> {
    let mut body = vec![v1::HitList::default(); queries];
    for (at, value) in left {
        if let Some(of_query) = body.get_mut(at) {
            of_query.groups.push(v1::HitGroup {
                value: Some(value),
                hits: Vec::new(),
                may_lack_hits: true,
            });
        }
    }
    body
}

/// The shards that any of the queries is about, and those that tokens name: their writes have to
/// hold whatever is asked.
fn shards_of(wanted: &[Wanted], shards: &Shards, tokens: &TokensByShard) -> Vec<Partition> {
    let homes: Option<Vec<_>> = wanted
        .iter()
        .map(|wanted| Some(wanted.tenant()?.shards(&shards.collection)))
        .collect();
    match homes {
        None => shards.numbers().collect(),
        Some(homes) => shards
            .numbers()
            .filter(|shard| {
                homes.iter().any(|home| home.contains(shard)) || tokens.contains_key(shard)
            })
            .collect(),
    }
}

/// The shards that an answer rests on, in the order of its bodies.
fn answered(coverage: &v1::Coverage) -> Vec<Partition> {
    let answered = coverage.shards.iter().filter(|shard| shard.answered);
    answered.map(|shard| Partition(shard.shard)).collect()
}

/// What a shard told of single groups, as its answer to all queries.
fn of_groups(
    lists: Vec<v1::HitList>,
    further: &[(usize, v1::Value)],
    queries: usize,
) -> Vec<v1::HitList> {
    let mut body = vec![v1::HitList::default(); queries];
    for ((at, value), list) in further.iter().zip(lists) {
        if let Some(of_query) = body.get_mut(*at) {
            let expiries = [of_query.expires_at_ms, list.expires_at_ms];
            of_query.expires_at_ms = soonest(expiries.into_iter());
            of_query.groups.push(v1::HitGroup {
                value: Some(value.clone()),
                hits: list.hits,
                may_lack_hits: false,
            });
        }
    }
    body
}

/// Merges the shards' lists query by query.
fn merge_each(wanted: &[Wanted], bodies: Vec<Vec<v1::HitList>>) -> Vec<v1::HitList> {
    let mut shards: Vec<_> = bodies.into_iter().map(Vec::into_iter).collect();
    let merged = wanted.iter().map(|wanted| {
        let lists = shards.iter_mut().filter_map(Iterator::next);
        wanted.merge(lists.collect())
    });
    merged.collect()
}

#[cfg(test)]
#[path = "nearest_tests.rs"]
mod tests;
