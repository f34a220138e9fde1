//! The catalog: id to what is known of it and where its served row is.
//!
//! Derived: the shard's own log and its segments can rebuild it, so losing it costs time, never
//! data. The stored part is the state of one checkpoint, exactly, and carries that checkpoint's
//! number; what changed since lies over it in memory. So a crash leaves either the state of the
//! manifest that is read back, or another number, and then it is rebuilt.

mod memory;
mod sled;
mod watch;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use shoal_runtime::ErrorKind;
use shoal_schemas::{Offset, PointId, Version};

use crate::{
    rule::{Latest, Says, SourceIndex, is_contested},
    segment::{Place, SegmentId},
    wal::Position,
};

pub use self::{memory::Memory, sled::Sled, watch::Watch};

/// What is known of one id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdState {
    /// The latest record of each source.
    pub known: Vec<Latest>,
    /// Where the served row is, if one is served.
    pub place: Option<Place>,
}

impl IdState {
    /// Whether the latest record of any source was refused.
    pub fn is_contested(&self) -> bool {
        is_contested(&self.known)
    }

    /// Encodes it for a [`Store`].
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(10 + self.known.len() * 27);
        match self.place {
            Some(place) => {
                out.push(1);
                out.extend_from_slice(&place.segment.0.to_le_bytes());
                out.extend_from_slice(&place.row.to_le_bytes());
            }
            None => out.push(0),
        }
        for one in &self.known {
            let (tag, at) = match one.says {
                Says::Live(at) => (0u8, at.as_u64()),
                Says::Deleted => (1, 0),
                Says::Contested => (2, 0),
            };
            out.push(tag);
            out.extend_from_slice(&one.source.0.to_le_bytes());
            out.extend_from_slice(&one.offset.0.to_le_bytes());
            out.extend_from_slice(&one.version.raw().to_le_bytes());
            out.extend_from_slice(&at.to_le_bytes());
        }
        out
    }

    /// Reads what [`IdState::encode`] wrote; `None` for anything else.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (has_place, mut rest) = bytes.split_first()?;
        let place = if *has_place == 1 {
            let (place, after) = rest.split_first_chunk::<8>()?;
            rest = after;
            let (segment, row) = place.split_first_chunk::<4>()?;
            Some(Place {
                segment: SegmentId(u32::from_le_bytes(*segment)),
                row: u32::from_le_bytes(row.try_into().ok()?),
            })
        } else {
            None
        };
        let (records, tail) = rest.as_chunks::<27>();
        if !tail.is_empty() {
            return None;
        }
        let known = records.iter().map(|record| {
            let (tag, rest) = record.split_first()?;
            let (source, rest) = rest.split_first_chunk::<2>()?;
            let (offset, rest) = rest.split_first_chunk::<8>()?;
            let (version, at) = rest.split_first_chunk::<8>()?;
            let at = u64::from_le_bytes(at.try_into().ok()?);
            Some(Latest {
                source: SourceIndex(u16::from_le_bytes(*source)),
                offset: Offset(u64::from_le_bytes(*offset)),
                version: Version::from_raw(u64::from_le_bytes(*version)),
                says: match tag {
                    0 => Says::Live(Position::new(at)),
                    1 => Says::Deleted,
                    2 => Says::Contested,
                    _ => return None,
                },
            })
        });
        Some(Self {
            known: known.collect::<Option<_>>()?,
            place,
        })
    }
}

/// Keeps the state of one checkpoint.
pub trait Store: Send + Sync {
    /// One id's state.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn read(&self, id: &str) -> Result<Option<IdState>, CatalogError>;

    /// Takes all of `changes` and the checkpoint's number, durably, before it returns.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn write(
        &self,
        changes: &HashMap<PointId, IdState>,
        checkpoint: u64,
    ) -> Result<(), CatalogError>;

    /// Number of the checkpoint it is the state of; `None` for an empty one.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn checkpoint(&self) -> Result<Option<u64>, CatalogError>;

    /// Forgets everything.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn clear(&self) -> Result<(), CatalogError>;

    /// Every id whose state is contested. Looks at all of them.
    ///
    /// # Errors
    /// [`CatalogError`].
    fn contested(&self) -> Result<Vec<PointId>, CatalogError>;

    /// Bytes on disk.
    fn bytes_on_disk(&self) -> u64;
}

