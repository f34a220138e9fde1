//! A log in process, for tests and simulation. Same traits, same conformance suite.
//!
//! Appends are acknowledged at once and in order. A switch takes "the broker" away: then every
//! call that would ask it is unreachable and appends queue up. Compaction happens when told.
//! It keeps nothing on disk, replicates nothing and knows no access rules.

mod group;
mod log;
mod reader;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shoal_runtime::clock::Clock;
use shoal_schemas::{ClusterId, Offset, Partition, Record, TopicId};
use tokio::sync::oneshot;

use crate::{
    Admin, AdminError, Cluster, Connect, Delivery, Membership, ReadError, Reader, Start,
    TopicPartition, TopicSpec, Watermarks, WriteError, Writer, writer::DeliveryFuture,
};

use group::Group;
use log::Topic;

/// Records that may wait while the broker is away.
const QUEUE_RECORDS: usize = 1024;

/// A cluster in memory. Cloning shares it.
#[derive(Clone)]
pub struct MemoryLog {
    inner: Arc<Inner>,
}

struct Inner {
    id: ClusterId,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    topics: BTreeMap<String, Topic>,
    groups: BTreeMap<String, Group>,
    committed: BTreeMap<(String, TopicPartition), Offset>,
    down: bool,
    queue: VecDeque<Queued>,
    next_member: u64,
    /// Topics made so far: each one's id is its number.
    made: u64,
    /// It tells no ids of topics, as a broker from before there were any.
    hides_ids: bool,
}

struct Queued {
    to: TopicPartition,
    record: Record,
    done: oneshot::Sender<Result<Delivery, WriteError>>,
}

impl MemoryLog {
    /// An empty cluster of that id; records without a time get the clock's.
    pub fn new(id: &str, clock: Arc<dyn Clock>) -> Self {
        Self {
            inner: Arc::new(Inner {
                id: id.into(),
                clock,
                state: Mutex::default(),
                changed: Condvar::new(),
            }),
        }
    }

    /// The cluster as roles see it.
    pub fn cluster(&self) -> Cluster {
        Cluster {
            admin: Arc::new(self.clone()),
            writer: Arc::new(self.clone()),
            connect: Arc::new(self.clone()),
        }
    }

    /// Takes the broker away or brings it back; what was queued is then appended in order.
    pub fn set_down(&self, down: bool) {
        let mut state = self.inner.lock();
        state.down = down;
        if !down {
            while let Some(queued) = state.queue.pop_front() {
                let outcome = self.inner.append(&mut state, &queued.to, queued.record);
                let _unheard = queued.done.send(outcome);
            }
        }
        drop(state);
        self.inner.changed.notify_all();
    }

    /// Has the broker tell no ids of topics, or tell them again.
    pub fn hide_topic_ids(&self, hidden: bool) {
        self.inner.lock().hides_ids = hidden;
    }

    /// Keeps the newest record a key in every partition, tombstones among them. Gaps remain.
    pub fn compact(&self, topic: &str) {
        self.compact_topic(topic, false);
    }

    /// The same after the tombstones' retention: they are gone too.
    pub fn compact_tombstones(&self, topic: &str) {
        self.compact_topic(topic, true);
    }

    fn compact_topic(&self, topic: &str, drop_tombstones: bool) {
        let mut state = self.inner.lock();
        if let Some(topic) = state.topics.get_mut(topic) {
            for log in &mut topic.partitions {
                log.compact(drop_tombstones);
            }
        }
    }

    /// Drops everything before `low`, as retention does.
    pub fn trim(&self, at: &TopicPartition, low: Offset) {
        let mut state = self.inner.lock();
        if let Some(log) = log::find_mut(&mut state.topics, at) {
            log.trim(low);
        }
    }

    /// Throws every member of a group out, as a session timeout does; they join again at once.
    pub fn expire(&self, group: &str) {
        let mut state = self.inner.lock();
        let State { topics, groups, .. } = &mut *state;
        if let Some(group) = groups.get_mut(group) {
            group.expire();
            group.rebalance(topics);
        }
        drop(state);
        self.inner.changed.notify_all();
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reachable(&self) -> Result<MutexGuard<'_, State>, AdminError> {
        let state = self.lock();
        if state.down {
            return Err(AdminError::Unreachable {
                detail: DOWN.into(),
            });
        }
        Ok(state)
    }

    fn append(
        &self,
        state: &mut State,
        to: &TopicPartition,
        mut record: Record,
    ) -> Result<Delivery, WriteError> {
        if record.timestamp_ms <= 0 {
            record.timestamp_ms = i64::try_from(self.clock.now_ms()).unwrap_or(i64::MAX);
        }
        let topic = state.topics.get_mut(&*to.topic);
        topic.map_or_else(
            || {
                Err(WriteError::Missing {
                    partition: to.clone(),
                })
            },
            |topic| topic.append(to, record),
        )
    }
}

/// Why nobody answers.
const DOWN: &str = "the broker in memory is switched off";

