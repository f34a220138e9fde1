//! Taking, reading, verifying and pruning snapshots, over stores in memory and in folders.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use shoal_runtime::{
    ErrorKind,
    clock::{Clock, Manual, System},
};
use shoal_schemas::{Offset, Partition, Source, digest::Digest};

use super::{
    Content, Folder, Names, Owner, ReadError, Settings, ShardPlace, Shelf, SnapshotFile,
    SourceNext,
    bucket::Bucket,
    create::{CreateError, Created},
    faulty::{Faulty, Plan},
    restore::RestoreError,
    store::{Retries, Store},
};

const HOUR: Duration = Duration::from_secs(3600);

/// A shard's folder that only a test writes.
struct Shard {
    folder: tempfile::TempDir,
    content: Content,
    names: Names,
}

impl Shard {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            content: Content {
                manifest_path: "checkpoint/manifest-1.json".into(),
                manifest: b"{}\n".to_vec(),
                files: Vec::new(),
                digest: Digest::from_bytes([3; 16]),
                checkpoint: vec![SourceNext {
                    source: Source {
                        cluster: "c".into(),
                        topic: "embeddings.docs".into(),
                        partition: Partition(0),
                    },
                    next: Offset(10),
                    topic_id: None,
                }],
                taken_ms: 1000,
                points: 2,
            },
            names: Names::default(),
        }
    }

    fn with(mut self, files: &[(&str, &[u8])]) -> Self {
        for (path, content) in files {
            self.write(path, content);
        }
        self
    }

    fn write(&mut self, path: &str, content: &[u8]) {
        let at = self.folder.path().join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, content).unwrap();
        self.content.files.push(SnapshotFile {
            path: path.into(),
            bytes: u64::try_from(content.len()).unwrap(),
            crc32: crc32fast::hash(content),
        });
    }

    async fn save(&self, shelf: &Shelf, owner: &Owner) -> Result<Created, CreateError> {
        let files = Folder(self.folder.path().to_owned());
        shelf
            .create(owner, &self.content, &files, &self.names)
            .await
    }
}

fn owner(epoch: u64) -> Owner {
    Owner {
        node: format!("node-{epoch}"),
        epoch: Offset(epoch),
    }
}

fn place() -> ShardPlace {
    ShardPlace {
        collection: "docs".parse().unwrap(),
        incarnation: Offset(7),
        shard: Partition(0),
    }
}

fn settings() -> Settings {
    Settings {
        grace: HOUR,
        files_at_a_time: 3,
        retries: Retries {
            attempts: 3,
            first_pause: Duration::from_millis(1),
        },
    }
}