/// Why a catalog call failed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The store's own error.
    #[error("catalog store failed: {detail}")]
    Store {
        /// Its words.
        detail: String,
    },
    /// The disk has no room for what is to be written. The same call may be repeated.
    #[error("no room for the catalog `{}`: {free_bytes} bytes are free, {needed_bytes} are needed", .folder.display())]
    NoRoom {
        /// Its folder.
        folder: PathBuf,
        /// What is free.
        free_bytes: u64,
        /// What a write takes at most, and some to spare for whoever else writes.
        needed_bytes: u64,
    },
    /// A shard of this process that is closing still has it open.
    #[error("catalog is still held by a shard that is closing")]
    Held,
    /// What is stored under an id does not read.
    #[error("catalog entry of `{id}` does not read; remove the catalog folder, it is rebuilt")]
    Entry {
        /// The id.
        id: String,
    },
}

impl CatalogError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store { .. } => ErrorKind::Closed,
            Self::NoRoom { .. } | Self::Held => ErrorKind::Retry,
            Self::Entry { .. } => ErrorKind::Corrupt,
        }
    }
}

#[derive(Default)]
struct Overlay {
    newest: HashMap<PointId, IdState>,
    /// Being written to the store right now.
    frozen: Option<Arc<HashMap<PointId, IdState>>>,
}

/// The catalog as the shard uses it: one writer, any number of readers.
pub struct Catalog {
    store: Box<dyn Store>,
    overlay: RwLock<Overlay>,
    watches: Arc<watch::Watches>,
}

impl Catalog {
    /// Nothing changed since the store's checkpoint.
    pub fn new(store: Box<dyn Store>) -> Self {
        Self {
            store,
            overlay: RwLock::default(),
            watches: Arc::default(),
        }
    }

