//! No answer mixes two versions of an id, nor two moments of a shard.

use std::collections::BTreeSet;

use super::{
    Anomaly, Case, Promise,
    history::{Answer, Call, Operation, Seen},
    log::Log,
    mark,
};

/// A point that is no record of the log; an id twice; hits out of order; a shard of no one moment.
pub(crate) fn check(case: &Case<'_>) -> Vec<Anomaly> {
    let mut found = Vec::new();
    for read in &case.reads {
        let (operation, answer) = (read.operation, read.answer);
        let mut wrong = |told: String| {
            found.push(Anomaly::new(Promise::Versions, &[operation.number], told));
        };
        let mut is_known = true;
        for seen in &answer.seen {
            if case.log.shown(seen).next().is_none() {
                is_known = false;
                wrong(no_such_record(&case.log, seen));
            }
        }
        order(operation, answer).into_iter().for_each(&mut wrong);
        if !is_known {
            continue;
        }
        for part in &read.parts {
            if part.moments.is_empty() {
                wrong(format!(
                    "at no moment does shard {} show this: {}",
                    part.shard, part.told
                ));
            }
        }
    }
    found
}

fn no_such_record(log: &Log<'_>, seen: &Seen) -> String {
    let same = log.of_key(&seen.key).iter();
    let versions: Vec<u64> = same
        .filter(|record| {
            record.content.is_some_and(|content| {
                content.stamp == seen.content.stamp || content.vector == seen.content.vector
            })
        })
        .map(|record| record.version)
        .collect();
    format!(
        "`{}` at version {} holds {:?}, which no record does; parts of it are in versions {versions:?}",
        seen.key, seen.version, seen.content
    )
}

/// What is wrong with the order of the hits, and with their distances.
fn order(operation: &Operation, answer: &Answer) -> Vec<String> {
    let mut wrong = Vec::new();
    let keys: BTreeSet<&str> = answer.seen.iter().map(|seen| seen.key.as_str()).collect();
    if keys.len() < answer.seen.len() {
        wrong.push("an id is there twice".to_owned());
    }
    let Call::Search { near, k, .. } = &operation.call else {
        return wrong;
    };
    if answer.seen.len() > *k {
        wrong.push(format!("{} hits, {k} were asked for", answer.seen.len()));
    }
    for seen in &answer.seen {
        let expected = seen.content.vector.map(|one| mark::distance(*near, one));
        // Whole numbers below 2^24 are exact in single precision.
        let is_right = expected.zip(seen.distance).is_some_and(|(expected, told)| {
            u16::try_from(expected).is_ok_and(|expected| f32::from(expected) == told)
        });
        if !is_right {
            wrong.push(format!(
                "`{}` is told at distance {:?}, its vector is at {expected:?}",
                seen.key, seen.distance
            ));
        }
    }
    let is_behind = |pair: &[Seen]| match pair {
        [a, b] => {
            let distances = a.distance.zip(b.distance);
            distances.is_some_and(|(left, right)| {
                left.total_cmp(&right)
                    .then_with(|| a.key.cmp(&b.key))
                    .is_gt()
            })
        }
        _ => false,
    };
    if answer.seen.windows(2).any(is_behind) {
        wrong.push("hits are out of order".to_owned());
    }
    wrong
}
