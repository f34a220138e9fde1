//! Faults planted in right histories: each has to be found, by the check whose business it is.

use std::collections::BTreeMap;

use crate::{
    checker::{
        self, Anomaly, Promise,
        history::{Call, Content, Copy, History, Outcome, Place},
        mark,
    },
    story::{SESSIONS, Story, hit, stored},
};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % end
    }
}

/// The anomalies, which have to break this promise and no other, and name this operation.
#[track_caller]
pub(crate) fn breaks(story: &Story, promise: Promise, operation: usize) -> Vec<Anomaly> {
    let found = checker::check(&story.history);
    let number = u64::try_from(operation).unwrap();
    assert!(!found.is_empty(), "nothing is found");
    for anomaly in &found {
        assert_eq!(anomaly.promise, promise, "{anomaly}");
    }
    let is_named = |anomaly: &Anomaly| anomaly.operations.contains(&number);
    assert!(
        found.iter().any(is_named),
        "{number} is not named: {found:?}"
    );
    found
}

/// Every one of these promises is broken.
#[track_caller]
pub(crate) fn breaks_all(story: &Story, promises: &[Promise]) {
    let found = checker::check(&story.history);
    for promise in promises {
        let is_broken = found.iter().any(|anomaly| anomaly.promise == *promise);
        assert!(is_broken, "{promise:?} is not among {found:?}");
    }
}

#[track_caller]
pub(crate) fn is_right(story: &Story) {
    let found = checker::check(&story.history);
    assert!(
        found.is_empty(),
        "{}",
        checker::report(&story.history, &found)
    );
}

/// Two points of each shard, written twice; `a1` is gone again.
pub(crate) fn story() -> Story {
    let mut story = Story::new(2);
    for key in ["a0", "a1", "b0", "b1", "a0", "b0"] {
        story.upsert(0, key);
    }
    story.delete(0, "a1");
    story
}

#[test]
fn a_vector_tells_the_stamp_it_was_made_of() {
    for stamp in [0, 1, 63, 64, 4095, 123_456, mark::STAMPS - 1] {
        let vector = mark::vector(stamp);
        assert_eq!(mark::stamp(&vector), Some(stamp));
        let mut torn = vector;
        torn[6] += 1.0;
        assert_eq!(mark::stamp(&torn), None);
        assert_eq!(mark::distance(stamp, stamp), 0);
    }
    assert!(mark::distance(7, 8) > 0);
}

#[test]
fn right_histories_of_any_seed_are_right() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let mut story = Story::new(4);
        let keys: Vec<String> = story.history.run.keys.keys().cloned().collect();
        // What a session has seen, by process and shard.
        let mut floors: BTreeMap<u32, [u64; 2]> = BTreeMap::new();
        for _ in 0..150 {
            let process = u32::try_from(random.below(4)).unwrap() + SESSIONS - 2;
            let key = &keys[usize::try_from(random.below(8)).unwrap()];
            let floor = floors.entry(process).or_default();
            let ends = story.ends();
            let is_session = process >= SESSIONS;
            let mut at = |shard: usize| {
                let least = if is_session { floor[shard] } else { 0 };
                least + random.below(ends[shard] - least + 1)
            };
            let at = [at(0), at(1)];
            let learnt = match random.below(10) {
                0..3 => Some(story.upsert(process, key)),
                3 => Some(story.delete(process, key)),
                4 if story.live(key, u64::MAX).is_some() => Some(story.patch(process, key)),
                5 => {
                    story.search(process, at, &[]);
                    None
                }
                6 => {
                    let near = random.below(100);
                    let k = usize::try_from(random.below(5)).unwrap() + 1;
                    story.search_near(process, at, &[], near, k);
                    None
                }
                7 => {
                    story.count(process, at, &[]);
                    None
                }
                _ => {
                    story.get(process, key, at, &[]);
                    let shard = usize::try_from(story.history.run.keys[key]).unwrap();
                    floor[shard] = floor[shard].max(at[shard]);
                    continue;
                }
            };
            match learnt {
                Some(place) => {
                    let shard = usize::try_from(place.partition).unwrap();
                    floor[shard] = floor[shard].max(place.offset + 1);
                }
                None => *floor = [floor[0].max(at[0]), floor[1].max(at[1])],
            }
        }
        let found = checker::check(&story.history);
        assert!(found.is_empty(), "seed {seed}: {found:?}");
    }
}