    /// One id's state; empty if nothing is known.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn read(&self, id: &str) -> Result<IdState, CatalogError> {
        {
            let overlay = self.shared();
            let frozen = overlay.frozen.as_ref();
            if let Some(state) = overlay
                .newest
                .get(id)
                .or_else(|| frozen.and_then(|frozen| frozen.get(id)))
            {
                return Ok(state.clone());
            }
        }
        Ok(self.store.read(id)?.unwrap_or_default())
    }

    /// Replaces one id's state. Only the shard's writer.
    pub fn put(&self, id: PointId, state: IdState) {
        self.exclusive().newest.insert(id.clone(), state);
        // After it is there: who begins to look now and reads, reads this one.
        if self.watches.is_open()
            && let Some(state) = self.shared().newest.get(&id)
        {
            self.watches.tell(&id, &state.known);
        }
    }

    /// Looks at an id: tells every record about it that is applied from now on.
    pub fn watch(&self, id: &PointId) -> Watch {
        self.watches.open(id)
    }

    /// Sets aside everything changed since the last freeze, to be stored by another thread.
    pub fn freeze(&self) -> Arc<HashMap<PointId, IdState>> {
        let mut overlay = self.exclusive();
        let newest = std::mem::take(&mut overlay.newest);
        // A checkpoint that failed leaves its part behind; the next one stores it too.
        let mut frozen = overlay
            .frozen
            .take()
            .map(Arc::unwrap_or_clone)
            .unwrap_or_default();
        frozen.extend(newest);
        let frozen = Arc::new(frozen);
        overlay.frozen = Some(frozen.clone());
        frozen
    }

    /// Stores what was frozen, as checkpoint `number`.
    ///
    /// # Errors
    /// [`CatalogError`]; the frozen part stays readable.
    pub fn store_frozen(&self, number: u64) -> Result<(), CatalogError> {
        let frozen = self.shared().frozen.clone().unwrap_or_default();
        self.store.write(&frozen, number)?;
        self.exclusive().frozen = None;
        Ok(())
    }

    /// Every contested id, unless the writer changes one meanwhile. Looks at all ids.
    ///
    /// # Errors
    /// [`CatalogError`].
    pub fn contested(&self) -> Result<HashSet<PointId>, CatalogError> {
        // Before the store: what is stored meanwhile is then found in both.
        let changed: HashMap<PointId, bool> = {
            let overlay = self.shared();
            let frozen = overlay.frozen.iter().flat_map(|frozen| frozen.iter());
            let changed = frozen.chain(&overlay.newest);
            changed
                .map(|(id, state)| (id.clone(), state.is_contested()))
                .collect()
        };
        let stored = self.store.contested()?.into_iter();
        let mut contested: HashSet<_> = stored.filter(|id| !changed.contains_key(id)).collect();
        contested.extend(changed.into_iter().filter_map(|(id, is)| is.then_some(id)));
        Ok(contested)
    }

    /// Ids changed since the last checkpoint.
    pub fn changed_ids(&self) -> usize {
        self.shared().newest.len()
    }

    /// The store underneath.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    fn shared(&self) -> RwLockReadGuard<'_, Overlay> {
        self.overlay
            .read()
            .expect("nothing panics while it changes the overlay")
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Overlay> {
        self.overlay
            .write()
            .expect("nothing panics while it changes the overlay")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::collections::HashMap;

    use shoal_schemas::{Offset, PointId, Version};

    use super::{Catalog, IdState, Memory, Sled, Store};
    use crate::{
        rule::{Latest, Says, SourceIndex},
        segment::{Place, SegmentId},
        wal::Position,
    };

    fn state(at: u64) -> IdState {
        let says = [
            Says::Live(Position::new(at)),
            Says::Deleted,
            Says::Contested,
        ];
        let known = says.into_iter().zip(0u16..).map(|(says, source)| Latest {
            source: SourceIndex(source),
            offset: Offset(at + 7),
            version: Version::from_raw(at << 20),
            says,
        });
        IdState {
            known: known.collect(),
            place: at.is_multiple_of(2).then_some(Place {
                segment: SegmentId(3),
                row: 9,
            }),
        }
    }

    fn conformance(store: &dyn Store) {
        assert_eq!(store.checkpoint().unwrap(), None);
        let id = |n: u64| PointId::new(&format!("id-{n}")).unwrap();
        let changes: HashMap<_, _> = (0..100).map(|n| (id(n), state(n))).collect();
        store.write(&changes, 4).unwrap();
        assert_eq!(store.checkpoint().unwrap(), Some(4));
        for n in 0..100 {
            assert_eq!(store.read(id(n).as_str()).unwrap(), Some(state(n)));
        }
        assert_eq!(store.read("id-100").unwrap(), None);
        let settled = [(id(3), IdState::default())].into();
        store.write(&settled, 4).unwrap();
        let mut contested = store.contested().unwrap();
        contested.sort();
        let mut wanted: Vec<_> = (0..100).filter(|n| *n != 3).map(id).collect();
        wanted.sort();
        assert_eq!(contested, wanted);
        store.clear().unwrap();
        assert_eq!(store.checkpoint().unwrap(), None);
        assert_eq!(store.read("id-1").unwrap(), None);
    }

    #[test]
    fn both_stores_keep_what_they_are_given() {
        conformance(&Memory::default());
        let folder = tempfile::tempdir().unwrap();
        conformance(&Sled::open(folder.path()).unwrap());
    }

    #[test]
    fn a_frozen_change_stays_readable_until_and_after_it_is_stored() {
        let catalog = Catalog::new(Box::new(Memory::default()));
        let id = PointId::new("a").unwrap();
        catalog.put(id.clone(), state(1));
        catalog.freeze();
        assert_eq!(catalog.read("a").unwrap(), state(1));
        catalog.put(id, state(2));
        assert_eq!(catalog.read("a").unwrap(), state(2));
        catalog.store_frozen(1).unwrap();
        assert_eq!(catalog.read("a").unwrap(), state(2));
        assert_eq!(catalog.store().read("a").unwrap(), Some(state(1)));
    }

    #[test]
    fn contested_ids_are_those_of_the_newest_state() {
        let catalog = Catalog::new(Box::new(Memory::default()));
        let [a, b, c] = ["a", "b", "c"].map(|id| PointId::new(id).unwrap());
        catalog.put(a.clone(), state(1));
        catalog.put(b.clone(), state(2));
        catalog.freeze();
        catalog.store_frozen(1).unwrap();
        catalog.put(a.clone(), IdState::default());
        catalog.freeze();
        catalog.put(c.clone(), state(3));
        assert_eq!(catalog.contested().unwrap(), [b.clone(), c].into());
        catalog.put(a.clone(), state(4));
        catalog.put(b, IdState::default());
        assert!(catalog.contested().unwrap().contains(&a));
        assert_eq!(catalog.contested().unwrap().len(), 2);
    }
}
