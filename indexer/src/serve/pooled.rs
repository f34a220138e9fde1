//! Searching several shards of one call together, on the thread that read it.

use std::sync::Arc;

use shoal_runtime::{clock::Stopwatch, serving};
use shoal_schemas::{CollectionName, Partition, v1};

use crate::{
    node::Held,
    serve::{Service, ask::Asked, micros, pace, patience::Deadline},
    shard::{Shared, pooled},
};

impl Service {
    /// The answers of shards that are searched together; `None` where each has to answer for itself: the caller
    /// did not ask for it, or waits for a write, knows an answer or looks for more than a short walk; a
    /// shard is not here or fails, which only it tells.
    pub(super) async fn search_together(
        &self,
        collection: &CollectionName,
        asks: &[v1::ShardAsk],
        of: &Asked,
        deadline: Deadline,
    ) -> Option<Vec<v1::ShardAnswer>> {
        let totals = of.together()?;
        let is_plain = of.known.is_empty() && asks.iter().all(|ask| ask.at_least.is_empty());
        if asks.len() < 2 || !is_plain || serving::others_wait() {
            return None;
        }
        let held =
            |ask: &v1::ShardAsk| self.node.shard(&(collection.clone(), Partition(ask.shard)));
        let held: Vec<Arc<Held>> = asks.iter().map(held).collect::<Option<_>>()?;
        let serving = held.iter().map(|held| Some(&**held.answering().ok()?));
        let shards: Vec<&Shared> = serving.collect::<Option<_>>()?;
        let definition = &shards.first()?.spec.collection;
        if shards
            .iter()
            .any(|shard| shard.spec.collection != *definition)
        {
            return None;
        }
        let queries = of.checked(definition).ok()?;
        let walked = pace::walked(&queries, &definition.index)?;
        let count = u32::try_from(shards.len()).ok()?;
        let is_short = |held: &Arc<Held>| held.pace.is_short(walked, count.into());
        if !held.iter().all(is_short) {
            return None;
        }
        let _permit = self.searches.enter().await.ok()?;
        let watch = Stopwatch::start();
        // Before the work: what is applied while it goes on need not be in the answer.
        let answers = shards.iter().map(|shard| v1::ShardAnswer {
            coverage: Some(shard.coverage(self.node.name())),
            ..v1::ShardAnswer::default()
        });
        let mut answers: Vec<v1::ShardAnswer> = answers.collect();
        for (ask, total) in queries.iter().zip(totals) {
            let lists = pooled::answer(&shards, ask, total, &|| deadline.is_over()).ok()?;
            for (answer, list) in answers.iter_mut().zip(lists) {
                answer.results.push(list);
            }
        }
        let took = watch.elapsed();
        for (answer, held) in answers.iter_mut().zip(&held) {
            held.pace.took(walked, took / count);
            held.searches
                .increment(u64::try_from(queries.len()).unwrap_or(u64::MAX));
            if let Some(coverage) = &mut answer.coverage {
                coverage.shard_us = micros(took);
            }
        }
        Some(answers)
    }
}
