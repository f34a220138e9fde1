//! Sealing: the files of a segment that takes no more rows.
//!
//! The folder explains itself: `segment.json` names the shape, the precision and every file with
//! its length and checksum. It is written under a temporary name and renamed when all of it is
//! durable, so a folder of the final name is whole.
//!
//! | file | what |
//! | --- | --- |
//! | `segment.json` | what the segment is, and its files; a second line is the first one's CRC-32 |
//! | `graph.bin` | edges and codes ([`crate::index::packed`]) |
//! | `vectors.bin` | exact vectors ([`super::vectors`]) |
//! | `rows.bin` | ids, versions, places ([`super::rows`]) |
//! | `points.bin` | each row's frame without its vector ([`crate::entry`]) |
//! | `fields.bin` | rows by payload field ([`crate::fields`]) |
//! | `entries.bin` | deletes and refusals ([`super::entries`]) |

use std::{
    borrow::Cow,
    fs::{self, File},
    io::{ErrorKind as ErrorKindIo, Write},
    path::Path,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use shoal_runtime::{ErrorKind, crash};
use shoal_schemas::{Dim, IndexParameters, Metric, filter::Fields};

use crate::{
    entry::{self, EntryError},
    fields::Columns,
    index::{
        adjacency::Adjacency,
        packed,
        space::{Extent, Space},
    },
    segment::{
        PointError, Row, Segment,
        entries::Entry,
        files::{self, FileError, FileMark, Sink, damaged, io_error},
        indexed,
        rows::{self, PointPlace},
        vectors::{Precision, fits_f16},
    },
    wal,
};

/// Edges and codes.
pub const GRAPH_FILE: &str = "graph.bin";
/// Exact vectors.
pub const VECTORS_FILE: &str = "vectors.bin";
/// Ids, versions, places.
pub const ROWS_FILE: &str = "rows.bin";
/// Frames without vectors.
pub const POINTS_FILE: &str = "points.bin";
/// Rows by payload.
pub const FIELDS_FILE: &str = "fields.bin";
/// Deletes and refusals.
pub const ENTRIES_FILE: &str = "entries.bin";
/// What the segment is.
pub const MANIFEST_FILE: &str = "segment.json";

/// Every file of a sealed segment but its masks.
pub const FILES: [&str; 7] = [
    MANIFEST_FILE,
    GRAPH_FILE,
    VECTORS_FILE,
    ROWS_FILE,
    POINTS_FILE,
    FIELDS_FILE,
    ENTRIES_FILE,
];

const FORMAT: u32 = 1;

/// What a segment's vectors, graph and payload index are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Components a vector.
    pub dim: Dim,
    /// Its distance.
    pub metric: Metric,
    /// Edges, beams, quantization.
    pub parameters: IndexParameters,
    /// Payload fields that are indexed.
    pub fields: Fields,
}

/// What a sealed segment's folder says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// Its number in the shard.
    pub segment: u32,
    /// Rows, dead ones too.
    pub rows: u32,
    /// Rows that had ended when it was sealed: they have no point.
    pub dead: u32,
    /// Rows that are in no graph: they ride on rows of other segments or of this one, had ended, or are reclaimed.
    #[serde(default)]
    pub riders: u32,
    /// Whether its rows are of points that have expired, and nothing but the rows is left.
    #[serde(default)]
    pub is_reclaimed: bool,
    /// Its vectors and graph.
    pub shape: Shape,
    /// How the exact vectors are kept.
    pub precision: Precision,
    /// Its files.
    pub files: Vec<FileMark>,
}

