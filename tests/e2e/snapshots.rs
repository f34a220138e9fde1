//! Snapshots in a store, by commands alone: no Kafka and no indexer is there.

use std::{fs, path::Path, sync::Arc};

use serde_json::Value;
use shoal_indexer::snapshot::{
    Content, Folder, Names, Owner, Settings, ShardPlace, Shelf, SnapshotFile, SourceNext,
    bucket::Bucket,
};
use shoal_runtime::clock::System;
use shoal_schemas::{Offset, Partition, Source, digest::Digest};

use crate::harness::{child, folder, wait};

/// Saves a shard of one file, as an indexer would.
fn save(store: &Path, incarnation: u64, shard: u32, text: &str) {
    let bucket = Bucket::open(store.to_str().unwrap()).unwrap();
    let place = ShardPlace {
        collection: "docs".parse().unwrap(),
        incarnation: Offset(incarnation),
        shard: Partition(shard),
    };
    let shelf = Shelf::new(
        Arc::new(bucket),
        place,
        System::shared(),
        Settings::default(),
    );
    let files = folder::fresh(&format!("saved-{shard}"));
    fs::create_dir_all(files.join("segments/000001")).unwrap();
    fs::write(files.join("segments/000001/rows"), text).unwrap();
    let content = Content {
        manifest_path: "checkpoint/manifest-1.json".into(),
        manifest: b"manifest".to_vec(),
        files: vec![SnapshotFile {
            path: "segments/000001/rows".into(),
            bytes: u64::try_from(text.len()).unwrap(),
            crc32: crc32fast::hash(text.as_bytes()),
        }],
        digest: Digest::from_bytes([0xab; 16]),
        checkpoint: vec![SourceNext {
            source: Source {
                cluster: "c".into(),
                topic: "embeddings.docs".into(),
                partition: Partition(shard),
            },
            next: Offset(40),
            topic_id: None,
        }],
        taken_ms: 1_700_000_000_000,
        points: 12,
    };
    let owner = Owner {
        node: "saver".into(),
        epoch: Offset(3),
    };
    wait(shelf.create(&owner, &content, &Folder(files), &Names::default())).unwrap();
}

#[test]
fn a_store_is_listed_verified_and_restored_without_anything_else() {
    let store = folder::fresh("snapshot-store");
    save(&store, 7, 0, "of an earlier collection of that name");
    save(&store, 9, 0, "first");
    save(&store, 9, 0, "second");
    save(&store, 9, 1, "other shard");
    let url = store.to_str().unwrap();
    let settings = [("SHOAL_INDEXER__SNAPSHOT__URL".to_owned(), url.to_owned())];
    let list = child::succeed(&["snapshot", "list", "docs", "--json"], &settings);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["incarnation"], 9);
    let found = list["snapshots"].as_array().unwrap();
    let numbers: Vec<_> = found
        .iter()
        .map(|one| {
            (
                one["shard"].as_u64().unwrap(),
                one["number"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(numbers, [(0, 1), (0, 2), (1, 1)]);
    assert_eq!(found[0]["digest"], "ab".repeat(16));
    let table = child::succeed(&["snapshot", "list", "docs", "--shard", "1"], &settings);
    assert!(
        table.contains("2023-11-14T22:13:20Z") && table.contains("c/embeddings.docs/1=40"),
        "{table}"
    );

    let to = folder::fresh("restored-by-hand");
    let restore = [
        "snapshot",
        "restore",
        "docs",
        "--store",
        url,
        "--to",
        to.to_str().unwrap(),
    ];
    child::succeed(&restore, &[]);
    let read = |path: &str| fs::read_to_string(to.join(path)).unwrap();
    assert_eq!(read("0/segments/000001/rows"), "second");
    assert_eq!(read("1/segments/000001/rows"), "other shard");
    assert_eq!(read("0/checkpoint/manifest-1.json"), "manifest");
    let (status, _, told) = child::run(&restore, &[]);
    assert!(
        !status.success() && told.contains("is there already"),
        "{told}"
    );
    let older = folder::fresh("older");
    let number = [
        &restore[..6],
        &[older.to_str().unwrap()][..],
        &["--shard", "0", "--number", "1"],
    ];
    child::succeed(&number.concat(), &[]);
    assert_eq!(
        fs::read_to_string(older.join("0/segments/000001/rows")).unwrap(),
        "first"
    );

    let verify = ["snapshot", "verify", "docs", "--store", url];
    assert!(child::succeed(&verify, &[]).contains("whole"));
    let objects = store.join("docs/9/1/objects");
    let object = fs::read_dir(&objects)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::write(&object, "other SHARD").unwrap();
    let (status, out, told) = child::run(&verify, &[]);
    assert!(!status.success() && out.contains("1 DAMAGED"), "{out}");
    let name = object.file_name().unwrap().to_str().unwrap();
    assert!(
        told.contains(name) && told.contains("segments/000001/rows"),
        "{told}"
    );
}

#[test]
fn a_store_that_is_none_is_named_with_what_to_do() {
    let (status, _, told) = child::run(&["snapshot", "list", "docs"], &[]);
    assert_eq!(status.code(), Some(2), "{told}");
    assert!(told.contains("--store"), "{told}");
    let (status, _, told) = child::run(&["snapshot", "list", "docs", "--store", "ftp://x"], &[]);
    assert_eq!(status.code(), Some(2), "{told}");
    assert!(told.contains("`ftp://x` names no object store"), "{told}");
    let settings = [(
        "SHOAL_INDEXER__SNAPSHOT__EVERY".to_owned(),
        "5min".to_owned(),
    )];
    let (status, _, told) = child::run(&["config", "--check"], &settings);
    assert_eq!(status.code(), Some(2), "{told}");
    assert!(told.contains("indexer.snapshot.every"), "{told}");
}
