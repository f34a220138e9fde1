//! The process itself is killed while it saves and prunes: the test runs its own program again
//! as the victim.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    num::NonZeroUsize,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use shoal_runtime::{clock::System, crash};
use shoal_schemas::{Offset, Partition, digest::Digest};

use super::{
    Content, Folder, Names, Owner, Settings, ShardPlace, Shelf, SnapshotFile, bucket::Bucket,
    create::Created,
};

/// Where the victim works; unset in every other process.
const DIR_VARIABLE: &str = "SHOAL_TEST_SNAPSHOT_DIR";
const SIGKILL: i32 = 9;
const FILES: usize = 6;

fn shelf(dir: &Path) -> Shelf {
    let place = ShardPlace {
        collection: "docs".parse().unwrap(),
        incarnation: Offset(1),
        shard: Partition(0),
    };
    let settings = Settings {
        files_at_a_time: 1,
        ..Settings::default()
    };
    let bucket = Bucket::open(dir.join("store").to_str().unwrap()).unwrap();
    // Sent in parts, so that a kill can leave some of a file.
    let bucket = bucket.with_part_bytes(1 << 10);
    Shelf::new(Arc::new(bucket), place, System::shared(), settings)
}

/// Saves six files of that round.
async fn save(dir: &Path, shelf: &Shelf, round: u8) -> Created {
    let folder = dir.join("shard");
    fs::create_dir_all(&folder).unwrap();
    let files = (0..FILES).map(|n| {
        let path = format!("{round}-{n}");
        let content = path.as_bytes().repeat(3000);
        fs::write(folder.join(&path), &content).unwrap();
        SnapshotFile {
            path,
            bytes: u64::try_from(content.len()).unwrap(),
            crc32: crc32fast::hash(&content),
        }
    });
    let content = Content {
        manifest_path: "manifest".into(),
        manifest: vec![round],
        files: files.collect(),
        digest: Digest::default(),
        checkpoint: Vec::new(),
        taken_ms: 1,
        points: 1,
    };
    let owner = Owner {
        node: "victim".into(),
        epoch: Offset(1),
    };
    let files = Folder(folder);
    let names = Names::default();
    shelf
        .create(&owner, &content, &files, &names)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_killed_process_leaves_only_whole_snapshots_and_the_next_one_goes_on() {
    if let Some(dir) = env::var_os(DIR_VARIABLE) {
        let dir = Path::new(&dir);
        let shelf = shelf(dir);
        save(dir, &shelf, 1).await;
        shelf.prune(NonZeroUsize::MIN).await.unwrap();
        return;
    }
    let (_, this_module) = module_path!().split_once("::").unwrap();
    let this_test = format!(
        "{this_module}::a_killed_process_leaves_only_whole_snapshots_and_the_next_one_goes_on"
    );
    for (point, left, sent) in [
        ("snapshot_file_sent:1", 1, FILES - 1),
        ("snapshot_file_sent:4", 1, FILES - 4),
        ("snapshot_sent", 1, 0),
        ("snapshot_manifests_pruned", 2, 0),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let shelf = shelf(dir.path());
        save(dir.path(), &shelf, 0).await;
        let status = Command::new(env::current_exe().unwrap())
            .args(["--exact", &this_test])
            .env(DIR_VARIABLE, dir.path())
            .env(crash::VARIABLE, point)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(SIGKILL), "{point}: {status}");

        let numbers = shelf.numbers().await.unwrap();
        assert_eq!(numbers.last(), Some(&left), "{point}");
        for number in numbers {
            assert_eq!(
                shelf.verify(Some(number)).await.unwrap().faults,
                [],
                "{point}"
            );
        }
        // It goes on from what was sent.
        let created = save(dir.path(), &shelf, 1).await;
        assert_eq!(
            (created.number, created.sent_files),
            (left + 1, sent),
            "{point}"
        );
        assert_eq!(shelf.verify(None).await.unwrap().faults, [], "{point}");
        let clock = System::shared();
        let later = shoal_runtime::clock::Manual::at(clock.now_ms());
        later.advance(Duration::from_secs(48 * 60 * 60));
        let later = Shelf {
            clock: later,
            ..shelf
        };
        later.prune(NonZeroUsize::MIN).await.unwrap();
        let objects = later.list(&later.place.objects()).await.unwrap();
        assert_eq!(objects.len(), FILES, "{point}");
    }
}
