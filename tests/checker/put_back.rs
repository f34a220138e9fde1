//! Records by which a patch that turned out to be refused put back what it had been written over.
//!
//! Nothing in the log says so, it follows from what stands there. While two owners resolve patches of one key beside each
//! other, a record may be either: one patch made anew, or what another one put back. Then it is taken for both, and what
//! follows may be right by either.

use std::collections::{BTreeMap, BTreeSet};

use super::history::{Content, Place, Record};

/// Who may have put a record's content back.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct PutBack {
    /// Patches, by their stamps.
    by: BTreeSet<u64>,
    /// Whether it may be a patch made anew as well.
    is_either: bool,
}

impl PutBack {
    /// Whether this patch may have.
    pub(super) fn may_be_of(&self, patch: u64) -> bool {
        self.by.contains(&patch)
    }

    /// Whether this patch has, and nobody else may have made the record.
    pub(super) fn is_of(&self, patch: u64) -> bool {
        self.may_be_of(patch) && self.by.len() == 1 && !self.is_either
    }

    /// Whether any of those who may have put this back may have gone on with the next record.
    pub(super) fn goes_on(&self, next: Option<u64>, then: Option<&PutBack>) -> bool {
        let goes_on = |patch| next == Some(patch) || then.is_some_and(|then| then.may_be_of(patch));
        self.by.iter().copied().any(goes_on)
    }
}

/// The records of one key that may have been put back, where `is_patch` knows the stamps of patches and `is_claimed` the
/// places of acknowledged writes.
///
/// A patch that turns out to be refused behind another record publishes that one once more; and if yet another came
/// between, decides on that, and may put it back, too.
pub(super) fn put_back(
    records: &[&Record],
    is_patch: impl Fn(u64) -> bool,
    is_claimed: impl Fn(Place) -> bool,
) -> BTreeMap<Place, PutBack> {
    let mut found: BTreeMap<Place, PutBack> = BTreeMap::new();
    // Of each patch under way, by its stamp: what it may have to put back if it is refused.
    let mut under_way: BTreeMap<u64, Vec<Option<Content>>> = BTreeMap::new();
    let mut before: Option<&Record> = None;
    for record in records {
        let own = stamp(record).filter(|stamp| is_patch(*stamp));
        let content = before.and_then(|before| before.content);
        if is_claimed(record.place) {
            if let Some(own) = own {
                under_way.remove(&own);
            }
            before = Some(record);
            continue;
        }
        let holds = |(_, held): &(&u64, &Vec<Option<Content>>)| held.contains(&record.content);
        let by = under_way
            .iter()
            .filter(holds)
            .map(|(patch, _)| *patch)
            .filter(|patch| own != Some(*patch));
        let put_back = PutBack {
            by: by.collect(),
            is_either: own.is_some(),
        };
        let is_sure = put_back.by.len() + usize::from(put_back.is_either) == 1;
        let is_behind_own = |patch: u64| {
            before.is_some_and(|before| {
                let earlier = found.get(&before.place);
                stamp(before) == Some(patch) || earlier.is_some_and(|one| one.may_be_of(patch))
            })
        };
        // Of those who may have said the same twice, one is at its end.
        let mut is_again = record.content == content;
        for patch in put_back.by.iter().copied() {
            match (is_behind_own(patch), is_sure || is_again) {
                // What nobody else came between is the end of it.
                (true, true) => {
                    under_way.remove(&patch);
                    is_again = false;
                }
                (true, false) => {}
                (false, _) if is_sure => _ = under_way.insert(patch, vec![content]),
                (false, _) => under_way.entry(patch).or_default().push(content),
            }
        }
        // One made anew follows what it is made of, or its own record before that.
        if let Some(own) = own.filter(|own| !is_behind_own(*own)) {
            if is_sure {
                under_way.remove(&own);
            }
            under_way.entry(own).or_default().push(content);
        }
        if !put_back.by.is_empty() {
            found.insert(record.place, put_back);
        }
        before = Some(record);
    }
    found
}

/// The stamp of a record; none of a delete.
pub(super) fn stamp(record: &Record) -> Option<u64> {
    record.content.and_then(|content| content.stamp)
}
