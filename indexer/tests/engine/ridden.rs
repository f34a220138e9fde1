//! A shard whose points are updated with and without their vectors, expire and are deleted, and what
//! it has to answer then.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use shoal_indexer::{
    segment::Place,
    shard::{
        compact,
        search::{Ask, CountAsk, ScrollAsk},
    },
    view::{Moment, View},
};
use shoal_runtime::{
    clock::{Clock, Manual},
    eventually,
};
use shoal_schemas::{
    FieldKind, Filter, Payload,
    payload::{Selection, Value},
};

use crate::world::{DEADLINE, Live, World, assert_coded, assert_visible, vector};

pub(crate) const CATEGORIES: u64 = 5;

/// A shard and what it has to serve.
pub(crate) struct Ridden {
    pub(crate) world: World,
    pub(crate) live: Live,
    /// Seed of the vector and number of the payload, by id.
    pub(crate) points: BTreeMap<String, (u64, u64)>,
    /// When points are to expire.
    until_ms: BTreeMap<String, u64>,
    /// Points that have, with their seeds: nobody is answered with them, but they are not deleted.
    expired: BTreeMap<String, u64>,
    pub(crate) written: u64,
    pub(crate) clock: Arc<Manual>,
}

pub(crate) fn payload(number: u64) -> Payload {
    let category = Value::Integer((number % CATEGORIES) as i64);
    let number = Value::Integer(number as i64);
    Payload(BTreeMap::from([
        ("category".to_owned(), category),
        ("number".to_owned(), number),
    ]))
}

pub(crate) fn of_category(categories: &[u64]) -> Filter {
    let values = categories.iter().map(|one| Value::Integer(*one as i64));
    Filter::In {
        field: "category".to_owned(),
        values: values.collect(),
    }
}

pub(crate) fn world() -> World {
    let mut world = World::new();
    let kind = FieldKind::Integer;
    world.collection.fields = BTreeMap::from([("category".to_owned(), kind)]);
    world
}

impl Ridden {
    pub(crate) fn new(mut world: World) -> Self {
        let clock = Manual::at(1_700_000_000_000);
        world.clock = clock.clone();
        Self {
            live: world.open(),
            world,
            points: BTreeMap::new(),
            until_ms: BTreeMap::new(),
            expired: BTreeMap::new(),
            written: 0,
            clock,
        }
    }

    /// Gives an id a vector of its own, and a payload that no other has.
    pub(crate) fn put(&mut self, id: u64) {
        self.send(id, self.written);
    }

    /// Gives an id another payload; false if it has no vector.
    pub(crate) fn patch(&mut self, id: u64) -> bool {
        let seed = self.points.get(&name(id)).map(|(seed, _)| *seed);
        if let Some(seed) = seed {
            self.send(id, seed);
        }
        seed.is_some()
    }

    fn send(&mut self, id: u64, seed: u64) {
        self.send_for(id, seed, None);
    }

    fn send_for(&mut self, id: u64, seed: u64, lives: Option<Duration>) {
        let number = self.written;
        self.written += 1;
        let id = name(id);
        let until_ms = lives.map(|lives| self.clock.now_ms() + lives.as_millis() as u64);
        let world = &self.world;
        world.send(&world.record_until(&id, &vector(seed), payload(number), until_ms));
        match until_ms {
            Some(until_ms) => self.until_ms.insert(id.clone(), until_ms),
            None => self.until_ms.remove(&id),
        };
        self.expired.remove(&id);
        self.points.insert(id, (seed, number));
    }

    /// Writes an id, with the vector it has or had if it was not deleted, to expire after a while.
    pub(crate) fn lend(&mut self, id: u64, lives: Duration) {
        let held = self.points.get(&name(id)).map(|(seed, _)| *seed);
        let held = held.or_else(|| self.expired.get(&name(id)).copied());
        self.send_for(id, held.unwrap_or(self.written), Some(lives));
    }

    pub(crate) fn delete(&mut self, id: u64) {
        let id = name(id);
        self.world.delete(&id);
        self.points.remove(&id);
        self.until_ms.remove(&id);
        self.expired.remove(&id);
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, time: Duration) {
        // What was written is applied at the time when it was.
        self.world.caught_up(&self.live);
        self.clock.advance(time);
        let now_ms = self.clock.now_ms();
        let expired = self
            .until_ms
            .extract_if(.., |_, until_ms| *until_ms <= now_ms);
        for (id, _) in expired {
            if let Some((seed, _)) = self.points.remove(&id) {
                self.expired.insert(id, seed);
            }
        }
    }

    /// Rows of which nothing but the row is left.
    pub(crate) fn reclaimed(&self) -> usize {
        let (view, _) = self.live.shared.moment();
        let each = view.segments.iter().map(|segment| {
            if segment.is_reclaimed() {
                segment.len()
            } else {
                0
            }
        });
        each.sum::<u32>() as usize
    }

    /// Closes the shard and opens it again.
    pub(crate) fn reopen(self, between: impl FnOnce(&Path)) -> Self {
        self.live.close();
        between(&self.world.folder.path().join("live"));
        Self {
            live: self.world.open(),
            ..self
        }
    }

    /// Waits until everything is applied, folded, sealed where it is full, and nothing is worn.
    pub(crate) fn settled(&self) {
        self.world.caught_up(&self.live);
        let engine = &self.world.engine;
        let expired_by_ms = compact::expired_by_ms(&self.live.shared);
        eventually(DEADLINE, "nothing is left to fold, seal or compact", || {
            let (view, _) = self.live.shared.moment();
            let (growing, others) = view.segments.split_last().unwrap();
            let sealed = others.iter().all(|one| one.as_sealed().is_some());
            let is_worn = |segment: &Arc<_>| compact::is_worn(engine, segment, expired_by_ms);
            let is_worn = view.segments.iter().any(is_worn);
            let folded = growing.folded() == growing.len();
            (folded && sealed && !is_worn && is_counted(&view)).then_some(())
        });
    }

    /// Asks everything and compares with what there has to be.
    pub(crate) fn check(&self) {
        let progress = self.world.caught_up(&self.live);
        let held = self.points.len() + self.expired.len();
        assert_eq!(progress.points, held as u64);
        assert_eq!(self.live.shared.live_points(), self.points.len() as u64);
        check(&self.live, &self.points);
        assert_coded(&self.live);
        let (view, sequence) = self.live.shared.moment();
        let most = self.world.engine.seal_rows;
        let sizes = view.segments.iter().map(|segment| segment.len());
        assert!(
            sizes.max() <= Some(most),
            "a segment has more than {most} rows"
        );
        let now_ms = self.clock.now_ms() as i64;
        assert_visible(&view, Moment { sequence, now_ms });
    }

    pub(crate) fn close(self) {
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

pub(crate) fn name(id: u64) -> String {
    format!("id-{id}")
}

pub(crate) fn number_of(payload: &Payload) -> u64 {
    let Some(Value::Integer(number)) = payload.0.get("number") else {
        panic!("every payload has a number");
    };
    *number as u64
}

pub(crate) fn check(live: &Live, points: &BTreeMap<String, (u64, u64)>) {
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
