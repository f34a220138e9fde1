//! Updates that leave the vector alone: no graph takes them up, and every question is answered with
//! the newest of them, wherever the vector's node lies and whatever becomes of it.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytesize::ByteSize;
use shoal_indexer::{
    entry,
    find::{self, Told, Wanted},
    index::distance::Query,
    shard::search::Ask,
    view::{Moment, View},
};
use shoal_runtime::eventually;
use shoal_schemas::{Filter, Metric};

use crate::{
    files_below,
    ridden::{CATEGORIES, Ridden, check, number_of, of_category, world},
    world::{DEADLINE, Live, assert_visible, vector},
};

#[test]
fn payloads_that_change_alone_leave_every_graph_as_it_is() {
    let mut ridden = Ridden::new(world());
    for id in 0..1200 {
        ridden.put(id);
    }
    ridden.settled();
    let before = ridden.live.shared.status();
    assert_eq!((before.graph_rows, before.dead_rows), (1200, 0));
    // The rows that are replaced lie in sealed segments, in a growing one, and then in the memtable.
    for turn in 0..6u64 {
        for id in (0..1200).filter(|id| (id + turn) % 2 == 0) {
            ridden.patch(id);
            ridden.patch(id);
        }
        ridden.check();
        ridden.settled();
        let status = ridden.live.shared.status();
        assert_eq!(status.graph_rows, 1200, "turn {turn}");
    }
    ridden.check();
    // Vectors that change are nodes of their own, and those before them are masked.
    for id in 0..100 {
        ridden.put(id);
    }
    ridden.settled();
    assert!(ridden.live.shared.status().graph_rows > 1200);
    for id in 100..200 {
        ridden.delete(id);
    }
    ridden.check();
    ridden.close();
}

#[test]
fn rows_that_ride_are_found_after_a_restart_and_without_the_catalog() {
    for checkpoint_bytes in [ByteSize::kib(16), ByteSize::gib(1)] {
        let mut world = world();
        world.engine.checkpoint_bytes = checkpoint_bytes;
        let mut ridden = Ridden::new(world);
        for turn in 0..4 {
            for id in 0..700 {
                if turn == 0 || !ridden.patch(id) {
                    ridden.put(id);
                }
            }
            for id in (turn..700).step_by(53) {
                ridden.delete(id);
            }
            ridden.check();
            ridden = ridden.reopen(|folder| {
                if turn % 2 == 1 {
                    fs::remove_dir_all(folder.join("catalog")).unwrap();
                }
            });
            ridden.check();
        }
        ridden.settled();
        ridden.check();
        ridden.close();
    }
}

#[test]
fn a_damaged_file_of_riders_costs_time_and_no_point() {
    let mut world = world();
    // Nothing is sealed, so the log is whole.
    world.engine.seal_rows = 1 << 20;
    world.engine.compact_dead_rows = 1 << 20;
    let mut ridden = Ridden::new(world);
    for id in 0..400 {
        ridden.put(id);
    }
    for id in 0..400 {
        ridden.patch(id);
    }
    ridden.check();
    ridden = ridden.reopen(|folder| {
        let riders = files_below(&folder.join("growing"), ".bin").into_iter();
        let mut riders = riders.filter(|path| path.to_string_lossy().contains("riders-"));
        let riders = riders.next().expect("a checkpoint says who rides");
        let mut bytes = fs::read(&riders).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(riders, bytes).unwrap();
    });
    ridden.check();
    ridden.close();
}

#[test]
fn a_copy_of_a_moment_has_what_rides_by_then() {
    let mut ridden = Ridden::new(world());
    for id in 0..900 {
        ridden.put(id);
    }
    for id in (0..900).step_by(3) {
        ridden.patch(id);
    }
    ridden.world.caught_up(&ridden.live);
    let copy = ridden.world.folder.path().join("copy");
    {
        let saved = ridden.live.shared.save().unwrap();
        // What comes later rides as well, and is none of the copy's.
        for id in (0..900).step_by(2) {
            ridden.patch(id);
        }
        ridden.world.caught_up(&ridden.live);
        for file in &saved.content.files {
            let to = copy.join(&file.path);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            let mut from = saved.open_file(&file.path).unwrap();
            std::io::copy(&mut from, &mut fs::File::create(&to).unwrap()).unwrap();
        }
        let manifest = copy.join(&saved.content.manifest_path);
        fs::create_dir_all(manifest.parent().unwrap()).unwrap();
        fs::write(manifest, &saved.content.manifest).unwrap();
    }
    let other = ridden.world.open_in(&copy);
    let (there, here) = (
        ridden.world.caught_up(&other),
        ridden.world.caught_up(&ridden.live),
    );
    assert_eq!(there, here);
    check(&other, &ridden.points);
    other.close();
    ridden.check();
    ridden.close();
}

/// The numbers of the payloads that a search of a moment answers with, by id.
fn seen(live: &Live, view: &View, moment: Moment, filter: Option<&Filter>) -> Vec<(String, u64)> {
    let components = vector(3);
    let query = Query::new(Metric::Cosine, &components);
    let wanted = Wanted {
        query: &query,
        k: 1000,
        rescore: 16,
        beam: 64,
        exact: true,
        filter,
        moment,
        log: &live.shared.log,
        stop: &|| false,
        is_timed: false,
    };
    let found = find::nearest(view, &wanted, &mut Told::default()).unwrap();
    let found = found.iter().map(|one| {
        let frame = one.segment.frame(one.place.row, &live.shared.log).unwrap();
        let payload = entry::upsert_body(&frame).unwrap().payload().unwrap();
        (one.row.id.to_owned(), number_of(&payload))
    });
    let mut found: Vec<_> = found.collect();
    found.sort();
    found
}

