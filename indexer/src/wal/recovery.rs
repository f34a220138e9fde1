//! Opening a log: checks every frame of every segment, cuts a torn tail, and refuses anything else.
//!
//! A process that dies in a write leaves a piece of a frame, or zeros, at the end of the last segment, and nothing
//! whole after it: a torn tail, never acknowledged as durable, and cut. A broken frame with a whole one somewhere
//! after it, or in a segment that has a successor, is damage: bytes that were there are not any more, and the error
//! names the file and the byte. Cutting there would throw whole frames away, so that is left to a person (or to
//! whoever can fill the log again from its source).
//!
//! A loss of power can persist later pages of an unsynced tail and not earlier ones. That looks like damage and is
//! reported as damage: the two cannot be told apart without trusting what the disk says of itself.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, RwLock, atomic::AtomicU64},
};

use shoal_runtime::ErrorKind;

use super::{
    Config, Opened, Position, Shared, Wal,
    disk::{Disk, Real, is_full},
    frame,
    scan::{Frames, ScanFailure},
    segment::{self, Damage, HEADER_BYTES, Segment},
    sync::Group,
    to_u64, to_usize,
};

/// Why a log was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another `Wal` of this one, has it open.
    #[error("log `{}` is held by another owner", .dir.display())]
    Held {
        /// The log's directory.
        dir: PathBuf,
    },
    /// A file ends in `.wal` and is named as no segment is.
    #[error("file `{}` is in the log but has no segment's name", .path.display())]
    Stray {
        /// The file.
        path: PathBuf,
    },
    /// A newer Shoal wrote it.
    #[error("segment `{}` has format version {found}, the newest known is {known}", .path.display())]
    Version {
        /// The segment.
        path: PathBuf,
        /// What its header says.
        found: u32,
        /// What this build reads.
        known: u32,
    },
    /// Stored bytes are wrong, and not as a torn tail is.
    #[error("segment `{}` is damaged at byte {offset}", .path.display())]
    Corrupt {
        /// The segment.
        path: PathBuf,
        /// Byte in the file where the damaged part begins.
        offset: u64,
        /// What is wrong there.
        #[source]
        damage: Damage,
    },
    /// The disk failed, or is full.
    #[error("cannot {action} `{}`", .path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Held { .. } => ErrorKind::Retry,
            Self::Stray { .. } | Self::Version { .. } => ErrorKind::Caller,
            Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Disk { source, .. } if is_full(source) => ErrorKind::Retry,
            Self::Disk { .. } => ErrorKind::Closed,
        }
    }

    fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Disk {
            action,
            path: path.to_owned(),
            source,
        }
    }

    fn corrupt(segment: &Segment, offset: u64, damage: Damage) -> Self {
        Self::Corrupt {
            path: segment.path.clone(),
            offset,
            damage,
        }
    }
}

impl Wal {
    /// Opens the log in `dir`, which is created if missing.
    ///
    /// Reads every frame once. A torn tail of the last segment is cut. What is left is durable.
    ///
    /// # Errors
    /// See [`OpenError`]. Nothing is changed on disk if it is `Corrupt`, `Stray`, `Version` or `Held`.
    pub fn open(dir: &Path, config: &Config) -> Result<(Self, Opened), OpenError> {
        Self::open_on(Arc::new(Real), dir, config)
    }

    /// Opens the log on a given disk.
    ///
    /// # Errors
    /// As [`Wal::open`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: &Config,
    ) -> Result<(Self, Opened), OpenError> {
        disk.create_dir(dir)
            .map_err(OpenError::disk("create directory", dir))?;
        let hold = disk.hold(dir).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => OpenError::Held {
                dir: dir.to_owned(),
            },
            _ => OpenError::disk("lock directory", dir)(source),
        })?;
        let mut segments = list(&*disk, dir)?;
        let Tail {
            end,
            torn_bytes,
            active,
        } = match segments.pop() {
            Some(last) => recover(&segments, last)?,
            None => Tail::create(&*disk, dir, config.first)?,
        };
        // A former process may have flushed without syncing, or died before it synced the directory.
        active
            .file
            .sync()
            .map_err(OpenError::disk("fsync segment", &active.path))?;
        disk.sync_dir(dir)
            .map_err(OpenError::disk("fsync directory", dir))?;
        segments.push(Arc::clone(&active));
        let segments: BTreeMap<_, _> = segments
            .into_iter()
            .map(|segment| (segment.base, segment))
            .collect();
        let shared = Shared {
            disk,
            dir: dir.to_owned(),
            flushed: AtomicU64::new(end.as_u64()),
            segments: RwLock::new(segments),
            group: Group::new(Arc::clone(&active), end),
        };
        let opened = Opened {
            torn_bytes,
            first: shared.first(),
            end,
        };
        let wal = Self {
            shared: Arc::new(shared),
            config: config.clone(),
            active,
            buffer: Vec::new(),
            end,
            _hold: hold,
        };
        Ok((wal, opened))
    }
}

/// The last segment, as it goes on.
struct Tail {
    end: Position,
    torn_bytes: u64,
    active: Arc<Segment>,
}

impl Tail {
    /// The first segment of a new log.
    fn create(disk: &dyn Disk, dir: &Path, first: Position) -> Result<Self, OpenError> {
        let created = Segment::create(disk, dir, first)
            .map_err(|failure| OpenError::disk("create segment", &failure.path)(failure.source))?;
        Ok(Self {
            end: first,
            torn_bytes: 0,
            active: Arc::new(created),
        })
    }
}

