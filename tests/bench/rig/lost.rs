//! Points that a search for themselves does not find: a graph has no way to them.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::anyhow;

use crate::{
    engine::Running,
    truth::{TIE, distance},
};

/// Beam width of these searches.
pub(crate) const EF: usize = 64;
const THREADS: usize = 2;

/// How many of these points a search with k = 1 does not find. Another point at the same place
/// counts as found.
pub(crate) fn self_lost(running: &Running, points: &[(&str, &[f32])]) -> anyhow::Result<usize> {
    let lost = AtomicUsize::new(0);
    let share = points.len().div_ceil(THREADS).max(1);
    std::thread::scope(|scope| {
        let lost = &lost;
        let started: Vec<_> = points
            .chunks(share)
            .map(|some| {
                scope.spawn(move || {
                    for (id, vector) in some {
                        let hits = running.search(vector, 1, EF)?;
                        // Distances of hits are exact, but in single precision.
                        let own = distance(vector, vector);
                        let is_found = hits.first().is_some_and(|hit| {
                            hit.id == *id || f64::from(hit.distance) <= own + TIE
                        });
                        if !is_found {
                            lost.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        started
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a search panicked"))?)
    })?;
    Ok(lost.into_inner())
}
