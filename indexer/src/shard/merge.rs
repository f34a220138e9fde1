//! The graph that several segments' rows have together.

use std::{collections::HashMap, sync::Arc};

use crate::{
    index::{
        packed::{self, Built},
        space::Space,
    },
    segment::{
        Segment, SegmentId,
        seal::{Origin, SealError},
    },
    shard::{
        Shared,
        compact::{MEND_ROWS, READ_ROWS, paced},
        mending::Mending,
    },
};

/// Rows whose edges are taken over in the time that one is folded.
const ADOPT_ROWS: u32 = 16;

/// Of ten nodes so many have to be kept for a graph's edges to be worth taking over.
const KEPT_OF_TEN: u64 = 7;

/// Whether the edges of a graph are worth taking over when so many of its nodes are kept. Rows that
/// lost many of their neighbours have too few left to choose new ones from, and searches of the new graph find less.
fn is_worth_adopting(kept: usize, nodes: u32) -> bool {
    u64::try_from(kept).is_ok_and(|kept| 10 * kept >= KEPT_OF_TEN * u64::from(nodes))
}

/// The graph of several segments' rows.
pub(super) struct Merge<'a> {
    pub(super) shared: &'a Shared,
    /// The first one's edges are taken over.
    pub(super) inputs: &'a [Arc<Segment>],
    pub(super) moved: &'a HashMap<SegmentId, Vec<Option<u32>>>,
    /// The rows of the new segment, those of the first input in front.
    pub(super) origins: &'a [Origin],
    pub(super) space: &'a Space,
}