#[test]
fn a_history_reads_back_as_it_was_written() {
    let mut story = story();
    story.search(SESSIONS, story.ends(), &[]);
    let shard = 0;
    story.history.copies.push(Copy {
        node: "one".into(),
        shard,
        points: vec![stored(story.live("a0", u64::MAX).unwrap())],
    });
    let mut bytes = Vec::new();
    story.history.write(&mut bytes).unwrap();
    let read = History::read(bytes.as_slice()).unwrap();
    assert_eq!(read, story.history);
    is_right(&story);
}

#[test]
fn a_stale_read_with_a_token_is_caught() {
    let mut story = story();
    let token = story.upsert(0, "a0");
    let writer = story.history.operations.len() - 1;
    let [a, b] = story.ends();
    // It says that it has the write, and shows the point before it.
    let get = story.get(1, "a0", [a - 1, b], &[token]);
    story.answer(get).shards[0].next_offset = a;
    let found = checker::check(&story.history);
    let stale = found.iter().find(|one| one.promise == Promise::Tokens);
    let expected = [get, writer].map(|at| u64::try_from(at).unwrap());
    assert_eq!(stale.unwrap().operations, expected);
    // The offset it names is a lie as well.
    breaks_all(&story, &[Promise::Tokens, Promise::Coverage]);
}

#[test]
fn a_search_that_misses_a_live_point_of_a_token_is_caught() {
    let mut story = story();
    let token = story.upsert(0, "a1");
    let [a, b] = story.ends();
    let search = story.search(1, [a - 1, b], &[token]);
    breaks(&story, Promise::Tokens, search);
}

#[test]
fn a_deleted_point_that_shows_in_spite_of_a_token_is_caught() {
    let mut story = story();
    let token = story.delete(0, "b0");
    let [a, b] = story.ends();
    let get = story.get(1, "b0", [a, b - 1], &[token]);
    breaks(&story, Promise::Tokens, get);
    let mut story = self::story();
    let token = story.delete(0, "b0");
    let search = story.search(1, [a, b - 1], &[token]);
    breaks(&story, Promise::Tokens, search);
}

#[test]
fn a_token_whose_shard_is_missing_from_the_answer_is_caught() {
    let mut story = story();
    let token = story.upsert(0, "a0");
    let search = story.search(1, story.ends(), &[token]);
    let Call::Search { demands, .. } = &mut story.history.operations[search].call else {
        panic!("a search");
    };
    demands.require_all = false;
    let answer = story.answer(search);
    answer.shards[0].answered = false;
    answer.seen.retain(|seen| seen.key.starts_with('b'));
    breaks(&story, Promise::Tokens, search);
}

#[test]
fn a_payload_and_a_vector_of_two_versions_are_caught() {
    let mut story = story();
    let get = story.get(1, "a0", story.ends(), &[]);
    let older = story.history.records[0].content.unwrap();
    story.answer(get).seen[0].content.vector = older.vector;
    breaks(&story, Promise::Versions, get);
}

#[test]
fn a_version_of_one_record_with_the_content_of_another_is_caught() {
    let mut story = story();
    let search = story.search(1, story.ends(), &[]);
    let older = hit(1, &story.history.records[0]);
    let at = |seen: &checker::history::Seen| seen.key == "a0";
    let answer = story.answer(search);
    let hit = answer.seen.iter_mut().find(|seen| at(seen)).unwrap();
    hit.content = older.content;
    hit.distance = older.distance;
    let found = checker::check(&story.history);
    assert!(found.iter().all(|one| one.promise == Promise::Versions));
    assert!(!found.is_empty());
}

#[test]
fn an_id_that_is_in_an_answer_in_two_versions_is_caught() {
    let mut story = story();
    let search = story.search(1, story.ends(), &[]);
    let older = hit(1, &story.history.records[0]);
    story.answer(search).seen.insert(0, older);
    let found = checker::check(&story.history);
    assert!(
        found.iter().any(|one| one.told.contains("twice")),
        "{found:?}"
    );
}

