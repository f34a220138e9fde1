//! A shard's engine over a log in memory: what is served follows the log, through restarts,
//! seals, compactions and damage, and a search never sees half a change.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::as_conversions,
    reason = "small numbers made by the test itself"
)]
#![allow(missing_docs, reason = "a test")]

mod anew;
mod asks;
mod away;
mod behind;
mod copies;
mod damage;
mod expiry;
mod filtered;
mod flat;
mod matrix;
mod mended;
mod pooled;
mod precision;
mod resolve;
mod ridden;
mod rides;
mod together;
mod tokens;
mod world;

use std::{
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use bytes::Bytes;
use shoal_indexer::{
    find::SearchError,
    shard::search::{Ask, ReadError},
};
use shoal_runtime::eventually;
use shoal_schemas::{
    ClusterId, Metric, Offset, Partition, PointId, Record, Token, Version, headers,
};
use shoal_topic::TopicPartition;

use world::{DEADLINE, Live, TOPIC, World, assert_coded, churn, vector};

#[test]
fn updates_replace_and_tombstones_remove() {
    let world = World::new();
    let live = world.open();
    world.upsert("a", 1);
    world.upsert("b", 2);
    world.caught_up(&live);
    assert_eq!(live.nearest(1, 1), ["a"]);
    world.upsert("a", 3);
    world.caught_up(&live);
    assert_eq!(live.nearest(3, 1), ["a"]);
    assert_eq!(live.nearest(1, 5).len(), 2);
    world.delete("a");
    let progress = world.caught_up(&live);
    assert_eq!(live.nearest(3, 5), ["b"]);
    assert_eq!(progress.points, 1);
    live.close();
}

#[test]
fn a_scan_ends_when_nobody_waits_for_it() {
    let world = World::new();
    let live = world.open();
    for id in 0..400 {
        world.upsert(&format!("id-{id}"), id);
    }
    world.caught_up(&live);
    let ask = Ask {
        exact: true,
        ..Ask::nearest(vector(3), 1)
    };
    let looks = Cell::new(0);
    let stops_at = |most| {
        looks.set(0);
        live.shared.answer(&ask, &|| {
            looks.set(looks.get() + 1);
            looks.get() > most
        })
    };
    let hits = stops_at(usize::MAX).unwrap();
    assert_eq!(hits.hits.first().unwrap().id, "id-3");
    let looks_of_a_whole_scan = looks.get();
    assert!(
        looks_of_a_whole_scan >= 400 / 100,
        "{looks_of_a_whole_scan}"
    );
    for most in 0..looks_of_a_whole_scan {
        let stopped = stops_at(most);
        assert!(
            matches!(stopped, Err(ReadError::Search(SearchError::Stopped))),
            "{stopped:?}"
        );
        assert_eq!(looks.get(), most + 1, "it goes on for no longer");
    }
    live.close();
}

#[test]
fn a_restarted_shard_and_a_rebuilt_one_equal_the_live_one() {
    let world = World::new();
    let live = world.open();
    churn(&world, 300, 8);
    let before = world.caught_up(&live);
    let found = live.nearest(7 * 300 + 11, 20);
    live.close();
    let again = world.open();
    let after = world.caught_up(&again);
    assert_eq!(before, after);
    assert_eq!(again.nearest(7 * 300 + 11, 20), found);
    // Only what came after the last checkpoint is in the memtable or replayed.
    churn(&world, 300, 1);
    let later = world.caught_up(&again);
    world.log.compact(TOPIC);
    let rebuilt = world.open_in(&world.folder.path().join("rebuilt"));
    let fresh = world.caught_up(&rebuilt);
    assert_eq!((later.digest, later.points), (fresh.digest, fresh.points));
    again.close();
    rebuilt.close();
}

#[test]
fn endless_updates_are_compacted_and_lose_no_point() {
    let world = World::new();
    let live = world.open();
    churn(&world, 200, 40);
    let progress = world.caught_up(&live);
    let rows = eventually(DEADLINE, "dead rows are compacted away", || {
        let (view, _) = live.shared.moment();
        let rows: u32 = view.segments.iter().map(|segment| segment.len()).sum();
        (rows < 200 * 6).then_some(rows)
    });
    assert!(u64::from(rows) >= progress.points);
    assert_coded(&live);
    let last = |id: u64| {
        (0..40)
            .rev()
            .find(|turn| !(id + turn).is_multiple_of(7))
            .unwrap()
    };
    for id in 0..200 {
        let turn = last(id);
        let is_live = turn == 39;
        let name = format!("id-{id}");
        let found = live.nearest(turn * 200 + id, 1);
        assert_eq!(found.first() == Some(&name), is_live, "{name}");
        let stored = live
            .shared
            .points(std::slice::from_ref(&name), true)
            .unwrap();
        assert_eq!(stored.len(), usize::from(is_live));
        if let Some(point) = stored.first().and_then(|one| one.point.as_ref()) {
            assert_eq!(point.vector, vector(turn * 200 + id));
        }
    }
    live.close();
}

#[test]
fn a_search_during_updates_sees_every_id_exactly_once() {
    let world = World::new();
    let live = world.open();
    for id in 0..50 {
        world.upsert(&format!("id-{id}"), id);
    }
    world.caught_up(&live);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 1..120 {
                for id in 0..50 {
                    world.upsert(&format!("id-{id}"), turn * 50 + id);
                }
            }
            world.caught_up(&live);
            done.store(true, Ordering::Release);
        });
        let mut searches = 0u32;
        while !done.load(Ordering::Acquire) {
            let mut found = live.nearest(u64::from(searches), 60);
            found.sort();
            found.dedup();
            assert_eq!(found.len(), 50, "search {searches} missed or doubled an id");
            searches += 1;
        }
        assert!(searches > 10);
    });
    live.close();
}

