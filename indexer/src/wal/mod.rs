//! The shard's write-ahead log: opaque payloads in checksummed frames, in segment files.
//!
//! A record that was appended and flushed survives `kill -9` of the process; one below [`Syncer::durable`] survives
//! the loss of power. One directory is one log. Its files are `<position of the first frame, 20 digits>.wal`: a header
//! (`segment`), then frames (`frame`) without gaps, and each file begins where the one before it ended.
//!
//! Invariants:
//! - one owner: [`Wal`] holds the directory, a second one is refused;
//! - a frame never spans files, and a file takes its first frame only when the file before it is whole and durable,
//!   so only the last file can have a torn tail;
//! - readers see frames below the flushed end only, so they never see half a frame;
//! - after a failed fsync nothing is written or synced any more: what the disk holds is unknown until the next open.
//!
//! It knows nothing of what the payloads mean, and it does not decide what may be cut.

pub mod disk;
mod frame;
mod reader;
mod recovery;
mod scan;
mod segment;
mod sync;
mod writer;

#[cfg(test)]
pub(crate) mod disk_sim;
#[cfg(test)]
mod fixture_tests;
#[cfg(test)]
mod kill_tests;
#[cfg(test)]
mod power_tests;

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    sync::{
        Arc, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use disk::{Disk, Hold};
use segment::Segment;

pub use frame::Fault;
pub use reader::{Iterate, ReadError};
pub use recovery::OpenError;
pub use segment::Damage;
pub use sync::SyncError;
pub use writer::{AppendError, CutError};

/// Place of a frame: a byte address over all segments, file headers not counted.
///
/// It stays the same for the life of the log; cutting takes addresses away from below.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Position(u64);

impl Position {
    /// Where the first frame of a new log stands.
    pub const START: Self = Self(0);

    /// Takes an address that [`Position::as_u64`] gave, from a checkpoint for example.
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The address in bytes.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Saturates: an address read from a damaged disk must not overflow.
    const fn plus(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }

    /// Bytes from `earlier` up to here; 0 if it is not earlier.
    const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How the log is laid out on disk.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Size at which a segment file is closed and the next begun, in bytes. Default 64 MiB.
    ///
    /// Space is given back by whole segments: large ones keep it longer, small ones cost a blocking fsync and an
    /// open file each. A frame larger than this gets a segment of its own.
    pub segment_bytes: u64,
    /// Largest frame taken, in bytes: the payload and 8 bytes around it. Default 16 MiB.
    ///
    /// Above the largest record of the topic, or that record cannot be stored; frames already written stay
    /// readable when it is lowered.
    pub max_frame_bytes: u32,
    /// Where a log that has no file yet begins. Default 0.
    #[serde(skip)]
    pub first: Position,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            max_frame_bytes: 16 << 20,
            first: Position::START,
        }
    }
}

/// What opening found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of a torn tail that were cut off, 0 after an orderly end. They were never synced.
    pub torn_bytes: u64,
    /// The oldest frame that is still there, or `end` if there is none.
    pub first: Position,
    /// After the last frame. Everything below it is durable.
    pub end: Position,
}

/// The log, in the hands of its one owner: it appends, flushes and cuts.
///
/// Dropping it does not flush: frames that were only appended are gone, as in a crash.
pub struct Wal {
    shared: Arc<Shared>,
    config: Config,
    /// The segment that takes frames.
    active: Arc<Segment>,
    /// Encoded frames between the flushed end and `end`, all for `active`.
    buffer: Vec<u8>,
    end: Position,
    _hold: Box<dyn Hold>,
}

/// Makes flushed frames durable, from any thread. Cheap to clone.
#[derive(Clone)]
pub struct Syncer {
    shared: Arc<Shared>,
}

/// Reads flushed frames, from any thread, while the owner appends. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    shared: Arc<Shared>,
}

/// What the owner, its syncers and its readers have in common.
struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// End of the frames handed to the OS. Stored by the owner alone, after the bytes are in the file.
    flushed: AtomicU64,
    /// All segments by their base. Each keeps its file open.
    segments: RwLock<BTreeMap<Position, Arc<Segment>>>,
    group: sync::Group,
}

impl Shared {
    fn flushed(&self) -> Position {
        Position(self.flushed.load(Ordering::Acquire))
    }

    fn set_flushed(&self, end: Position) {
        self.flushed.store(end.0, Ordering::Release);
    }

    fn segments(&self) -> RwLockReadGuard<'_, BTreeMap<Position, Arc<Segment>>> {
        self.segments
            .read()
            .expect("nothing panics while it holds this lock")
    }

    fn segments_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<Position, Arc<Segment>>> {
        self.segments
            .write()
            .expect("nothing panics while it holds this lock")
    }

    /// Where the oldest segment begins.
    fn first(&self) -> Position {
        let segments = self.segments();
        *segments
            .keys()
            .next()
            .expect("the segment that takes frames is never removed")
    }
}

fn to_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("a length in memory fits in 64 bits")
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("what stands in one segment fits in memory")
}
