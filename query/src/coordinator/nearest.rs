//! Searches: ask the shards, merge, and ask once more where groups are spread.

use std::time::Duration;

use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{Partition, v1};

use crate::{
    call::Call,
    coordinator::{Coordinator, QueryError, Told, question::SearchOf, wanted::Wanted},
    coverage::{self, Unanswered},
    scatter::Terms,
    shard_map::Shards,
    tokens::TokensByShard,
};

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
        let since = Stopwatch::start();
        let shards = self.shards(&collection)?;
        let wanted = self.limits.check_queries(&shards.collection, queries)?;
        let terms = self.terms(&shards, read, &call).await?;
        let question = SearchOf {
            collection,
            queries: wanted.iter().map(|wanted| wanted.ask.clone()).collect(),
        };
        let asked_shards = shards_of(&wanted, &shards, &terms.tokens);
        let asked = self.ask(&shards, &question, asked_shards, &terms, call);
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
        let results = if wanted.iter().any(|wanted| wanted.ask.group_by.is_some()) {
            let before = Stopwatch::start();
            let results = self
                .grouped(&wanted, bodies, &mut coverage, &further)
                .await?;
            waited += before.elapsed();
            results
        } else {
            merge_each(&wanted, bodies)
        };
        let total = since.elapsed();
        self.meters.searched(wanted.len(), total, waited);
        if terms.tokens.is_empty() && coverage.shards_answered == coverage.shards_asked {
            let slowest_us = coverage.shards.iter().map(|shard| shard.shard_us).max();
            let slowest = Duration::from_micros(slowest_us.unwrap_or(0));
            self.meters.coordinated(total.saturating_sub(slowest));
        }
        Ok((results, coverage))
    }

    /// Merges, and asks for those hits of merged groups that a shard did not name.
    async fn grouped(
        &self,
        wanted: &[Wanted],
        bodies: Vec<Vec<v1::HitList>>,
        coverage: &mut v1::Coverage,
        by: &Further<'_>,
    ) -> Result<Vec<v1::HitList>, QueryError> {
        let merged = merge_each(wanted, bodies.clone());
        // One further query a value, remembered with the query that it belongs to.
        let mut further: Vec<(usize, v1::Value)> = Vec::new();
        for (at, (wanted, merged)) in wanted.iter().zip(&merged).enumerate() {
            let lists: Vec<&v1::HitList> = bodies.iter().filter_map(|body| body.get(at)).collect();
            let values = wanted.unnamed(&merged.groups, &lists);
            further.extend(values.into_iter().map(|value| (at, value)));
        }
        if further.is_empty() {
            return Ok(merged);
        }
        let queries = further.iter().filter_map(|(at, value)| {
            let wanted = wanted.get(*at)?;
            wanted.of_group(value)
        });
        let question = SearchOf {
            collection: by.shards.collection.name.to_string(),
            queries: queries.collect(),
        };
        let answered = coverage.shards.iter().filter(|shard| shard.answered);
        let answered: Vec<Partition> = answered.map(|shard| Partition(shard.shard)).collect();
        let second = self.gather(by.shards, &question, answered, by.terms, by.call);
        let (second, _) = second.await?;
        for miss in &second.misses {
            coverage::withdraw(coverage, miss);
        }
        if by.terms.require_all && !second.misses.is_empty() {
            let shards = second.misses.iter().map(|miss| Unanswered {
                shard: miss.shard,
                why: miss.why.clone(),
            });
            return Err(QueryError::Coverage(coverage::CoverageError::Missing {
                asked: second.answers.len() + second.misses.len(),
                shards: shards.collect(),
            }));
        }
        let mut bodies = bodies;
        for (_, lists) in second.answers {
            let mut body = vec![v1::HitList::default(); wanted.len()];
            for ((at, value), list) in further.iter().zip(lists) {
                if let Some(of_query) = body.get_mut(*at) {
                    of_query.groups.push(v1::HitGroup {
                        value: Some(value.clone()),
                        hits: list.hits,
                    });
                }
            }
            bodies.push(body);
        }
        Ok(merge_each(wanted, bodies))
    }
}

/// The shards that any of the queries is about, and those that tokens name: their writes have to
/// hold whatever is asked.
fn shards_of(wanted: &[Wanted], shards: &Shards, tokens: &TokensByShard) -> Vec<Partition> {
    let homes: Option<Vec<Partition>> = wanted
        .iter()
        .map(|wanted| Some(wanted.tenant()?.shard(&shards.collection)))
        .collect();
    match homes {
        None => shards.numbers().collect(),
        Some(homes) => shards
            .numbers()
            .filter(|shard| homes.contains(shard) || tokens.contains_key(shard))
            .collect(),
    }
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
