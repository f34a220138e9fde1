//! A re-indexing as the control topic keeps it: begun, taken over, taken back.
//!
//! The latest record of a name's re-indexing says whose it is, and its offset is the epoch of that run,
//! as with claims of shards. Kafka takes a record from anybody, so a run reads the control topic to its
//! end before each of its writes ([`Job::fence`]) and ends when another one has taken over.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use shoal_runtime::tasks::blocking;
use shoal_schemas::{
    Collection, CollectionName, Offset, Partition,
    control::{Entry, Key, Reindex},
    name::CONTROL_TOPIC,
};
use shoal_topic::{
    TopicPartition,
    collections::{self, Taken},
    control::ControlState,
};
use tracing::warn;

use super::{super::kafka_link::KafkaLink, Ending, Ends, say};

/// How long a record may take to come back from the control topic.
pub(super) const READ_BACK: Duration = Duration::from_secs(30);

/// How long searches are given that began before the name was set back.
const UNDER_WAY: Duration = Duration::from_secs(5);

/// A re-indexing that this run is at.
pub(super) struct Job {
    /// The name whose users are moved.
    pub(super) name: CollectionName,
    pub(super) entry: Reindex,
    /// What is to be made, if it is not there yet.
    pub(super) wanted: Option<Collection>,
    /// Where the record of this run stands: no other run has the same.
    pub(super) epoch: Offset,
}

/// What there is to do.
pub(super) struct Wanted {
    /// What the name stands for now.
    pub(super) from: CollectionName,
    /// What it is to stand for.
    pub(super) to: Collection,
    /// Whether that is to be made.
    pub(super) made: bool,
}

/// What came of noting a run.
pub(super) enum Noted {
    /// Its record is the latest.
    Ours(Box<Job>),
    /// Another run had noted this one at the same moment, and that record is overwritten: what it has
    /// begun has to be looked at first.
    InPlaceOf(Reindex),
}

/// A word for this run, unlike every other's.
pub(super) fn run_id(link: &KafkaLink) -> String {
    format!("{}-{}", std::process::id(), link.clock.now_ms())
}

impl Job {
    /// Notes that a re-indexing has begun, before anything else is done.
    pub(super) async fn begin(
        link: &KafkaLink,
        run: &str,
        name: &CollectionName,
        Wanted { from, to, made }: Wanted,
    ) -> anyhow::Result<Noted> {
        let entry = Reindex {
            run: run.to_owned(),
            from,
            to: to.name.clone(),
            made,
        };
        let noted = Self::note(link, name, entry, None).await?;
        let Noted::Ours(mut job) = noted else {
            return Ok(noted);
        };
        // Both were so when it was decided; what was done until the record stood counts too.
        let state = link.control.snapshot();
        let stands_for = state.resolve(name).map(|found| &found.name);
        let why = if stands_for != Some(&job.entry.from) {
            format!("`{name}` was moved by another call meanwhile")
        } else if made && state.collections.contains_key(&job.entry.to) {
            format!("`{}` was made by another call meanwhile", job.entry.to)
        } else {
            job.wanted = made.then_some(to);
            return Ok(Noted::Ours(job));
        };
        job.forget(link).await?;
        bail!("{why}; nothing is begun, run it again");
    }

    /// Goes on with an earlier run's, or with that of another one that was noted at the same moment.
    pub(super) async fn take_over(
        link: &KafkaLink,
        run: &str,
        name: &CollectionName,
        mut found: Reindex,
    ) -> anyhow::Result<Self> {
        loop {
            let entry = Reindex {
                run: run.to_owned(),
                ..found.clone()
            };
            match Self::note(link, name, entry, Some(&found)).await? {
                Noted::Ours(job) => return Ok(*job),
                Noted::InPlaceOf(other) => found = other,
            }
        }
    }

    /// Writes this run's record in the place of one that is known.
    async fn note(
        link: &KafkaLink,
        name: &CollectionName,
        entry: Reindex,
        known: Option<&Reindex>,
    ) -> anyhow::Result<Noted> {
        let key = Key::Reindex(name.clone());
        let value = Entry::Reindex(entry.clone());
        let put = link.control.put(&key, &value).await;
        let epoch = put.context("the run cannot be noted")?;
        let state = link.control.wait_for(epoch, READ_BACK).await?;
        let before = match state.reindexed_at.get(name) {
            Some((latest, before)) if *latest == epoch => before.clone(),
            _ => return Err(overtaken()?),
        };
        let is_known = |before: &Reindex| {
            before.run == entry.run || known.is_some_and(|known| known.run == before.run)
        };
        Ok(match before.filter(|before| !is_known(before)) {
            Some(other) => Noted::InPlaceOf(other),
            None => Noted::Ours(Box::new(Self {
                name: name.clone(),
                entry,
                wanted: None,
                epoch,
            })),
        })
    }

    /// Whether this run is still the latest.
    pub(super) fn is_ours(&self, state: &ControlState) -> bool {
        let latest = state.reindexed_at.get(&self.name);
        latest.is_some_and(|(latest, _)| *latest == self.epoch)
    }

