//! A seat in a consumer group that shares out partitions and fetches nothing.
//!
//! The protocol is cooperative: only what moves is revoked, everything else goes on being served.
//! librdkafka hands a revoke over as an event and then waits, heartbeating, until it is answered;
//! so the answer is simply given later, by `released`, and the group hands the partitions to
//! nobody else before. What bounds the wait is the rebalance timeout: a node that takes longer
//! while another rebalance goes on is thrown out, which shows as `Lost`.
//!
//! Assigned partitions are paused before their first fetch. Nothing is read through this client.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rdkafka::{
    ClientContext, Offset as RawOffset, TopicPartitionList,
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{Offset, Partition};
use tracing::{debug, warn};

use super::{Config, Context, admin::offsets, fault::Fault, log};
use crate::{Membership, MembershipEvent, ReadError, TopicPartition, metrics::REBALANCES};

/// See [`Membership`].
pub(super) struct KafkaMembership {
    consumer: BaseConsumer<Seat>,
}

impl KafkaMembership {
    pub(super) fn join(config: &Config, group: &str, topics: &[String]) -> Result<Self, ReadError> {
        let consumer =
            BaseConsumer::from_config_and_context(&config.member(group), Seat::default())
                .map_err(|error| refused(&error))?;
        let seat = Self { consumer };
        seat.subscribe_to(topics)?;
        Ok(seat)
    }

    fn subscribe_to(&self, topics: &[String]) -> Result<(), ReadError> {
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        if names.is_empty() {
            self.consumer.unsubscribe();
            return Ok(());
        }
        self.consumer
            .subscribe(&names)
            .map_err(|error| refused(&error))
    }

    fn seat(&self) -> &Seat {
        self.consumer.context()
    }

    /// Answers the revoke under way, if there is one.
    fn answer(&self) {
        let revoked = {
            let mut state = self.seat().state();
            let revoked = state.revoking.take();
            for at in revoked.iter().flat_map(names) {
                state.owned.remove(&at);
            }
            revoked
        };
        if let Some(partitions) = revoked {
            unassign(&self.consumer, &partitions);
        }
    }
}

impl Membership for KafkaMembership {
    fn poll(&mut self, timeout: Duration) -> Result<Option<MembershipEvent>, ReadError> {
        let watch = Stopwatch::start();
        loop {
            if self.seat().state().revoking.is_some() && self.consumer.assignment_lost() {
                self.seat().lose();
                self.answer();
            }
            if let Some(event) = self.seat().state().events.pop_front() {
                return Ok(Some(event));
            }
            let left = timeout.saturating_sub(watch.elapsed());
            match self.consumer.poll(left) {
                // Nothing, or an event that its own handler has taken.
                None => {}
                // Fetched before the pause took hold; the shard reads it by itself.
                Some(Ok(_)) => {}
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => {
                    let code = error
                        .rdkafka_error_code()
                        .unwrap_or(RDKafkaErrorCode::Unknown);
                    let detail = self.seat().client.reason(&code.to_string());
                    if matches!(error, KafkaError::MessageConsumptionFatal(_)) {
                        return Err(ReadError::Fatal { detail });
                    }
                    match Fault::of(code) {
                        Fault::Unreachable => return Err(ReadError::Unreachable { detail }),
                        Fault::Denied => return Err(ReadError::Denied { detail }),
                        // A topic that is not there yet is looked for again; a partition's own
                        // errors are its reader's business.
                        _ => debug!(?code, detail, "group member was told"),
                    }
                }
            }
            if watch.elapsed() >= timeout {
                return Ok(self.seat().state().events.pop_front());
            }
        }
    }

    fn released(&mut self) {
        self.answer();
    }

    fn commit_advice(&self, positions: &[(TopicPartition, Offset)]) -> Result<(), ReadError> {
        let ours: Vec<(TopicPartition, Offset)> = {
            let state = self.seat().state();
            positions
                .iter()
                .filter(|(at, _)| state.owned.contains(at))
                .cloned()
                .collect()
        };
        if ours.is_empty() {
            return Ok(());
        }
        let list = offsets(&ours).map_err(|error| ReadError::Fatal {
            detail: error.to_string(),
        })?;
        match self.consumer.commit(&list, CommitMode::Async) {
            Ok(()) => Ok(()),
            Err(error) => Err(ReadError::Unreachable {
                detail: error.to_string(),
            }),
        }
    }

