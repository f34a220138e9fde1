//! What a feed's target holds of its keys already, and what that makes of the next record.
//!
//! Only of keys where it matters: those that an earlier run has copied, and those that were written
//! directly. A feed that begins in an empty topic knows of none.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
};

use bytes::Bytes;
use shoal_schemas::{
    Offset, Partition, Record, Version,
    headers::{FED_AGAIN, FED_FROM, Meta},
};

/// Where a record was before it was written once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) partition: Partition,
    pub(super) offset: Offset,
}

impl Origin {
    /// Puts the header that names it into a record, in the place of earlier ones.
    pub(super) fn note(self, record: &mut Record, header: &str, topic: &str) {
        record.headers.retain(|(name, _)| name != header);
        let place = format!("{topic}/{}/{}", self.partition, self.offset);
        record.headers.push((header.to_owned(), place.into()));
    }

    /// Where a record was in `topic`; `None` if its header does not say so.
    pub(super) fn of(record: &Record, header: &str, topic: &str) -> Option<Self> {
        let place = std::str::from_utf8(record.header(header)?).ok()?;
        let (partition, offset) = (place.strip_prefix(topic)?)
            .strip_prefix('/')?
            .split_once('/')?;
        Some(Self {
            partition: Partition(partition.parse().ok()?),
            offset: Offset(offset.parse().ok()?),
        })
    }
}

/// How a record came into the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// By somebody else.
    Directly,
    /// Copied from the source.
    Copied(Origin),
    /// Written directly, and once more by a feed: it was there in the target.
    Again(Origin),
}

impl Written {
    pub(super) fn of(record: &Record, source: &str, target: &str) -> Self {
        let again = Origin::of(record, FED_AGAIN, target).map(Self::Again);
        let copied = || Origin::of(record, FED_FROM, source).map(Self::Copied);
        again.or_else(copied).unwrap_or(Self::Directly)
    }
}

/// The newest copy of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copied {
    /// Where it was in the source.
    pub(super) origin: Origin,
    pub(super) version: Version,
    /// Its offset in the target.
    at: Offset,
    is_delete: bool,
    /// Whether the source still has it, or something newer.
    is_found: bool,
}

/// What the target holds of one key.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// The newest copy, by the target's log: two feeds at once may have copied in another order than the
    /// source's, and the last one is what counts.
    copied: Option<Copied>,
    /// The newest record that was written directly, by the log: its version and its offset.
    direct: Option<(Version, Offset)>,
}

/// What the target holds.
#[derive(Default)]
pub(super) struct Holdings {
    keys: HashMap<Bytes, Held>,
    /// Keys whose newest direct write is not their newest record, although it should be, with their
    /// partitions.
    buried: HashMap<Bytes, usize>,
}

impl Holdings {
    /// Notes a record of the target, in the order of its partition. `scanning` is the time before the
    /// first copy of this run: what copies there are is new then.
    ///
    /// A copy of a lower version buries a direct write, and so does another direct write that is
    /// written again; whatever is written directly after that is the newest by right.
    pub(super) fn note(
        &mut self,
        record: &Record,
        (partition, at): (usize, Offset),
        written: Written,
        scanning: bool,
    ) {
        // What has no version nobody takes.
        let (Some(key), Some(version)) = (&record.key, version_of(record)) else {
            return;
        };
        let held = match written {
            Written::Copied(_) if !scanning => self.keys.get_mut(key),
            _ => Some(self.keys.entry(owned(key)).or_default()),
        };
        let Some(held) = held else {
            return;
        };
        let is_buried = match written {
            Written::Copied(origin) => {
                if scanning {
                    held.copied = Some(Copied {
                        origin,
                        version,
                        at,
                        is_delete: record.value.is_none(),
                        is_found: false,
                    });
                }
                held.direct.is_some_and(|(direct, _)| version < direct)
            }
            Written::Again(origin)
                if (held.direct).is_some_and(|(_, newest)| newest != origin.offset) =>
            {
                true
            }
            Written::Again(_) | Written::Directly => {
                held.direct = Some((version, at));
                false
            }
        };
        if is_buried {
            self.buried.insert(owned(key), partition);
        } else {
            self.buried.remove(key);
        }
    }

