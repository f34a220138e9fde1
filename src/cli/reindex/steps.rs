//! The steps of a re-indexing, each of which finds what an earlier run has done of it.

use std::{cell::OnceCell, time::Duration};

use anyhow::{Context as _, bail};
use shoal_producer::feed::{Feed, Progress};
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{
    Collection, Offset, control,
    control::{Entry, Key},
};
use shoal_topic::{
    collections::{self, Taken},
    control::ControlState,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    super::kafka_link::KafkaLink,
    Ending, Ends, NotTheSame, Reindex,
    job::{Job, READ_BACK},
    same::{Differences, Sameness},
    say,
    upkeep::{Indexers, copies, ends},
};

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(500);
/// How often it is said how far it is.
const SAY: Duration = Duration::from_secs(10);
/// How long gateways may take to read that a feed is about to end.
const HEARD: Duration = Duration::from_secs(2);
/// How long the feed may take to end.
const FEED_ENDS: Duration = Duration::from_secs(30);
/// How often ids that differ are looked at again, both sides having caught up each time.
const ROUNDS: usize = 10;

pub(super) struct Steps<'a> {
    pub(super) wish: &'a Reindex,
    pub(super) link: &'a KafkaLink,
    pub(super) job: &'a Job,
    pub(super) since: Stopwatch,
    /// Ends the feed.
    pub(super) feeding: CancellationToken,
    /// The feed, if there is one.
    pub(super) fed: OnceCell<watch::Receiver<Progress>>,
}

