//! The shard's turns: poll, admit, append, apply, publish, over and over.
//!
//! Back-pressure is not polling: while the memtable has no [`room`](super::room), or the own log's disk is, nothing is
//! asked of Kafka. A broker that is away is waited for; searches go on meanwhile.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use metrics::{counter, gauge, histogram};
use shoal_runtime::{ErrorKind, chain, clock::Stopwatch, priority::Breath};
use shoal_schemas::{Offset, Record, Version, avro::WriterSchemas, headers::TraceParent};
use shoal_topic::{Cluster, Fetched, ReadError, TopicPartition};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    admit::{Admitted, Gate, admit},
    dlq::{self, Refused},
    entry::{Draft, Stamp},
    metrics as names,
    pressure::Reached,
    rule::SourceIndex,
    shard::{
        Shared,
        cpu::CpuMeter,
        reading::{active_sources, is_waited_for},
        room::Room,
        run::ShardError,
        writer::{Appended, Applied, WriteError, Writer},
    },
};

/// How long an idle poll waits.
const IDLE: Duration = Duration::from_millis(100);
/// How far a turn's breaths are from its begin and from each other: a turn of many records takes milliseconds, and
/// searches may want its processor. One of few records takes none, for they are waited for.
const BREATH: Duration = Duration::from_micros(200);
/// How long a failed step rests before it is tried again.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(500);
/// How long a closing shard waits for its last checkpoint.
const LAST_CHECKPOINT: Duration = Duration::from_secs(15);
/// How long after the order to close a last checkpoint is still begun.
const BEGIN_LAST_CHECKPOINT: Duration = Duration::from_secs(3);
/// Growth of the own log worth a checkpoint when the shard closes.
const CLOSING_GROWTH_BYTES: u64 = 1 << 20;

/// How a shard's turns end.
pub(super) enum Ended {
    /// It was cancelled.
    Cancelled,
    /// It cannot go on from where it is, for this reason.
    Gone(String),
    /// It has caught up, which is what it was to take turns for.
    CaughtUp,
}

/// How long a shard takes turns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Until it has held everything that the broker had.
    CaughtUp,
    /// Until it is cancelled.
    Cancelled,
}

/// What one turn brought.
#[derive(Default)]
struct Turn {
    drafts: Vec<(Appended, Draft)>,
    refused: Vec<Refused>,
    timestamps_ms: Vec<i64>,
    traces: Vec<(u64, TraceParent)>,
}

/// A shard that is open and takes turns.
pub(super) struct Turns {
    pub(super) active: Vec<(SourceIndex, TopicPartition)>,
    pub(super) writer: Writer,
    pub(super) shared: Arc<Shared>,
    pub(super) cluster: Cluster,
    schemas: Arc<dyn WriterSchemas>,
    pub(super) cancel: CancellationToken,
    /// When the broker was last found silent, until it is heard again.
    pub(super) silent_at: Option<Duration>,
    /// Wall time at which something last came from the broker, or turns began; milliseconds.
    pub(super) brought_ms: u64,
    room: Room,
    /// What the open reader may hold, if memory is limited.
    pub(super) ahead_bytes: Option<u64>,
    /// A turn was cancelled between append and apply: what is in memory is of no moment.
    is_torn: bool,
}

impl Turns {
    /// Starts from where the writer is.
    pub(super) fn new(
        writer: Writer,
        cluster: Cluster,
        schemas: Arc<dyn WriterSchemas>,
        cancel: CancellationToken,
    ) -> Self {
        let shared = writer.shared.clone();
        let room = Room::of(shared.spec.engine.memtable_rows);
        Self {
            active: active_sources(&shared),
            writer,
            cluster,
            schemas,
            cancel,
            silent_at: None,
            brought_ms: shared.clock.now_ms(),
            room,
            ahead_bytes: None,
            is_torn: false,
            shared,
        }
    }

