//! What compaction takes over of old segments: which rows the new one has, and in which order.

use std::{collections::HashMap, sync::Arc};

use crate::{
    segment::{Place, Segment, SegmentId, seal::Origin},
    shard::{Shared, compact::expired_by_ms},
};

/// What a new segment holds for a row of an old one.
struct Taken {
    segment: Arc<Segment>,
    row: u32,
    /// On which it rides on.
    carrier: Option<Place>,
}

/// What a new segment is to be made of, by and by.
#[derive(Default)]
pub(super) struct Taking {
    /// The new segment's rows.
    pub(super) origins: Vec<Origin>,
    /// See [`super::compact::Compacted::moved`].
    pub(super) moved: HashMap<SegmentId, Vec<Option<u32>>>,
    /// See [`super::compact::Compacted::adopted`].
    pub(super) adopted: HashMap<Place, u32>,
    /// See [`super::compact::Compacted::riding`].
    pub(super) riding: Vec<(u32, Place)>,
    /// The first of these that is reclaimed.
    pub(super) first_reclaimed: usize,
    /// What has expired, and for which rows of old segments it is taken.
    expired: Vec<(Taken, Place)>,
}

impl Taking {
    /// Takes what there is for each row of an old segment.
    pub(super) fn take_all(
        &mut self,
        shared: &Shared,
        inputs: &[Arc<Segment>],
        input: &Arc<Segment>,
    ) {
        let expired_by_ms = expired_by_ms(shared);
        self.moved
            .insert(input.id, vec![None; input.len().try_into().unwrap_or(0)]);
        for row in 0..input.len() {
            // Looked at once: a row that ends from here on is in the new segment, and ends there too.
            let Some(taken) = take(shared, inputs, input, row) else {
                continue;
            };
            let old = Place {
                segment: input.id,
                row,
            };
            let (segment, row) = (&taken.segment, taken.row);
            match segment.is_reclaimed() || segment.has_expired(row, expired_by_ms) {
                true => self.expired.push((taken, old)),
                false => self.push(taken, old, true),
            }
        }
    }

    /// Takes a row for one of an old segment.
    fn push(&mut self, taken: Taken, old: Place, holds_point: bool) {
        let new = u32::try_from(self.origins.len()).unwrap_or(u32::MAX);
        if let Some(carrier) = taken.carrier {
            self.riding.push((new, carrier));
        }
        let numbers = self.moved.get_mut(&old.segment);
        let row = usize::try_from(old.row).unwrap_or(usize::MAX);
        if let Some(number) = numbers.and_then(|numbers| numbers.get_mut(row)) {
            *number = Some(new);
        }
        let place = taken.place();
        if place != old {
            self.adopted.insert(place, new);
        }
        self.origins.push(Origin {
            is_node: holds_point && taken.carrier.is_none(),
            segment: taken.segment,
            row: taken.row,
            alive: true,
        });
    }

    /// Everything, what has expired behind what has not.
    pub(super) fn finish(mut self) -> Self {
        self.first_reclaimed = self.origins.len();
        for (taken, old) in std::mem::take(&mut self.expired) {
            self.push(taken, old, false);
        }
        self
    }
}

impl Taken {
    fn place(&self) -> Place {
        Place {
            segment: self.segment.id,
            row: self.row,
        }
    }
}

/// Takes a row that is alive, or the one that rides on it. Nothing if there is neither, and
/// nothing for a row that rides on one of the old segments: that one brings it.
fn take(shared: &Shared, inputs: &[Arc<Segment>], input: &Arc<Segment>, row: u32) -> Option<Taken> {
    if input.end_of(row).is_some() {
        let (segment, row) = live_rider(shared, input, row)?;
        let carrier = None;
        return Some(Taken {
            segment,
            row,
            carrier,
        });
    }
    let carrier = input.rides.carrier(row);
    let is_brought = |place: Place| inputs.iter().any(|one| one.id == place.segment);
    (!carrier.is_some_and(is_brought)).then(|| Taken {
        segment: input.clone(),
        row,
        carrier,
    })
}

/// The row that rides on one that has ended.
pub(super) fn live_rider(
    shared: &Shared,
    segment: &Segment,
    row: u32,
) -> Option<(Arc<Segment>, u32)> {
    let newest = || segment.rides.riders(row).next();
    let mut place = newest()?;
    loop {
        let rider = shared.segment(place.segment)?;
        if rider.end_of(place.row).is_none() {
            return Some((rider, place.row));
        }
        // One that takes its place was there before it ended.
        let again = newest()?;
        if again == place {
            return None;
        }
        place = again;
    }
}

#[cfg(test)]
#[path = "reclaim_tests.rs"]
mod tests;