impl Manifest {
    /// Reads a folder's manifest.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn read(folder: &Path) -> Result<Self, FileError> {
        let path = folder.join(MANIFEST_FILE);
        let bytes = fs::read(&path).map_err(io_error(&path))?;
        let (body, crc) = bytes
            .iter()
            .position(|byte| *byte == b'\n')
            .map(|end| bytes.split_at(end))
            .ok_or_else(|| damaged(&path, "it has one line, two are written"))?;
        if crc.trim_ascii() != format!("{:08x}", crc32fast::hash(body)).as_bytes() {
            return Err(damaged(&path, "its checksum does not fit"));
        }
        let manifest: Self =
            serde_json::from_slice(body).map_err(|error| damaged(&path, error.to_string()))?;
        if manifest.format != FORMAT {
            let detail = format!("format is {}, this version reads {FORMAT}", manifest.format);
            return Err(damaged(&path, detail));
        }
        Ok(manifest)
    }

    fn write(&self, folder: &Path) -> Result<(), FileError> {
        let path = folder.join(MANIFEST_FILE);
        let mut body =
            serde_json::to_vec(self).map_err(|error| damaged(&path, error.to_string()))?;
        let crc = format!("\n{:08x}\n", crc32fast::hash(&body));
        body.extend_from_slice(crc.as_bytes());
        let mut file = File::create(&path).map_err(io_error(&path))?;
        file.write_all(&body)
            .and_then(|()| file.sync_all())
            .map_err(io_error(&path))
    }

    /// Reads every file whole and compares checksums.
    ///
    /// # Errors
    /// [`FileError`], naming the first file that differs.
    pub fn verify(&self, folder: &Path) -> Result<(), FileError> {
        self.files
            .iter()
            .try_for_each(|mark| files::verify(folder, mark).map(drop))
    }
}

/// Why a segment was not sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A file.
    #[error("cannot write a segment")]
    File(#[from] FileError),
    /// A row's point.
    #[error("cannot read a row to be sealed")]
    Point(#[from] PointError),
    /// Its bytes.
    #[error("a row to be sealed does not read")]
    Entry(#[from] EntryError),
    /// The graph as a file.
    #[error("cannot write the graph of a segment")]
    Packed(#[from] packed::WriteError),
}

impl SealError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::File(error) => error.kind(),
            Self::Point(PointError::File(error)) => error.kind(),
            Self::Point(PointError::Log(error)) => error.kind(),
            Self::Point(_) | Self::Entry(_) => ErrorKind::Corrupt,
            // A full disk, which may have room again.
            Self::Packed(packed::WriteError::Write(_)) => ErrorKind::Retry,
            Self::Packed(error) => error.kind(),
        }
    }
}

/// A row to be sealed.
pub struct Origin {
    /// Where it is.
    pub segment: Arc<Segment>,
    /// Which it is there.
    pub row: u32,
    /// Whether it had not ended. One that had stays in the graph, for walks to pass through.
    pub alive: bool,
    /// Whether it is a node of the graph; one that rides is not.
    pub is_node: bool,
}

/// How the vectors of a segment are kept.
pub struct Survey {
    /// Exactly, in their file.
    pub precision: Precision,
    /// In the graph.
    pub space: Space,
}

/// Looks at every vector: how exactly they have to be kept, and how they are coded.
///
/// `None` if `meanwhile`, called between rows, ended the work.
///
/// # Errors
/// [`SealError`].
pub fn survey(
    shape: &Shape,
    origins: &[Origin],
    log: &wal::Reader,
    meanwhile: &mut impl FnMut() -> Result<bool, SealError>,
) -> Result<Option<Survey>, SealError> {
    let quantization = shape.parameters.quantization(shape.dim, shape.metric);
    let mut extent = Extent::new(shape.dim, shape.metric, quantization);
    let mut precision = Precision::F16;
    let mut vector = Vec::new();
    for origin in origins.iter().filter(|origin| origin.answers()) {
        if precision == Precision::F32 && !extent.is_needed() {
            break;
        }
        let is_known = origin.segment.precision() == Some(Precision::F16);
        if is_known && !extent.is_needed() {
            continue;
        }
        origin.segment.vector(origin.row, log, &mut vector)?;
        if origin.alive && !is_known && !fits_f16(&vector) {
            precision = Precision::F32;
        }
        extent.include(&vector);
        if !meanwhile()? {
            return Ok(None);
        }
    }
    Ok(Some(Survey {
        precision,
        space: extent.space(),
    }))
}

