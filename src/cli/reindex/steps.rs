//! The steps of a re-indexing, each of which finds what an earlier run has done of it.

use std::{
    cell::{Cell, OnceCell},
    time::Duration,
};

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
    job::{Job, READ_BACK, overtaken},
    recall,
    same::{Differences, Sameness},
    say,
    unbroken::Unbroken,
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
/// How long another run may take to take back what it has taken over.
const TAKEN_BACK: Duration = Duration::from_secs(10);
/// How often ids that differ are looked at again, both sides having caught up each time.
const ROUNDS: usize = 10;

/// How far the announced end of a feed is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Everything goes into the old topic.
    Open,
    /// Writes that depend on a point wait.
    Closing,
    /// And the other ones go into the new topic.
    Moved,
    /// All go into the new topic.
    Ended,
}

pub(super) struct Steps<'a> {
    wish: &'a Reindex,
    link: &'a KafkaLink,
    job: &'a Job,
    since: Stopwatch,
    /// What an interruption waits for.
    pub(super) unbroken: Unbroken,
    /// Ends the feed.
    feeding: CancellationToken,
    /// The feed, if there is one.
    fed: OnceCell<watch::Receiver<Progress>>,
    /// Whether an earlier run has had all writes go into the new topic.
    was_ended: Cell<bool>,
    /// Deletes that the feed has made up for, as said last.
    deleted: Cell<u64>,
}

impl<'a> Steps<'a> {
    pub(super) fn new(wish: &'a Reindex, link: &'a KafkaLink, job: &'a Job) -> Self {
        Self {
            wish,
            link,
            job,
            since: Stopwatch::start(),
            unbroken: Unbroken::new(),
            feeding: CancellationToken::new(),
            fed: OnceCell::new(),
            was_ended: Cell::new(false),
            deleted: Cell::new(0),
        }
    }

