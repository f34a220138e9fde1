//! Rows that ride: their vector is that of the row they replaced, so no graph gets a node for it.
//!
//! The row whose node it is, dead by then, is their *carrier*. A search that meets the carrier's
//! node goes on to the newest row that rides on it; a row that rides is found in no other way. A
//! row never rides on one that rides itself. Both sides are kept here, for the rows of one segment:
//! which rows have ridden on each, newest last, and on which row each rides. Only the shard's
//! writer changes them, while any number look. What a checkpoint keeps of them is in
//! [`crate::shard::checkpoint`].
//!
//! Links to rows that have ended are for searches of earlier moments. They are let go of by putting
//! another segment of the same rows into the view ([`Segment::without_rides`]).

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use crate::segment::{Place, Segment, SegmentId, Sequence};

/// Rows of a page: a segment without such rows has no page at all.
const PAGE_ROWS: usize = 1024;
/// Nothing is kept of a row.
const NOTHING: u64 = u64::MAX;
/// A row rides or rode; on which other row is not known.
const FORGOTTEN: u64 = u64::MAX - 1;

/// One number a row, for the few rows that have one.
#[derive(Default)]
struct Numbers {
    pages: boxcar::Vec<OnceLock<Box<[AtomicU64]>>>,
}

impl Numbers {
    fn get(&self, row: u32) -> u64 {
        let row = index(row);
        let page = self.pages.get(row / PAGE_ROWS).and_then(OnceLock::get);
        let number = page.and_then(|page| page.get(row % PAGE_ROWS));
        number.map_or(NOTHING, |number| number.load(Ordering::Acquire))
    }

    /// Only the shard's writer.
    fn set(&self, row: u32, to: u64) {
        let row = index(row);
        while self.pages.count() <= row / PAGE_ROWS {
            self.pages.push(OnceLock::new());
        }
        let page = self.pages.get(row / PAGE_ROWS);
        let page = page.map(|page| {
            page.get_or_init(|| (0..PAGE_ROWS).map(|_| AtomicU64::new(NOTHING)).collect())
        });
        if let Some(number) = page.and_then(|page| page.get(row % PAGE_ROWS)) {
            number.store(to, Ordering::Release);
        }
    }

    /// The rows that have one, rising.
    fn iter(&self) -> impl Iterator<Item = (u32, u64)> {
        let pages = self.pages.iter();
        let pages = pages.filter_map(|(at, page)| Some((at, page.get()?)));
        pages.flat_map(|(at, page)| {
            let rows = page.iter().enumerate().filter_map(move |(place, number)| {
                let row = u32::try_from(at * PAGE_ROWS + place).ok()?;
                Some((row, number.load(Ordering::Acquire)))
            });
            rows.filter(|(_, number)| *number != NOTHING)
        })
    }
}

/// A row that rode on another, and the link before it of the same carrier.
#[derive(Clone, Copy)]
struct Link {
    rider: Place,
    before: u64,
}

/// Who rides on the rows of a segment, and on whom its rows ride.
#[derive(Default)]
pub struct Rides {
    links: boxcar::Vec<Link>,
    /// By carrier: the number of its newest link.
    newest: Numbers,
    /// By rider: where its carrier is.
    carriers: Numbers,
    riding: AtomicU32,
    riding_live: AtomicU32,
    carrying: AtomicU32,
}

impl Rides {
    /// Whether any row of the segment carries or has carried another.
    pub fn has_carriers(&self) -> bool {
        self.links.count() > 0
    }

    /// Whether any row of the segment rides.
    pub fn has_riders(&self) -> bool {
        self.riding.load(Ordering::Acquire) > 0
    }

    /// Whether a row rides: it is no node of any graph. Of a segment that an earlier process
    /// sealed, this is known of rows that live.
    pub fn is_rider(&self, row: u32) -> bool {
        self.has_riders() && self.carriers.get(row) != NOTHING
    }

    /// On which row a row rides.
    pub fn carrier(&self, row: u32) -> Option<Place> {
        match self.carriers.get(row) {
            NOTHING | FORGOTTEN => None,
            packed => Some(unpacked(packed)),
        }
    }

    /// The rows that have ridden on a row, newest first.
    pub fn riders(&self, row: u32) -> impl Iterator<Item = Place> {
        let link = |number: u64| self.links.get(usize::try_from(number).ok()?).copied();
        let newest = match self.has_carriers() {
            true => link(self.newest.get(row)),
            false => None,
        };
        std::iter::successors(newest, move |last| link(last.before)).map(|link| link.rider)
    }

    /// The rows that carry or have carried others, rising.
    pub fn carriers(&self) -> impl Iterator<Item = u32> {
        self.newest.iter().map(|(row, _)| row)
    }

    /// Rows known to ride, ended ones too.
    pub fn riding(&self) -> u32 {
        self.riding.load(Ordering::Acquire)
    }

    /// Rows that ride and have not ended.
    pub fn riding_live(&self) -> u32 {
        self.riding_live.load(Ordering::Acquire)
    }

    /// Rows on which one rides that has not ended.
    pub fn carrying(&self) -> u32 {
        self.carrying.load(Ordering::Acquire)
    }

    /// Says that a row of this segment, which has not ended, rides on `carrier`; again, if that
    /// one has moved. Only the shard's writer, before the row is visible.
    pub fn ride(&self, row: u32, carrier: Place) {
        let before = self.carriers.get(row);
        if before == NOTHING {
            self.riding.fetch_add(1, Ordering::AcqRel);
        }
        if [NOTHING, FORGOTTEN].contains(&before) {
            self.riding_live.fetch_add(1, Ordering::AcqRel);
        }
        self.carriers.set(row, packed(carrier));
    }