/// Writes the folder of one segment.
pub struct Sealer<'a> {
    /// Where it is to be.
    pub folder: &'a Path,
    /// Its number.
    pub segment: u32,
    /// Its shape.
    pub shape: Shape,
    /// Its rows.
    pub origins: &'a [Origin],
    /// Whether nothing but the rows is kept. All are alive then, and none is a node.
    pub is_reclaimed: bool,
    /// How their vectors are kept.
    pub survey: &'a Survey,
    /// Their edges.
    pub adjacency: &'a Adjacency,
    /// Those that are nodes of the graph, in their order, where they were coded for it already.
    pub nodes: Option<&'a packed::Coded>,
    /// Deletes and refusals.
    pub entries: &'a [Entry],
    /// Where points of growing segments stand.
    pub log: &'a wal::Reader,
}

impl Sealer<'_> {
    /// Writes the folder. `meanwhile` is called between rows and ends the work by saying no.
    ///
    /// Returns whether the folder was written.
    ///
    /// # Errors
    /// [`SealError`]; nothing of the final name is there then.
    pub fn write(
        &self,
        mut meanwhile: impl FnMut() -> Result<bool, SealError>,
    ) -> Result<bool, SealError> {
        let temporary = self.folder.with_extension("tmp");
        remove(&temporary)?;
        fs::create_dir_all(&temporary).map_err(io_error(&temporary))?;
        let written = self.write_files(&temporary, &mut meanwhile);
        if !matches!(written, Ok(Some(_))) {
            // What there is of it on a full disk is room that others wait for.
            remove(&temporary)?;
        }
        let Some(files) = written? else {
            return Ok(false);
        };
        let count = |is_counted: fn(&Origin) -> bool| {
            let counted = self.origins.iter().filter(|origin| is_counted(origin));
            u32::try_from(counted.count()).unwrap_or(u32::MAX)
        };
        let manifest = Manifest {
            format: FORMAT,
            segment: self.segment,
            rows: count(|_| true),
            dead: count(|origin| !origin.alive),
            riders: count(|origin| !origin.is_node),
            is_reclaimed: self.is_reclaimed,
            shape: self.shape.clone(),
            precision: self.survey.precision,
            files,
        };
        manifest.write(&temporary)?;
        files::sync_folder(&temporary)?;
        crash::point("segment_written");
        // One of that name is left from a crash after this point, and no checkpoint names it.
        remove(self.folder)?;
        fs::rename(&temporary, self.folder).map_err(io_error(self.folder))?;
        if let Some(parent) = self.folder.parent() {
            files::sync_folder(parent)?;
        }
        Ok(true)
    }

    fn write_files(
        &self,
        folder: &Path,
        meanwhile: &mut impl FnMut() -> Result<bool, SealError>,
    ) -> Result<Option<Vec<FileMark>>, SealError> {
        let Survey { precision, space } = self.survey;
        let rows = u32::try_from(self.origins.len()).unwrap_or(u32::MAX);
        let holding = u32::try_from(self.holding().len()).unwrap_or(u32::MAX);
        let expiring = self.holding().iter().filter(|origin| {
            let row = origin.segment.row(origin.row);
            origin.alive && row.is_some_and(|row| row.expires_at_ms.is_some())
        });
        let expiring = u32::try_from(expiring.count()).unwrap_or(u32::MAX);
        let mut vectors = Sink::create(folder.join(VECTORS_FILE))?;
        let mut points = Sink::create(folder.join(POINTS_FILE))?;
        let mut columns = Columns::new(&self.shape.fields);
        let mut table = rows::Writer::create(folder.join(ROWS_FILE), rows, expiring)?;
        let (mut codes, mut biases) = (Vec::new(), Vec::new());
        let (mut vector, mut bytes) = (Vec::new(), Vec::new());
        for origin in self.origins {
            let row = origin.row()?;
            if self.is_reclaimed {
                table.push(&row, PointPlace::default())?;
                if !meanwhile()? {
                    return Ok(None);
                }
                continue;
            }
            let is_copied = origin.alive && origin.segment.precision() == Some(*precision);
            let is_coded = self.nodes.is_some() || !origin.is_node;
            if origin.alive && !is_copied || !is_coded {
                origin.segment.vector(origin.row, self.log, &mut vector)?;
            }
            if self.nodes.is_none() {
                biases.push(match origin.is_node {
                    true => space.encode_row(&vector, &mut codes),
                    // No walk comes to it, and no scan looks at it.
                    false => {
                        codes.resize(codes.len() + space.code_bytes(), 0);
                        0.0
                    }
                });
            }
            let mut place = PointPlace::default();
            if origin.alive {
                let frame = origin.segment.frame(origin.row, self.log)?;
                entry::without_vector(&frame, &mut bytes)?;
                place = PointPlace {
                    at: points.position(),
                    bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
                    crc32: crc32fast::hash(&bytes),
                };
                points.put(&bytes)?;
                if !self.shape.fields.is_empty() {
                    let payload = entry::upsert_body(&frame)?.payload()?;
                    let number = table.len();
                    columns.push(
                        number,
                        &indexed::payload(&self.shape.fields, row.id, &payload),
                    );
                }
            } else {
                // Nobody asks for it any more, and zeros take no place in any precision.
                vector.clear();
                vector.resize(self.shape.dim.len(), 0.0);
            }
            table.push(&row, place)?;
            bytes.clear();
            match is_copied {
                true => origin.segment.copy_vector(origin.row, &mut bytes)?,
                false => precision.encode(&vector, &mut bytes),
            }
            vectors.put(&bytes)?;
            if !meanwhile()? {
                return Ok(None);
            }
        }
        let mut graph = Sink::create(folder.join(GRAPH_FILE))?;
        match self.nodes {
            Some(nodes) => {
                let codes = self.codes_of(nodes);
                packed::write(&mut graph, space, self.adjacency, codes)?;
            }
            None => {
                let codes = codes.chunks_exact(space.code_bytes()).zip(biases);
                packed::write(&mut graph, space, self.adjacency, codes)?;
            }
        }
        columns.extend_to(holding);
        let mut fields = Sink::create(folder.join(FIELDS_FILE))?;
        fields.put(&columns.seal())?;
        let mut entries = Sink::create(folder.join(ENTRIES_FILE))?;
        for entry in self.entries {
            bytes.clear();
            entry.encode(&mut bytes);
            entries.put(&bytes)?;
        }
        let marks = [
            graph.finish()?,
            vectors.finish()?,
            table.finish()?,
            points.finish()?,
            fields.finish()?,
            entries.finish()?,
        ];
        Ok(Some(marks.into()))
    }

    /// The rows of which more is kept: all or none.
    fn holding(&self) -> &[Origin] {
        match self.is_reclaimed {
            true => &[],
            false => self.origins,
        }
    }

    /// The codes of all rows; zeros for one that is no node, which no walk comes to and no scan looks at.
    fn codes_of<'c>(
        &'c self,
        nodes: &'c packed::Coded,
    ) -> impl Iterator<Item = (Cow<'c, [u8]>, f32)> {
        let mut numbers = 0u32..;
        self.holding().iter().map(move |origin| {
            match origin.is_node.then(|| numbers.next()).flatten() {
                Some(node) => {
                    let (code, bias) = nodes.of(node);
                    (Cow::Borrowed(code), bias)
                }
                None => (Cow::Owned(vec![0; self.survey.space.code_bytes()]), 0.0),
            }
        })
    }
}

impl Origin {
    /// Whether its code is to be a good one: it is found by it, or what rides on it.
    fn answers(&self) -> bool {
        let has_carried = self.segment.rides.riders(self.row).next().is_some();
        self.alive || has_carried
    }

    fn row(&self) -> Result<Row<'_>, PointError> {
        self.segment.row(self.row).ok_or(PointError::NoRow {
            segment: self.segment.id.0,
            row: self.row,
        })
    }
}

fn remove(folder: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKindIo::NotFound => Err(io_error(folder)(error)),
        _ => Ok(()),
    }
}
