//! A catalog store on sled: the only file that names it.
//!
//! The checkpoint's number is taken away before changes are written and put back after they are
//! flushed, so a torn write shows as no number at all, and the catalog is rebuilt.
//!
//! sled answers everything after a failed write with that failure, many reads, too, until it is opened anew, which it
//! cannot be on a full disk. So a write is not begun unless there is room for it; and one that fails all the same
//! has the store opened anew as soon as there is room. What was stored before is still there then.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{
        RwLock, RwLockReadGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use shoal_schemas::PointId;

use crate::{
    catalog::{CatalogError, IdState, Store},
    pressure,
};

/// Page cache. Entries are about 60 bytes, so this holds some thirty thousand ids; the rest is read
/// from the kernel's cache of the file, which the system takes back when memory is short.
const CACHE_BYTES: u64 = 8 << 20;
const CHECKPOINT: &[u8] = b"checkpoint";
/// Bytes written for each byte of a changed entry, as measured: pages are written, not entries.
const WRITTEN_PER_BYTE: u64 = 5;
/// Entries written at once. Nothing is read meanwhile, and sled keeps every page that a batch has
/// outdated: 117,000 entries in one batch left 480 MB behind for good, in batches of 256 5 MB.
const BATCH_ENTRIES: usize = 256;
/// What is left free besides: other shards and the shard's own log write at the same time.
const SPARE_BYTES: u64 = 16 << 20;

/// Keeps the catalog in a folder.
pub struct Sled {
    folder: PathBuf,
    /// `None` while it cannot be opened anew.
    open: RwLock<Option<Open>>,
    /// A write has failed since it was opened.
    is_broken: AtomicBool,
    /// Tells the free space of a disk.
    free_bytes: fn(&Path) -> Option<u64>,
}

impl Sled {
    /// Opens or makes the store in `folder`.
    ///
    /// # Errors
    /// [`CatalogError::Held`] and [`CatalogError::NoRoom`], which pass; else
    /// [`CatalogError::Store`]: the folder may be removed, the catalog is rebuilt.
    pub fn open(folder: &Path) -> Result<Self, CatalogError> {
        Ok(Self {
            folder: folder.to_owned(),
            open: RwLock::new(Some(Open::at(folder)?)),
            is_broken: AtomicBool::new(false),
            free_bytes: pressure::free_bytes,
        })
    }

    fn opened(&self) -> RwLockReadGuard<'_, Option<Open>> {
        self.open.read().expect("nothing panics under this lock")
    }

    fn with<T>(
        &self,
        call: impl FnOnce(&Open) -> Result<T, sled::Error>,
    ) -> Result<T, CatalogError> {
        let opened = self.opened();
        let open = opened.as_ref().ok_or_else(closed)?;
        call(open).map_err(|error| failed(&self.folder, &error))
    }

    /// Refuses a write there is no room for.
    fn check_room(&self, entry_bytes: u64) -> Result<(), CatalogError> {
        let needed_bytes = entry_bytes * WRITTEN_PER_BYTE + SPARE_BYTES;
        match (self.free_bytes)(&self.folder) {
            Some(free_bytes) if free_bytes < needed_bytes => Err(CatalogError::NoRoom {
                folder: self.folder.clone(),
                free_bytes,
                needed_bytes,
            }),
            _ => Ok(()),
        }
    }

    fn open_anew(&self) -> Result<(), CatalogError> {
        let mut open = self.open.write().expect("nothing panics under this lock");
        // It holds its folder until it is gone.
        *open = None;
        *open = Some(Open::at(&self.folder)?);
        self.is_broken.store(false, Ordering::Release);
        Ok(())
    }
}

/// The store, open.
struct Open {
    database: sled::Db,
    ids: sled::Tree,
    marks: sled::Tree,
}

impl Open {
    fn at(folder: &Path) -> Result<Self, CatalogError> {
        let opened = sled::Config::new()
            .path(folder)
            .cache_capacity(CACHE_BYTES)
            // Only a checkpoint is worth a flush.
            .flush_every_ms(None)
            .mode(sled::Mode::HighThroughput)
            .open();
        let made = opened.and_then(|database| {
            Ok(Self {
                ids: database.open_tree("ids")?,
                marks: database.open_tree("marks")?,
                database,
            })
        });
        made.map_err(|error| match failed(folder, &error) {
            // sled gives this case no kind of its own.
            CatalogError::Store { detail } if detail.contains("could not acquire lock") => {
                CatalogError::Held
            }
            other => other,
        })
    }

