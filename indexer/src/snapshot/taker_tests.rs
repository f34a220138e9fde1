//! Taking snapshots of a node's shards, over shards that only a test has.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io,
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shoal_runtime::{ErrorKind, clock::System, eventually};
use shoal_schemas::{Offset, Partition, Source as Stream, digest::Digest};
use tokio_util::sync::CancellationToken;

use super::{Held, HoldError, Source, TakeError, Taker};
use crate::{
    node::ShardKey,
    snapshot::{
        Content, Files, Names, Owner, Settings, ShardPlace, Shelf, SnapshotFile, SourceNext,
        bucket::Bucket, store::Store,
    },
};

/// Two shards of one file each, at an offset a test sets.
struct Shards {
    next: AtomicU64,
    folder: tempfile::TempDir,
}

struct Copies(std::path::PathBuf);

impl Files for Copies {
    fn open(&self, path: &str) -> io::Result<std::fs::File> {
        std::fs::File::open(self.0.join(path))
    }
}

fn key(shard: u32) -> ShardKey {
    ("docs".parse().unwrap(), Partition(shard))
}

impl Source for Shards {
    fn shards(&self) -> Vec<ShardKey> {
        vec![key(0), key(1)]
    }

    fn hold(&self, shard: &ShardKey) -> Result<Held, HoldError> {
        if shard.1.0 > 1 {
            return Err(HoldError::NotOwned);
        }
        let next = self.next.load(Ordering::SeqCst);
        let text = format!("{} at {next}", shard.1);
        let path = format!("{}-{next}", shard.1);
        std::fs::write(self.folder.path().join(&path), &text).unwrap();
        Ok(Held {
            place: place(shard.1.0),
            owner: Owner {
                node: "a".into(),
                epoch: Offset(1),
            },
            content: Content {
                manifest_path: "checkpoint/manifest".into(),
                manifest: Vec::new(),
                files: vec![SnapshotFile {
                    path,
                    bytes: u64::try_from(text.len()).unwrap(),
                    crc32: crc32fast::hash(text.as_bytes()),
                }],
                digest: Digest::default(),
                checkpoint: vec![SourceNext {
                    source: Stream {
                        cluster: "c".into(),
                        topic: "t".into(),
                        partition: shard.1,
                    },
                    next: Offset(next),
                    topic_id: None,
                }],
                taken_ms: 1,
                points: 1,
            },
            files: Box::new(Copies(self.folder.path().to_owned())),
            names: Names::default(),
        })
    }
}

fn place(shard: u32) -> ShardPlace {
    ShardPlace {
        collection: "docs".parse().unwrap(),
        incarnation: Offset(1),
        shard: Partition(shard),
    }
}

fn world(keep: usize) -> (Taker, Arc<Shards>, impl Fn(u32) -> Shelf) {
    let shards = Arc::new(Shards {
        next: AtomicU64::new(1),
        folder: tempfile::tempdir().unwrap(),
    });
    let store: Arc<dyn Store> = Arc::new(Bucket::in_memory());
    let (clock, settings) = (System::shared(), Settings::default());
    let keep = NonZeroUsize::new(keep).unwrap();
    let taker = Taker::new(store.clone(), shards.clone(), clock.clone(), settings, keep);
    let shelf = move |shard| Shelf::new(store.clone(), place(shard), clock.clone(), settings);
    (taker, shards, shelf)
}

#[tokio::test]
async fn a_snapshot_is_taken_when_asked_and_old_ones_go() {
    let (taker, shards, shelf) = world(2);
    for next in 1..=4 {
        shards.next.store(next, Ordering::SeqCst);
        let taken = taker.take(&key(1)).await.unwrap();
        assert_eq!(taken.created.number, next);
        assert_eq!(taken.checkpoint[0].next, Offset(next));
    }
    assert_eq!(shelf(1).numbers().await.unwrap(), [3, 4]);
    let error = taker.take(&key(2)).await.unwrap_err();
    assert!(matches!(error, TakeError::Hold { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Caller);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_every_so_often_are_of_shards_that_changed_only() {
    let (taker, shards, shelf) = world(10);
    let cancel = CancellationToken::new();
    let handle = tokio::runtime::Handle::current();
    let running = {
        let (taker, cancel, handle) = (taker.clone(), cancel.clone(), handle.clone());
        tokio::task::spawn_blocking(move || {
            handle.block_on(taker.run(Duration::from_millis(1), &cancel));
        })
    };
    let waits = tokio::task::spawn_blocking(move || {
        let numbers = |shard| handle.block_on(shelf(shard).numbers()).unwrap();
        for next in 1..=3 {
            shards.next.store(next, Ordering::SeqCst);
            for shard in [0, 1] {
                eventually(
                    Duration::from_secs(20),
                    "a snapshot of what changed",
                    || (numbers(shard).last() == Some(&next)).then_some(()),
                );
            }
        }
        // Asked for, it is taken whatever changed.
        let taken = handle.block_on(taker.take(&key(0))).unwrap();
        assert_eq!(taken.created.number, 4);
        assert_eq!(numbers(1), [1, 2, 3]);
    });
    waits.await.unwrap();
    cancel.cancel();
    running.await.unwrap();
}