    /// Takes turns, with a reader of its own.
    ///
    /// # Errors
    /// [`ShardError`], when the shard cannot go on.
    pub(super) fn take_turns(&mut self, until: Until) -> Result<Ended, ShardError> {
        let mut reader = None;
        let label = self.shared.spec.label();
        let mut cpu = CpuMeter::start(label, "writer");
        let batch = self.shared.spec.engine.batch_records.get();
        let checkpoint_bytes = self.shared.spec.engine.checkpoint_bytes.as_u64();
        while !self.cancel.is_cancelled() {
            self.shared.note_complete();
            if until == Until::CaughtUp && self.shared.is_searched() {
                return Ok(Ended::CaughtUp);
            }
            if cpu.tick() {
                self.report();
            }
            let more = self
                .writer
                .tend()
                .map_err(|error| self.write_error(error))?;
            let begun = self.writer.maybe_checkpoint(checkpoint_bytes);
            self.retry_when_full(begun)?;
            if let Some(why) = super::lock(&self.shared.unfit).take() {
                return Ok(Ended::Gone(why));
            }
            if self.note_told()? {
                reader = None;
                continue;
            }
            if let Some(reached) = self.shared.spec.pressure.reached() {
                if reached == Reached::Memory {
                    // What it has fetched ahead is memory, too.
                    reader = None;
                    self.writer.seal_soon();
                }
                self.writer.wait_for_room();
                continue;
            }
            let may_take = self.shared.spec.pressure.may_take();
            if !(may_take && self.room.admits(self.writer.standing())) {
                self.writer.wait_for_room();
                continue;
            }
            // More shards may share the memory budget than did when it was opened.
            reader = reader.filter(|_| !self.fetches_too_much());
            let reader = match &mut reader {
                Some(open) => open,
                closed => closed.insert(self.open_reader()?),
            };
            let timeout = if more { Duration::ZERO } else { IDLE };
            match reader.poll(batch, timeout) {
                Ok(fetched) => {
                    self.shared.spec.pressure.took(fetched.bytes());
                    // A poll that brings nothing says nothing of the broker.
                    let brings = !(fetched.records.is_empty() && fetched.ends.is_empty());
                    let heard = |at| brings || self.shared.lag.was_heard_after(at);
                    if self.silent_at.is_some_and(heard) {
                        self.silent_at = None;
                        info!(shard = %self.shared.spec.label(), "broker answers again");
                    }
                    if brings && let Some(why) = self.why_too_late(&fetched) {
                        return Ok(Ended::Gone(why));
                    }
                    self.take(fetched)?;
                }
                Err(error) if is_waited_for(&error) => self.wait_for_broker(&error),
                Err(ReadError::OutOfRange { partition, offset }) => {
                    return Ok(Ended::Gone(format!(
                        "{partition} does not hold offset {offset}"
                    )));
                }
                Err(source) => {
                    return Err(ShardError::Read {
                        shard: self.shared.spec.label(),
                        source,
                    });
                }
            }
        }
        Ok(Ended::Cancelled)
    }

    fn take(&mut self, fetched: Fetched) -> Result<(), ShardError> {
        if fetched.records.is_empty() && fetched.ends.is_empty() {
            return Ok(());
        }
        let before = self.writer.reordered;
        let fetched_records = fetched.records.len();
        let mut next: Vec<_> = self
            .active
            .iter()
            .map(|(index, _)| self.writer.next_offset(*index))
            .collect();
        let mut turn = Turn::default();
        let mut breath = Breath::every(BREATH);
        for one in fetched.records {
            let (Some((index, _)), Some(next)) =
                (self.active.get(one.source), next.get_mut(one.source))
            else {
                continue;
            };
            if one.offset < *next {
                continue;
            }
            *next = one.offset.next();
            let stamp = Stamp {
                source: *index,
                offset: one.offset,
                version: Version::default(),
            };
            breath.take();
            if !self.admit(stamp, one.record, &mut turn)? {
                self.is_torn = true;
                return Ok(());
            }
        }
        for (source, end) in fetched.ends {
            if let Some(next) = next.get_mut(source) {
                *next = end.max(*next);
            }
        }
        let next: Vec<_> = self
            .active
            .iter()
            .map(|(index, _)| *index)
            .zip(next)
            .collect();
        let had_records = fetched_records > 0;
        self.commit(turn, &next, &mut breath)?;
        if had_records {
            let shard = self.shared.spec.label();
            counter!(names::RECORDS_IN_TOTAL, "shard" => shard.clone())
                .increment(u64::try_from(fetched_records).unwrap_or(u64::MAX));
            counter!(names::RECORDS_REORDERED_TOTAL, "shard" => shard)
                .increment(self.writer.reordered - before);
        }
        Ok(())
    }

