//! A segment: rows that were served at some time, and the graph that finds them.
//!
//! Rows are numbered from 0 in the order they came and never move. A row is visible to a search
//! at sequence `s` if `born <= s < died`: an update makes a new row and ends the old one at the
//! same sequence, so a search sees exactly one of them. The *growing* segment ([`growing`]) takes
//! new rows, keeps them in memory, and leaves vectors and payload to the shard's own log. A
//! *sealed* one ([`sealed`]) takes no more rows: it is a folder of immutable files ([`seal`]) that
//! holds everything about its points, and the same row numbers. Rows end, but are never taken
//! out: compaction writes a new segment of what is left. A row whose vector is that of the row it
//! replaced *rides* on that one's node ([`rides`]) and is in no graph itself, nor is one whose point
//! has expired and is reclaimed ([`wear`]).

mod ends;
pub mod entries;
pub mod files;
pub mod growing;
pub mod indexed;
mod map;
pub mod rides;
pub mod rows;
pub mod seal;
pub mod sealed;
pub mod vectors;
pub mod wear;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use bytes::Bytes;
use shoal_runtime::ErrorKind;
use shoal_schemas::{Filter, Offset, PointId, Version, digest::RowHash};

use crate::{
    entry::{self, EntryError},
    fields::{self, Estimate, RowSet},
    index::{Near, distance::Query, packed, space::Space},
    rule::SourceIndex,
    segment::{
        ends::{Age, BLOCK_ROWS, Block},
        growing::Growing,
        rides::Rides,
        sealed::Sealed,
        vectors::Precision,
        wear::LastCount,
    },
    view::Moment,
    wal::{self, Position},
};

/// Number of a segment within its shard; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u32);

/// Where a served point is: which row of which segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The segment.
    pub segment: SegmentId,
    /// The row in it.
    pub row: u32,
}

/// The count of changes a shard has applied since it was opened. Searches see a state at one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Sequence(pub u64);

/// A row that has not ended.
const ALIVE: u64 = u64::MAX;
/// Bytes of a frame beside its vector, as a rule: where it came from, its id, a short payload.
const BESIDE_VECTOR_BYTES: usize = 512;
/// A row that never expires.
const NEVER: i64 = i64::MAX;

/// Everything known of a row but its vector and payload.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The point.
    pub id: &'a str,
    /// Its version.
    pub version: Version,
    /// Where its record came from.
    pub source: SourceIndex,
    /// The record's offset there.
    pub offset: Offset,
    /// Its frame's place in the shard's own log, which may be cut away since: a name of the record.
    pub wal: Position,
    /// What it adds to the digest.
    pub hash: RowHash,
    /// From then on it is hidden.
    pub expires_at_ms: Option<i64>,
    born: u64,
    died: u64,
}

/// What a row is made of.
#[derive(Clone, Debug)]
pub struct NewRow {
    /// See [`Row::id`].
    pub id: PointId,
    /// See [`Row::version`].
    pub version: Version,
    /// See [`Row::source`].
    pub source: SourceIndex,
    /// See [`Row::offset`].
    pub offset: Offset,
    /// See [`Row::wal`].
    pub wal: Position,
    /// See [`Row::hash`].
    pub hash: RowHash,
    /// See [`Row::expires_at_ms`].
    pub expires_at_ms: Option<i64>,
}

impl Row<'_> {
    /// Whether a search at `at`, at wall time `now_ms`, may answer with it.
    pub fn is_visible(&self, at: Sequence, now_ms: i64) -> bool {
        self.born <= at.0 && at.0 < self.died && now_ms < self.expires_at_ms.unwrap_or(NEVER)
    }

    /// Whether it has ended, as of the newest change.
    pub fn is_dead(&self) -> bool {
        self.died != ALIVE
    }

    /// Whether it lives on after `at`.
    pub fn outlives(&self, at: Sequence) -> bool {
        self.died > at.0
    }

    /// Whether it was born at or before `at`.
    pub fn is_born_by(&self, at: Sequence) -> bool {
        self.born <= at.0
    }
}

/// Why a row's point is not read.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    /// There is no such row, or it had ended when its segment was sealed.
    #[error("segment {segment} holds no point at row {row}")]
    NoRow {
        /// The segment's number.
        segment: u32,
        /// The row.
        row: u32,
    },
    /// The shard's own log.
    #[error("cannot read a row from the shard's log")]
    Log(#[from] wal::ReadError),
    /// A sealed segment's file.
    #[error("cannot read a row of a sealed segment")]
    File(#[from] files::FileError),
    /// Its bytes.
    #[error("point of a row does not read")]
    Entry(#[from] EntryError),
}

impl PointError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoRow { .. } => ErrorKind::Bug,
            Self::Log(error) => error.kind(),
            Self::File(error) => error.kind(),
            Self::Entry(_) => ErrorKind::Corrupt,
        }
    }

    /// Whether the row's segment was sealed, and the shard's own log cut, since the row was found:
    /// a newer view finds it again.
    pub fn is_outdated(&self) -> bool {
        matches!(self, Self::Log(wal::ReadError::Cut { .. }))
    }
}

