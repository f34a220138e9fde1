//! Clients that write and read at random, a few keys again and again, and take down what they see.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use shoal_schemas::{Payload, Value, v1};
use tonic::{Code, Status};

use super::recorder::{OF_VECTOR, Recorder, STAMP, covered, hit, stored};
use crate::{
    checker::{
        history::{Answer, Call, Demands, Outcome, Place, Seen},
        mark,
    },
    harness::{client, role::Settings, seed::Random, wait},
};

/// How long one call may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a client waits after each call: a history of millions tells no more.
const PAUSE: Duration = Duration::from_millis(4);
/// As many of the clients are sessions.
const SESSIONS_OF: u32 = 2;

/// Where a client finds what it asks.
#[derive(Clone)]
pub(super) struct Targets {
    pub(super) collection: String,
    pub(super) topic: String,
    pub(super) cluster_id: String,
    pub(super) gateways: Vec<Settings>,
    pub(super) queries: Vec<Settings>,
}

/// Clients at work.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts so many processes, numbered from `first`.
    pub(super) fn start(
        recorder: &Arc<Recorder>,
        targets: &Targets,
        random: &mut Random,
        processes: std::ops::Range<u32>,
    ) -> Self {
        let stop: Arc<AtomicBool> = Arc::default();
        let threads = processes.map(|process| {
            let mut client = Client::new(recorder, targets, Random::of(random.next()), process);
            let stop = stop.clone();
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    client.step();
                    thread::park_timeout(PAUSE);
                }
            })
        });
        Self {
            threads: threads.collect(),
            stop,
        }
    }

    /// Lets each finish what it is about.
    pub(super) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// One process.
struct Client {
    recorder: Arc<Recorder>,
    targets: Targets,
    gateways: Vec<client::Gateway>,
    queries: Vec<client::Query>,
    random: Random,
    process: u32,
    is_session: bool,
    keys: Vec<String>,
    /// What a session carries: by shard the last offset it has seen.
    carried: BTreeMap<u32, u64>,
    last_written: Option<Place>,
    /// Versions as they were last seen, for conditions.
    versions: HashMap<String, u64>,
    /// What it searched for last, by how: asked again, an answer that was kept may do.
    asked: HashMap<(usize, bool), u64>,
}

impl Client {
    fn new(recorder: &Arc<Recorder>, targets: &Targets, random: Random, process: u32) -> Self {
        let gateways = targets.gateways.iter();
        let queries = targets.queries.iter();
        Self {
            gateways: gateways
                .map(|role| client::Gateway::to(role.grpc, role.http))
                .collect(),
            queries: queries
                .map(|role| client::Query::to(role.grpc, role.http))
                .collect(),
            recorder: recorder.clone(),
            targets: targets.clone(),
            random,
            process,
            is_session: process.is_multiple_of(SESSIONS_OF),
            keys: recorder.keys().keys().cloned().collect(),
            carried: BTreeMap::new(),
            last_written: None,
            versions: HashMap::new(),
            asked: HashMap::new(),
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => self.upsert(),
            30..37 => self.delete(),
            37..50 => self.patch(),
            // Everything there is.
            50..62 => self.search(self.keys.len() + 1, true),
            62..74 => self.search(2, true),
            74..80 => self.search(5, false),
            80..94 => self.get(),
            _ => self.count(),
        }
    }

    fn key(&mut self) -> String {
        let keys = u64::try_from(self.keys.len()).unwrap();
        self.keys[usize::try_from(self.random.below(keys)).unwrap()].clone()
    }

    fn gateway(&mut self) -> client::Gateway {
        let count = u64::try_from(self.gateways.len()).unwrap();
        self.gateways[usize::try_from(self.random.below(count)).unwrap()].clone()
    }

    fn query(&mut self) -> client::Query {
        let count = u64::try_from(self.queries.len()).unwrap();
        self.queries[usize::try_from(self.random.below(count)).unwrap()].clone()
    }

    fn upsert(&mut self) {
        let (key, stamp, gateway) = (self.key(), self.recorder.stamp(), self.gateway());
        let ask = v1::UpsertRequest {
            collection: self.targets.collection.clone(),
            points: vec![v1::Point {
                id: key.clone(),
                vector: mark::vector(stamp).to_vec(),
                payload: payload(stamp, true),
                ..v1::Point::default()
            }],
            conditions: Vec::new(),
        };
        let begun = self.recorder.begin();
        let mut stub = gateway.publish;
        let told = wait(stub.upsert(client::within(PATIENCE, ask)));
        let outcome = written(told.map(|answer| answer.into_inner().tokens));
        self.wrote(begun, Call::Upsert { key, stamp }, outcome);
    }

