//! Checkpoints: the state of one moment on disk, so that a restart replays only what came after.
//!
//! `checkpoint/manifest-<number>.json` names everything: the position in the shard's own log, the
//! next offset of every source, the digest, and for each segment its graph and rows files with
//! their lengths and checksums. It is written last, under a temporary name, and renamed; the
//! catalog is stored just before, marked with the same number. Files it does not name are left
//! over from a crash and are removed.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use shoal_runtime::crash;
use shoal_schemas::{Offset, RegionName, Source, TopicId, digest::Digest};

use crate::{
    catalog::CatalogError,
    index::packed,
    segment::{
        Segment, SegmentId, Sequence,
        files::{self, FileError, FileMark, Sink, damaged, io_error, sync_folder},
        growing::Growing,
        seal::{MANIFEST_FILE, Shape},
    },
    shard::{
        FolderError, Shared, growing_file,
        leftover::{graph_name, mask_name, remove_files_of, remove_left_over, rows_name},
        make_folder, riders_file,
        save::Point,
    },
    wal::{self, Position},
};

const FORMAT: u32 = 2;

/// What one checkpoint is to hold. Made by the writer between two turns.
pub struct Job {
    /// Its number, above every earlier one.
    pub number: u64,
    /// The own log's end; replay starts here.
    pub position: Position,
    /// Nothing of it needs the own log below this.
    pub needed_from: Position,
    /// Wall time when it was taken, milliseconds since the Unix epoch.
    pub taken_ms: u64,
    /// Rows that ended after this count as alive.
    pub sequence: Sequence,
    /// Sources in the order of their index, with their next offset.
    pub sources: Vec<SourceState>,
    /// Digest at this moment.
    pub digest: Digest,
    /// Contested ids.
    pub contested: u64,
    /// Served points.
    pub points: u64,
    /// Each segment with its number of rows and of entries, the growing one last. What came later
    /// is replayed, and must not be known before.
    pub segments: Vec<(Arc<Segment>, u32, usize)>,
    /// Number of the next new segment.
    pub next_segment: u32,
}

/// The end of a [`Job`].
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// See [`Job::position`].
    pub position: Position,
    /// See [`Job::needed_from`].
    pub needed_from: Position,
    /// Whether it is on disk.
    pub stored: bool,
}

/// One source as a checkpoint keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceState {
    /// The partition.
    pub source: Source,
    /// The region of its records.
    pub region: RegionName,
    /// Kafka's id of the topic, where a broker has told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_id: Option<TopicId>,
    /// First offset not applied.
    pub next: Offset,
}

/// The manifest of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// See [`Job::number`].
    pub number: u64,
    position: u64,
    /// See [`Job::taken_ms`].
    pub taken_ms: u64,
    /// See [`Job::sources`].
    pub sources: Vec<SourceState>,
    digest: String,
    /// See [`Job::contested`].
    pub contested: u64,
    /// See [`Job::points`].
    pub points: u64,
    /// See [`Job::next_segment`].
    pub next_segment: u32,
    /// What the graphs were made with.
    pub graph: Shape,
    /// Oldest first; the last one is growing.
    pub segments: Vec<SegmentFiles>,
}

/// One segment as a checkpoint keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentFiles {
    /// Its number.
    pub id: u32,
    /// Its rows.
    pub rows: u32,
    /// Rows that had ended.
    pub dead: u32,
    /// Its files.
    pub kept: Kept,
    /// Which rows ride on its own; absent while none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub riders_file: Option<FileMark>,
}

/// The files of a segment, by what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// It takes rows; their points stand in the own log.
    Growing {
        /// Rows that are in the graph.
        folded: u32,
        /// Deletes and refusals.
        entries: usize,
        /// Nothing of it stands before this place of the own log.
        from: u64,
        /// The graph; absent while no row is folded.
        graph_file: Option<FileMark>,
        /// The rows and entries.
        rows_file: FileMark,
    },
    /// Its folder holds everything.
    Sealed {
        /// The folder's own manifest.
        manifest: FileMark,
        /// Which rows have ended; absent while none has.
        mask_file: Option<FileMark>,
    },
}

