//! Following partitions: one client a reader, one queue a partition.
//!
//! Each partition's queue is split from the client's before anything is fetched, so a record, an
//! error or an end is known to belong to its partition without looking at names (two sources of
//! a shard have the same partition number). A wake-up flag stands for "some queue has something".
//!
//! librdkafka reports an end without its offset. Where the last record is the one before the
//! broker's end, that is the offset. Where it is not, what lies between is either new or a gap.
//! What is new is on its way and comes in a moment. Only when nothing does, the reader seeks to
//! where it is, and an end that comes before any record proves the gap: a seek throws away what is
//! on its way and costs the next record a whole `fetch_wait`.
//!
//! A start outside the log stops that partition for good (`auto.offset.reset=error`), so the
//! error is repeated by every idle poll.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use rdkafka::{
    Message, Offset as RawOffset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer, base_consumer::PartitionQueue},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedHeaders, BorrowedMessage, Headers},
};
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{Offset, Record};

use super::{Config, Context, READER_GROUP, fault::Fault, wake::Wake};
use crate::{Fetched, FetchedRecord, ReadError, Reader, Start, TopicPartition};

/// How long to wait before the client's own events are looked at again.
const EVENTS: Duration = Duration::from_millis(500);
/// Longest that a broker thought down is asked again before the next look at the queues.
const PROBE: Duration = Duration::from_millis(250);
/// Longest that a new record is waited for before a gap is looked for, in `fetch_wait`s.
const GAP_PATIENCE: u32 = 3;
/// How long a partition rests before its end is looked at. A busy one reaches an end with every
/// batch, and the broker's answer would hold up the next.
const REST: Duration = Duration::from_millis(50);
/// Events served a look: enough to keep up, few enough to stay quick.
const EVENTS_A_LOOK: usize = 16;

/// See [`Reader`].
pub(super) struct KafkaReader {
    // The queues are dropped before the client they belong to.
    sources: Vec<Source>,
    wake: Arc<Wake>,
    consumer: Arc<BaseConsumer<Context>>,
    /// What the first poll assigns.
    unassigned: Option<TopicPartitionList>,
    /// The source to begin with, so that a busy one starves none.
    turn: usize,
    /// Set from "all brokers down" until something comes again.
    down: bool,
    pending: VecDeque<ReadError>,
    request_timeout: Duration,
    gap_patience: Duration,
}

struct Source {
    queue: PartitionQueue<Context>,
    at: TopicPartition,
    /// The next record's offset, once known.
    position: Option<Offset>,
    /// The broker's end when a seek was made to see whether a gap lies before it.
    gap_to: Option<Offset>,
    /// An end was reported and its offset is still to be found out.
    ended: bool,
    /// Since the newest record, if there was any.
    since_record: Option<Stopwatch>,
    /// Since when the broker's end is known to be further on.
    further_since: Option<Stopwatch>,
    failure: Option<Failure>,
}

#[derive(Clone, Debug)]
enum Failure {
    OutOfRange,
    Missing,
    Denied(String),
}

impl KafkaReader {
    pub(super) fn open(
        config: &Config,
        starts: &[(TopicPartition, Start)],
    ) -> Result<Self, ReadError> {
        let wake = Arc::new(Wake::default());
        let client = config.consumer(READER_GROUP);
        let mut consumer = BaseConsumer::from_config_and_context(&client, Context::default())
            .map_err(|error| refused(&error))?;
        let raise = Arc::clone(&wake);
        consumer.set_nonempty_callback(move || raise.raise());
        let consumer = Arc::new(consumer);

        let mut assignment = TopicPartitionList::with_capacity(starts.len());
        let mut sources = Vec::with_capacity(starts.len());
        for (at, start) in starts {
            let partition = at.partition.to_broker();
            let missing = || ReadError::Missing {
                partition: at.clone(),
            };
            let mut queue = consumer
                .split_partition_queue(&at.topic, partition)
                .ok_or_else(missing)?;
            let raise = Arc::clone(&wake);
            queue.set_nonempty_callback(move || raise.raise());
            let (raw, position) = match start {
                Start::Beginning => (RawOffset::Beginning, None),
                Start::At(offset) => (RawOffset::Offset(offset.to_broker()), Some(*offset)),
            };
            assignment
                .add_partition_offset(&at.topic, partition, raw)
                .map_err(|error| refused(&error))?;
            sources.push(Source {
                queue,
                at: at.clone(),
                position,
                gap_to: None,
                ended: false,
                since_record: None,
                further_since: None,
                failure: None,
            });
        }
        Ok(Self {
            sources,
            wake,
            consumer,
            unassigned: Some(assignment),
            turn: 0,
            down: false,
            pending: VecDeque::new(),
            request_timeout: config.request_timeout,
            gap_patience: config.fetch_wait * GAP_PATIENCE,
        })
    }