impl Writer for MemoryLog {
    fn send(&self, to: &TopicPartition, record: &Record) -> Result<DeliveryFuture, WriteError> {
        let (done, outcome) = oneshot::channel();
        let mut state = self.inner.lock();
        if state.down {
            if state.queue.len() >= QUEUE_RECORDS {
                return Err(WriteError::QueueFull);
            }
            state.queue.push_back(Queued {
                to: to.clone(),
                record: record.clone(),
                done,
            });
        } else {
            let appended = self.inner.append(&mut state, to, record.clone());
            drop(state);
            self.inner.changed.notify_all();
            let _ours = done.send(appended);
        }
        let to = to.to_string();
        Ok(Box::pin(async move {
            outcome.await.unwrap_or_else(|_| {
                Err(WriteError::Unreachable {
                    partition: to,
                    detail: "the log in memory is gone".into(),
                })
            })
        }))
    }

    fn cluster_id(&self) -> Result<ClusterId, WriteError> {
        Ok(self.inner.id.clone())
    }
}

impl Admin for MemoryLog {
    fn cluster_id(&self) -> Result<ClusterId, AdminError> {
        self.inner.reachable().map(|_| self.inner.id.clone())
    }

    fn create_topic(&self, spec: &TopicSpec) -> Result<(), AdminError> {
        let mut state = self.inner.reachable()?;
        if state.topics.contains_key(&spec.name) {
            return Err(AdminError::Exists {
                name: spec.name.clone(),
            });
        }
        if spec.partitions == 0 {
            return Err(AdminError::Refused {
                detail: format!("topic `{}` has 0 partitions", spec.name),
            });
        }
        state.made += 1;
        let id = format!("topic-{}", state.made).into();
        let topic = Topic::new(spec, id);
        state.topics.insert(spec.name.clone(), topic);
        let State { topics, groups, .. } = &mut *state;
        for group in groups.values_mut() {
            group.rebalance(topics);
        }
        drop(state);
        self.inner.changed.notify_all();
        Ok(())
    }

    fn describe_topic(&self, name: &str) -> Result<Option<TopicSpec>, AdminError> {
        let state = self.inner.reachable()?;
        Ok(state.topics.get(name).map(|topic| topic.spec.clone()))
    }

    fn list_topics(&self) -> Result<Vec<String>, AdminError> {
        let state = self.inner.reachable()?;
        Ok(state.topics.keys().cloned().collect())
    }

    fn topic_ids(
        &self,
        names: &[&str],
        _timeout: Duration,
    ) -> Result<Vec<Option<TopicId>>, AdminError> {
        let state = self.inner.reachable()?;
        let id = |name: &&str| {
            let topic = state.topics.get(*name).filter(|_| !state.hides_ids);
            topic.map(|topic| topic.id.clone())
        };
        Ok(names.iter().map(id).collect())
    }

    fn delete_topic(&self, name: &str) -> Result<(), AdminError> {
        self.inner.reachable()?.topics.remove(name);
        self.inner.changed.notify_all();
        Ok(())
    }

    fn watermarks(
        &self,
        partition: &TopicPartition,
        _timeout: Duration,
    ) -> Result<Watermarks, AdminError> {
        let state = self.inner.reachable()?;
        log::find(&state.topics, partition).map_or_else(
            || {
                Err(AdminError::Missing {
                    partition: partition.clone(),
                })
            },
            |log| Ok(log.watermarks()),
        )
    }

    fn commit_advice(
        &self,
        group: &str,
        positions: &[(TopicPartition, Offset)],
    ) -> Result<(), AdminError> {
        let mut state = self.inner.reachable()?;
        if state
            .groups
            .get(group)
            .is_some_and(|group| !group.is_empty())
        {
            return Err(AdminError::Refused {
                detail: format!("group `{group}` has members"),
            });
        }
        commit(&mut state, group, positions.iter());
        Ok(())
    }

    fn committed(
        &self,
        group: &str,
        partitions: &[TopicPartition],
    ) -> Result<Vec<Option<Offset>>, AdminError> {
        let state = self.inner.reachable()?;
        let find = |at: &TopicPartition| state.committed.get(&(group.to_owned(), at.clone()));
        Ok(partitions.iter().map(|at| find(at).copied()).collect())
    }
}

fn commit<'a>(
    state: &mut State,
    group: &str,
    positions: impl Iterator<Item = &'a (TopicPartition, Offset)>,
) {
    for (at, next) in positions {
        state
            .committed
            .insert((group.to_owned(), at.clone()), *next);
    }
}

impl Connect for MemoryLog {
    fn open_reader(
        &self,
        starts: &[(TopicPartition, Start)],
    ) -> Result<Box<dyn Reader>, ReadError> {
        Ok(Box::new(reader::MemoryReader::new(
            Arc::clone(&self.inner),
            starts,
        )))
    }

    fn join(&self, group: &str, topics: &[String]) -> Result<Box<dyn Membership>, ReadError> {
        let joined = group::MemoryMembership::join(Arc::clone(&self.inner), group, topics);
        Ok(Box::new(joined))
    }
}

/// All partitions of a topic.
fn partitions_of(name: &str, topic: &Topic) -> impl Iterator<Item = TopicPartition> {
    let name: Arc<str> = name.into();
    (0..topic.spec.partitions).map(move |number| TopicPartition {
        topic: Arc::clone(&name),
        partition: Partition(number),
    })
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
