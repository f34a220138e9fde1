//! How deep each shard is searched for a query of all of them: pure.
//!
//! Keys are hashed to shards, so the nearest `k` of all lie in them as if each had thrown dice for
//! its shard. A shard holds about its share of them, and hardly ever many more. So each is asked for
//! no more than it holds with near certainty, and its graph is walked with a narrower beam, since
//! what is looked for there stands at the very front of the shard's own order.
//!
//! A shard that names all it was asked for, and sees all of it in the merged answer, may have more:
//! it is asked again for `k` (`coordinator/nearest.rs`). So what is counted on is only how seldom
//! that happens, never that it does not.

/// How often a search may have to ask a shard again.
const AGAIN: f64 = 1e-3;
/// Up to this `k` the chance is computed, beyond it bounded.
const COMPUTED: u32 = 256;
/// The narrowest beam that is planned: narrower ones are stuck beside the nearest too often.
const NARROWEST: u32 = 16;

/// What one shard is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Depth {
    /// Hits.
    pub(crate) k: u32,
    /// Beam width; 0 is the collection's own.
    pub(crate) ef: u32,
    /// Candidates whose exact distances are computed; 0 is for the shard to say.
    pub(crate) rescore: u32,
}

/// The hits that each of so many shards is asked for, where `total` are wanted of all together.
pub(crate) fn hits(total: u32, shards: u32) -> u32 {
    if shards < 2 {
        return total;
    }
    let each = AGAIN / f64::from(shards);
    let enough = match total <= COMPUTED {
        true => computed(total, shards, each),
        false => bounded(total, shards, each),
    };
    enough.clamp(1, total)
}

/// How many candidates each of so many shards computes exact distances of, where `total` hits are
/// wanted of all together; 0 where one shard says that best itself.
///
/// The codes that are walked put a row some places too far back, and the more rows there are the
/// more places. Over all rows the nearest `total` are among so many more candidates; a shard holds
/// its share of these. By its own hits it would compute as much beyond each share as one shard
/// does beyond everything.
///
/// `of_one` says how many one shard of all rows computes for so many hits.
pub(crate) fn rescored(total: u32, shards: u32, of_one: impl Fn(u32) -> u32) -> u32 {
    if shards < 2 {
        return 0;
    }
    // Where the first is bounded and the second computed, the second may be less.
    hits(of_one(total), shards).min(of_one(hits(total, shards)))
}

/// The smallest number that a shard reaches with at most the chance `each`, by the binomial
/// distribution.
fn computed(total: u32, shards: u32, each: f64) -> u32 {
    let share = 1.0 / f64::from(shards);
    let odds = share / (1.0 - share);
    let mut exactly = (1.0 - share).powf(f64::from(total));
    let mut reaches = 1.0;
    for hits in 0..total {
        // `exactly` so many, and `reaches` that many or more.
        if reaches <= each {
            return hits;
        }
        reaches -= exactly;
        exactly *= odds * f64::from(total - hits) / f64::from(hits + 1);
    }
    total
}

/// A number that a shard reaches with at most the chance `each`.
///
/// # Source
/// Bernstein's inequality: P(X - mean >= t) <= exp(-t^2 / (2 (variance + t / 3))).
fn bounded(total: u32, shards: u32, each: f64) -> u32 {
    let share = 1.0 / f64::from(shards);
    let mean = f64::from(total) * share;
    let variance = mean * (1.0 - share);
    let third = -each.ln() / 3.0;
    let more = third + (third * third + 6.0 * third * variance).sqrt();
    // No cast from a float without one; it takes as many steps as there are bits.
    let (mut low, mut high) = (0, total);
    while low < high {
        let middle = low + (high - low) / 2;
        match f64::from(middle) < mean + more {
            true => low = middle + 1,
            false => high = middle,
        }
    }
    low
}

