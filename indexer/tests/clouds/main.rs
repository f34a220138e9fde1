//! Snapshots over the APIs of three clouds: HTTP, conditional writes, uploads in parts. Azure's emulator checks signatures,
//! too.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "a test fails by panicking"
)]

mod cloud;

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use shoal_indexer::snapshot::{
    Content, Folder, Names, Owner, Settings, ShardPlace, Shelf, SnapshotFile,
    bucket::Bucket,
    conformance,
    create::{CreateError, Created},
    store::{Cause, Store},
};
use shoal_runtime::{clock::System, tasks::blocking};
use shoal_schemas::{Offset, Partition, digest::Digest};

use crate::cloud::{BUCKET, Cloud};

/// The least S3 takes as a part.
const PART_BYTES: u64 = 5 << 20;

/// The same tests of each cloud.
macro_rules! tests_of {
    ($cloud:ident) => {
        mod $cloud {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn a_bucket_with_a_prefix_is_a_store() {
                super::a_bucket_with_a_prefix_is_a_store(blocking(Cloud::$cloud).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_bucket_that_is_not_there_is_named() {
                super::a_bucket_that_is_not_there_is_named(blocking(Cloud::$cloud).await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn a_snapshot_goes_there_and_comes_back_and_a_number_has_one_owner() {
                super::a_snapshot_goes_there_and_comes_back(blocking(Cloud::$cloud).await).await;
            }
        }
    };
}

tests_of!(s3);
tests_of!(google);
tests_of!(azure);

async fn a_bucket_with_a_prefix_is_a_store(cloud: Cloud) {
    let store = cloud.open(BUCKET, "a/prefix/").with_part_bytes(PART_BYTES);
    let store: Arc<dyn Store> = Arc::new(store);
    let scratch = tempfile::tempfile().unwrap();
    conformance::all(&store, "check", &scratch, (12 << 20) + 5).await;
    // Another prefix shows nothing of it.
    let other = cloud.open(BUCKET, "a/pre");
    assert_eq!(other.list("check").await.unwrap(), []);
}

async fn a_bucket_that_is_not_there_is_named(cloud: Cloud) {
    let store = cloud.open("no-such-bucket", "x");
    let error = store.create("a", "b".into()).await.unwrap_err();
    assert_eq!(error.cause, Cause::Missing, "{error}");
    let text = error.to_string();
    let url = cloud.url("no-such-bucket", "x");
    assert!(
        text.contains(&url) && text.contains("check the bucket"),
        "{text}"
    );
}

fn shelf(store: Bucket) -> Shelf {
    let place = ShardPlace {
        collection: "docs".parse().unwrap(),
        incarnation: Offset(3),
        shard: Partition(1),
    };
    Shelf::new(
        Arc::new(store),
        place,
        System::shared(),
        Settings::default(),
    )
}

fn content(path: &str, bytes: &[u8]) -> Content {
    Content {
        manifest_path: "checkpoint/manifest".into(),
        manifest: b"manifest".to_vec(),
        files: vec![SnapshotFile {
            path: path.into(),
            bytes: u64::try_from(bytes.len()).unwrap(),
            crc32: crc32fast::hash(bytes),
        }],
        digest: Digest::default(),
        checkpoint: Vec::new(),
        taken_ms: 1,
        points: 1,
    }
}

async fn a_snapshot_goes_there_and_comes_back(cloud: Cloud) {
    let shelf = shelf(cloud.open(BUCKET, "").with_part_bytes(PART_BYTES));
    let folder = tempfile::tempdir().unwrap();
    let graph: Vec<u8> = (0..=250u8).cycle().take(11 << 20).collect();
    std::fs::write(folder.path().join("graph"), &graph).unwrap();
    let content = content("graph", &graph);
    let files = Folder(folder.path().to_owned());
    let (first, second) = tokio::join!(
        save(&shelf, &content, &files, 1),
        save(&shelf, &content, &files, 2)
    );
    let won = [&first, &second]
        .into_iter()
        .filter(|one| one.is_ok())
        .count();
    assert!(won >= 1, "{first:?} {second:?}");
    for outcome in [first, second] {
        match outcome {
            Ok(_) | Err(CreateError::Lost { .. } | CreateError::Stale { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let report = shelf.verify(None).await.unwrap();
    assert_eq!(report.faults, []);
    let target = folder.path().join("restored");
    shelf.restore(None, &target).await.unwrap();
    assert!(std::fs::read(target.join("graph")).unwrap() == graph);
    let last = save(&shelf, &content, &files, 2).await.unwrap();
    assert_eq!(last.sent_bytes, 0);
    let pruned = shelf.prune(NonZeroUsize::MIN).await.unwrap();
    assert_eq!(pruned.snapshots, usize::try_from(last.number).unwrap() - 1);
    assert_eq!(shelf.verify(None).await.unwrap().faults, []);
}

async fn save(
    shelf: &Shelf,
    content: &Content,
    files: &Folder,
    epoch: u64,
) -> Result<Created, CreateError> {
    let owner = Owner {
        node: format!("node-{epoch}"),
        epoch: Offset(epoch),
    };
    tokio::time::timeout(Duration::from_secs(120), async {
        shelf
            .create(&owner, content, files, &Names::default())
            .await
    })
    .await
    .expect("a snapshot takes seconds")
}
