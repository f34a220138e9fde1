//! Limits of the node: memory and disk. A reached one stops ingest, never searches.
//!
//! What is measured is what only this process can give back: its anonymous memory. Mapped files
//! are the kernel's to drop. Ingest stops at nine tenths of the budget, and goes on below eight and a
//! half. What is under way by then has the tenth that is left: all shards together fetch a fiftieth
//! ahead, which as points takes some four times as much, and between two looks at the memory they take no more than
//! fits below the nine tenths. On a disk ingest stops while there is still room
//! for a checkpoint and for sealing, which free space. The log it does not read meanwhile is Kafka's.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use bytesize::ByteSize;
use tracing::{info, warn};

/// Share of the memory budget at which ingest stops.
const STOP_SHARE: f64 = 0.9;
/// Share below which it goes on.
const RESUME_SHARE: f64 = 0.85;
/// All shards together fetch no more ahead than the memory budget divided by this.
const AHEAD_SHARE: u64 = 50;
/// A record's bytes as a point, as a record and in the shard's log take some so many times as much.
const GROWS_TO: u64 = 4;
/// No shard fetches less ahead.
const LEAST_AHEAD: u64 = 64 << 10;
/// How many times the least free space there has to be before ingest goes on.
const RESUME_FREE: f64 = 1.1;

/// What may be used.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Anonymous memory; none is no limit.
    pub memory: Option<ByteSize>,
    /// Free space to leave on the disk of `folder`.
    pub free_disk: ByteSize,
    /// The folder.
    pub folder: PathBuf,
}

/// What is used, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Anonymous memory, bytes.
    pub memory_bytes: u64,
    /// Free space of the disk, bytes; `None` if it could not be asked for.
    pub free_bytes: Option<u64>,
}

/// A limit that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// The memory budget. Sealing what grows gives some back.
    Memory,
    /// The disk.
    Disk,
}

impl Reached {
    /// What a person is told who asks why nothing new comes.
    pub fn told(self) -> &'static str {
        match self {
            Self::Memory => "the memory budget is reached",
            Self::Disk => "the disk is full",
        }
    }
}

/// Whether a limit is reached, for every shard of a node to see.
#[derive(Debug, Default)]
pub struct Pressure {
    reached: Mutex<Option<Reached>>,
    /// Of the node; none is no limit.
    memory: Option<ByteSize>,
    shards: AtomicU64,
    /// Bytes of records taken since memory was measured.
    taken: AtomicU64,
    /// Memory that was used then.
    used: AtomicU64,
}

impl Pressure {
    /// No limit is reached yet; `memory` is the node's budget.
    pub fn new(memory: Option<ByteSize>) -> Self {
        Self {
            memory,
            ..Self::default()
        }
    }

    /// Says how many shards share the budget.
    pub fn set_shards(&self, shards: usize) {
        let shards = u64::try_from(shards).unwrap_or(u64::MAX);
        self.shards.store(shards, Ordering::Relaxed);
    }

    /// Bytes of records that a shard may hold which it has not taken yet; `None` if memory is not limited.
    pub fn ahead_bytes(&self) -> Option<u64> {
        let shards = self.shards.load(Ordering::Relaxed).max(1);
        let all = self.memory?.as_u64() / AHEAD_SHARE;
        Some((all / shards).max(LEAST_AHEAD))
    }

    /// The limit that is reached, if one is.
    pub fn reached(&self) -> Option<Reached> {
        *self.lock()
    }

    /// Whether more may be taken before memory is measured again: what was taken since will not reach the limit.
    pub fn may_take(&self) -> bool {
        let Some(budget) = self.memory else {
            return true;
        };
        let taken = self.taken.load(Ordering::Relaxed).saturating_mul(GROWS_TO);
        let used = self.used.load(Ordering::Relaxed).saturating_add(taken);
        // At the limit itself it is for the next measurement to say.
        taken == 0 || number(used) < number(budget.as_u64()) * STOP_SHARE
    }

