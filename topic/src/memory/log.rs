//! Topics and partitions of the log in memory.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use shoal_schemas::{Offset, Record, TopicId};

use crate::{Cleanup, Delivery, TopicPartition, TopicSpec, Watermarks, WriteError};

/// Kafka's own default of `max.message.bytes`.
const MAX_MESSAGE_BYTES: usize = 1_048_588;

pub(super) struct Topic {
    pub(super) spec: TopicSpec,
    pub(super) id: TopicId,
    pub(super) partitions: Vec<Log>,
}

/// One partition: records by offset, with gaps where compaction took some.
#[derive(Default)]
pub(super) struct Log {
    records: BTreeMap<u64, Record>,
    low: u64,
    next: u64,
}

impl Topic {
    pub(super) fn new(spec: &TopicSpec, id: TopicId) -> Self {
        let mut found = spec.clone();
        let cleanup = match spec.cleanup {
            Cleanup::Compact => "compact",
            Cleanup::Delete => "delete",
        };
        found
            .settings
            .entry("cleanup.policy".into())
            .or_insert_with(|| cleanup.into());
        found.replication_factor.get_or_insert(1);
        Self {
            partitions: (0..spec.partitions).map(|_| Log::default()).collect(),
            spec: found,
            id,
        }
    }

    pub(super) fn append(
        &mut self,
        to: &TopicPartition,
        record: Record,
    ) -> Result<Delivery, WriteError> {
        let limit = self.spec.settings.get("max.message.bytes");
        let limit = limit
            .and_then(|limit| limit.parse().ok())
            .unwrap_or(MAX_MESSAGE_BYTES);
        let record_bytes = record.size_bytes();
        if record_bytes > limit {
            return Err(WriteError::TooLarge {
                record_bytes,
                partition: to.clone(),
            });
        }
        if record.key.is_none() && self.spec.cleanup == Cleanup::Compact {
            return Err(WriteError::Refused {
                partition: to.clone(),
                detail: "a compacted topic takes no record without a key".into(),
            });
        }
        let index = usize::try_from(to.partition.0).unwrap_or(usize::MAX);
        let Some(log) = self.partitions.get_mut(index) else {
            return Err(WriteError::Missing {
                partition: to.clone(),
            });
        };
        let offset = log.next;
        log.records.insert(offset, record);
        log.next += 1;
        Ok(Delivery {
            partition: to.partition,
            offset: Offset(offset),
        })
    }
}

impl Log {
    pub(super) fn watermarks(&self) -> Watermarks {
        Watermarks {
            low: Offset(self.low),
            high: Offset(self.next),
        }
    }

    pub(super) fn from(&self, offset: Offset) -> impl Iterator<Item = (Offset, &Record)> {
        self.records
            .range(offset.0..)
            .map(|(offset, record)| (Offset(*offset), record))
    }

    pub(super) fn compact(&mut self, drop_tombstones: bool) {
        let mut newest: HashMap<Option<Bytes>, u64> = HashMap::new();
        for (offset, record) in &self.records {
            newest.insert(record.key.clone(), *offset);
        }
        self.records.retain(|offset, record| {
            newest.get(&record.key) == Some(offset) && !(drop_tombstones && record.value.is_none())
        });
    }

    pub(super) fn trim(&mut self, low: Offset) {
        self.low = low.0.clamp(self.low, self.next);
        self.records = self.records.split_off(&self.low);
    }
}

pub(super) fn find<'a>(
    topics: &'a BTreeMap<String, Topic>,
    at: &TopicPartition,
) -> Option<&'a Log> {
    let index = usize::try_from(at.partition.0).ok()?;
    topics.get(&*at.topic)?.partitions.get(index)
}

pub(super) fn find_mut<'a>(
    topics: &'a mut BTreeMap<String, Topic>,
    at: &TopicPartition,
) -> Option<&'a mut Log> {
    let index = usize::try_from(at.partition.0).ok()?;
    topics.get_mut(&*at.topic)?.partitions.get_mut(index)
}
