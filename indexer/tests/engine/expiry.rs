//! Points that expire: nobody is answered with them, and compaction takes back what they took, while the shard goes
//! on to equal one that replays the topic.

use std::{fs, time::Duration};

use bytes::Bytes;
use bytesize::ByteSize;
use shoal_runtime::{clock::Clock, eventually};
use shoal_schemas::{Record, digest::Digest};

use crate::{
    files_below,
    ridden::{Ridden, check, name, world},
    world::{DEADLINE, Live, TOPIC},
};

const HOUR: Duration = Duration::from_secs(60 * 60);
/// Longer than it takes until what has expired is taken back.
const MINUTES: Duration = Duration::from_secs(5 * 60);

/// 1,200 points that settled, of which those below 800 are to expire in an hour.
fn lent() -> Ridden {
    let mut ridden = Ridden::new(world());
    for id in 0..800 {
        ridden.lend(id, HOUR);
    }
    for id in 800..1200 {
        ridden.put(id);
    }
    ridden.settled();
    ridden.check();
    ridden
}

/// Waits until so many rows are reclaimed, and compares everything.
#[track_caller]
fn reclaims(ridden: &Ridden, rows: usize) {
    eventually(DEADLINE, "what has expired is reclaimed", || {
        (ridden.reclaimed() == rows).then_some(())
    });
    ridden.settled();
    ridden.check();
}

/// A shard that replays the topic serves the same, and has the same digest.
#[track_caller]
fn equals_a_replay(ridden: &Ridden) {
    let now = ridden.world.caught_up(&ridden.live);
    let rebuilt = ridden.world.folder.path().join("rebuilt");
    let other = ridden.world.open_in(&rebuilt);
    let fresh = ridden.world.caught_up(&other);
    assert_eq!((fresh.digest, fresh.points), (now.digest, now.points));
    check(&other, &ridden.points);
    let parts = |live: &Live| live.shared.buckets().unwrap();
    assert_eq!(parts(&other), parts(&ridden.live));
    other.close();
    fs::remove_dir_all(rebuilt).unwrap();
}

/// Bytes of all files of that name.
fn bytes_of(ridden: &Ridden, name: &str) -> u64 {
    let files = files_below(&ridden.world.folder.path().join("live/segments"), name);
    let each = files.iter().map(|path| fs::metadata(path).unwrap().len());
    each.sum()
}

#[test]
fn what_points_took_that_have_expired_is_taken_back() {
    let mut ridden = lent();
    let before = ridden.world.caught_up(&ridden.live);
    assert_eq!(ridden.live.shared.status().graph_rows, 1200);
    ridden.pass(HOUR);
    ridden.settled();
    ridden.check();
    assert_eq!(ridden.reclaimed(), 0, "another clock may be behind");
    ridden.pass(MINUTES);
    reclaims(&ridden, 800);
    let status = ridden.live.shared.status();
    assert_eq!((status.graph_rows, status.dead_rows), (400, 0));
    let now = ridden.world.caught_up(&ridden.live);
    assert_eq!((now.digest, now.points), (before.digest, before.points));
    equals_a_replay(&ridden);
    eventually(DEADLINE, "files of before are gone", || {
        let of_vectors = bytes_of(&ridden, "vectors.bin");
        (of_vectors <= 400 * 8 * 4).then_some(())
    });
    // Nothing of them is in the files but the rows.
    ridden = ridden.reopen(|_| {});
    assert_eq!(ridden.reclaimed(), 800);
    ridden.check();
    ridden = ridden.reopen(|folder| fs::remove_dir_all(folder.join("catalog")).unwrap());
    assert_eq!(ridden.reclaimed(), 800);
    ridden.check();
    ridden.close();
}

#[test]
fn an_id_whose_point_was_taken_back_is_written_again_deleted_and_expires_again() {
    let mut ridden = lent();
    ridden.pass(HOUR + MINUTES);
    reclaims(&ridden, 800);
    // With the vectors of before, which no graph has any more.
    for id in 0..100 {
        ridden.lend(id, HOUR);
    }
    for id in 100..200 {
        ridden.put(id);
    }
    for id in 200..300 {
        ridden.delete(id);
    }
    ridden.check();
    equals_a_replay(&ridden);
    ridden = ridden.reopen(|_| {});
    ridden.check();
    ridden.pass(HOUR + MINUTES);
    for id in 1200..2000 {
        ridden.put(id);
        ridden.delete(id);
    }
    eventually(DEADLINE, "rows move to segments of their own", || {
        ridden.world.caught_up(&ridden.live);
        (ridden.live.shared.status().graph_rows < 700).then_some(())
    });
    ridden.settled();
    ridden.check();
    equals_a_replay(&ridden);
    ridden.close();
}

