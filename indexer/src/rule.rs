//! The version rule: which record of an id is served. Pure, and the heart of convergence.
//!
//! Within one source the later offset wins, whatever its version; between sources the latest
//! record of each compete by (version, region). So the state is a function of the compacted log:
//! compaction keeps exactly the latest record of each source, and nothing else is asked here.
//!
//! A refused record still is the latest of its source, and compaction may keep it alone. Its id
//! is *contested*: what was served goes on being served, but the digest only says "contested",
//! which a rebuild says too. The next good record of that source settles it.

use shoal_schemas::{Offset, RegionName, Version};

use crate::wal::Position;

/// Index of a source in the shard's table of sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceIndex(pub u16);

/// What a source's latest record of an id says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// The point is what the record at this place in the shard's own log holds.
    Live(Position),
    /// The point is gone.
    Deleted,
    /// The record was refused.
    Contested,
}

/// The latest record of one source about one id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latest {
    /// Where it came from.
    pub source: SourceIndex,
    /// Its offset there.
    pub offset: Offset,
    /// Its version.
    pub version: Version,
    /// What it says.
    pub says: Says,
}

/// What a record changes about what is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was applied before; nothing changes.
    Duplicate,
    /// Another record is served, and goes on being served.
    Keep,
    /// The point in the shard's own log at this place is served from now on.
    Serve(Position),
    /// Nothing is served from now on.
    Remove,
}

/// The outcome of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What changes.
    pub verdict: Verdict,
    /// Whether its version is below that of an earlier record of the same source.
    pub reordered: bool,
}

/// Takes `incoming` into what is known of its id, and says what follows.
///
/// `known` holds one entry a source. `served` is the place of what is served now, if anything.
/// `regions` gives each source's region, which decides between equal versions.
pub fn resolve(
    known: &mut Vec<Latest>,
    incoming: Latest,
    served: Option<Position>,
    regions: &[RegionName],
) -> Outcome {
    let mut reordered = false;
    match known.iter_mut().find(|one| one.source == incoming.source) {
        Some(earlier) if incoming.offset <= earlier.offset => {
            return Outcome {
                verdict: Verdict::Duplicate,
                reordered: false,
            };
        }
        Some(earlier) => {
            reordered = incoming.version < earlier.version;
            *earlier = incoming;
        }
        None => known.push(incoming),
    }
    let verdict = if incoming.says == Says::Contested {
        Verdict::Keep
    } else {
        match (winner(known, regions), served) {
            (Some(Says::Live(place)), Some(now)) if now == place => Verdict::Keep,
            (Some(Says::Live(place)), _) => Verdict::Serve(place),
            (_, Some(_)) => Verdict::Remove,
            (_, None) => Verdict::Keep,
        }
    };
    Outcome { verdict, reordered }
}

/// Whether the latest record of any source was refused.
pub fn is_contested(known: &[Latest]) -> bool {
    known.iter().any(|one| one.says == Says::Contested)
}