fn shelf_at(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Shelf {
    Shelf::new(store, place(), clock, settings())
}

fn shelf(store: Arc<dyn Store>) -> Shelf {
    shelf_at(store, System::shared())
}

fn memory() -> Arc<dyn Store> {
    Arc::new(Bucket::in_memory())
}

/// Everything below a folder, by name.
fn tree(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap();
                found.push((name.to_owned(), fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn what_was_saved_is_restored_byte_for_byte() {
    let shard = Shard::new().with(&[
        ("segments/000001/graph", &[7; 5000]),
        ("segments/000001/rows", b"rows"),
        ("segments/000001/mask-3", b""),
    ]);
    let shelf = shelf(memory());
    let created = shard.save(&shelf, &owner(5)).await.unwrap();
    assert_eq!((created.number, created.sent_files), (1, 3));
    let target = tempfile::tempdir().unwrap();
    let folder = target.path().join("shard");
    let manifest = shelf.restore(None, &folder).await.unwrap();
    assert_eq!(manifest.content().unwrap(), shard.content);
    assert_eq!(manifest.owner, owner(5));
    let mut wanted = tree(shard.folder.path());
    wanted.push(("checkpoint/manifest-1.json".into(), b"{}\n".to_vec()));
    wanted.sort();
    assert_eq!(tree(&folder), wanted);
    assert_eq!(fs::read_dir(target.path()).unwrap().count(), 1);
    let error = shelf.restore(None, &folder).await.unwrap_err();
    assert!(matches!(error, RestoreError::Exists { .. }), "{error}");
}

#[tokio::test]
async fn a_file_is_sent_once_whoever_saves_it() {
    let store = Faulty::over(memory());
    let shelf = shelf(store.clone());
    let mut shard = Shard::new().with(&[("segments/000001/graph", &[1; 100])]);
    shard.save(&shelf, &owner(1)).await.unwrap();
    shard.write("segments/000002/graph", &[2; 100]);
    let second = shard.save(&shelf, &owner(1)).await.unwrap();
    assert_eq!((second.number, second.files, second.sent_files), (2, 2, 1));
    // The next owner has no memory of it, and gets the same files from the store.
    shard.names = Names::default();
    store.calls("upload");
    let third = shard.save(&shelf, &owner(2)).await.unwrap();
    assert_eq!((third.number, third.sent_bytes), (3, 0));
    assert_eq!(store.calls("upload"), Vec::<String>::new());
    // Files of one name, length and CRC of another owner's folder are not taken for these.
    let other = Shard::new().with(&[("segments/000001/graph", &[9; 100])]);
    assert_eq!(other.save(&shelf, &owner(3)).await.unwrap().sent_files, 1);
}

#[tokio::test]
async fn a_stale_owner_is_refused_by_name() {
    let shelf = shelf(memory());
    let shard = Shard::new().with(&[("a", b"1")]);
    shard.save(&shelf, &owner(9)).await.unwrap();
    let error = shard.save(&shelf, &owner(8)).await.unwrap_err();
    assert!(
        matches!(
            error,
            CreateError::Stale {
                newest: 9,
                ours: 8,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert!(error.to_string().contains("node-9"), "{error}");
    assert_eq!(shelf.numbers().await.unwrap(), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_owners_that_race_each_number_goes_to_exactly_one() {
    let folder = tempfile::tempdir().unwrap();
    let local = Bucket::open(folder.path().to_str().unwrap()).unwrap();
    for (round, store) in [Bucket::in_memory(), local].into_iter().enumerate() {
        let store = Arc::new(store);
        let shelf = shelf(store);
        // One epoch for all: neither is stale, so only the number decides.
        let saves = (0..6).map(|n| {
            let (shelf, handle) = (shelf.clone(), tokio::runtime::Handle::current());
            tokio::task::spawn_blocking(move || {
                let shard = Shard::new().with(&[("a", format!("owner {n}").as_bytes())]);
                let owner = Owner {
                    node: format!("racer-{n}"),
                    epoch: Offset(4),
                };
                let mut won = Vec::new();
                while won.len() < 3 {
                    match handle.block_on(shard.save(&shelf, &owner)) {
                        Ok(created) => won.push((created.number, owner.node.clone())),
                        Err(error @ CreateError::Lost { .. }) => {
                            assert_eq!(error.kind(), ErrorKind::Retry);
                        }
                        Err(error) => panic!("round {round}: {error}"),
                    }
                }
                won
            })
        });
        let mut won: Vec<_> = futures::future::join_all(saves)
            .await
            .into_iter()
            .flat_map(Result::unwrap)
            .collect();
        won.sort();
        let numbers: Vec<u64> = won.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (1..=18).collect::<Vec<_>>(), "round {round}");
        for (number, node) in won {
            let manifest = shelf.find(Some(number)).await.unwrap();
            assert_eq!(manifest.owner.node, node);
            assert_eq!(shelf.verify(Some(number)).await.unwrap().faults, []);
        }
    }
}

#[tokio::test]
async fn a_number_whose_answer_was_lost_is_ours_all_the_same() {
    let store = Faulty::over(memory());
    let shelf = shelf(store.clone());
    let shard = Shard::new().with(&[("a", b"1")]);
    store.plan(Plan::AnswerLost("create"));
    assert_eq!(shard.save(&shelf, &owner(1)).await.unwrap().number, 1);
    assert_eq!(shelf.numbers().await.unwrap(), [1]);
}

#[tokio::test]
async fn a_store_that_does_not_answer_now_is_asked_again() {
    let store = Faulty::over(memory());
    let shelf = shelf(store.clone());
    let shard = Shard::new().with(&[("a", &[5; 3000])]);
    for doing in ["list", "upload", "create"] {
        store.plan(Plan::Unreachable(doing, 2));
        shard.save(&shelf, &owner(1)).await.unwrap();
    }
    store.plan(Plan::BreaksOff(2));
    let target = tempfile::tempdir().unwrap();
    shelf.restore(None, &target.path().join("x")).await.unwrap();
    store.plan(Plan::Unreachable("list", 3));
    let error = shard.save(&shelf, &owner(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Retry, "{error}");
}

#[tokio::test]
async fn a_kill_between_uploads_leaves_a_store_that_verifies_and_is_completed() {
    let store = Faulty::over(memory());
    let shelf = shelf(store.clone());
    let mut shard = Shard::new().with(&[("a", b"1")]);
    shard.save(&shelf, &owner(1)).await.unwrap();
    for n in 0..5 {
        shard.write(&format!("segments/{n}"), &[n; 50]);
    }
    for (doing, done) in [("upload", 0), ("upload", 3), ("create", 0)] {
        store.plan(Plan::KilledAfter(doing, done));
        shard.save(&shelf, &owner(1)).await.unwrap_err();
        store.plan(Plan::Unreachable("nothing", 0));
        let report = shelf.verify(None).await.unwrap();
        assert_eq!((report.number, report.faults), (1, vec![]));
        assert_eq!(shelf.numbers().await.unwrap(), [1]);
    }
    store.calls("upload");
    shard.names = Names::default();
    let created = shard.save(&shelf, &owner(1)).await.unwrap();
    assert_eq!((created.number, created.files), (2, 6));
    // What was sent before the kill is young, so it is used.
    assert_eq!(created.sent_files, 0);
    assert_eq!(shelf.verify(None).await.unwrap().faults, []);
}

/// The one object of a store that holds these bytes.
fn object_of(folder: &Path, content: &[u8]) -> std::path::PathBuf {
    let all = tree(folder).into_iter();
    let mut of = all.filter(|(name, bytes)| name.contains("/objects/") && bytes == content);
    folder.join(of.next().unwrap().0)
}

#[tokio::test]
async fn damage_is_named_by_verify_and_restore_leaves_nothing_behind() {
    let at = tempfile::tempdir().unwrap();
    let store = Bucket::open(at.path().to_str().unwrap()).unwrap();
    let shelf = shelf(Arc::new(store));
    let shard = Shard::new().with(&[("s/good", b"good"), ("s/bad", b"content"), ("s/gone", b"!")]);
    shard.save(&shelf, &owner(1)).await.unwrap();
    let bad = object_of(at.path(), b"content");
    let name = bad.file_name().unwrap().to_str().unwrap().to_owned();
    let target = tempfile::tempdir().unwrap();
    for damaged in [b"cOntent".as_slice(), b"conten", b"content!", b""] {
        fs::write(&bad, damaged).unwrap();
        let report = shelf.verify(None).await.unwrap();
        let named: Vec<_> = report
            .faults
            .iter()
            .map(|one| one.path.as_deref())
            .collect();
        assert_eq!(named, [Some("s/bad")]);
        assert!(report.faults[0].object.ends_with(&name), "{report:?}");
        let error = shelf
            .restore(None, &target.path().join("x"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let text = error.to_string();
        assert!(text.contains(&name) && text.contains("s/bad"), "{text}");
        assert_eq!(fs::read_dir(target.path()).unwrap().count(), 0);
    }
    fs::remove_file(object_of(at.path(), b"!")).unwrap();
    let report = shelf.verify(None).await.unwrap();
    assert_eq!(report.faults.len(), 2);
    assert!(
        report
            .faults
            .iter()
            .any(|one| one.detail == "it is not there")
    );
}

#[tokio::test]
async fn a_snapshot_heals_an_object_that_is_missing_or_of_another_length() {
    let at = tempfile::tempdir().unwrap();
    let shelf = shelf(Arc::new(Bucket::open(at.path().to_str().unwrap()).unwrap()));
    let shard = Shard::new().with(&[("a", b"content"), ("b", b"other")]);
    shard.save(&shelf, &owner(1)).await.unwrap();
    fs::write(object_of(at.path(), b"content"), b"cont").unwrap();
    fs::remove_file(object_of(at.path(), b"other")).unwrap();
    assert_eq!(shard.save(&shelf, &owner(1)).await.unwrap().sent_files, 2);
    assert_eq!(shelf.verify(Some(1)).await.unwrap().faults, []);
}

#[tokio::test]
async fn a_damaged_manifest_is_named_and_stops_no_later_snapshot() {
    let at = tempfile::tempdir().unwrap();
    let shelf = shelf(Arc::new(Bucket::open(at.path().to_str().unwrap()).unwrap()));
    let shard = Shard::new().with(&[("a", b"content")]);
    shard.save(&shelf, &owner(5)).await.unwrap();
    shard.save(&shelf, &owner(5)).await.unwrap();
    let path = at
        .path()
        .join("docs/7/0/manifests/00000000000000000002.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"points\":2", "\"points\":3")).unwrap();
    let report = shelf.verify(None).await.unwrap();
    assert_eq!((report.number, report.faults.len()), (2, 1));
    assert!(
        report.faults[0]
            .object
            .ends_with("00000000000000000002.json")
    );
    let error = shelf.find(None).await.unwrap_err();
    assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
    // The one before it still fences.
    shard.save(&shelf, &owner(4)).await.unwrap_err();
    assert_eq!(shard.save(&shelf, &owner(5)).await.unwrap().number, 3);
}

#[tokio::test]
async fn a_local_file_that_is_not_what_the_checkpoint_says_is_not_saved() {
    let shelf = shelf(memory());
    let shard = Shard::new().with(&[("a", b"content")]);
    fs::write(shard.folder.path().join("a"), b"cOntent").unwrap();
    let error = shard.save(&shelf, &owner(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("`a`"), "{error}");
    assert_eq!(shelf.numbers().await.unwrap(), Vec::<u64>::new());
}

#[tokio::test]
async fn pruning_keeps_what_is_named_and_what_is_young() {
    let store = memory();
    let now = System::default().now_ms();
    let clock = Manual::at(now);
    let shelf = shelf_at(store.clone(), clock.clone());
    let mut shard = Shard::new().with(&[("common", b"common"), ("old", b"old")]);
    shard.save(&shelf, &owner(1)).await.unwrap();
    shard.content.files.pop();
    shard.write("new", b"new");
    shard.save(&shelf, &owner(1)).await.unwrap();
    let two = NonZeroUsize::new(2).unwrap();
    assert_eq!(shelf.prune(two).await.unwrap().snapshots, 0);
    let pruned = shelf.prune(NonZeroUsize::MIN).await.unwrap();
    // The old file is named by nobody now, but it is young.
    assert_eq!((pruned.snapshots, pruned.objects), (1, 0));
    clock.advance(2 * HOUR);
    let pruned = shelf.prune(NonZeroUsize::MIN).await.unwrap();
    assert_eq!((pruned.snapshots, pruned.objects, pruned.bytes), (0, 1, 3));
    assert_eq!(shelf.verify(Some(2)).await.unwrap().faults, []);
    assert_eq!(shelf.numbers().await.unwrap(), [2]);
}

#[tokio::test]
async fn a_prune_that_is_killed_leaves_no_snapshot_without_its_objects() {
    let clock = Manual::at(System::default().now_ms());
    let store = Faulty::over(memory());
    let shelf = shelf_at(store.clone(), clock.clone());
    for n in 0..4u8 {
        let shard = Shard::new().with(&[("a", &[n; 9]), ("b", &[n; 8])]);
        shard.save(&shelf, &owner(1)).await.unwrap();
    }
    clock.advance(2 * HOUR);
    let one = NonZeroUsize::MIN;
    for done in 0..9 {
        store.plan(Plan::KilledAfter("delete", done));
        let outcome = shelf.prune(one).await;
        store.plan(Plan::Unreachable("nothing", 0));
        for number in shelf.numbers().await.unwrap() {
            assert_eq!(shelf.verify(Some(number)).await.unwrap().faults, []);
        }
        if outcome.is_ok() {
            break;
        }
    }
    shelf.prune(one).await.unwrap();
    let objects = store.list(&place().objects()).await.unwrap();
    assert_eq!(
        (shelf.numbers().await.unwrap(), objects.len()),
        (vec![4], 2)
    );
}

#[tokio::test]
async fn an_old_object_that_nobody_names_is_sent_again_rather_than_trusted() {
    let clock = Manual::at(System::default().now_ms());
    let store = Faulty::over(memory());
    let shelf = shelf_at(store.clone(), clock.clone());
    let shard = Shard::new().with(&[("a", b"again")]);
    shard.save(&shelf, &owner(1)).await.unwrap();
    let between = Shard::new().with(&[("b", b"other")]);
    between.save(&shelf, &owner(1)).await.unwrap();
    clock.advance(2 * HOUR);
    // A prune may be about to remove it: number 1 is old.
    assert_eq!(shard.save(&shelf, &owner(1)).await.unwrap().sent_files, 1);
    // And what the newest names is not sent, however old.
    clock.advance(2 * HOUR);
    assert_eq!(shard.save(&shelf, &owner(1)).await.unwrap().sent_files, 0);
}

#[tokio::test]
async fn whoever_was_held_up_until_a_later_owner_had_pruned_learns_it() {
    let store = Faulty::over(memory());
    let shelf = shelf(store.clone());
    let shard = Shard::new().with(&[("a", b"1")]);
    shard.save(&shelf, &owner(1)).await.unwrap();
    // What an owner does that is held up between looking and taking number 2.
    let held_up = super::manifest::Manifest::new(2, &place(), &owner(1), &shard.content, {
        shelf
            .find(None)
            .await
            .unwrap()
            .files
            .into_iter()
            .map(|one| one.object)
            .collect()
    });
    for epoch in [2, 3] {
        shard.save(&shelf, &owner(epoch)).await.unwrap();
    }
    shelf.prune(NonZeroUsize::MIN).await.unwrap();
    assert_eq!(shelf.numbers().await.unwrap(), [3]);
    let error = shelf.take_number(&owner(1), &held_up).await.unwrap_err();
    assert!(
        matches!(error, CreateError::Stale { newest: 3, .. }),
        "{error}"
    );
    assert_eq!(shelf.numbers().await.unwrap(), [3]);
}

#[tokio::test]
async fn a_number_that_is_not_there_is_named() {
    let shelf = shelf(memory());
    let error = shelf.find(None).await.unwrap_err();
    assert!(error.to_string().contains("docs/0"), "{error}");
    let error = shelf.verify(Some(4)).await.unwrap_err();
    assert!(error.to_string().contains("snapshot 4"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Caller);
}

#[tokio::test]
async fn stores_in_memory_and_in_a_folder_are_stores() {
    let folder = tempfile::tempdir().unwrap();
    let local = Bucket::open(folder.path().to_str().unwrap()).unwrap();
    for store in [Bucket::in_memory(), local] {
        let store: Arc<dyn Store> = Arc::new(store.with_part_bytes(64 * 1024));
        let scratch = tempfile::tempfile().unwrap();
        super::conformance::all(&store, "check", &scratch, 1_000_000).await;
        let faulty: Arc<dyn Store> = Faulty::over(store);
        super::conformance::all(&faulty, "faulty", &scratch, 1000).await;
    }
}