#[test]
fn a_shard_of_which_everything_has_expired_holds_no_vector() {
    let mut ridden = Ridden::new(world());
    for id in 0..600 {
        ridden.lend(id, HOUR);
    }
    ridden.settled();
    ridden.pass(HOUR + MINUTES);
    reclaims(&ridden, 600);
    assert_eq!(ridden.live.shared.status().graph_rows, 0);
    equals_a_replay(&ridden);
    ridden = ridden.reopen(|_| {});
    ridden.check();
    for id in 0..600 {
        ridden.delete(id);
    }
    ridden.settled();
    let now = ridden.world.caught_up(&ridden.live);
    assert_eq!((now.digest, now.points), (Digest::default(), 0));
    eventually(DEADLINE, "no row is left", || {
        (ridden.reclaimed() == 0).then_some(())
    });
    ridden.close();
}

#[test]
fn points_that_are_renewed_before_they_expire_keep_their_node() {
    let mut ridden = lent();
    let nodes = ridden.live.shared.status().graph_rows;
    for _ in 0..4 {
        ridden.pass(HOUR / 2);
        for id in 0..800 {
            ridden.lend(id, HOUR);
        }
        ridden.settled();
        ridden.check();
        assert_eq!(ridden.live.shared.status().graph_rows, nodes);
    }
    // In the end nobody does, and what carried them is of no use either.
    ridden.pass(HOUR + MINUTES);
    eventually(DEADLINE, "carriers go with what they carried", || {
        (ridden.live.shared.status().graph_rows == 400).then_some(())
    });
    ridden.settled();
    ridden.check();
    equals_a_replay(&ridden);
    for id in 0..400 {
        ridden.delete(id);
    }
    ridden.settled();
    ridden.check();
    ridden.close();
}

#[test]
fn what_carried_a_point_that_was_taken_back_carries_nothing_and_may_stay() {
    let mut ridden = Ridden::new(world());
    // A segment of which less ends than makes it worn.
    for id in 0..512 {
        ridden.put(id);
    }
    for id in (0..100).chain(1000..1412) {
        ridden.lend(id, HOUR);
    }
    ridden.settled();
    let carrying = |ridden: &Ridden| {
        let (view, _) = ridden.live.shared.moment();
        let each = view.segments.iter().map(|one| one.rides.carrying());
        each.sum::<u32>()
    };
    assert_eq!(carrying(&ridden), 100);
    ridden.pass(HOUR + MINUTES);
    reclaims(&ridden, 512);
    assert_eq!(carrying(&ridden), 0);
    assert_eq!(ridden.live.shared.status().graph_rows, 512);
    for id in 0..50 {
        ridden.delete(id);
    }
    for id in 50..100 {
        ridden.lend(id, HOUR);
    }
    ridden.settled();
    ridden.check();
    assert_eq!(carrying(&ridden), 0);
    equals_a_replay(&ridden);
    ridden.close();
}

#[test]
fn what_is_left_of_expired_points_is_written_again_only_with_others_of_about_its_size() {
    let mut ridden = Ridden::new(world());
    let reclaimed = |ridden: &Ridden| {
        let (view, _) = ridden.live.shared.moment();
        let each = view.segments.iter().filter(|one| one.is_reclaimed());
        each.map(|one| (one.id, one.len())).collect::<Vec<_>>()
    };
    for wave in 1..=3 {
        let ids = 1000 * wave..1000 * wave + 100;
        ids.for_each(|id| ridden.lend(id, HOUR));
        ridden.settled();
        ridden.pass(HOUR + MINUTES);
        reclaims(&ridden, 100 * wave as usize);
        assert_eq!(reclaimed(&ridden).len(), wave as usize);
    }
    let before = reclaimed(&ridden);
    for id in (0..300).chain(0..300).chain(0..300) {
        ridden.put(id);
    }
    ridden.settled();
    ridden.check();
    let dead = ridden.live.shared.status().dead_rows;
    assert!(dead < 600, "{dead} of 600 that ended are there yet");
    assert_eq!(reclaimed(&ridden), before);
    (4000..4100).for_each(|id| ridden.lend(id, HOUR));
    ridden.settled();
    ridden.pass(HOUR + MINUTES);
    eventually(DEADLINE, "four become one", || {
        matches!(reclaimed(&ridden)[..], [(_, 400)]).then_some(())
    });
    ridden.check();
    equals_a_replay(&ridden);
    ridden.close();
}

