//! The writer's part in rows that ride ([`crate::segment::rides`]): whether a new row does, on
//! which, and what follows when one ends.
//!
//! While the rows of a compaction are moved over, a row and its twin in the new segment both
//! carry: searches of the old view come by the one, those of the new view by the other.

use std::sync::Arc;

use shoal_schemas::Vector;

use crate::{
    segment::{Place, Segment},
    shard::{lock, save::Save, writer::Writer},
    view::View,
};

impl Writer {
    /// Whether a row's vector is that one, to the last bit. Of a point that has expired nothing is used again, for
    /// compaction may be about to reclaim it.
    pub(super) fn holds(&self, place: Place, vector: &Vector) -> bool {
        let segment = self.shared.segment(place.segment);
        let now_ms = self.shared.now_ms();
        let is_gone = |segment: &Segment| {
            segment.is_reclaimed()
                || segment.has_expired(place.row, now_ms)
                || self.is_taken_back(place)
        };
        let Some(segment) = segment.filter(|segment| !is_gone(segment)) else {
            return false;
        };
        let mut held = Vec::new();
        // One that does not read is replaced like any other: what is wrong shows where it is read
        // to be answered with.
        let read = segment.vector(place.row, &self.shared.log, &mut held);
        let held = held.iter().map(|component| component.to_bits());
        let wanted = vector.as_slice().iter();
        read.is_ok() && held.eq(wanted.map(|component| component.to_bits()))
    }

    /// Whether a row's point is reclaimed by a compaction whose rows are moved over.
    fn is_taken_back(&self, place: Place) -> bool {
        let twin = self.moving.as_ref().and_then(|moving| moving.twin(place));
        let twin = twin.and_then(|twin| self.shared.segment(twin.segment));
        twin.is_some_and(|twin| twin.is_reclaimed())
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
        let twin = self.moving.as_ref().and_then(|moving| moving.twin(place));
        if segment.is_some_and(|segment| segment.rides.carrier(place.row).is_some()) {
            let carriers = self.carriers(place).into_iter().flatten();
            // One that takes the carrier's node over carries nothing, least of all itself.
            for carrier in carriers.filter(|carrier| Some(*carrier) != twin) {
                if let Some(segment) = self.shared.segment(carrier.segment) {
                    segment.rides.set_down();
                }
            }
        }
        for place in std::iter::once(place).chain(twin) {
            if let Some(segment) = self.shared.segment(place.segment) {
                segment.end(place.row, self.sequence);
            }
        }
    }

    /// Takes over who rides into a segment of the same rows that is about to take the other's
    /// place. Its searches ask for no earlier moment than this one, but a copy may.
    pub(super) fn take_rides(&self, to: &Segment, from: &Segment) {
        let is_copied = !matches!(*lock(&self.shared.save), Save::Idle);
        let lives = |place: Place| {
            let segment = self.shared.segment(place.segment);
            segment.is_some_and(|segment| segment.end_of(place.row).is_none())
        };
        to.rides
            .take_over(&from.rides, |place| is_copied || lives(place));
    }

    /// Lets go of links to rows that have ended, of one sealed segment that has too many. Nothing
    /// may hold on to the segment and look at them later: no compaction, no copy.
    pub(super) fn let_links_go(&self) {
        let view = self.shared.view.load();
        let spare = usize::try_from(self.shared.spec.engine.seal_rows).unwrap_or(usize::MAX);
        let worn = view.segments.iter().find(|segment| {
            let carrying = usize::try_from(segment.rides.carrying()).unwrap_or(usize::MAX);
            segment.as_sealed().is_some()
                && segment.rides.links() > carrying.saturating_mul(2).saturating_add(spare)
        });
        let Some(old) = worn else { return };
        // Held, so that the builder begins nothing meanwhile.
        let work = self.shared.work();
        let is_held = work.compacting || !matches!(*lock(&self.shared.save), Save::Idle);
        let Some(new) = old.without_rides().filter(|_| !is_held) else {
            return;
        };
        self.take_rides(&new, old);
        let new = Arc::new(new);
        self.shared.change_view(|view| View {
            segments: view
                .segments
                .iter()
                .map(|one| if one.id == new.id { &new } else { one }.clone())
                .collect(),
            chunks: view.chunks.clone(),
            complete_from: self.sequence,
        });
    }
}