    /// Notes that a shard took so many bytes of records.
    pub fn took(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes a measurement in, and says it when ingest stops or goes on.
    pub fn update(&self, limits: &Limits, used: Used) {
        self.used.store(used.memory_bytes, Ordering::Relaxed);
        self.taken.store(0, Ordering::Relaxed);
        let mut reached = self.lock();
        let next = judge(limits, used, *reached);
        if next == *reached {
            return;
        }
        match next {
            Some(Reached::Memory) => warn!(
                used = %ByteSize(used.memory_bytes),
                budget = %limits.memory.unwrap_or_default(),
                "memory budget is reached: ingest stops, searches go on; raise indexer.memory_budget or move shards to another node"
            ),
            Some(Reached::Disk) => warn!(
                free = %ByteSize(used.free_bytes.unwrap_or_default()),
                kept_free = %limits.free_disk,
                folder = %limits.folder.display(),
                "disk is nearly full: ingest stops, searches go on; make room or lower indexer.min_free_disk"
            ),
            None => info!("ingest goes on, no limit is reached any more"),
        }
        *reached = next;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Reached>> {
        self.reached.lock().expect("nothing panics under this lock")
    }
}

/// Which limit is reached now, after `before`.
fn judge(limits: &Limits, used: Used, before: Option<Reached>) -> Option<Reached> {
    let memory_share = if before == Some(Reached::Memory) {
        RESUME_SHARE
    } else {
        STOP_SHARE
    };
    let over_memory = limits
        .memory
        .is_some_and(|budget| number(used.memory_bytes) >= number(budget.as_u64()) * memory_share);
    if over_memory {
        return Some(Reached::Memory);
    }
    let keep = if before == Some(Reached::Disk) {
        RESUME_FREE
    } else {
        1.0
    };
    let over_disk = used
        .free_bytes
        .is_some_and(|free| number(free) < number(limits.free_disk.as_u64()) * keep);
    over_disk.then_some(Reached::Disk)
}

/// What this process uses now.
///
/// # Errors
/// The system's own, if it does not tell.
pub fn measure(folder: &Path) -> io::Result<Used> {
    let status = fs::read_to_string("/proc/self/status")?;
    let memory_bytes = anonymous_bytes(&status)
        .ok_or_else(|| io::Error::other("/proc/self/status has no RssAnon"))?;
    Ok(Used {
        memory_bytes,
        free_bytes: free_bytes(folder),
    })
}

/// Free space of the disk of a folder, bytes; `None` if it cannot be asked for.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(folder).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// `RssAnon` of a process status, bytes.
fn anonymous_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "a share of gigabytes is not told to the byte"
)]
fn number(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use bytesize::ByteSize;

    use super::{Limits, Pressure, Reached, Used, anonymous_bytes, measure};

    fn limits() -> Limits {
        Limits {
            memory: Some(ByteSize(1000)),
            free_disk: ByteSize(100),
            folder: "/".into(),
        }
    }

    #[test]
    fn ingest_stops_below_a_limit_and_goes_on_some_way_further_down() {
        let pressure = Pressure::default();
        let after = |memory_bytes, free| {
            let used = Used {
                memory_bytes,
                free_bytes: Some(free),
            };
            pressure.update(&limits(), used);
            pressure.reached()
        };
        assert_eq!(after(899, 1000), None);
        assert_eq!(after(900, 1000), Some(Reached::Memory));
        assert_eq!(after(851, 1000), Some(Reached::Memory));
        assert_eq!(after(849, 1000), None);
        assert_eq!(after(0, 99), Some(Reached::Disk));
        assert_eq!(after(0, 109), Some(Reached::Disk));
        assert_eq!(after(0, 111), None);
    }

    #[test]
    fn shards_share_what_is_fetched_ahead_and_each_may_fetch_some() {
        let pressure = Pressure::new(Some(ByteSize::mib(800)));
        assert_eq!(pressure.ahead_bytes(), Some(16 << 20));
        pressure.set_shards(16);
        assert_eq!(pressure.ahead_bytes(), Some(1 << 20));
        pressure.set_shards(4096);
        assert_eq!(pressure.ahead_bytes(), Some(64 << 10));
    }

    #[test]
    fn between_two_measurements_shards_take_what_fits_below_the_limit_and_something_always() {
        let pressure = Pressure::new(limits().memory);
        let measured = |memory_bytes| {
            let used = Used {
                memory_bytes,
                free_bytes: None,
            };
            pressure.update(&limits(), used);
        };
        measured(500);
        pressure.took(99);
        assert!(pressure.may_take());
        pressure.took(1);
        assert!(!pressure.may_take(), "500 and 4 times 100 are the limit");
        measured(899);
        assert!(pressure.may_take());
        pressure.took(1);
        assert!(!pressure.may_take());
    }

    #[test]
    fn without_a_budget_memory_is_not_limited() {
        assert_eq!(Pressure::default().ahead_bytes(), None);
        let pressure = Pressure::default();
        pressure.took(u64::MAX / 2);
        assert!(pressure.may_take());
        let used = Used {
            memory_bytes: u64::MAX,
            free_bytes: None,
        };
        pressure.update(&Limits::default(), used);
        assert_eq!(pressure.reached(), None);
    }

    #[test]
    fn a_process_is_measured() {
        assert_eq!(
            anonymous_bytes("VmRSS:\t 9 kB\nRssAnon:\t  12 kB\n"),
            Some(12 * 1024)
        );
        let used = measure(std::path::Path::new("/")).unwrap();
        assert!(used.memory_bytes > 1 << 16);
        assert!(used.free_bytes.is_some());
    }
}
