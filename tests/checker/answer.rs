//! What an answer shows of each shard, and at which moments the log shows the same.

use super::{
    history::{Answer, Call, Demands, History, Operation, Record, Seen},
    log::{Log, is_shown},
    mark,
    moments::Moments,
};

/// A part of an answer that is of one moment: a shard's hits, or one point asked for by its id.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) shard: u32,
    /// When the log shows the same; without any bound.
    pub(crate) moments: Moments,
    /// What is shown, for a person.
    pub(crate) told: String,
}

/// A read that was answered.
pub(crate) struct Read<'a> {
    pub(crate) operation: &'a Operation,
    pub(crate) demands: &'a Demands,
    pub(crate) answer: &'a Answer,
    /// Of the shards that answered.
    pub(crate) parts: Vec<Part>,
}

impl Read<'_> {
    /// The parts of a shard that some moment shows; what none shows is a fault of its own.
    pub(crate) fn of_shard(&self, shard: u32) -> impl Iterator<Item = &Part> {
        let parts = self.parts.iter();
        parts.filter(move |part| part.shard == shard && !part.moments.is_empty())
    }
}

/// All reads that were answered.
pub(crate) fn reads<'a>(history: &'a History, log: &Log<'a>) -> Vec<Read<'a>> {
    let answers = history.answers();
    let read = |(operation, demands, answer)| Read {
        operation,
        demands,
        answer,
        parts: parts(history, log, operation, answer),
    };
    answers.map(read).collect()
}

/// The parts of an answer whose every point is some record of the log, shards that did not answer left out.
fn parts(history: &History, log: &Log<'_>, operation: &Operation, answer: &Answer) -> Vec<Part> {
    let answered = answer.shards.iter().filter(|shard| shard.answered);
    let answered: Vec<u32> = answered.map(|shard| shard.shard).collect();
    match &operation.call {
        Call::Search { near, k, exact, .. } => {
            // With fewer hits than asked for, everything is among them; else everything nearer than the last.
            let is_full = answer.seen.len() >= *k;
            let last = answer.seen.last().filter(|_| is_full).and_then(|seen| {
                let vector = seen.content.vector?;
                Some((mark::distance(*near, vector), seen.key.as_str()))
            });
            let searched = Searched { near: *near, last };
            let shards = answered.iter();
            let part = |shard: &u32| searched.part(history, log, *shard, *exact, &answer.seen);
            shards.map(part).collect()
        }
        Call::Get { keys, .. } => {
            let asked = keys.iter().filter_map(|key| {
                let shard = *history.run.keys.get(key)?;
                answered.contains(&shard).then_some((key, shard))
            });
            asked
                .map(|(key, shard)| {
                    let seen = answer.seen.iter().find(|seen| seen.key == *key);
                    Part {
                        shard,
                        moments: log.moments(key, shard, |record| is_this(record, seen)),
                        told: told(key, seen),
                    }
                })
                .collect()
        }
        _ => Vec::new(),
    }
}

/// Whether a record, or that there is none, is what an answer shows.
fn is_this(record: Option<&Record>, seen: Option<&Seen>) -> bool {
    match (record, seen) {
        (None, None) => true,
        (Some(record), Some(seen)) => is_shown(record, seen),
        _ => false,
    }
}

fn told(key: &str, seen: Option<&Seen>) -> String {
    match seen {
        None => format!("`{key}` is not there"),
        Some(seen) => format!(
            "`{key}` at version {} of stamp {:?}",
            seen.version, seen.content.stamp
        ),
    }
}

struct Searched<'a> {
    near: u64,
    /// Distance and key of the last of k hits.
    last: Option<(u32, &'a str)>,
}

impl Searched<'_> {
    fn part(
        &self,
        history: &History,
        log: &Log<'_>,
        shard: u32,
        exact: bool,
        hits: &[Seen],
    ) -> Part {
        let mut moments = Moments::between(0, log.end(shard));
        let keys = history.run.keys.iter();
        let mut shown = Vec::new();
        for (key, _) in keys.filter(|(_, home)| **home == shard) {
            let seen = hits.iter().find(|seen| seen.key == *key);
            if seen.is_none() && !exact {
                continue;
            }
            let at = log.moments(key, shard, |record| match (record, seen) {
                (Some(record), None) => self.is_behind(record),
                _ => is_this(record, seen),
            });
            moments = moments.and(&at);
            shown.extend(seen.map(|seen| told(key, Some(seen))));
        }
        Part {
            shard,
            moments,
            told: match shown.is_empty() {
                true => "no point".into(),
                false => shown.join(", "),
            },
        }
    }

    /// Whether a live point comes after the last hit, so that it need not be shown.
    fn is_behind(&self, record: &Record) -> bool {
        let vector = record.content.and_then(|content| content.vector);
        match (self.last, vector) {
            (Some(last), Some(vector)) => {
                (mark::distance(self.near, vector), record.key.as_str()) > last
            }
            _ => false,
        }
    }
}