#[test]
fn refused_records_are_contested_until_a_good_one_comes() {
    let world = World::new();
    let live = world.open();
    world.upsert("a", 1);
    world.upsert("b", 2);
    let bad = Record {
        value: Some(Bytes::from_static(b"\xc3\x01 not avro")),
        ..world.record("a", 1)
    };
    world.send(&bad);
    let contested = world.caught_up(&live);
    assert_eq!((contested.contested, contested.points), (1, 2));
    assert_eq!(
        live.nearest(1, 1),
        ["a"],
        "what was served goes on being served"
    );
    world.log.compact(TOPIC);
    let rebuilt = world.open_in(&world.folder.path().join("rebuilt"));
    let fresh = world.caught_up(&rebuilt);
    assert_eq!((fresh.contested, fresh.points), (1, 1));
    assert_eq!(fresh.digest, contested.digest);
    world.upsert("a", 5);
    let (settled, again) = (world.caught_up(&live), world.caught_up(&rebuilt));
    assert_eq!((settled.contested, settled.points), (0, 2));
    assert_eq!(settled.digest, again.digest);
    live.close();
    rebuilt.close();
}

#[test]
fn within_a_partition_the_later_offset_wins_whatever_its_version() {
    let world = World::new();
    let live = world.open();
    let versioned = |seed, version: u64| {
        let mut record = world.record("a", seed);
        let raw = Version::from_parts(version, 0).raw();
        let value = Bytes::from(raw.to_string());
        record.headers.push((headers::VERSION.to_owned(), value));
        record
    };
    world.send(&versioned(1, 900));
    world.send(&versioned(2, 100));
    let progress = world.caught_up(&live);
    assert_eq!(live.nearest(2, 1), ["a"]);
    world.log.compact(TOPIC);
    let rebuilt = world.open_in(&world.folder.path().join("rebuilt"));
    assert_eq!(world.caught_up(&rebuilt).digest, progress.digest);
    live.close();
    rebuilt.close();
}

fn files_below(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_below(&path, suffix));
        } else if path.to_string_lossy().ends_with(suffix) {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_lost_catalog_or_a_damaged_graph_costs_time_and_no_point() {
    // Nothing is sealed, so the log is whole.
    let mut world = World::new();
    world.engine.seal_rows = 1 << 20;
    world.engine.compact_dead_rows = 1 << 20;
    let folder = world.folder.path().join("live");
    let live = world.open();
    churn(&world, 250, 6);
    let before = world.caught_up(&live);
    live.close();
    let found = |live: &Live| live.nearest(5 * 250 + 3, 10);
    // The catalog is derived.
    fs::remove_dir_all(folder.join("catalog")).unwrap();
    let live = world.open();
    assert_eq!(world.caught_up(&live), before);
    let expected = found(&live);
    churn(&world, 250, 1);
    let before = world.caught_up(&live);
    live.close();
    // So is the checkpoint, and its graphs carry checksums.
    let files = files_below(&folder.join("growing"), ".bin");
    let is_graph = |path: &&PathBuf| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().starts_with("graph-")
    };
    let graphs: Vec<&PathBuf> = files.iter().filter(is_graph).collect();
    assert!(!graphs.is_empty());
    for graph in graphs {
        bend(graph);
    }
    let live = world.open();
    assert_eq!(world.caught_up(&live), before);
    assert_eq!(expected.len(), 10);
    let stored = live.shared.points(&["id-1".to_owned()], false).unwrap();
    assert_eq!(stored.len(), 1);
    live.close();
}

/// Turns one bit in the middle of a file.
fn bend(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    *bytes.get_mut(middle).unwrap() ^= 0x40;
    fs::write(file, bytes).unwrap();
}

