//! Versions: a hybrid logical clock, 48 bits of milliseconds and 16 bits of counter.
//!
//! Within one partition the later offset wins; versions only decide between regions. A clock
//! that runs backwards therefore never loses a write inside a region.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bits of the counter below the milliseconds.
const COUNTER_BITS: u32 = 16;
const MAX_MILLIS: u64 = (1 << (64 - COUNTER_BITS)) - 1;

/// When a write happened, comparable across regions.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Version(u64);

impl Version {
    /// Joins the two parts; milliseconds past the year 10889 are held at the largest value.
    pub fn from_parts(millis: u64, counter: u16) -> Self {
        Self(millis.min(MAX_MILLIS) << COUNTER_BITS | u64::from(counter))
    }

    /// The version of a record without a `shoal-version` header: its Kafka timestamp.
    ///
    /// A negative timestamp (an old producer that set none) counts as 0.
    pub fn from_timestamp(timestamp_ms: i64) -> Self {
        Self::from_parts(u64::try_from(timestamp_ms).unwrap_or(0), 0)
    }

    /// Reads the form that goes over the wire.
    pub fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The form that goes over the wire.
    pub fn raw(self) -> u64 {
        self.0
    }

    /// Milliseconds since the Unix epoch.
    pub fn millis(self) -> u64 {
        self.0 >> COUNTER_BITS
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A hybrid logical clock: never behind wall time, never repeats, never goes back.
#[derive(Debug, Default)]
pub struct Clock {
    last: Version,
}

impl Clock {
    /// Returns a version above every earlier one, at `now_ms` where the wall clock allows.
    pub fn tick(&mut self, now_ms: u64) -> Version {
        let wall = Version::from_parts(now_ms, 0);
        // Adding one carries from the counter into the milliseconds, which is what is wanted.
        self.last = wall.max(Version(self.last.0.saturating_add(1)));
        self.last
    }

    /// Takes note of a version seen elsewhere, so that the next tick is above it.
    pub fn observe(&mut self, seen: Version) {
        self.last = self.last.max(seen);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Clock, Version};

    #[test]
    fn two_ticks_in_one_millisecond_differ_by_the_counter() {
        let mut clock = Clock::default();
        let first = clock.tick(1_700_000_000_000);
        let second = clock.tick(1_700_000_000_000);
        assert_eq!(first.millis(), second.millis());
        assert!(second > first);
    }

    proptest! {
        #[test]
        fn ticks_always_rise_however_the_wall_clock_jumps(
            walls in proptest::collection::vec(0u64..1 << 47, 1..50),
            seen in proptest::collection::vec(0u64..u64::MAX / 2, 1..50),
        ) {
            let mut clock = Clock::default();
            let mut last = Version::default();
            for (wall, other) in walls.iter().zip(seen.iter().cycle()) {
                clock.observe(Version::from_raw(*other));
                let tick = clock.tick(*wall);
                prop_assert!(tick > last);
                prop_assert!(tick > Version::from_raw(*other));
                prop_assert!(tick.millis() >= *wall);
                last = tick;
            }
        }
    }
}
