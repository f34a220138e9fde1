//! A sealed segment, opened: immutable files, and which of its rows have ended since.
//!
//! The graph and the table of rows are mapped, so opening costs no more for many rows than for
//! few; exact vectors and payload are read where they are asked for. Nothing here is written.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;

use crate::{
    fields,
    index::packed,
    segment::{
        ALIVE, Row, Sequence,
        ends::{Age, BLOCK_ROWS, Block, Life},
        entries::Entry,
        files::{self, FileError, damaged, io_error},
        map::Map,
        rows::Table,
        seal::{
            ENTRIES_FILE, FIELDS_FILE, GRAPH_FILE, Manifest, POINTS_FILE, ROWS_FILE, VECTORS_FILE,
        },
        vectors::Vectors,
    },
};

/// A folder of a sealed segment's files.
pub struct Sealed {
    /// What the folder says of itself.
    pub manifest: Manifest,
    folder: PathBuf,
    graph: packed::Graph<Map>,
    table: Table,
    fields: fields::Sealed<Map>,
    vectors: Vectors,
    points: File,
    points_path: PathBuf,
    died: Vec<AtomicU64>,
    /// They know of no birth: who looks at a view that has this segment sees all of its rows born
    /// ([`crate::view::View::complete_from`]).
    blocks: Vec<Block>,
}

impl Sealed {
    /// Opens a folder that [`super::seal::Sealer`] wrote. Lengths and heads are checked, not every byte: that is
    /// [`Manifest::verify`].
    ///
    /// # Errors
    /// [`FileError`], naming the file.
    pub fn open(folder: &Path) -> Result<Self, FileError> {
        let manifest = Manifest::read(folder)?;
        let path = |name| {
            let mark = manifest.files.iter().find(|mark| mark.name == name);
            let mark = mark.ok_or_else(|| damaged(folder, format!("segment has no `{name}`")))?;
            files::present(folder, mark)
        };
        let graph_path = path(GRAPH_FILE)?;
        let graph = packed::Graph::open(Map::open(&graph_path)?)
            .map_err(|error| damaged(&graph_path, error.to_string()))?;
        let rows_path = path(ROWS_FILE)?;
        let table = Table::open(&rows_path)?;
        let fields_path = path(FIELDS_FILE)?;
        let fields = fields::Sealed::open(Map::open(&fields_path)?)
            .map_err(|error| damaged(&fields_path, error.to_string()))?;
        let points_path = path(POINTS_FILE)?;
        let vectors = Vectors::open(
            &path(VECTORS_FILE)?,
            manifest.shape.dim.len(),
            manifest.precision,
        )?;
        let in_graph = match manifest.is_reclaimed {
            true => 0,
            false => manifest.rows,
        };
        if table.len() != manifest.rows || graph.rows() != in_graph {
            let detail = format!(
                "segment says {} rows, {in_graph} of them in its graph, its table has {}, its graph {}",
                manifest.rows,
                table.len(),
                graph.rows()
            );
            return Err(damaged(&rows_path, detail));
        }
        Ok(Self {
            died: (0..manifest.rows).map(|_| AtomicU64::new(ALIVE)).collect(),
            blocks: (0..manifest.rows.div_ceil(BLOCK_ROWS))
                .map(|_| Block::full())
                .collect(),
            points: File::open(&points_path).map_err(io_error(&points_path))?,
            points_path,
            folder: folder.to_owned(),
            graph,
            table,
            fields,
            vectors,
            manifest,
        })
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Number of rows, dead ones too.
    pub fn len(&self) -> u32 {
        self.table.len()
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether any row that holds its point has an expiry.
    pub fn has_expiring(&self) -> bool {
        self.table.has_expiring()
    }

    /// A row, if there is one of that number.
    pub fn row(&self, row: u32) -> Option<Row<'_>> {
        self.table.row(row, self.died(row)?.load(Ordering::Acquire))
    }

    /// Whether a search at `at` may answer with a row: what [`Row::is_visible`] says, for less.
    #[inline]
    pub fn is_visible(&self, row: u32, at: Sequence, now_ms: i64) -> bool {
        if row >= self.graph.rows() {
            return false;
        }
        let Some(block) = self.block(row / BLOCK_ROWS) else {
            return false;
        };
        let lives = match block.life(row, at) {
            Life::Lives => true,
            Life::Ended => false,
            Life::Unknown => {
                let died = self.died(row);
                died.is_some_and(|died| at.0 < died.load(Ordering::Acquire))
            }
        };
        lives
            && match self.age(row / BLOCK_ROWS, block, now_ms) {
                Age::Fresh => true,
                Age::Expired => false,
                Age::Mixed => {
                    let expires = self.table.expires_at_ms(row);
                    expires.is_none_or(|expires| now_ms < expires)
                }
            }
    }

    /// How old the rows of a block are.
    #[inline]
    pub(super) fn age(&self, number: u32, block: &Block, now_ms: i64) -> Age {
        if !self.has_expiring() {
            return Age::Fresh;
        }
        block.age(now_ms, || {
            let first = number * BLOCK_ROWS;
            let rows = first..self.len().min(first.saturating_add(BLOCK_ROWS));
            rows.map(|row| self.table.expires_at_ms(row))
        })
    }

    /// When a row is hidden for its age; `None` for never.
    pub(super) fn expires_at_ms(&self, row: u32) -> Option<i64> {
        self.table.expires_at_ms(row)
    }

    /// When a row ended.
    pub(super) fn died(&self, row: u32) -> Option<&AtomicU64> {
        self.died.get(usize::try_from(row).ok()?)
    }

    /// What is known of rows together.
    pub(super) fn block(&self, number: u32) -> Option<&Block> {
        self.blocks.get(usize::try_from(number).ok()?)
    }

    /// The graph.
    pub fn graph(&self) -> &packed::Graph<Map> {
        &self.graph
    }

    /// Rows by payload.
    pub fn fields(&self) -> &fields::Sealed<Map> {
        &self.fields
    }

    /// A row's frame without its vector; `None` if there is none.
    ///
    /// # Errors
    /// [`FileError`], also if the bytes are not those that were written.
    pub fn frame(&self, row: u32) -> Result<Option<Bytes>, FileError> {
        let Some(place) = self.table.point(row) else {
            return Ok(None);
        };
        let mut bytes = vec![0u8; usize::try_from(place.bytes).unwrap_or_default()];
        self.points
            .read_exact_at(&mut bytes, place.at)
            .map_err(io_error(&self.points_path))?;
        if crc32fast::hash(&bytes) != place.crc32 {
            let detail = format!("point of row {row} has another checksum than was written");
            return Err(damaged(&self.points_path, detail));
        }
        Ok(Some(bytes.into()))
    }

    /// A row's vector as it was published.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn vector(&self, row: u32, out: &mut Vec<f32>) -> Result<(), FileError> {
        self.vectors.read(row, out)
    }

    /// Appends a row's vector as it stands in its file.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn copy_vector(&self, row: u32, out: &mut Vec<u8>) -> Result<(), FileError> {
        self.vectors.copy(row, out)
    }

    /// What records without a row said while it was growing.
    ///
    /// # Errors
    /// [`FileError`].
    pub fn entries(&self) -> Result<Vec<Entry>, FileError> {
        let path = self.folder.join(ENTRIES_FILE);
        let bytes = std::fs::read(&path).map_err(io_error(&path))?;
        Entry::decode_all(&bytes).ok_or_else(|| damaged(&path, "its entries do not read"))
    }

    /// Bytes of the mapped graph.
    pub fn graph_bytes(&self) -> usize {
        self.graph.bytes()
    }
}