/// Where rows are kept.
enum Rows {
    /// In memory.
    Growing(Box<Growing>),
    /// In files.
    Sealed(Arc<Sealed>),
}

/// Rows and their graph.
pub struct Segment {
    /// Its number.
    pub id: SegmentId,
    /// Which of its rows share a node with others.
    pub rides: Rides,
    rows: Rows,
    dead: AtomicU32,
    expired: LastCount,
}

impl Segment {
    /// A segment that takes rows.
    pub fn growing(id: SegmentId, growing: Growing) -> Self {
        Self::of(id, Rows::Growing(Box::new(growing)))
    }

    /// A segment of files.
    pub fn sealed(id: SegmentId, sealed: Sealed) -> Self {
        Self::of(id, Rows::Sealed(Arc::new(sealed)))
    }

    fn of(id: SegmentId, rows: Rows) -> Self {
        Self {
            id,
            rides: Rides::default(),
            rows,
            dead: AtomicU32::new(0),
            expired: LastCount::default(),
        }
    }

    /// The same rows, which end in both, without any rides; `None` while it is growing.
    pub fn without_rides(&self) -> Option<Self> {
        let Rows::Sealed(sealed) = &self.rows else {
            return None;
        };
        let same = Self::of(self.id, Rows::Sealed(sealed.clone()));
        same.dead.store(self.dead(), Ordering::Release);
        Some(same)
    }

    /// Its rows in memory; `None` once it is sealed.
    pub fn as_growing(&self) -> Option<&Growing> {
        match &self.rows {
            Rows::Growing(growing) => Some(growing),
            Rows::Sealed(_) => None,
        }
    }

    /// Its files; `None` while it is growing.
    pub fn as_sealed(&self) -> Option<&Sealed> {
        match &self.rows {
            Rows::Growing(_) => None,
            Rows::Sealed(sealed) => Some(sealed),
        }
    }