    /// Where the buried writes are, each once.
    pub(super) fn take_buried(&mut self) -> Vec<(usize, Offset)> {
        let buried = mem::take(&mut self.buried).into_iter();
        let places = buried.filter_map(|(key, partition)| {
            let (_, at) = self.keys.get(&key)?.direct?;
            Some((partition, at))
        });
        places.collect()
    }

    /// The highest offset of the source, by its partitions, that the target has a copy of.
    pub(super) fn newest_copies(&self) -> BTreeMap<Partition, Offset> {
        let mut newest = BTreeMap::new();
        for Copied { origin, .. } in self.keys.values().filter_map(|held| held.copied) {
            let offset = newest.entry(origin.partition).or_insert(origin.offset);
            *offset = origin.offset.max(*offset);
        }
        newest
    }

    /// Notes that the source has a record.
    pub(super) fn find(&mut self, record: &Record, at: Origin) {
        let held = record.key.as_ref().and_then(|key| self.keys.get_mut(key));
        if let Some(copied) = held.and_then(|held| held.copied.as_mut())
            && copied.origin.partition == at.partition
            && copied.origin.offset <= at.offset
        {
            copied.is_found = true;
        }
    }

    /// Keys of which the source has nothing any more, once all of it was read: compaction keeps the newest
    /// record of a key unless that is a delete, so they were deleted and the deletes are gone too.
    pub(super) fn take_lost(&mut self) -> Vec<(Bytes, Copied)> {
        let mut lost = Vec::new();
        for (key, held) in &mut self.keys {
            let Some(copied) = &mut held.copied else {
                continue;
            };
            let is_newest = (held.direct)
                .is_none_or(|(version, at)| version <= copied.version && at < copied.at);
            if is_newest && !copied.is_found && !copied.is_delete {
                lost.push((key.clone(), *copied));
                copied.is_delete = true;
            }
        }
        lost
    }

    /// Whether the target has use for a record of the source.
    pub(super) fn lacks(&self, record: &Record, at: Offset) -> bool {
        let held = record.key.as_ref().and_then(|key| self.keys.get(key));
        let Some(held) = held else {
            return true;
        };
        let is_copied = (held.copied).is_some_and(|copied| copied.origin.offset >= at);
        let version = version_of(record);
        let is_old =
            (held.direct).is_some_and(|(direct, _)| version.is_some_and(|one| one < direct));
        !is_copied && !is_old
    }
}

/// The version that a shard takes it with; `None` if it takes no such record.
fn version_of(record: &Record) -> Option<Version> {
    Some(Meta::decode(record).ok()?.version)
}