/// Waits until a segment is sealed, in memory and in a checkpoint, and the own log cut.
fn sealed(live: &Live, folder: &Path) {
    eventually(DEADLINE, "segments are sealed and the log is cut", || {
        let (view, _) = live.shared.moment();
        let (_, others) = view.segments.split_last().unwrap();
        let all_sealed = others.iter().all(|one| one.as_sealed().is_some());
        let cut = !folder.join("wal").join(format!("{:020}.wal", 0)).exists();
        (!others.is_empty() && all_sealed && cut).then_some(())
    });
}

#[test]
fn sealed_segments_answer_as_the_growing_ones_did_and_free_the_log() {
    let world = World::new();
    let folder = world.folder.path().join("live");
    let live = world.open();
    for id in 0..1500 {
        world.upsert(&format!("id-{id}"), id);
    }
    for id in 0..100 {
        world.delete(&format!("id-{id}"));
    }
    let before = world.caught_up(&live);
    sealed(&live, &folder);
    let check = |live: &Live| {
        for id in (0..1500).step_by(50) {
            let name = format!("id-{id}");
            let found = live.nearest(id, 1);
            assert_eq!(found.first() == Some(&name), id >= 100, "{name}");
            let stored = live
                .shared
                .points(std::slice::from_ref(&name), true)
                .unwrap();
            let stored = stored.into_iter().next().and_then(|one| one.point);
            assert_eq!(stored.is_some(), id >= 100, "{name}");
            if let Some(point) = stored {
                assert_eq!(point.vector, vector(id), "{name} to the last bit");
            }
        }
    };
    check(&live);
    live.close();
    // The log's head is gone, and so is the catalog: deletes are known all the same.
    fs::remove_dir_all(folder.join("catalog")).unwrap();
    let live = world.open();
    assert_eq!(world.caught_up(&live), before);
    check(&live);
    for (seed, id) in [(9000, "id-3"), (9001, "id-700")] {
        world.upsert(id, seed);
    }
    world.caught_up(&live);
    assert_eq!(live.nearest(9000, 1), ["id-3"]);
    assert_eq!(live.nearest(9001, 1), ["id-700"]);
    assert_ne!(live.nearest(700, 1), ["id-700"]);
    let rebuilt = world.open_in(&world.folder.path().join("rebuilt"));
    assert_eq!(world.caught_up(&rebuilt), world.caught_up(&live));
    live.close();
    rebuilt.close();
}

#[test]
fn a_moment_that_is_copied_opens_elsewhere_and_goes_on_from_there() {
    let world = World::new();
    let live = world.open();
    for id in 0..900 {
        world.upsert(&format!("id-{id}"), id);
    }
    for id in 0..60 {
        world.delete(&format!("id-{id}"));
    }
    world.send(&Record {
        value: Some(Bytes::from_static(b"no point")),
        ..world.record("id-70", 1)
    });
    let then = world.caught_up(&live);
    assert_eq!(then.contested, 1);
    let copy = world.folder.path().join("copy");
    std::thread::scope(|scope| {
        // Ingest goes on while the moment is held.
        let saved = scope.spawn(|| live.shared.save().unwrap());
        for id in 900..1800 {
            world.upsert(&format!("id-{id}"), id);
        }
        let saved = saved.join().unwrap();
        let content = &saved.content;
        for file in &content.files {
            let to = copy.join(&file.path);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            let mut from = saved.open_file(&file.path).unwrap();
            let copied = std::io::copy(&mut from, &mut fs::File::create(&to).unwrap());
            assert_eq!(copied.unwrap(), file.bytes, "{}", file.path);
        }
        let manifest = copy.join(&content.manifest_path);
        fs::create_dir_all(manifest.parent().unwrap()).unwrap();
        fs::write(manifest, &content.manifest).unwrap();
        assert!(content.checkpoint[0].next >= then.next[0]);
    });
    world.upsert("id-100", 5000);
    world.delete("id-101");
    let now = world.caught_up(&live);
    let other = world.open_in(&copy);
    assert_eq!(world.caught_up(&other), now);
    assert!(!copy.with_extension("aside-0").exists());
    assert_eq!(other.nearest(5000, 1), ["id-100"]);
    assert_eq!(other.nearest(1500, 1), ["id-1500"]);
    assert!(
        other
            .shared
            .points(&["id-3".to_owned()], false)
            .unwrap()
            .is_empty()
    );
    // Another one may be made, and what was made for the first is gone.
    let folder = world.folder.path().join("live");
    drop(live.shared.save().unwrap());
    assert!(!folder.join("saving").exists());
    live.close();
    other.close();
}

