//! `shoal reindex`: a collection built anew beside the one that serves, and its users moved over.
//!
//! The new generation is a collection of its own. With the same shards it reads the topic that is
//! there; with others it has a topic of its own, which this process feeds until producers have
//! switched ([`shoal_producer::feed`]); or it is a collection that its owner fills, after a change of
//! the model. When it holds what the old one holds, the name is made to stand for it by one record of
//! the control topic, and the old one is dropped a while later.
//!
//! Everything that is done can be done again: a run that was killed is found by the next one under
//! `reindex/<name>` and gone on with, or taken back with `--abort`. The latest run is the one that is
//! at it; an earlier one that still lives stops when it sees that, and it looks before each write.

mod generation;
mod job;
mod recall;
mod same;
mod steps;
mod unbroken;
mod upkeep;

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use shoal_runtime::tasks::{Tasks, cancel_on_signal};
use shoal_schemas::{Collection, CollectionName, FieldKind, control};
use shoal_topic::control::ControlState;
use tokio_util::sync::CancellationToken;

use self::{
    job::{Job, Noted, Wanted, run_id},
    steps::Steps,
};
use super::{
    Context, Usage,
    addresses::KafkaFlag,
    collection::{IndexArg, MetricArg, QuantizationArg, duration, field},
    kafka_link::{Fresh, KafkaLink, collection_name},
};

/// What is said of a collection that is made, and not of one that is there.
const OF_ONE_MADE: [&str; 10] = [
    "index",
    "m",
    "ef_construction",
    "ef_search",
    "quantization",
    "metric",
    "fields",
    "partitions",
    "anew",
    "called",
];
/// The time was over; the next run goes on.
pub(super) const TIMED_OUT: u8 = 3;
/// Another run is at it.
pub(super) const OVERTAKEN: u8 = 4;
/// As of a program that a signal has ended.
const INTERRUPTED: u8 = 130;

/// What to build anew, and how.
///
/// Ends with 0 when the name stands for the new collection, or when there was nothing to do; with 1
/// when it failed, 2 for a wrong command line, 3 when the time was over (the next run goes on), 4 when
/// another run has taken over, and 130 when it was interrupted.
#[derive(Debug, Args)]
pub(super) struct Reindex {
    /// The name whose users are moved: an alias, or a collection's own name
    #[arg(value_parser = collection_name)]
    name: CollectionName,
    /// A collection that is there already, such as one with another model's embeddings of the same ids
    #[arg(long, value_name = "COLLECTION", value_parser = collection_name, conflicts_with_all = OF_ONE_MADE)]
    to: Option<CollectionName>,
    /// The new collection's name [default: NAME-g2, NAME-g3, ...]
    #[arg(long = "as", value_name = "COLLECTION", value_parser = collection_name)]
    called: Option<CollectionName>,
    /// How rows are found. Another kind than now has its own parameters, of which those of the old one are forgotten
    #[arg(long, value_enum)]
    index: Option<IndexArg>,
    /// Edges of a node of the graph
    #[arg(long)]
    m: Option<u16>,
    /// Beam width while the graph is built
    #[arg(long)]
    ef_construction: Option<u16>,
    /// Beam width of a search that names none
    #[arg(long)]
    ef_search: Option<u16>,
    /// How the copy of a vector is kept that searches go by
    #[arg(long, value_enum)]
    quantization: Option<QuantizationArg>,
    /// How distance is measured
    #[arg(long, value_enum)]
    metric: Option<MetricArg>,
    /// The payload fields to filter and group by, in place of those declared now. Give it once a field
    #[arg(long = "field", value_name = "NAME=KIND", value_parser = field)]
    fields: Vec<(String, FieldKind)>,
    /// Shards; another number makes a new topic, which is fed from the old one until producers have
    /// switched
    #[arg(long)]
    partitions: Option<u32>,
    /// Build it anew even where nothing of it changes
    #[arg(long)]
    anew: bool,
    /// Longest time for all of it, such as 6h; what is built by then stays for the next run
    #[arg(long, default_value = "24h", value_parser = duration)]
    timeout: Duration,
    /// How long the old collection is kept once the name stands for the new one. After a change of the
    /// shards: how long nobody must have written to the old topic
    #[arg(long, default_value = "30s", value_parser = duration)]
    linger: Duration,
    /// Least share of a sample of points that searches of the new collection have to find, and of what
    /// the old one finds near them; 0 takes it however it is
    #[arg(long, default_value_t = 0.8, value_name = "SHARE", value_parser = share)]
    recall: f64,
    /// Leave the old collection where it is
    #[arg(long)]
    keep_old: bool,
    /// Delete the old topic too, where the new collection does not read it
    #[arg(long, conflicts_with = "keep_old")]
    delete_topic: bool,
    /// Take back what a run has begun: the name stands for the old collection, and the new one goes
    #[arg(long)]
    abort: bool,
    #[command(flatten)]
    kafka: KafkaFlag,
}

