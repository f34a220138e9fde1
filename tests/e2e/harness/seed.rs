//! Random numbers that a failed run can repeat: the seed is printed, and `SEED=` sets it.

use std::time::Duration;

use shoal_runtime::clock::{Clock as _, System};

/// SplitMix64: small, and good enough to choose moments and values.
pub(crate) struct Random(u64);

impl Random {
    /// From `SEED`, or from the clock; says which.
    pub(crate) fn from_environment(what: &str) -> Self {
        let given = std::env::var("SEED")
            .ok()
            .and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| System::new().now_ms());
        eprintln!("{what}: SEED={seed}");
        Self(seed)
    }

    /// Always the same numbers.
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// 0 to `end`, `end` left out.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn moment(&mut self, longest: Duration) -> Duration {
        let micros = u64::try_from(longest.as_micros()).unwrap();
        Duration::from_micros(self.below(micros))
    }

    /// -1 to 1, with 16 bits after the point, so that it is exact in single precision.
    pub(crate) fn component(&mut self) -> f32 {
        let bits = u16::try_from(self.next() >> 48).unwrap();
        f32::from(bits) / 32_768.0 - 1.0
    }

    /// A vector that is not zero.
    pub(crate) fn vector(&mut self, dim: u32) -> Vec<f32> {
        let mut vector: Vec<f32> = (0..dim).map(|_| self.component()).collect();
        vector[0] += 1.5;
        vector
    }
}
