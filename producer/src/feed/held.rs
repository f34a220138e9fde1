//! What a feed's target holds of its keys already, and what that makes of the next record.
//!
//! Only of keys where it matters: those that an earlier run has copied, and those that were written
//! directly. A feed that begins in an empty topic knows of none.

use std::collections::HashMap;

use bytes::Bytes;
use shoal_schemas::{
    Offset, Partition, Record, Version,
    headers::{FED_FROM, Meta},
};

/// Where a record was in the source's topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) partition: Partition,
    pub(super) offset: Offset,
}

impl Origin {
    /// The header that names it.
    pub(super) fn header(self, topic: &str) -> (String, Bytes) {
        let place = format!("{topic}/{}/{}", self.partition, self.offset);
        (FED_FROM.to_owned(), place.into())
    }

    /// Where a copy was in `topic`; `None` for a record that is no copy of one there.
    pub(super) fn of(record: &Record, topic: &str) -> Option<Self> {
        let header = std::str::from_utf8(record.header(FED_FROM)?).ok()?;
        let (partition, offset) = (header.strip_prefix(topic)?)
            .strip_prefix('/')?
            .split_once('/')?;
        Some(Self {
            partition: Partition(partition.parse().ok()?),
            offset: Offset(offset.parse().ok()?),
        })
    }
}

/// What the target holds of one key.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// The newest copy's offset in the source.
    copied: Option<Offset>,
    /// The newest record that was written directly, by the log: its version and its offset.
    direct: Option<(Version, Offset)>,
}

/// What the target holds.
#[derive(Default)]
pub(super) struct Holdings {
    keys: HashMap<Bytes, Held>,
}

/// What a record read from the target means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// Nothing is to be done.
    Fine,
    /// A copy came behind a direct write of a higher version: that one, at this offset, has to be
    /// written again.
    Buried(Offset),
}

impl Holdings {
    /// Notes a record of the target, in the order of its partition. `scanning` is the time before the
    /// first copy of this run: what copies there are is new then.
    pub(super) fn note(
        &mut self,
        record: &Record,
        at: Offset,
        origin: Option<Origin>,
        scanning: bool,
    ) -> Noted {
        let Some(key) = &record.key else {
            return Noted::Fine;
        };
        let version = version_of(record);
        match (origin, version) {
            (Some(origin), _) if scanning => {
                let held = self.keys.entry(owned(key)).or_default();
                held.copied = held.copied.max(Some(origin.offset));
                held.buried_by(version)
            }
            (Some(_), _) => {
                let held = self.keys.get(key);
                held.map_or(Noted::Fine, |held| held.buried_by(version))
            }
            (None, Some(version)) => {
                self.keys.entry(owned(key)).or_default().direct = Some((version, at));
                Noted::Fine
            }
            // Nobody takes it.
            (None, None) => Noted::Fine,
        }
    }

    /// Whether the target has use for a record of the source.
    pub(super) fn lacks(&self, record: &Record, at: Offset) -> bool {
        let held = record.key.as_ref().and_then(|key| self.keys.get(key));
        let Some(held) = held else {
            return true;
        };
        let is_copied = held.copied.is_some_and(|copied| copied >= at);
        let version = version_of(record);
        let is_old =
            (held.direct).is_some_and(|(direct, _)| version.is_some_and(|one| one < direct));
        !is_copied && !is_old
    }
}

impl Held {
    fn buried_by(&self, copy: Option<Version>) -> Noted {
        match (self.direct, copy) {
            (Some((direct, at)), Some(copy)) if copy < direct => Noted::Buried(at),
            _ => Noted::Fine,
        }
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

    use shoal_schemas::{Offset, Partition, Record, headers::VERSION};

    use super::{Holdings, Noted, Origin};

    const TOPIC: &str = "embeddings.docs";

    fn record(version: u64) -> Record {
        Record {
            key: Some("k".into()),
            headers: vec![(VERSION.to_owned(), version.to_string().into())],
            ..Record::default()
        }
    }

    fn copy(version: u64, offset: u64) -> (Record, Option<Origin>) {
        let mut copy = record(version);
        let origin = Origin {
            partition: Partition(2),
            offset: Offset(offset),
        };
        copy.headers.push(origin.header(TOPIC));
        let read = Origin::of(&copy, TOPIC);
        assert_eq!(read, Some(origin));
        assert_eq!(Origin::of(&copy, "embeddings.doc"), None);
        (copy, read)
    }

    #[test]
    fn what_an_earlier_run_has_copied_is_not_copied_again() {
        let mut holdings = Holdings::default();
        assert!(holdings.lacks(&record(1), Offset(0)));
        let (copied, origin) = copy(5, 7);
        holdings.note(&copied, Offset(0), origin, true);
        assert!(!holdings.lacks(&record(9), Offset(6)), "an older record");
        assert!(!holdings.lacks(&record(5), Offset(7)), "the very one");
        // Within a partition the log's order decides, whatever the versions say.
        assert!(holdings.lacks(&record(1), Offset(8)));
    }

    #[test]
    fn a_direct_write_goes_before_copies_of_lower_versions() {
        let mut holdings = Holdings::default();
        assert_eq!(
            holdings.note(&record(5), Offset(3), None, false),
            Noted::Fine
        );
        assert!(!holdings.lacks(&record(4), Offset(9)));
        assert!(holdings.lacks(&record(6), Offset(9)));
        // A copy that was under way when it was written.
        let (late, origin) = copy(4, 1);
        let noted = holdings.note(&late, Offset(4), origin, false);
        assert_eq!(noted, Noted::Buried(Offset(3)));
        let (newer, origin) = copy(6, 2);
        let noted = holdings.note(&newer, Offset(5), origin, false);
        assert_eq!(noted, Noted::Fine);
    }
}