/// A random number that follows from the ones before.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }
}

#[test]
fn whatever_is_written_the_newest_of_each_id_is_served() {
    let given = std::env::var("SEED").ok();
    let given = given.map(|seed| seed.parse::<u64>().expect("SEED is a number"));
    let seeds = given.map_or_else(|| vec![11, 12, 13, 14], |seed| vec![seed]);
    for seed in seeds {
        eprintln!("whatever is written: SEED={seed}");
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut world = world();
        world.engine.checkpoint_bytes = ByteSize::kib(16 << random.below(5));
        world.engine.seal_rows = 256 << random.below(3);
        world.engine.compact_dead_rows = 32 << random.below(3);
        let mut ridden = Ridden::new(world);
        for _ in 0..14 {
            let (ids, writes) = (50 + random.below(600), 100 + random.below(900));
            for _ in 0..writes {
                let id = random.below(ids);
                match random.below(24) {
                    0 => ridden.delete(id),
                    1..4 => ridden.put(id),
                    4..8 => ridden.lend(id, HOUR * (1 + random.below(4) as u32)),
                    _ if ridden.patch(id) => {}
                    _ => ridden.put(id),
                }
            }
            match random.below(5) {
                0 => ridden = ridden.reopen(|_| {}),
                1 => {
                    ridden = ridden.reopen(|folder| {
                        fs::remove_dir_all(folder.join("catalog")).unwrap();
                    });
                }
                2 => ridden.settled(),
                _ => {}
            }
            ridden.check();
            if random.below(2) == 0 {
                ridden.pass(HOUR);
                ridden.check();
            }
        }
        let now = ridden.world.caught_up(&ridden.live);
        ridden.world.log.compact(TOPIC);
        let rebuilt = ridden
            .world
            .open_in(&ridden.world.folder.path().join("rebuilt"));
        let fresh = ridden.world.caught_up(&rebuilt);
        assert_eq!((fresh.digest, fresh.points), (now.digest, now.points));
        check(&rebuilt, &ridden.points);
        rebuilt.close();
        ridden.close();
    }
}

/// The ids that are told of as expired, page by page.
fn expired_ids(ridden: &Ridden, by_ms: u64, page: usize) -> Vec<String> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let shared = &ridden.live.shared;
        let ids = shared.expired_ids(by_ms as i64, &after, page).unwrap();
        assert!(ids.len() <= page);
        let Some(last) = ids.last() else {
            return all;
        };
        after = last.clone();
        all.extend(ids);
    }
}

#[test]
fn what_has_expired_is_told_of_until_it_is_deleted_and_then_nothing_of_it_is_left() {
    let mut ridden = lent();
    let begun = ridden.clock.now_ms();
    ridden.pass(HOUR + MINUTES);
    reclaims(&ridden, 800);
    // These are in segments of the usual kind when they expire.
    for id in 1200..1300 {
        ridden.lend(id, HOUR);
    }
    let never = ridden.clock.now_ms() + 100 * HOUR.as_millis() as u64;
    assert_eq!(
        expired_ids(&ridden, never, 37).len(),
        800,
        "none in advance"
    );
    ridden.pass(HOUR);
    let now = ridden.clock.now_ms();
    let by_bytes = |ids: &mut dyn Iterator<Item = u64>| {
        let mut ids: Vec<String> = ids.map(name).collect();
        ids.sort();
        ids
    };
    assert_eq!(
        expired_ids(&ridden, now, 37),
        by_bytes(&mut (0..800).chain(1200..1300))
    );
    let first = begun + HOUR.as_millis() as u64 * 2;
    assert_eq!(expired_ids(&ridden, first, 1000), by_bytes(&mut (0..800)));
    assert!(expired_ids(&ridden, begun, 1000).is_empty());

    // One is written again, of one a record was refused, and the others are deleted.
    ridden.put(5);
    let refused = Record {
        value: Some(Bytes::from_static(b"no point")),
        ..ridden.world.record(&name(6), 1)
    };
    ridden.world.send(&refused);
    ridden.world.caught_up(&ridden.live);
    let expired = expired_ids(&ridden, now, 1000);
    assert_eq!(expired.len(), 898);
    assert!(!expired.contains(&name(5)) && !expired.contains(&name(6)));
    for id in (0..800).chain(1200..1300).filter(|id| *id != 5) {
        ridden.delete(id);
    }
    ridden.world.caught_up(&ridden.live);
    assert!(expired_ids(&ridden, never, 1000).is_empty());
    reclaims(&ridden, 0);
    ridden.world.log.compact(TOPIC);
    equals_a_replay(&ridden);
}
