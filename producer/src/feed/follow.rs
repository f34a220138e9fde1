//! The thread of a feed: what the target holds, then record after record of the source.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, executor::block_on};
use shoal_schemas::{
    Collection, Offset, Partition, PointId, Record, Version,
    headers::{FED_AGAIN, FED_BY, FED_FROM, Meta},
    route,
};
use shoal_topic::{
    FetchedRecord, Reader, Start, TopicPartition, WriteError, writer::DeliveryFuture,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Feed, FeedError, Progress,
    held::{Holdings, Origin, Written},
};

const BATCH: usize = 1000;
/// How long the source may be silent before the target is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How long the target is looked at: what is there comes at once.
const GLANCE: Duration = Duration::from_millis(1);
/// How long the broker may take to tell an end.
const ENDS: Duration = Duration::from_secs(10);
/// Copies that may be under way.
const UNDER_WAY: usize = 10_000;

/// One run of a feed, from the beginning of both topics.
struct Run<'a> {
    feed: &'a Feed,
    cancel: &'a CancellationToken,
    told: &'a watch::Sender<Progress>,
    holdings: Holdings,
    source_topic: Arc<str>,
    target_topic: Arc<str>,
    targets: Vec<TopicPartition>,
    target: Box<dyn Reader>,
    /// First offset not read, by the source's partitions.
    read: Vec<Offset>,
    /// Where the source's partitions ended when the run began, until they are read up to there.
    left: Vec<Option<Offset>>,
    /// Whether that has been seen to.
    is_looked_through: bool,
    /// Whether another feed has copied into the target meanwhile.
    is_mixed: bool,
    under_way: VecDeque<UnderWay>,
    seen: u64,
    copied: u64,
    passed_over: u64,
    deleted: u64,
}

/// A copy that is not acknowledged yet.
struct UnderWay {
    source: usize,
    offset: Offset,
    delivery: DeliveryFuture,
}

/// Where a record of the source was.
fn origin_of(one: &FetchedRecord) -> Origin {
    Origin {
        partition: Partition(u32::try_from(one.source).unwrap_or(u32::MAX)),
        offset: one.offset,
    }
}

pub(super) fn partitions(collection: &Collection) -> Vec<TopicPartition> {
    let topic: Arc<str> = collection.topic().into();
    let all = (0..collection.partitions).map(|number| TopicPartition {
        topic: topic.clone(),
        partition: Partition(number),
    });
    all.collect()
}

impl Feed {
    /// Copies until it is cancelled.
    pub(super) fn follow(
        &self,
        cancel: &CancellationToken,
        told: &watch::Sender<Progress>,
    ) -> Result<(), FeedError> {
        let targets = partitions(&self.to);
        let from_beginning = |all: &[TopicPartition]| {
            let starts = all.iter().map(|one| (one.clone(), Start::Beginning));
            self.cluster
                .connect
                .open_reader(&starts.collect::<Vec<_>>())
        };
        let sources = partitions(&self.from);
        let mut run = Run {
            feed: self,
            cancel,
            told,
            holdings: Holdings::default(),
            source_topic: self.from.topic().into(),
            target_topic: self.to.topic().into(),
            target: from_beginning(&targets)?,
            targets,
            read: vec![Offset(0); sources.len()],
            left: vec![None; sources.len()],
            is_looked_through: false,
            is_mixed: false,
            under_way: VecDeque::new(),
            seen: 0,
            copied: 0,
            passed_over: 0,
            deleted: 0,
        };
        run.scan()?;
        run.look_ahead(&sources)?;
        let mut source = from_beginning(&sources)?;
        while !cancel.is_cancelled() {
            run.glance()?;
            let fetched = source.poll(BATCH, POLL)?;
            for record in &fetched.records {
                run.take(record)?;
            }
            for (partition, end) in fetched.ends {
                run.has_read(partition, end);
            }
            run.delete_lost()?;
            run.settle(0)?;
            run.tell();
        }
        run.settle(UNDER_WAY)
    }
}

