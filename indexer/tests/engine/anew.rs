//! A topic that was dropped and made anew under its name, and is as long again as the old one was.

use std::fs;

use shoal_runtime::eventually;
use shoal_schemas::TopicId;

use crate::world::{DEADLINE, Live, TOPIC, World};

/// Drops the topic and makes it again, without its records.
fn make_anew(world: &World) {
    let admin = &world.cluster.admin;
    let spec = admin.describe_topic(TOPIC).unwrap().unwrap();
    admin.delete_topic(TOPIC).unwrap();
    admin.create_topic(&spec).unwrap();
}

/// A shard that does not go on from its folder, whose node takes it again: then it is what its topic says.
#[track_caller]
fn is_rebuilt(world: &World, live: Live, asides: u32) {
    let folder = world.folder.path();
    let aside = folder.join(format!("live.aside-{}", asides - 1));
    eventually(DEADLINE, "the shard gives up its folder", || {
        aside.exists().then_some(())
    });
    live.close();
    assert!(aside.join("wal").exists(), "nothing is thrown away");
    let live = world.open();
    let found = world.caught_up(&live);
    let fresh = world.open_in(&folder.join(format!("fresh-{asides}")));
    let wanted = world.caught_up(&fresh);
    assert_eq!((found.digest, found.points), (wanted.digest, wanted.points));
    live.close();
    fresh.close();
    assert!(!folder.join(format!("live.aside-{asides}")).exists());
}

#[test]
fn a_topic_made_anew_while_the_shard_was_away_is_another_one_however_long_it_is() {
    let world = World::new();
    // Few records, of which the own log tells alone; then many, so that a checkpoint does and the log is cut.
    for (asides, records) in [(1, 5), (2, 3000)] {
        let live = world.open();
        for seed in 0..records {
            world.upsert(&format!("old-{seed}"), seed);
        }
        let before = world.caught_up(&live);
        live.close();
        if records > 1000 {
            let log = fs::read_dir(world.folder.path().join("live/wal")).unwrap();
            let segments = log.flatten().map(|entry| entry.file_name());
            let first = segments.min().unwrap();
            assert_ne!(first, "0000000000000000.wal", "the log was not cut");
        }
        make_anew(&world);
        // As long, by a record longer, with other ids.
        for seed in 0..=before.next[0].0 {
            world.upsert(&format!("new-{asides}-{seed}"), seed);
        }
        let live = world.open();
        is_rebuilt(&world, live, asides);
    }
}

#[test]
fn another_id_of_a_topic_that_is_read_counts_when_it_is_told_twice() {
    let world = World::new();
    let live = world.open();
    world.upsert("a", 1);
    world.caught_up(&live);
    let own = world.cluster.admin.topic_ids(&[TOPIC], DEADLINE);
    let own = own.unwrap().remove(0);
    let compare = |id: Option<TopicId>| {
        live.shared.compare_topics(|name| {
            assert_eq!(name, TOPIC);
            id.clone()
        });
    };
    // A broker that has not heard of it yet, or of another one still, and those that have.
    for told in [
        None,
        Some("other".into()),
        own.clone(),
        Some("other".into()),
    ] {
        compare(told);
        compare(own.clone());
    }
    world.upsert("b", 2);
    world.caught_up(&live);
    assert_eq!(live.nearest(2, 1), ["b"]);
    assert!(!world.folder.path().join("live.aside-0").exists());
    compare(Some("other".into()));
    compare(Some("other".into()));
    is_rebuilt(&world, live, 1);
}

#[test]
fn an_id_that_is_told_late_is_written_down_all_the_same() {
    let world = World::new();
    world.log.hide_topic_ids(true);
    let live = world.open();
    world.upsert("old-0", 0);
    world.caught_up(&live);
    world.log.hide_topic_ids(false);
    let told = world.cluster.admin.topic_ids(&[TOPIC], DEADLINE);
    let told = told.unwrap().remove(0);
    assert!(told.is_some());
    for _ in 0..2 {
        live.shared.compare_topics(|_| told.clone());
    }
    // The turn that takes the second one began behind it.
    for seed in 1..3 {
        world.upsert(&format!("old-{seed}"), seed);
        world.caught_up(&live);
    }
    live.close();
    make_anew(&world);
    for seed in 0..9 {
        world.upsert(&format!("new-{seed}"), seed);
    }
    let live = world.open();
    is_rebuilt(&world, live, 1);
}
