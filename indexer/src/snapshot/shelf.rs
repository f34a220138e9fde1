//! The snapshots of one shard: which there are, and reading their manifests.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use shoal_runtime::{ErrorKind, clock::Clock};
use shoal_schemas::{CollectionName, Offset, Partition};

use crate::snapshot::{
    ShardPlace, SnapshotFile,
    hash::ObjectName,
    manifest::Manifest,
    store::{Cause, Listed, Retries, Store, StoreError},
};

/// Why snapshots cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is none, or none of that number.
    #[error(
        "`{store}` holds no snapshot {wanted} of shard {shard}; `shoal snapshot list` shows what it has"
    )]
    None {
        /// The store's URL.
        store: String,
        /// `at all`, or the number.
        wanted: String,
        /// The shard.
        shard: String,
    },
    /// A manifest is not what was written.
    #[error("manifest `{object}` in `{store}` is damaged: {detail}; use another snapshot")]
    Damaged {
        /// The store's URL.
        store: String,
        /// The manifest.
        object: String,
        /// What is wrong.
        detail: String,
    },
}

impl ReadError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::None { .. } => ErrorKind::Caller,
            Self::Damaged { .. } => ErrorKind::Corrupt,
        }
    }
}

/// How snapshots are kept.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// An object younger than this is never pruned: a snapshot under way may be about to name it.
    /// No snapshot may take longer than half of it.
    pub grace: Duration,
    /// Files looked at or sent at a time, for one shard.
    pub files_at_a_time: usize,
    /// What is done about a store that does not answer.
    pub retries: Retries,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(24 * 60 * 60),
            files_at_a_time: 4,
            retries: Retries::default(),
        }
    }
}

/// Names of the files of one open shard that were hashed before, so that a later snapshot does
/// not read them again. Belongs to whoever has the shard's folder open: another folder may have
/// other files of the same names. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Mutex<HashMap<SnapshotFile, ObjectName>>>);

impl Names {
    pub(super) fn known(&self, file: &SnapshotFile) -> Option<ObjectName> {
        self.lock().get(file).cloned()
    }

    pub(super) fn learn(&self, file: SnapshotFile, name: ObjectName) {
        self.lock().insert(file, name);
    }

    /// Forgets files that are in no checkpoint any more.
    pub(super) fn keep_only(&self, files: &[SnapshotFile]) {
        let files: HashSet<_> = files.iter().collect();
        self.lock().retain(|file, _| files.contains(file));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SnapshotFile, ObjectName>> {
        self.0.lock().expect("nothing panics under this lock")
    }
}

/// The snapshots of one shard.
#[derive(Clone, Debug)]
pub struct Shelf {
    pub(super) store: Arc<dyn Store>,
    pub(super) place: ShardPlace,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: Settings,
}

impl Shelf {
    /// The snapshots of a shard in a store.
    pub fn new(
        store: Arc<dyn Store>,
        place: ShardPlace,
        clock: Arc<dyn Clock>,
        settings: Settings,
    ) -> Self {
        Self {
            store,
            place,
            clock,
            settings,
        }
    }

    /// The shard.
    pub fn place(&self) -> &ShardPlace {
        &self.place
    }

    /// Numbers of all snapshots, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn numbers(&self) -> Result<Vec<u64>, StoreError> {
        let listed = self.list(&self.place.manifests()).await?;
        let mut numbers: Vec<_> = listed
            .iter()
            .filter_map(|one| number_of(&one.path))
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// All snapshots, oldest first; one whose manifest does not read is its error.
    ///
    /// # Errors
    /// [`StoreError`] if the store does not answer.
    pub async fn all(&self) -> Result<Vec<(u64, Result<Manifest, ReadError>)>, StoreError> {
        let mut all = Vec::new();
        for number in self.numbers().await? {
            match self.manifest(number).await {
                Err(ReadError::Store(error)) if error.cause != Cause::Missing => return Err(error),
                found => all.push((number, found)),
            }
        }
        Ok(all)
    }

    /// The snapshot of that number, or the newest.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn find(&self, number: Option<u64>) -> Result<Manifest, ReadError> {
        let none = |wanted: String| ReadError::None {
            store: self.store.name().to_owned(),
            wanted,
            shard: self.place.to_string(),
        };
        let number = match number {
            Some(number) => number,
            None => {
                let newest = self.numbers().await?.pop();
                newest.ok_or_else(|| none("at all".into()))?
            }
        };
        match self.manifest(number).await {
            Err(ReadError::Store(error)) if error.cause == Cause::Missing => {
                Err(none(number.to_string()))
            }
            found => found,
        }
    }

    pub(super) async fn manifest(&self, number: u64) -> Result<Manifest, ReadError> {
        let path = self.place.manifest(number);
        let content = self.content(&path).await?;
        Manifest::decode(&content, number).map_err(|detail| ReadError::Damaged {
            store: self.store.name().to_owned(),
            object: path,
            detail,
        })
    }

    /// A small object as a whole.
    pub(super) async fn content(&self, path: &str) -> Result<Bytes, StoreError> {
        let read = || async {
            let chunks = self.store.read(path).await?;
            let whole: BytesMut = chunks.try_collect().await?;
            Ok(whole.freeze())
        };
        self.settings.retries.run(read).await
    }

    pub(super) async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
        let list = || self.store.list(folder);
        self.settings.retries.run(list).await
    }
}

/// The number in a manifest's name.
fn number_of(path: &str) -> Option<u64> {
    let (_, name) = path.rsplit_once('/')?;
    let digits = name.strip_suffix(".json")?;
    let is_number = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok())?
}

/// Incarnations of a collection that a store has snapshots of, oldest first.
///
/// # Errors
/// [`StoreError`].
pub async fn incarnations(
    store: &dyn Store,
    collection: &CollectionName,
) -> Result<Vec<Offset>, StoreError> {
    let names = store.folders(collection.as_str()).await?;
    let mut found: Vec<_> = names
        .iter()
        .filter_map(|name| name.parse().ok().map(Offset))
        .collect();
    found.sort_unstable();
    Ok(found)
}

/// Shards of an incarnation of a collection that a store has snapshots of, by number.
///
/// # Errors
/// [`StoreError`].
pub async fn shards(
    store: &dyn Store,
    collection: &CollectionName,
    incarnation: Offset,
) -> Result<Vec<Partition>, StoreError> {
    let folder = format!("{collection}/{}", incarnation.0);
    let names = store.folders(&folder).await?;
    let mut found: Vec<_> = names
        .iter()
        .filter_map(|name| name.parse().ok().map(Partition))
        .collect();
    found.sort_unstable();
    Ok(found)
}