#[test]
fn a_search_of_an_earlier_moment_sees_what_was_there_then() {
    let mut world = world();
    // The log is cut by whole files: what an old view asks for stays.
    world.engine.wal_segment_bytes = ByteSize::mib(64);
    let mut ridden = Ridden::new(world);
    for id in 0..600 {
        ridden.put(id);
    }
    let mut moments = Vec::new();
    for turn in 0..8u64 {
        ridden.world.caught_up(&ridden.live);
        let (view, sequence) = ridden.live.shared.moment();
        let moment = Moment {
            sequence,
            now_ms: 0,
        };
        let numbers = ridden.points.iter();
        let numbers: Vec<_> = numbers
            .map(|(id, (_, number))| (id.clone(), *number))
            .collect();
        moments.push((view, moment, numbers));
        for id in (0..600).filter(|id| (id * 7 + turn) % 3 != 0) {
            match (id + turn) % 20 {
                0 => ridden.delete(id),
                1 => ridden.put(id),
                _ => drop(ridden.patch(id)),
            }
        }
    }
    ridden.settled();
    for (turn, (view, moment, numbers)) in moments.iter().enumerate() {
        assert_visible(view, *moment);
        assert_eq!(seen(&ridden.live, view, *moment, None), *numbers, "{turn}");
        let category = of_category(&[turn as u64 % CATEGORIES]);
        let of_category = |number: u64| number % CATEGORIES == turn as u64 % CATEGORIES;
        let numbers = numbers.iter().filter(|(_, number)| of_category(*number));
        let numbers: Vec<_> = numbers.cloned().collect();
        let found = seen(&ridden.live, view, *moment, Some(&category));
        assert_eq!(found, numbers, "category of turn {turn}");
    }
    ridden.check();
    ridden.close();
}

#[test]
fn a_search_during_patches_sees_every_id_exactly_once() {
    let mut ridden = Ridden::new(world());
    for id in 0..60 {
        ridden.put(id);
    }
    ridden.world.caught_up(&ridden.live);
    let (done, searches) = (AtomicBool::new(false), AtomicU64::new(0));
    let shared = ridden.live.shared.clone();
    std::thread::scope(|scope| {
        let searcher = scope.spawn(|| {
            let all: Vec<u64> = (0..CATEGORIES).collect();
            while !done.load(Ordering::Acquire) {
                let number = searches.fetch_add(1, Ordering::AcqRel);
                let ask = Ask {
                    filter: (number % 2 == 1).then(|| of_category(&all)),
                    exact: number % 3 == 1,
                    ..Ask::nearest(vector(number), 70)
                };
                let hits = shared.search(&ask).unwrap();
                let mut ids: Vec<_> = hits.iter().map(|hit| hit.id.as_str()).collect();
                ids.sort_unstable();
                ids.dedup();
                assert_eq!((ids.len(), hits.len()), (60, 60), "search {number}");
            }
        });
        for turn in 0..150u64 {
            for id in 0..60 {
                // Now and then a vector changes, so that its node is masked for good.
                if (id + turn) % 11 == 0 {
                    ridden.put(id);
                } else {
                    ridden.patch(id);
                }
            }
        }
        ridden.world.caught_up(&ridden.live);
        done.store(true, Ordering::Release);
        searcher.join().unwrap();
    });
    assert!(searches.load(Ordering::Acquire) > 20);
    ridden.settled();
    ridden.check();
    ridden.close();
}

#[test]
fn rows_that_match_but_are_dead_let_no_other_through() {
    let mut world = world();
    world.engine.seal_rows = 1 << 20;
    world.engine.compact_dead_rows = 1 << 20;
    let mut ridden = Ridden::new(world);
    // More rows of the category are dead than rows of any live in the segment.
    for _ in 0..2 {
        for id in 0..1300 {
            ridden.written = ridden.written.next_multiple_of(CATEGORIES);
            ridden.put(id);
        }
    }
    for id in 0..1280 {
        ridden.written += u64::from(ridden.written.is_multiple_of(CATEGORIES));
        ridden.put(id);
    }
    ridden.settled();
    ridden.check();
    ridden.close();
}

#[test]
fn a_point_that_is_patched_for_ever_takes_no_more_and_no_more_memory() {
    let mut ridden = Ridden::new(world());
    for id in 0..600 {
        ridden.put(id);
    }
    ridden.settled();
    for _ in 0..1500 {
        ridden.patch(3);
        ridden.patch(4);
    }
    ridden.settled();
    let seal_rows = ridden.world.engine.seal_rows as usize;
    eventually(DEADLINE, "links to rows that ended are let go of", || {
        let (view, _) = ridden.live.shared.moment();
        let mut links = view.segments.iter().map(|one| one.rides.links());
        links.all(|links| links <= seal_rows + 4).then_some(())
    });
    assert_eq!(ridden.live.shared.status().graph_rows, 600);
    ridden.check();
    ridden = ridden.reopen(|_| {});
    ridden.check();
    ridden.close();
}
