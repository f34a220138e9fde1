//! When all is quiet every copy of a shard is the fold of the log.

use std::collections::BTreeMap;

use super::{Anomaly, Case, Promise, history::Seen, log::is_shown};

/// Copies that lack points, have other ones, or have some that are gone.
pub(crate) fn check(case: &Case<'_>) -> Vec<Anomaly> {
    let (history, log) = (case.history, &case.log);
    let mut found = Vec::new();
    for copy in &history.copies {
        let expected = log.state(copy.shard, log.end(copy.shard));
        let held: BTreeMap<&str, &Seen> = copy
            .points
            .iter()
            .map(|seen| (seen.key.as_str(), seen))
            .collect();
        let mut wrong = |key: &str, told: String| {
            let last = log.of_key(key).last();
            let maker = last.and_then(|last| log.maker(last.content?.stamp?));
            let maker: Vec<u64> = maker.map(|maker| maker.number).into_iter().collect();
            let told = format!("shard {} of node `{}`: {told}", copy.shard, copy.node);
            found.push(Anomaly::new(Promise::Copies, &maker, told));
        };
        if held.len() < copy.points.len() {
            wrong("", "an id is there twice".into());
        }
        for (key, record) in &expected {
            match held.get(key) {
                Some(seen) if is_shown(record, seen) => {}
                other => wrong(
                    key,
                    format!("`{key}` is {other:?}, the log says {record:?}"),
                ),
            }
        }
        for (key, seen) in &held {
            if !expected.contains_key(key) {
                wrong(key, format!("`{key}` is {seen:?}, the log says it is gone"));
            }
        }
    }
    found
}