    /// Admits one record into the turn; false if the shard was cancelled while it waited.
    fn admit(&mut self, stamp: Stamp, record: Record, turn: &mut Turn) -> Result<bool, ShardError> {
        let admitted = loop {
            let gate = Gate {
                collection: &self.shared.spec.collection,
                partition: self.shared.spec.shard,
                region: &self.shared.spec.region,
                schemas: &*self.schemas,
            };
            match admit(&gate, stamp, &record) {
                Ok(admitted) => break admitted,
                Err(error) => {
                    warn!(
                        shard = %self.shared.spec.label(),
                        offset = stamp.offset.0,
                        error = %chain(&error),
                        "schema registry is away, the shard waits"
                    );
                    dlq::wait(&self.cancel, RETRY_AFTER);
                    if self.cancel.is_cancelled() {
                        return Ok(false);
                    }
                }
            }
        };
        match admitted {
            Admitted::Change { draft, trace } => {
                turn.timestamps_ms.push(record.timestamp_ms);
                turn.traces
                    .extend(trace.map(|trace| (stamp.offset.0, trace)));
                self.append(draft, turn)
            }
            Admitted::Refused {
                rejection,
                contested,
            } => {
                let source = self.shared.sources.get(usize::from(stamp.source.0));
                if let Some(spec) = source {
                    counter!(
                        names::RECORDS_REJECTED_TOTAL,
                        "shard" => self.shared.spec.label(),
                        "reason" => rejection.reason.code()
                    )
                    .increment(1);
                    debug!(offset = stamp.offset.0, reason = %rejection, "record refused");
                    turn.refused.push(Refused {
                        source: spec.source.clone(),
                        offset: stamp.offset,
                        record,
                        rejection,
                    });
                }
                match contested {
                    Some(draft) => self.append(draft, turn),
                    None => Ok(true),
                }
            }
        }
    }

    fn append(&mut self, draft: Draft, turn: &mut Turn) -> Result<bool, ShardError> {
        loop {
            let appended = self.writer.append(&draft);
            if let Some(appended) = self.retry_when_full(appended)? {
                turn.drafts.push((appended, draft));
                return Ok(true);
            }
            if self.cancel.is_cancelled() {
                return Ok(false);
            }
        }
    }

    /// Writes, applies and shows a turn, and notes how far it reached.
    fn commit(
        &mut self,
        turn: Turn,
        next: &[(SourceIndex, Offset)],
        breath: &mut Breath,
    ) -> Result<(), ShardError> {
        // Until everything appended is applied.
        self.is_torn = true;
        if turn.refused.is_empty() && !self.progress(next)? {
            return Ok(());
        }
        if !self.flush()? {
            return Ok(());
        }
        let mut outcomes = [0u64; 4];
        for (appended, draft) in turn.drafts {
            breath.take();
            let applied = self
                .writer
                .apply(appended, draft)
                .map_err(|error| self.write_error(error))?;
            let at = match applied {
                Applied::Upsert => 0,
                Applied::Delete => 1,
                Applied::Stale => 2,
                Applied::Contested => 3,
            };
            if let Some(count) = outcomes.get_mut(at) {
                *count += 1;
            }
        }
        self.writer.publish();
        self.is_torn = false;
        if !turn.refused.is_empty() {
            // The owner reads the same records and refuses the same ones.
            let spec = &self.shared.spec;
            let done = spec.is_replica
                || spec.is_follower.load(Ordering::Relaxed)
                || dlq::put(
                    &self.cluster,
                    &*self.shared.clock,
                    &turn.refused,
                    &self.cancel,
                );
            // Not noted as taken: the next start reads these records again, to no harm.
            if !done || !self.progress(next)? || !self.flush()? {
                return Ok(());
            }
            self.writer.publish();
        }
        let shard = self.shared.spec.label();
        for (count, outcome) in outcomes
            .into_iter()
            .zip(["upsert", "delete", "stale", "contested"])
        {
            if count > 0 {
                counter!(names::RECORDS_APPLIED_TOTAL, "shard" => shard.clone(), "outcome" => outcome)
                    .increment(count);
            }
        }
        let now_ms = i64::try_from(self.shared.clock.now_ms()).unwrap_or(i64::MAX);
        let visible = histogram!(names::EVENT_TO_SEARCHABLE_SECONDS, "shard" => shard.clone());
        for written_ms in turn.timestamps_ms {
            let millis = u64::try_from(now_ms.saturating_sub(written_ms)).unwrap_or(0);
            visible.record(Duration::from_millis(millis).as_secs_f64());
        }
        for (offset, trace) in turn.traces {
            debug!(shard, offset, traceparent = %trace, "record is searchable");
        }
        Ok(())
    }

