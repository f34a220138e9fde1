//! A disk that is full, a real one: ingest stops and says so, searches go on, nothing is lost, and
//! with room everything goes on by itself.

use serde_json::Value;
use shoal_runtime::{clock::Stopwatch, eventually};
use shoal_schemas::{Collection, PointId};

use crate::harness::{
    DEADLINE, client,
    disk::Disk,
    model::Model,
    role::{Role, Settings},
    seed::Random,
    state::{self, State},
    workload,
    world::{self, World, now_ms},
};

/// 2 KiB a point in the shard's own log.
const DIM: u32 = 512;
const COLLECTION: &str = "full";
/// Points that are there before the disk is full.
const EARLY: usize = 400;
/// More than is left on the disk: for the log, for a checkpoint and for a segment's files.
const LATE: u64 = 2500;
const MEBIBYTE: u64 = 1 << 20;
/// MiB of the disk at first.
const DISK: u64 = 64;

/// A shard on a disk of its own, and who searches it.
struct Filled {
    world: World,
    disk: Disk,
    collection: Collection,
    settings: Settings,
    indexer: Role,
    query: client::Query,
    _query_role: Role,
    model: Model,
    early: Vec<(PointId, Vec<f32>)>,
}

impl Filled {
    /// Publishes some points, leaves so much room on the disk, and publishes more than fits.
    ///
    /// `None` where there can be no such disk.
    fn new(name: &str, min_free_disk: &str, left_bytes: u64) -> Option<Self> {
        let world = World::new(name);
        let settings = world
            .indexer("victim")
            .small_engine()
            .with("INDEXER__MIN_FREE_DISK", min_free_disk);
        let disk = Disk::mount(&settings.data(), DISK)?;
        let settings = settings.on(&disk);
        let collection = world.collection(COLLECTION, DIM, 1);
        let publisher = world.publisher(&collection);
        let mut model = Model::new(&collection);
        let mut random = Random::of(17);
        let indexer = settings.start();
        let query_role = world.query("query").start();
        let query = client::Query::to(query_role.settings.grpc, query_role.settings.http);
        let early = workload::points(&model, &mut random, "early", EARLY);
        world::publish(&publisher, &mut model, early.clone());
        world.settled(&indexer, &collection);
        // It has heard, too, that this is all.
        eventually(DEADLINE, "the shard to be complete", || {
            let said = format!("shards/{COLLECTION}/0/was-complete");
            disk.has(&said).then_some(())
        });
        disk.fill_up(left_bytes);
        workload::churn(&publisher, &mut model, &mut random, 100_000, LATE);
        Some(Self {
            world,
            disk,
            collection,
            settings,
            indexer,
            query,
            _query_role: query_role,
            model,
            early: early
                .into_iter()
                .map(|(id, point)| (id, point.vector.as_slice().to_vec()))
                .collect(),
        })
    }

    /// Waits until ingest has stopped, and is told to have: in metrics, status and this log line.
    #[track_caller]
    fn has_stopped(&mut self, message: &str) -> Value {
        eventually(DEADLINE, "ingest to stop", || {
            self.indexer.child.lives();
            let stopped = self.indexer.metrics().sum("indexer_ingest_stopped", &[]);
            (stopped > 0.0).then_some(())
        });
        let status = state::statuses(self.settings.grpc, &self.collection).unwrap();
        assert_eq!(status[0].ingest_stopped, "the disk is full", "{status:?}");
        self.said(message)
    }

    /// Waits for a log line.
    #[track_caller]
    fn said(&mut self, message: &str) -> Value {
        eventually(DEADLINE, &format!("`{message}` to be logged"), || {
            self.indexer.child.lives();
            let mut lines = self.indexer.child.logged().into_iter();
            lines.find(|line| line["message"] == message)
        })
    }

    /// Every tenth of the early points is its own nearest neighbour.
    #[track_caller]
    fn searches_go_on(&self) {
        for (id, vector) in self.early.iter().step_by(10) {
            let answer = self.query.search(client::search(COLLECTION, vector, 1));
            let answer = answer.unwrap();
            assert_eq!(client::ids(&answer.hits), [id.as_str()]);
            assert_eq!(answer.coverage.unwrap().shards_answered, 1);
        }
    }

    /// The query node hears of a new life a moment after everybody else.
    #[track_caller]
    fn is_found_again(&self) {
        let (_, vector) = &self.early[0];
        eventually(DEADLINE, "the query node to find the shard again", || {
            let found = self.query.search(client::search(COLLECTION, vector, 1));
            found.ok()
        });
    }

