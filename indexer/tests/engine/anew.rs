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
fn a_topic_made_anew_beside_a_shard_that_goes_on_is_noticed_when_topics_are_compared() {
    let world = World::new();
    let live = world.open();
    for seed in 0..5 {
        world.upsert(&format!("old-{seed}"), seed);
    }
    world.caught_up(&live);
    let compare = |live: &Live| {
        let told = world.cluster.admin.topic_ids(&[TOPIC], DEADLINE);
        let id: Option<TopicId> = told.unwrap().remove(0);
        live.shared.compare_topics(|name| {
            assert_eq!(name, TOPIC);
            id.clone()
        });
    };
    // The same topic, and one that is away, are no reason.
    compare(&live);
    live.shared.compare_topics(|_| None);
    world.upsert("old-5", 5);
    world.caught_up(&live);
    assert_eq!(live.nearest(5, 1), ["old-5"]);
    make_anew(&world);
    for seed in 0..9 {
        world.upsert(&format!("new-{seed}"), seed);
    }
    compare(&live);
    is_rebuilt(&world, live, 1);
}
