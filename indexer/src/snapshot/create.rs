//! Taking a snapshot: send the files that are not there, then take the next number.
//!
//! Safe against another owner and against [`super::prune`] at every point, and against a kill:
//! until the manifest stands, nothing that others see has changed. A file is not sent if the
//! newest manifest names its object, because then only a newer manifest can make it go, and that
//! takes our number; nor if its object is younger than half the grace period. Everything else is
//! sent, also where an object of that name is there: it may be about to be pruned, and sending
//! makes it young.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use shoal_runtime::{ErrorKind, chain, clock::Stopwatch, tasks::blocking};
use tracing::warn;

use crate::snapshot::{
    Content, Files, Names, Owner, ReadError, Shelf, SnapshotFile,
    hash::{Look, ObjectName, look_at},
    manifest::{Manifest, fault_of_paths},
    store::{Cause, Listed, Put, StoreError},
};

/// How often a number is tried for that somebody seems to be taking but has not.
const TRIES: usize = 5;

/// What taking a snapshot did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// The snapshot's number.
    pub number: u64,
    /// Files in it.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Files that had to be sent.
    pub sent_files: usize,
    /// Bytes of those.
    pub sent_bytes: u64,
}

/// Why no snapshot was taken.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Reading what is there.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A later claim to the shard has taken snapshots.
    #[error(
        "snapshot of shard {shard} is refused: `{store}` holds number {number} by node `{node}` \
         with claim {newest}, ours is {ours}; this node no longer owns the shard"
    )]
    Stale {
        /// The shard.
        shard: String,
        /// The store's URL.
        store: String,
        /// The newest number there.
        number: u64,
        /// Who took it.
        node: String,
        /// Its epoch.
        newest: u64,
        /// Ours.
        ours: u64,
    },
    /// Somebody else took the number.
    #[error(
        "number {number} of shard {shard} in `{store}` went to node `{by}`; read what is there \
         and take another"
    )]
    Lost {
        /// The shard.
        shard: String,
        /// The store's URL.
        store: String,
        /// The number.
        number: u64,
        /// Who has it.
        by: String,
    },
    /// It took so long that what was sent first may be pruned.
    #[error(
        "snapshot of shard {shard} took {took:?}, allowed is half the grace period, {limit:?}; \
         it goes on from here when it is taken again"
    )]
    TooSlow {
        /// The shard.
        shard: String,
        /// How long.
        took: Duration,
        /// The limit.
        limit: Duration,
    },
    /// A local file does not open or read.
    #[error("file `{path}` of shard {shard} does not read; check the disk")]
    File {
        /// The shard.
        shard: String,
        /// Which.
        path: String,
        /// The system's own.
        #[source]
        source: io::Error,
    },
    /// A local file is not what the checkpoint says.
    #[error(
        "file `{path}` of shard {shard} is damaged: {found_bytes} bytes with checksum \
         {found_crc32:08x}, wanted are {bytes} with {crc32:08x}; set the shard's folder aside, it \
         is rebuilt"
    )]
    Damaged {
        /// The shard.
        shard: String,
        /// Which.
        path: String,
        /// Its length.
        found_bytes: u64,
        /// Its checksum.
        found_crc32: u32,
        /// The length it should have.
        bytes: u64,
        /// The checksum it should have.
        crc32: u32,
    },
    /// What is to be stored could not be restored.
    #[error("snapshot of shard {shard} makes no sense: {detail}")]
    Content {
        /// The shard.
        shard: String,
        /// Why.
        detail: String,
    },
}

impl CreateError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Lost { .. } | Self::TooSlow { .. } => ErrorKind::Retry,
            Self::Stale { .. } | Self::File { .. } => ErrorKind::Closed,
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Content { .. } => ErrorKind::Bug,
        }
    }
}

/// What is known of the store before anything is sent.
struct There {
    /// The number to take.
    next: u64,
    /// Objects the newest manifest names.
    named: BTreeSet<ObjectName>,
    /// All objects by path.
    objects: BTreeMap<String, Listed>,
}