    /// Passes if this run is the latest by all that the control topic holds now.
    ///
    /// # Errors
    /// [`Ends`] if another one has taken over; that the topic cannot be read.
    pub(super) async fn fence(&self, link: &KafkaLink) -> anyhow::Result<Arc<ControlState>> {
        let admin = link.cluster.admin.clone();
        let control = TopicPartition {
            topic: CONTROL_TOPIC.into(),
            partition: Partition(0),
        };
        let marks = blocking(move || admin.watermarks(&control, READ_BACK)).await?;
        let state = match marks.high.0.checked_sub(1) {
            Some(last) => link.control.wait_for(Offset(last), READ_BACK).await?,
            None => link.control.snapshot(),
        };
        if self.is_ours(&state) {
            Ok(state)
        } else {
            Err(overtaken()?)
        }
    }

    /// Whether the name stands for the new collection.
    pub(super) fn is_flipped(&self, state: &ControlState) -> bool {
        state.aliases.get(&self.name) == Some(&self.entry.to)
    }

    /// Forgets the job: it is done, or taken back.
    pub(super) async fn forget(&self, link: &KafkaLink) -> anyhow::Result<()> {
        self.fence(link).await?;
        let key = Key::Reindex(self.name.clone());
        let offset = link.control.remove(&key).await?;
        link.control.wait_for(offset, READ_BACK).await?;
        Ok(())
    }

    /// Takes everything back that was done: the name stands for the old collection, and what was made
    /// is gone with its topics.
    pub(super) async fn take_back(&self, link: &KafkaLink) -> anyhow::Result<()> {
        let state = self.fence(link).await?;
        let Reindex { from, to, made, .. } = &self.entry;
        if self.is_flipped(&state) {
            let is_fed = (state.collections.get(to)).is_some_and(|one| one.fed_by.is_some());
            if !state.collections.contains_key(from) {
                bail!(
                    "`{}` stands for `{to}`, and `{from}` is gone; run it again to finish",
                    self.name
                );
            }
            let is_moved = (state.feeds.get(to)).is_none_or(|feed| feed.moved);
            if *made && is_fed && is_moved {
                bail!(
                    "writes for `{}` go to the topic of `{to}` already, so it cannot be taken back; \
                     run it again to finish",
                    self.name
                );
            }
            if self.name == *from {
                collections::drop_alias(&link.control, &self.name).await?;
            } else {
                collections::set_alias(&link.control, &self.name, from, Taken::Shadow).await?;
            }
            // Searches that began before may be at the new one.
            tokio::time::sleep(UNDER_WAY).await;
        }
        if *made {
            let state = self.fence(link).await?;
            self.unmake(link, &state).await?;
        }
        self.forget(link).await?;
        say(format_args!(
            "taken back: `{}` stands for `{from}`",
            self.name
        ))?;
        Ok(())
    }

    /// Drops the new collection, also one of which only the topics were made. One of that name that has
    /// nothing of the old one was made by somebody else.
    pub(super) async fn unmake(
        &self,
        link: &KafkaLink,
        state: &ControlState,
    ) -> anyhow::Result<()> {
        let to = &self.entry.to;
        if let Some(new) = state.collections.get(to) {
            let from = &self.entry.from;
            let home = state.collections.get(from).map_or(from, Collection::home);
            if new.home() != home && new.fed_by.as_ref() != Some(home) {
                warn!(collection = %to, "another collection has the name of what was to be made, it stays");
                return Ok(());
            }
            let has_own_topic = new.reads.is_none();
            collections::drop(&link.cluster, &link.control, to, has_own_topic).await?;
            return Ok(());
        }
        // The name was chosen because there was no such topic.
        delete_topics(link, to).await
    }

    /// Finishes a job whose old collection is dropped already: its topic goes too where that is wanted
    /// and nobody reads it, and the job is forgotten.
    pub(super) async fn finish(&self, link: &KafkaLink, delete_topic: bool) -> anyhow::Result<()> {
        let state = self.fence(link).await?;
        let Reindex { from, to, made, .. } = &self.entry;
        // What a run has made says whose topic it was fed from.
        let new = state.collections.get(to).filter(|_| *made);
        let home = (new.and_then(|new| new.fed_by.as_ref())).unwrap_or(from);
        if delete_topic && state.readers(home).is_empty() {
            delete_topics(link, home).await?;
        }
        self.forget(link).await?;
        say(format_args!("done: `{}` stands for `{to}`", self.name))?;
        Ok(())
    }
}

/// Deletes the topics of a collection, as far as they are there.
async fn delete_topics(link: &KafkaLink, of: &CollectionName) -> anyhow::Result<()> {
    for topic in [of.topic(), of.dlq_topic()] {
        let admin = link.cluster.admin.clone();
        blocking(move || admin.delete_topic(&topic)).await?;
    }
    Ok(())
}

/// Why a run ends when there is a later one.
pub(super) fn overtaken() -> std::io::Result<anyhow::Error> {
    say("another run has taken over, this one ends")?;
    Ok(Ends(Ending::Overtaken).into())
}

#[cfg(test)]
#[path = "job_tests.rs"]
pub(super) mod tests;
