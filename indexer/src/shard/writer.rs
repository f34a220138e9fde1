//! The writer's half of a shard: append to the own log, apply, publish.
//!
//! A turn is: append every frame, hand them to the operating system, apply each, publish once. So
//! what is searchable survives `kill -9`, and a record applied twice, because the turn's progress
//! was not yet written, is a duplicate the second time.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use shoal_runtime::{ErrorKind, clock::Stopwatch, crash};
use shoal_schemas::{
    Offset, Payload, PointId, RegionName, TopicId, Vector,
    digest::{Digest, RowHash, contested_hash, row_hash},
    vector::VectorError,
};

use crate::{
    catalog::CatalogError,
    entry::{self, Body, Draft, Entry, EntryError, Stamp},
    rule::{Latest, Outcome, Says, SourceIndex, Verdict, resolve},
    segment::{
        NewRow, Place, Segment, SegmentId, Sequence, entries,
        growing::{Chunk, Growing},
        indexed,
    },
    shard::{Progress, Shared, builder::FOLD_ROWS, compact::Moving, lock, room::Standing},
    view::View,
    wal::{self, Position, Wal},
};

/// Why the writer cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The own log.
    #[error("cannot append to the shard's log")]
    Append(#[from] wal::AppendError),
    /// The own log, when it is cut.
    #[error("cannot cut the shard's log")]
    Cut(#[from] wal::CutError),
    /// The own log, when an earlier point is read back.
    #[error("cannot read the shard's log")]
    Read(#[from] wal::ReadError),
    /// A frame of the own log.
    #[error("frame {position} of the shard's log does not read")]
    Entry {
        /// Where it stands.
        position: u64,
        /// What is wrong.
        #[source]
        source: EntryError,
    },
    /// A vector in the own log is not what the collection holds.
    #[error("frame {position} of the shard's log holds a vector the collection refuses")]
    Vector {
        /// Where it stands.
        position: u64,
        /// What is wrong.
        #[source]
        source: VectorError,
    },
    /// The catalog.
    #[error("catalog fails")]
    Catalog(#[from] CatalogError),
}

impl WriteError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Append(error) => error.kind(),
            Self::Cut(error) => error.kind(),
            Self::Read(error) => error.kind(),
            Self::Entry { .. } | Self::Vector { .. } => ErrorKind::Corrupt,
            Self::Catalog(error) => error.kind(),
        }
    }
}

/// Where a change stands in the own log, to be applied from there.
#[derive(Clone, Copy, Debug)]
pub struct Appended {
    position: Position,
    hash: RowHash,
}

/// What applying one record did, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// A point was added or replaced.
    Upsert,
    /// A point was removed, or was not there.
    Delete,
    /// Another record is served, or it was applied before.
    Stale,
    /// The id is contested from now on.
    Contested,
}

/// A point about to become a row.
struct Own {
    row: NewRow,
    vector: Vector,
    payload: Payload,
}

/// Numbers of segments, handed out to the writer and the builder.
#[derive(Clone, Debug)]
pub struct SegmentNumbers(Arc<AtomicU32>);

impl SegmentNumbers {
    /// Starts at `next`.
    pub fn new(next: u32) -> Self {
        Self(Arc::new(AtomicU32::new(next)))
    }

    /// A number never given before.
    pub fn take(&self) -> SegmentId {
        SegmentId(self.0.fetch_add(1, Ordering::AcqRel))
    }

    pub(super) fn peek(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }
}

/// The only one that changes a shard.
pub struct Writer {
    /// What searches and the builder see.
    pub shared: Arc<Shared>,
    pub(super) wal: Wal,
    pub(super) regions: Vec<RegionName>,
    pub(super) next: Vec<Offset>,
    pub(super) digest: Digest,
    pub(super) contested: u64,
    pub(super) points: u64,
    pub(super) sequence: Sequence,
    pub(super) numbers: SegmentNumbers,
    pub(super) moving: Option<Moving>,
    pub(super) checkpoint_number: u64,
    pub(super) checkpoint_position: Position,
    pub(super) checkpoint_running: bool,
    pub(super) checkpoint_failed: Option<Stopwatch>,
    /// A segment was sealed or compacted: a checkpoint would let go of what it replaced.
    pub(super) checkpoint_wanted: bool,
    /// Since the last row.
    pub(super) quiet: Stopwatch,
    pub(super) buffer: Vec<u8>,
    /// Records whose version was below that of an earlier one of their source.
    pub reordered: u64,
}

impl Writer {
    /// First offset of a source not yet taken.
    pub fn next_offset(&self, source: SourceIndex) -> Offset {
        self.next
            .get(usize::from(source.0))
            .copied()
            .unwrap_or_default()
    }

