//! The topic as it was read back, to be asked what it shows when.
//!
//! After n records of its partition a key shows its last record among them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    history::{Call, Content, History, Operation, Place, Record, Seen},
    moments::Moments,
    put_back::{self, PutBack, stamp},
};

/// The records by key, and which operations are known to have made them.
pub(crate) struct Log<'a> {
    partitions: Vec<Vec<&'a Record>>,
    keys: BTreeMap<&'a str, Vec<&'a Record>>,
    makers: HashMap<u64, &'a Operation>,
    /// Records that may say again what was there before a patch.
    put_back: BTreeMap<Place, PutBack>,
    /// By partition: (acknowledged at, first moment that has it and all acknowledged earlier), by time.
    known_by: Vec<Vec<(u64, u64)>>,
    /// By partition: (invoked at, last moment without it and all invoked later), by time.
    unknown_before: Vec<Vec<(u64, u64)>>,
    /// By partition: how many points there are, by moment.
    counts: Vec<Vec<u64>>,
}

impl<'a> Log<'a> {
    /// The log of a history.
    ///
    /// # Errors
    /// A text, if records are missing, so that nothing could be told from the rest.
    pub(crate) fn of(history: &'a History) -> Result<Self, String> {
        let count = usize::try_from(history.run.partitions).unwrap_or_default();
        let mut partitions: Vec<Vec<&Record>> = vec![Vec::new(); count];
        let mut keys: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
        for record in &history.records {
            let Place { partition, offset } = record.place;
            let at = usize::try_from(partition).unwrap_or(usize::MAX);
            let records = partitions
                .get_mut(at)
                .ok_or_else(|| format!("there is no partition {partition}"))?;
            if u64::try_from(records.len()).ok() != Some(offset) {
                return Err(format!(
                    "partition {partition}: after {} records comes offset {offset}",
                    records.len()
                ));
            }
            if history.run.keys.get(&record.key) != Some(&partition) {
                return Err(format!("partition {partition} holds key `{}`", record.key));
            }
            records.push(record);
            keys.entry(&record.key).or_default().push(record);
        }
        let makers = history.operations.iter();
        let makers = makers.filter_map(|one| Some((one.call.stamp()?, one)));
        let mut log = Self {
            partitions,
            keys,
            makers: makers.collect(),
            put_back: BTreeMap::new(),
            known_by: vec![Vec::new(); count],
            unknown_before: vec![Vec::new(); count],
            counts: Vec::new(),
        };
        log.note_times(history);
        log.note_put_back(history);
        log.note_counts();
        Ok(log)
    }

    fn note_times(&mut self, history: &History) {
        for (operation, _, place, _) in history.acknowledged() {
            let at = usize::try_from(place.partition).unwrap_or(usize::MAX);
            if let Some(known) = self.known_by.get_mut(at) {
                known.push((operation.completed_us, place.offset + 1));
            }
            if let Some(unknown) = self.unknown_before.get_mut(at) {
                unknown.push((operation.invoked_us, place.offset));
            }
        }
        for known in &mut self.known_by {
            known.sort_unstable();
            let mut most = 0;
            for (_, moment) in known {
                most = most.max(*moment);
                *moment = most;
            }
        }
        for unknown in &mut self.unknown_before {
            unknown.sort_unstable();
            let mut least = u64::MAX;
            for (_, moment) in unknown.iter_mut().rev() {
                least = least.min(*moment);
                *moment = least;
            }
        }
    }

    fn note_put_back(&mut self, history: &History) {
        let claimed: BTreeSet<Place> = history.acknowledged().map(|(_, _, at, _)| at).collect();
        for records in self.keys.values() {
            let is_patch = |stamp| self.is_patch(stamp);
            let found = put_back::put_back(records, is_patch, |place| claimed.contains(&place));
            self.put_back.extend(found);
        }
    }

    fn is_patch(&self, stamp: u64) -> bool {
        let maker = self.maker(stamp);
        maker.is_some_and(|maker| matches!(maker.call, Call::Patch { .. }))
    }

    fn note_counts(&mut self) {
        for records in &self.partitions {
            let mut live: BTreeSet<&str> = BTreeSet::new();
            let mut counts = vec![0];
            for record in records {
                match record.content {
                    Some(_) => live.insert(&record.key),
                    None => live.remove(record.key.as_str()),
                };
                counts.push(u64::try_from(live.len()).unwrap_or(u64::MAX));
            }
            self.counts.push(counts);
        }
    }

    /// The first moment of a shard that has everything acknowledged by a time.
    pub(crate) fn known_by(&self, shard: u32, time_us: u64) -> u64 {
        let known = usize::try_from(shard).ok();
        let known = known.and_then(|at| self.known_by.get(at));
        let known = known.map_or(&[][..], Vec::as_slice);
        let count = known.partition_point(|(at, _)| *at <= time_us);
        let last = count.checked_sub(1).and_then(|last| known.get(last));
        last.map_or(0, |(_, moment)| *moment)
    }

    /// The last moment of a shard that has nothing that was begun after a time.
    pub(crate) fn unknown_before(&self, shard: u32, time_us: u64) -> u64 {
        let unknown = usize::try_from(shard).ok();
        let unknown = unknown.and_then(|at| self.unknown_before.get(at));
        let unknown = unknown.map_or(&[][..], Vec::as_slice);
        let first = unknown.partition_point(|(at, _)| *at <= time_us);
        let found = unknown.get(first).map(|(_, moment)| *moment);
        found.unwrap_or(u64::MAX).min(self.end(shard))
    }

