//! Patches: what they were made of, what they put back, and faults planted there.

use crate::{
    checker::{
        self, Anomaly, Promise,
        history::{Call, Content, Outcome, Place, Record},
    },
    planted::{self, breaks, breaks_all, is_right},
    story::Story,
};

#[test]
fn a_patch_of_another_point_than_the_one_before_it_is_caught() {
    let mut story = planted::story();
    let patch = story.history.operations.len();
    story.patch(0, "a0");
    is_right(&story);
    let record = story.history.records.last_mut().unwrap();
    let content = record.content.as_mut().unwrap();
    content.of_vector = Some(1);
    content.vector = Some(1);
    breaks(&story, Promise::Conditions, patch);
    // Of a point that is gone.
    let mut story = planted::story();
    let patch = story.history.operations.len();
    story.patch(0, "b1");
    let gone = story.history.records.len() - 1;
    let before = |record: &checker::history::Record| record.key == "b1";
    let at = story.history.records.iter().position(before).unwrap();
    assert!(at < gone);
    story.history.records[at].content = None;
    let found = checker::check(&story.history);
    let number = u64::try_from(patch).unwrap();
    let is_ours =
        |one: &Anomaly| one.promise == Promise::Conditions && one.operations.contains(&number);
    assert!(found.iter().any(is_ours), "{found:?}");
}

#[test]
fn a_patch_that_was_made_anew_upon_another_write_is_right() {
    let mut story = planted::story();
    story.upsert(0, "a0");
    story.patch(0, "a0");
    // It was first made of the point before the newest one, and published behind that.
    let last = story.history.records.len() - 1;
    let mut first = story.history.records[last].clone();
    let older = story.history.records[4].content.unwrap();
    assert_eq!(story.history.records[4].key, "a0");
    first.content = Some(Content {
        stamp: first.content.unwrap().stamp,
        ..older
    });
    first.version -= 1;
    let second = &mut story.history.records[last];
    second.place.offset += 1;
    let place = second.place;
    story.history.records.insert(last, first);
    let operation = story.history.operations.last_mut().unwrap();
    let version = story.history.records[last + 1].version;
    operation.outcome = Outcome::Written { place, version };
    is_right(&story);
}

#[test]
fn a_patch_that_was_put_back_behind_another_write_and_made_anew_upon_that_is_right() {
    let mut story = planted::story();
    let older = story.live("a0", u64::MAX).unwrap().content.unwrap();
    let deleted = story.delete(0, "a0");
    let upsert = story.history.operations.len();
    story.upsert(0, "a0");
    story.patch(0, "a0");
    // First made of the point that was gone by then; the delete that mends it came behind the upsert.
    let last = story.history.records.len() - 1;
    let [mut first, mut put_back] = [last; 2].map(|last| story.history.records[last].clone());
    let stamp = first.content.unwrap().stamp;
    first.content = Some(Content { stamp, ..older });
    put_back.content = None;
    let upserted = story.history.records[last - 1].clone();
    let patched = story.history.records.pop().unwrap();
    story.history.records.pop();
    let records = [first, upserted, put_back, patched];
    for (later, mut record) in (1..).zip(records) {
        record.place.offset = deleted.offset + later;
        story.history.records.push(record);
    }
    let [upserted, patched] = [2, 4].map(|later| Place {
        offset: deleted.offset + later,
        ..deleted
    });
    for (operation, now) in [(upsert, upserted), (upsert + 1, patched)] {
        let outcome = &mut story.history.operations[operation].outcome;
        let Outcome::Written { place, .. } = outcome else {
            panic!("written");
        };
        *place = now;
    }
    is_right(&story);
    // A delete that somebody asked for is no such thing: the patch is of no point then.
    story.history.operations[upsert].outcome = Outcome::Unknown { why: "cut".into() };
    let asked = Call::Delete { key: "a0".into() };
    let mut delete = story.history.operations[upsert].clone();
    delete.number = u64::try_from(story.history.operations.len()).unwrap();
    delete.call = asked;
    let place = Place {
        offset: deleted.offset + 3,
        ..deleted
    };
    let version = story.history.records.iter().find(|one| one.place == place);
    let version = version.unwrap().version;
    delete.outcome = Outcome::Written { place, version };
    story.history.operations.push(delete);
    breaks(&story, Promise::Conditions, upsert + 1);
}