    /// A row, if there is one of that number. Its end is read once, here.
    pub fn row(&self, row: u32) -> Option<Row<'_>> {
        match &self.rows {
            Rows::Growing(growing) => growing.row(row),
            Rows::Sealed(sealed) => sealed.row(row),
        }
    }

    /// Whether a search of a moment may answer with a row.
    #[inline]
    pub fn is_visible(&self, row: u32, moment: Moment) -> bool {
        let Moment { sequence, now_ms } = moment;
        match &self.rows {
            Rows::Growing(growing) => growing.is_visible(row, sequence, now_ms),
            Rows::Sealed(sealed) => sealed.is_visible(row, sequence, now_ms),
        }
    }

    /// The rows below `below` that a search of a moment may answer with, rising. Those that have ended cost next to
    /// nothing.
    pub fn visible(&self, below: u32, moment: Moment) -> impl Iterator<Item = u32> {
        let below = match self.is_reclaimed() {
            true => 0,
            false => below.min(self.len()),
        };
        (0..below.div_ceil(BLOCK_ROWS)).flat_map(move |block| {
            let first = block * BLOCK_ROWS;
            let there = BLOCK_ROWS.min(below - first);
            let (living, age) = self.living(block, moment);
            let is_sure = living.is_some() && age == Age::Fresh;
            let mut left = match age {
                Age::Expired => 0,
                _ => living.unwrap_or(u64::MAX) & (u64::MAX >> (BLOCK_ROWS - there)),
            };
            let rows = std::iter::from_fn(move || {
                let row = (left != 0).then(|| first + left.trailing_zeros());
                left &= left.wrapping_sub(1);
                row
            });
            rows.filter(move |row| is_sure || self.is_visible(*row, moment))
        })
    }

    /// A bit a row of a block, set where it has not ended, if that is known without a look at the rows; and how old
    /// they are.
    fn living(&self, number: u32, moment: Moment) -> (Option<u64>, Age) {
        let Some(block) = self.block(number) else {
            return (None, Age::Mixed);
        };
        let age = match &self.rows {
            Rows::Growing(growing) => growing.age(block, moment.now_ms),
            Rows::Sealed(sealed) => sealed.age(number, block, moment.now_ms),
        };
        (block.living(moment.sequence), age)
    }

    /// What is known of rows together.
    fn block(&self, number: u32) -> Option<&Block> {
        match &self.rows {
            Rows::Growing(growing) => growing.block(number),
            Rows::Sealed(sealed) => sealed.block(number),
        }
    }

    /// All rows so far, dead ones too.
    pub fn rows(&self) -> impl Iterator<Item = (u32, Row<'_>)> {
        (0..self.len()).filter_map(|number| Some((number, self.row(number)?)))
    }

    /// Number of rows so far, dead ones too.
    pub fn len(&self) -> u32 {
        match &self.rows {
            Rows::Growing(growing) => growing.len(),
            Rows::Sealed(sealed) => sealed.len(),
        }
    }

    /// Whether no row was ever added.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows that have ended.
    pub fn dead(&self) -> u32 {
        self.dead.load(Ordering::Acquire)
    }

    /// Rows that have not ended.
    pub fn live(&self) -> u32 {
        self.len().saturating_sub(self.dead())
    }

    /// Rows below this are in the graph, or ride.
    pub fn folded(&self) -> u32 {
        match &self.rows {
            Rows::Growing(growing) => growing.folded(),
            Rows::Sealed(sealed) => sealed.len(),
        }
    }

    /// Ends a row at `at`; false if it had ended or is not there. Only the shard's writer.
    pub fn end(&self, row: u32, at: Sequence) -> bool {
        let died = match &self.rows {
            Rows::Growing(growing) => growing.died(row),
            Rows::Sealed(sealed) => sealed.died(row),
        };
        let ended = died.is_some_and(|died| {
            died.compare_exchange(ALIVE, at.0, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        });
        if ended {
            if let Some(block) = self.block(row / BLOCK_ROWS) {
                block.note_end(row, at);
            }
            self.dead.fetch_add(1, Ordering::AcqRel);
            self.rides.ended(row);
        }
        ended
    }

    /// When a row ended, if it has.
    pub fn end_of(&self, row: u32) -> Option<Sequence> {
        let died = match &self.rows {
            Rows::Growing(growing) => growing.died(row),
            Rows::Sealed(sealed) => sealed.died(row),
        };
        let died = died?.load(Ordering::Acquire);
        (died != ALIVE).then_some(Sequence(died))
    }

    /// Whether any row, dead or alive, of a point that is held has an expiry.
    pub fn has_expiring(&self) -> bool {
        match &self.rows {
            Rows::Growing(growing) => growing.has_expiring(),
            Rows::Sealed(sealed) => sealed.has_expiring(),
        }
    }

    /// Whether a graph search has to look at rows at all: none has ended, none can expire.
    pub fn is_all_alive(&self) -> bool {
        self.dead() == 0 && !self.has_expiring()
    }

    /// About the nearest rows that `accept` takes, nearest first: `want` of them, found by a walk
    /// as wide as `beam`. Distances are those of the graph's own codes, near the exact ones.
    pub fn walk(
        &self,
        query: &Query<'_>,
        beam: usize,
        want: usize,
        accept: Option<packed::Accept<'_>>,
    ) -> packed::Walk {
        let code = self.space().encode(query);
        match &self.rows {
            Rows::Growing(growing) => growing.graph.search(&code, beam, want, accept),
            Rows::Sealed(sealed) => sealed.graph().search(&code, beam, want, accept),
        }
    }

    /// A walk of the nearest `limit` rows, ended ones too, that waits to be taken further by
    /// [`Segment::go_on`], and by [`Segment::go_on_among`] if that is said here.
    pub fn set_out(&self, query: &Query<'_>, limit: usize, may_go_among: bool) -> packed::Stage {
        let code = self.space().encode(query);
        match &self.rows {
            Rows::Growing(growing) => growing.graph.set_out(code, limit, may_go_among),
            Rows::Sealed(sealed) => sealed.graph().set_out(code, limit, may_go_among),
        }
    }

    /// Takes a walk further, as [`packed::Graph::go_on`].
    pub fn go_on(&self, stage: &mut packed::Stage, places: usize) {
        match &self.rows {
            Rows::Growing(growing) => growing.graph.go_on(stage, places),
            Rows::Sealed(sealed) => sealed.graph().go_on(stage, places),
        }
    }

    /// Ends a walk that was set out for it as [`packed::Graph::go_on_among`].
    pub fn go_on_among(
        &self,
        stage: packed::Stage,
        beam: usize,
        want: usize,
        accept: packed::Accept<'_>,
    ) -> packed::Walk {
        match &self.rows {
            Rows::Growing(growing) => growing.graph.go_on_among(stage, beam, want, accept),
            Rows::Sealed(sealed) => sealed.graph().go_on_among(stage, beam, want, accept),
        }
    }

    /// What a walk that was set out has come to, nearest first, with approximate distances.
    pub fn near<'a>(&'a self, stage: &'a packed::Stage) -> impl Iterator<Item = Near> + 'a {
        let growing = self.as_growing();
        stage.near().map(move |near| Near {
            row: growing.map_or(near.row, |growing| growing.graph.key(near.row)),
            ..near
        })
    }

    /// About the distances of rows below [`Self::folded`], by the graph's own codes.
    pub fn measure(&self, query: &Query<'_>, rows: &[u32]) -> Vec<Near> {
        let code = self.space().encode(query);
        let distance = |row| match &self.rows {
            Rows::Growing(growing) => growing.graph.distance_to(&code, row),
            Rows::Sealed(sealed) => sealed.graph().distance_to(&code, row),
        };
        let near = rows.iter().filter_map(|row| {
            let distance = distance(*row)?;
            Some(Near {
                row: *row,
                distance,
            })
        });
        near.collect()
    }

    /// Whether there is a graph to be walked; else its codes are all there is.
    pub fn has_edges(&self) -> bool {
        match &self.rows {
            Rows::Growing(growing) => growing.graph.has_edges(),
            Rows::Sealed(sealed) => sealed.graph().degrees().0 > 0,
        }
    }

    /// How its graph's rows are coded.
    fn space(&self) -> &Space {
        match &self.rows {
            Rows::Growing(growing) => growing.graph.space(),
            Rows::Sealed(sealed) => sealed.graph().space(),
        }
    }

    /// Bytes of a row that a walk or a scan reads.
    pub fn code_bytes(&self) -> usize {
        self.space().code_bytes()
    }

    /// A row's frame as the shard's own log had it. A sealed segment leaves the vector out.
    ///
    /// # Errors
    /// [`PointError`].
    pub fn frame(&self, row: u32, log: &wal::Reader) -> Result<Bytes, PointError> {
        match &self.rows {
            Rows::Growing(growing) => {
                let at = growing.wal(row).ok_or_else(|| self.no_row(row))?;
                Ok(log.read(at)?)
            }
            Rows::Sealed(sealed) => sealed.frame(row)?.ok_or_else(|| self.no_row(row)),
        }
    }

    /// A row's vector as it was published, into `out`.
    ///
    /// # Errors
    /// [`PointError`].
    pub fn vector(
        &self,
        row: u32,
        log: &wal::Reader,
        out: &mut Vec<f32>,
    ) -> Result<(), PointError> {
        match &self.rows {
            Rows::Growing(growing) => {
                let at = growing.wal(row).ok_or_else(|| self.no_row(row))?;
                let vector_bytes = self.space().dim().len() * size_of::<f32>();
                let read = log.visit(at, vector_bytes + BESIDE_VECTOR_BYTES, |frame| {
                    let words = entry::upsert_body(frame)?.vector.as_chunks::<4>().0.iter();
                    out.clear();
                    out.extend(words.map(|word| f32::from_le_bytes(*word)));
                    Ok::<_, EntryError>(())
                });
                Ok(read??)
            }
            Rows::Sealed(sealed) => Ok(sealed.vector(row, out)?),
        }
    }

    /// How its vectors are kept in a file; `None` while it is growing.
    pub fn precision(&self) -> Option<Precision> {
        let sealed = self.as_sealed()?;
        Some(sealed.manifest.precision)
    }

    /// Appends a row's vector as its file has it; nothing while it is growing.
    ///
    /// # Errors
    /// [`PointError`].
    pub fn copy_vector(&self, row: u32, out: &mut Vec<u8>) -> Result<(), PointError> {
        match self.as_sealed() {
            Some(sealed) => Ok(sealed.copy_vector(row, out)?),
            None => Ok(()),
        }
    }

    /// The rows whose payload matches, whether they live or not.
    ///
    /// # Errors
    /// [`fields::ReadError`]; a filter names declared fields only.
    pub fn matches(&self, filter: &Filter) -> Result<RowSet, fields::ReadError> {
        match &self.rows {
            Rows::Growing(growing) => growing.fields.evaluate(filter),
            Rows::Sealed(sealed) => sealed.fields().evaluate(filter),
        }
    }

    /// How many rows match at least and at most, for less than [`Self::matches`] costs.
    ///
    /// # Errors
    /// [`fields::ReadError`].
    pub fn estimate(&self, filter: &Filter) -> Result<Estimate, fields::ReadError> {
        match &self.rows {
            Rows::Growing(growing) => growing.fields.estimate(filter),
            Rows::Sealed(sealed) => sealed.fields().estimate(filter),
        }
    }

    /// Memory its graph holds, or maps.
    pub fn graph_bytes(&self) -> usize {
        match &self.rows {
            Rows::Growing(growing) => growing.graph.bytes(),
            Rows::Sealed(sealed) => sealed.graph_bytes(),
        }
    }

    fn no_row(&self, row: u32) -> PointError {
        PointError::NoRow {
            segment: self.id.0,
            row,
        }
    }
}