/// How a run ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Done,
    TimedOut,
    Overtaken,
    Interrupted,
}

impl Ending {
    fn code(self) -> ExitCode {
        match self {
            Self::Done => ExitCode::SUCCESS,
            Self::TimedOut => ExitCode::from(TIMED_OUT),
            Self::Overtaken => ExitCode::from(OVERTAKEN),
            Self::Interrupted => ExitCode::from(INTERRUPTED),
        }
    }
}

/// What becomes of the job of an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resume {
    /// It is what is wished for.
    GoOn,
    /// All of it is done but for forgetting it; what is wished for may be something else.
    Finish { and_begin: bool },
    /// Something else is wished for.
    TakeBack,
}

/// Why a step ends the run without being wrong.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("run ends: {0:?}")]
struct Ends(Ending);

/// A new generation does not hold what the old one holds.
#[derive(Debug, thiserror::Error)]
#[error("`{to}` does not hold what `{from}` holds: {told}")]
struct NotTheSame {
    from: CollectionName,
    to: CollectionName,
    told: String,
}

fn share(text: &str) -> Result<f64, Usage> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(Usage("write a share from 0 to 1, such as 0.8".into())),
    }
}

fn say(line: impl std::fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

impl Reindex {
    pub(super) async fn run(&self, context: &Context) -> anyhow::Result<ExitCode> {
        context.quiet_logs()?;
        let link = KafkaLink::open(context, &self.kafka, Fresh::Refuse).await?;
        // Signals end the run and not what it is taken back with.
        let stop = CancellationToken::new();
        let signals = Tasks::new(CancellationToken::new());
        signals.spawn("signals", cancel_on_signal(stop.clone()));
        let ended = self.go(&link, &stop).await;
        stop.cancel();
        link.close().await;
        let ending = ended.or_else(|error| error.downcast().map(|Ends(ending)| ending));
        Ok(ending?.code())
    }

    async fn go(&self, link: &KafkaLink, stop: &CancellationToken) -> anyhow::Result<Ending> {
        let run = run_id(link);
        if self.abort {
            let Some(found) = link.state.reindexes.get(&self.name) else {
                say(format_args!(
                    "no re-indexing of `{}` is under way",
                    self.name
                ))?;
                return Ok(Ending::Done);
            };
            let job = Job::take_over(link, &run, &self.name, found.clone()).await?;
            job.take_back(link).await?;
            return Ok(Ending::Done);
        }
        let Some(job) = self.begin(link, &run).await? else {
            return Ok(Ending::Done);
        };
        self.carry_out(link, job, stop).await
    }

    /// The job of an earlier run, or a new one; `None` if there is nothing to do.
    async fn begin(&self, link: &KafkaLink, run: &str) -> anyhow::Result<Option<Job>> {
        let mut found = link.control.snapshot().reindexes.get(&self.name).cloned();
        let mut taken_back = None;
        loop {
            if let Some(found) = found.take() {
                let job = Job::take_over(link, run, &self.name, found).await?;
                let state = link.control.snapshot();
                match self.resume(&state, &job.entry) {
                    Resume::GoOn => {
                        say(format_args!(
                            "goes on with a run that has ended: `{}` is to become `{}`",
                            job.entry.from, job.entry.to
                        ))?;
                        return Ok(Some(job));
                    }
                    Resume::Finish { and_begin } => {
                        say("an earlier run had come to its end but for its last step")?;
                        job.finish(link, self.delete_topic).await?;
                        if !and_begin {
                            return Ok(None);
                        }
                    }
                    Resume::TakeBack => {
                        say("an earlier run wanted something else, it is taken back first")?;
                        job.take_back(link).await?;
                        // Should that run live, it may be about to make a collection of that name.
                        taken_back = Some(job.entry.to);
                    }
                }
            }
            let Some(wanted) = self.wanted(link, taken_back.as_ref()).await? else {
                return Ok(None);
            };
            match Job::begin(link, run, &self.name, wanted).await? {
                Noted::Ours(job) => return Ok(Some(*job)),
                // Both had begun at once, and this one is the later.
                Noted::InPlaceOf(other) => found = Some(other),
            }
        }
    }

    /// What becomes of an earlier run's job.
    fn resume(&self, state: &ControlState, found: &control::Reindex) -> Resume {
        let is_flipped = state.aliases.get(&self.name) == Some(&found.to);
        match state.collections.get(&found.to) {
            Some(new) if is_flipped && !state.collections.contains_key(&found.from) => {
                let and_begin = self.wishes() && !self.is_met(new);
                Resume::Finish { and_begin }
            }
            _ if !self.wishes() || self.wants(state, found) => Resume::GoOn,
            _ => Resume::TakeBack,
        }
    }

    /// What is to be done; `None` if that is nothing. A name that is chosen is not `other_than`.
    async fn wanted(
        &self,
        link: &KafkaLink,
        other_than: Option<&CollectionName>,
    ) -> anyhow::Result<Option<Wanted>> {
        let state = link.control.snapshot();
        let Some(old) = state.resolve(&self.name) else {
            // The usual words, with what there is.
            link.collection(&self.name)?;
            return Ok(None);
        };
        if let Some(to) = &self.to {
            let Some(new) = state.collections.get(to) else {
                return Err(Usage(format!("collection `{to}` does not exist")).into());
            };
            if new.name == old.name {
                say(format_args!("`{}` stands for `{to}` already", self.name))?;
                return Ok(None);
            }
            return Ok(Some(Wanted {
                from: old.name.clone(),
                to: new.clone(),
                made: false,
            }));
        }
        let name = match &self.called {
            Some(name) => name.clone(),
            None => self.next_name(link, &state, other_than).await?,
        };
        let new = self.wished(old, name)?;
        if generation::is_like(old, &new) && !self.anew {
            if !self.wishes() {
                return Err(Usage(
                    "nothing is to change: say --index, --m, --quantization, --partitions, ..., --to, or --anew"
                        .into(),
                )
                .into());
            }
            say(format_args!(
                "`{}` stands for `{}`, which is like that already",
                self.name, old.name
            ))?;
            return Ok(None);
        }
        let taken =
            state.collections.contains_key(&new.name) || state.aliases.contains_key(&new.name);
        if taken {
            return Err(Usage(format!(
                "`{}` is there already; choose another --as",
                new.name
            ))
            .into());
        }
        // What an abort deletes has to be what the run has made.
        let topic = new.name.topic();
        if self.called.is_some() && topics(link).await?.contains(&topic) {
            return Err(Usage(format!(
                "topic `{topic}` is there already, and an abort would delete it; choose another --as"
            ))
            .into());
        }
        Ok(Some(Wanted {
            from: old.name.clone(),
            to: new,
            made: true,
        }))
    }

    /// Whether the command line says what to build.
    fn wishes(&self) -> bool {
        self.to.is_some()
            || self.index.is_some()
            || self.m.is_some()
            || self.ef_construction.is_some()
            || self.ef_search.is_some()
            || self.quantization.is_some()
            || self.metric.is_some()
            || self.partitions.is_some()
            || !self.fields.is_empty()
            || self.anew
    }

    /// Whether an earlier run was for what this one is for.
    fn wants(&self, state: &ControlState, found: &control::Reindex) -> bool {
        if let Some(to) = &self.to {
            // What that one was to make is not what was made by somebody else since.
            return *to == found.to && !found.made;
        }
        let is_named = self.called.as_ref().is_none_or(|name| *name == found.to);
        // Killed before it was made: what it was to be like is known by nobody.
        let (Some(old), Some(new)) = (
            state.collections.get(&found.from),
            state.collections.get(&found.to),
        ) else {
            return false;
        };
        let wished = self.wished(old, found.to.clone());
        found.made && is_named && wished.is_ok_and(|wished| wished == *new)
    }

    /// Whether a collection is what is wished for.
    fn is_met(&self, new: &Collection) -> bool {
        let named = self.to.as_ref().or(self.called.as_ref());
        let wished = || self.wished(new, new.name.clone());
        named.is_none_or(|name| *name == new.name)
            && wished().is_ok_and(|wished| generation::is_like(new, &wished))
    }

    /// The first name of a generation that nobody has, no topic either.
    async fn next_name(
        &self,
        link: &KafkaLink,
        state: &ControlState,
        other_than: Option<&CollectionName>,
    ) -> anyhow::Result<CollectionName> {
        let topics = topics(link).await?;
        for number in 2_u32.. {
            let name: CollectionName = format!("{}-g{number}", self.name).parse()?;
            let is_taken = Some(&name) == other_than
                || state.collections.contains_key(&name)
                || state.aliases.contains_key(&name)
                || topics.contains(&name.topic());
            if !is_taken {
                return Ok(name);
            }
        }
        Err(Usage("every name is taken; choose one with --as".into()).into())
    }

    /// The definition of the new generation.
    fn wished(&self, old: &Collection, name: CollectionName) -> Result<Collection, Usage> {
        let mut new = old.clone();
        let partitions = self.partitions.unwrap_or(old.partitions);
        if partitions == old.partitions {
            // The one whose topic it is reads it without a word.
            new.reads = (*old.home() != name).then(|| old.home().clone());
            new.fed_by = None;
        } else {
            new.reads = None;
            new.fed_by = Some(old.home().clone());
        }
        new.name = name;
        new.partitions = partitions;
        let index = &mut new.index;
        if let Some(kind) = self.index {
            *index = index.of_kind(kind.into());
        }
        index.m = self.m.unwrap_or(index.m);
        index.ef_construction = self.ef_construction.unwrap_or(index.ef_construction);
        index.ef_search = self.ef_search.unwrap_or(index.ef_search);
        if let Some(quantization) = self.quantization {
            index.quantization = Some(quantization.into());
        }
        if let Some(metric) = self.metric {
            new.metric = metric.into();
            if self.quantization.is_none() {
                new.index.quantization = None;
            }
        }
        // Said, as it stands once it is made: what was made is told by it.
        new.index.quantization = Some(new.quantization());
        if !self.fields.is_empty() {
            new.fields = super::collection::declared(&self.fields)?;
        }
        new.check().map_err(|error| Usage(error.to_string()))?;
        Ok(new)
    }

    /// Carries a job out, and takes it back where that is what is right.
    async fn carry_out(
        &self,
        link: &KafkaLink,
        job: Job,
        stop: &CancellationToken,
    ) -> anyhow::Result<Ending> {
        let steps = Steps::new(self, link, &job);
        let outcome = steps.unbroken.or_stop(stop, steps.carry_out()).await;
        let outcome = outcome.unwrap_or_else(|| Err(Ends(Ending::Interrupted).into()));
        steps.stop_feed().await;
        let Err(error) = outcome else {
            return Ok(Ending::Done);
        };
        let state = link.control.snapshot();
        if !job.is_ours(&state) {
            // What there is of it is the later run's now.
            return Ok(Ending::Overtaken);
        }
        let is_flipped = job.is_flipped(&state);
        match error.downcast_ref::<Ends>() {
            Some(Ends(Ending::Interrupted)) if !is_flipped => {
                job.take_back(link).await?;
                Ok(Ending::Interrupted)
            }
            Some(Ends(ending @ (Ending::TimedOut | Ending::Interrupted))) => {
                say(format_args!(
                    "not finished; the same command goes on, `shoal reindex {} --abort` takes it back",
                    self.name
                ))?;
                Ok(*ending)
            }
            Some(Ends(ending)) => Ok(*ending),
            None if error.is::<NotTheSame>() && !is_flipped => {
                job.take_back(link).await?;
                Err(error)
            }
            None => Err(error.context(format!(
                "not finished; the same command goes on, `shoal reindex {} --abort` takes it back",
                self.name
            ))),
        }
    }
}

/// Every topic there is.
async fn topics(link: &KafkaLink) -> anyhow::Result<Vec<String>> {
    let admin = link.cluster.admin.clone();
    Ok(shoal_runtime::tasks::blocking(move || admin.list_topics()).await?)
}

#[cfg(test)]
#[path = "reindex_tests.rs"]
mod tests;
