//! A re-indexing as the control topic keeps it: begun, taken over, taken back.

use std::time::Duration;

use anyhow::{Context as _, bail};
use shoal_runtime::tasks::blocking;
use shoal_schemas::{
    Collection, CollectionName,
    control::{Entry, Key, Reindex},
};
use shoal_topic::{
    collections::{self, Taken},
    control::ControlState,
};

use super::{super::kafka_link::KafkaLink, say};

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
}

/// A word for this run, unlike every other's.
fn run_id(link: &KafkaLink) -> String {
    format!("{}-{}", std::process::id(), link.clock.now_ms())
}

impl Job {
    /// Notes that a re-indexing has begun, before anything else is done.
    pub(super) async fn begin(
        link: &KafkaLink,
        name: &CollectionName,
        from: &CollectionName,
        to: Collection,
        made: bool,
    ) -> anyhow::Result<Self> {
        let entry = Reindex {
            run: run_id(link),
            from: from.clone(),
            to: to.name.clone(),
            made,
        };
        let job = Self {
            name: name.clone(),
            entry,
            wanted: made.then_some(to),
        };
        job.record(link).await?;
        Ok(job)
    }

    /// Goes on with an earlier run's.
    pub(super) async fn take_over(
        link: &KafkaLink,
        name: &CollectionName,
        found: Reindex,
    ) -> anyhow::Result<Self> {
        let entry = Reindex {
            run: run_id(link),
            ..found
        };
        let job = Self {
            name: name.clone(),
            entry,
            wanted: None,
        };
        job.record(link).await?;
        Ok(job)
    }

    async fn record(&self, link: &KafkaLink) -> anyhow::Result<()> {
        let key = Key::Reindex(self.name.clone());
        let entry = Entry::Reindex(self.entry.clone());
        let put = link.control.put(&key, &entry).await;
        let offset = put.context("the run cannot be noted")?;
        link.control.wait_for(offset, READ_BACK).await?;
        Ok(())
    }

    /// Whether this run is still the latest.
    pub(super) fn is_ours(&self, state: &ControlState) -> bool {
        let latest = state.reindexes.get(&self.name);
        latest.is_some_and(|latest| latest.run == self.entry.run)
    }

    /// Whether the name stands for the new collection.
    pub(super) fn is_flipped(&self, state: &ControlState) -> bool {
        state.aliases.get(&self.name) == Some(&self.entry.to)
    }

    /// Forgets the job: it is done, or taken back.
    pub(super) async fn forget(&self, link: &KafkaLink) -> anyhow::Result<()> {
        let key = Key::Reindex(self.name.clone());
        let offset = link.control.remove(&key).await?;
        link.control.wait_for(offset, READ_BACK).await?;
        Ok(())
    }

    /// Takes everything back that was done: the name stands for the old collection, and what was made
    /// is gone with its topics.
    pub(super) async fn take_back(&self, link: &KafkaLink) -> anyhow::Result<()> {
        let state = link.control.snapshot();
        let Reindex { from, to, made, .. } = &self.entry;
        if self.is_flipped(&state) {
            let is_fed = (state.collections.get(to)).is_some_and(|one| one.fed_by.is_some());
            if !state.collections.contains_key(from) {
                bail!(
                    "`{}` stands for `{to}`, and `{from}` is gone; run it again to finish",
                    self.name
                );
            }
            if *made && is_fed && !state.feeds.contains_key(to) {
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
            self.unmake(link, &state).await?;
        }
        self.forget(link).await?;
        say(format_args!(
            "taken back: `{}` stands for `{from}`",
            self.name
        ))?;
        Ok(())
    }

    /// Drops the new collection, also one of which only the topics were made.
    async fn unmake(&self, link: &KafkaLink, state: &ControlState) -> anyhow::Result<()> {
        let to = &self.entry.to;
        if let Some(new) = state.collections.get(to) {
            let has_own_topic = new.reads.is_none();
            collections::drop(&link.cluster, &link.control, to, has_own_topic).await?;
            return Ok(());
        }
        // The name was chosen because there was no such topic.
        for topic in [to.topic(), to.dlq_topic()] {
            let admin = link.cluster.admin.clone();
            blocking(move || admin.delete_topic(&topic)).await?;
        }
        Ok(())
    }
}
