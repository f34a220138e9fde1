//! A made-up run in which every answer is right, to plant faults in.

use std::collections::BTreeMap;

use crate::checker::{
    history::{
        Answer, Call, Content, Covered, Demands, History, Operation, Outcome, Place, Record, Run,
        Seen,
    },
    mark,
};

/// Processes from this number on are sessions.
pub(crate) const SESSIONS: u32 = 10;
/// How long an operation takes, and the pause behind it.
const TAKES_US: u64 = 10;
const PAUSE_US: u64 = 2_000;
/// Long ago: says nothing about what was held.
const LONG_US: u64 = 1 << 40;

/// Two shards; keys `a0`, `a1`, ... in the first, `b0`, `b1`, ... in the second.
pub(crate) struct Story {
    pub(crate) history: History,
    now_us: u64,
    stamp: u64,
}

impl Story {
    pub(crate) fn new(keys_a_shard: u32) -> Self {
        let mut keys = BTreeMap::new();
        for number in 0..keys_a_shard {
            keys.insert(format!("a{number}"), 0);
            keys.insert(format!("b{number}"), 1);
        }
        Self {
            history: History {
                run: Run {
                    seed: 0,
                    keys,
                    partitions: 2,
                },
                ..History::default()
            },
            now_us: 1_000_000,
            stamp: 0,
        }
    }

    pub(crate) fn upsert(&mut self, process: u32, key: &str) -> Place {
        self.stamp += 1;
        let stamp = self.stamp;
        let call = Call::Upsert {
            key: key.into(),
            stamp,
        };
        self.write(process, call, key, Some(Content::whole(stamp)))
    }

    /// Of a point there is.
    pub(crate) fn patch(&mut self, process: u32, key: &str) -> Place {
        self.stamp += 1;
        let now = self.live(key, u64::MAX).unwrap();
        let call = Call::Patch {
            key: key.into(),
            stamp: self.stamp,
            with_vector: false,
            if_version: Some(now.version),
        };
        let content = Content {
            stamp: Some(self.stamp),
            ..now.content.unwrap()
        };
        self.write(process, call, key, Some(content))
    }

    pub(crate) fn delete(&mut self, process: u32, key: &str) -> Place {
        let call = Call::Delete { key: key.into() };
        self.write(process, call, key, None)
    }

    fn write(&mut self, process: u32, call: Call, key: &str, content: Option<Content>) -> Place {
        let partition = self.history.run.keys[key];
        let place = Place {
            partition,
            offset: self.ends()[usize::try_from(partition).unwrap()],
        };
        let version = self.now_us << 16;
        self.history.records.push(Record {
            place,
            key: key.into(),
            version,
            content,
        });
        self.push(process, call, Outcome::Written { place, version });
        place
    }

    /// Everything, as it was after so many records of each shard.
    pub(crate) fn search(&mut self, process: u32, at: [u64; 2], tokens: &[Place]) -> usize {
        self.search_near(process, at, tokens, 1, 1000)
    }

    pub(crate) fn search_near(
        &mut self,
        process: u32,
        at: [u64; 2],
        tokens: &[Place],
        near: u64,
        k: usize,
    ) -> usize {
        let keys = self.history.run.keys.clone();
        let live = keys.iter().filter_map(|(key, shard)| {
            let record = self.live(key, at[usize::try_from(*shard).unwrap()])?;
            Some(hit(near, record))
        });
        let mut seen: Vec<Seen> = live.collect();
        seen.sort_by(|a, b| {
            let distances = a.distance.unwrap().total_cmp(&b.distance.unwrap());
            distances.then_with(|| a.key.cmp(&b.key))
        });
        seen.truncate(k);
        let answer = Answer {
            seen,
            points: None,
            shards: self.covered(at),
        };
        let call = Call::Search {
            near,
            k,
            exact: true,
            demands: demands(tokens),
        };
        self.push(process, call, Outcome::Answered(answer))
    }

    pub(crate) fn get(&mut self, process: u32, key: &str, at: [u64; 2], tokens: &[Place]) -> usize {
        let shard = usize::try_from(self.history.run.keys[key]).unwrap();
        let live = self.live(key, at[shard]);
        let mut shards = self.covered(at);
        shards.retain(|covered| usize::try_from(covered.shard).unwrap() == shard);
        let answer = Answer {
            seen: live.map(stored).into_iter().collect(),
            points: None,
            shards,
        };
        let call = Call::Get {
            keys: vec![key.into()],
            demands: demands(tokens),
        };
        self.push(process, call, Outcome::Answered(answer))
    }

    pub(crate) fn count(&mut self, process: u32, at: [u64; 2], tokens: &[Place]) -> usize {
        let keys = self.history.run.keys.iter();
        let live = keys.filter(|(key, shard)| {
            let shard = usize::try_from(**shard).unwrap();
            self.live(key, at[shard]).is_some()
        });
        let answer = Answer {
            seen: Vec::new(),
            points: Some(u64::try_from(live.count()).unwrap()),
            shards: self.covered(at),
        };
        let call = Call::Count {
            demands: demands(tokens),
        };
        self.push(process, call, Outcome::Answered(answer))
    }

    /// How many records each shard has.
    pub(crate) fn ends(&self) -> [u64; 2] {
        [0, 1].map(|partition| {
            let records = self.history.records.iter();
            let of = records.filter(|record| record.place.partition == partition);
            u64::try_from(of.count()).unwrap()
        })
    }

    /// The answer to an operation, to plant a fault in.
    pub(crate) fn answer(&mut self, operation: usize) -> &mut Answer {
        match &mut self.history.operations[operation].outcome {
            Outcome::Answered(answer) => answer,
            other => panic!("{other:?}"),
        }
    }

    /// The point as it was after so many records of its shard.
    pub(crate) fn live(&self, key: &str, at: u64) -> Option<&Record> {
        let mut records = self.history.records.iter();
        let last = records.rfind(|record| record.key == key && record.place.offset < at)?;
        last.content.is_some().then_some(last)
    }

    fn covered(&self, at: [u64; 2]) -> Vec<Covered> {
        let shards = (0..).zip(at).zip(self.ends());
        let covered = shards.map(|((shard, at), end)| Covered {
            shard,
            answered: true,
            node: "one".into(),
            next_offset: at,
            lag_us: if at == end { 0 } else { LONG_US },
        });
        covered.collect()
    }

    fn push(&mut self, process: u32, call: Call, outcome: Outcome) -> usize {
        let number = self.history.operations.len();
        self.history.operations.push(Operation {
            number: u64::try_from(number).unwrap(),
            process,
            is_session: process >= SESSIONS,
            invoked_us: self.now_us,
            completed_us: self.now_us + TAKES_US,
            call,
            outcome,
        });
        self.now_us += PAUSE_US;
        number
    }
}

pub(crate) fn stored(record: &Record) -> Seen {
    Seen {
        key: record.key.clone(),
        version: record.version,
        content: record.content.unwrap(),
        distance: None,
        place: Some(record.place),
    }
}

pub(crate) fn hit(near: u64, record: &Record) -> Seen {
    let distance = mark::distance(near, record.content.unwrap().vector.unwrap());
    Seen {
        distance: Some(f32::from(u16::try_from(distance).unwrap())),
        place: None,
        ..stored(record)
    }
}

fn demands(tokens: &[Place]) -> Demands {
    Demands {
        tokens: tokens.to_vec(),
        require_all: true,
        max_staleness_us: None,
    }
}