#[test]
fn a_search_that_shows_a_shard_at_two_moments_is_caught() {
    let mut story = Story::new(2);
    story.upsert(0, "a0");
    story.upsert(0, "a1");
    // After it has the newer `a1`, the older `a0` is gone.
    story.upsert(0, "a0");
    story.upsert(0, "a1");
    let search = story.search(1, story.ends(), &[]);
    let older = hit(1, &story.history.records[0]);
    let answer = story.answer(search);
    answer.seen.retain(|seen| seen.key != "a0");
    answer.seen.push(older);
    answer
        .seen
        .sort_by(|a, b| a.distance.unwrap().total_cmp(&b.distance.unwrap()));
    let found = breaks(&story, Promise::Versions, search);
    assert!(
        found.iter().any(|one| one.told.contains("no moment")),
        "{found:?}"
    );
}

#[test]
fn a_nearer_point_that_an_exact_search_leaves_out_is_caught() {
    let mut story = story();
    let near = story.history.records[0].content.unwrap().vector.unwrap();
    let right = story.search_near(1, story.ends(), &[], near, 2);
    is_right(&story);
    let ends = story.ends();
    let all = story.search_near(1, ends, &[], near, 3);
    let answer = story.answer(all);
    assert_eq!(answer.seen.len(), 3);
    answer.seen.remove(0);
    let Call::Search { k, .. } = &mut story.history.operations[all].call else {
        panic!("a search");
    };
    *k = 2;
    assert!(right < all);
    breaks(&story, Promise::Versions, all);
}

#[test]
fn a_session_that_goes_back_is_caught_even_without_a_token() {
    let mut story = story();
    let [a, b] = story.ends();
    let first = story.get(SESSIONS, "a0", [a, b], &[]);
    let back = story.get(SESSIONS, "a0", [1, b], &[]);
    let found = breaks(&story, Promise::Sessions, back);
    let expected = [back, first].map(|at| u64::try_from(at).unwrap());
    assert_eq!(found[0].operations, expected);
    // Who carries nothing is promised nothing.
    let mut story = self::story();
    story.get(0, "a0", [a, b], &[]);
    story.get(0, "a0", [1, b], &[]);
    is_right(&story);
}

#[test]
fn a_session_that_does_not_see_its_own_delete_is_caught() {
    let mut story = story();
    story.delete(SESSIONS, "b1");
    let [a, b] = story.ends();
    let search = story.search(SESSIONS, [a, b - 1], &[]);
    breaks(&story, Promise::Sessions, search);
}

#[test]
fn a_shard_that_is_further_behind_than_it_says_is_caught() {
    let mut story = story();
    let [a, b] = story.ends();
    let search = story.search(1, [a - 1, b], &[]);
    story.answer(search).shards[0].lag_us = 0;
    breaks(&story, Promise::Freshness, search);
}

#[test]
fn an_answer_that_is_older_than_the_caller_accepts_is_caught() {
    let mut story = story();
    let [a, b] = story.ends();
    let search = story.search(1, [a - 1, b], &[]);
    let Call::Search { demands, .. } = &mut story.history.operations[search].call else {
        panic!("a search");
    };
    demands.max_staleness_us = Some(1_000_000);
    breaks(&story, Promise::Freshness, search);
}

#[test]
fn an_acknowledged_write_that_is_not_in_the_log_is_caught() {
    let mut story = story();
    let lost = story.history.operations.len();
    story.upsert(0, "b1");
    story.history.records.pop();
    breaks(&story, Promise::Writes, lost);
    // And one in whose place another write stands.
    let mut story = self::story();
    let lost = story.history.operations.len();
    story.upsert(0, "b1");
    story.history.records.last_mut().unwrap().content = Some(Content::whole(1));
    let found = checker::check(&story.history);
    assert!(
        found
            .iter()
            .any(|one| one.operations.contains(&u64::try_from(lost).unwrap()))
    );
}

#[test]
fn an_unknown_write_may_be_in_the_log_or_not_and_a_failed_one_may_not() {
    for is_in_the_log in [true, false] {
        let mut story = story();
        let at = story.history.operations.len();
        story.upsert(0, "b1");
        story.history.operations[at].outcome = Outcome::Unknown { why: "cut".into() };
        if !is_in_the_log {
            story.history.records.pop();
        }
        is_right(&story);
        story.history.operations[at].outcome = Outcome::Failed { why: "no".into() };
        match is_in_the_log {
            true => drop(breaks(&story, Promise::Writes, at)),
            false => is_right(&story),
        }
    }
}

