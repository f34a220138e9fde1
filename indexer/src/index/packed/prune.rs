//! Which of the nearest become neighbours.
//!
//! Not simply the nearest: one that is nearer to a chosen neighbour than to the row itself is
//! reached through that one. Places go to rows in other directions instead.

use crate::index::{
    kernel::Kernel,
    packed::{
        build::Builder,
        walk::{Far, Layers},
    },
    prefetch,
};

/// Chooses up to `most` of `candidates`, which come nearest first.
pub(super) fn choose<K: Kernel>(
    graph: &Builder,
    candidates: &[Far],
    most: usize,
    chosen: &mut Vec<Far>,
) {
    chosen.clear();
    choose_more::<K>(graph, candidates, most, chosen);
}

/// The same where some are chosen already.
pub(super) fn choose_more<K: Kernel>(
    graph: &Builder,
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
pub(super) fn measured<K: Kernel>(graph: &Builder, from: u32, rows: &[u32], out: &mut Vec<Far>) {
    for row in rows {
        prefetch::soon(graph.code(*row));
    }
    let (code, bias) = (graph.code(from), graph.bias(from));
    out.clear();
    out.extend(rows.iter().map(|row| {
        let between = K::dot_codes(code, graph.code(*row));
        (graph.between(between, bias + graph.bias(*row)), *row)
    }));
}
