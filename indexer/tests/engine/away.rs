//! Shards that read nothing for longer than the topic keeps tombstones: they may have missed deletes, and begin anew.

use std::{sync::Arc, time::Duration};

use shoal_runtime::{clock::Manual, eventually};

use crate::world::{DEADLINE, Live, TOPIC, World};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Longer than tombstones are kept.
const LONG: Duration = Duration::from_secs(8 * 24 * 60 * 60);

fn world() -> (World, Arc<Manual>) {
    let clock = Manual::at(1_700_000_000_000);
    let mut world = World::new();
    world.clock = clock.clone();
    world.collection.delete_retention_ms = 7 * 24 * 60 * 60 * 1000;
    (world, clock)
}

/// A shard that holds `a` and `b`, and knows that this is all there is.
fn holding(world: &World) -> Live {
    let live = world.open();
    world.upsert("a", 1);
    world.upsert("b", 2);
    world.caught_up(&live);
    let lag = &live.shared.lag;
    lag.heard(0, lag.now(), world.end());
    eventually(DEADLINE, "the shard to have caught up", || {
        lag.read().was_caught_up.then_some(())
    });
    live
}

/// `a` goes, and Kafka forgets that it did.
fn delete_for_good(world: &World) {
    world.delete("a");
    world.upsert("c", 3);
    world.log.compact_tombstones(TOPIC);
}

/// The shard gives up its folder; the next one, which its node opens then, has no `a`.
#[track_caller]
fn begins_anew(world: &World, live: Live) {
    let aside = world.folder.path().join("live.aside-0");
    eventually(DEADLINE, "the shard gives up its folder", || {
        aside.exists().then_some(())
    });
    live.close();
    let live = world.open();
    assert_eq!(world.caught_up(&live).points, 2);
    assert_eq!(live.nearest(1, 3).len(), 2, "`a` was deleted");
    live.close();
}

#[test]
fn one_that_was_closed_for_too_long_begins_anew() {
    let (world, clock) = world();
    holding(&world).close();
    delete_for_good(&world);
    clock.advance(LONG);
    begins_anew(&world, world.open());
}

#[test]
fn one_that_was_closed_for_a_day_goes_on() {
    let (world, clock) = world();
    holding(&world).close();
    world.delete("a");
    world.upsert("c", 3);
    clock.advance(DAY);
    let live = world.open();
    assert_eq!(world.caught_up(&live).points, 2);
    live.close();
    assert!(!world.folder.path().join("live.aside-0").exists());
}

#[test]
fn one_that_was_opened_meanwhile_without_a_broker_still_knows_how_long_it_was_away() {
    let (world, clock) = world();
    holding(&world).close();
    delete_for_good(&world);
    clock.advance(LONG);
    world.log.set_down(true);
    world.open().close();
    world.log.set_down(false);
    begins_anew(&world, world.open());
}

#[test]
fn one_that_caught_up_in_part_meanwhile_still_knows_how_long_it_was_away() {
    let (world, clock) = world();
    holding(&world).close();
    clock.advance(5 * DAY);
    // It takes this record, but nobody tells it that there is no more.
    world.upsert("b", 4);
    let live = world.open();
    world.caught_up(&live);
    live.close();
    delete_for_good(&world);
    clock.advance(5 * DAY);
    begins_anew(&world, world.open());
}

#[test]
fn one_that_was_cut_off_for_too_long_begins_anew() {
    let (world, clock) = world();
    let live = holding(&world);
    world.log.set_down(true);
    clock.advance(LONG);
    // Written as soon as the broker is back.
    let to = world.home();
    let deleted = world.cluster.writer.send(&to, &world.tombstone("a"));
    let written = world.cluster.writer.send(&to, &world.record("c", 3));
    world.log.set_down(false);
    drop((deleted.unwrap(), written.unwrap()));
    begins_anew(&world, live);
}

#[test]
fn one_that_is_behind_for_long_but_reads_on_goes_on() {
    let (world, clock) = world();
    let live = holding(&world);
    // Nobody tells it that it holds everything, which a topic that grows faster than it reads comes to.
    for seed in 0..20 {
        clock.advance(DAY);
        world.upsert(&format!("id-{seed}"), seed);
        world.caught_up(&live);
    }
    live.close();
    assert!(!world.folder.path().join("live.aside-0").exists());
}

#[test]
fn one_whose_topic_rests_for_longer_than_it_keeps_tombstones_goes_on() {
    let (mut world, clock) = world();
    world.collection.delete_retention_ms = 1;
    let live = holding(&world);
    let lag = &live.shared.lag;
    for seed in 0..5 {
        clock.advance(Duration::from_secs(300));
        // As its node tells it every second.
        lag.heard(0, lag.now(), world.end());
        world.upsert("b", seed);
        world.caught_up(&live);
    }
    live.close();
    assert!(!world.folder.path().join("live.aside-0").exists());
}

#[test]
fn one_that_was_opened_long_before_it_could_read_counts_from_when_it_did() {
    let (world, clock) = world();
    world.log.set_down(true);
    world.open().close();
    clock.advance(LONG);
    world.log.set_down(false);
    world.upsert("a", 1);
    let live = world.open();
    world.caught_up(&live);
    live.close();
    clock.advance(DAY);
    world.upsert("b", 2);
    let live = world.open();
    assert_eq!(world.caught_up(&live).points, 2);
    live.close();
    assert!(!world.folder.path().join("live.aside-0").exists());
}
