//! Mending a shard's graphs by the vectors that rows were published with.

use crate::{
    index::packed,
    segment::{PointError, Segment},
    shard::Shared,
};

/// Mends a graph by the vectors that its rows were published with.
pub(super) struct Mending<G, V> {
    /// Whether to go on.
    pub(super) goes_on: G,
    /// A row's vector; false if it has none.
    pub(super) vector: V,
}

impl<E, G, V> packed::Attend for Mending<G, V>
where
    G: FnMut() -> Result<bool, E>,
    V: FnMut(u32, &mut Vec<f32>) -> Result<bool, E>,
{
    type Error = E;

    fn goes_on(&mut self) -> Result<bool, E> {
        (self.goes_on)()
    }

    fn vector(&mut self, row: u32, out: &mut Vec<f32>) -> Result<bool, E> {
        (self.vector)(row, out)
    }
}

/// The vector of a row that searches have to find: it lives, or another rides on it. False of others.
pub(super) fn vector_of<E: From<PointError>>(
    shared: &Shared,
    segment: &Segment,
    row: u32,
    out: &mut Vec<f32>,
) -> Result<bool, E> {
    if segment.end_of(row).is_some() && segment.rides.riders(row).next().is_none() {
        return Ok(false);
    }
    segment.vector(row, &shared.log, out)?;
    Ok(true)
}
