//! A catalog store in memory, for tests and simulation.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use shoal_schemas::PointId;

use crate::catalog::{CatalogError, IdState, Store};

#[derive(Default)]
struct Kept {
    states: HashMap<PointId, IdState>,
    checkpoint: Option<u64>,
}

/// Forgets everything when dropped.
#[derive(Default)]
pub struct Memory(Mutex<Kept>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("nothing panics under this lock")
    }
}

impl Store for Memory {
    fn read(&self, id: &str) -> Result<Option<IdState>, CatalogError> {
        Ok(self.lock().states.get(id).cloned())
    }

    fn write(
        &self,
        changes: &HashMap<PointId, IdState>,
        checkpoint: u64,
    ) -> Result<(), CatalogError> {
        let mut kept = self.lock();
        let changes = changes
            .iter()
            .map(|(id, state)| (id.clone(), state.clone()));
        kept.states.extend(changes);
        kept.checkpoint = Some(checkpoint);
        Ok(())
    }

    fn checkpoint(&self) -> Result<Option<u64>, CatalogError> {
        Ok(self.lock().checkpoint)
    }

    fn clear(&self) -> Result<(), CatalogError> {
        *self.lock() = Kept::default();
        Ok(())
    }

    fn contested(&self) -> Result<Vec<PointId>, CatalogError> {
        let kept = self.lock();
        let contested = kept.states.iter().filter(|(_, state)| state.is_contested());
        Ok(contested.map(|(id, _)| id.clone()).collect())
    }

    fn bytes_on_disk(&self) -> u64 {
        0
    }
}
