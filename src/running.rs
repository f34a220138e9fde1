//! The addresses of a running `shoal up`, kept in its data folder, so that other verbs need no
//! flags; and the lock that keeps a second one out of the folder.
//!
//! The file outlives an abrupt end. It counts only while the process it names is there.

use std::{
    fs::{self, File, TryLockError},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, test_kill_process};
use serde::{Deserialize, Serialize};

/// The file's name in the data folder.
const FILE: &str = "shoal.json";
/// The lock's.
const LOCK: &str = "lock";

/// Where a role listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listens {
    /// gRPC.
    pub grpc: SocketAddr,
    /// JSON, health, metrics.
    pub http: SocketAddr,
}

/// What runs, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// The process.
    pub pid: i32,
    /// Kafka, `host:port`.
    pub kafka: String,
    /// The gateway.
    pub gateway: Listens,
    /// The indexer.
    pub indexer: Listens,
    /// The query node.
    pub query: Listens,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Somebody else runs there.
    #[error("data folder `{}` is in use by another `shoal up`{}", .folder.display(), by(.pid))]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// Who, if it says so.
        pid: Option<i32>,
    },
    /// The system refuses.
    #[error("cannot use `{}`", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn by(pid: &Option<i32>) -> String {
    pid.map_or(String::new(), |pid| format!(", process {pid}"))
}

/// A data folder that is ours as long as this lives.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Holding it open is holding the lock.
    _lock: File,
}

impl Folder {
    /// Makes the folder if it is missing, and takes it.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn take(path: &Path) -> Result<Self, FolderError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| FolderError::Io { path, source }
        };
        fs::create_dir_all(path).map_err(failed(path))?;
        let path = path.canonicalize().map_err(failed(path))?;
        let lock_path = path.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(failed(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(FolderError::InUse {
                pid: read(&path).map(|running| running.pid),
                folder: path,
            }),
            Err(TryLockError::Error(source)) => Err(failed(&lock_path)(source)),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says what runs here, in one step.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub fn say(&self, running: &Running) -> Result<(), FolderError> {
        let path = self.path.join(FILE);
        let partial = self.path.join(format!("{FILE}.partial"));
        let text = serde_json::to_vec_pretty(running).expect("plain fields always encode");
        fs::write(&partial, text)
            .and_then(|()| fs::rename(&partial, &path))
            .map_err(|source| FolderError::Io { path, source })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing runs any more; a file left behind would be found to be stale.
        let _left = fs::remove_file(self.path.join(FILE));
    }
}

fn read(folder: &Path) -> Option<Running> {
    serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
}

/// What runs in a data folder now; `None` if nothing does.
pub fn find(folder: &Path) -> Option<Running> {
    let running = read(folder)?;
    let pid = Pid::from_raw(running.pid)?;
    test_kill_process(pid).is_ok().then_some(running)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::{Folder, FolderError, Listens, Running, find};

    fn running(pid: u32) -> Running {
        let any = "127.0.0.1:1".parse().unwrap();
        let listens = Listens {
            grpc: any,
            http: any,
        };
        Running {
            pid: i32::try_from(pid).unwrap(),
            kafka: "127.0.0.1:2".into(),
            gateway: listens,
            indexer: listens,
            query: listens,
        }
    }

    const DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

    #[test]
    fn a_folder_is_taken_once_and_tells_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::take(dir.path()).unwrap();
        assert_eq!(find(dir.path()), None);
        let own = running(std::process::id());
        folder.say(&own).unwrap();
        assert_eq!(find(dir.path()), Some(own.clone()));
        let refused = Folder::take(dir.path()).unwrap_err();
        assert!(
            matches!(refused, FolderError::InUse { pid: Some(pid), .. } if pid == own.pid),
            "{refused}"
        );
        drop(folder);
        assert_eq!(find(dir.path()), None);
        // A process that another test starts at this moment has the lock too until it runs.
        let again = || Folder::take(dir.path()).ok();
        shoal_runtime::eventually(DEADLINE, "the folder is free", again);
    }

    #[test]
    fn a_process_that_is_gone_runs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = running(child.id());
        child.wait().unwrap();
        let folder = Folder::take(dir.path()).unwrap();
        folder.say(&gone).unwrap();
        assert_eq!(find(dir.path()), None);
    }
}
