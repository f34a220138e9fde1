//! The disk as the log sees it: the seam where tests put one that fails, fills up or loses power.
//!
//! [`Real`] is the one in use. Files are written and read at explicit offsets, so nothing depends on a file's cursor.
//! It does not retry and does not interpret errors.

use std::{ffi::OsString, fs, io, os::unix::fs::FileExt, path::Path, sync::Arc};

/// Directories and the files in them.
pub trait Disk: Send + Sync {
    /// Creates `dir` and the directories above it where missing, and makes their entries durable.
    ///
    /// # Errors
    /// The system's own.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes `dir` for one owner, until the answer is dropped or the process ends.
    ///
    /// # Errors
    /// `WouldBlock` if somebody else holds it; else the system's own.
    fn hold(&self, dir: &Path) -> io::Result<Box<dyn Hold>>;

    /// Names of the files in `dir`, in any order.
    ///
    /// # Errors
    /// The system's own.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;

    /// Creates an empty file.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one; else the system's own.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Opens a file that exists.
    ///
    /// # Errors
    /// `NotFound` if there is none; else the system's own.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Removes a file. Who has it open can still read it.
    ///
    /// # Errors
    /// `NotFound` if there is none; else the system's own.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the files created and removed in `dir` durable as such.
    ///
    /// # Errors
    /// The system's own.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// One open file. All calls may come from several threads at once.
pub trait File: Send + Sync {
    /// Reads at `offset`; fewer bytes than asked, or 0 at the end of the file.
    ///
    /// # Errors
    /// The system's own.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes at `offset`, perhaps fewer bytes than given.
    ///
    /// # Errors
    /// `StorageFull` or `QuotaExceeded` if there is no room; else the system's own.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Makes all bytes written so far durable, with the length of the file.
    ///
    /// # Errors
    /// The system's own. What is on the disk is then unknown.
    fn sync(&self) -> io::Result<()>;

    /// Cuts or extends the file to `bytes`.
    ///
    /// # Errors
    /// The system's own.
    fn set_bytes(&self, bytes: u64) -> io::Result<()>;

    /// Length of the file in bytes.
    ///
    /// # Errors
    /// The system's own.
    fn bytes(&self) -> io::Result<u64>;
}

/// Keeps a directory held; see [`Disk::hold`].
pub trait Hold: Send {}

/// The file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Real;

impl Disk for Real {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let parent = dir.parent().filter(|parent| *parent != Path::new(""));
        let parent = parent.unwrap_or_else(|| Path::new("."));
        if parent != dir {
            self.create_dir(parent)?;
        }
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.sync_dir(parent)
    }

    fn hold(&self, dir: &Path) -> io::Result<Box<dyn Hold>> {
        let open = fs::File::open(dir)?;
        open.try_lock()?;
        Ok(Box::new(open))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(dir)?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(file))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }
}

impl Hold for fs::File {}

impl File for fs::File {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, into, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}

/// Whether a write failed for want of room, so that it may succeed later.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{io::ErrorKind, path::Path};

    use super::{super::disk_sim::Sim, Disk, Real};

    /// What every disk has to do.
    fn conforms(disk: &dyn Disk, root: &Path) {
        let dir = root.join("a").join("b");
        disk.create_dir(&dir).unwrap();
        disk.create_dir(&dir).unwrap();
        assert!(disk.list(&dir).unwrap().is_empty());

        let held = disk.hold(&dir).unwrap();
        assert_eq!(disk.hold(&dir).err().unwrap().kind(), ErrorKind::WouldBlock);
        drop(held);
        assert!(disk.hold(&dir).is_ok());

        let path = dir.join("one");
        assert_eq!(disk.open(&path).err().unwrap().kind(), ErrorKind::NotFound);
        let file = disk.create(&path).unwrap();
        assert_eq!(
            disk.create(&path).err().unwrap().kind(),
            ErrorKind::AlreadyExists
        );
        assert_eq!(disk.list(&dir).unwrap(), ["one"]);

        assert_eq!(file.write_at(b"hello", 0).unwrap(), 5);
        assert_eq!(file.write_at(b"y!", 4).unwrap(), 2);
        assert_eq!(file.bytes().unwrap(), 6);
        let mut read = [0; 10];
        let again = disk.open(&path).unwrap();
        assert_eq!(again.read_at(&mut read, 1).unwrap(), 5);
        assert_eq!(&read[..5], b"elly!");
        assert_eq!(again.read_at(&mut read, 6).unwrap(), 0);
        file.set_bytes(2).unwrap();
        file.set_bytes(4).unwrap();
        assert_eq!(again.read_at(&mut read, 0).unwrap(), 4);
        assert_eq!(&read[..4], b"he\0\0");
        file.sync().unwrap();
        disk.sync_dir(&dir).unwrap();

        disk.remove(&path).unwrap();
        assert_eq!(disk.remove(&path).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(again.read_at(&mut read, 0).unwrap(), 4);
        assert!(disk.list(&dir).unwrap().is_empty());
    }

    #[test]
    fn file_system_conforms() {
        let root = tempfile::tempdir().unwrap();
        conforms(&Real, root.path());
    }

    #[test]
    fn simulated_disk_conforms() {
        conforms(&Sim::default(), Path::new("/sim"));
    }
}