/// What the winning record says; contested ones do not compete.
pub(crate) fn winner(known: &[Latest], regions: &[RegionName]) -> Option<Says> {
    let region = |one: &Latest| regions.get(usize::from(one.source.0));
    known
        .iter()
        .filter(|one| one.says != Says::Contested)
        .max_by(|a, b| {
            let by_version = a.version.cmp(&b.version);
            by_version.then_with(|| region(a).cmp(&region(b)))
        })
        .map(|one| one.says)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use shoal_schemas::{Offset, RegionName, Version};

    use super::{Latest, Says, SourceIndex, Verdict, is_contested, resolve};
    use crate::wal::Position;

    fn regions() -> Vec<RegionName> {
        ["eu", "us", "ap"]
            .map(|name| name.parse().unwrap())
            .to_vec()
    }

    fn record(source: u16, offset: u64, version: u64, says: Says) -> Latest {
        Latest {
            source: SourceIndex(source),
            offset: Offset(offset),
            version: Version::from_raw(version),
            says,
        }
    }

    /// Applies records in order; returns (served, contested).
    fn replay(records: &[Latest]) -> (Option<Position>, bool) {
        let mut known = Vec::new();
        let mut served = None;
        for one in records {
            match resolve(&mut known, *one, served, &regions()).verdict {
                Verdict::Serve(place) => served = Some(place),
                Verdict::Remove => served = None,
                Verdict::Keep | Verdict::Duplicate => {}
            }
        }
        (served, is_contested(&known))
    }

    #[test]
    fn within_a_source_the_later_offset_wins_whatever_its_version() {
        let old = record(0, 1, 900, Says::Live(Position::new(10)));
        let new = record(0, 2, 100, Says::Live(Position::new(20)));
        let mut known = Vec::new();
        resolve(&mut known, old, None, &regions());
        let outcome = resolve(&mut known, new, Some(Position::new(10)), &regions());
        assert_eq!(outcome.verdict, Verdict::Serve(Position::new(20)));
        assert!(outcome.reordered);
    }

    #[test]
    fn a_loser_is_served_when_the_winner_steps_back() {
        let records = [
            record(0, 1, 900, Says::Live(Position::new(10))),
            record(1, 1, 500, Says::Live(Position::new(20))),
            record(0, 2, 100, Says::Live(Position::new(30))),
        ];
        assert_eq!(replay(&records), (Some(Position::new(20)), false));
    }

    #[test]
    fn equal_versions_of_two_regions_fall_the_same_way_in_any_order() {
        let eu = record(0, 1, 500, Says::Live(Position::new(10)));
        let us = record(1, 1, 500, Says::Deleted);
        assert_eq!(replay(&[eu, us]), replay(&[us, eu]));
    }

    #[test]
    fn a_refused_record_contests_and_a_good_one_settles() {
        let good = record(0, 1, 1, Says::Live(Position::new(10)));
        let bad = record(0, 2, 2, Says::Contested);
        let delete = record(0, 3, 3, Says::Deleted);
        assert_eq!(replay(&[good, bad]), (Some(Position::new(10)), true));
        assert_eq!(replay(&[good, bad, delete]), (None, false));
    }

    fn history() -> impl Strategy<Value = Vec<Latest>> {
        let says = prop_oneof![
            3 => (0u64..1000).prop_map(|at| Says::Live(Position::new(at))),
            1 => Just(Says::Deleted),
            1 => Just(Says::Contested),
        ];
        proptest::collection::vec((0u16..3, 0u64..6, says), 1..24).prop_map(|drawn| {
            let mut next = [0u64; 3];
            let place = |says, at: usize| match says {
                // Places are unique in a log.
                Says::Live(_) => Says::Live(Position::new(u64::try_from(at).unwrap())),
                other => other,
            };
            drawn
                .into_iter()
                .enumerate()
                .map(|(at, (source, version, says))| {
                    let offset = next[usize::from(source)];
                    next[usize::from(source)] += 1;
                    record(source, offset, version, place(says, at))
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn a_rebuild_from_the_compacted_log_equals_the_live_shard(records in history()) {
            let mut newest = BTreeMap::new();
            for one in &records {
                newest.insert(one.source, *one);
            }
            let compacted: Vec<Latest> = newest.into_values().collect();
            let (live, contested) = replay(&records);
            let (rebuilt, rebuilt_contested) = replay(&compacted);
            prop_assert_eq!(contested, rebuilt_contested);
            if !contested {
                prop_assert_eq!(live, rebuilt);
            }
        }

        #[test]
        fn replaying_any_prefix_again_changes_nothing(records in history(), cut in 0usize..24) {
            let mut twice = records.clone();
            twice.extend_from_slice(&records[cut.min(records.len())..]);
            prop_assert_eq!(replay(&records), replay(&twice));
        }
    }
}