    fn delete(&mut self) {
        let (key, gateway) = (self.key(), self.gateway());
        let ask = v1::DeleteRequest {
            collection: self.targets.collection.clone(),
            ids: vec![key.clone()],
            conditions: Vec::new(),
        };
        let begun = self.recorder.begin();
        let mut stub = gateway.publish;
        let told = wait(stub.delete(client::within(PATIENCE, ask)));
        let outcome = written(told.map(|answer| answer.into_inner().tokens));
        self.wrote(begun, Call::Delete { key }, outcome);
    }

    fn patch(&mut self) {
        let (key, stamp, gateway) = (self.key(), self.recorder.stamp(), self.gateway());
        let with_vector = self.random.below(3) == 0;
        let known = self.versions.get(&key).copied();
        let if_version = known.filter(|_| self.random.below(3) == 0);
        let vector = mark::vector(stamp).to_vec();
        let ask = v1::PatchRequest {
            collection: self.targets.collection.clone(),
            points: vec![v1::PointPatch {
                id: key.clone(),
                set: payload(stamp, with_vector),
                vector: if with_vector { vector } else { Vec::new() },
                if_version,
                ..v1::PointPatch::default()
            }],
        };
        let begun = self.recorder.begin();
        let mut stub = gateway.publish;
        let told = wait(stub.patch(client::within(PATIENCE, ask)));
        let result = told.map(|answer| answer.into_inner().results.pop().unwrap());
        let outcome = match result.map(|result| result.outcome.unwrap()) {
            Ok(v1::write_result::Outcome::Token(token)) => written(Ok(vec![token])),
            Ok(v1::write_result::Outcome::Failure(failure)) => not_patched(failure),
            Err(status) => written(Err(status)),
        };
        let call = Call::Patch {
            key,
            stamp,
            with_vector,
            if_version,
        };
        self.wrote(begun, call, outcome);
    }

    fn wrote(&mut self, begun: super::recorder::Begun, call: Call, outcome: Outcome) {
        if let Outcome::Written { place, version } = &outcome {
            self.last_written = Some(*place);
            self.saw(*place);
            if let Some(key) = call.written() {
                self.versions.insert(key.to_owned(), *version);
            }
        }
        let (process, is_session) = (self.process, self.is_session);
        self.recorder.end(begun, process, is_session, call, outcome);
    }

    fn search(&mut self, k: usize, exact: bool) {
        let again = self.asked.get(&(k, exact)).copied();
        let near = match again.filter(|_| self.random.below(2) == 0) {
            Some(near) => near,
            None => 1 + self.random.below(self.recorder.stamps()),
        };
        self.asked.insert((k, exact), near);
        let (demands, read) = self.demands();
        let ask = v1::SearchRequest {
            collection: self.targets.collection.clone(),
            vector: mark::vector(near).to_vec(),
            k: u32::try_from(k).unwrap(),
            with_vector: true,
            with_payload: true,
            exact,
            read: Some(read),
            ..v1::SearchRequest::default()
        };
        let mut stub = self.query().search;
        let begun = self.recorder.begin();
        let told = wait(stub.search(client::within(PATIENCE, ask)));
        let answer = told.map(|answer| {
            let answer = answer.into_inner();
            Answer {
                seen: answer.hits.into_iter().map(hit).collect(),
                points: None,
                shards: covered(answer.coverage),
            }
        });
        let call = Call::Search {
            near,
            k,
            exact,
            demands,
        };
        self.read(begun, call, answer);
    }

    fn get(&mut self) {
        let mut keys: Vec<String> = (0..=self.random.below(3)).map(|_| self.key()).collect();
        keys.sort();
        keys.dedup();
        let (demands, read) = self.demands();
        let ask = v1::GetRequest {
            collection: self.targets.collection.clone(),
            ids: keys.clone(),
            with_vector: true,
            read: Some(read),
            ..v1::GetRequest::default()
        };
        let mut stub = self.query().search;
        let begun = self.recorder.begin();
        let told = wait(stub.get(client::within(PATIENCE, ask)));
        let answer = told.map(|answer| {
            let answer = answer.into_inner();
            Answer {
                seen: answer.points.into_iter().map(stored).collect(),
                points: None,
                shards: covered(answer.coverage),
            }
        });
        self.read(begun, Call::Get { keys, demands }, answer);
    }

    fn count(&mut self) {
        let (demands, read) = self.demands();
        let ask = v1::CountRequest {
            collection: self.targets.collection.clone(),
            read: Some(read),
            ..v1::CountRequest::default()
        };
        let mut stub = self.query().search;
        let begun = self.recorder.begin();
        let told = wait(stub.count(client::within(PATIENCE, ask)));
        let answer = told.map(|answer| {
            let answer = answer.into_inner();
            Answer {
                seen: Vec::new(),
                points: Some(answer.points),
                shards: covered(answer.coverage),
            }
        });
        self.read(begun, Call::Count { demands }, answer);
    }

