//! Consumer groups of the log in memory: cooperative, sticky, handed over by `released`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, PoisonError},
    time::Duration,
};

use shoal_runtime::clock::Stopwatch;
use shoal_schemas::Offset;

use super::{DOWN, Inner, State, commit, log::Topic, partitions_of};
use crate::{Membership, MembershipEvent, ReadError, TopicPartition};

#[derive(Default)]
pub(super) struct Group {
    members: BTreeMap<u64, Member>,
}

#[derive(Default)]
struct Member {
    topics: Vec<String>,
    /// Also what is being revoked.
    owned: BTreeSet<TopicPartition>,
    revoking: BTreeSet<TopicPartition>,
    events: VecDeque<MembershipEvent>,
}

impl Group {
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn expire(&mut self) {
        for member in self.members.values_mut() {
            member.revoking.clear();
            let lost: Vec<TopicPartition> = std::mem::take(&mut member.owned).into_iter().collect();
            if !lost.is_empty() {
                member.events.push_back(MembershipEvent::Lost(lost));
            }
        }
    }

    /// Revokes what should move, and assigns what is free.
    pub(super) fn rebalance(&mut self, topics: &BTreeMap<String, Topic>) {
        let target = self.target(topics);
        for (id, member) in &mut self.members {
            let wanted = |at: &&TopicPartition| target.get(*at) == Some(id);
            let leaving: BTreeSet<TopicPartition> = member
                .owned
                .iter()
                .filter(|at| !wanted(at))
                .cloned()
                .collect();
            // One revoke at a time: the next one comes when this one is answered.
            if member.revoking.is_empty() && !leaving.is_empty() {
                let revoked = leaving.iter().cloned().collect();
                member.events.push_back(MembershipEvent::Revoked(revoked));
                member.revoking = leaving;
            }
        }
        let taken: BTreeSet<TopicPartition> = self
            .members
            .values()
            .flat_map(|member| member.owned.iter().cloned())
            .collect();
        for (id, member) in &mut self.members {
            let free = |at: &&TopicPartition| target.get(*at) == Some(id) && !taken.contains(*at);
            let given: Vec<TopicPartition> = target.keys().filter(free).cloned().collect();
            if !given.is_empty() {
                member.owned.extend(given.iter().cloned());
                member.events.push_back(MembershipEvent::Assigned(given));
            }
        }
    }

    /// Who should have what: as even as can be, moving as little as can be.
    fn target(&self, topics: &BTreeMap<String, Topic>) -> BTreeMap<TopicPartition, u64> {
        let mut target = BTreeMap::new();
        let mut load: BTreeMap<u64, usize> = self.members.keys().map(|id| (*id, 0)).collect();
        let subscribed: BTreeSet<&String> = self
            .members
            .values()
            .flat_map(|member| &member.topics)
            .collect();
        let all: Vec<TopicPartition> = subscribed
            .into_iter()
            .filter_map(|name| Some(partitions_of(name, topics.get(name)?)))
            .flatten()
            .collect();
        let share = all.len().div_ceil(self.members.len().max(1));
        let mut orphans = Vec::new();
        for at in all {
            let keeper = self.members.iter().find(|(id, member)| {
                let room = load.get(id).is_some_and(|count| *count < share);
                room && member.owned.contains(&at) && member.takes(&at)
            });
            match keeper {
                Some((id, _)) => {
                    *load.entry(*id).or_default() += 1;
                    target.insert(at, *id);
                }
                None => orphans.push(at),
            }
        }
        for at in orphans {
            let takers = self.members.iter().filter(|(_, member)| member.takes(&at));
            let least = takers
                .map(|(id, _)| *id)
                .min_by_key(|id| (load.get(id).copied(), *id));
            if let Some(id) = least {
                *load.entry(id).or_default() += 1;
                target.insert(at, id);
            }
        }
        target
    }
}

impl Member {
    fn takes(&self, at: &TopicPartition) -> bool {
        self.topics.iter().any(|topic| **topic == *at.topic)
    }
}

pub(super) struct MemoryMembership {
    inner: Arc<Inner>,
    group: String,
    id: u64,
}

impl MemoryMembership {
    pub(super) fn join(inner: Arc<Inner>, group: &str, topics: &[String]) -> Self {
        let id = {
            let mut state = inner.lock();
            state.next_member += 1;
            state.next_member
        };
        let seat = Self {
            inner,
            group: group.to_owned(),
            id,
        };
        seat.change(|group| {
            group.members.entry(id).or_default().topics = topics.to_vec();
        });
        seat
    }

    fn change(&self, change: impl FnOnce(&mut Group)) {
        let mut state = self.inner.lock();
        let State { topics, groups, .. } = &mut *state;
        let group = groups.entry(self.group.clone()).or_default();
        change(group);
        group.rebalance(topics);
        drop(state);
        self.inner.changed.notify_all();
    }
}

impl Membership for MemoryMembership {
    fn poll(&mut self, timeout: Duration) -> Result<Option<MembershipEvent>, ReadError> {
        let watch = Stopwatch::start();
        let mut state = self.inner.lock();
        loop {
            let left = timeout.saturating_sub(watch.elapsed());
            if !state.down {
                let member = state
                    .groups
                    .get_mut(&self.group)
                    .and_then(|g| g.members.get_mut(&self.id));
                if let Some(event) = member.and_then(|member| member.events.pop_front()) {
                    return Ok(Some(event));
                }
            }
            if left.is_zero() {
                return match state.down {
                    true => Err(ReadError::Unreachable {
                        detail: DOWN.into(),
                    }),
                    false => Ok(None),
                };
            }
            (state, _) = self
                .inner
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn released(&mut self) {
        let id = self.id;
        self.change(|group| {
            if let Some(member) = group.members.get_mut(&id) {
                let let_go = std::mem::take(&mut member.revoking);
                member.owned.retain(|at| !let_go.contains(at));
            }
        });
    }

    fn commit_advice(&self, positions: &[(TopicPartition, Offset)]) -> Result<(), ReadError> {
        let mut state = self.inner.lock();
        let member = state
            .groups
            .get(&self.group)
            .and_then(|g| g.members.get(&self.id));
        let owned = member
            .map(|member| member.owned.clone())
            .unwrap_or_default();
        let ours = positions.iter().filter(|(at, _)| owned.contains(at));
        commit(&mut state, &self.group, ours);
        Ok(())
    }

    fn subscribe(&mut self, topics: &[String]) -> Result<(), ReadError> {
        let id = self.id;
        self.change(|group| {
            group.members.entry(id).or_default().topics = topics.to_vec();
        });
        Ok(())
    }
}

impl Drop for MemoryMembership {
    fn drop(&mut self) {
        let id = self.id;
        self.change(|group| {
            group.members.remove(&id);
        });
    }
}