    fn subscribe(&mut self, topics: &[String]) -> Result<(), ReadError> {
        self.subscribe_to(topics)
    }
}

impl Drop for KafkaMembership {
    /// Leaving revokes everything, and nobody is left to answer.
    fn drop(&mut self) {
        self.seat().leaving.store(true, Ordering::SeqCst);
        self.answer();
    }
}

/// What librdkafka's events do to the seat, on the polling thread.
#[derive(Default)]
struct Seat {
    client: Context,
    leaving: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Also what is being revoked, until that is answered.
    owned: BTreeSet<TopicPartition>,
    events: VecDeque<MembershipEvent>,
    /// The revoke that waits for its answer.
    revoking: Option<TopicPartitionList>,
}

impl Seat {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All we had is somebody else's.
    fn lose(&self) {
        let mut state = self.state();
        let lost: Vec<TopicPartition> = std::mem::take(&mut state.owned).into_iter().collect();
        if !lost.is_empty() {
            count("lost");
            state.events.push_back(MembershipEvent::Lost(lost));
        }
    }

    fn assigned(&self, member: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let mut at_end = partitions.clone();
        if let Err(error) = at_end.set_all_offsets(RawOffset::End) {
            warn!(%error, "cannot set where an assigned partition would be read from");
        }
        let taken = match member.rebalance_protocol() {
            RebalanceProtocol::Cooperative => member.incremental_assign(&at_end),
            RebalanceProtocol::Eager | RebalanceProtocol::None => member.assign(&at_end),
        };
        if let Err(error) = taken.and_then(|()| pause(member, partitions)) {
            warn!(%error, "cannot take assigned partitions");
        }
        let named = names(partitions);
        if !named.is_empty() {
            let mut state = self.state();
            state.owned.extend(named.iter().cloned());
            count("assigned");
            state.events.push_back(MembershipEvent::Assigned(named));
        }
    }

    fn revoked(&self, member: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        if self.leaving.load(Ordering::SeqCst) {
            unassign(member, partitions);
            return;
        }
        if member.assignment_lost() {
            self.lose();
            unassign(member, partitions);
            return;
        }
        let named: Vec<TopicPartition> = {
            let state = self.state();
            names(partitions)
                .into_iter()
                .filter(|at| state.owned.contains(at))
                .collect()
        };
        if named.is_empty() {
            unassign(member, partitions);
            return;
        }
        let mut state = self.state();
        count("revoked");
        state.events.push_back(MembershipEvent::Revoked(named));
        state.revoking = Some(partitions.clone());
    }
}

/// Assigning resumes, so this has to follow it at once.
fn pause(member: &BaseConsumer<Seat>, partitions: &TopicPartitionList) -> KafkaResult<()> {
    if partitions.count() == 0 {
        return Ok(());
    }
    member.pause(partitions)
}

fn unassign(member: &BaseConsumer<Seat>, partitions: &TopicPartitionList) {
    let done = match member.rebalance_protocol() {
        RebalanceProtocol::Cooperative => member.incremental_unassign(partitions),
        RebalanceProtocol::Eager | RebalanceProtocol::None => member.unassign(),
    };
    if let Err(error) = done {
        debug!(%error, "cannot give partitions back, trying all");
        if let Err(error) = member.unassign() {
            warn!(%error, "cannot give partitions back");
        }
    }
}

fn count(change: &'static str) {
    metrics::counter!(REBALANCES, "change" => change).increment(1);
}

fn names(partitions: &TopicPartitionList) -> Vec<TopicPartition> {
    partitions
        .elements()
        .iter()
        .filter_map(|element| {
            Some(TopicPartition {
                topic: element.topic().into(),
                partition: Partition::from_broker(element.partition())?,
            })
        })
        .collect()
}

impl ClientContext for Seat {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.client.error(error, reason);
    }
}

impl ConsumerContext for Seat {
    fn rebalance(
        &self,
        member: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                self.assigned(member, partitions);
            }
            _ => self.revoked(member, partitions),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            debug!(%error, "the group did not take a commit; it is advice only");
        }
    }
}

fn refused(error: &KafkaError) -> ReadError {
    ReadError::Config {
        detail: error.to_string(),
    }
}