    /// Appends one change to the own log's buffer.
    ///
    /// # Errors
    /// [`WriteError::Append`].
    pub fn append(&mut self, draft: &Draft) -> Result<Appended, WriteError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        draft.encode(&mut buffer);
        let hash = match draft {
            Draft::Upsert(stamp, id, point) => {
                let payload = entry::upsert_body(&buffer).map(|body| body.payload);
                row_hash(
                    id,
                    stamp.version,
                    &point.vector,
                    payload.unwrap_or_default(),
                    point.model.as_deref(),
                    point.event_time_ms,
                    point.expires_at_ms,
                )
            }
            Draft::Delete(..) | Draft::Contest(..) => RowHash::default(),
        };
        let appended = self.wal.append(&[&buffer]);
        self.buffer = buffer;
        Ok(Appended {
            position: appended?,
            hash,
        })
    }

    /// Appends that everything of a source below `next` is taken.
    ///
    /// # Errors
    /// [`WriteError::Append`].
    pub fn append_progress(&mut self, source: SourceIndex, next: Offset) -> Result<(), WriteError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        entry::encode_progress(source, next, self.shared.heard_ms(), &mut buffer);
        let appended = self.wal.append(&[&buffer]);
        self.buffer = buffer;
        appended?;
        self.set_next(source, next);
        Ok(())
    }

    /// Writes down which topic a source is from now on.
    ///
    /// # Errors
    /// [`WriteError::Append`]; a full disk may be tried again.
    pub fn append_topic(&mut self, source: SourceIndex, topic: TopicId) -> Result<(), WriteError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        entry::encode_topic(source, &topic, &mut buffer);
        let appended = self.wal.append(&[&buffer]);
        self.buffer = buffer;
        appended?;
        self.shared.topics.note(source, topic);
        Ok(())
    }

    pub(super) fn set_next(&mut self, source: SourceIndex, next: Offset) {
        let at = usize::from(source.0);
        if self.next.len() <= at {
            self.next.resize(at + 1, Offset::default());
        }
        if let Some(known) = self.next.get_mut(at) {
            *known = next.max(*known);
        }
    }

    /// Hands everything appended to the operating system.
    ///
    /// # Errors
    /// [`WriteError::Append`]; a full disk may be tried again.
    pub fn flush(&mut self) -> Result<(), WriteError> {
        self.wal.flush()?;
        self.shared
            .wal_bytes
            .store(self.wal.bytes_on_disk(), Ordering::Relaxed);
        Ok(())
    }

    /// Applies a change that stands in the own log.
    ///
    /// # Errors
    /// [`WriteError`]; the shard cannot go on then.
    pub fn apply(&mut self, appended: Appended, draft: Draft) -> Result<Applied, WriteError> {
        let Appended { position, hash } = appended;
        match draft {
            Draft::Upsert(stamp, id, point) => {
                let row = self.new_row(stamp, id.clone(), position, hash, point.expires_at_ms);
                let own = Own {
                    row,
                    vector: point.vector,
                    payload: point.payload,
                };
                self.change(stamp, id, Says::Live(position), Some(own))
            }
            Draft::Delete(stamp, id) => self.change(stamp, id, Says::Deleted, None),
            Draft::Contest(stamp, id) => self.change(stamp, id, Says::Contested, None),
        }
    }

    /// Applies a frame read back from the own log.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn apply_frame(&mut self, position: Position, frame: &[u8]) -> Result<(), WriteError> {
        let entry = Entry::decode(frame).map_err(entry_error(position))?;
        match entry {
            // These are read before anything is replayed.
            Entry::Source(..) | Entry::Topic(..) => {}
            Entry::Progress(source, next, time_ms) => {
                let heard = &self.shared.heard_before_ms;
                heard.fetch_max(time_ms, Ordering::Relaxed);
                self.set_next(source, next);
            }
            Entry::Upsert(stamp, id, body) => {
                let id = stored_id(position, id)?;
                let own = self.read_row(position, stamp, id.clone(), &body)?;
                self.change(stamp, id, Says::Live(position), Some(own))?;
            }
            Entry::Delete(stamp, id) => {
                self.change(stamp, stored_id(position, id)?, Says::Deleted, None)?;
            }
            Entry::Contest(stamp, id) => {
                self.change(stamp, stored_id(position, id)?, Says::Contested, None)?;
            }
        }
        Ok(())
    }

    fn new_row(
        &self,
        stamp: Stamp,
        id: PointId,
        wal: Position,
        hash: RowHash,
        expires_at_ms: Option<i64>,
    ) -> NewRow {
        NewRow {
            id,
            version: stamp.version,
            source: stamp.source,
            offset: stamp.offset,
            wal,
            hash,
            expires_at_ms,
        }
    }

    fn read_row(
        &self,
        position: Position,
        stamp: Stamp,
        id: PointId,
        body: &Body<'_>,
    ) -> Result<Own, WriteError> {
        let collection = &self.shared.spec.collection;
        let vector = Vector::new(&body.components(), collection.dim, collection.metric).map_err(
            |source| WriteError::Vector {
                position: position.as_u64(),
                source,
            },
        )?;
        let hash = row_hash(
            &id,
            stamp.version,
            &vector,
            body.payload,
            body.model,
            body.event_time_ms,
            body.expires_at_ms,
        );
        let row = self.new_row(stamp, id, position, hash, body.expires_at_ms);
        // Nobody asks for what is not indexed.
        let payload = match self.shared.fields.is_empty() {
            true => Payload::default(),
            false => body.payload().map_err(entry_error(position))?,
        };
        Ok(Own {
            row,
            vector,
            payload,
        })
    }

    /// Reads a point of the own log that lost earlier and is served now.
    fn restore(&self, position: Position) -> Result<Own, WriteError> {
        let frame = self.shared.log.read(position)?;
        let entry = Entry::decode(&frame).map_err(entry_error(position))?;
        let Entry::Upsert(stamp, id, body) = entry else {
            let kind = frame.first().copied().unwrap_or_default();
            return Err(entry_error(position)(EntryError::Kind { kind }));
        };
        self.read_row(position, stamp, stored_id(position, id)?, &body)
    }

    fn change(
        &mut self,
        stamp: Stamp,
        id: PointId,
        says: Says,
        own: Option<Own>,
    ) -> Result<Applied, WriteError> {
        let mut state = self.shared.catalog.read(id.as_str())?;
        let old_place = state.place;
        let was_contested = state.is_contested();
        let (served, old_hash) = match old_place.and_then(|place| self.row_marks(place)) {
            Some((served, hash)) => (Some(served), Some(hash)),
            None => (None, None),
        };
        let incoming = Latest {
            source: stamp.source,
            offset: stamp.offset,
            version: stamp.version,
            says,
        };
        let Outcome { verdict, reordered } =
            resolve(&mut state.known, incoming, served, &self.regions);
        self.reordered += u64::from(reordered);
        let mut new_hash = old_hash;
        let applied = match verdict {
            Verdict::Duplicate => return Ok(Applied::Stale),
            Verdict::Serve(position) => {
                let own = match own {
                    Some(own) if own.row.wal == position => own,
                    _ => self.restore(position)?,
                };
                new_hash = Some(own.row.hash);
                self.sequence.0 += 1;
                let carriers = match old_place {
                    Some(place) if self.holds(place, &own.vector) => self.carriers(place),
                    _ => [None, None],
                };
                state.place = Some(self.insert(own, carriers)?);
                if let Some(place) = old_place {
                    self.end(place);
                } else {
                    self.points += 1;
                }
                Applied::Upsert
            }
            Verdict::Remove => {
                new_hash = None;
                self.sequence.0 += 1;
                if let Some(place) = old_place {
                    self.end(place);
                    self.points -= 1;
                }
                state.place = None;
                Applied::Delete
            }
            Verdict::Keep => match says {
                Says::Contested => Applied::Contested,
                Says::Deleted if state.place.is_none() => Applied::Delete,
                Says::Live(_) | Says::Deleted => Applied::Stale,
            },
        };
        if !matches!(says, Says::Live(_)) {
            self.keep_entry(&id, incoming);
        }
        let is_contested = state.is_contested();
        self.digest_out(&id, was_contested, old_hash);
        self.digest_in(&id, is_contested, new_hash);
        self.contested = self.contested + u64::from(is_contested) - u64::from(was_contested);
        self.shared.catalog.put(id, state);
        Ok(applied)
    }

    fn digest_out(&mut self, id: &PointId, contested: bool, hash: Option<RowHash>) {
        if contested {
            self.digest.remove(contested_hash(id));
        } else if let Some(hash) = hash {
            self.digest.remove(hash);
        }
    }

    fn digest_in(&mut self, id: &PointId, contested: bool, hash: Option<RowHash>) {
        if contested {
            self.digest.add(contested_hash(id));
        } else if let Some(hash) = hash {
            self.digest.add(hash);
        }
    }

    fn row_marks(&self, place: Place) -> Option<(Position, RowHash)> {
        let segment = self.shared.segment(place.segment)?;
        segment.row(place.row).map(|row| (row.wal, row.hash))
    }

    /// Keeps what a record without a row said, beside the rows of its time.
    fn keep_entry(&self, id: &PointId, latest: Latest) {
        let view = self.shared.view.load();
        if let Some(growing) = view.growing().as_growing() {
            growing.push_entry(entries::Entry {
                id: id.clone(),
                latest,
                applied_ms: i64::try_from(self.shared.clock.now_ms()).unwrap_or(i64::MAX),
            });
        }
    }

    /// Makes a row. With carriers it rides on the first of them and is found by all.
    fn insert(&mut self, own: Own, carriers: [Option<Place>; 2]) -> Result<Place, WriteError> {
        let Own {
            row,
            vector,
            payload,
        } = own;
        self.quiet = Stopwatch::start();
        let mut segment = self.shared.view.load().growing().clone();
        let is_open = segment
            .as_growing()
            .is_some_and(|growing| growing.len() < self.shared.spec.engine.seal_rows);
        if !is_open {
            segment = self.begin_segment(row.wal);
        }
        let payload = indexed::payload(&self.shared.fields, row.id.as_str(), &payload).into_owned();
        let number = growing_of(&segment).push(row, &payload, self.sequence);
        let place = Place {
            segment: segment.id,
            row: number,
        };
        let vector = match self.ride(&segment, place, carriers) {
            true => None,
            false => Some(vector),
        };
        let view = self.shared.view.load();
        let open = view
            .chunks
            .last()
            .filter(|chunk| chunk.segment == segment.id && chunk.end_row() == number)
            .filter(|chunk| !chunk.is_full());
        if let Some(chunk) = open {
            chunk.push(vector);
        } else {
            let chunk = Arc::new(Chunk::new(segment.id, number));
            chunk.push(vector);
            self.shared.change_view(|view| View {
                segments: view.segments.clone(),
                chunks: view.chunks.iter().cloned().chain([chunk]).collect(),
                complete_from: view.complete_from,
            });
        }
        Ok(place)
    }

    /// Ends the growing segment, to be sealed, and begins a new one for frames at `from` and behind.
    pub(super) fn begin_segment(&self, from: Position) -> Arc<Segment> {
        let segment = self.shared.new_segment(self.numbers.take(), from);
        self.shared.change_view(|view| View {
            segments: view
                .segments
                .iter()
                .cloned()
                .chain([segment.clone()])
                .collect(),
            chunks: view.chunks.clone(),
            complete_from: view.complete_from,
        });
        self.shared.work_changed.notify_all();
        segment
    }

    /// Shows searches and waiters everything applied.
    pub fn publish(&mut self) {
        self.shared
            .applied
            .store(self.sequence.0, Ordering::Release);
        *lock(&self.shared.applied_log) = (self.wal.end(), self.next.clone());
        self.shared.progress.send_replace(Arc::new(Progress {
            next: self.next.clone(),
            digest: self.digest,
            contested: self.contested,
            points: self.points,
        }));
        // Behind it: whoever is told that the shard has caught up is told how far it came, too.
        self.shared.lag.applied(&self.next);
        // Fewer wait until it looks by itself: searches scan them for less than it takes to wake it for each.
        if self.shared.view.load().memtable_rows() >= FOLD_ROWS {
            self.shared.work_changed.notify_all();
        }
        crash::point("applied");
    }

    /// What decides whether the memtable has room for another turn.
    pub(super) fn standing(&self) -> Standing {
        let (at, lag) = (self.shared.lag.now(), self.shared.lag.read());
        Standing {
            waiting: self.shared.view.load().memtable_rows(),
            folds: lock(&self.shared.fold_limit).is_none(),
            is_searched: self.shared.is_searched(),
            at,
            held_all_at: at.saturating_sub(lag.behind),
        }
    }

    /// Waits a moment for the builder to make room.
    pub fn wait_for_room(&self) {
        self.shared.work_changed.notify_all();
        self.shared.wait_for_room();
    }
}

fn growing_of(segment: &Segment) -> &Growing {
    segment
        .as_growing()
        .expect("the last segment of a view takes rows")
}

fn entry_error(position: Position) -> impl FnOnce(EntryError) -> WriteError {
    move |source| WriteError::Entry {
        position: position.as_u64(),
        source,
    }
}

fn stored_id(position: Position, id: &str) -> Result<PointId, WriteError> {
    PointId::new(id).map_err(|_| {
        entry_error(position)(EntryError::Malformed {
            kind: 0,
            field: "id",
        })
    })
}

#[cfg(test)]
#[path = "again_tests.rs"]
mod tests;
