//! Vector indexes: what finds near rows in a segment, and distances.
//!
//! A row is a number the segment hands out, rising from 0. A graph only ever gets rows added, by one
//! thread while any number search ([`live`]); once a segment takes no more, its graph is one run of
//! bytes ([`packed`]). A row that is dead stays, and is masked by the `accept` predicate of a search;
//! reusing its place would decay recall.

pub mod adjacency;
pub mod distance;
mod kernel;
pub mod live;
mod nibbles;
pub mod packed;
mod plainly;
mod prefetch;
pub mod rotation;
pub mod space;
pub mod target;
mod zeros;

/// A row near a query, with its distance in the collection's metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Near {
    /// The segment's row.
    pub row: u32,
    /// Smaller is nearer.
    pub distance: f32,
}
