//! Answering from several shards of a node together: a caller that merges their answers anyway is given no more than
//! it can use, and the exact distances that one shard of all their rows would compute, in place of each shard's own.

use std::sync::Arc;

use shoal_schemas::v1;

use crate::{
    find::{self, Pooled, SearchError, Timer, Told, Wanted},
    index::distance::Query,
    shard::{
        Shared,
        answer::{explained, first_expiry, rescored},
        search::{Ask, ReadError},
    },
    view::{Moment, View},
};

/// The nearest `total` hits of these shards, of no shard more than the query's own `k`: one list a shard, in order.
/// Shards of one collection; a query without a filter, groups or `after`.
///
/// Where points are left out since so many others are nearer, each list says from which distance on.
///
/// # Errors
/// [`ReadError`], of whichever shard.
pub fn answer(
    shards: &[&Shared],
    ask: &Ask,
    total: usize,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<v1::HitList>, ReadError> {
    loop {
        match answer_once(shards, ask, total, stop) {
            // A search that was held up while a segment was sealed: the view is a newer one.
            Err(error) if error.is_outdated() => {}
            other => return other,
        }
    }
}

fn answer_once(
    shards: &[&Shared],
    ask: &Ask,
    total: usize,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<v1::HitList>, ReadError> {
    if stop() {
        return Err(SearchError::Stopped.into());
    }
    let Some(first) = shards.first() else {
        return Ok(Vec::new());
    };
    let collection = &first.spec.collection;
    let query = Query::of(collection.metric, &ask.vector);
    let present: Vec<(Arc<View>, Moment)> = shards.iter().map(|shard| shard.present()).collect();
    let views = shards.iter().zip(&present).map(|(shard, (view, moment))| {
        let wanted = Wanted {
            query: &query,
            k: ask.k,
            rescore: rescored(collection, ask.k, ask.rescore),
            beam: ask.beam.unwrap_or(collection.index.ef_search.into()),
            exact: ask.exact,
            filter: None,
            moment: *moment,
            log: &shard.log,
            stop,
            is_timed: ask.explain,
        };
        (&**view, wanted)
    });
    let views: Vec<_> = views.collect();
    let mut told = vec![Told::default(); shards.len()];
    let rescore = rescored(collection, total, None);
    let pooled = find::nearest_of_all(&views, total, rescore, &mut told)?;
    let Pooled {
        lists,
        left_out_from,
    } = pooled;
    let is_near = |distance: f32| {
        let most = ask.max_distance;
        most.is_none_or(|most| distance.total_cmp(&most).is_le())
    };
    let left_out_from = left_out_from.filter(|from| is_near(*from));
    let parts = shards.iter().zip(&present).zip(lists.iter().zip(&told));
    let lists = parts.map(|((shard, (view, _)), (found, told))| {
        let timer = Timer::start_if(ask.explain);
        let found = found.iter().filter(|one| is_near(one.distance));
        let hits = found.clone().map(|one| shard.hit(one, ask));
        let mut list = v1::HitList {
            hits: hits.collect::<Result<_, _>>()?,
            expires_at_ms: first_expiry(found),
            left_out_from,
            ..v1::HitList::default()
        };
        if ask.explain {
            list.explain.push(v1::ShardExplain {
                shard: shard.spec.shard.0,
                payload_us: timer.micros(),
                ..explained(told, view)
            });
        }
        Ok(list)
    });
    lists.collect()
}
