//! A log under random work loses power at a random moment: nothing durable is lost, nothing wrong comes back.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, path::Path, sync::Arc};

use proptest::{collection::vec, prelude::*};

use super::{Config, Position, Wal, disk_sim::Sim};

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<u8>),
    Flush,
    Sync,
    /// Cuts below this part of what is durable, in percent.
    Cut(u64),
    /// Ends and opens the log again, as a killed process does.
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => vec(1..=u8::MAX, 1..90).prop_map(Step::Append),
        3 => Just(Step::Flush),
        2 => Just(Step::Sync),
        1 => (0..=100_u64).prop_map(Step::Cut),
        1 => Just(Step::Reopen),
    ];
    vec(step, 1..60)
}

fn open(disk: &Sim) -> Wal {
    let config = Config {
        segment_bytes: 300,
        ..Config::default()
    };
    Wal::open_on(Arc::new(disk.clone()), Path::new("/log"), &config)
        .unwrap()
        .0
}

fn frames(wal: &Wal) -> BTreeMap<Position, Vec<u8>> {
    let reader = wal.reader();
    reader
        .iterate(reader.first(), reader.end())
        .map(Result::unwrap)
        .collect()
}

proptest! {
    #[test]
    fn lost_power_loses_no_synced_frame(
        steps in steps(),
        kept in any::<prop::sample::Index>(),
        is_zeroed: bool,
    ) {
        let disk = Sim::default();
        let mut wal = open(&disk);
        let mut appended = BTreeMap::new();
        for step in steps {
            match step {
                Step::Append(payload) => {
                    let at = wal.append(&[&payload]).unwrap();
                    appended.insert(at, payload);
                }
                Step::Flush => wal.flush().unwrap(),
                Step::Sync => {
                    let durable = wal.syncer().sync().unwrap();
                    prop_assert_eq!(durable, wal.reader().end());
                }
                Step::Cut(percent) => {
                    let durable = wal.syncer().durable().as_u64();
                    wal.cut_below(Position(durable * percent / 100)).unwrap();
                }
                Step::Reopen => {
                    let flushed = wal.reader().end();
                    drop(wal);
                    wal = open(&disk);
                    // A killed process loses nothing flushed, and all that was not.
                    prop_assert_eq!(wal.end(), flushed);
                    appended.split_off(&flushed);
                }
            }
        }
        let (first, durable, flushed) = (wal.first(), wal.syncer().durable(), wal.reader().end());
        drop(wal);

        let after = disk.lose_power(|pending| kept.index(pending + 1), is_zeroed);
        let wal = open(&after);
        prop_assert!(wal.end() >= durable && wal.end() <= flushed);
        prop_assert!(wal.first() == first);
        let expected: BTreeMap<_, _> = appended
            .range(first..wal.end())
            .map(|(at, payload)| (*at, payload.clone()))
            .collect();
        prop_assert_eq!(frames(&wal), expected);
    }
}