    /// Assigns at the first poll, once the leaders are known: librdkafka looks for the beginning
    /// of a partition at once or half a second later.
    fn assign(&mut self, patience: Duration) -> Result<(), ReadError> {
        let Some(assignment) = self.unassigned.take() else {
            return Ok(());
        };
        let watch = Stopwatch::start();
        let mut asked: Vec<&str> = Vec::new();
        for source in self.sources.iter().filter(|s| s.position.is_none()) {
            let left = patience.saturating_sub(watch.elapsed());
            if !asked.contains(&&*source.at.topic) && !left.is_zero() {
                asked.push(&source.at.topic);
                // Whatever comes of it, assigning finds out by itself.
                let _known = self.consumer.fetch_metadata(Some(&source.at.topic), left);
            }
        }
        self.consumer
            .assign(&assignment)
            .map_err(|error| refused(&error))
    }

    /// The client's own events: logs, lost connections, refused log-ins.
    fn serve_events(&mut self) {
        for _ in 0..EVENTS_A_LOOK {
            let Some(Err(error)) = self.consumer.poll(Duration::ZERO) else {
                break;
            };
            let code = error
                .rdkafka_error_code()
                .unwrap_or(RDKafkaErrorCode::Unknown);
            match Fault::of(code) {
                _ if code == RDKafkaErrorCode::AllBrokersDown => self.down = true,
                // A reader has no business with its group; it only needs a name.
                _ if code == RDKafkaErrorCode::GroupAuthorizationFailed => {}
                Fault::Denied => self.pending.push_back(ReadError::Denied {
                    detail: self.consumer.context().reason(&code.to_string()),
                }),
                _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => {
                    self.pending.push_back(ReadError::Fatal {
                        detail: self.consumer.context().reason(&code.to_string()),
                    });
                }
                _ => {}
            }
        }
    }

    /// Takes what the queues hold, at most `max_records`.
    fn take(&mut self, max_records: usize, into: &mut Fetched) {
        let count = self.sources.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let Some(source) = self.sources.get_mut(index) else {
                continue;
            };
            while into.records.len() < max_records {
                match source.queue.poll(Duration::ZERO) {
                    None => break,
                    Some(Ok(message)) => {
                        let offset = Offset::from_broker(message.offset()).unwrap_or_default();
                        into.records.push(FetchedRecord {
                            source: index,
                            offset,
                            record: copy(&message),
                        });
                        source.position = Some(offset.next());
                        source.gap_to = None;
                        source.ended = false;
                        source.since_record = Some(Stopwatch::start());
                        source.further_since = None;
                        source.failure = None;
                        self.down = false;
                    }
                    Some(Err(KafkaError::PartitionEOF(_))) => {
                        source.ended = true;
                        source.failure = None;
                        self.down = false;
                    }
                    Some(Err(error)) => {
                        let code = error
                            .rdkafka_error_code()
                            .unwrap_or(RDKafkaErrorCode::Unknown);
                        let detail = || self.consumer.context().reason(&code.to_string());
                        match Fault::of(code) {
                            Fault::OutOfRange => source.failure = Some(Failure::OutOfRange),
                            Fault::Missing => source.failure = Some(Failure::Missing),
                            Fault::Denied => source.failure = Some(Failure::Denied(detail())),
                            Fault::Unreachable => continue,
                            Fault::TooLarge | Fault::Other => {
                                self.pending
                                    .push_back(ReadError::Fatal { detail: detail() });
                                continue;
                            }
                        }
                        self.pending.extend(source.error());
                    }
                }
            }
        }
        self.turn = self.turn.wrapping_add(1) % count.max(1);
    }

    /// Finds out at which offset the sources ended that say they did.
    fn settle_ends(&mut self, into: &mut Fetched, timeout: Duration) {
        for index in 0..self.sources.len() {
            let Some(source) = self.sources.get_mut(index) else {
                continue;
            };
            if source.end_in() != Some(Duration::ZERO) {
                continue;
            }
            if let Some(end) = source.gap_to.take() {
                // An end came before any record: nothing lies before `end`.
                source.ended = false;
                source.position = Some(end);
                into.ends.push((index, end));
                continue;
            }
            let further_for = source.further_since.map(|since| since.elapsed());
            if further_for.is_some_and(|time| time < self.gap_patience) {
                continue;
            }
            let partition = source.at.partition.to_broker();
            match self
                .consumer
                .fetch_watermarks(&source.at.topic, partition, timeout)
            {
                Ok((low, high)) => {
                    let low = Offset::from_broker(low).unwrap_or_default();
                    let high = Offset::from_broker(high).unwrap_or_default();
                    let position = source.position.unwrap_or(low);
                    source.position = Some(position);
                    if high <= position {
                        source.ended = false;
                        source.further_since = None;
                        into.ends.push((index, position));
                    } else if further_for.is_none() {
                        source.further_since = Some(Stopwatch::start());
                    } else {
                        source.ended = false;
                        source.further_since = None;
                        source.gap_to = Some(high);
                        seek(&self.consumer, &source.at, position, timeout);
                    }
                }
                // Still to be found out; the next poll asks again. A slow answer is no lost broker.
                Err(error) => {
                    let code = error.rdkafka_error_code();
                    self.down |= code != Some(RDKafkaErrorCode::OperationTimedOut);
                }
            }
        }
    }

    /// Whether a broker answers again, asked over the wire.
    fn probe(&mut self, timeout: Duration) {
        let Some(source) = self.sources.first() else {
            return;
        };
        let partition = source.at.partition.to_broker();
        let asked = self
            .consumer
            .fetch_watermarks(&source.at.topic, partition, timeout);
        let code = asked
            .as_ref()
            .err()
            .and_then(KafkaError::rdkafka_error_code);
        if code.is_none_or(|code| Fault::of(code) != Fault::Unreachable) {
            self.down = false;
        }
    }
}

