//! A shard map in a file that somebody else keeps: a Kubernetes ConfigMap, for one.
//!
//! It is looked at again and again: a file that was renamed into place, a link that leads elsewhere
//! and a new content all show in what the system says of the file behind the path.

use std::{
    convert::Infallible, fs, io, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration,
};

use shoal_runtime::{
    chain,
    tasks::{Tasks, blocking},
};

use super::{
    Trouble,
    document::{Document, DocumentError},
};
use crate::{coordinator::HomeCluster, shard_map::Feed};

/// Largest file read; a million claims are less.
const MAX_BYTES: u64 = 256 << 20;

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Why a file is not taken.
#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot read `{}`", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` has {bytes} bytes, allowed are {MAX_BYTES}", .path.display())]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error("`{}` is not taken", .path.display())]
    Document {
        path: PathBuf,
        #[source]
        source: Box<DocumentError>,
    },
}

/// A file that is looked at.
pub(super) struct Watched {
    path: PathBuf,
    poll: Duration,
    home: HomeCluster,
    trouble: Trouble,
}

impl Watched {
    pub(super) fn new(path: PathBuf, poll: Duration, home: HomeCluster, trouble: Trouble) -> Self {
        Self {
            path,
            poll,
            home,
            trouble,
        }
    }

    pub(super) fn spawn(self, feed: Feed, tasks: &Tasks) {
        let cancel = tasks.cancel().clone();
        tasks.spawn("query map file", async move {
            let mut taken: Option<Stamp> = None;
            while !cancel.is_cancelled() {
                let path = self.path.clone();
                match blocking(move || read(path, taken)).await {
                    Ok(None) => {}
                    Ok(Some((stamp, document))) => {
                        taken = Some(stamp);
                        if let Some(cluster) = document.cluster.clone() {
                            // The first one counts: a node does not change its cluster.
                            drop(self.home.set(cluster));
                        }
                        self.trouble.over();
                        feed.put(document.into_map());
                    }
                    Err(error) => {
                        // Tried again at every look: it may have been read half written.
                        taken = None;
                        self.trouble.failed(chain(&error).to_string());
                    }
                }
                tokio::select! {
                    biased;
                    () = cancel.cancelled() => {}
                    () = tokio::time::sleep(self.poll) => {}
                }
            }
            Ok::<_, Infallible>(())
        });
    }
}

/// The file's content, unless it is the one that was taken.
fn read(path: PathBuf, taken: Option<Stamp>) -> Result<Option<(Stamp, Document)>, FileError> {
    let unread = |source| FileError::Read {
        path: path.clone(),
        source,
    };
    let found = fs::metadata(&path).map_err(unread)?;
    let stamp = Stamp {
        device: found.dev(),
        inode: found.ino(),
        bytes: found.size(),
        modified: (found.mtime(), found.mtime_nsec()),
        changed: (found.ctime(), found.ctime_nsec()),
    };
    if taken == Some(stamp) {
        return Ok(None);
    }
    if stamp.bytes > MAX_BYTES {
        let bytes = stamp.bytes;
        return Err(FileError::TooLarge { path, bytes });
    }
    let bytes = fs::read(&path).map_err(unread)?;
    let document = Document::read(&bytes);
    let refused = |source| FileError::Document {
        path,
        source: Box::new(source),
    };
    let document = document.map_err(refused)?;
    Ok(Some((stamp, document)))
}
