//! While a segment is sealed and while segments are merged, records are taken and searches are answered. That work is held
//! up here, step by step, until they were: if it kept either waiting, neither would come to its end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{sync::mpsc, thread};

use shoal_runtime::{clock::System, eventually};

use crate::{
    config::EngineConfig,
    node::alone::DEADLINE,
    segment::seal::SealError,
    shard::{
        Shared,
        by_hand::{self, deliver, first, nearest, served},
        compact,
        recover::Opened,
    },
};

const ROWS: u16 = 400;
/// How often that work asks from one step to the next.
const ASKS: usize = 8;
/// Records of a step: so many that several steps begin a chunk of the memtable, or a segment.
const RECORDS: u16 = 32;

/// Writes points and searches for each.
struct Amid {
    opened: Opened,
    next: u16,
}

impl Amid {
    /// Writes points, and finds the last of them and an older one.
    fn step(&mut self) {
        let shared = self.opened.writer.shared.clone();
        let last = self.next + RECORDS;
        while self.next < last {
            self.next += 1;
            let (name, number) = (name(self.next), self.next);
            let draft = by_hand::upsert(number, &name, number, None);
            deliver(&mut self.opened.writer, draft);
        }
        self.opened.writer.tend().unwrap();
        assert_eq!(nearest(&shared, last), name(last));
        assert_eq!(nearest(&shared, 7), name(7));
    }

    /// Has another thread do something that asks between rows whether it is to go on, and does a step each time.
    fn during<T: Send>(
        &mut self,
        work: impl FnOnce(&Shared, &mut dyn FnMut() -> Result<bool, SealError>) -> Option<T> + Send,
    ) -> T {
        let shared = self.opened.writer.shared.clone();
        let (asks, asked) = mpsc::sync_channel(1);
        let (goes_on, waits) = mpsc::sync_channel(1);
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let mut count = 0usize;
                let mut meanwhile = || {
                    count += 1;
                    if !count.is_multiple_of(ASKS) {
                        return Ok(true);
                    }
                    let is_heard = asks.send(()).is_ok();
                    Ok(is_heard && waits.recv_timeout(DEADLINE).is_ok())
                };
                work(&shared, &mut meanwhile)
            });
            let mut steps = 0;
            for () in asked {
                self.step();
                steps += 1;
                if goes_on.send(()).is_err() {
                    break;
                }
            }
            assert!(steps > 10, "{steps} steps amid it");
            let done = worker.join().unwrap();
            done.expect("it was not held up by what it has to wait for")
        })
    }
}

fn name(number: u16) -> String {
    format!("id-{number}")
}

#[test]
fn neither_records_nor_searches_wait_while_a_segment_is_sealed_and_segments_are_merged() {
    let folder = tempfile::tempdir().unwrap();
    let engine = EngineConfig {
        seal_rows: u32::from(ROWS),
        ..EngineConfig::default()
    };
    let spec = by_hand::spec(&folder.path().join("shard"), engine);
    let opened = by_hand::open(&spec, System::shared(), |writer| {
        for number in 1..=ROWS {
            let draft = by_hand::upsert(number, &name(number), number, None);
            deliver(writer, draft);
        }
        let shared = writer.shared.clone();
        eventually(DEADLINE, "all rows are in the graph", || {
            (first(&shared).folded() == u32::from(ROWS)).then_some(())
        });
    });
    let mut amid = Amid { opened, next: ROWS };
    let shared = amid.opened.writer.shared.clone();
    // It is full, and the next point begins another.
    amid.step();
    let full = first(&shared);
    let sealed = amid.during(|shared, meanwhile| compact::seal(shared, &full, meanwhile).unwrap());
    shared.work().compacting = true;
    shared.work().sealed = Some(sealed);
    while amid.opened.writer.tend().unwrap() {}
    let sealed = first(&shared);
    assert!(sealed.as_sealed().is_some());

    let numbers = amid.opened.numbers.clone();
    let merged = amid.during(|shared, meanwhile| {
        compact::build(shared, || numbers.take(), &[sealed], meanwhile).unwrap()
    });
    shared.work().compacting = true;
    shared.work().compacted = Some(merged);
    while amid.opened.writer.tend().unwrap() {
        amid.step();
    }
    amid.step();
    assert_eq!(served(&shared).len(), usize::from(amid.next));
}