    fn read(&mut self, begun: super::recorder::Begun, call: Call, answer: Result<Answer, Status>) {
        let outcome = match answer {
            Ok(answer) => {
                for place in places(&answer) {
                    self.saw(place);
                }
                let versions = answer
                    .seen
                    .iter()
                    .map(|Seen { key, version, .. }| (key, version));
                self.versions
                    .extend(versions.map(|(key, version)| (key.clone(), *version)));
                Outcome::Answered(answer)
            }
            Err(status) => Outcome::Failed { why: text(&status) },
        };
        let (process, is_session) = (self.process, self.is_session);
        self.recorder.end(begun, process, is_session, call, outcome);
    }

    fn saw(&mut self, place: Place) {
        let carried = self.carried.entry(place.partition).or_default();
        *carried = (*carried).max(place.offset);
    }

    /// A session carries all it has seen; others now and then what they wrote last.
    fn demands(&mut self) -> (Demands, v1::ReadOptions) {
        let tokens: Vec<Place> = match self.is_session {
            true => {
                let carried = self.carried.iter();
                carried
                    .map(|(partition, offset)| Place {
                        partition: *partition,
                        offset: *offset,
                    })
                    .collect()
            }
            false => {
                let is_wanted = self.random.below(2) == 0;
                self.last_written
                    .filter(|_| is_wanted)
                    .into_iter()
                    .collect()
            }
        };
        let bound_ms = (self.random.below(6) == 0).then(|| 500 + self.random.below(2500));
        let demands = Demands {
            require_all: self.random.below(2) == 0,
            max_staleness_us: bound_ms.map(|bound| bound * 1000),
            tokens,
        };
        let read = v1::ReadOptions {
            at_least: demands.tokens.iter().map(|at| self.token(*at)).collect(),
            require_all: demands.require_all,
            max_staleness_ms: bound_ms,
        };
        (demands, read)
    }

    /// A token of a place: of this cluster only that counts.
    fn token(&self, place: Place) -> v1::Token {
        let mut keys = self.recorder.keys().iter();
        let key = keys.find(|(_, home)| **home == place.partition);
        v1::Token {
            cluster_id: self.targets.cluster_id.clone(),
            topic: self.targets.topic.clone(),
            partition: place.partition,
            offset: place.offset,
            key: key.unwrap().0.clone(),
            version: 0,
            region: String::new(),
        }
    }
}

/// What an answer lets its reader make tokens of.
fn places(answer: &Answer) -> Vec<Place> {
    let stored = answer.seen.iter().filter_map(|seen| seen.place);
    let covered = answer.shards.iter().filter(|shard| shard.answered);
    let covered = covered.filter_map(|shard| {
        Some(Place {
            partition: shard.shard,
            offset: shard.next_offset.checked_sub(1)?,
        })
    });
    stored.chain(covered).collect()
}

fn payload(stamp: u64, with_vector: bool) -> HashMap<String, v1::Value> {
    let stamp = Value::Integer(i64::try_from(stamp).unwrap());
    let mut fields = BTreeMap::from([(STAMP.to_owned(), stamp.clone())]);
    if with_vector {
        fields.insert(OF_VECTOR.to_owned(), stamp);
    }
    Payload(fields.into_iter().collect()).to_proto()
}

/// What came of a write that goes straight to the log.
fn written(told: Result<Vec<v1::Token>, Status>) -> Outcome {
    match told {
        Ok(tokens) => {
            let token = tokens.into_iter().next().unwrap();
            Outcome::Written {
                place: Place {
                    partition: token.partition,
                    offset: token.offset,
                },
                version: token.version,
            }
        }
        Err(status) => match status.code() {
            // Refused before anything was sent.
            Code::InvalidArgument | Code::NotFound => Outcome::Failed { why: text(&status) },
            _ => Outcome::Unknown { why: text(&status) },
        },
    }
}

/// What a failed patch promises.
fn not_patched(failure: v1::WriteFailure) -> Outcome {
    let why = format!("{:?}: {}", Code::from(failure.code), failure.message);
    match Code::from(failure.code) {
        Code::Aborted | Code::NotFound => Outcome::Refused { why },
        Code::InvalidArgument
        | Code::Unavailable
        | Code::ResourceExhausted
        | Code::DeadlineExceeded => Outcome::Failed { why },
        _ => Outcome::Unknown { why },
    }
}

fn text(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
