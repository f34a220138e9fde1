//! Which topic each source of a shard is, by Kafka's own id.
//!
//! A topic that is dropped and made anew keeps its name and counts its offsets from 0 again. Once it holds as many
//! records as the shard had applied, its offsets look like those of the old one: only the id tells. So the shard writes
//! down which topic it reads, and compares that with what the brokers say: when it begins and all the time.
//!
//! Brokers hear of a new topic in their own time, so another id counts only when it is told twice.

use std::{sync::Mutex, time::Duration};

use shoal_schemas::{Offset, TopicId};
use shoal_topic::Admin;
use tokio_util::sync::CancellationToken;

use crate::{
    dlq,
    rule::SourceIndex,
    shard::{Shared, lock, turns::RETRY_AFTER},
};

/// How long brokers may take to tell which topic is there.
const TOLD_TIMEOUT: Duration = Duration::from_secs(2);

/// What is known of one source's topic.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The topic that is read, as it was written down; `None` where no broker has told an id yet.
    noted: Option<TopicId>,
    /// Another one, told by the last comparison.
    told: Option<TopicId>,
    /// To be written down.
    unnoted: Option<TopicId>,
}

/// The topics a shard reads, in the order of its sources.
#[derive(Debug)]
pub(super) struct Topics(Mutex<Vec<Known>>);

impl Topics {
    pub(super) fn new(noted: Vec<Option<TopicId>>) -> Self {
        let known = noted.into_iter().map(|noted| Known {
            noted,
            ..Known::default()
        });
        Self(Mutex::new(known.collect()))
    }

    /// What is written down of all of them, one a source.
    pub(super) fn noted(&self) -> Vec<Option<TopicId>> {
        lock(&self.0).iter().map(|one| one.noted.clone()).collect()
    }

    /// What is written down of one.
    pub(super) fn of(&self, source: SourceIndex) -> Option<TopicId> {
        let known = lock(&self.0);
        known.get(usize::from(source.0))?.noted.clone()
    }

    /// Takes down that it was written down which topic a source is from now on.
    pub(super) fn note(&self, source: SourceIndex, topic: TopicId) {
        if let Some(known) = lock(&self.0).get_mut(usize::from(source.0)) {
            *known = Known {
                noted: Some(topic),
                ..Known::default()
            };
        }
    }

    /// A source whose topic is to be written down, if there is one.
    pub(super) fn take_unnoted(&self) -> Option<(SourceIndex, TopicId)> {
        let mut known = lock(&self.0);
        let mut all = (0u16..).zip(known.iter_mut());
        all.find_map(|(index, one)| Some((SourceIndex(index), one.unnoted.take()?)))
    }
}

/// Why the topic there is not the one that was read, if it is not. One that is absent, or that has no id, says nothing.
pub(super) fn why_another(known: Option<&TopicId>, found: Option<&TopicId>) -> Option<String> {
    let (known, found) = known.zip(found)?;
    (known != found).then(|| {
        format!("it has read the topic of id {known}, the one there now has id {found}: the topic was made anew")
    })
}

/// Which topic of that name is there, if brokers tell; another one than is known only if they tell it twice. Not waited for:
/// topics are compared all the time.
pub(super) fn told_now(
    admin: &dyn Admin,
    topic: &str,
    known: Option<&TopicId>,
    cancel: &CancellationToken,
) -> Option<TopicId> {
    let ask = || {
        let told = admin.topic_ids(&[topic], TOLD_TIMEOUT);
        told.ok()?.into_iter().next().flatten()
    };
    let found = ask()?;
    if known.is_none_or(|known| *known == found) {
        return Some(found);
    }
    dlq::wait(cancel, RETRY_AFTER);
    ask().filter(|again| *again == found)
}

impl Shared {
    /// Compares the topics the shard reads with those that are there, by name. One that was made anew, as two comparisons
    /// one after the other say, ends the shard's turns: what it holds is set aside and rebuilt. One whose id was not known
    /// is written down.
    pub fn compare_topics(&self, found: impl Fn(&str) -> Option<TopicId>) {
        let next = self.progress.borrow().next.clone();
        let mut known = lock(&self.topics.0);
        for wanted in &self.spec.sources {
            let mut all = self.sources.iter().zip(known.iter_mut()).enumerate();
            let Some((index, (source, known))) =
                all.find(|(_, (one, _))| one.source == wanted.source)
            else {
                continue;
            };
            let topic = &source.source.topic;
            let Some(found) = found(topic) else { continue };
            if known.noted.as_ref() == Some(&found) {
                (known.told, known.unnoted) = (None, None);
                continue;
            }
            let has_read = next.get(index).is_some_and(|next| *next > Offset(0));
            let is_first = known.noted.is_none() && !has_read;
            let is_told_again = known.told.as_ref() == Some(&found);
            known.told = Some(found.clone());
            if !is_first && !is_told_again {
                continue;
            }
            match why_another(known.noted.as_ref(), Some(&found)).filter(|_| has_read) {
                Some(why) => *lock(&self.unfit) = Some(format!("`{topic}`: {why}")),
                None => known.unnoted = Some(found),
            }
        }
    }
}
