//! What a shard reads of Kafka: which partitions, from where, and how much of them ahead.

use shoal_runtime::ErrorKind;
use shoal_topic::{ReadError, Reader, Start, TopicPartition};

use crate::{
    rule::SourceIndex,
    shard::{Shared, run::ShardError, turns::Turns},
};

/// The sources that are read, as (index, partition).
pub(super) fn active_sources(shared: &Shared) -> Vec<(SourceIndex, TopicPartition)> {
    let wanted = shared.spec.sources.iter().filter_map(|one| {
        let index = shared
            .sources
            .iter()
            .position(|known| known.source == one.source)?;
        let partition = TopicPartition {
            topic: one.source.topic.clone(),
            partition: one.source.partition,
        };
        Some((SourceIndex(u16::try_from(index).ok()?), partition))
    });
    wanted.collect()
}

/// A broker that is away comes back; a topic that is gone was dropped, and the owner lets go of
/// the shard as soon as it reads so.
pub(super) fn is_waited_for(error: &ReadError) -> bool {
    error.kind() == ErrorKind::Retry || matches!(error, ReadError::Missing { .. })
}

impl Turns {
    /// Whether the open reader holds more than twice as much as it should by now.
    pub(super) fn fetches_too_much(&self) -> bool {
        let now = self.shared.spec.pressure.ahead_bytes();
        now.zip(self.ahead_bytes)
            .is_some_and(|(now, held)| held / 2 > now)
    }

    pub(super) fn open_reader(&mut self) -> Result<Box<dyn Reader>, ShardError> {
        self.ahead_bytes = self.shared.spec.pressure.ahead_bytes();
        let starts: Vec<_> = self
            .active
            .iter()
            .map(|(index, partition)| {
                let next = self.writer.next_offset(*index);
                // Nothing taken yet: the oldest there is, which need not be offset 0.
                let start = if next.0 == 0 {
                    Start::Beginning
                } else {
                    Start::At(next)
                };
                (partition.clone(), start)
            })
            .collect();
        let connect = &self.cluster.connect;
        let opened = match self.ahead_bytes {
            Some(ahead_bytes) => connect.open_reader_within(&starts, ahead_bytes),
            None => connect.open_reader(&starts),
        };
        opened.map_err(|source| ShardError::Read {
            shard: self.shared.spec.label(),
            source,
        })
    }
}