/// The beam that finds in each of so many shards what `whole` finds where they are one.
pub(crate) fn beam(whole: u32, shards: u32) -> u32 {
    if shards < 2 {
        return whole;
    }
    let square = (u64::from(whole) * u64::from(whole)).div_ceil(u64::from(shards));
    let root = square.isqrt();
    let narrow = root + u64::from(root * root < square);
    let narrow = u32::try_from(narrow).unwrap_or(whole);
    narrow.max(NARROWEST).min(whole)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use shoal_schemas::Quantization;

    use super::{AGAIN, COMPUTED, NARROWEST, beam, bounded, computed, hits, rescored};

    /// The chance that one of the shards holds so many or more, at most: by adding up.
    fn chance(total: u32, shards: u32, least: u32) -> f64 {
        let share = 1.0 / f64::from(shards);
        let mut exactly = (1.0 - share).powf(f64::from(total));
        let mut sum = 0.0;
        for hits in 0..=total {
            if hits >= least {
                sum += exactly;
            }
            exactly *= share / (1.0 - share) * f64::from(total - hits) / f64::from(hits + 1);
        }
        sum * f64::from(shards)
    }

    #[test]
    fn a_shard_is_asked_for_its_share_and_some_more() {
        let cases = [
            ((10, 1), 10),
            ((10, 2), 10),
            ((10, 8), 7),
            ((100, 8), 27),
            ((1, 8), 1),
            ((10, 16), 6),
            ((10, 64), 4),
        ];
        for ((total, shards), expected) in cases {
            assert_eq!(hits(total, shards), expected, "{total} of {shards}");
        }
        let of_many = hits(10_000, 8);
        assert!((1_350..1_420).contains(&of_many), "{of_many}");
    }

    #[test]
    fn a_shard_computes_its_share_of_the_distances_and_no_fewer_than_its_hits() {
        let cases = [
            ((10, 1), 0),
            ((10, 2), 15),
            ((10, 8), 9),
            ((100, 8), 36),
            ((1, 8), 6),
            ((10, 64), 5),
        ];
        for ((total, shards), expected) in cases {
            let rescored = rescored(total, shards, |k| Quantization::I8.rescored(k));
            assert_eq!(rescored, expected, "{total} of {shards}");
        }
        let [fine, coarse] =
            [Quantization::I8, Quantization::I4].map(|one| rescored(100, 8, |k| one.rescored(k)));
        assert!(coarse > fine, "{coarse} {fine}");
        let all = rescored(u32::MAX, 2, |k| Quantization::I4.rescored(k));
        assert_eq!(all, hits(u32::MAX, 2));
    }

    #[test]
    fn the_bound_is_no_less_than_what_is_computed() {
        for shards in [2, 3, 8, 64] {
            for total in [COMPUTED / 2, COMPUTED] {
                let each = AGAIN / f64::from(shards);
                let (computed, bounded) =
                    (computed(total, shards, each), bounded(total, shards, each));
                assert!(
                    bounded >= computed,
                    "{total} of {shards}: {bounded} {computed}"
                );
            }
        }
    }

    #[test]
    fn beams_get_narrower_with_the_shards_and_not_too_narrow() {
        assert_eq!(beam(96, 1), 96);
        let beams: Vec<u32> = [2, 4, 8, 16, 64, 1000].map(|n| beam(96, n)).to_vec();
        assert!(beams.is_sorted_by(|a, b| a >= b), "{beams:?}");
        assert_eq!(beams.last(), Some(&NARROWEST));
        assert_eq!(beam(10, 8), 10, "a narrow one stays as it is");
    }

    proptest! {
        #[test]
        fn a_shard_computes_no_more_distances_than_by_its_own_hits(
            total in 1u32..=10_000, shards in 2u32..=64,
        ) {
            for quantization in [Quantization::I4, Quantization::I8] {
                let (own, share) = (hits(total, shards), rescored(total, shards, |k| quantization.rescored(k)));
                let most = quantization.rescored(own);
                prop_assert!((own..=most).contains(&share), "{own} {share}");
            }
        }

        #[test]
        fn a_shard_is_seldom_asked_again(total in 1u32..=COMPUTED, shards in 2u32..=64) {
            let asked = hits(total, shards);
            prop_assert!((1..=total).contains(&asked));
            if asked < total {
                prop_assert!(chance(total, shards, asked) <= AGAIN * (1.0 + 1e-6));
            }
        }
    }
}
