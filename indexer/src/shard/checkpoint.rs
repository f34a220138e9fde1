//! Checkpoints: the state of one moment on disk, so that a restart replays only what came after.
//!
//! `checkpoint/manifest-<number>.json` names everything: the position in the shard's own log, the
//! next offset of every source, the digest, and for each segment its graph and rows files with
//! their lengths and checksums. It is written last, under a temporary name, and renamed; the
//! catalog is stored just before, marked with the same number. Files it does not name are left
//! over from a crash and are removed.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use shoal_runtime::crash;
use shoal_schemas::{
    Dim, IndexParameters, Metric, Offset, PointId, RegionName, Source, Version,
    digest::{Digest, RowHash},
};

use crate::{
    catalog::CatalogError,
    index::IndexError,
    rule::SourceIndex,
    segment::{NewRow, Row, Segment, SegmentId, Sequence},
    shard::{FolderError, Shared, make_folder},
    wal::{self, Position},
};

const FORMAT: u32 = 1;
const ROWS_MAGIC: &[u8; 8] = b"SHOALRW1";
const NO_TIME: i64 = i64::MIN;

/// What one checkpoint is to hold. Made by the writer between two turns.
pub struct Job {
    /// Its number, above every earlier one.
    pub number: u64,
    /// The own log's end; replay starts here.
    pub position: Position,
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
    /// Each segment with its number of rows, the growing one last.
    pub segments: Vec<(Arc<Segment>, u32)>,
    /// Number of the next new segment.
    pub next_segment: u32,
}

/// The end of a [`Job`].
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// See [`Job::position`].
    pub position: Position,
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
    pub graph: GraphShape,
    /// Oldest first; the last one is growing.
    pub segments: Vec<SegmentFiles>,
}

/// What has to be equal for a stored graph to be of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphShape {
    /// Components a vector.
    pub dim: Dim,
    /// Its distance.
    pub metric: Metric,
    /// Edges, beams, quantization.
    pub parameters: IndexParameters,
}

/// The files of one segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentFiles {
    /// Its number.
    pub id: u32,
    /// Its rows.
    pub rows: u32,
    /// Rows that are in the graph.
    pub folded: u32,
    /// Rows that had ended.
    pub dead: u32,
    /// The graph; absent while no row is folded.
    pub graph_file: Option<FileMark>,
    /// The rows.
    pub rows_file: FileMark,
}

/// A file with what it has to look like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMark {
    /// Its name in the segment's folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// CRC-32 of its content.
    pub crc32: u32,
}

