//! A shard's moment, held so that it can be copied: what a snapshot is made of.
//!
//! The writer ends the growing segment and notes the moment; the builder seals what is
//! full and compacts nothing meanwhile; so a little later everything from before the moment lies in
//! files that do not change, and which rows had ended by then is known from their sequence. Ingest
//! and searches go on. What has no row yet, deletes and refusals since the last seal, goes
//! into an empty growing segment of the copy.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use shoal_runtime::clock::Stopwatch;
use shoal_schemas::digest::Digest;

use crate::{
    segment::{
        Segment, SegmentId, Sequence,
        files::{self, FileError, FileMark, io_error},
        seal::{self, MANIFEST_FILE},
    },
    shard::{
        FolderError, Shared,
        checkpoint::{self, CheckpointError, Kept, Manifest, SegmentFiles, SourceState},
        growing_file, lock, make_folder,
        recover::IDENTITY_FILE,
        riders_file,
    },
    snapshot::{Content, SnapshotFile, SourceNext},
    wal::Position,
};

/// Longest wait for the segments of a moment to be sealed.
const PATIENCE: Duration = Duration::from_secs(300);

/// A moment of a shard.
#[derive(Clone, Debug)]
pub(super) struct Point {
    /// Number of the manifest.
    pub(super) number: u64,
    /// The own log's end then.
    pub(super) position: Position,
    /// Wall time, milliseconds since the Unix epoch.
    pub(super) taken_ms: u64,
    /// Rows that had ended by then are dead.
    pub(super) sequence: Sequence,
    /// Next offsets.
    pub(super) sources: Vec<SourceState>,
    /// Digest.
    pub(super) digest: Digest,
    /// Contested ids.
    pub(super) contested: u64,
    /// Served points.
    pub(super) points: u64,
    /// Everything of before, oldest first.
    pub(super) segments: Vec<SegmentId>,
    /// The segment that takes rows from then on, and how many entries it had.
    pub(super) growing: (SegmentId, usize),
    /// Number of the next new segment.
    pub(super) next_segment: u32,
}

/// Whether a moment is wanted.
#[derive(Clone, Debug, Default)]
pub(super) enum Save {
    /// No.
    #[default]
    Idle,
    /// Yes, the writer makes one as soon as nothing is being moved.
    Wanted,
    /// It is made, and held.
    Made(Arc<Point>),
}