impl Merge<'_> {
    /// Builds it: edges of all rows, codes of those that are nodes, in their order; `None` if
    /// `meanwhile` ended the work.
    pub(super) fn build(
        &self,
        mut meanwhile: &mut impl FnMut() -> Result<bool, SealError>,
    ) -> Result<Option<Built>, SealError> {
        let nodes = (0u32..).zip(self.origins);
        let nodes = nodes.filter(|(_, origin)| origin.is_node);
        let keys: Vec<u32> = nodes.map(|(row, _)| row).collect();
        let options = packed::Options {
            space: self.space.clone(),
            parameters: self.shared.spec.collection.index,
            rows: u32::try_from(keys.len()).unwrap_or(u32::MAX),
        };
        let (mut vector, mut code) = (Vec::new(), Vec::new());
        let mut builder = packed::Builder::new(options.clone());
        let first = self.inputs.first();
        let first = first.map(|first| (first, self.nodes_of(first, &keys)));
        if let Some((first, numbers)) = first
            && is_worth_adopting(numbers.iter().flatten().count(), first.nodes())
            && let Some(sealed) = first.as_sealed()
        {
            let graph = sealed.graph();
            let is_coded_alike = graph.space().is_same(self.space);
            let adopt = packed::Adopt {
                graph,
                numbers: &numbers,
                code: |row, out: &mut Vec<u8>| {
                    // One that rides has no code in its graph.
                    if is_coded_alike && !first.rides.is_rider(row) {
                        out.extend_from_slice(graph.code(row).unwrap_or_default());
                        return Ok(graph.bias(row));
                    }
                    // A row that has ended may have no vector, the one that rides on it has.
                    if let Some(origin) = self.origin(first, row) {
                        let (segment, row) = (&origin.segment, origin.row);
                        segment.vector(row, &self.shared.log, &mut vector)?;
                    }
                    Ok(self.space.encode_row(&vector, out))
                },
            };
            let mut looking = paced(ADOPT_ROWS, &mut meanwhile);
            match adopt.build(options, &mut looking)? {
                Some(adopted) => builder = adopted,
                None => return Ok(None),
            }
        }
        let adopted = builder.rows();
        let others = keys
            .iter()
            .skip(usize::try_from(adopted).unwrap_or(usize::MAX));
        let mut reading = paced(READ_ROWS, &mut meanwhile);
        for row in others {
            let at = usize::try_from(*row).unwrap_or(usize::MAX);
            let Some(origin) = self.origins.get(at) else {
                break;
            };
            match self.coded(origin) {
                Some((code, bias)) => builder.push(code, bias),
                None => {
                    let (segment, row) = (&origin.segment, origin.row);
                    segment.vector(row, &self.shared.log, &mut vector)?;
                    code.clear();
                    let bias = self.space.encode_row(&vector, &mut code);
                    builder.push(&code, bias)
                }
            };
            if !reading()? {
                return Ok(None);
            }
        }
        drop(reading);
        let mut nodes = self.along_edges(&keys, adopted);
        // The first one and those that stand above level 0 in front, by their numbers; all others stay in
        // order.
        nodes.sort_by_key(
            |node| match *node == adopted || builder.stands_above(*node) {
                true => (false, *node),
                false => (true, 0),
            },
        );
        for node in nodes {
            builder.connect(node);
            if !meanwhile()? {
                return Ok(None);
            }
        }
        let rows = u32::try_from(self.origins.len()).unwrap_or(u32::MAX);
        let mut mending = Mending {
            goes_on: paced(MEND_ROWS, &mut meanwhile),
            vector: |node: u32, out: &mut Vec<f32>| {
                let row = keys.get(usize::try_from(node).unwrap_or(usize::MAX));
                let at = row.and_then(|row| usize::try_from(*row).ok());
                let Some(origin) = at.and_then(|at| self.origins.get(at)) else {
                    return Ok(false);
                };
                origin.segment.vector(origin.row, &self.shared.log, out)?;
                Ok(true)
            },
        };
        let built = builder.finish(&mut mending)?;
        Ok(built.map(|built| Built {
            edges: built.edges.spread(&keys, rows),
            ..built
        }))
    }

    /// A row's code and bias, where the segment it comes from has them in this very space.
    fn coded<'o>(&self, origin: &'o Origin) -> Option<(&'o [u8], f32)> {
        let (segment, row) = (&origin.segment, origin.row);
        let graph = segment.as_sealed()?.graph();
        let has_code = graph.space().is_same(self.space) && !segment.rides.is_rider(row);
        has_code.then_some((graph.code(row)?, graph.bias(row)))
    }

    /// The nodes of the new graph from `first` on, each as a rule behind a neighbour: what one is compared
    /// with is what the one before was, and near the processor still.
    fn along_edges(&self, keys: &[u32], first: u32) -> Vec<u32> {
        let is_wanted = |node: &u32| *node >= first;
        let mut all = Vec::new();
        for input in self.inputs {
            let nodes = self.nodes_of(input, keys);
            if !nodes.iter().flatten().any(is_wanted) {
                continue;
            }
            let rows = match input.as_sealed() {
                Some(sealed) => sealed.graph().along_edges(),
                None => (0..input.len()).collect(),
            };
            let node = |row: u32| *nodes.get(usize::try_from(row).ok()?)?;
            all.extend(rows.into_iter().filter_map(node).filter(is_wanted));
        }
        all
    }

    /// What the new segment holds for an input's row.
    fn origin(&self, input: &Segment, row: u32) -> Option<&Origin> {
        let numbers = self.moved.get(&input.id)?;
        let new = (*numbers.get(usize::try_from(row).ok()?)?)?;
        self.origins.get(usize::try_from(new).ok()?)
    }

    /// Which node of the new graph each of an input's rows is.
    fn nodes_of(&self, input: &Segment, keys: &[u32]) -> Vec<Option<u32>> {
        let rows = self.moved.get(&input.id).map_or(&[][..], Vec::as_slice);
        let node = |new: u32| {
            let node = keys.binary_search(&new).ok()?;
            u32::try_from(node).ok()
        };
        rows.iter().map(|new| new.and_then(node)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::is_worth_adopting;

    #[test]
    fn edges_are_taken_over_while_most_nodes_are_kept() {
        assert!(is_worth_adopting(87, 100), "what compaction usually meets");
        assert!(is_worth_adopting(70, 100));
        assert!(!is_worth_adopting(69, 100));
        assert!(!is_worth_adopting(10_000, 60_000));
    }
}
