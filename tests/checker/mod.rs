//! Checks recorded histories against what Shoal promises: pure, after the run, from a file if need be.
//!
//! A [`History`] is what clients did, with the times of one clock, and the topic as it was read back afterwards. The topic
//! is the truth: a shard's state is the fold of the first n records of its partition, so an answer is right if there is an
//! n at which the log shows what the answer shows, and wrong reads differ only in which n they would need. Every check is
//! a function from history to [`Anomaly`]s, each of which names the operations that prove it.
//!
//! What is checked, one file each:
//! - [`versions`]: no answer mixes two versions of an id, or two moments of a shard;
//! - [`tokens`]: an answer that carries a token shows that write, or a newer one of its key;
//! - [`sessions`]: who carries what it has seen never goes back;
//! - [`freshness`]: how far behind a shard says it is, it is at most;
//! - [`writes`]: what was acknowledged is in the log, in order, what was refused is not, and nothing else is;
//! - [`conditions`]: a patch was made of the point before it, a condition held;
//! - [`coverage`]: a shard that is said to have answered covers its points up to the offset it names;
//! - [`copies`]: in the end every copy is the fold of the log.
#![allow(
    dead_code,
    reason = "two test programs use it, neither of them everything"
)]

mod answer;
mod conditions;
mod copies;
mod coverage;
mod freshness;
pub(crate) mod history;
mod log;
pub(crate) mod mark;
mod moments;
mod put_back;
mod sessions;
mod tokens;
mod versions;
mod writes;

use std::fmt;

use answer::Read;
use history::{History, Operation, Place};
use log::Log;

/// Which promise an anomaly breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Promise {
    /// The history itself: the log was not read back whole.
    Whole,
    /// No mixed versions, no mixed moments.
    Versions,
    /// Tokens.
    Tokens,
    /// Sessions that carry what they saw.
    Sessions,
    /// Lag as told.
    Freshness,
    /// Acknowledged writes.
    Writes,
    /// Patches and conditions.
    Conditions,
    /// Coverage as told.
    Coverage,
    /// The final state.
    Copies,
}

/// A promise that was broken, and the operations that show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Anomaly {
    pub(crate) promise: Promise,
    /// Numbers of the operations, the one that is wrong first.
    pub(crate) operations: Vec<u64>,
    pub(crate) told: String,
}

impl Anomaly {
    fn new(promise: Promise, operations: &[u64], told: impl Into<String>) -> Self {
        Self {
            promise,
            operations: operations.to_vec(),
            told: told.into(),
        }
    }
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?}: operations {:?}: {}",
            self.promise, self.operations, self.told
        )
    }
}

/// A history with what every check asks of it.
struct Case<'a> {
    history: &'a History,
    log: Log<'a>,
    reads: Vec<Read<'a>>,
}

impl<'a> Case<'a> {
    fn of(history: &'a History) -> Result<Self, String> {
        let log = Log::of(history)?;
        let reads = answer::reads(history, &log);
        Ok(Self {
            history,
            log,
            reads,
        })
    }

    /// The acknowledged write at a place, if there is one.
    fn writer(&self, place: Place) -> Option<u64> {
        let mut acknowledged = self.history.acknowledged();
        let found = acknowledged.find(|(_, _, at, _)| *at == place);
        found.map(|(operation, ..)| operation.number)
    }
}

/// Everything that is wrong with a history, by promise; empty if nothing is.
pub(crate) fn check(history: &History) -> Vec<Anomaly> {
    let case = match Case::of(history) {
        Ok(case) => case,
        Err(told) => return vec![Anomaly::new(Promise::Whole, &[], told)],
    };
    let checks = [
        versions::check,
        tokens::check,
        sessions::check,
        freshness::check,
        writes::check,
        conditions::check,
        coverage::check,
        copies::check,
    ];
    let mut found: Vec<Anomaly> = checks.iter().flat_map(|check| check(&case)).collect();
    found.sort_by_key(|anomaly| anomaly.promise);
    found
}

/// The first anomalies and the operations they name, for a person to read.
pub(crate) fn report(history: &History, anomalies: &[Anomaly]) -> String {
    const SHOWN: usize = 10;
    let mut text = format!("{} anomalies\n", anomalies.len());
    for anomaly in anomalies.iter().take(SHOWN) {
        text.push_str(&format!("{anomaly}\n"));
        let named = |operation: &&Operation| anomaly.operations.contains(&operation.number);
        for operation in history.operations.iter().filter(named) {
            text.push_str(&format!("    {operation:?}\n"));
        }
    }
    text
}