    /// It has lacked something since then, and says so of an earlier life, too.
    #[track_caller]
    fn lacks_what_came_since(&self, then: &Stopwatch) {
        let since = then.elapsed();
        let status = state::statuses(self.settings.grpc, &self.collection).unwrap();
        let lag_seconds = status[0].coverage.as_ref().unwrap().lag_seconds;
        assert!(lag_seconds > since.as_secs_f64(), "{status:?}");
    }

    /// Waits until everything published is there, and checks it against what was written.
    #[track_caller]
    fn is_whole(&mut self) -> State {
        self.indexer.is_ready();
        let state = self.world.settled(&self.indexer, &self.collection);
        self.model.assert_is(&state, now_ms());
        self.indexer.had_no_errors(&[]);
        state
    }

    /// `kill -9`, and the next life.
    fn kill_and_launch(&mut self) {
        let next = self.settings.launch();
        std::mem::replace(&mut self.indexer, next).child.kill();
    }

    /// `kill -9`, and a next life on a disk of that size with so much left.
    fn starts_again_with(self, mebibytes: u64, left_bytes: u64) -> Self {
        // Of one that lives: what it gives up meanwhile, a half-written segment, would be room.
        self.indexer.child.kill();
        self.disk.resize(mebibytes);
        self.disk.fill_up(left_bytes);
        Self {
            indexer: self.settings.launch(),
            ..self
        }
    }

    fn equals_an_undisturbed_one(&mut self, state: &State) {
        let calm = self.world.indexer("calm").start();
        assert_eq!(self.world.settled(&calm, &self.collection), *state);
        self.indexer.child.lives();
    }
}

#[test]
fn a_disk_without_the_room_to_leave_stops_ingest_until_there_is_room() {
    let Some(mut filled) = Filled::new("nearly-full", "24MiB", 28 * MEBIBYTE) else {
        return;
    };
    let told = filled.has_stopped(
        "disk is nearly full: ingest stops, searches go on; make room or lower indexer.min_free_disk",
    );
    let folder = filled.settings.data();
    assert_eq!(told["folder"], folder.to_str().unwrap(), "{told}");
    filled.searches_go_on();
    // It is held where it is: the room that is to be left is left, but for what was under way.
    assert!(filled.disk.free_bytes() > 12 * MEBIBYTE);
    // The next life cannot catch up either, and answers with what there is.
    let stopped = Stopwatch::start();
    // With less than 16 MiB and the catalog's entries it would not open. There may be less by now.
    let mut filled = filled.starts_again_with(72, 20 * MEBIBYTE);
    filled.said("a limit keeps the shard from catching up: it answers with what it had");
    filled.is_found_again();
    filled.searches_go_on();
    filled.lacks_what_came_since(&stopped);
    filled.disk.resize(256);
    filled.said("ingest goes on, no limit is reached any more");
    let state = filled.is_whole();
    filled.searches_go_on();
    filled.equals_an_undisturbed_one(&state);
}

#[test]
fn writes_that_find_no_room_lose_nothing_and_are_made_when_there_is_room() {
    // Room for a part of the log, and for neither a checkpoint nor a segment's files.
    let Some(mut filled) = Filled::new("full", "0", 5 * MEBIBYTE / 2) else {
        return;
    };
    filled.has_stopped("disk is full: ingest stops, searches go on; make room to resume");
    filled.said("checkpoint failed, it is tried again");
    filled.said("segment could not be written, it is tried again");
    filled.searches_go_on();
    // A half-written segment that is given up may leave room for a moment, which the log takes.
    eventually(DEADLINE, "the log to have taken the room", || {
        (filled.disk.free_bytes() < MEBIBYTE).then_some(())
    });
    filled.disk.resize(128);
    filled.said("disk has room again, ingest goes on");
    let state = filled.is_whole();
    filled.searches_go_on();
    let status = state::statuses(filled.settings.grpc, &filled.collection).unwrap();
    assert_eq!(status[0].ingest_stopped, "");
    // What it has on the disk by then is good, too.
    filled.kill_and_launch();
    assert_eq!(filled.is_whole(), state);
    filled.equals_an_undisturbed_one(&state);
}

#[test]
fn a_node_killed_on_a_full_disk_comes_back_by_itself_once_there_is_room() {
    let Some(mut filled) = Filled::new("full-start", "0", 5 * MEBIBYTE / 2) else {
        return;
    };
    filled.has_stopped("disk is full: ingest stops, searches go on; make room to resume");
    // Nothing at all, whatever it might want to write.
    let mut filled = filled.starts_again_with(DISK, 0);
    let told = filled.said("shard waits to open");
    let error = told["error"].as_str().unwrap();
    assert!(error.contains("no room for the catalog"), "{error}");
    filled.disk.resize(128);
    filled.is_whole();
    filled.is_found_again();
    filled.searches_go_on();
}