/// All segments in `dir`, open, in order.
fn list(disk: &dyn Disk, dir: &Path) -> Result<Vec<Arc<Segment>>, OpenError> {
    let names = disk
        .list(dir)
        .map_err(OpenError::disk("list directory", dir))?;
    let mut segments = Vec::new();
    for name in names {
        let path = dir.join(&name);
        let base = match segment::decode_name(&name.to_string_lossy()) {
            None => continue,
            Some(None) => return Err(OpenError::Stray { path }),
            Some(Some(base)) => base,
        };
        let opened = Segment::open(disk, path.clone(), base)
            .map_err(OpenError::disk("open segment", &path))?;
        segments.push(Arc::new(opened));
    }
    segments.sort_by_key(|segment| segment.base);
    Ok(segments)
}

/// Checks all segments, and cuts the tail of the last one if it is torn.
fn recover(whole: &[Arc<Segment>], last: Arc<Segment>) -> Result<Tail, OpenError> {
    let mut block = Vec::new();
    let nexts = whole.iter().skip(1).chain([&last]);
    for (segment, next) in whole.iter().zip(nexts) {
        let file_bytes = file_bytes(segment)?;
        check_header(segment, file_bytes)?;
        let scan = Scan::run(segment, file_bytes, &mut block)?;
        if let Some(fault) = scan.broken {
            let offset = segment.offset(scan.end);
            return Err(OpenError::corrupt(segment, offset, Damage::Frame(fault)));
        }
        if scan.end != next.base {
            let damage = Damage::Gap {
                end: scan.end,
                next: next.base,
            };
            return Err(OpenError::corrupt(segment, file_bytes, damage));
        }
    }

    let last_bytes = file_bytes(&last)?;
    match check_header(&last, last_bytes) {
        Ok(()) => {}
        // No frame can be lost: frames come only after the header is durable.
        Err(OpenError::Corrupt { .. }) if last_bytes <= HEADER_BYTES => {
            write_header_again(&last)?;
            return Ok(Tail {
                end: last.base,
                torn_bytes: last_bytes,
                active: last,
            });
        }
        Err(error) => return Err(error),
    }
    let scan = Scan::run(&last, last_bytes, &mut block)?;
    if let Some(fault) = scan.broken {
        let offset = last.offset(scan.end);
        if has_frame_after(&last, scan.end, last_bytes - offset)? {
            return Err(OpenError::corrupt(&last, offset, Damage::Frame(fault)));
        }
        last.cut(scan.end)
            .map_err(OpenError::disk("cut the torn tail of segment", &last.path))?;
    }
    Ok(Tail {
        end: scan.end,
        torn_bytes: last_bytes - last.offset(scan.end),
        active: last,
    })
}

fn file_bytes(segment: &Segment) -> Result<u64, OpenError> {
    segment
        .file
        .bytes()
        .map_err(OpenError::disk("read segment", &segment.path))
}

fn check_header(segment: &Segment, file_bytes: u64) -> Result<(), OpenError> {
    let header = segment
        .read_header(file_bytes)
        .map_err(OpenError::disk("read segment", &segment.path))?;
    let header =
        segment::decode_header(&header).map_err(|damage| OpenError::corrupt(segment, 0, damage))?;
    if header.version != segment::VERSION {
        return Err(OpenError::Version {
            path: segment.path.clone(),
            found: header.version,
            known: segment::VERSION,
        });
    }
    if header.base != segment.base {
        let damage = Damage::Base {
            header: header.base,
            name: segment.base,
        };
        return Err(OpenError::corrupt(segment, 0, damage));
    }
    Ok(())
}

fn write_header_again(segment: &Segment) -> Result<(), OpenError> {
    let written = segment.file.set_bytes(0);
    written
        .and_then(|()| segment.write_header())
        .map_err(OpenError::disk("write segment", &segment.path))
}

/// How far the whole frames of a segment go, and why no further if not to the end of the file.
struct Scan {
    end: Position,
    broken: Option<frame::Fault>,
}

impl Scan {
    fn run(
        segment: &Arc<Segment>,
        file_bytes: u64,
        block: &mut Vec<u8>,
    ) -> Result<Self, OpenError> {
        let limit = segment.base.plus(file_bytes.saturating_sub(HEADER_BYTES));
        let room = std::mem::take(block);
        let mut frames = Frames::new(Arc::clone(segment), segment.base, limit, room);
        let broken = loop {
            match frames.advance() {
                Ok(()) if frames.is_at_limit() => break None,
                Ok(()) => {}
                Err(ScanFailure::Broken(_, fault)) => break Some(fault),
                Err(ScanFailure::Read(source)) => {
                    return Err(OpenError::disk("read segment", &segment.path)(source));
                }
            }
        };
        let end = frames.position();
        *block = frames.into_block();
        Ok(Self { end, broken })
    }
}

/// Whether a whole frame stands anywhere after the start of a broken one, `left_bytes` before the end of the file.
///
/// The broken frame's length cannot be trusted, so every byte may be a start. That is quick: few have a length that
/// fits, and a checksum covers the position too, so that none passes by being inside a payload.
fn has_frame_after(
    segment: &Segment,
    broken: Position,
    left_bytes: u64,
) -> Result<bool, OpenError> {
    let mut rest = vec![0; to_usize(left_bytes)];
    segment
        .read(broken, &mut rest)
        .map_err(OpenError::disk("read segment", &segment.path))?;
    let mut starts = 1..rest.len();
    Ok(starts.any(|start| {
        let at = broken.plus(to_u64(start));
        let bytes = rest.get(start..).unwrap_or_default();
        frame::decode(at, bytes).is_ok()
    }))
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