impl Steps<'_> {
    pub(super) async fn carry_out(&self) -> anyhow::Result<()> {
        let new = self.make().await?;
        let state = self.state()?;
        let job = &self.job.entry;
        // Gone only once everything else is done.
        if let Some(old) = state.collections.get(&job.from).cloned() {
            self.feed(&old, &new).await?;
            if !self.job.is_flipped(&state) {
                self.catch_up(&old, &new).await?;
                self.compare(&old, &new).await?;
                self.flip(&new).await?;
            }
            if self.fed.get().is_some() {
                self.end_feed(&old, &new).await?;
                self.wait_for_quiet(&old, &new).await?;
            } else {
                say(format_args!(
                    "`{}` is kept for {:?}",
                    old.name, self.wish.linger
                ))?;
                self.rest(self.wish.linger).await?;
            }
            self.stop_feed().await;
            self.drop_old(&old).await?;
        }
        self.job.forget(self.link).await?;
        say(format_args!(
            "done: `{}` stands for `{}`",
            self.job.name, new.name
        ))?;
        Ok(())
    }

    /// What the control topic says now, if this run may go on.
    fn state(&self) -> anyhow::Result<std::sync::Arc<ControlState>> {
        let state = self.link.control.snapshot();
        if !self.job.is_ours(&state) {
            say("another run has taken over, this one ends")?;
            return Err(Ends(Ending::Overtaken).into());
        }
        if self.since.elapsed() > self.wish.timeout {
            say(format_args!("not done within {:?}", self.wish.timeout))?;
            return Err(Ends(Ending::TimedOut).into());
        }
        Ok(state)
    }

    /// Waits, and looks whether this run may go on.
    async fn rest(&self, time: Duration) -> anyhow::Result<()> {
        let watch = Stopwatch::start();
        loop {
            self.state()?;
            let left = time.saturating_sub(watch.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }

    /// The new collection, made if it is not there.
    async fn make(&self) -> anyhow::Result<Collection> {
        let state = self.state()?;
        let job = &self.job.entry;
        if let Some(found) = state.collections.get(&job.to) {
            return Ok(found.clone());
        }
        let Some(wanted) = self.job.wanted.clone() else {
            bail!(
                "collection `{}` is not there; take the run back with --abort",
                job.to
            );
        };
        let (cluster, control) = (&self.link.cluster, &self.link.control);
        let made = collections::create(cluster, control, wanted).await?;
        let made = made.collection;
        let reads = if made.reads.is_some() {
            "it reads"
        } else {
            "it is fed, into its own topic"
        };
        say(format_args!(
            "`{}` is built beside `{}`; {reads} `{}`",
            made.name,
            job.from,
            made.topic()
        ))?;
        Ok(made)
    }

    /// Starts to feed the new collection, if it was made with another number of shards.
    async fn feed(&self, old: &Collection, new: &Collection) -> anyhow::Result<()> {
        if !self.job.entry.made || new.fed_by.is_none() {
            return Ok(());
        }
        let state = self.state()?;
        if !state.feeds.contains_key(&new.name) && !self.job.is_flipped(&state) {
            self.note_feed(old, new, false).await?;
        }
        let (cluster, tasks) = (self.link.cluster.clone(), &self.link.tasks);
        let feed = Feed::new(cluster, old.clone(), new.clone());
        let progress = feed.spawn(tasks, self.feeding.clone())?;
        let first = self.fed.set(progress);
        debug_assert!(first.is_ok(), "a run has one feed");
        Ok(())
    }

    /// Ends the feed, and waits until it writes nothing any more.
    pub(super) async fn stop_feed(&self) {
        self.feeding.cancel();
        let Some(mut progress) = self.fed.get().cloned() else {
            return;
        };
        let ended = async { while progress.changed().await.is_ok() {} };
        drop(tokio::time::timeout(FEED_ENDS, ended).await);
    }

    async fn note_feed(
        &self,
        old: &Collection,
        new: &Collection,
        closing: bool,
    ) -> anyhow::Result<()> {
        let entry = Entry::Feed(control::Feed {
            from: old.name.clone(),
            closing,
        });
        let control = &self.link.control;
        let offset = control.put(&Key::Feed(new.name.clone()), &entry).await?;
        control.wait_for(offset, READ_BACK).await?;
        Ok(())
    }

    /// Waits until the new collection serves everything that is in the old one's topic now.
    async fn catch_up(&self, old: &Collection, new: &Collection) -> anyhow::Result<()> {
        let mut said = Stopwatch::start();
        if let Some(progress) = self.fed.get() {
            let wanted = ends(self.link, old).await?;
            loop {
                self.state()?;
                let now = progress.borrow().clone();
                if let Some(failed) = now.failed {
                    bail!("the feed of `{}` has failed: {failed}", new.name);
                }
                let left: u64 = (wanted.iter().zip(&now.next))
                    .map(|(end, next)| end.0.saturating_sub(next.0))
                    .sum();
                if left == 0 {
                    break;
                }
                if said.elapsed() > SAY {
                    said = Stopwatch::start();
                    say(format_args!("{left} records are left to copy"))?;
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        let wanted: Vec<Offset> = ends(self.link, new).await?;
        let mut indexers = Indexers::default();
        loop {
            let state = self.state()?;
            let standing = indexers.standing(&state, new, Some(old), &wanted).await;
            if standing.is_ready() {
                return Ok(());
            }
            if said.elapsed() > SAY {
                said = Stopwatch::start();
                let why = standing
                    .why
                    .map_or(String::new(), |why| format!(" ({why})"));
                say(format_args!(
                    "{} of {} shards are ready, about {} records are left{why}",
                    standing.ready, standing.shards, standing.records_left
                ))?;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Makes sure that the new collection holds what the old one holds.
    async fn compare(&self, old: &Collection, new: &Collection) -> anyhow::Result<()> {
        let sameness = if self.job.entry.made {
            Sameness::Rows
        } else {
            Sameness::Ids
        };
        let state = self.state()?;
        let (olds, news) = (copies(&state, old).await?, copies(&state, new).await?);
        let mut differences = Differences::find(sameness, &olds, &news).await?;
        for _ in 0..ROUNDS {
            if differences.is_empty() {
                break;
            }
            // What was on its way is there after that.
            self.catch_up(old, new).await?;
            differences.look_again(&olds, &news).await?;
        }
        if !differences.is_empty() {
            return Err(NotTheSame {
                from: old.name.clone(),
                to: new.name.clone(),
                told: differences.told(),
            }
            .into());
        }
        say(match sameness {
            Sameness::Rows => "both hold the same points",
            Sameness::Ids => "both hold the same ids",
        })?;
        self.catch_up(old, new).await
    }

    /// Has the name stand for the new collection.
    async fn flip(&self, new: &Collection) -> anyhow::Result<()> {
        self.state()?;
        let (control, name) = (&self.link.control, &self.job.name);
        collections::set_alias(control, name, &new.name, Taken::Shadow)
            .await
            .context("the name was not set")?;
        say(format_args!("`{name}` stands for `{}` now", new.name))?;
        Ok(())
    }

    /// Has gateways write into the new topic from now on.
    async fn end_feed(&self, old: &Collection, new: &Collection) -> anyhow::Result<()> {
        if !self.state()?.feeds.contains_key(&new.name) {
            return Ok(());
        }
        self.note_feed(old, new, true).await?;
        self.rest(HEARD).await?;
        self.catch_up(old, new).await?;
        self.state()?;
        let control = &self.link.control;
        let offset = control.remove(&Key::Feed(new.name.clone())).await?;
        control.wait_for(offset, READ_BACK).await?;
        say(format_args!(
            "gateways write to `{}` now; producers that write to `{}` have to write there",
            new.topic(),
            old.topic()
        ))?;
        Ok(())
    }

    /// Waits until nobody has written to the old topic for a while, and all of it is copied.
    async fn wait_for_quiet(&self, old: &Collection, new: &Collection) -> anyhow::Result<()> {
        let mut last = ends(self.link, old).await?;
        let (mut quiet, mut said) = (Stopwatch::start(), Stopwatch::start());
        while quiet.elapsed() < self.wish.linger {
            self.state()?;
            tokio::time::sleep(LOOK).await;
            let now = ends(self.link, old).await?;
            if now != last {
                (last, quiet) = (now, Stopwatch::start());
            }
            if said.elapsed() > SAY {
                said = Stopwatch::start();
                say(format_args!(
                    "`{}` has been quiet for {} of {} s",
                    old.topic(),
                    quiet.elapsed().as_secs(),
                    self.wish.linger.as_secs()
                ))?;
            }
        }
        self.catch_up(old, new).await
    }

    async fn drop_old(&self, old: &Collection) -> anyhow::Result<()> {
        if self.wish.keep_old {
            return Ok(());
        }
        let state = self.state()?;
        let others = state
            .aliases
            .iter()
            .find(|(_, target)| **target == old.name);
        if let Some((alias, _)) = others {
            say(format_args!(
                "`{}` stays, alias `{alias}` stands for it",
                old.name
            ))?;
            return Ok(());
        }
        let is_read = state
            .readers(old.home())
            .iter()
            .any(|reader| reader.name != old.name);
        let delete_topic = self.wish.delete_topic && !is_read;
        let (cluster, control) = (&self.link.cluster, &self.link.control);
        collections::drop(cluster, control, &old.name, delete_topic).await?;
        let topic = if delete_topic {
            "deleted"
        } else if is_read {
            "read by the new collection"
        } else {
            "still there"
        };
        say(format_args!(
            "`{}` is dropped; topic `{}` is {topic}",
            old.name,
            old.topic()
        ))?;
        Ok(())
    }
}