impl Reader for KafkaReader {
    fn poll(&mut self, max_records: usize, timeout: Duration) -> Result<Fetched, ReadError> {
        let watch = Stopwatch::start();
        let mut fetched = Fetched::default();
        self.assign(timeout)?;
        loop {
            if let Some(error) = self.pending.pop_front() {
                return Err(error);
            }
            self.wake.lower();
            self.serve_events();
            self.take(max_records, &mut fetched);
            if !fetched.records.is_empty() {
                return Ok(fetched);
            }
            let left = timeout.saturating_sub(watch.elapsed());
            let end_in = self.sources.iter().filter_map(Source::end_in).min();
            if end_in == Some(Duration::ZERO) {
                let patience = left.max(PROBE).min(self.request_timeout);
                self.settle_ends(&mut fetched, patience);
                if !fetched.ends.is_empty() {
                    return Ok(fetched);
                }
            }
            if !self.pending.is_empty() {
                continue;
            }
            let left = timeout.saturating_sub(watch.elapsed());
            if self.down {
                self.probe(PROBE.min(left).max(Duration::from_millis(1)));
            }
            if left.is_zero() {
                break;
            }
            let longest = if self.down { PROBE } else { EVENTS };
            // An end that is looked at in vain is looked at again with the next event.
            let end_in = end_in.filter(|rest| !rest.is_zero()).unwrap_or(longest);
            self.wake.wait(left.min(longest).min(end_in));
        }
        if let Some(error) = self.sources.iter().find_map(Source::error) {
            return Err(error);
        }
        if self.down {
            return Err(ReadError::Unreachable {
                detail: self.consumer.context().reason("all brokers are down"),
            });
        }
        Ok(fetched)
    }
}

impl Source {
    /// When the end that was reported is to be looked at; zero is now.
    fn end_in(&self) -> Option<Duration> {
        let since = self.since_record.as_ref();
        let rested = since.map_or(REST, Stopwatch::elapsed);
        self.ended.then(|| REST.saturating_sub(rested))
    }

    fn error(&self) -> Option<ReadError> {
        let partition = self.at.clone();
        self.failure.as_ref().map(|failure| match failure {
            Failure::OutOfRange => ReadError::OutOfRange {
                partition,
                offset: self.position.unwrap_or_default(),
            },
            Failure::Missing => ReadError::Missing { partition },
            Failure::Denied(detail) => ReadError::Denied {
                detail: detail.clone(),
            },
        })
    }
}

fn seek(
    consumer: &BaseConsumer<Context>,
    at: &TopicPartition,
    position: Offset,
    timeout: Duration,
) {
    let mut to = TopicPartitionList::with_capacity(1);
    let raw = RawOffset::Offset(position.to_broker());
    let added = to.add_partition_offset(&at.topic, at.partition.to_broker(), raw);
    if let Err(error) = added.and_then(|()| consumer.seek_partitions(to, timeout).map(drop)) {
        // The end is then reported with the next record that comes.
        tracing::debug!(partition = %at, %error, "cannot look again for a gap");
    }
}

fn refused(error: &KafkaError) -> ReadError {
    ReadError::Config {
        detail: error.to_string(),
    }
}

/// One copy of each part: librdkafka's buffer is free again at once.
fn copy(message: &BorrowedMessage<'_>) -> Record {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        let one = |index| header(headers, index);
        (0..headers.count()).filter_map(one).collect()
    });
    Record {
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers,
        timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
    }
}

/// The wrapper panics on a name that is no UTF-8, which any client may write. Such a header is
/// none of ours and is left out.
fn header(headers: &BorrowedHeaders, index: usize) -> Option<(String, Bytes)> {
    let read = || {
        let header = headers.try_get(index)?;
        let value = header.value.map_or_else(Bytes::new, Bytes::copy_from_slice);
        Some((header.key.to_owned(), value))
    };
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_default()
}