/// Why a checkpoint was not stored or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A folder.
    #[error("checkpoint folder fails")]
    Folder(#[from] FolderError),
    /// A file.
    #[error("checkpoint file `{}` fails", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's own.
        #[source]
        source: io::Error,
    },
    /// A graph.
    #[error("graph of segment {segment} cannot be stored or read")]
    Graph {
        /// The segment's number.
        segment: u32,
        /// The index's own.
        #[source]
        source: IndexError,
    },
    /// The own log could not be made durable.
    #[error("the shard's log could not be made durable")]
    Log(#[from] wal::SyncError),
    /// The catalog.
    #[error("the catalog could not be stored")]
    Catalog(#[from] CatalogError),
    /// A file is not what the manifest says, or does not read.
    #[error("checkpoint file `{}` is damaged: {detail}", .path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError + '_ {
    |source| CheckpointError::File {
        path: path.to_owned(),
        source,
    }
}

fn damaged(path: &Path, detail: impl Into<String>) -> CheckpointError {
    CheckpointError::Damaged {
        path: path.to_owned(),
        detail: detail.into(),
    }
}

impl Manifest {
    /// See [`Job::position`].
    pub fn position(&self) -> Position {
        Position::new(self.position)
    }

    /// See [`Job::digest`].
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`].
    pub fn digest(&self) -> Result<Digest, CheckpointError> {
        let raw = u128::from_str_radix(&self.digest, 16)
            .map_err(|_| damaged(Path::new("manifest"), "digest is no hexadecimal number"))?;
        Ok(Digest::from_bytes(raw.to_be_bytes()))
    }

    /// Where it stands in the checkpoint folder.
    fn path(folder: &Path, number: u64) -> PathBuf {
        folder.join(format!("manifest-{number:020}.json"))
    }

    /// Reads the newest manifest of a folder; `None` if there is none.
    ///
    /// # Errors
    /// [`CheckpointError`]; the shard's own log is whole, so it can be replayed instead.
    pub fn newest(folder: &Path) -> Result<Option<Self>, CheckpointError> {
        let Some(path) = manifests(folder)?.pop() else {
            return Ok(None);
        };
        let bytes = fs::read(&path).map_err(file_error(&path))?;
        let (body, mark) = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .map(|end| bytes.split_at(end))
            .ok_or_else(|| damaged(&path, "it has one line, two are written"))?;
        let expected = format!("{:08x}", crc32fast::hash(body));
        if mark.trim_ascii() != expected.as_bytes() {
            return Err(damaged(&path, "its checksum does not fit"));
        }
        let manifest: Self =
            serde_json::from_slice(body).map_err(|error| damaged(&path, error.to_string()))?;
        if manifest.format != FORMAT {
            let detail = format!("format is {}, this version reads {FORMAT}", manifest.format);
            return Err(damaged(&path, detail));
        }
        Ok(Some(manifest))
    }

    fn write(&self, folder: &Path) -> Result<(), CheckpointError> {
        let path = Self::path(folder, self.number);
        let mut body =
            serde_json::to_vec(self).map_err(|error| damaged(&path, error.to_string()))?;
        let mark = format!("\n{:08x}\n", crc32fast::hash(&body));
        body.extend_from_slice(mark.as_bytes());
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary).map_err(file_error(&temporary))?;
        file.write_all(&body)
            .and_then(|()| file.sync_all())
            .map_err(file_error(&temporary))?;
        fs::rename(&temporary, &path).map_err(file_error(&path))?;
        sync_folder(folder)
    }
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

fn manifests(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(file_error(folder))? {
        let path = entry.map_err(file_error(folder))?.path();
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

fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    File::open(folder)
        .and_then(|opened| opened.sync_all())
        .map_err(file_error(folder))
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
        let mut segments = Vec::with_capacity(job.segments.len());
        for (segment, rows) in &job.segments {
            let files = self.store_segment(shared, job, segment, *rows)?;
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
            graph: GraphShape {
                dim: shared.spec.collection.dim,
                metric: shared.spec.collection.metric,
                parameters: shared.spec.collection.index,
            },
            segments,
        };
        manifest.write(&folder)?;
        crash::point("checkpoint_manifest");
        self.stored = manifest
            .segments
            .iter()
            .map(|files| (SegmentId(files.id), files.clone()))
            .collect();
        remove_left_over(shared, &manifest)
    }

    fn store_segment(
        &self,
        shared: &Shared,
        job: &Job,
        segment: &Segment,
        rows: u32,
    ) -> Result<SegmentFiles, CheckpointError> {
        let folded = segment.folded().min(rows);
        let dead = segment
            .rows()
            .take_while(|(number, _)| *number < rows)
            .filter(|(_, row)| !row.outlives(job.sequence));
        let dead = u32::try_from(dead.count()).unwrap_or(u32::MAX);
        let earlier = self.stored.get(&segment.id);
        if let Some(files) = earlier
            && (files.rows, files.folded, files.dead) == (rows, folded, dead)
        {
            return Ok(files.clone());
        }
        let folder = shared.spec.segment_folder(segment.id);
        make_folder(&folder)?;
        let same_graph = earlier.filter(|files| files.folded == folded);
        let graph_file = match same_graph {
            Some(files) => files.graph_file.clone(),
            None if folded == 0 => None,
            None => {
                let name = format!("graph-{}.usearch", job.number);
                let path = folder.join(&name);
                segment
                    .graph
                    .save(&path)
                    .map_err(|source| CheckpointError::Graph {
                        segment: segment.id.0,
                        source,
                    })?;
                Some(seal_file(&path, name)?)
            }
        };
        let name = format!("rows-{}.bin", job.number);
        let path = folder.join(&name);
        write_rows(&path, segment, rows, job.sequence)?;
        let rows_file = seal_file(&path, name)?;
        sync_folder(&folder)?;
        Ok(SegmentFiles {
            id: segment.id.0,
            rows,
            folded,
            dead,
            graph_file,
            rows_file,
        })
    }
}

/// Makes a file durable and notes its length and checksum.
fn seal_file(path: &Path, name: String) -> Result<FileMark, CheckpointError> {
    let file = File::open(path).map_err(file_error(path))?;
    file.sync_all().map_err(file_error(path))?;
    let (bytes, crc32) = checksum(file).map_err(file_error(path))?;
    Ok(FileMark { name, bytes, crc32 })
}

fn checksum(mut file: File) -> io::Result<(u64, u32)> {
    let mut hasher = crc32fast::Hasher::new();
    let mut block = vec![0u8; 1 << 20];
    let mut bytes = 0u64;
    loop {
        let read = file.read(&mut block)?;
        let Some(filled) = block.get(..read).filter(|filled| !filled.is_empty()) else {
            return Ok((bytes, hasher.finalize()));
        };
        hasher.update(filled);
        bytes += u64::try_from(read).unwrap_or(u64::MAX);
    }
}

/// Checks a file against its mark and gives its path.
///
/// # Errors
/// [`CheckpointError::Damaged`] if it differs.
pub fn verify_file(folder: &Path, mark: &FileMark) -> Result<PathBuf, CheckpointError> {
    let path = folder.join(&mark.name);
    let file = File::open(&path).map_err(file_error(&path))?;
    let (bytes, crc32) = checksum(file).map_err(file_error(&path))?;
    if (bytes, crc32) == (mark.bytes, mark.crc32) {
        Ok(path)
    } else {
        let detail = format!(
            "it has {bytes} bytes and checksum {crc32:08x}, the manifest says {} and {:08x}",
            mark.bytes, mark.crc32
        );
        Err(damaged(&path, detail))
    }
}

fn write_rows(
    path: &Path,
    segment: &Segment,
    rows: u32,
    sequence: Sequence,
) -> Result<(), CheckpointError> {
    let write = || -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 18, File::create(path)?);
        out.write_all(ROWS_MAGIC)?;
        out.write_all(&rows.to_le_bytes())?;
        for (_, row) in segment.rows().take_while(|(number, _)| *number < rows) {
            let id = row.id.as_str().as_bytes();
            let length = u16::try_from(id.len()).map_err(io::Error::other)?;
            out.write_all(&length.to_le_bytes())?;
            out.write_all(id)?;
            out.write_all(&row.version.raw().to_le_bytes())?;
            out.write_all(&row.source.0.to_le_bytes())?;
            out.write_all(&row.offset.0.to_le_bytes())?;
            out.write_all(&row.wal.as_u64().to_le_bytes())?;
            out.write_all(&row.hash.to_bytes())?;
            out.write_all(&row.expires_at_ms.unwrap_or(NO_TIME).to_le_bytes())?;
            out.write_all(&[u8::from(row.outlives(sequence))])?;
        }
        out.flush()
    };
    write().map_err(file_error(path))
}

/// Reads a rows file into a segment, oldest row first; ended rows are ended again.
///
/// # Errors
/// [`CheckpointError::Damaged`].
pub fn read_rows(path: &Path, segment: &Segment) -> Result<(), CheckpointError> {
    let bytes = fs::read(path).map_err(file_error(path))?;
    let mut rest = bytes.as_slice();
    parse_rows(&mut rest, segment)
        .filter(|()| rest.is_empty())
        .ok_or_else(|| damaged(path, "its rows do not read"))
}

fn parse_rows(rest: &mut &[u8], segment: &Segment) -> Option<()> {
    fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
        let (taken, after) = rest.split_at_checked(count)?;
        *rest = after;
        Some(taken)
    }
    fn word<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
        take(rest, N)?.try_into().ok()
    }
    if take(rest, ROWS_MAGIC.len())? != ROWS_MAGIC {
        return None;
    }
    for _ in 0..u32::from_le_bytes(word(rest)?) {
        let length = u16::from_le_bytes(word(rest)?);
        let id = std::str::from_utf8(take(rest, usize::from(length))?).ok()?;
        let new = NewRow {
            id: PointId::new(id).ok()?,
            version: Version::from_raw(u64::from_le_bytes(word(rest)?)),
            source: SourceIndex(u16::from_le_bytes(word(rest)?)),
            offset: Offset(u64::from_le_bytes(word(rest)?)),
            wal: Position::new(u64::from_le_bytes(word(rest)?)),
            hash: RowHash::from_bytes(word(rest)?),
            expires_at_ms: Some(i64::from_le_bytes(word(rest)?)).filter(|time| *time != NO_TIME),
        };
        let [alive] = word(rest)?;
        let number = segment.push(Row::new(new, Sequence::default()));
        if alive == 0 {
            segment.end(number, Sequence::default());
        }
    }
    Some(())
}

/// Removes manifests and segment files that the newest manifest does not name.
fn remove_left_over(shared: &Shared, manifest: &Manifest) -> Result<(), CheckpointError> {
    let folder = shared.spec.checkpoint_folder();
    let own = Manifest::path(&folder, manifest.number);
    for path in manifests(&folder)?.into_iter().filter(|path| *path != own) {
        fs::remove_file(&path).map_err(file_error(&path))?;
    }
    let segments = shared.spec.folder.join("segments");
    make_folder(&segments)?;
    let mut named = HashSet::new();
    for files in &manifest.segments {
        let folder = shared.spec.segment_folder(SegmentId(files.id));
        let graph = files
            .graph_file
            .as_ref()
            .map(|mark| folder.join(&mark.name));
        named.extend(graph);
        named.insert(folder.join(&files.rows_file.name));
    }
    for entry in fs::read_dir(&segments).map_err(file_error(&segments))? {
        let folder = entry.map_err(file_error(&segments))?.path();
        let mut kept = 0usize;
        for entry in fs::read_dir(&folder).map_err(file_error(&folder))? {
            let path = entry.map_err(file_error(&folder))?.path();
            if named.contains(&path) {
                kept += 1;
            } else {
                fs::remove_file(&path).map_err(file_error(&path))?;
            }
        }
        if kept == 0 {
            fs::remove_dir(&folder).map_err(file_error(&folder))?;
        }
    }
    Ok(())
}