#[test]
fn a_record_that_nobody_wrote_is_caught() {
    let mut story = story();
    story.upsert(0, "b1");
    story.history.operations.pop();
    breaks_all(&story, &[Promise::Writes]);
    let mut story = self::story();
    story.delete(0, "b1");
    story.history.operations.pop();
    breaks_all(&story, &[Promise::Writes]);
}

#[test]
fn a_write_that_comes_back_behind_a_delete_in_the_log_is_caught() {
    let mut story = story();
    let mut again = story.history.records[1].clone();
    assert_eq!(again.key, "a1");
    again.place.offset = story.ends()[0];
    story.history.records.push(again);
    breaks(&story, Promise::Writes, 1);
}

#[test]
fn a_deleted_point_that_is_resurrected_in_a_copy_is_caught() {
    let mut story = story();
    story.history.copies.push(Copy {
        node: "two".into(),
        shard: 0,
        points: vec![
            stored(story.live("a0", u64::MAX).unwrap()),
            stored(&story.history.records[1]),
        ],
    });
    breaks_all(&story, &[Promise::Copies]);
    story.history.copies[0].points.pop();
    is_right(&story);
    story.history.copies[0].points.clear();
    breaks_all(&story, &[Promise::Copies]);
}

#[test]
fn a_shard_that_says_it_answered_and_lacks_a_point_is_caught() {
    let mut story = story();
    let search = story.search(1, story.ends(), &[]);
    story.answer(search).seen.retain(|seen| seen.key != "b1");
    let found = checker::check(&story.history);
    assert!(!found.is_empty());
    // Of an empty answer each single point might not have been there yet; the offset says otherwise.
    let mut story = self::story();
    let search = story.search(1, story.ends(), &[]);
    story.answer(search).seen.clear();
    breaks_all(&story, &[Promise::Coverage, Promise::Freshness]);
}

#[test]
fn a_shard_that_names_a_later_offset_than_it_shows_is_caught() {
    let mut story = story();
    let [a, b] = story.ends();
    let search = story.search(1, [a, b - 1], &[]);
    story.answer(search).shards[1].next_offset = b;
    breaks(&story, Promise::Coverage, search);
}

#[test]
fn a_wrong_count_is_caught() {
    let mut story = story();
    let count = story.count(1, story.ends(), &[]);
    *story.answer(count).points.as_mut().unwrap() += 1;
    breaks(&story, Promise::Coverage, count);
}

#[test]
fn an_answer_that_leaves_out_a_shard_and_says_nothing_of_it_is_caught() {
    let mut story = story();
    let search = story.search(1, story.ends(), &[]);
    let answer = story.answer(search);
    answer.shards.pop();
    answer.seen.retain(|seen| seen.key.starts_with('a'));
    breaks(&story, Promise::Coverage, search);
    let answer = story.answer(search);
    let mut missing = answer.shards[0].clone();
    missing.shard = 1;
    missing.answered = false;
    answer.shards.push(missing);
    // Said now; but all were wanted.
    breaks(&story, Promise::Coverage, search);
    let Call::Search { demands, .. } = &mut story.history.operations[search].call else {
        panic!("a search");
    };
    demands.require_all = false;
    is_right(&story);
}

#[test]
fn an_answer_from_the_future_is_caught() {
    let mut story = story();
    let search = story.search(1, story.ends(), &[]);
    let token = story.upsert(0, "a0");
    assert_eq!(token.partition, 0);
    let newest = hit(1, story.history.records.last().unwrap());
    let answer = story.answer(search);
    let old = answer
        .seen
        .iter_mut()
        .find(|seen| seen.key == "a0")
        .unwrap();
    *old = newest;
    answer
        .seen
        .sort_by(|a, b| a.distance.unwrap().total_cmp(&b.distance.unwrap()));
    breaks(&story, Promise::Coverage, search);
}

#[test]
fn a_log_with_a_hole_proves_nothing() {
    let mut story = story();
    story.history.records.remove(1);
    breaks_all(&story, &[Promise::Whole]);
    let mut story = self::story();
    story.history.records.push(checker::history::Record {
        place: Place {
            partition: 7,
            offset: 0,
        },
        ..story.history.records[0].clone()
    });
    breaks_all(&story, &[Promise::Whole]);
}
