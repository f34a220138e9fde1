//! Which of the nearest become neighbours.
//!
//! Not simply the nearest: one that is nearer to a chosen neighbour than to the row itself is
//! reached through that one. Places go to rows in other directions instead.

use crate::index::{
    kernel::Kernel,
    packed::{connect::Grow, walk::Far},
    prefetch,
};

/// Chooses up to `most` of `candidates`, which come nearest first.
pub(super) fn choose<K: Kernel, G: Grow>(
    graph: &G,
    candidates: &[Far],
    most: usize,
    chosen: &mut Vec<Far>,
) {
    chosen.clear();
    choose_more::<K, G>(graph, candidates, most, chosen);
}

/// The same where some are chosen already.
pub(super) fn choose_more<K: Kernel, G: Grow>(
    graph: &G,
    candidates: &[Far],
    most: usize,
    chosen: &mut Vec<Far>,
) {
    for (distance, row) in candidates {
        if chosen.len() == most {
            break;
        }
        let code = graph.code(*row);
        let bias = graph.bias(*row);
        let is_reached = chosen.iter().any(|(_, by)| {
            let between = K::dot_codes(code, graph.code(*by));
            graph.between(between, bias + graph.bias(*by)) < *distance
        });
        if !is_reached {
            chosen.push((*distance, *row));
        }
    }
}

/// The distances of rows from a row, in their order.
pub(super) fn measured<K: Kernel, G: Grow>(
    graph: &G,
    from: u32,
    rows: impl Iterator<Item = u32>,
    out: &mut Vec<Far>,
) {
    out.clear();
    out.extend(rows.map(|row| {
        prefetch::soon(graph.code(row));
        (0.0, row)
    }));
    let (code, bias) = (graph.code(from), graph.bias(from));
    for (distance, row) in out {
        let between = K::dot_codes(code, graph.code(*row));
        *distance = graph.between(between, bias + graph.bias(*row));
    }
}
