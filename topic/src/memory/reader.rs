//! A reader of the log in memory.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use shoal_runtime::clock::Stopwatch;
use shoal_schemas::Offset;

use super::{DOWN, Inner, State, log};
use crate::{Fetched, FetchedRecord, ReadError, Reader, Start, TopicPartition};

pub(super) struct MemoryReader {
    inner: Arc<Inner>,
    sources: Vec<Source>,
    turn: usize,
}

struct Source {
    at: TopicPartition,
    position: Option<Offset>,
    /// The end that was reported last: each is reported once.
    reported: Option<Offset>,
}

impl MemoryReader {
    pub(super) fn new(inner: Arc<Inner>, starts: &[(TopicPartition, Start)]) -> Self {
        let source = |(at, start): &(TopicPartition, Start)| Source {
            at: at.clone(),
            position: match start {
                Start::Beginning => None,
                Start::At(offset) => Some(*offset),
            },
            reported: None,
        };
        Self {
            inner,
            sources: starts.iter().map(source).collect(),
            turn: 0,
        }
    }
}

fn take(
    sources: &mut [Source],
    turn: usize,
    state: &State,
    max_records: usize,
) -> Result<Fetched, ReadError> {
    let mut fetched = Fetched::default();
    let mut failure = None;
    let count = sources.len();
    for step in 0..count {
        let index = (turn + step) % count;
        let Some(source) = sources.get_mut(index) else {
            continue;
        };
        let Some(log) = log::find(&state.topics, &source.at) else {
            failure = Some(ReadError::Missing {
                partition: source.at.clone(),
            });
            continue;
        };
        let ends = log.watermarks();
        let mut position = source.position.unwrap_or(ends.low);
        if position < ends.low || position > ends.high {
            failure = Some(ReadError::OutOfRange {
                partition: source.at.clone(),
                offset: position,
            });
            continue;
        }
        let room = max_records.saturating_sub(fetched.records.len());
        for (offset, record) in log.from(position).take(room) {
            fetched.records.push(FetchedRecord {
                source: index,
                offset,
                record: record.clone(),
            });
            position = offset.next();
        }
        if log.from(position).next().is_none() {
            position = ends.high;
            if source.reported != Some(position) {
                source.reported = Some(position);
                fetched.ends.push((index, position));
            }
        }
        source.position = Some(position);
    }
    match failure {
        Some(error) if fetched.records.is_empty() && fetched.ends.is_empty() => Err(error),
        _ => Ok(fetched),
    }
}

impl Reader for MemoryReader {
    fn poll(&mut self, max_records: usize, timeout: Duration) -> Result<Fetched, ReadError> {
        let watch = Stopwatch::start();
        let inner = Arc::clone(&self.inner);
        let mut state = inner.lock();
        self.turn = self.turn.wrapping_add(1) % self.sources.len().max(1);
        loop {
            let fetched = if state.down {
                Err(ReadError::Unreachable {
                    detail: DOWN.into(),
                })
            } else {
                take(&mut self.sources, self.turn, &state, max_records)
            };
            let left = timeout.saturating_sub(watch.elapsed());
            let nothing = match &fetched {
                Ok(fetched) => fetched.records.is_empty() && fetched.ends.is_empty(),
                Err(ReadError::Unreachable { .. }) => true,
                Err(_) => false,
            };
            if !nothing || left.is_zero() {
                return fetched;
            }
            (state, _) = inner
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
