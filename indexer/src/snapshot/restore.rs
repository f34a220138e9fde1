//! Getting a snapshot back: into a folder beside the one wanted, checked, then renamed.
//!
//! Every byte is hashed on its way. What does not fit its name, or breaks off, fails by name and
//! nothing is left behind: the folder wanted either is not there or is a whole shard's.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use futures::{StreamExt, TryStreamExt, stream};
use shoal_runtime::{ErrorKind, tasks::blocking};

use crate::snapshot::{
    ReadError, Shelf,
    hash::Looker,
    manifest::{Manifest, StoredFile},
    store::{Cause, StoreError},
};

/// What is given back while it is not whole.
const UNFINISHED: &str = "restoring";

/// Why a snapshot was not restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Reading manifests.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The folder wanted is there.
    #[error("`{}` is there already; name a folder that is not", .path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// An object is not what was stored.
    #[error(
        "object `{object}` in `{store}`, file `{path}` of snapshot {number}, is damaged: {detail}; \
         restore another snapshot"
    )]
    Damaged {
        /// The store's URL.
        store: String,
        /// Which object.
        object: String,
        /// The file.
        path: String,
        /// The snapshot.
        number: u64,
        /// What is wrong.
        detail: String,
    },
    /// The snapshot was pruned while it was read.
    #[error("snapshot {number} was pruned from `{store}` while it was read; restore the newest")]
    Pruned {
        /// The store's URL.
        store: String,
        /// The snapshot.
        number: u64,
    },
    /// The local disk.
    #[error("cannot write `{}`; check the disk", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's own.
        #[source]
        source: io::Error,
    },
}

impl RestoreError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Exists { .. } => ErrorKind::Caller,
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Pruned { .. } => ErrorKind::Retry,
            Self::File { .. } => ErrorKind::Closed,
        }
    }
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> RestoreError + '_ {
    |source| RestoreError::File {
        path: path.to_owned(),
        source,
    }
}

/// Removes an unfinished folder when it is dropped.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Not there any more once it is renamed.
        let _gone = fs::remove_dir_all(&self.0);
    }
}

impl Shelf {
    /// Makes `folder` of the snapshot of that number, or of the newest. It must not be there.
    ///
    /// # Errors
    /// [`RestoreError`]; `folder` is not there then.
    /// # Cancel safety
    /// May be dropped at any point: `folder` is not there then.
    pub async fn restore(
        &self,
        number: Option<u64>,
        folder: &Path,
    ) -> Result<Manifest, RestoreError> {
        if folder.exists() {
            return Err(RestoreError::Exists {
                path: folder.to_owned(),
            });
        }
        let manifest = self.find(number).await?;
        let mut name = folder.file_name().unwrap_or_default().to_owned();
        name.push(".");
        name.push(UNFINISHED);
        let unfinished = Unfinished(folder.with_file_name(name));
        // Left over from a kill.
        match fs::remove_dir_all(&unfinished.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file_error(&unfinished.0)(error));
            }
            _ => {}
        }
        fs::create_dir_all(&unfinished.0).map_err(file_error(&unfinished.0))?;
        let files = manifest.files.iter();
        let files: Vec<_> = files
            .map(|one| self.restore_file(one, &manifest, &unfinished.0))
            .collect();
        stream::iter(files)
            .buffer_unordered(self.settings.files_at_a_time.max(1))
            .try_collect::<Vec<()>>()
            .await?;
        let content = manifest.content().map_err(|detail| ReadError::Damaged {
            store: self.store.name().to_owned(),
            object: self.place.manifest(manifest.number),
            detail,
        })?;
        let path = unfinished.0.join(&content.manifest_path);
        let mut file = create(&path)?;
        file.write_all(&content.manifest)
            .and_then(|()| file.sync_all())
            .map_err(file_error(&path))?;
        sync_folders(&unfinished.0)?;
        fs::rename(&unfinished.0, folder).map_err(file_error(folder))?;
        let parent = folder.parent().filter(|path| !path.as_os_str().is_empty());
        sync_folder(parent.unwrap_or_else(|| Path::new(".")))?;
        Ok(manifest)
    }

    async fn restore_file(
        &self,
        stored: &StoredFile,
        manifest: &Manifest,
        folder: &Path,
    ) -> Result<(), RestoreError> {
        let path = folder.join(&stored.file.path);
        let read = || async {
            // Only what the store does wrong is worth another try.
            match self.receive(stored, &path).await {
                Err(RestoreError::Store(error)) => Err(error),
                other => Ok(other),
            }
        };
        let outcome = match self.settings.retries.run(read).await {
            Ok(outcome) => outcome,
            Err(error) if error.cause == Cause::Missing && self.is_gone(manifest).await? => {
                return Err(RestoreError::Pruned {
                    store: self.store.name().to_owned(),
                    number: manifest.number,
                });
            }
            Err(error) => return Err(error.into()),
        };
        match outcome? {
            None => Ok(()),
            Some(detail) => Err(RestoreError::Damaged {
                store: self.store.name().to_owned(),
                object: self.place.object(&stored.object),
                path: stored.file.path.clone(),
                number: manifest.number,
                detail,
            }),
        }
    }

    async fn is_gone(&self, manifest: &Manifest) -> Result<bool, StoreError> {
        Ok(!self.numbers().await?.contains(&manifest.number))
    }

    /// Writes an object to a file. Says what is wrong with its content, if something is.
    async fn receive(
        &self,
        stored: &StoredFile,
        path: &Path,
    ) -> Result<Option<String>, RestoreError> {
        let mut chunks = self.store.read(&self.place.object(&stored.object)).await?;
        let mut file = create(path)?;
        let mut looker = Looker::default();
        while let Some(chunk) = chunks.try_next().await? {
            let written = move || {
                looker.take(&chunk);
                file.write_all(&chunk).map(|()| (looker, file))
            };
            (looker, file) = blocking(written).await.map_err(file_error(path))?;
        }
        let fault = fault_of(stored, looker);
        if fault.is_none() {
            let synced = move || file.sync_all();
            blocking(synced).await.map_err(file_error(path))?;
        }
        Ok(fault)
    }
}

/// What is wrong with an object's content; `None` if it is what was stored.
pub(super) fn fault_of(stored: &StoredFile, looker: Looker) -> Option<String> {
    let (look, file) = (looker.look(), &stored.file);
    if look.bytes != file.bytes {
        return Some(format!(
            "it has {} bytes, wanted are {}",
            look.bytes, file.bytes
        ));
    }
    if look.crc32 != file.crc32 || look.object != stored.object {
        return Some(format!(
            "its checksum is {:08x}, wanted is {:08x}; its name would be {}",
            look.crc32, file.crc32, look.object
        ));
    }
    None
}

fn create(path: &Path) -> Result<File, RestoreError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(file_error(folder))?;
    }
    File::create(path).map_err(file_error(path))
}

fn sync_folder(path: &Path) -> Result<(), RestoreError> {
    File::open(path)
        .and_then(|opened| opened.sync_all())
        .map_err(file_error(path))
}

/// Makes a folder and those in it durable.
fn sync_folders(path: &Path) -> Result<(), RestoreError> {
    for entry in fs::read_dir(path).map_err(file_error(path))? {
        let entry = entry.map_err(file_error(path))?.path();
        if entry.is_dir() {
            sync_folders(&entry)?;
        }
    }
    sync_folder(path)
}
