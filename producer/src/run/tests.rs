//! Tests of whole runs, on the log in memory.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use shoal_runtime::{
    clock::{Manual, System},
    eventually,
    tasks::Tasks,
};
use shoal_schemas::{Collection, CollectionName, PointId, Reason, Rejection};
use shoal_topic::{
    collections::{self, Taken},
    control::ControlLog,
    memory::MemoryLog,
};
use tokio_util::sync::CancellationToken;

use super::{Cause, OnFault, Options, Outlet, OutletError, Summary, delete_all, publish_all};
use crate::{
    PublishConfig, Publisher,
    publisher::tests::{collection, id, log_for, point, records},
    read::{ReadError, Row, Rows},
};

const DEADLINE: Duration = Duration::from_secs(20);

async fn publisher(log: &MemoryLog, docs: &Collection) -> Publisher {
    let clock = Manual::at(1_700_000_000_000);
    let config = PublishConfig::default();
    Publisher::new(&log.cluster(), clock, docs.clone(), config)
        .await
        .unwrap()
}

fn row(n: u64) -> Row {
    Ok((id(&n.to_string()), point(1.0)))
}

fn faulty(input: &str) -> ReadError {
    ReadError::Record {
        input: input.into(),
        place: crate::read::Place::Line(7),
        rejection: Rejection::new(Reason::NotFinite, "component 0 is NaN"),
    }
}

fn highest(summary: &Summary) -> u64 {
    summary
        .tokens
        .values()
        .map(|token| token.offset.0 + 1)
        .sum()
}

#[tokio::test]
async fn every_row_is_published_and_the_last_token_of_each_partition_told() {
    let docs = collection(3);
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs).await;
    let rows = Rows::new(Some(1000), (0..1000).map(row));
    let cancel = CancellationToken::new();
    let summary = publish_all(&publisher, rows, &Options::default(), &cancel)
        .await
        .unwrap();
    let found = records(&log, "embeddings.docs", 3);
    assert_eq!((summary.records, found.len()), (1000, 1000));
    assert_eq!((summary.tokens.len(), highest(&summary)), (3, 1000));
    let bytes: usize = found.iter().map(|(_, _, record)| record.size_bytes()).sum();
    assert_eq!(usize::try_from(summary.bytes).unwrap(), bytes);
    assert!(
        !summary.interrupted && summary.unacknowledged == 0,
        "{summary:?}"
    );
}

#[tokio::test]
async fn ids_are_deleted() {
    let docs = collection(1);
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs).await;
    let ids = (0..5).map(|n| PointId::new(&format!("{n}")).map_err(|_| faulty("ids")));
    let cancel = CancellationToken::new();
    let summary = delete_all(&publisher, ids, &Options::default(), &cancel)
        .await
        .unwrap();
    let found = records(&log, "embeddings.docs", 1);
    assert_eq!((summary.records, found.len()), (5, 5));
    assert!(found.iter().all(|(_, _, record)| record.value.is_none()));
}

#[tokio::test]
async fn a_faulty_record_stops_the_run_or_is_counted() {
    let docs = collection(1);
    let rows = || {
        Rows::new(
            None,
            (0..100).map(|n| {
                if n % 10 == 3 {
                    Err(faulty("in.jsonl"))
                } else {
                    row(n)
                }
            }),
        )
    };
    let cancel = CancellationToken::new();

    let log = log_for(&docs);
    let publisher_one = publisher(&log, &docs).await;
    let stopped = publish_all(&publisher_one, rows(), &Options::default(), &cancel)
        .await
        .unwrap_err();
    assert_eq!(stopped.summary.records, 3);
    assert_eq!(
        stopped.cause.to_string(),
        "in.jsonl:7: not_finite: component 0 is NaN"
    );
    assert_eq!(records(&log, "embeddings.docs", 1).len(), 3);

    let log = log_for(&docs);
    let publisher_two = publisher(&log, &docs).await;
    let options = Options {
        on_fault: OnFault::Skip,
        ..Options::default()
    };
    let summary = publish_all(&publisher_two, rows(), &options, &cancel)
        .await
        .unwrap();
    assert_eq!((summary.records, summary.skipped), (90, 10));
    assert_eq!(records(&log, "embeddings.docs", 1).len(), 90);
}

