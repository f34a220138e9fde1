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
pub mod shelf;
pub mod store;
pub mod taker;
pub mod url;
pub mod verify;

use std::{fmt, fs::File, io, path::PathBuf};

use serde::{Deserialize, Serialize};
use shoal_schemas::{CollectionName, Offset, Partition, Source, TopicId, digest::Digest};

use self::hash::ObjectName;

pub use self::shelf::{Names, ReadError, Settings, Shelf};

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
    /// Kafka's id of the topic, where a broker has told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<TopicId>,
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

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;

#[cfg(test)]
mod kill_tests;
