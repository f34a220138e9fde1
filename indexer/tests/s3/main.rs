//! Snapshots over a real S3 API: HTTP, signatures, conditional puts, uploads in parts.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    unreachable_pub,
    reason = "a test fails by panicking"
)]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use shoal_indexer::snapshot::{
    Content, Folder, Names, Owner, Settings, ShardPlace, Shelf, SnapshotFile,
    bucket::Bucket,
    conformance,
    create::CreateError,
    store::{Cause, Store},
};
use shoal_runtime::{clock::System, tasks::blocking};
use shoal_schemas::{Offset, Partition, digest::Digest};

const BUCKET: &str = "snapshots";

/// An S3 API as a child; ends with this.
struct S3 {
    child: Child,
    address: String,
}

impl S3 {
    fn start() -> Self {
        let python = std::env::var("SHOAL_PYTHON").unwrap_or_else(|_| {
            let home = std::env::var("HOME").unwrap();
            let cache = std::env::var("SHOAL_CACHE").unwrap_or(format!("{home}/.cache/shoal"));
            format!("{cache}/venv/bin/python3")
        });
        let script = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap())
            .join("../tests/clients/s3_server.py");
        let mut child = Command::new(&python)
            .arg(script)
            .arg(BUCKET)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {python}, see setup/python: {error}"));
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let address = loop {
            let mut line = String::new();
            let read = lines.read_line(&mut line).unwrap();
            assert!(read > 0, "the S3 server ended; is setup/python up to date?");
            if line.starts_with("http://") {
                break line.trim().to_owned();
            }
        };
        Self { child, address }
    }

    fn bucket(&self, url: &str) -> Bucket {
        let variables = [
            ("AWS_ENDPOINT_URL", self.address.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_REGION", "us-east-1"),
        ];
        Bucket::open_with(url, &variables).unwrap()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // It ends by itself when its input ends.
        drop(self.child.stdin.take());
        let _ended = self.child.wait();
    }
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_s3_bucket_with_a_prefix_is_a_store() {
    let s3 = blocking(S3::start).await;
    // Parts of 5 MiB: the least S3 takes.
    let store = s3.bucket(&format!("s3://{BUCKET}/a/prefix/"));
    let store: Arc<dyn Store> = Arc::new(store.with_part_bytes(5 << 20));
    let scratch = tempfile::tempfile().unwrap();
    conformance::all(&store, "check", &scratch, (12 << 20) + 5).await;
    // Another prefix shows nothing of it.
    let other = s3.bucket(&format!("s3://{BUCKET}/a/pre"));
    assert_eq!(other.list("check").await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_not_there_is_named() {
    let s3 = blocking(S3::start).await;
    let store = s3.bucket("s3://no-such-bucket/x");
    let error = store.create("a", "b".into()).await.unwrap_err();
    assert_eq!(error.cause, Cause::Missing, "{error}");
    let text = error.to_string();
    assert!(
        text.contains("s3://no-such-bucket/x") && text.contains("check the bucket"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_goes_to_s3_and_comes_back_and_a_number_has_one_owner() {
    let s3 = blocking(S3::start).await;
    let shelf = shelf(
        s3.bucket(&format!("s3://{BUCKET}"))
            .with_part_bytes(5 << 20),
    );
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
    let pruned = shelf.prune(std::num::NonZeroUsize::MIN).await.unwrap();
    assert_eq!(pruned.snapshots, usize::try_from(last.number).unwrap() - 1);
    assert_eq!(shelf.verify(None).await.unwrap().faults, []);
}

async fn save(
    shelf: &Shelf,
    content: &Content,
    files: &Folder,
    epoch: u64,
) -> Result<shoal_indexer::snapshot::create::Created, CreateError> {
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