impl Run<'_> {
    /// Reads what the target holds when the run begins.
    fn scan(&mut self) -> Result<(), FeedError> {
        let admin = &self.feed.cluster.admin;
        let mut left = Vec::new();
        for at in &self.targets {
            let ends = admin.watermarks(at, ENDS)?;
            left.push((ends.low < ends.high).then_some(ends.high));
        }
        let mut records = 0_u64;
        while left.iter().any(Option::is_some) && !self.cancel.is_cancelled() {
            let fetched = self.target.poll(BATCH, POLL)?;
            let mut reach = |partition: usize, next: Offset| {
                if let Some(end) = left.get_mut(partition)
                    && end.is_some_and(|end| next >= end)
                {
                    *end = None;
                }
            };
            for one in &fetched.records {
                records += 1;
                self.note(one, true);
                reach(one.source, one.offset.next());
            }
            for (partition, end) in fetched.ends {
                reach(partition, end);
            }
        }
        if records > 0 {
            info!(records, "feed goes on with what its target holds");
        }
        self.bring_back()
    }

    /// Notes where the source ends, if an earlier run has copied of it.
    fn look_ahead(&mut self, sources: &[TopicPartition]) -> Result<(), FeedError> {
        let newest = self.holdings.newest_copies();
        if newest.is_empty() {
            return Ok(());
        }
        let mut ends = BTreeMap::new();
        for (at, left) in sources.iter().zip(&mut self.left) {
            let marks = self.feed.cluster.admin.watermarks(at, ENDS)?;
            *left = (marks.low < marks.high).then_some(marks.high);
            ends.insert(at.partition, marks.high);
        }
        for (partition, copied) in newest {
            let end = ends.get(&partition).copied().unwrap_or(Offset(0));
            if copied >= end {
                return Err(FeedError::Anew {
                    topic: self.source_topic.to_string(),
                    partition,
                    copied,
                    end,
                });
            }
        }
        Ok(())
    }

    /// Deletes what the source has deleted so long ago that its deletes are gone too, once all of it is
    /// read that was there when the run began.
    fn delete_lost(&mut self) -> Result<(), FeedError> {
        if self.is_looked_through || self.left.iter().any(Option::is_some) {
            return Ok(());
        }
        self.is_looked_through = true;
        for (key, copied) in self.holdings.take_lost() {
            let id = PointId::from_key(Some(&key)).ok();
            let Some(to) = id.and_then(|id| self.target_of(&id)) else {
                continue;
            };
            let version = Version::from_raw(copied.version.raw().saturating_add(1));
            let meta = Meta {
                version,
                origin: None,
                residency: None,
                trace: None,
            };
            let mut delete = Record {
                key: Some(key),
                timestamp_ms: i64::try_from(version.millis()).unwrap_or(i64::MAX),
                ..Record::default()
            };
            meta.encode(&mut delete.headers);
            self.sign(&mut delete, copied.origin);
            let delivery = self.send(&to, &delete)?;
            self.under_way.push_back(UnderWay {
                source: usize::try_from(copied.origin.partition.0).unwrap_or(usize::MAX),
                offset: copied.origin.offset,
                delivery,
            });
            self.deleted += 1;
        }
        if self.deleted > 0 {
            warn!(
                points = self.deleted,
                "deletes that the source has no more of are made up for"
            );
        }
        Ok(())
    }

    /// Reads what has come into the target meanwhile, its own copies too.
    fn glance(&mut self) -> Result<(), FeedError> {
        loop {
            let fetched = self.target.poll(BATCH, GLANCE)?;
            for one in &fetched.records {
                self.note(one, false);
            }
            if self.is_mixed {
                return Err(FeedError::Mixed);
            }
            if fetched.records.len() < BATCH {
                return self.bring_back();
            }
        }
    }

    fn note(&mut self, one: &FetchedRecord, scanning: bool) {
        let written = Written::of(&one.record, &self.source_topic, &self.target_topic);
        let at = (one.source, one.offset);
        let is_ours = one.record.header(FED_BY) == Some(self.feed.run.as_bytes());
        self.is_mixed |= !scanning && !is_ours && matches!(written, Written::Copied(_));
        self.holdings.note(&one.record, at, written, scanning);
    }

    /// Writes direct writes again that a copy came behind, so that they are the newest of their keys.
    ///
    /// Once all is read that there is: what has overtaken one by itself is left alone.
    fn bring_back(&mut self) -> Result<(), FeedError> {
        for (partition, offset) in self.holdings.take_buried() {
            self.write_again(partition, offset)?;
        }
        Ok(())
    }

    fn write_again(&mut self, partition: usize, offset: Offset) -> Result<(), FeedError> {
        let Some(at) = self.targets.get(partition).cloned() else {
            return Ok(());
        };
        let starts = [(at.clone(), Start::At(offset))];
        let mut reader = self.feed.cluster.connect.open_reader(&starts)?;
        while !self.cancel.is_cancelled() {
            let fetched = reader.poll(1, POLL)?;
            if let Some(found) = fetched.records.first() {
                if found.offset == offset {
                    let mut again = found.record.clone();
                    let partition = at.partition;
                    let origin = Origin { partition, offset };
                    origin.note(&mut again, FED_AGAIN, &self.target_topic);
                    block_on(self.send(&at, &again)?)?;
                } else {
                    warn!(partition = %at, %offset, "a direct write was compacted before a copy behind it was undone");
                }
                return Ok(());
            }
            if !fetched.ends.is_empty() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Copies one record of the source, unless the target has no use for it.
    fn take(&mut self, one: &FetchedRecord) -> Result<(), FeedError> {
        self.seen += 1;
        let to = self.place(one);
        if !self.is_looked_through {
            self.holdings.find(&one.record, origin_of(one));
        }
        match to {
            Some(to) if self.holdings.lacks(&one.record, one.offset) => {
                let delivery = self.copy(&to, one)?;
                self.under_way.push_back(UnderWay {
                    source: one.source,
                    offset: one.offset,
                    delivery,
                });
            }
            _ => self.passed_over += 1,
        }
        self.has_read(one.source, one.offset.next());
        Ok(())
    }

    /// Where a record goes; `None` if the source's shard refuses it for its place.
    fn place(&self, one: &FetchedRecord) -> Option<TopicPartition> {
        let key = std::str::from_utf8(one.record.key.as_ref()?).ok()?;
        let id = PointId::new(key).ok()?;
        let at = route::partition_of(&self.feed.from, &id);
        if usize::try_from(at.0).ok()? != one.source {
            return None;
        }
        self.target_of(&id)
    }

    /// Where the records of a point are in the target.
    fn target_of(&self, id: &PointId) -> Option<TopicPartition> {
        let to = route::partition_of(&self.feed.to, id);
        self.targets.get(usize::try_from(to.0).ok()?).cloned()
    }

    fn copy(
        &mut self,
        to: &TopicPartition,
        one: &FetchedRecord,
    ) -> Result<DeliveryFuture, FeedError> {
        let mut copy: Record = one.record.clone();
        self.sign(&mut copy, origin_of(one));
        self.send(to, &copy)
    }

    /// Says of a copy where it was, and who has made it.
    fn sign(&self, copy: &mut Record, origin: Origin) {
        origin.note(copy, FED_FROM, &self.source_topic);
        copy.headers.retain(|(name, _)| name != FED_BY);
        let run = self.feed.run.clone().into();
        copy.headers.push((FED_BY.to_owned(), run));
    }

    fn send(&mut self, to: &TopicPartition, record: &Record) -> Result<DeliveryFuture, FeedError> {
        loop {
            match self.feed.cluster.writer.send(to, record) {
                Err(WriteError::QueueFull) if !self.under_way.is_empty() => self.settle(1)?,
                other => return Ok(other?),
            }
        }
    }

    /// Takes note of copies that are acknowledged; waits for at least so many, and for those that are
    /// too many.
    fn settle(&mut self, least: usize) -> Result<(), FeedError> {
        let too_many = self.under_way.len().saturating_sub(UNDER_WAY);
        let mut due = least.max(too_many);
        while let Some(front) = self.under_way.front_mut() {
            let outcome = if due > 0 {
                Some(block_on(&mut front.delivery))
            } else {
                (&mut front.delivery).now_or_never()
            };
            let Some(outcome) = outcome else {
                break;
            };
            outcome?;
            due = due.saturating_sub(1);
            self.copied += 1;
            self.under_way.pop_front();
        }
        Ok(())
    }

    fn has_read(&mut self, partition: usize, next: Offset) {
        if let Some(read) = self.read.get_mut(partition) {
            *read = next.max(*read);
        }
        if let Some(left) = self.left.get_mut(partition)
            && left.is_some_and(|end| next >= end)
        {
            *left = None;
        }
    }

    fn tell(&self) {
        let mut next = self.read.clone();
        // The first that is under way of each partition.
        for one in self.under_way.iter().rev() {
            if let Some(next) = next.get_mut(one.source) {
                *next = one.offset;
            }
        }
        self.told.send_replace(Progress {
            next,
            seen: self.seen,
            copied: self.copied,
            passed_over: self.passed_over,
            deleted: self.deleted,
            failed: None,
        });
    }
}
