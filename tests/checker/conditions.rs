//! An acknowledged patch was made of the point right before it, and its condition held there: no update is lost to it.

use super::{
    Anomaly, Case, Promise,
    history::{Call, Content, Record},
};

/// Patches of no point, of another point than the one before, or against their condition.
pub(crate) fn check(case: &Case<'_>) -> Vec<Anomaly> {
    let (history, log) = (case.history, &case.log);
    let mut found = Vec::new();
    for (operation, _, place, _) in history.acknowledged() {
        let Call::Patch {
            with_vector,
            if_version,
            ..
        } = &operation.call
        else {
            continue;
        };
        let Some(record) = log.at(place) else {
            continue;
        };
        let told = |before: Option<&Record>| {
            let vector = |content: Content| content.of_vector;
            match before.and_then(|before| Some((before, before.content?))) {
                None => Some("there was no point".to_owned()),
                Some((before, _)) if if_version.is_some_and(|one| one != before.version) => {
                    let made_of = before.version;
                    Some(format!(
                        "version {if_version:?} was asked for, it was made of {made_of}"
                    ))
                }
                Some((_, before))
                    if !with_vector && record.content.map(vector) != Some(vector(before)) =>
                {
                    Some(format!("it has another vector than {before:?} before it"))
                }
                Some(_) => None,
            }
        };
        let bases = log.bases(record);
        let wrong = bases.iter().map(|before| told(*before));
        let wrong: Option<Vec<String>> = wrong.collect();
        let Some(told) = wrong else {
            continue;
        };
        let before = bases.first().copied().flatten();
        let maker = before.and_then(|before| log.maker(before.content?.stamp?));
        let maker = maker.map(|maker| maker.number);
        let operations: Vec<u64> = [operation.number].into_iter().chain(maker).collect();
        found.push(Anomaly::new(
            Promise::Conditions,
            &operations,
            told.join("; or "),
        ));
    }
    found
}
