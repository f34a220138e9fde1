//! A disk in memory for tests: it can fail at a chosen call, fill up, hold an fsync back, and lose power.
//!
//! It keeps what was written apart from what was made durable, for bytes and for directory entries. Losing power
//! keeps what is durable and as much of the rest as the test chooses.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use super::{
    disk::{Disk, File, Hold},
    to_u64, to_usize,
};

/// Calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Create,
    Write,
    Sync,
    SetBytes,
    Remove,
    SyncDir,
}

type Gate = Arc<dyn Fn() + Send + Sync>;

/// The disk. Clones are the same disk.
#[derive(Clone, Default)]
pub(crate) struct Sim(Arc<Mutex<World>>);

#[derive(Default)]
struct World {
    entries: BTreeMap<PathBuf, Arc<Mutex<Node>>>,
    durable_entries: BTreeMap<PathBuf, Arc<Mutex<Node>>>,
    is_held: bool,
    calls: BTreeMap<Call, u64>,
    /// Which one of the calls to come fails, and how.
    faults: Vec<(Call, u64, io::ErrorKind)>,
    /// Bytes that still fit.
    room: Option<u64>,
    before_sync: Option<Gate>,
}

#[derive(Default)]
struct Node {
    bytes: Vec<u8>,
    durable: Vec<u8>,
}

impl Sim {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("no test panics inside the disk")
    }

    /// Has the `nth` such call from now on fail, counted from 1.
    pub(crate) fn fail(&self, call: Call, nth: u64, kind: io::ErrorKind) {
        let mut world = self.world();
        let at = world.calls.get(&call).copied().unwrap_or(0) + nth;
        world.faults.push((call, at, kind));
    }

    /// Leaves room for so many more bytes, or for any number.
    pub(crate) fn set_room(&self, bytes: Option<u64>) {
        self.world().room = bytes;
    }

    /// Has every fsync of a file call this first.
    pub(crate) fn set_before_sync(&self, gate: impl Fn() + Send + Sync + 'static) {
        self.world().before_sync = Some(Arc::new(gate));
    }

    /// How many such calls there were, failed ones included.
    pub(crate) fn count(&self, call: Call) -> u64 {
        self.world().calls.get(&call).copied().unwrap_or(0)
    }

    /// The bytes of every file, by path.
    pub(crate) fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let world = self.world();
        let bytes = |node: &Mutex<Node>| node.lock().expect("as above").bytes.clone();
        world
            .entries
            .iter()
            .map(|(path, node)| (path.clone(), bytes(node)))
            .collect()
    }

    /// A disk with these files, all durable.
    pub(crate) fn with_files(files: BTreeMap<PathBuf, Vec<u8>>) -> Self {
        let node = |bytes: Vec<u8>| {
            Arc::new(Mutex::new(Node {
                durable: bytes.clone(),
                bytes,
            }))
        };
        let entries: BTreeMap<_, _> = files
            .into_iter()
            .map(|(path, bytes)| (path, node(bytes)))
            .collect();
        let sim = Self::default();
        sim.world().durable_entries = entries.clone();
        sim.world().entries = entries;
        sim
    }

    /// The disk after a loss of power. Of each file's bytes that are not durable, `keep` of so many stay; the rest of
    /// the file's length is zeros where `is_zeroed`.
    pub(crate) fn lose_power(&self, mut keep: impl FnMut(usize) -> usize, is_zeroed: bool) -> Self {
        let world = self.world();
        let mut files = BTreeMap::new();
        for (path, node) in &world.durable_entries {
            let node = node.lock().expect("as above");
            let mut bytes = node.durable.clone();
            let pending = node.bytes.get(bytes.len()..).unwrap_or_default();
            let kept = keep(pending.len());
            bytes.extend(&pending[..kept]);
            if is_zeroed {
                bytes.resize(bytes.len() + pending.len() - kept, 0);
            }
            files.insert(path.clone(), bytes);
        }
        Self::with_files(files)
    }
}

impl World {
    fn enter(&mut self, call: Call) -> io::Result<()> {
        let count = self.calls.entry(call).or_default();
        *count += 1;
        let now = *count;
        let hit = self
            .faults
            .iter()
            .find(|(what, at, _)| *what == call && *at == now);
        hit.map_or(Ok(()), |(_, _, kind)| Err((*kind).into()))
    }
}

impl Disk for Sim {
    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn hold(&self, _dir: &Path) -> io::Result<Box<dyn Hold>> {
        let mut world = self.world();
        if world.is_held {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        world.is_held = true;
        Ok(Box::new(Held(self.clone())))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let world = self.world();
        let inside = world
            .entries
            .keys()
            .filter(|path| path.parent() == Some(dir));
        Ok(inside
            .filter_map(|path| Some(path.file_name()?.to_owned()))
            .collect())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut world = self.world();
        world.enter(Call::Create)?;
        if world.entries.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let node = Arc::<Mutex<Node>>::default();
        world.entries.insert(path.to_owned(), Arc::clone(&node));
        Ok(Arc::new(Open(self.clone(), node)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let world = self.world();
        let node = world.entries.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(Open(self.clone(), Arc::clone(node))))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.enter(Call::Remove)?;
        let removed = world.entries.remove(path);
        removed.ok_or(io::ErrorKind::NotFound)?;
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.enter(Call::SyncDir)?;
        let inside = |path: &PathBuf| path.parent() == Some(dir);
        let World {
            entries,
            durable_entries,
            ..
        } = &mut *world;
        durable_entries.retain(|path, _| !inside(path) || entries.contains_key(path));
        for (path, node) in entries.iter().filter(|(path, _)| inside(path)) {
            durable_entries.insert(path.clone(), Arc::clone(node));
        }
        Ok(())
    }
}

struct Held(Sim);

impl Hold for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.world().is_held = false;
    }
}

struct Open(Sim, Arc<Mutex<Node>>);

impl Open {
    fn node(&self) -> MutexGuard<'_, Node> {
        self.1.lock().expect("no test panics inside the disk")
    }
}

impl File for Open {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let node = self.node();
        let stored = node.bytes.get(to_usize(offset)..).unwrap_or_default();
        let read = stored.len().min(into.len());
        into[..read].copy_from_slice(&stored[..read]);
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let mut world = self.0.world();
        world.enter(Call::Write)?;
        let mut node = self.node();
        let start = to_usize(offset);
        let written = match world.room {
            Some(0) => return Err(io::ErrorKind::StorageFull.into()),
            Some(room) => bytes.len().min(to_usize(room)),
            None => bytes.len(),
        };
        let end = start + written;
        let grown = end.saturating_sub(node.bytes.len());
        if grown > 0 {
            node.bytes.resize(end, 0);
        }
        node.bytes[start..end].copy_from_slice(&bytes[..written]);
        world.room = world.room.map(|room| room.saturating_sub(to_u64(grown)));
        Ok(written)
    }

    fn sync(&self) -> io::Result<()> {
        let gate = self.0.world().before_sync.clone();
        // What the fsync covers is settled when it starts.
        let bytes = self.node().bytes.clone();
        if let Some(gate) = gate {
            gate();
        }
        self.0.world().enter(Call::Sync)?;
        self.node().durable = bytes;
        Ok(())
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        let mut world = self.0.world();
        world.enter(Call::SetBytes)?;
        let mut node = self.node();
        let freed = to_u64(node.bytes.len()).saturating_sub(bytes);
        node.bytes.resize(to_usize(bytes), 0);
        world.room = world.room.map(|room| room + freed);
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(to_u64(self.node().bytes.len()))
    }
}
