//! The nearest of several views together, as if all their rows lay in one.
//!
//! A node that is asked for several shards of a collection knows of all of them which candidates are near. By
//! themselves each would compute exact distances of as many as might be its part of the nearest, and name as
//! many; together they compute as many as one shard of all these rows would, and name no more than are
//! wanted. The candidates of a view are found as if it were searched alone.

use crate::{
    find::{
        Candidates, Found, Met, STOP_ROWS, SearchError, Timer, Told, Wanted, by_distance,
        by_distance_then_id,
    },
    view::View,
};

/// What the views have.
pub struct Pooled<'a> {
    /// The points of each view, nearest first.
    pub lists: Vec<Vec<Found<'a>>>,
    /// From that distance on points are left out that a view alone would name, since as many as were wanted
    /// are nearer.
    pub left_out_from: Option<f32>,
}

/// The nearest `total` visible points of all views, of no view more than its own `k`; of all their candidates
/// the exact distances of `rescore` are computed.
///
/// # Shapes
/// One of `told` and one list for each view, in order.
///
/// # Errors
/// [`SearchError`], of whichever view.
pub fn nearest_of_all<'a>(
    views: &[(&'a View, Wanted<'_>)],
    total: usize,
    rescore: usize,
    told: &mut [Told],
) -> Result<Pooled<'a>, SearchError> {
    let mut coarse: Vec<(usize, Met<'a>)> = Vec::new();
    let mut exact: Vec<(usize, Met<'a>)> = Vec::new();
    for (at, ((view, wanted), told)) in views.iter().zip(told.iter_mut()).enumerate() {
        let candidates = Candidates::of(view, wanted, told)?;
        coarse.extend(candidates.coarse.nearest().into_iter().map(|one| (at, one)));
        exact.extend(candidates.exact.nearest().into_iter().map(|one| (at, one)));
    }
    // What is exact already takes none of the places of what is not.
    let rescore = rescore.max(total);
    let is_cut = coarse.len() > rescore;
    if is_cut {
        coarse.select_nth_unstable_by(rescore, |a, b| by_distance(&a.1, &b.1));
        coarse.truncate(rescore);
    }
    // View by view, so that each is told what its own took.
    coarse.sort_unstable_by_key(|(at, _)| *at);
    let mut vector = Vec::new();
    for of_view in coarse.chunk_by(|a, b| a.0 == b.0) {
        let Some((at, (wanted, told))) = of_view.first().and_then(|(at, _)| {
            let (_, wanted) = views.get(*at)?;
            Some((*at, (wanted, told.get_mut(*at)?)))
        }) else {
            continue;
        };
        let timer = Timer::start_if(wanted.is_timed);
        for (number, (_, one)) in of_view.iter().enumerate() {
            if number.is_multiple_of(STOP_ROWS) && (wanted.stop)() {
                return Err(SearchError::Stopped);
            }
            exact.push((at, one.measured(wanted, &mut vector)?));
        }
        told.rescore_us += timer.micros();
    }
    exact.sort_unstable_by(|a, b| by_distance_then_id(&a.1, &b.1));
    let mut pooled = Pooled {
        lists: views.iter().map(|_| Vec::new()).collect(),
        left_out_from: None,
    };
    let mut left = total;
    let mut last = None;
    for (at, one) in exact {
        if left == 0 {
            pooled.left_out_from = last;
            break;
        }
        let most = views.get(at).map_or(0, |(_, wanted)| wanted.k);
        let list = pooled.lists.get_mut(at).filter(|list| list.len() < most);
        if let (Some(list), Some(found)) = (list, one.found()) {
            list.push(found);
            last = Some(found.distance);
            left -= 1;
        }
    }
    if is_cut && left == 0 {
        pooled.left_out_from = last;
    }
    Ok(pooled)
}