/// Why a checkpoint was not stored or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A folder.
    #[error("checkpoint folder fails")]
    Folder(#[from] FolderError),
    /// A file.
    #[error("a file of the checkpoint fails")]
    File(#[from] FileError),
    /// A graph is not stored.
    #[error("graph of segment {segment} cannot be stored")]
    Graph {
        /// The segment's number.
        segment: u32,
        /// What failed.
        #[source]
        source: packed::WriteError,
    },
    /// The own log could not be made durable.
    #[error("the shard's log could not be made durable")]
    Log(#[from] wal::SyncError),
    /// The catalog.
    #[error("the catalog could not be stored")]
    Catalog(#[from] CatalogError),
}

impl Manifest {
    /// See [`Job::position`].
    pub fn position(&self) -> Position {
        Position::new(self.position)
    }

    /// See [`Job::digest`].
    ///
    /// # Errors
    /// [`CheckpointError::File`].
    pub fn digest(&self) -> Result<Digest, CheckpointError> {
        let raw = u128::from_str_radix(&self.digest, 16)
            .map_err(|_| damaged(Path::new("manifest"), "digest is no hexadecimal number"))?;
        Ok(Digest::from_bytes(raw.to_be_bytes()))
    }

    /// Where it stands in the checkpoint folder.
    pub(super) fn path(folder: &Path, number: u64) -> PathBuf {
        folder.join(manifest_name(number))
    }

    /// Where it stands until everything it names is written.
    pub(super) fn temporary(folder: &Path, number: u64) -> PathBuf {
        Self::path(folder, number).with_extension("tmp")
    }

    /// Reads the newest manifest of a folder; `None` if there is none.
    ///
    /// # Errors
    /// [`CheckpointError`]; the shard's own log is whole, so it can be replayed instead.
    pub fn newest(folder: &Path) -> Result<Option<Self>, CheckpointError> {
        let Some(path) = manifests(folder)?.pop() else {
            return Ok(None);
        };
        let bytes = fs::read(&path).map_err(io_error(&path))?;
        let (body, mark) = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .map(|end| bytes.split_at(end))
            .ok_or_else(|| damaged(&path, "it has one line, two are written"))?;
        let expected = format!("{:08x}", crc32fast::hash(body));
        if mark.trim_ascii() != expected.as_bytes() {
            return Err(damaged(&path, "its checksum does not fit").into());
        }
        let manifest: Self =
            serde_json::from_slice(body).map_err(|error| damaged(&path, error.to_string()))?;
        if manifest.format != FORMAT {
            let detail = format!("format is {}, this version reads {FORMAT}", manifest.format);
            return Err(damaged(&path, detail).into());
        }
        Ok(Some(manifest))
    }

    /// A manifest of a moment that is copied.
    pub(super) fn of_save(point: &Point, graph: Shape, segments: Vec<SegmentFiles>) -> Self {
        Self {
            format: FORMAT,
            number: point.number,
            position: point.position.as_u64(),
            taken_ms: point.taken_ms,
            sources: point.sources.clone(),
            digest: point.digest.to_string(),
            contested: point.contested,
            points: point.points,
            next_segment: point.next_segment,
            graph,
            segments,
        }
    }

    /// Its bytes on disk: a line of JSON and a line with that one's CRC-32.
    ///
    /// # Errors
    /// [`CheckpointError::File`].
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>, CheckpointError> {
        let name = PathBuf::from(manifest_name(self.number));
        let mut body =
            serde_json::to_vec(self).map_err(|error| damaged(&name, error.to_string()))?;
        let mark = format!("\n{:08x}\n", crc32fast::hash(&body));
        body.extend_from_slice(mark.as_bytes());
        Ok(body)
    }

    /// Writes it under a name that does not count yet.
    fn write_beside(&self, folder: &Path) -> Result<PathBuf, CheckpointError> {
        let body = self.to_bytes()?;
        let temporary = Self::temporary(folder, self.number);
        let mut file = File::create(&temporary).map_err(io_error(&temporary))?;
        file.write_all(&body)
            .and_then(|()| file.sync_all())
            .map_err(io_error(&temporary))?;
        Ok(temporary)
    }

    /// Gives it the name that counts.
    fn publish(&self, folder: &Path, temporary: &Path) -> Result<(), CheckpointError> {
        let path = Self::path(folder, self.number);
        fs::rename(temporary, &path).map_err(io_error(&path))?;
        Ok(sync_folder(folder)?)
    }
}

/// The name of a manifest's file.
pub(super) fn manifest_name(number: u64) -> String {
    format!("manifest-{number:020}.json")
}

/// The highest number any manifest of a folder has had; 0 if there is none.
///
/// # Errors
/// [`CheckpointError::File`].
pub fn highest_number(folder: &Path) -> Result<u64, CheckpointError> {
    if !folder.exists() {
        return Ok(0);
    }
    let numbers = manifests(folder)?.into_iter().filter_map(|path| {
        let stem = path.file_stem()?.to_str()?;
        stem.strip_prefix("manifest-")?.parse().ok()
    });
    Ok(numbers.max().unwrap_or(0))
}

/// The manifests in a folder, oldest first.
pub(super) fn manifests(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Stores checkpoints of one shard and remembers which files are still good.
#[derive(Default)]
pub struct Storer {
    stored: HashMap<SegmentId, SegmentFiles>,
}

impl Storer {
    /// Goes on from the checkpoint the shard was recovered from.
    pub fn new(manifest: Option<&Manifest>) -> Self {
        let segments = manifest
            .map(|one| one.segments.as_slice())
            .unwrap_or_default();
        let stored = segments
            .iter()
            .map(|files| (SegmentId(files.id), files.clone()));
        Self {
            stored: stored.collect(),
        }
    }

    /// Stores one checkpoint. The graphs must not be added to meanwhile.
    ///
    /// # Errors
    /// [`CheckpointError`]; the earlier checkpoint is still whole, and the same job may be tried
    /// again.
    pub fn store(&mut self, shared: &Shared, job: &Job) -> Result<(), CheckpointError> {
        let folder = shared.spec.checkpoint_folder();
        make_folder(&folder)?;
        shared.syncer.sync()?;
        let prepared = self.prepare(shared, job, &folder);
        // Nothing names its files yet, and they take the room that the next try needs.
        let (manifest, temporary) = prepared.inspect_err(|_| remove_files_of(shared, job))?;
        manifest.publish(&folder, &temporary)?;
        crash::point("checkpoint_manifest");
        self.stored = manifest
            .segments
            .iter()
            .map(|files| (SegmentId(files.id), files.clone()))
            .collect();
        remove_left_over(shared, &manifest)
    }

    /// Writes everything, the manifest under a temporary name.
    fn prepare(
        &self,
        shared: &Shared,
        job: &Job,
        folder: &Path,
    ) -> Result<(Manifest, PathBuf), CheckpointError> {
        let mut segments = Vec::with_capacity(job.segments.len());
        for (segment, rows, entries) in &job.segments {
            let files = self.store_segment(shared, job, segment, (*rows, *entries))?;
            segments.push(files);
        }
        crash::point("checkpoint_segments");
        shared.catalog.store_frozen(job.number)?;
        crash::point("checkpoint_catalog");
        let manifest = Manifest {
            format: FORMAT,
            number: job.number,
            position: job.position.as_u64(),
            taken_ms: job.taken_ms,
            sources: job.sources.clone(),
            digest: job.digest.to_string(),
            contested: job.contested,
            points: job.points,
            next_segment: job.next_segment,
            graph: shared.spec.shape(),
            segments,
        };
        let temporary = manifest.write_beside(folder)?;
        Ok((manifest, temporary))
    }

    fn store_segment(
        &self,
        shared: &Shared,
        job: &Job,
        segment: &Segment,
        (rows, entries): (u32, usize),
    ) -> Result<SegmentFiles, CheckpointError> {
        let ended = |row: u32| segment.end_of(row).is_some_and(|at| at <= job.sequence);
        let dead = u32::try_from((0..rows).filter(|row| ended(*row)).count()).unwrap_or(u32::MAX);
        let earlier = self.stored.get(&segment.id);
        let kept = match (segment.as_sealed(), segment.as_growing()) {
            (Some(sealed), _) => {
                let same = earlier.filter(|files| files.dead == dead);
                match same.map(|files| &files.kept) {
                    Some(kept @ Kept::Sealed { .. }) => kept.clone(),
                    _ => Kept::Sealed {
                        manifest: files::mark(&sealed.folder().join(MANIFEST_FILE))?,
                        mask_file: match dead {
                            0 => None,
                            _ => Some(write_mask(sealed.folder(), job.number, rows, ended)?),
                        },
                    },
                }
            }
            (None, Some(growing)) => store_growing(
                shared,
                job,
                (segment, growing),
                (rows, dead, entries),
                earlier,
            )?,
            (None, None) => unreachable!("a segment is sealed or growing"),
        };
        let folder = match &kept {
            Kept::Sealed { .. } => shared.spec.segment_folder(segment.id),
            Kept::Growing { .. } => shared.spec.growing_folder(segment.id),
        };
        // One that stands in the folder of before it was sealed is not beside it now.
        let earlier = earlier
            .filter(|files| std::mem::discriminant(&files.kept) == std::mem::discriminant(&kept));
        let riders_file = riders_file::write(
            &folder,
            job.number,
            (segment, rows),
            job.sequence,
            |id| {
                let mut segments = job.segments.iter().map(|(segment, ..)| &**segment);
                segments.find(|segment| segment.id == id)
            },
            earlier.and_then(|files| files.riders_file.as_ref()),
        )?;
        Ok(SegmentFiles {
            id: segment.id.0,
            rows,
            dead,
            kept,
            riders_file,
        })
    }
}

fn store_growing(
    shared: &Shared,
    job: &Job,
    (segment, growing): (&Segment, &Growing),
    (rows, dead, entries_now): (u32, u32, usize),
    earlier: Option<&SegmentFiles>,
) -> Result<Kept, CheckpointError> {
    let folded_now = growing.folded().min(rows);
    let mut earlier_graph = None;
    if let Some(files) = earlier
        && let Kept::Growing {
            folded,
            entries,
            graph_file,
            ..
        } = &files.kept
        && *folded == folded_now
    {
        if (files.rows, files.dead, *entries) == (rows, dead, entries_now) {
            return Ok(files.kept.clone());
        }
        earlier_graph = graph_file.clone();
    }
    let folder = shared.spec.growing_folder(segment.id);
    make_folder(&folder)?;
    let graph_file = match earlier_graph {
        Some(mark) => Some(mark),
        None if growing.graph.rows() == 0 => None,
        None => {
            let mut sink = Sink::create(folder.join(graph_name(job.number)))?;
            let written = growing.graph.write(&mut sink);
            written.map_err(|source| CheckpointError::Graph {
                segment: segment.id.0,
                source,
            })?;
            Some(sink.finish()?)
        }
    };
    let path = folder.join(rows_name(job.number));
    let rows_file = growing_file::write(&path, Some(segment), (rows, entries_now), job.sequence)?;
    sync_folder(&folder)?;
    Ok(Kept::Growing {
        folded: folded_now,
        entries: entries_now,
        from: growing.from.as_u64(),
        graph_file,
        rows_file,
    })
}

/// Writes which rows have ended, a bit a row.
pub(super) fn write_mask(
    folder: &Path,
    number: u64,
    rows: u32,
    ended: impl Fn(u32) -> bool,
) -> Result<FileMark, CheckpointError> {
    let mut sink = Sink::create(folder.join(mask_name(number)))?;
    let mut bits = vec![0u8; usize::try_from(rows.div_ceil(8)).unwrap_or_default()];
    for row in (0..rows).filter(|row| ended(*row)) {
        if let Some(byte) = bits.get_mut(usize::try_from(row / 8).unwrap_or(usize::MAX)) {
            *byte |= 1 << (row % 8);
        }
    }
    sink.put(&bits)?;
    let mark = sink.finish()?;
    sync_folder(folder)?;
    Ok(mark)
}

/// Ends the rows of a segment that a mask says have ended.
///
/// # Errors
/// [`CheckpointError::File`].
pub fn apply_mask(
    segment: &Segment,
    folder: &Path,
    mark: &FileMark,
) -> Result<(), CheckpointError> {
    let path = files::verify(folder, mark)?;
    let bits = fs::read(&path).map_err(io_error(&path))?;
    for (at, byte) in (0u32..).zip(bits) {
        for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
            segment.end(at * 8 + bit, Sequence::default());
        }
    }
    Ok(())
}
