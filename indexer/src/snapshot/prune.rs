//! Removing old snapshots: first manifests, then objects that no manifest names.
//!
//! In this order a kill leaves objects that nobody names, which the next prune removes, and never
//! a manifest whose objects are gone. An object is spared while it is younger than the grace
//! period, because a snapshot under way names its objects only at its end; see [`super::create`]
//! for its side of this.

use std::{collections::BTreeSet, num::NonZeroUsize};

use shoal_runtime::ErrorKind;

use crate::snapshot::{
    ReadError, Shelf,
    manifest::Manifest,
    store::{Cause, StoreError},
};

/// What pruning removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Snapshots.
    pub snapshots: usize,
    /// Objects.
    pub objects: usize,
    /// Bytes of those.
    pub bytes: u64,
}

/// Why pruning stopped.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A manifest that stays does not read, so it is not known which objects it names.
    #[error("nothing more is pruned while a snapshot does not read; remove its manifest by hand")]
    Unknown(#[source] ReadError),
}

impl PruneError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Unknown(error) => error.kind(),
        }
    }
}

impl Shelf {
    /// Removes all but the newest `keep` snapshots, and what nobody names then.
    ///
    /// # Errors
    /// [`PruneError`]; what is removed by then is in no snapshot that is left.
    /// # Cancel safety
    /// May be dropped at any point, as if the process had been killed.
    pub async fn prune(&self, keep: NonZeroUsize) -> Result<Pruned, PruneError> {
        let mut pruned = Pruned::default();
        let numbers = self.numbers().await?;
        let old = numbers.len().saturating_sub(keep.get());
        for number in numbers.iter().take(old) {
            self.delete(&self.place.manifest(*number)).await?;
            pruned.snapshots += 1;
        }
        shoal_runtime::crash::point("snapshot_manifests_pruned");
        // Listed before manifests are read: an object that comes later is not in it.
        let objects = self.list(&self.place.objects()).await?;
        let named = self.named().await?;
        let grace_ms = u64::try_from(self.settings.grace.as_millis()).unwrap_or(u64::MAX);
        let now_ms = self.clock.now_ms();
        for object in objects {
            let is_old = now_ms.saturating_sub(object.stored_ms) >= grace_ms;
            if is_old && !named.contains(&object.path) {
                self.delete(&object.path).await?;
                pruned.objects += 1;
                pruned.bytes = pruned.bytes.saturating_add(object.bytes);
            }
        }
        Ok(pruned)
    }

    /// Every object that a manifest names.
    async fn named(&self) -> Result<BTreeSet<String>, PruneError> {
        let mut named = BTreeSet::new();
        for number in self.numbers().await? {
            match self.manifest(number).await {
                Ok(Manifest { files, .. }) => {
                    named.extend(files.iter().map(|one| self.place.object(&one.object)));
                }
                // Another node prunes too.
                Err(ReadError::Store(error)) if error.cause == Cause::Missing => {}
                Err(ReadError::Store(error)) => return Err(error.into()),
                Err(error) => return Err(PruneError::Unknown(error)),
            }
        }
        Ok(named)
    }

    async fn delete(&self, path: &str) -> Result<(), StoreError> {
        let delete = || self.store.delete(path);
        self.settings.retries.run(delete).await
    }
}
