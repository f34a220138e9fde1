//! Updates that leave the vector alone: no graph takes them up, and every question is answered with
//! the newest of them, wherever the vector's node lies and whatever becomes of it.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytesize::ByteSize;
use shoal_indexer::{
    entry,
    find::{self, Told, Wanted},
    index::distance::Query,
    segment::Place,
    shard::search::{Ask, CountAsk, ScrollAsk},
    view::{Moment, View},
};
use shoal_runtime::eventually;
use shoal_schemas::{
    FieldKind, Filter, Metric, Payload,
    payload::{Selection, Value},
};

use crate::{
    files_below,
    world::{DEADLINE, Live, World, assert_coded, assert_visible, vector},
};

const CATEGORIES: u64 = 5;

/// A shard and what it has to serve.
struct Ridden {
    world: World,
    live: Live,
    /// Seed of the vector and number of the payload, by id.
    points: BTreeMap<String, (u64, u64)>,
    written: u64,
}

fn payload(number: u64) -> Payload {
    let category = Value::Integer((number % CATEGORIES) as i64);
    let number = Value::Integer(number as i64);
    Payload(BTreeMap::from([
        ("category".to_owned(), category),
        ("number".to_owned(), number),
    ]))
}

fn of_category(categories: &[u64]) -> Filter {
    let values = categories.iter().map(|one| Value::Integer(*one as i64));
    Filter::In {
        field: "category".to_owned(),
        values: values.collect(),
    }
}

fn world() -> World {
    let mut world = World::new();
    let kind = FieldKind::Integer;
    world.collection.fields = BTreeMap::from([("category".to_owned(), kind)]);
    world
}

impl Ridden {
    fn new(world: World) -> Self {
        Self {
            live: world.open(),
            world,
            points: BTreeMap::new(),
            written: 0,
        }
    }

    /// Gives an id a vector of its own, and a payload that no other has.
    fn put(&mut self, id: u64) {
        self.send(id, self.written);
    }

    /// Gives an id another payload; false if it has no vector.
    fn patch(&mut self, id: u64) -> bool {
        let seed = self.points.get(&name(id)).map(|(seed, _)| *seed);
        if let Some(seed) = seed {
            self.send(id, seed);
        }
        seed.is_some()
    }

    fn send(&mut self, id: u64, seed: u64) {
        let number = self.written;
        self.written += 1;
        self.world.upsert_with(&name(id), seed, payload(number));
        self.points.insert(name(id), (seed, number));
    }

    fn delete(&mut self, id: u64) {
        self.world.delete(&name(id));
        self.points.remove(&name(id));
    }

    /// Closes the shard and opens it again.
    fn reopen(self, between: impl FnOnce(&Path)) -> Self {
        self.live.close();
        between(&self.world.folder.path().join("live"));
        Self {
            live: self.world.open(),
            ..self
        }
    }

    /// Waits until everything is applied, folded, sealed where it is full, and nothing is worn.
    fn settled(&self) {
        self.world.caught_up(&self.live);
        let engine = &self.world.engine;
        eventually(DEADLINE, "nothing is left to fold, seal or compact", || {
            let (view, _) = self.live.shared.moment();
            let (growing, others) = view.segments.split_last().unwrap();
            let sealed = others.iter().all(|one| one.as_sealed().is_some());
            let is_worn = view.segments.iter().any(|segment| {
                segment.wear().iter().any(|(wasted, all)| {
                    let share = f64::from(*wasted) / f64::from((*all).max(1));
                    *wasted >= engine.compact_dead_rows && share >= engine.compact_dead_share
                })
            });
            let folded = growing.folded() == growing.len();
            (folded && sealed && !is_worn && is_counted(&view)).then_some(())
        });
    }

    /// Asks everything and compares with what there has to be.
    fn check(&self) {
        let progress = self.world.caught_up(&self.live);
        assert_eq!(progress.points, self.points.len() as u64);
        check(&self.live, &self.points);
        assert_coded(&self.live);
    }

    fn close(self) {
        self.live.close();
    }
}

