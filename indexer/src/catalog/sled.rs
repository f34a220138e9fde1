//! A catalog store on sled: the only file that names it.
//!
//! The checkpoint's number is taken away before changes are written and put back after they are
//! flushed, so a torn write shows as no number at all, and the catalog is rebuilt.

use std::{collections::HashMap, path::Path};

use shoal_schemas::PointId;

use crate::catalog::{CatalogError, IdState, Store};

/// Page cache. Entries are about 60 bytes, so this holds some hundred thousand ids.
const CACHE_BYTES: u64 = 32 << 20;
const CHECKPOINT: &[u8] = b"checkpoint";

/// Keeps the catalog in a folder.
pub struct Sled {
    database: sled::Db,
    ids: sled::Tree,
    marks: sled::Tree,
}

impl Sled {
    /// Opens or makes the store in `folder`.
    ///
    /// # Errors
    /// [`CatalogError::Store`]; the folder may be removed, the catalog is rebuilt.
    pub fn open(folder: &Path) -> Result<Self, CatalogError> {
        let database = sled::Config::new()
            .path(folder)
            .cache_capacity(CACHE_BYTES)
            // Only a checkpoint is worth a flush.
            .flush_every_ms(None)
            .mode(sled::Mode::HighThroughput)
            .open()
            .map_err(|error| match failed(&error) {
                // sled gives this case no kind of its own.
                CatalogError::Store { detail } if detail.contains("could not acquire lock") => {
                    CatalogError::Held
                }
                other => other,
            })?;
        let ids = database.open_tree("ids").map_err(|error| failed(&error))?;
        let marks = database
            .open_tree("marks")
            .map_err(|error| failed(&error))?;
        Ok(Self {
            database,
            ids,
            marks,
        })
    }
}

impl Store for Sled {
    fn read(&self, id: &str) -> Result<Option<IdState>, CatalogError> {
        let Some(bytes) = self.ids.get(id).map_err(|error| failed(&error))? else {
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
        // The mark goes first and comes back last: a crash in between leaves no number at all.
        self.marks
            .remove(CHECKPOINT)
            .map_err(|error| failed(&error))?;
        let mut batch = sled::Batch::default();
        for (id, state) in changes {
            batch.insert(id.as_str(), state.encode());
        }
        self.ids
            .apply_batch(batch)
            .map_err(|error| failed(&error))?;
        self.database.flush().map_err(|error| failed(&error))?;
        self.marks
            .insert(CHECKPOINT, &checkpoint.to_le_bytes())
            .map_err(|error| failed(&error))?;
        self.database.flush().map_err(|error| failed(&error))?;
        Ok(())
    }

    fn checkpoint(&self) -> Result<Option<u64>, CatalogError> {
        let bytes = self.marks.get(CHECKPOINT).map_err(|error| failed(&error))?;
        Ok(bytes.and_then(|bytes| Some(u64::from_le_bytes(bytes.as_ref().try_into().ok()?))))
    }

    fn clear(&self) -> Result<(), CatalogError> {
        self.marks.clear().map_err(|error| failed(&error))?;
        self.database.flush().map_err(|error| failed(&error))?;
        self.ids.clear().map_err(|error| failed(&error))?;
        self.database.flush().map_err(|error| failed(&error))?;
        Ok(())
    }

    fn contested(&self) -> Result<Vec<PointId>, CatalogError> {
        let mut contested = Vec::new();
        for entry in &self.ids {
            let (key, bytes) = entry.map_err(|error| failed(&error))?;
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
        self.database.size_on_disk().unwrap_or(0)
    }
}

fn failed(error: &sled::Error) -> CatalogError {
    CatalogError::Store {
        detail: error.to_string(),
    }
}