    pub(super) async fn carry_out(&self) -> anyhow::Result<()> {
        let new = self.make().await?;
        let state = self.state()?;
        let job = &self.job.entry;
        // Gone only once everything else is done.
        if let Some(old) = state.collections.get(&job.from).cloned() {
            self.feed(&old, &new).await?;
            if !self.job.is_flipped(&state) {
                self.catch_up(&old, &new).await?;
                self.compare(&old, &new, self.sameness()).await?;
                self.sample(&old, &new).await?;
                self.catch_up(&old, &new).await?;
                self.flip(&old, &new).await?;
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
            self.compare_again(&old, &new).await?;
            self.stop_feed().await;
            self.drop_old(&old).await?;
        }
        self.unbroken.whole(self.job.forget(self.link)).await?;
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
            return Err(overtaken()?);
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
        match (state.collections.get(&job.to), &self.job.wanted) {
            (Some(found), Some(wanted)) if found != wanted => bail!(
                "`{}` was made by another call meanwhile, and not as it is wanted here",
                job.to
            ),
            (Some(found), _) => Ok(found.clone()),
            (None, Some(wanted)) => self.unbroken.whole(self.create(wanted.clone())).await,
            (None, None) => bail!(
                "collection `{}` is not there; take the run back with --abort",
                job.to
            ),
        }
    }

    async fn create(&self, wanted: Collection) -> anyhow::Result<Collection> {
        self.job.fence(self.link).await?;
        let (cluster, control) = (&self.link.cluster, &self.link.control);
        let made = collections::create(cluster, control, wanted).await?;
        let made = made.collection;
        if let Err(error) = self.job.fence(self.link).await {
            self.unmake_late().await?;
            return Err(error);
        }
        let reads = if made.reads.is_some() {
            "it reads"
        } else {
            "it is fed, into its own topic"
        };
        say(format_args!(
            "`{}` is built beside `{}`; {reads} `{}`",
            made.name,
            self.job.entry.from,
            made.topic()
        ))?;
        Ok(made)
    }

    /// Takes back what was made when another run had taken over already: that one may have looked before it
    /// was there, and nobody else knows of it then. Unless that run goes on with it.
    pub(super) async fn unmake_late(&self) -> anyhow::Result<()> {
        let to = &self.job.entry.to;
        let watch = Stopwatch::start();
        while watch.elapsed() < TAKEN_BACK {
            let state = self.link.control.snapshot();
            if !state.collections.contains_key(to) || self.job.is_flipped(&state) {
                break;
            }
            let latest = state.reindexes.get(&self.job.name);
            if latest.is_none_or(|latest| latest.to != *to) {
                return self.job.unmake(self.link, &state).await;
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Starts to feed the new collection, if it was made with another number of shards.
    async fn feed(&self, old: &Collection, new: &Collection) -> anyhow::Result<()> {
        if !self.job.entry.made || new.fed_by.is_none() {
            return Ok(());
        }
        let state = self.state()?;
        let is_noted = state.feeds.contains_key(&new.name);
        self.was_ended.set(!is_noted && self.job.is_flipped(&state));
        if !is_noted && !self.was_ended.get() {
            self.note_feed(old, new, Stage::Open).await?;
        }
        let (cluster, tasks) = (self.link.cluster.clone(), &self.link.tasks);
        let run = self.job.epoch.to_string();
        let feed = Feed::new(cluster, old.clone(), new.clone(), &run);
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
        stage: Stage,
    ) -> anyhow::Result<()> {
        let (control, key) = (&self.link.control, Key::Feed(new.name.clone()));
        let noting = async {
            self.job.fence(self.link).await?;
            let offset = if stage == Stage::Ended {
                control.remove(&key).await?
            } else {
                let entry = Entry::Feed(control::Feed {
                    from: old.name.clone(),
                    closing: stage != Stage::Open,
                    moved: stage == Stage::Moved,
                });
                control.put(&key, &entry).await?
            };
            control.wait_for(offset, READ_BACK).await?;
            anyhow::Ok(())
        };
        self.unbroken.whole(noting).await
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
                    if now.deleted > self.deleted.replace(now.deleted) {
                        say(format_args!(
                            "{} points had been deleted for so long while nobody fed `{}` that `{}` has \
                             no more of it; they are deleted there too",
                            now.deleted,
                            new.name,
                            old.topic()
                        ))?;
                    }
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

    /// What has to be the same before the name moves.
    fn sameness(&self) -> Sameness {
        if self.job.entry.made {
            Sameness::Rows
        } else {
            Sameness::Ids
        }
    }

    /// Makes sure that the new collection holds what the old one holds.
    async fn compare(
        &self,
        old: &Collection,
        new: &Collection,
        sameness: Sameness,
    ) -> anyhow::Result<()> {
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
            Sameness::Newest => "the new one is behind the old one with no point",
        })?;
        Ok(())
    }

    /// Makes sure of it once more before the old collection is dropped: what a name has stood for since
    /// then is what is left.
    async fn compare_again(&self, old: &Collection, new: &Collection) -> anyhow::Result<()> {
        // What another model has embedded is written by its owner, and from the switch on to it alone.
        if self.wish.keep_old || !self.job.entry.made {
            return Ok(());
        }
        // It stays then.
        if self.state()?.aliases.values().any(|of| *of == old.name) {
            return Ok(());
        }
        let sameness = if new.fed_by.is_some() {
            Sameness::Newest
        } else {
            Sameness::Rows
        };
        self.compare(old, new, sameness).await
    }

    /// Makes sure that searches of the new collection find what they should, by a sample.
    async fn sample(&self, old: &Collection, new: &Collection) -> anyhow::Result<()> {
        let state = self.state()?;
        let found = recall::sample(&state, old, new).await?;
        say(found)?;
        let least = self.wish.recall;
        if found.is_at_least(least) {
            return Ok(());
        }
        Err(recall::TooLow {
            to: new.name.clone(),
            found,
            least,
        }
        .into())
    }

    /// Has the name stand for the new collection.
    async fn flip(&self, old: &Collection, new: &Collection) -> anyhow::Result<()> {
        let (control, name) = (&self.link.control, &self.job.name);
        let flipping = async {
            let state = self.job.fence(self.link).await?;
            if state.collections.get(&new.name) != Some(new) {
                bail!("`{}` was defined anew by another call meanwhile", new.name);
            }
            collections::set_alias(control, name, &new.name, Taken::Shadow)
                .await
                .context("the name was not set")
        };
        if self.fed.get().is_some() && !self.state()?.feeds.contains_key(&new.name) {
            // Gone by the last write of a run that was overtaken. Without it writes would move too soon.
            self.note_feed(old, new, Stage::Open).await?;
        }
        self.unbroken.whole(flipping).await?;
        say(format_args!("`{name}` stands for `{}` now", new.name))?;
        Ok(())
    }

    /// Has gateways write into the new topic from now on.
    ///
    /// Writes that depend on a point wait from the first stage to the last. In between all others have
    /// moved, and what they had written before that is copied: the first patch in the new topic is made of
    /// a point that has them.
    async fn end_feed(&self, old: &Collection, new: &Collection) -> anyhow::Result<()> {
        if self.was_ended.get() {
            return Ok(());
        }
        // Moved once is moved for good: the new topic has writes then that the old one has not.
        let state = self.state()?;
        let are_here = (state.feeds).get(&new.name).is_some_and(|feed| !feed.moved);
        let closing = are_here.then_some(Stage::Closing);
        for stage in closing.into_iter().chain([Stage::Moved]) {
            self.note_feed(old, new, stage).await?;
            self.rest(HEARD).await?;
            self.catch_up(old, new).await?;
        }
        self.note_feed(old, new, Stage::Ended).await?;
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
        self.unbroken.whole(self.drop_unless_used(old)).await
    }

    async fn drop_unless_used(&self, old: &Collection) -> anyhow::Result<()> {
        let state = self.job.fence(self.link).await?;
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
