//! A shard that is far behind its topic gives way until it has caught up.
//!
//! Reading a whole partition takes every processor there is for as long as it takes. Nobody searches a shard that has
//! not caught up (but one that is [`held_back`](super::held_back), which gives way no longer); others are searched
//! meanwhile, by this process or by another one beside it. So its turns are taken on
//! a thread of lower priority, with a reader whose threads are that one's, and its builder gives way as well. Then
//! the shard's own thread goes on: a thread that has given way could not come back.

use std::{error::Error, sync::atomic::Ordering, time::Duration};

use shoal_runtime::{chain, priority::giving_way};
use shoal_schemas::TopicId;
use shoal_topic::{Fetched, TopicPartition, Watermarks};
use tracing::{info, warn};

use crate::{
    dlq,
    rule::SourceIndex,
    shard::{
        gone,
        run::ShardError,
        topics,
        turns::{Ended, RETRY_AFTER, Turns, Until},
    },
};

/// How many steps a shard that is far behind gives way, as `nice` counts: one of its threads is given a thirtieth of
/// what a search is given that wants the same processor.
pub(super) const STEPS: i32 = 15;
/// Records that are worth it. Fewer are there before a second reader would be.
const FAR_RECORDS: u64 = 1024;
/// What took no longer held nothing up, however short tombstones are kept: the broker is asked for its ends every second,
/// and may take a few to answer.
const HELD_UP_MS: u64 = 10_000;
/// How long the broker may take to tell its ends.
const ENDS_TIMEOUT: Duration = Duration::from_secs(2);

/// How a shard stands to its topic.
enum Standing {
    /// It can go on from where it is, so many records behind.
    Behind(u64),
    /// It cannot, for this reason.
    Gone(String),
}

impl Turns {
    /// Catches up if the shard is far behind, and takes turns until cancelled.
    ///
    /// # Errors
    /// [`ShardError`], when the shard cannot go on.
    pub(super) fn run(&mut self) -> Result<Ended, ShardError> {
        let behind = match self.standing()? {
            Some(Standing::Behind(records)) => records,
            Some(Standing::Gone(why)) => return Ok(Ended::Gone(why)),
            None => return Ok(Ended::Cancelled),
        };
        if behind >= FAR_RECORDS {
            match self.catch_up(behind)? {
                Ended::CaughtUp => {}
                ended => return Ok(ended),
            }
        }
        self.take_turns(Until::Cancelled)
    }

    fn catch_up(&mut self, records: u64) -> Result<Ended, ShardError> {
        let shared = self.shared.clone();
        let shard = shared.spec.label();
        info!(
            shard,
            records, "shard is far behind, it gives way to searches"
        );
        shared.is_far_behind.store(true, Ordering::Release);
        let name = thread_name(&shard);
        let ended = giving_way(&name, STEPS, || self.take_turns(Until::CaughtUp));
        shared.is_far_behind.store(false, Ordering::Release);
        ended.unwrap_or_else(|error| {
            warn!(shard, %error, "no thread for what gives way, the shard catches up as ever");
            Ok(Ended::CaughtUp)
        })
    }

    /// Asks the broker how the shard stands to its topic: `None` once cancelled. The broker is waited for; searches go
    /// on meanwhile.
    ///
    /// # Errors
    /// [`ShardError::Write`]: which topic it is that is read from here on is written down.
    fn standing(&mut self) -> Result<Option<Standing>, ShardError> {
        let mut behind = 0u64;
        let mut judged_ms = None;
        for (index, partition) in self.active.clone() {
            let Some(ends) = self.ends(&partition) else {
                return Ok(None);
            };
            let known = self.shared.topics.of(index);
            let standing = gone::Standing {
                known: known.clone(),
                found: topics::told_now(
                    &*self.cluster.admin,
                    &partition.topic,
                    known.as_ref(),
                    &self.cancel,
                ),
                next: self.writer.next_offset(index),
                heard_ms: self.shared.heard_ms(),
                now_ms: self.shared.clock.now_ms(),
                delete_retention_ms: self.shared.spec.collection.delete_retention_ms,
                ends,
            };
            if let Some(why) = gone::why(&standing) {
                return Ok(Some(Standing::Gone(why)));
            }
            judged_ms.get_or_insert(standing.now_ms);
            behind = behind.saturating_add(left(&standing));
            if let Some(found) = standing.found
                && standing.known.as_ref() != Some(&found)
                && !self.note_topic(index, &found)?
            {
                return Ok(None);
            }
        }
        let now_ms = self.shared.clock.now_ms();
        if !self.has_read() {
            // From here on it reads.
            let heard = &self.shared.heard_before_ms;
            heard.store(now_ms, Ordering::Relaxed);
        }
        self.brought_ms = judged_ms.unwrap_or(now_ms);
        Ok(Some(Standing::Behind(behind)))
    }