impl Shelf {
    /// Takes a snapshot. What is sent when it fails is used by the next one.
    ///
    /// # Errors
    /// [`CreateError`]; no snapshot is there then that was not there before.
    /// # Cancel safety
    /// May be dropped at any point, as if the process had been killed.
    pub async fn create(
        &self,
        owner: &Owner,
        content: &Content,
        files: &dyn Files,
        names: &Names,
    ) -> Result<Created, CreateError> {
        if let Some(detail) = fault_of_paths(content) {
            return Err(CreateError::Content {
                shard: self.place.to_string(),
                detail,
            });
        }
        let watch = Stopwatch::start();
        let there = self.look_around(owner).await?;
        let sends = content.files.iter();
        let sends: Vec<_> = sends
            .map(|file| self.send(file, files, names, &there))
            .collect();
        let sent: Vec<(ObjectName, bool)> = stream::iter(sends)
            .buffered(self.settings.files_at_a_time.max(1))
            .try_collect()
            .await?;
        let (took, limit) = (watch.elapsed(), self.settings.grace / 2);
        if took > limit {
            return Err(CreateError::TooSlow {
                shard: self.place.to_string(),
                took,
                limit,
            });
        }
        let new = content.files.iter().zip(&sent).filter(|(_, (_, new))| *new);
        let (sent_files, sent_bytes) = new.fold((0, 0), |(files, bytes), (file, _)| {
            (files + 1, bytes + file.bytes)
        });
        let objects = sent.into_iter().map(|(object, _)| object).collect();
        let manifest = Manifest::new(there.next, &self.place, owner, content, objects);
        shoal_runtime::crash::point("snapshot_sent");
        self.take_number(owner, &manifest).await?;
        names.keep_only(&content.files);
        Ok(Created {
            number: manifest.number,
            files: manifest.files.len(),
            bytes: manifest.bytes(),
            sent_files,
            sent_bytes,
        })
    }

