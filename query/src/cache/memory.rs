//! Kept answers in this process: at most so many bytes, what was not asked for longest goes first.
//!
//! Names are hashes, so their first byte spreads them evenly over a few parts, each with a lock of
//! its own that is held for a look at a table.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, ready};
use shoal_runtime::clock::Clock;

use super::{Key, Store, StoreError};

/// Tables with a lock of their own.
const PARTS: usize = 16;
/// What an entry takes beside its value: name, table, order.
const OVERHEAD_BYTES: usize = 160;

/// Kept answers in memory.
pub(crate) struct Memory {
    parts: Vec<Mutex<Part>>,
    part_bytes: usize,
    clock: Arc<dyn Clock>,
}

#[derive(Default)]
struct Part {
    entries: HashMap<Key, Entry>,
    /// By when they were last asked for, counted up.
    order: BTreeMap<u64, Key>,
    count: u64,
    bytes: usize,
}

struct Entry {
    value: Bytes,
    until: Duration,
    place: u64,
}

impl Memory {
    /// Room for so many bytes.
    pub(crate) fn new(bytes: usize, clock: Arc<dyn Clock>) -> Self {
        Self {
            parts: (0..PARTS).map(|_| Mutex::default()).collect(),
            part_bytes: bytes / PARTS,
            clock,
        }
    }

    /// What is kept under a name.
    pub(crate) fn look_up(&self, key: Key) -> Option<Bytes> {
        let now = self.clock.monotonic();
        self.with_part(key, |part| {
            let entry = part.entries.get_mut(&key)?;
            if entry.until <= now {
                part.remove(key);
                return None;
            }
            part.count += 1;
            part.order.remove(&entry.place);
            entry.place = part.count;
            part.order.insert(entry.place, key);
            Some(entry.value.clone())
        })
    }

    /// Keeps a value for a while; one that has no room is not kept. Returns what had to go for it.
    pub(crate) fn insert(&self, key: Key, value: Bytes, time: Duration) -> usize {
        let until = self.clock.monotonic() + time;
        let most = self.part_bytes;
        self.with_part(key, |part| {
            part.remove(key);
            let bytes = value.len() + OVERHEAD_BYTES;
            if bytes > most {
                return 0;
            }
            part.count += 1;
            let place = part.count;
            part.bytes += bytes;
            part.order.insert(place, key);
            let entry = Entry {
                value,
                until,
                place,
            };
            part.entries.insert(key, entry);
            let mut gone = 0;
            while part.bytes > most
                && let Some((_, oldest)) = part.order.first_key_value()
            {
                let oldest = *oldest;
                part.remove(oldest);
                gone += 1;
            }
            gone
        })
    }

    /// Bytes that kept answers take.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let bytes = self.parts.iter().map(|part| {
            let part = part.lock().unwrap_or_else(PoisonError::into_inner);
            let held: usize = part.entries.values().map(|one| one.value.len()).sum();
            assert_eq!(part.bytes, held + part.entries.len() * OVERHEAD_BYTES);
            assert_eq!(part.order.len(), part.entries.len());
            part.bytes
        });
        bytes.sum()
    }

    fn with_part<T>(&self, key: Key, work: impl FnOnce(&mut Part) -> T) -> T
    where
        T: Default,
    {
        let [first, ..] = key.bytes();
        let Some(part) = self.parts.get(usize::from(*first) % PARTS) else {
            return T::default();
        };
        work(&mut part.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Part {
    fn remove(&mut self, key: Key) {
        if let Some(entry) = self.entries.remove(&key) {
            self.order.remove(&entry.place);
            self.bytes -= entry.value.len() + OVERHEAD_BYTES;
        }
    }
}

impl Store for Memory {
    fn find(&self, key: Key) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        ready(Ok(self.look_up(key))).boxed()
    }

    fn keep(
        &self,
        key: Key,
        value: Bytes,
        time: Duration,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        self.insert(key, value, time);
        ready(Ok(())).boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use proptest::prelude::*;
    use shoal_runtime::clock::{Manual, System};

    use super::{Memory, OVERHEAD_BYTES, PARTS};
    use crate::cache::{Key, KeyOf, conformance};

    const LONG: Duration = Duration::from_secs(3600);

    fn key(name: u32) -> Key {
        KeyOf::new("test").with(name.to_le_bytes()).finish()
    }

    #[tokio::test]
    async fn memory_is_a_store() {
        conformance::all(&Memory::new(1 << 20, System::shared())).await;
    }

    #[test]
    fn what_was_not_asked_for_longest_makes_room() {
        let clock = Manual::at(0);
        // One part has room for two.
        let memory = Memory::new((OVERHEAD_BYTES + 8) * 2 * PARTS, clock);
        let same_part: Vec<Key> = (0..)
            .map(key)
            .filter(|key| usize::from(key.bytes()[0]) % PARTS == 3)
            .take(3)
            .collect();
        let value = || Bytes::from_static(b"12345678");
        assert_eq!(memory.insert(same_part[0], value(), LONG), 0);
        assert_eq!(memory.insert(same_part[1], value(), LONG), 0);
        assert!(memory.look_up(same_part[0]).is_some());
        assert_eq!(memory.insert(same_part[2], value(), LONG), 1);
        assert!(memory.look_up(same_part[1]).is_none());
        assert!(memory.look_up(same_part[0]).is_some() && memory.look_up(same_part[2]).is_some());
    }

    #[test]
    fn a_value_is_kept_for_its_time_and_no_longer() {
        let clock = Manual::at(5);
        let memory = Memory::new(1 << 20, clock.clone());
        memory.insert(key(1), Bytes::from_static(b"a"), Duration::from_secs(2));
        clock.advance(Duration::from_millis(1999));
        assert!(memory.look_up(key(1)).is_some());
        clock.advance(Duration::from_millis(1));
        assert!(memory.look_up(key(1)).is_none());
        assert_eq!(memory.bytes(), 0);
    }

    proptest! {
        #[test]
        fn it_never_takes_more_than_it_has(
            puts in proptest::collection::vec((0u32..40, 0usize..4000), 0..200),
        ) {
            let bytes = 64 << 10;
            let memory = Memory::new(bytes, Manual::at(0));
            for (name, length) in puts {
                memory.insert(key(name), vec![0; length].into(), LONG);
                prop_assert!(memory.bytes() <= bytes);
                let kept = memory.look_up(key(name));
                prop_assert_eq!(kept.is_some(), length + OVERHEAD_BYTES <= bytes / PARTS);
            }
        }
    }
}
