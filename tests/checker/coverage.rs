//! A shard that is said to have answered covers its points up to the offset it names, and nothing from the future.

use std::collections::BTreeSet;

use super::{
    Anomaly, Case, Promise,
    answer::Read,
    history::{Call, Covered, History},
    log::Log,
};

/// Coverage that is not true.
pub(crate) fn check(case: &Case<'_>) -> Vec<Anomaly> {
    let mut found = Vec::new();
    for read in &case.reads {
        let number = read.operation.number;
        let told = shards(case.history, read)
            .into_iter()
            .chain(points(&case.log, read))
            .chain(count(&case.log, read));
        found.extend(told.map(|told| Anomaly::new(Promise::Coverage, &[number], told)));
    }
    found
}

/// Which shards have to be named, and which have to have answered.
fn shards(history: &History, read: &Read<'_>) -> Vec<String> {
    let (demands, answer) = (read.demands, read.answer);
    let mut wrong = Vec::new();
    let asked: BTreeSet<u32> = match &read.operation.call {
        Call::Get { keys, .. } => {
            let homes = keys.iter().filter_map(|key| history.run.keys.get(key));
            homes.copied().collect()
        }
        _ => (0..history.run.partitions).collect(),
    };
    let named: BTreeSet<u32> = answer.shards.iter().map(|shard| shard.shard).collect();
    if let Some(shard) = asked.difference(&named).next() {
        wrong.push(format!("nothing is said of shard {shard}"));
    }
    if named.len() < answer.shards.len() {
        wrong.push("a shard is named twice".to_owned());
    }
    let silent = |shard: &&Covered| !shard.answered;
    for shard in answer.shards.iter().filter(silent) {
        if demands.require_all {
            wrong.push(format!("all were wanted, shard {} is missing", shard.shard));
        }
        let of_shard = |key: &str| history.run.keys.get(key) == Some(&shard.shard);
        if answer.seen.iter().any(|seen| of_shard(&seen.key)) {
            wrong.push(format!(
                "shard {} did not answer and has points",
                shard.shard
            ));
        }
    }
    wrong
}

/// Points from before the offset named, or from after the answer.
fn points(log: &Log<'_>, read: &Read<'_>) -> Vec<String> {
    let answered = read.answer.shards.iter().filter(|one| one.answered);
    let parts = answered.flat_map(|one| read.of_shard(one.shard).map(move |part| (one, part)));
    let wrong = parts.filter_map(|(covered, part)| {
        let last = log.unknown_before(part.shard, read.operation.completed_us);
        let possible = part.moments.from(covered.next_offset).to(last);
        possible.is_empty().then(|| {
            format!(
                "shard {} of node `{}` says that it had applied {} records and showed {}, which is so from {:?} to {:?}; {last} records were begun by then",
                part.shard,
                covered.node,
                covered.next_offset,
                part.told,
                part.moments.first(),
                part.moments.last()
            )
        })
    });
    wrong.collect()
}

/// A count that the shards that answered cannot come to.
fn count(log: &Log<'_>, read: &Read<'_>) -> Option<String> {
    let points = read.answer.points?;
    let mut sums = BTreeSet::from([0]);
    for covered in read.answer.shards.iter().filter(|shard| shard.answered) {
        let tokens = read.demands.tokens.iter();
        let tokens = tokens.filter(|token| token.partition == covered.shard);
        let first = tokens.map(|token| token.offset + 1).max().unwrap_or(0);
        let first = first.max(covered.next_offset);
        let last = log.unknown_before(covered.shard, read.operation.completed_us);
        let of_shard = log.counts(covered.shard, first, last.max(first));
        let all = sums.iter();
        sums = all
            .flat_map(|sum| of_shard.iter().map(move |one| sum + one))
            .collect();
    }
    let is_possible = sums.contains(&points);
    (!is_possible).then(|| format!("{points} points are counted, possible are {sums:?}"))
}
