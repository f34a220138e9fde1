//! The segments that a compaction makes: one of points, and one of rows whose points have expired.

use std::sync::Arc;

use crate::segment::{Place, Segment, SegmentId};

/// New segments, at most two. Their rows are numbered together: those of the second go on where the first ends.
#[derive(Clone, Default)]
pub struct Outputs(Vec<Arc<Segment>>);

impl Outputs {
    /// Adds one, whose rows are the next.
    pub(super) fn extend(&mut self, segment: Option<Arc<Segment>>) {
        self.0.extend(segment);
    }

    /// The segments.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.0.iter()
    }

    /// The segment of that number, if it is one of them.
    pub fn get(&self, id: SegmentId) -> Option<&Arc<Segment>> {
        self.iter().find(|segment| segment.id == id)
    }

    /// Takes their files away, as far as that goes: a checkpoint takes away what is left.
    pub(super) fn discard(&self) {
        for sealed in self.iter().filter_map(|segment| segment.as_sealed()) {
            let _left = std::fs::remove_dir_all(sealed.folder());
        }
    }

    /// Where a row is.
    pub(super) fn row(&self, number: u32) -> Option<(&Arc<Segment>, u32)> {
        let mut first = 0;
        self.iter().find_map(|segment| {
            let row = number.checked_sub(first)?;
            first += segment.len();
            (row < segment.len()).then_some((segment, row))
        })
    }

    /// Where a row is.
    pub(super) fn place(&self, number: u32) -> Option<Place> {
        let (segment, row) = self.row(number)?;
        let segment = segment.id;
        Some(Place { segment, row })
    }

    /// The number of the row at a place.
    pub(super) fn number(&self, place: Place) -> Option<u32> {
        let before = self.iter().take_while(|one| one.id != place.segment);
        let first: u32 = before.map(|one| one.len()).sum();
        self.get(place.segment)?;
        Some(first + place.row)
    }

    /// All rows, in the order of their ids.
    pub(super) fn by_id(&self) -> Vec<u32> {
        let rows = self.iter().flat_map(|segment| segment.rows());
        let ids = (0u32..)
            .zip(rows)
            .map(|(number, (_, row))| (row.id, number));
        let mut ids: Vec<(&str, u32)> = ids.collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, number)| number).collect()
    }
}