    /// Whether anything of any source was taken.
    fn has_read(&self) -> bool {
        let mut active = self.active.iter();
        active.any(|(index, _)| self.writer.next_offset(*index).0 > 0)
    }

    /// Asks the broker for a partition's ends until it answers: `None` once cancelled.
    fn ends(&mut self, partition: &TopicPartition) -> Option<Watermarks> {
        loop {
            if self.cancel.is_cancelled() {
                return None;
            }
            match self.cluster.admin.watermarks(partition, ENDS_TIMEOUT) {
                Ok(ends) => return Some(ends),
                Err(error) => self.wait_for_broker(&error),
            }
        }
    }

    /// Rests before the broker is asked again. That it is away is said once, until it answers.
    pub(super) fn wait_for_broker(&mut self, error: &(dyn Error + 'static)) {
        let now = self.shared.lag.now();
        if self.silent_at.replace(now).is_none() {
            warn!(
                shard = %self.shared.spec.label(),
                error = %chain(error),
                "nothing comes from the broker, the shard waits and goes on serving"
            );
        }
        dlq::wait(&self.cancel, RETRY_AFTER);
    }

    /// Why the shard cannot take what has come, if nothing came for so long, because the broker was away or a limit was
    /// reached, that deletes may have come and gone meanwhile. One that goes on all the time is only slow.
    pub(super) fn why_too_late(&mut self, fetched: &Fetched) -> Option<String> {
        let age = gone::Age {
            heard_ms: self.shared.heard_ms(),
            now_ms: self.shared.clock.now_ms(),
            delete_retention_ms: self.shared.spec.collection.delete_retention_ms,
        };
        let before_ms = std::mem::replace(&mut self.brought_ms, age.now_ms);
        let silent_ms = age.now_ms.saturating_sub(before_ms);
        let was_held_up = age.is_too_long(silent_ms) && silent_ms.min(age.away_ms()) > HELD_UP_MS;
        let is_late = was_held_up && self.has_read() && !fetched.records.is_empty();
        is_late.then(|| age.why()).flatten()
    }

    /// Writes down a topic that brokers have told since the shard began; true if so, and then what a reader has fetched ahead
    /// may be another one's.
    pub(super) fn note_told(&mut self) -> Result<bool, ShardError> {
        let Some((source, topic)) = self.shared.topics.take_unnoted() else {
            return Ok(false);
        };
        // Records of the one that is written down may have been taken since it was compared: then it is to be compared again.
        let is_known = self.shared.topics.of(source).is_some();
        if is_known && self.writer.next_offset(source).0 > 0 {
            return Ok(false);
        }
        self.note_topic(source, &topic)?;
        Ok(true)
    }

    /// Writes down which topic a source is; false if the shard was cancelled while it waited for room.
    fn note_topic(&mut self, source: SourceIndex, topic: &TopicId) -> Result<bool, ShardError> {
        loop {
            let appended = self.writer.append_topic(source, topic.clone());
            if self.retry_when_full(appended)?.is_some() {
                return self.flush();
            }
            if self.cancel.is_cancelled() {
                return Ok(false);
            }
        }
    }
}

/// The name of what gives way for a shard; the system shows its first fifteen bytes.
pub(super) fn thread_name(shard: &str) -> String {
    format!("catch-up {shard}")
}

/// Records of a partition that are still to be taken, at most: compaction may have left fewer.
fn left(standing: &gone::Standing) -> u64 {
    let Watermarks { low, high } = standing.ends;
    high.0.saturating_sub(standing.next.max(low).0)
}