/// Whether each segment counts rightly which of its rows carry and which ride.
fn is_counted(view: &View) -> bool {
    let lives = |place: Place| view.row(place).is_some_and(|row| !row.is_dead());
    view.segments.iter().all(|segment| {
        let rides = &segment.rides;
        let carrying = rides
            .carriers()
            .filter(|row| rides.riders(*row).next().is_some_and(lives));
        let riding = segment
            .rows()
            .filter(|(number, row)| !row.is_dead() && rides.is_rider(*number));
        (carrying.count(), riding.count())
            == (rides.carrying() as usize, rides.riding_live() as usize)
    })
}

fn name(id: u64) -> String {
    format!("id-{id}")
}

fn number_of(payload: &Payload) -> u64 {
    let Some(Value::Integer(number)) = payload.0.get("number") else {
        panic!("every payload has a number");
    };
    *number as u64
}

fn check(live: &Live, points: &BTreeMap<String, (u64, u64)>) {
    let all = points.len();
    let ask = |filter: Option<Filter>, k, exact| Ask {
        exact,
        with_payload: true,
        with_vector: true,
        filter,
        ..Ask::nearest(vector(1), k)
    };
    let categories = (0..CATEGORIES).map(|one| vec![one]);
    let filters = categories.chain([(1..CATEGORIES).collect(), (0..CATEGORIES).collect()]);
    let filters = filters.map(|categories| Some((of_category(&categories), categories)));
    for filter in [None].into_iter().chain(filters) {
        let (filter, categories) = filter.unzip();
        let matches = |number: u64| {
            let category = number % CATEGORIES;
            categories
                .as_ref()
                .is_none_or(|all| all.contains(&category))
        };
        let expected = points.values().filter(|(_, number)| matches(*number));
        let expected = expected.count();
        for (k, exact) in [(all + 10, true), (all + 10, false), (10, false)] {
            let hits = live.shared.search(&ask(filter.clone(), k, exact)).unwrap();
            let mut ids: Vec<&str> = hits.iter().map(|hit| hit.id.as_str()).collect();
            for hit in &hits {
                let (seed, number) = points[&hit.id];
                assert_eq!(hit.payload, payload(number).to_proto(), "{}", hit.id);
                assert_eq!(hit.vector, vector(seed), "{}", hit.id);
                assert!(matches(number), "{}: {number} for {categories:?}", hit.id);
            }
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), hits.len(), "an id is doubled");
            let expected = expected.min(k);
            let missed = expected - hits.len();
            assert!(
                missed * 100 <= expected,
                "{missed} of {expected} are missed"
            );
            assert!(!exact || missed == 0, "{missed} missed for {categories:?}");
        }
        if categories.is_some() {
            let tenant = None;
            let count = live.shared.count(&CountAsk { filter, tenant });
            assert_eq!(count.unwrap(), expected as u64, "{categories:?}");
        }
    }
    let (mut asked, mut missed) = (0, 0);
    for (id, (seed, number)) in points.iter().step_by(7) {
        let hits = live.shared.search(&Ask::nearest(vector(*seed), 1)).unwrap();
        asked += 1;
        missed += u32::from(hits[0].id != *id);
        let stored = live.shared.points(std::slice::from_ref(id), true).unwrap();
        let point = stored[0].point.clone().unwrap();
        assert_eq!(point.vector, vector(*seed));
        assert_eq!(point.payload, payload(*number).to_proto());
    }
    // Scans missed none; a walk may miss one now and then.
    assert!(missed * 50 <= asked, "{missed} of {asked} are missed");
    let scrolled = live.shared.scroll(&ScrollAsk {
        filter: None,
        tenant: None,
        after_id: String::new(),
        limit: all + 10,
        with_vector: false,
        selection: Selection::default(),
    });
    let scrolled = scrolled.unwrap().into_iter();
    let scrolled = scrolled.map(|one| one.point.unwrap().id);
    assert!(scrolled.eq(points.keys().cloned()), "a scroll differs");
    live.shared.buckets().unwrap();
}

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
                match random.below(20) {
                    0 => ridden.delete(id),
                    1..4 => ridden.put(id),
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
        }
        let now = ridden.world.caught_up(&ridden.live);
        ridden.world.log.compact(crate::world::TOPIC);
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