#[test]
fn a_damaged_segment_is_noticed_and_the_shard_rebuilt_from_its_topic() {
    let world = World::new();
    let folder = world.folder.path().join("live");
    let live = world.open();
    for id in 0..1200 {
        world.upsert(&format!("id-{id}"), id);
    }
    let before = world.caught_up(&live);
    sealed(&live, &folder);
    live.close();
    let graphs = files_below(&folder.join("segments"), "graph.bin");
    bend(graphs.first().unwrap());
    let live = world.open();
    let aside = world.folder.path().join("live.aside-0");
    eventually(DEADLINE, "the shard gives up its folder", || {
        aside.exists().then_some(())
    });
    live.close();
    let live = world.open();
    let after = world.caught_up(&live);
    assert_eq!((after.digest, after.points), (before.digest, before.points));
    assert_eq!(live.nearest(700, 1), ["id-700"]);
    live.close();
}

#[test]
fn a_token_is_waited_for_and_one_from_elsewhere_waits_for_its_key() {
    let world = World::new();
    let live = world.open();
    world.caught_up(&live);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let token = |cluster: &str, offset, version| Token {
        cluster: ClusterId::from(cluster),
        topic: TOPIC.into(),
        partition: Partition(0),
        offset,
        key: PointId::new("a").unwrap(),
        version,
        region: None,
    };
    let offset = world.upsert("a", 1);
    let written = Version::from_timestamp(1_700_000_000_000);
    for (cluster, version) in [("test-cluster", written), ("elsewhere", written)] {
        let waited = runtime.block_on(async {
            tokio::time::timeout(
                DEADLINE,
                live.shared.wait_for(&token(cluster, offset, version)),
            )
            .await
        });
        waited.unwrap().unwrap();
        assert_eq!(live.nearest(1, 1), ["a"]);
    }
    let newer = Version::from_parts(written.millis() + 1, 0);
    for token in [
        token("test-cluster", Offset(offset.0 + 1), written),
        token("elsewhere", offset, newer),
    ] {
        let waited = runtime.block_on(async {
            tokio::time::timeout(Duration::from_millis(50), live.shared.wait_for(&token)).await
        });
        assert!(
            waited.is_err(),
            "a write that is not there was not waited for"
        );
    }
    live.close();
}

#[test]
fn an_expired_point_is_hidden_and_stays_in_the_digest() {
    let world = World::new();
    let live = world.open();
    world.upsert("b", 2);
    let value = br#"{"vector":[1,2,3,4,5,6,7,8],"expires_at":1000}"#;
    world.send(&Record {
        value: Some(Bytes::from_static(value)),
        ..world.record("a", 1)
    });
    let progress = world.caught_up(&live);
    assert_eq!(progress.points, 2);
    assert_eq!(live.shared.live_points(), 1);
    assert_eq!(live.nearest(1, 5), ["b"]);
    assert!(
        live.shared
            .points(&["a".to_owned()], false)
            .unwrap()
            .is_empty()
    );
    let before = progress.digest;
    world.delete("a");
    assert_ne!(world.caught_up(&live).digest, before);
    live.close();
}

#[test]
fn a_broker_that_goes_away_is_waited_for_and_searches_go_on() {
    let world = World::new();
    let live = world.open();
    world.upsert("a", 1);
    world.caught_up(&live);
    world.log.set_down(true);
    assert_eq!(live.nearest(1, 1), ["a"]);
    world.log.set_down(false);
    world.upsert("b", 2);
    world.caught_up(&live);
    assert_eq!(live.nearest(2, 1), ["b"]);
    live.close();
}

#[test]
fn a_folder_of_another_definition_is_set_aside_and_the_shard_rebuilt() {
    let mut world = World::new();
    let live = world.open();
    world.upsert("a", 1);
    world.caught_up(&live);
    live.close();
    world.collection.metric = Metric::L2;
    let live = world.open();
    world.caught_up(&live);
    assert_eq!(live.nearest(1, 1), ["a"]);
    live.close();
    let aside = world.folder.path().join("live.aside-0");
    assert!(aside.join("wal").exists(), "nothing is thrown away");
}

#[test]
fn a_topic_cut_below_the_shard_is_noticed_and_its_folder_set_aside() {
    let world = World::new();
    let live = world.open();
    world.upsert("a", 1);
    world.caught_up(&live);
    live.close();
    for seed in 2..6 {
        world.upsert("b", seed);
    }
    let home = TopicPartition {
        topic: TOPIC.into(),
        partition: Partition(0),
    };
    world.log.trim(&home, Offset(3));
    let live = world.open();
    let folder = world.folder.path().join("live.aside-0");
    eventually(DEADLINE, "the shard gives up its folder", || {
        folder.exists().then_some(())
    });
    live.close();
    // Its node takes it again, from the beginning.
    let live = world.open();
    world.caught_up(&live);
    assert_eq!(live.nearest(5, 2), ["b"]);
    live.close();
}