#[tokio::test]
async fn a_faulty_file_stops_the_run_even_where_records_are_skipped() {
    let docs = collection(1);
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs).await;
    let broken = ReadError::File {
        input: "in.npy".into(),
        fault: "file ends within row 2".into(),
    };
    let rows = Rows::new(None, [row(0), row(1), Err(broken)].into_iter());
    let options = Options {
        on_fault: OnFault::Skip,
        ..Options::default()
    };
    let cancel = CancellationToken::new();
    let stopped = publish_all(&publisher, rows, &options, &cancel)
        .await
        .unwrap_err();
    assert!(
        matches!(stopped.cause, Cause::Read(ReadError::File { .. })),
        "{stopped}"
    );
    assert_eq!(stopped.summary.records, 2);
}

#[tokio::test]
async fn an_interrupted_run_publishes_what_it_took_and_says_so() {
    let docs = collection(1);
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs).await;
    let cancel = CancellationToken::new();
    let interrupt = cancel.clone();
    // The input never ends; the interruption comes from within it, at a known record.
    let endless = (0_u64..).map(move |n| {
        if n == 500 {
            interrupt.cancel();
        }
        row(n)
    });
    let options = Options::default();
    let summary = publish_all(&publisher, Rows::new(None, endless), &options, &cancel)
        .await
        .unwrap();
    assert!(summary.interrupted);
    assert_eq!(summary.unacknowledged, 0);
    let found = records(&log, "embeddings.docs", 1).len();
    assert_eq!(usize::try_from(summary.records).unwrap(), found);
    assert!(found < 1500, "{found}");
}

#[tokio::test]
async fn a_reader_that_blocks_does_not_hold_an_interrupted_run() {
    let docs = collection(1);
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs).await;
    let cancel = CancellationToken::new();
    let (keep, silent) = mpsc::sync_channel::<u64>(1);
    keep.send(1).unwrap();
    let rows = Rows::new(None, silent.into_iter().map(row));
    let watched = log.clone();
    let interrupt = cancel.clone();
    let interrupter = std::thread::spawn(move || {
        eventually(DEADLINE, "the one record", || {
            (records(&watched, "embeddings.docs", 1).len() == 1).then_some(())
        });
        interrupt.cancel();
    });
    let options = Options::default();
    let summary = publish_all(&publisher, rows, &options, &cancel)
        .await
        .unwrap();
    assert!(summary.interrupted && summary.records == 1, "{summary:?}");
    interrupter.join().unwrap();
    drop(keep);
}

#[tokio::test]
async fn the_run_waits_while_the_broker_is_away_and_goes_on() {
    let docs = collection(1);
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs).await;
    log.set_down(true);
    let read = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&read);
    let rows = Rows::new(
        None,
        (0..5000).map(move |n| {
            counted.fetch_add(1, Ordering::SeqCst);
            row(n)
        }),
    );
    let away = log.clone();
    // The log in memory queues 1,024. The reader is then stopped with one chunk in its hands, at
    // most four waiting and one being sent.
    let back = std::thread::spawn(move || {
        eventually(DEADLINE, "a full queue", || {
            (read.load(Ordering::SeqCst) >= 1024 + 64).then_some(())
        });
        let ahead = read.load(Ordering::SeqCst);
        away.set_down(false);
        assert!(ahead <= 1024 + 6 * 64, "{ahead}");
    });
    let cancel = CancellationToken::new();
    let summary = publish_all(&publisher, rows, &Options::default(), &cancel)
        .await
        .unwrap();
    back.join().unwrap();
    assert_eq!(summary.records, 5000);
    assert_eq!(records(&log, "embeddings.docs", 1).len(), 5000);
}