/// Why a moment is not held.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Another copy is being made.
    #[error("another copy of the shard is being made")]
    Busy,
    /// It takes too long, or the shard is closing.
    #[error("segments were not sealed within {}s, or the shard is closing", PATIENCE.as_secs())]
    Late,
    /// A folder.
    #[error("cannot use the folder of the copy")]
    Folder(#[from] FolderError),
    /// A file.
    #[error("cannot write a file of the copy")]
    File(#[from] FileError),
    /// The manifest.
    #[error("cannot write the manifest of the copy")]
    Manifest(#[from] CheckpointError),
}

/// A moment that is held: its files stay until this is dropped.
pub struct Saved {
    shared: Arc<Shared>,
    /// What there is to copy.
    pub content: Content,
    /// Files that were made for the copy, below a folder of their own.
    made: PathBuf,
    names: HashSet<String>,
}

impl Shared {
    /// Holds a moment of the shard for a copy. Blocks until its segments are sealed.
    ///
    /// # Errors
    /// [`SaveError`]; nothing is held then.
    pub fn save(self: &Arc<Self>) -> Result<Saved, SaveError> {
        {
            let mut save = lock(&self.save);
            if !matches!(*save, Save::Idle) {
                return Err(SaveError::Busy);
            }
            *save = Save::Wanted;
        }
        let made = self.spec.folder.join("saving");
        let saved = self.gather(&made);
        if saved.is_err() {
            self.let_go(&made);
        }
        saved
    }

    fn gather(self: &Arc<Self>, made: &Path) -> Result<Saved, SaveError> {
        let watch = Stopwatch::start();
        let (point, segments) = loop {
            self.work_changed.notify_all();
            if let Save::Made(point) = lock(&self.save).clone()
                && let Some(segments) = self.sealed_of(&point)
            {
                break (point, segments);
            }
            let is_over = self.closed.load(Ordering::Acquire);
            if is_over || watch.elapsed() > PATIENCE {
                return Err(SaveError::Late);
            }
            self.wait_for_room();
        };
        remove(made)?;
        make_folder(made)?;
        let mut copy = Copy::new(made, &self.spec.folder);
        copy.take(IDENTITY_FILE)?;
        let mut kept = Vec::new();
        for segment in &segments {
            kept.push(copy.segment(segment, &segments, &point)?);
        }
        kept.push(copy.growing(self, &point)?);
        let manifest = Manifest::of_save(&point, self.spec.shape(), kept);
        let content = Content {
            manifest_path: format!("checkpoint/{}", checkpoint::manifest_name(point.number)),
            manifest: manifest.to_bytes()?,
            files: copy.files,
            digest: point.digest,
            checkpoint: point
                .sources
                .iter()
                .map(|one| SourceNext {
                    source: one.source.clone(),
                    next: one.next,
                    topic_id: one.topic_id.clone(),
                })
                .collect(),
            taken_ms: point.taken_ms,
            points: point.points,
        };
        Ok(Saved {
            shared: self.clone(),
            content,
            made: made.to_owned(),
            names: copy.made_names,
        })
    }

    /// The segments of a moment, once all of them are sealed.
    fn sealed_of(&self, point: &Point) -> Option<Vec<Arc<Segment>>> {
        let view = self.view.load();
        let sealed = point.segments.iter().map(|id| {
            let segment = view.segment(*id)?;
            segment.as_sealed().is_some().then(|| segment.clone())
        });
        sealed.collect()
    }

    /// Whether segments have to stay as they are.
    pub(super) fn is_saving(&self) -> bool {
        matches!(*lock(&self.save), Save::Made(_))
    }

    fn let_go(&self, made: &Path) {
        // Whatever is left of it is removed before the next one.
        drop(remove(made));
        *lock(&self.save) = Save::Idle;
        self.work_changed.notify_all();
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        self.shared.let_go(&self.made);
    }
}

impl Saved {
    /// Opens one of its files.
    ///
    /// # Errors
    /// The system's own.
    pub fn open_file(&self, path: &str) -> io::Result<File> {
        let root = match self.names.contains(path) {
            true => &self.made,
            false => &self.shared.spec.folder,
        };
        File::open(root.join(path))
    }
}

/// A copy being gathered.
struct Copy<'a> {
    made: &'a Path,
    folder: &'a Path,
    files: Vec<SnapshotFile>,
    made_names: HashSet<String>,
}

impl<'a> Copy<'a> {
    fn new(made: &'a Path, folder: &'a Path) -> Self {
        Self {
            made,
            folder,
            files: Vec::new(),
            made_names: HashSet::new(),
        }
    }

    /// Takes a file of the shard's folder as it is.
    fn take(&mut self, path: &str) -> Result<FileMark, SaveError> {
        let mark = files::mark(&self.folder.join(path))?;
        self.add(path, &mark);
        Ok(mark)
    }

    fn add(&mut self, path: &str, mark: &FileMark) {
        self.files.push(SnapshotFile {
            path: path.to_owned(),
            bytes: mark.bytes,
            crc32: mark.crc32,
        });
    }

    fn segment(
        &mut self,
        segment: &Segment,
        all: &[Arc<Segment>],
        point: &Point,
    ) -> Result<SegmentFiles, SaveError> {
        let folder = format!("segments/{:06}", segment.id.0);
        let manifest = self.take(&format!("{folder}/{MANIFEST_FILE}"))?;
        if let Some(sealed) = segment.as_sealed() {
            for mark in &sealed.manifest.files {
                debug_assert!(seal::FILES.contains(&mark.name.as_str()));
                self.add(&format!("{folder}/{}", mark.name), mark);
            }
        }
        let rows = segment.len();
        let ended = |row: u32| segment.end_of(row).is_some_and(|at| at <= point.sequence);
        let dead = u32::try_from((0..rows).filter(|row| ended(*row)).count()).unwrap_or(u32::MAX);
        let (mut mask_file, mut riders_file) = (None, None);
        // None carries that has not ended.
        if dead > 0 {
            let made = self.made.join(&folder);
            make_folder(&made)?;
            let mask = checkpoint::write_mask(&made, point.number, rows, ended)?;
            mask_file = Some(self.made(&folder, mask));
            let find = |id| all.iter().map(|one| &**one).find(|one| one.id == id);
            let riders = riders_file::write(
                &made,
                point.number,
                (segment, rows),
                point.sequence,
                find,
                None,
            )?;
            riders_file = riders.map(|mark| self.made(&folder, mark));
        }
        Ok(SegmentFiles {
            id: segment.id.0,
            rows,
            dead,
            kept: Kept::Sealed {
                manifest,
                mask_file,
            },
            riders_file,
        })
    }

    /// Adds a file that was made for the copy.
    fn made(&mut self, folder: &str, mark: FileMark) -> FileMark {
        let path = format!("{folder}/{}", mark.name);
        self.add(&path, &mark);
        self.made_names.insert(path);
        mark
    }

    /// The empty segment that takes rows in the copy, with entries that no other segment has.
    fn growing(&mut self, shared: &Shared, point: &Point) -> Result<SegmentFiles, SaveError> {
        let (id, entries) = point.growing;
        let folder = format!("growing/{:06}", id.0);
        make_folder(&self.made.join(&folder))?;
        let path = format!("{folder}/rows-{}.bin", point.number);
        let segment = shared.segment(id);
        let file = self.made.join(&path);
        let rows_file =
            growing_file::write(&file, segment.as_deref(), (0, entries), point.sequence)?;
        self.add(&path, &rows_file);
        self.made_names.insert(path);
        Ok(SegmentFiles {
            id: id.0,
            rows: 0,
            dead: 0,
            kept: Kept::Growing {
                folded: 0,
                entries,
                from: point.position.as_u64(),
                graph_file: None,
                rows_file,
            },
            riders_file: None,
        })
    }
}

fn remove(folder: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(folder)(error)),
        _ => Ok(()),
    }
}