/// A key by itself: a slice of a record would keep all of it.
fn owned(key: &Bytes) -> Bytes {
    Bytes::copy_from_slice(key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use shoal_schemas::{
        Offset, Partition, Record,
        headers::{FED_AGAIN, FED_FROM, VERSION},
    };

    use super::{Holdings, Origin, Written};

    const SOURCE: &str = "embeddings.docs";
    const TARGET: &str = "embeddings.docs-g2";
    const NONE: [u64; 0] = [];

    fn record(version: u64) -> Record {
        Record {
            key: Some("k".into()),
            value: Some("v".into()),
            headers: vec![(VERSION.to_owned(), version.to_string().into())],
            ..Record::default()
        }
    }

    fn origin(offset: u64) -> Origin {
        Origin {
            partition: Partition(2),
            offset: Offset(offset),
        }
    }

    fn copy(version: u64, offset: u64) -> Record {
        let mut copy = record(version);
        origin(offset).note(&mut copy, FED_FROM, SOURCE);
        let read = Written::of(&copy, SOURCE, TARGET);
        assert_eq!(read, Written::Copied(origin(offset)));
        assert_eq!(
            Written::of(&copy, "embeddings.doc", TARGET),
            Written::Directly
        );
        copy
    }

    fn again(version: u64, offset: u64) -> Record {
        let mut again = record(version);
        origin(offset).note(&mut again, FED_AGAIN, TARGET);
        let read = Written::of(&again, SOURCE, TARGET);
        assert_eq!(read, Written::Again(origin(offset)));
        // As it is copied into the next generation.
        let next = Written::of(&again, TARGET, "embeddings.docs-g3");
        assert_eq!(next, Written::Directly);
        again
    }

    /// Notes records of one partition, the first at offset 0; then the buried writes.
    fn noted(holdings: &mut Holdings, records: &[Record], scanning: bool) -> Vec<u64> {
        for (at, record) in (0..).zip(records) {
            let written = Written::of(record, SOURCE, TARGET);
            holdings.note(record, (3, Offset(at)), written, scanning);
        }
        let buried = holdings.take_buried().into_iter();
        buried
            .map(|(partition, at)| {
                assert_eq!(partition, 3);
                at.0
            })
            .collect()
    }

    #[test]
    fn what_an_earlier_run_has_copied_is_not_copied_again() {
        let mut holdings = Holdings::default();
        assert!(holdings.lacks(&record(1), Offset(0)));
        noted(&mut holdings, &[copy(5, 7)], true);
        assert!(!holdings.lacks(&record(9), Offset(6)), "an older record");
        assert!(!holdings.lacks(&record(5), Offset(7)), "the very one");
        // Within a partition the log's order decides, whatever the versions say.
        assert!(holdings.lacks(&record(1), Offset(8)));
        // Of two feeds at once the slower one has put an older copy on top.
        noted(&mut holdings, &[copy(5, 7), copy(4, 3)], true);
        assert!(holdings.lacks(&record(5), Offset(7)));
        assert!(!holdings.lacks(&record(4), Offset(3)));
    }

    #[test]
    fn a_copy_is_lost_when_the_source_has_neither_it_nor_anything_newer() {
        let lost = |target: &[Record], source: &[u64]| {
            let mut holdings = Holdings::default();
            noted(&mut holdings, target, true);
            for offset in source {
                holdings.find(&record(9), origin(*offset));
            }
            let lost = holdings.take_lost().len();
            assert!(holdings.take_lost().is_empty(), "each once");
            lost
        };
        assert_eq!(lost(&[copy(5, 7)], &[]), 1);
        assert_eq!(lost(&[copy(5, 7)], &[6]), 1);
        assert_eq!(lost(&[copy(5, 7)], &[7]), 0);
        assert_eq!(lost(&[copy(5, 7)], &[8]), 0);
        let mut gone = copy(5, 7);
        gone.value = None;
        assert_eq!(lost(&[gone], &[]), 0, "deleted already");
        // What was written directly is not the source's to delete.
        assert_eq!(lost(&[copy(5, 7), record(6)], &[]), 0);
        assert_eq!(lost(&[record(6), copy(5, 7)], &[]), 0);
        assert_eq!(lost(&[record(4), copy(5, 7)], &[]), 1);
        assert_eq!(lost(&[record(4)], &[]), 0);
    }

    #[test]
    fn a_direct_write_goes_before_copies_of_lower_versions() {
        let mut holdings = Holdings::default();
        assert_eq!(noted(&mut holdings, &[record(5)], false), NONE);
        assert!(!holdings.lacks(&record(4), Offset(9)));
        assert!(holdings.lacks(&record(6), Offset(9)));
        // A copy that was under way when it was written, and one that is newer.
        assert_eq!(noted(&mut holdings, &[record(5), copy(4, 1)], false), [0]);
        assert_eq!(
            noted(&mut holdings, &[record(5), copy(4, 1), copy(6, 2)], false),
            NONE
        );
    }

    #[test]
    fn only_the_newest_direct_write_is_brought_back_and_only_if_it_is_not_on_top() {
        let buried = |records: &[Record]| noted(&mut Holdings::default(), records, true);
        let late = || copy(4, 1);
        assert_eq!(buried(&[record(10), late()]), [0]);
        // Overtaken by another direct write, whatever its version.
        assert_eq!(buried(&[record(10), late(), record(12)]), NONE);
        assert_eq!(buried(&[record(10), late(), record(3)]), NONE);
        // Brought back already.
        assert_eq!(buried(&[record(10), late(), again(10, 0)]), NONE);
        assert_eq!(buried(&[record(10), late(), again(10, 0), late()]), [2]);
        // Brought back when another one had just been written.
        assert_eq!(buried(&[record(10), late(), record(12), again(10, 0)]), [2]);
        assert_eq!(
            buried(&[record(10), late(), record(12), again(10, 0), again(12, 2)]),
            NONE
        );
        // Compaction has left nothing but that.
        assert_eq!(buried(&[again(10, 7), late()]), [0]);
    }
}