#[tokio::test]
async fn a_rate_limit_holds() {
    let docs = collection(1);
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs).await;
    let options = Options {
        rate_limit: Some(400.0),
        ..Options::default()
    };
    let rows = Rows::new(None, (0..101).map(row));
    let cancel = CancellationToken::new();
    let summary = publish_all(&publisher, rows, &options, &cancel)
        .await
        .unwrap();
    assert_eq!(summary.records, 101);
    assert!(summary.seconds >= 0.25, "{}", summary.seconds);
}

#[tokio::test]
async fn a_reader_that_panics_is_told() {
    let docs = collection(1);
    let log = log_for(&docs);
    let publisher = publisher(&log, &docs).await;
    let rows = Rows::new(
        None,
        (0..10).map(|n| {
            assert!(n < 5, "planted");
            row(n)
        }),
    );
    let cancel = CancellationToken::new();
    let stopped = publish_all(&publisher, rows, &Options::default(), &cancel)
        .await
        .unwrap_err();
    assert!(matches!(stopped.cause, Cause::Reader), "{stopped}");
}

#[tokio::test]
async fn an_input_that_goes_on_goes_over_with_its_name_and_ends_when_that_is_gone() {
    let log = MemoryLog::new("memory", System::shared());
    let cluster = log.cluster();
    ControlLog::ensure(&cluster, None).unwrap();
    let tasks = Tasks::new(CancellationToken::new());
    let control = ControlLog::spawn(&cluster, &tasks, System::shared()).unwrap();
    let old = collection(2);
    let mut new = old.clone();
    new.name = "docs-g2".parse().unwrap();
    new.partitions = 3;
    for one in [&old, &new] {
        let created = collections::create(&cluster, &control, one.clone());
        created.await.unwrap();
    }
    let live: CollectionName = "live".parse().unwrap();
    let set = collections::set_alias(&control, &live, &old.name, Taken::Refuse);
    set.await.unwrap();
    let (config, clock) = (PublishConfig::default(), System::shared());
    let outlet = Outlet::following(live.clone(), &cluster, &control, clock, config)
        .await
        .unwrap();
    let (send, input) = mpsc::sync_channel(1);
    let cancel = CancellationToken::new();
    let options = Options::default();
    let publishing = publish_all(
        outlet,
        Rows::new(None, input.into_iter()),
        &options,
        &cancel,
    );
    let until = async |topic: &str, partitions: u32| {
        let there = async {
            while records(&log, topic, partitions).is_empty() {
                tokio::task::yield_now().await;
            }
        };
        let there = tokio::time::timeout(DEADLINE, there).await;
        there.expect("the record is written");
    };
    let writing = async {
        send.send(row(1)).unwrap();
        until("embeddings.docs", 2).await;
        let set = collections::set_alias(&control, &live, &new.name, Taken::Refuse);
        set.await.unwrap();
        send.send(row(2)).unwrap();
        until("embeddings.docs-g2", 3).await;
        collections::drop_alias(&control, &live).await.unwrap();
        send.send(row(3)).unwrap();
    };
    let (outcome, ()) = tokio::join!(publishing, writing);
    let stopped = outcome.unwrap_err();
    assert!(
        matches!(stopped.cause, Cause::Outlet(OutletError::Gone { .. })),
        "{stopped}"
    );
    let topics: Vec<_> = stopped.summary.tokens.into_keys().collect();
    let topics: Vec<&str> = topics.iter().map(|(topic, _)| &**topic).collect();
    assert_eq!(topics, ["embeddings.docs", "embeddings.docs-g2"]);
    assert_eq!(records(&log, "embeddings.docs", 2).len(), 1);
    tasks.cancel().cancel();
}
