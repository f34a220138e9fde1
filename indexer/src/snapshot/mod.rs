//! Snapshots of a shard in an object store, so that a new node need not read the whole topic.
//!
//! ```text
//! <collection>/<incarnation>/<shard>/objects/<hash>-<bytes>        a file of a segment, once
//!                                    manifests/<number>.json       one snapshot
//! ```
//!
//! A snapshot is a checkpoint's manifest, which this module does not read, and the files it
//! names. Files are named by their content, so one that is there is not sent again, and a name
//! never means two things. A manifest's number is taken create-only: of two that take a snapshot
//! at once one loses and is told ([`create`]), and one whose claim to the shard is older than the
//! newest manifest's is refused. Nothing that is named is ever changed; [`prune`] alone removes.
//!
//! It knows nothing of Kafka, and does not decide when a snapshot is taken: [`taker`] does.

pub mod bucket;
pub mod conformance;
pub mod create;
#[cfg(test)]
mod faulty;
mod hash;
pub mod manifest;
pub mod prune;
pub mod restore;
pub mod store;
pub mod taker;
pub mod verify;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use shoal_runtime::{ErrorKind, clock::Clock};
use shoal_schemas::{CollectionName, Offset, Partition, Source, digest::Digest};

use self::{
    hash::ObjectName,
    manifest::Manifest,
    store::{Cause, Listed, Retries, Store, StoreError},
};

/// A file of a shard, by what it has to look like.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotFile {
    /// Its name below the shard's folder, with `/` between its parts.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// CRC-32 of its content.
    pub crc32: u32,
}

/// How far a shard had come in one source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SourceNext {
    /// The partition.
    pub source: Source,
    /// First offset not in the snapshot.
    pub next: Offset,
}

/// What a snapshot is of: one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Where the checkpoint's manifest stands below the shard's folder. Restored last.
    pub manifest_path: String,
    /// The checkpoint's manifest as it is on disk.
    pub manifest: Vec<u8>,
    /// Every other file of the checkpoint. None of them may change while a snapshot is taken.
    pub files: Vec<SnapshotFile>,
    /// Digest of what is in it.
    pub digest: Digest,
    /// Next offsets of all sources.
    pub checkpoint: Vec<SourceNext>,
    /// When the checkpoint was taken, milliseconds since the Unix epoch.
    pub taken_ms: u64,
    /// Points in it, expired ones too.
    pub points: u64,
}

/// Who takes a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The node's name.
    pub node: String,
    /// The epoch of its claim to the shard: the claim's offset in the control topic. A lower one
    /// than the newest manifest's is refused.
    pub epoch: Offset,
}

/// Which shard, of which incarnation of a collection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardPlace {
    /// The collection.
    pub collection: CollectionName,
    /// See [`crate::shard::Spec::incarnation`].
    pub incarnation: Offset,
    /// The shard's number.
    pub shard: Partition,
}

impl ShardPlace {
    /// Its folder in the store.
    fn folder(&self) -> String {
        let Self {
            collection,
            incarnation,
            shard,
        } = self;
        format!("{collection}/{}/{shard}", incarnation.0)
    }

    fn manifests(&self) -> String {
        format!("{}/manifests", self.folder())
    }

    fn objects(&self) -> String {
        format!("{}/objects", self.folder())
    }

    fn manifest(&self, number: u64) -> String {
        format!("{}/{number:020}.json", self.manifests())
    }

    fn object(&self, name: &ObjectName) -> String {
        format!("{}/{name}", self.objects())
    }
}

impl fmt::Display for ShardPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.collection, self.shard)
    }
}

/// Gives the files of a shard to whoever takes a snapshot of it.
pub trait Files: Send + Sync {
    /// Opens a file of a [`Content`].
    ///
    /// # Errors
    /// The system's own.
    fn open(&self, path: &str) -> io::Result<File>;
}

/// Files that lie in the shard's folder.
#[derive(Clone, Debug)]
pub struct Folder(pub PathBuf);

impl Files for Folder {
    fn open(&self, path: &str) -> io::Result<File> {
        File::open(self.0.join(path))
    }
}

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
    fn known(&self, file: &SnapshotFile) -> Option<ObjectName> {
        self.lock().get(file).cloned()
    }

    fn learn(&self, file: SnapshotFile, name: ObjectName) {
        self.lock().insert(file, name);
    }

    /// Forgets files that are in no checkpoint any more.
    fn keep_only(&self, files: &[SnapshotFile]) {
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
    store: Arc<dyn Store>,
    place: ShardPlace,
    clock: Arc<dyn Clock>,
    settings: Settings,
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

    async fn manifest(&self, number: u64) -> Result<Manifest, ReadError> {
        let path = self.place.manifest(number);
        let content = self.content(&path).await?;
        Manifest::decode(&content, number).map_err(|detail| ReadError::Damaged {
            store: self.store.name().to_owned(),
            object: path,
            detail,
        })
    }

    /// A small object as a whole.
    async fn content(&self, path: &str) -> Result<Bytes, StoreError> {
        let read = || async {
            let chunks = self.store.read(path).await?;
            let whole: BytesMut = chunks.try_collect().await?;
            Ok(whole.freeze())
        };
        self.settings.retries.run(read).await
    }

    async fn list(&self, folder: &str) -> Result<Vec<Listed>, StoreError> {
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

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
