//! The writer's part in rows that ride ([`crate::segment::rides`]): whether a new row does, on
//! which, and what follows when one ends.
//!
//! While the rows of a compaction are moved over, a row and its twin in the new segment both
//! carry: searches of the old view come by the one, those of the new view by the other.

use shoal_schemas::Vector;

use crate::{
    segment::{Place, Segment},
    shard::writer::Writer,
};

impl Writer {
    /// Whether a row's vector is that one, to the last bit.
    pub(super) fn holds(&self, place: Place, vector: &Vector) -> bool {
        let Some(segment) = self.shared.segment(place.segment) else {
            return false;
        };
        let mut held = Vec::new();
        // One that does not read is replaced like any other: what is wrong shows where it is read
        // to be answered with.
        let read = segment.vector(place.row, &self.shared.log, &mut held);
        let bits = |vector: &[f32]| vector.iter().map(|one| one.to_bits()).collect::<Vec<_>>();
        read.is_ok() && bits(&held) == bits(vector.as_slice())
    }

    /// The rows by whose nodes a row is found: itself or the one it rides on, and that one's twin
    /// while rows are moved over, the one that stays first.
    pub(super) fn carriers(&self, place: Place) -> [Option<Place>; 2] {
        let carrier = |place: Place| {
            let segment = self.shared.segment(place.segment);
            let carrier = segment.and_then(|segment| segment.rides.carrier(place.row));
            carrier.unwrap_or(place)
        };
        let one = carrier(place);
        let Some(moving) = &self.moving else {
            return [Some(one), None];
        };
        match moving.twin(one).map(carrier) {
            Some(other) if other == one => [Some(one), None],
            Some(other) if moving.is_new(other) => [Some(other), Some(one)],
            other => [Some(one), other],
        }
    }

    /// Lets a new row ride, if it has carriers.
    pub(super) fn ride(
        &self,
        segment: &Segment,
        place: Place,
        carriers: [Option<Place>; 2],
    ) -> bool {
        let [Some(first), _] = carriers else {
            return false;
        };
        segment.rides.ride(place.row, first);
        for carrier in carriers.into_iter().flatten() {
            if let Some(segment) = self.shared.segment(carrier.segment) {
                segment.rides.carry(carrier.row, place);
                segment.rides.take_up();
            }
        }
        true
    }

    /// Ends a row, and its twin.
    pub(super) fn end(&self, place: Place) {
        let segment = self.shared.segment(place.segment);
        if segment.is_some_and(|segment| segment.rides.carrier(place.row).is_some()) {
            for carrier in self.carriers(place).into_iter().flatten() {
                if let Some(segment) = self.shared.segment(carrier.segment) {
                    segment.rides.set_down();
                }
            }
        }
        let twin = self.moving.as_ref().and_then(|moving| moving.twin(place));
        for place in std::iter::once(place).chain(twin) {
            if let Some(segment) = self.shared.segment(place.segment) {
                segment.end(place.row, self.sequence);
            }
        }
    }
}