    fn write(&self, entries: &[(&PointId, Vec<u8>)], checkpoint: u64) -> Result<(), sled::Error> {
        // The mark goes first and comes back last: a crash in between leaves no number at all.
        self.marks.remove(CHECKPOINT)?;
        for entries in entries.chunks(BATCH_ENTRIES) {
            let mut batch = sled::Batch::default();
            for (id, entry) in entries {
                batch.insert(id.as_str(), entry.as_slice());
            }
            self.ids.apply_batch(batch)?;
        }
        self.database.flush()?;
        self.marks.insert(CHECKPOINT, &checkpoint.to_le_bytes())?;
        self.database.flush()?;
        Ok(())
    }

    fn clear(&self) -> Result<(), sled::Error> {
        self.marks.clear()?;
        self.database.flush()?;
        self.ids.clear()?;
        self.database.flush()?;
        Ok(())
    }
}

impl Store for Sled {
    fn read(&self, id: &str) -> Result<Option<IdState>, CatalogError> {
        let Some(bytes) = self.with(|open| open.ids.get(id))? else {
            return Ok(None);
        };
        let state = IdState::decode(&bytes);
        state
            .map(Some)
            .ok_or_else(|| CatalogError::Entry { id: id.to_owned() })
    }

    fn write(
        &self,
        changes: &HashMap<PointId, IdState>,
        checkpoint: u64,
    ) -> Result<(), CatalogError> {
        let entries = changes.iter().map(|(id, state)| (id, state.encode()));
        let mut entries: Vec<(&PointId, Vec<u8>)> = entries.collect();
        // Neighbours go into one page while it is at hand.
        entries.sort_unstable_by_key(|(id, _)| *id);
        let bytes: usize = (entries.iter())
            .map(|(id, entry)| id.as_str().len() + entry.len())
            .sum();
        self.check_room(u64::try_from(bytes).unwrap_or(u64::MAX))?;
        if self.is_broken.load(Ordering::Acquire) {
            self.open_anew()?;
        }
        let written = self.with(|open| open.write(&entries, checkpoint));
        if written.is_err() {
            self.is_broken.store(true, Ordering::Release);
        }
        written
    }

    fn checkpoint(&self) -> Result<Option<u64>, CatalogError> {
        let bytes = self.with(|open| open.marks.get(CHECKPOINT))?;
        Ok(bytes.and_then(|bytes| Some(u64::from_le_bytes(bytes.as_ref().try_into().ok()?))))
    }

    fn clear(&self) -> Result<(), CatalogError> {
        self.with(Open::clear)
    }

    fn contested(&self) -> Result<Vec<PointId>, CatalogError> {
        let opened = self.opened();
        let open = opened.as_ref().ok_or_else(closed)?;
        let mut contested = Vec::new();
        for entry in &open.ids {
            let (key, bytes) = entry.map_err(|error| failed(&self.folder, &error))?;
            let id = String::from_utf8_lossy(&key);
            let damaged = || CatalogError::Entry { id: id.to_string() };
            let state = IdState::decode(&bytes).ok_or_else(damaged)?;
            if state.is_contested() {
                contested.push(PointId::new(&id).map_err(|_| damaged())?);
            }
        }
        Ok(contested)
    }

    fn bytes_on_disk(&self) -> u64 {
        let opened = self.opened();
        let database = opened.as_ref().map(|open| &open.database);
        database
            .and_then(|database| database.size_on_disk().ok())
            .unwrap_or(0)
    }
}

fn closed() -> CatalogError {
    CatalogError::Store {
        detail: "it could not be opened again after a failed write".into(),
    }
}

fn failed(folder: &Path, error: &sled::Error) -> CatalogError {
    match error {
        sled::Error::Io(io) if io.kind() == io::ErrorKind::StorageFull => CatalogError::NoRoom {
            folder: folder.to_owned(),
            free_bytes: pressure::free_bytes(folder).unwrap_or_default(),
            needed_bytes: SPARE_BYTES,
        },
        other => CatalogError::Store {
            detail: other.to_string(),
        },
    }
}

#[cfg(test)]
#[path = "sled_tests.rs"]
mod tests;