/// A record that no operation is known to have made, behind all others.
fn stray(story: &mut Story, content: Option<Content>) -> Place {
    let place = Place {
        partition: 0,
        offset: story.ends()[0],
    };
    let version = story.history.records.last().unwrap().version + 1;
    story.history.records.push(Record {
        place,
        key: "a0".into(),
        version,
        content,
    });
    place
}

#[test]
fn a_refused_patch_puts_back_what_was_there_and_what_came_between() {
    let mut story = planted::story();
    story.upsert(0, "a0");
    let there = story.live("a0", u64::MAX).unwrap().content;
    story.patch(0, "a0");
    let patch = story.history.operations.last_mut().unwrap();
    patch.outcome = Outcome::Refused { why: "no".into() };
    story.delete(0, "a0");
    stray(&mut story, there);
    stray(&mut story, None);
    is_right(&story);
    // A third time nothing had come between.
    stray(&mut story, None);
    breaks_all(&story, &[Promise::Writes]);
}

#[test]
fn deletes_that_two_refused_patches_may_have_put_back_are_not_excused_for_ever() {
    let mut story = planted::story();
    story.upsert(0, "a0");
    for _ in 0..2 {
        story.patch(0, "a0");
        let patch = story.history.operations.last_mut().unwrap();
        patch.outcome = Outcome::Unknown { why: "cut".into() };
        let patched = story.history.records.pop().unwrap();
        story.delete(0, "a0");
        // Made of what was there before the delete, and behind it.
        stray(&mut story, patched.content);
    }
    for _ in 0..3 {
        stray(&mut story, None);
    }
    is_right(&story);
    stray(&mut story, None);
    breaks_all(&story, &[Promise::Writes]);
}

#[test]
fn what_is_put_back_in_place_of_an_acknowledged_patch_is_caught() {
    let mut story = planted::story();
    story.upsert(0, "a0");
    let there = story.live("a0", u64::MAX).unwrap().content;
    let upsert = story.history.operations.len() - 1;
    story.patch(0, "a0");
    stray(&mut story, there);
    story.upsert(0, "a0");
    breaks(&story, Promise::Writes, upsert);
}

#[test]
fn a_condition_on_another_version_is_caught() {
    let mut story = planted::story();
    let patch = story.history.operations.len();
    story.patch(0, "a0");
    let Call::Patch { if_version, .. } = &mut story.history.operations[patch].call else {
        panic!("a patch");
    };
    *if_version = Some(1);
    breaks(&story, Promise::Conditions, patch);
}

#[test]
fn patches_that_two_owners_make_anew_upon_each_other_are_right() {
    let mut story = planted::story();
    story.upsert(0, "a0");
    let older = story.live("a0", u64::MAX).unwrap().content.unwrap();
    let newer = story.upsert(0, "a0");
    let newer = story.history.records.iter().find(|one| one.place == newer);
    let newer = newer.unwrap().content.unwrap();
    story.patch(0, "a0");
    let ours = story.history.records.pop().unwrap().content.unwrap();
    let patch = story.history.operations.len() - 1;
    let mut theirs = story.history.operations[patch].clone();
    theirs.number += 1;
    theirs.outcome = Outcome::Unknown { why: "cut".into() };
    let stamp = ours.stamp.unwrap() + 1;
    for (operation, stamp) in [(patch, stamp - 1), (patch + 1, stamp)] {
        if operation > patch {
            story.history.operations.push(theirs.clone());
        }
        let call = &mut story.history.operations[operation].call;
        *call = Call::Patch {
            key: "a0".into(),
            stamp,
            with_vector: false,
            if_version: None,
        };
    }
    // Each finds the other's record before its own, and is made anew upon what stood right before it.
    let [ours, theirs] = [stamp - 1, stamp].map(|stamp| {
        [older, newer].map(|of| Content {
            stamp: Some(stamp),
            ..of
        })
    });
    for content in [
        ours[0], theirs[1], ours[1], theirs[0], ours[1], theirs[1], ours[0],
    ] {
        stray(&mut story, Some(content));
    }
    let place = stray(&mut story, Some(ours[1]));
    let version = story.history.records.last().unwrap().version;
    story.history.operations[patch].outcome = Outcome::Written { place, version };
    is_right(&story);
    // Of a vector that nothing before it had.
    for at in story.history.records.len() - 4..story.history.records.len() - 1 {
        let content = story.history.records[at].content.as_mut().unwrap();
        content.of_vector = older.of_vector;
        content.vector = older.vector;
    }
    breaks(&story, Promise::Conditions, patch);
}