    /// Reads what is there, and whether this owner may add to it.
    async fn look_around(&self, owner: &Owner) -> Result<There, CreateError> {
        let numbers = self.numbers().await?;
        let mut newest = None;
        for number in numbers.iter().rev() {
            match self.manifest(*number).await {
                Ok(manifest) => {
                    newest = Some(manifest);
                    break;
                }
                // A damaged one must not end all snapshots; the one before it still fences.
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    warn!(error = %chain(&error), "snapshot passed over");
                }
                // Pruned since it was listed: then there is a newer one, and we are late.
                Err(ReadError::Store(error)) if error.cause == Cause::Missing => {
                    return Err(self.lost(*number, "a later owner"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(newest) = &newest
            && newest.owner.epoch > owner.epoch
        {
            return Err(self.stale(owner, newest));
        }
        let objects = self.list(&self.place.objects()).await?.into_iter();
        let named = newest.iter().flat_map(|one| &one.files);
        Ok(There {
            next: numbers.last().map_or(1, |newest| newest + 1),
            named: named.map(|one| one.object.clone()).collect(),
            objects: objects.map(|one| (one.path.clone(), one)).collect(),
        })
    }

    /// Sees to it that a file's content is there. Says where, and whether it had to be sent.
    async fn send(
        &self,
        file: &SnapshotFile,
        files: &dyn Files,
        names: &Names,
        there: &There,
    ) -> Result<(ObjectName, bool), CreateError> {
        let name = match names.known(file) {
            Some(name) => name,
            None => {
                let name = self.name(file, files).await?;
                names.learn(file.clone(), name.clone());
                name
            }
        };
        let path = self.place.object(&name);
        let now_ms = self.clock.now_ms();
        let half_ms = u64::try_from(self.settings.grace.as_millis() / 2).unwrap_or(u64::MAX);
        let is_there = there.objects.get(&path).is_some_and(|object| {
            let is_young = now_ms.saturating_sub(object.stored_ms) < half_ms;
            object.bytes == file.bytes && (there.named.contains(&name) || is_young)
        });
        if is_there {
            return Ok((name, false));
        }
        let opened = Arc::new(self.open(file, files)?);
        let upload = || self.store.upload(&path, opened.clone(), file.bytes);
        self.settings.retries.run(upload).await?;
        shoal_runtime::crash::point("snapshot_file_sent");
        Ok((name, true))
    }

    fn open(&self, file: &SnapshotFile, files: &dyn Files) -> Result<std::fs::File, CreateError> {
        files
            .open(&file.path)
            .map_err(|error| self.file_error(file, error))
    }

    fn file_error(&self, file: &SnapshotFile, source: io::Error) -> CreateError {
        CreateError::File {
            shard: self.place.to_string(),
            path: file.path.clone(),
            source,
        }
    }

    /// Hashes a file, and checks that it is what the checkpoint says.
    async fn name(
        &self,
        file: &SnapshotFile,
        files: &dyn Files,
    ) -> Result<ObjectName, CreateError> {
        let opened = self.open(file, files)?;
        let look = blocking(move || look_at(&opened)).await;
        let Look {
            bytes,
            crc32,
            object,
        } = look.map_err(|error| self.file_error(file, error))?;
        if (bytes, crc32) != (file.bytes, file.crc32) {
            return Err(CreateError::Damaged {
                shard: self.place.to_string(),
                path: file.path.clone(),
                found_bytes: bytes,
                found_crc32: crc32,
                bytes: file.bytes,
                crc32: file.crc32,
            });
        }
        Ok(object)
    }

    /// Takes the manifest's number, for good.
    pub(super) async fn take_number(
        &self,
        owner: &Owner,
        manifest: &Manifest,
    ) -> Result<(), CreateError> {
        let path = self.place.manifest(manifest.number);
        let ours = Bytes::from(manifest.encode());
        let mut tries = 0;
        loop {
            tries += 1;
            let create = || self.store.create(&path, ours.clone());
            if self.settings.retries.run(create).await? == Put::Created {
                break;
            }
            // Ours, if the first answer was lost on its way.
            match self.content(&path).await {
                Ok(there) if there == ours => break,
                Ok(there) => {
                    let by = Manifest::decode(&there, manifest.number);
                    let by = by.map_or_else(|_| "unknown".into(), |one| one.owner.node);
                    return Err(self.lost(manifest.number, &by));
                }
                // Somebody was at it and gave up.
                Err(error) if error.cause == Cause::Missing && tries < TRIES => {}
                Err(error) if error.cause == Cause::Missing => {
                    return Err(self.lost(manifest.number, "unknown"));
                }
                Err(error) => return Err(error.into()),
            }
        }
        // A number is free again once it is pruned, and the newest never is. So whoever was held up
        // until a later owner had pruned sees a later epoch now; what it names may be gone.
        let newest = self.numbers().await?.pop();
        let Some(newest) = newest.filter(|newest| *newest > manifest.number) else {
            return Ok(());
        };
        let newest = self.manifest(newest).await?;
        if newest.owner.epoch <= owner.epoch {
            return Ok(());
        }
        let delete = || self.store.delete(&path);
        self.settings.retries.run(delete).await?;
        Err(self.stale(owner, &newest))
    }

    fn stale(&self, owner: &Owner, newest: &Manifest) -> CreateError {
        CreateError::Stale {
            shard: self.place.to_string(),
            store: self.store.name().to_owned(),
            number: newest.number,
            node: newest.owner.node.clone(),
            newest: newest.owner.epoch.0,
            ours: owner.epoch.0,
        }
    }

    fn lost(&self, number: u64, by: &str) -> CreateError {
        CreateError::Lost {
            shard: self.place.to_string(),
            store: self.store.name().to_owned(),
            number,
            by: by.to_owned(),
        }
    }
}
