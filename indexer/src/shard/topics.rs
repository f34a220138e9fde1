//! Which topic each source of a shard is, by Kafka's own id.
//!
//! A topic that is dropped and made anew keeps its name and counts its offsets from 0 again. Once it holds as many
//! records as the shard had applied, its offsets look like those of the old one: only the id tells. So the shard writes
//! down which topic it reads before it takes the first record, and compares that with what the broker says.

use std::sync::{Mutex, MutexGuard};

use shoal_schemas::TopicId;

use crate::{
    rule::SourceIndex,
    shard::{Shared, lock},
};

/// The topics a shard has read, in the order of its sources; `None` where no broker has told an id yet.
#[derive(Debug)]
pub(super) struct Topics(Mutex<Vec<Option<TopicId>>>);

impl Topics {
    pub(super) fn new(known: Vec<Option<TopicId>>) -> Self {
        Self(Mutex::new(known))
    }

    /// All of them, one a source.
    pub(super) fn known(&self) -> MutexGuard<'_, Vec<Option<TopicId>>> {
        lock(&self.0)
    }

    /// The topic of one source.
    pub(super) fn of(&self, source: SourceIndex) -> Option<TopicId> {
        let known = self.known();
        known.get(usize::from(source.0)).cloned().flatten()
    }

    /// Takes down which topic a source is from now on.
    pub(super) fn note(&self, source: SourceIndex, topic: TopicId) {
        if let Some(known) = self.known().get_mut(usize::from(source.0)) {
            *known = Some(topic);
        }
    }
}

/// Why the topic there is not the one that was read, if it is not. One that is absent, or that has no id, says nothing.
pub(super) fn why_another(known: Option<&TopicId>, found: Option<&TopicId>) -> Option<String> {
    let (known, found) = known.zip(found)?;
    (known != found).then(|| {
        format!("it has read the topic of id {known}, the one there now has id {found}: the topic was made anew")
    })
}

impl Shared {
    /// Compares the topics the shard reads with those that are there, by name. One that was made anew ends the shard's
    /// turns: what it holds is set aside and rebuilt.
    pub fn compare_topics(&self, found: impl Fn(&str) -> Option<TopicId>) {
        let known = self.topics.known().clone();
        for wanted in &self.spec.sources {
            let mut sources = self.sources.iter().zip(&known);
            let Some((source, known)) = sources.find(|(one, _)| one.source == wanted.source) else {
                continue;
            };
            let topic = &source.source.topic;
            if let Some(why) = why_another(known.as_ref(), found(topic).as_ref()) {
                *lock(&self.unfit) = Some(format!("`{topic}`: {why}"));
            }
        }
    }
}
