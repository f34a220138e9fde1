//! What came between the point a change was made from and the record that carries it. Pure.

use shoal_schemas::Offset;

use crate::rule::{Latest, Says, SourceIndex};

/// What was applied up to and including a record of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Between {
    /// Nothing but ours: it was made from the point it replaced.
    Nothing,
    /// Somebody else's; this is what was known just before ours.
    Foreign(Vec<Latest>),
    /// Ours was refused by the shard.
    Refused,
    /// Ours was never seen: compacted away, so a later record of the id is there.
    Gone,
}

/// Looks through the records `seen` since `base` was read, for what stands before the one at
/// `own` of source `home`.
///
/// A refused record changes nothing that is served, so it does not count.
pub(super) fn between(base: &[Latest], seen: &[Latest], home: SourceIndex, own: Offset) -> Between {
    let mut before = base.to_vec();
    let mut foreign = false;
    for one in seen {
        if one.source == home && one.offset >= own {
            return match (one.offset == own, one.says) {
                (false, _) => Between::Gone,
                (true, Says::Contested) => Between::Refused,
                (true, _) if foreign => Between::Foreign(before),
                (true, _) => Between::Nothing,
            };
        }
        let known = before.iter_mut().find(|known| known.source == one.source);
        match known {
            Some(known) if known.offset >= one.offset => {}
            _ if one.says == Says::Contested => {}
            Some(known) => {
                *known = *one;
                foreign = true;
            }
            None => {
                before.push(*one);
                foreign = true;
            }
        }
    }
    Between::Gone
}

#[cfg(test)]
mod tests {
    use shoal_schemas::{Offset, Version};

    use super::{Between, between};
    use crate::{
        rule::{Latest, Says, SourceIndex},
        wal::Position,
    };

    const HOME: SourceIndex = SourceIndex(0);

    fn live(source: u16, offset: u64) -> Latest {
        Latest {
            source: SourceIndex(source),
            offset: Offset(offset),
            version: Version::from_raw(offset),
            says: Says::Live(Position::new(offset)),
        }
    }

    fn contested(offset: u64) -> Latest {
        Latest {
            says: Says::Contested,
            ..live(0, offset)
        }
    }

    #[test]
    fn what_was_known_already_is_not_between() {
        let base = [live(0, 5), live(1, 7)];
        let seen = [live(0, 4), live(1, 7), live(0, 5), live(0, 9)];
        assert_eq!(between(&base, &seen, HOME, Offset(9)), Between::Nothing);
        assert_eq!(
            between(&[], &[live(0, 9)], HOME, Offset(9)),
            Between::Nothing
        );
    }

    #[test]
    fn the_newest_of_each_source_before_ours_is_told() {
        let base = [live(0, 5)];
        let seen = [live(0, 6), live(1, 2), live(0, 8), live(0, 9), live(0, 10)];
        let expected = Between::Foreign(vec![live(0, 8), live(1, 2)]);
        assert_eq!(between(&base, &seen, HOME, Offset(9)), expected);
    }

    #[test]
    fn a_refused_record_is_nothing_and_ours_refused_is_told() {
        let base = [live(0, 5)];
        let seen = [contested(7), live(0, 9)];
        assert_eq!(between(&base, &seen, HOME, Offset(9)), Between::Nothing);
        assert_eq!(
            between(&base, &[contested(9)], HOME, Offset(9)),
            Between::Refused
        );
    }

    #[test]
    fn a_record_that_was_never_seen_is_gone() {
        let base = [live(0, 5)];
        assert_eq!(
            between(&base, &[live(0, 10)], HOME, Offset(9)),
            Between::Gone
        );
        assert_eq!(between(&base, &[], HOME, Offset(9)), Between::Gone);
    }
}