    /// The moment at which all is applied.
    pub(crate) fn end(&self, shard: u32) -> u64 {
        u64::try_from(self.records(shard).len()).unwrap_or(u64::MAX)
    }

    /// A partition's records.
    pub(crate) fn records(&self, shard: u32) -> &[&'a Record] {
        let at = usize::try_from(shard).unwrap_or(usize::MAX);
        self.partitions.get(at).map_or(&[], Vec::as_slice)
    }

    /// All records.
    pub(crate) fn all(&self) -> impl Iterator<Item = &'a Record> + '_ {
        self.partitions.iter().flatten().copied()
    }

    /// How many points a shard holds at the moments from one to another.
    pub(crate) fn counts(&self, shard: u32, first: u64, last: u64) -> BTreeSet<u64> {
        let counts = usize::try_from(shard).ok();
        let counts = counts.and_then(|at| self.counts.get(at));
        let (first, last) = (usize::try_from(first), usize::try_from(last));
        let (first, last) = (first.unwrap_or(usize::MAX), last.unwrap_or(usize::MAX));
        let found = counts.into_iter().flatten().skip(first);
        found.take(last - first + 1).copied().collect()
    }

    /// The record at a place.
    pub(crate) fn at(&self, place: Place) -> Option<&'a Record> {
        let at = usize::try_from(place.offset).unwrap_or(usize::MAX);
        self.records(place.partition).get(at).copied()
    }

    /// A key's records, in order.
    pub(crate) fn of_key(&self, key: &str) -> &[&'a Record] {
        self.keys.get(key).map_or(&[], Vec::as_slice)
    }

    /// The key's records that a patch may have been made of: the last one before it that is not the patch's own. One
    /// that finds another record between what it was made of and itself is made anew, and published again; or put
    /// back, and made anew if that came behind yet another. Of a record that may be its own or somebody else's, both hold.
    pub(crate) fn bases(&self, record: &Record) -> Vec<Option<&'a Record>> {
        let mut bases = Vec::new();
        let records = self.of_key(&record.key).iter().copied().rev();
        for earlier in records.filter(|one| one.place < record.place) {
            let put_back = self.put_back.get(&earlier.place);
            let (may_be_own, is_own) = match (stamp(record), put_back) {
                (patch, _) if stamp(earlier) == patch => (true, true),
                (Some(patch), Some(put_back)) => (put_back.may_be_of(patch), put_back.is_of(patch)),
                _ => (false, false),
            };
            if !is_own {
                bases.push(Some(earlier));
            }
            if !may_be_own {
                return bases;
            }
        }
        bases.push(None);
        bases
    }

    /// Whether this record may be what a patch put back, when it turned out to be refused.
    pub(crate) fn may_be_put_back(&self, record: &Record) -> bool {
        self.put_back.contains_key(&record.place)
    }

    /// Whether what this record put back did not stay: the patch saw what had come between, and was made anew
    /// upon that, or put that back.
    pub(crate) fn is_passing(&self, record: &Record) -> bool {
        let Some(put_back) = self.put_back.get(&record.place) else {
            return false;
        };
        let records = self.of_key(&record.key);
        let at = records.iter().position(|one| one.place == record.place);
        let next = at.and_then(|at| records.get(at + 1));
        next.is_some_and(|next| put_back.goes_on(stamp(next), self.put_back.get(&next.place)))
    }

    /// Who made a record of this stamp.
    pub(crate) fn maker(&self, stamp: u64) -> Option<&'a Operation> {
        self.makers.get(&stamp).copied()
    }

    /// When the log shows of a key what `holds` of its content (`None`: there is no such point).
    pub(crate) fn moments(
        &self,
        key: &str,
        shard: u32,
        holds: impl Fn(Option<&Record>) -> bool,
    ) -> Moments {
        let records = self.of_key(key);
        let mut moments = Moments::default();
        let first = records
            .first()
            .map_or(self.end(shard), |one| one.place.offset);
        if holds(None) {
            moments.push(0, first);
        }
        for (at, record) in records.iter().enumerate() {
            let live = record.content.is_some().then_some(*record);
            if holds(live) {
                let next = records.get(at + 1);
                let last = next.map_or(self.end(shard), |next| next.place.offset);
                moments.push(record.place.offset + 1, last);
            }
        }
        moments
    }

    /// The records that a point in an answer may be.
    pub(crate) fn shown<'b>(&'b self, seen: &'b Seen) -> impl Iterator<Item = &'a Record> + 'b {
        let records = self.of_key(&seen.key).iter().copied();
        records.filter(|record| is_shown(record, seen))
    }

    /// What a shard holds at a moment, by key.
    pub(crate) fn state(&self, shard: u32, moment: u64) -> BTreeMap<&'a str, &'a Record> {
        let mut state = BTreeMap::new();
        let count = usize::try_from(moment).unwrap_or(usize::MAX);
        for record in self.records(shard).iter().take(count) {
            match record.content {
                Some(_) => state.insert(record.key.as_str(), *record),
                None => state.remove(record.key.as_str()),
            };
        }
        state
    }
}

/// Whether an answer shows this very record.
pub(crate) fn is_shown(record: &Record, seen: &Seen) -> bool {
    let has = |content: Content| content == seen.content;
    record.version == seen.version
        && record.content.is_some_and(has)
        && seen.place.is_none_or(|place| place == record.place)
}