    /// Says that a row is no node. One that lives has to be told on which it rides as well.
    pub fn rode(&self, row: u32) {
        self.carriers.set(row, FORGOTTEN);
        self.riding.fetch_add(1, Ordering::AcqRel);
    }

    /// Says that a row rides no longer, and is not found by any node. Only the shard's writer.
    pub fn dismount(&self, row: u32, is_alive: bool) {
        self.carriers.set(row, NOTHING);
        self.riding.fetch_sub(1, Ordering::AcqRel);
        if is_alive {
            self.riding_live.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Says who rides on a row of this segment from now on. Only the shard's writer, before that
    /// one is visible.
    pub fn carry(&self, row: u32, rider: Place) {
        let before = self.newest.get(row);
        let number = self.links.push(Link { rider, before });
        let number = u64::try_from(number).unwrap_or(NOTHING);
        self.newest.set(row, number);
    }

    /// Counts a row that carries one that has not ended.
    pub fn take_up(&self) {
        self.carrying.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts a row less: the one that rode on it has ended.
    pub fn set_down(&self) {
        self.carrying.fetch_sub(1, Ordering::AcqRel);
    }

    /// A row that rides has ended.
    pub(super) fn ended(&self, row: u32) {
        if self.is_rider(row) {
            self.riding_live.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Links kept, also to rows that have ended.
    pub fn links(&self) -> usize {
        self.links.count()
    }

    /// Takes over what is known of the same rows of a segment, some of which have ended, and of the
    /// links those that `keep` takes. Only the shard's writer.
    pub fn take_over(&self, before: &Self, keep: impl Fn(Place) -> bool) {
        for row in before.carriers() {
            let riders: Vec<Place> = before.riders(row).filter(|place| keep(*place)).collect();
            for rider in riders.into_iter().rev() {
                self.carry(row, rider);
            }
        }
        for (row, number) in before.carriers.iter() {
            self.carriers.set(row, number);
        }
        self.riding.store(before.riding(), Ordering::Release);
        self.riding_live
            .store(before.riding_live(), Ordering::Release);
        self.carrying.store(before.carrying(), Ordering::Release);
    }
}

/// The newest row born by `at` that rides, or rode, on a row of `segment`, with its segment.
/// `find` gives the segments of the moment; what moved since to one that is not among them is
/// passed over.
pub fn newest_rider<'a>(
    segment: &Segment,
    row: u32,
    at: Sequence,
    find: impl Fn(SegmentId) -> Option<&'a Segment>,
) -> Option<(&'a Segment, u32)> {
    let known = segment.rides.riders(row).filter_map(|place| {
        let segment = find(place.segment)?;
        let is_born = segment.row(place.row)?.is_born_by(at);
        is_born.then_some((segment, place.row))
    });
    { known }.next()
}

fn packed(place: Place) -> u64 {
    (u64::from(place.segment.0) << 32) | u64::from(place.row)
}

fn unpacked(packed: u64) -> Place {
    let [a, b, c, d, e, f, g, h] = packed.to_be_bytes();
    Place {
        segment: SegmentId(u32::from_be_bytes([a, b, c, d])),
        row: u32::from_be_bytes([e, f, g, h]),
    }
}

fn index(row: u32) -> usize {
    usize::try_from(row).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::Rides;
    use crate::segment::{Place, SegmentId};

    fn place(segment: u32, row: u32) -> Place {
        Place {
            segment: SegmentId(segment),
            row,
        }
    }

    #[test]
    fn riders_are_told_newest_first_and_those_of_other_rows_are_not() {
        let rides = Rides::default();
        assert!(!rides.has_carriers());
        rides.carry(5000, place(0, 0));
        rides.carry(7, place(1, 1));
        rides.carry(5000, place(u32::MAX - 1, 3));
        let riders = |row| rides.riders(row).collect::<Vec<_>>();
        assert_eq!(riders(5000), [place(u32::MAX - 1, 3), place(0, 0)]);
        assert_eq!(riders(7), [place(1, 1)]);
        assert_eq!(riders(8), []);
        assert_eq!(rides.carriers().collect::<Vec<_>>(), [7, 5000]);
        let after = Rides::default();
        after.take_over(&rides, |_| true);
        assert!(after.riders(5000).eq(rides.riders(5000)));
        let newest = Rides::default();
        newest.take_over(&after, |place| place != self::place(0, 0));
        assert_eq!((newest.links(), newest.riders(5000).count()), (2, 1));
    }

    #[test]
    fn a_row_that_rides_is_counted_once_wherever_its_carrier_goes() {
        let rides = Rides::default();
        assert!(!rides.is_rider(3));
        rides.ride(3, place(1, 2));
        rides.ride(3, place(4, 5));
        rides.rode(9);
        assert_eq!(rides.carrier(3), Some(place(4, 5)));
        assert_eq!(rides.carrier(9), None);
        assert!(rides.is_rider(9) && !rides.is_rider(4));
        assert_eq!((rides.riding(), rides.riding_live()), (2, 1));
        rides.ended(3);
        rides.ended(4);
        assert_eq!((rides.riding(), rides.riding_live()), (2, 0));
        let after = Rides::default();
        after.take_over(&rides, |_| true);
        assert_eq!(after.carrier(3), Some(place(4, 5)));
        assert_eq!((after.riding(), after.riding_live()), (2, 0));
    }
}