    fn progress(&mut self, next: &[(SourceIndex, Offset)]) -> Result<bool, ShardError> {
        for (index, next) in next {
            while *next > self.writer.next_offset(*index) {
                let appended = self.writer.append_progress(*index, *next);
                if self.retry_when_full(appended)?.is_none() && self.cancel.is_cancelled() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    pub(super) fn flush(&mut self) -> Result<bool, ShardError> {
        loop {
            let flushed = self.writer.flush();
            if self.retry_when_full(flushed)?.is_some() {
                return Ok(true);
            }
            if self.cancel.is_cancelled() {
                return Ok(false);
            }
        }
    }

    /// `None` after a rest if the disk was full; any other failure ends the shard.
    pub(super) fn retry_when_full<T>(
        &self,
        outcome: Result<T, WriteError>,
    ) -> Result<Option<T>, ShardError> {
        let is_full = &self.shared.is_disk_full;
        match outcome {
            Ok(value) => {
                if is_full.load(Ordering::Relaxed) {
                    is_full.store(false, Ordering::Relaxed);
                    info!(shard = %self.shared.spec.label(), "disk has room again, ingest goes on");
                }
                Ok(Some(value))
            }
            Err(error) if error.kind() == ErrorKind::Retry => {
                // Said once, not at every try.
                if !is_full.swap(true, Ordering::Relaxed) {
                    warn!(
                        shard = %self.shared.spec.label(),
                        folder = %self.shared.spec.folder.display(),
                        error = %chain(&error),
                        "disk is full: ingest stops, searches go on; make room to resume"
                    );
                }
                dlq::wait(&self.cancel, RETRY_AFTER);
                Ok(None)
            }
            Err(error) => Err(self.write_error(error)),
        }
    }

    fn write_error(&self, source: WriteError) -> ShardError {
        ShardError::Write {
            shard: self.shared.spec.label(),
            source,
        }
    }

    fn report(&self) {
        let shard = self.shared.spec.label();
        let progress = Arc::clone(&self.shared.progress().borrow());
        let (view, _) = self.shared.moment();
        let lag = self.shared.lag.read();
        let number = |count: u64| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        gauge!(names::POINTS, "shard" => shard.clone()).set(number(progress.points));
        gauge!(names::CONTESTED_IDS, "shard" => shard.clone()).set(number(progress.contested));
        gauge!(names::MEMTABLE_ROWS, "shard" => shard.clone()).set(f64::from(view.memtable_rows()));
        gauge!(names::SEGMENTS, "shard" => shard.clone()).set(f64::from(
            u32::try_from(view.searched().count()).unwrap_or(u32::MAX),
        ));
        gauge!(names::LAG_RECORDS, "shard" => shard.clone()).set(number(lag.records));
        gauge!(names::LAG_SECONDS, "shard" => shard.clone())
            .set(self.shared.behind().as_secs_f64());
        gauge!(names::WAL_BYTES, "shard" => shard.clone())
            .set(bytes_gauge(self.shared.wal_bytes()));
        gauge!(names::INDEX_BYTES, "shard" => shard).set(bytes_gauge(view.graph_bytes()));
    }

    /// Stores a last checkpoint if it is worth it, and makes the own log durable.
    pub(super) fn close(&mut self) -> Result<(), ShardError> {
        let watch = Stopwatch::start();
        let grown = self
            .shared
            .spec
            .engine
            .checkpoint_bytes
            .as_u64()
            .min(CLOSING_GROWTH_BYTES);
        let mut begun = false;
        while !self.is_torn && watch.elapsed() < LAST_CHECKPOINT {
            self.writer
                .tend()
                .map_err(|error| self.write_error(error))?;
            if self.writer.is_checkpointing() {
                self.writer.wait_for_room();
                continue;
            }
            if begun || watch.elapsed() > BEGIN_LAST_CHECKPOINT {
                break;
            }
            // While a compaction is under way there is none: the log is replayed instead.
            match self.writer.maybe_checkpoint(grown) {
                Ok(true) => begun = true,
                Ok(false) => break,
                Err(error) if error.kind() == ErrorKind::Retry => break,
                Err(error) => return Err(self.write_error(error)),
            }
        }
        if !self.is_torn {
            // How long the shard will have been away is counted from here.
            let home = SourceIndex(0);
            let noted = self
                .writer
                .append_progress(home, self.writer.next_offset(home))
                .and_then(|()| self.writer.flush());
            if let Err(error) = noted {
                warn!(
                    shard = %self.shared.spec.label(),
                    error = %chain(&error),
                    "the time of closing is not written down"
                );
            }
        }
        if let Err(error) = self.shared.sync() {
            warn!(
                shard = %self.shared.spec.label(),
                error = %chain(&error),
                "the log could not be made durable while closing; Kafka still holds its records"
            );
        }
        Ok(())
    }
}

#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "a gauge is a float; nobody reads single bytes off a terabyte"
)]
fn bytes_gauge(bytes: u64) -> f64 {
    bytes as f64
}
