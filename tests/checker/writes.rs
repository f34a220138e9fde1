//! What was acknowledged is in the log where its token says, in the order in which it was done; what failed is not; and
//! nothing is there that nobody wrote.

use std::collections::{BTreeMap, HashMap};

use super::{
    Anomaly, Case, Promise,
    history::{Call, History, Operation, Outcome, Place, Record},
    log::Log,
};

/// Lost acknowledgements, records of nobody, records that came back.
pub(crate) fn check(case: &Case<'_>) -> Vec<Anomaly> {
    let (history, log) = (case.history, &case.log);
    let mut found = acknowledged(history, log);
    found.extend(points(log));
    found.extend(deletes(history, log));
    found.extend(order(history, log));
    found
}

/// Each acknowledged write stands at its place.
fn acknowledged(history: &History, log: &Log<'_>) -> Vec<Anomaly> {
    let mut found = Vec::new();
    let mut places: HashMap<Place, u64> = HashMap::new();
    for (operation, key, place, version) in history.acknowledged() {
        let is_ours = |record: &&Record| {
            let stamp = record.content.map(|content| content.stamp);
            record.key == key
                && record.version == version
                && stamp == operation.call.stamp().map(Some)
        };
        let told = format!(
            "acknowledged at offset {} of partition {}",
            place.offset, place.partition
        );
        match log.at(place) {
            Some(record) if is_ours(&record) => {}
            other => found.push(Anomaly::new(
                Promise::Writes,
                &[operation.number],
                format!("{told}, where the log has {other:?}"),
            )),
        }
        if let Some(other) = places.insert(place, operation.number) {
            found.push(Anomaly::new(
                Promise::Writes,
                &[operation.number, other],
                format!("{told}, as another write was"),
            ));
        }
    }
    found
}

/// Each point in the log is of a write that may have made it, and whole.
fn points(log: &Log<'_>) -> Vec<Anomaly> {
    let mut found = Vec::new();
    for (record, content) in log.all().filter_map(|one| Some((one, one.content?))) {
        let mut wrong = |operations: &[u64], told: &str| {
            let told = format!("{record:?} {told}");
            found.push(Anomaly::new(Promise::Writes, operations, told));
        };
        let Some(maker) = content.stamp.and_then(|stamp| log.maker(stamp)) else {
            wrong(&[], "is of nobody");
            continue;
        };
        if maker.call.written() != Some(record.key.as_str()) {
            wrong(&[maker.number], "has another key");
        }
        if content.vector.is_none() || content.vector != content.of_vector {
            wrong(&[maker.number], "mixes two writes");
        }
        match &maker.outcome {
            Outcome::Failed { .. } => wrong(&[maker.number], "is of a write that failed"),
            Outcome::Refused { .. } => {
                let records = log.of_key(&record.key);
                let is_last = records
                    .last()
                    .is_some_and(|last| last.place == record.place);
                if is_last {
                    wrong(&[maker.number], "is of a change that was refused");
                }
            }
            _ => {}
        }
    }
    found
}

/// There are no more deletes of a key than were asked for.
fn deletes(history: &History, log: &Log<'_>) -> Vec<Anomaly> {
    let mut possible: BTreeMap<&str, usize> = BTreeMap::new();
    for operation in &history.operations {
        let is_possible = !matches!(operation.outcome, Outcome::Failed { .. });
        if let (Call::Delete { key }, true) = (&operation.call, is_possible) {
            *possible.entry(key).or_default() += 1;
        }
    }
    let mut found = Vec::new();
    for key in history.run.keys.keys() {
        let records = log.of_key(key);
        // A patch that turns out to be of a point that is gone is mended by one more delete.
        let made = records.iter();
        let made = made.filter(|one| one.content.is_none() && !log.may_be_put_back(one));
        let (made, possible) = (
            made.count(),
            possible.get(key.as_str()).copied().unwrap_or_default(),
        );
        if made > possible {
            found.push(Anomaly::new(
                Promise::Writes,
                &[],
                format!("`{key}` was deleted {made} times, {possible} were asked for"),
            ));
        }
    }
    found
}

/// No record of a write that was over stands behind one that was acknowledged and begun afterwards.
fn order(history: &History, log: &Log<'_>) -> Vec<Anomaly> {
    let mut by_key: BTreeMap<&str, Vec<(Place, &Operation)>> = BTreeMap::new();
    for (operation, key, place, _) in history.acknowledged() {
        by_key.entry(key).or_default().push((place, operation));
    }
    let mut found = Vec::new();
    for (key, mut acknowledged) in by_key {
        acknowledged.sort_by_key(|(place, _)| *place);
        let mut next = acknowledged.iter().peekable();
        // Of the writes so far the one that was begun last.
        let mut newest: Option<&Operation> = None;
        for record in log.of_key(key) {
            let here = next.next_if(|(place, _)| *place <= record.place);
            let here = here.map(|(_, operation)| *operation);
            let stamp = record.content.and_then(|content| content.stamp);
            let maker = here.or_else(|| stamp.and_then(|stamp| log.maker(stamp)));
            let is_over = |maker: &Operation, newest: &Operation| {
                let is_known = !matches!(maker.outcome, Outcome::Unknown { .. });
                is_known && maker.completed_us < newest.invoked_us
            };
            if let (Some(maker), Some(newest)) = (maker, newest)
                && is_over(maker, newest)
                && !log.is_passing(record)
            {
                found.push(Anomaly::new(
                    Promise::Writes,
                    &[maker.number, newest.number],
                    format!("{record:?} came back behind a write that was begun when it was over"),
                ));
            }
            if let Some(here) = here
                && newest.is_none_or(|newest| newest.invoked_us < here.invoked_us)
            {
                newest = Some(here);
            }
        }
    }
    found
}
