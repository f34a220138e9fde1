//! A shard that is far behind gives way until it has caught up, and one that is not does not.

use std::fs;

use shoal_runtime::eventually;

use crate::world::{DEADLINE, Live, World};

/// Steps of a shard that is far behind.
const CATCHING_UP: i32 = 15;
/// Steps of a builder at any other time.
const BUILDING: i32 = 5;
const LEAST: i32 = 19;

/// The names of this process's threads, as the system keeps them, each with its priority.
fn threads() -> Vec<(String, i32)> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let told = tasks.filter_map(|task| {
        // One that has ended meanwhile has none.
        let stat = fs::read_to_string(task.unwrap().path().join("stat")).ok()?;
        let (head, tail) = stat.rsplit_once(") ").unwrap();
        let (_, name) = head.split_once('(').unwrap();
        // The 19th of all, and the third is the first behind the name.
        let nice = tail.split_whitespace().nth(16).unwrap();
        Some((name.to_owned(), nice.parse().unwrap()))
    });
    told.collect()
}

fn priorities(name: &str) -> Vec<i32> {
    let all = threads().into_iter();
    let of_name = all.filter(|(found, _)| found == name);
    of_name.map(|(_, nice)| nice).collect()
}

/// A priority lower by so many steps than what this process began with.
fn lower(steps: i32) -> i32 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, tail) = stat.rsplit_once(") ").unwrap();
    let own: i32 = tail.split_whitespace().nth(16).unwrap().parse().unwrap();
    (own + steps).min(LEAST)
}

/// A world whose shard has a name of its own among the threads of all tests.
fn named(name: &str) -> World {
    let mut world = World::new();
    world.collection.reads = Some(world.collection.name.clone());
    world.collection.name = name.parse().unwrap();
    world
}

/// Tells the shard the topic's end, as a node does all the time.
fn tell_end(world: &World, live: &Live) {
    let lag = &live.shared.lag;
    lag.heard(0, lag.now(), world.end());
}

#[test]
fn a_shard_far_behind_gives_way_until_it_has_caught_up() {
    let world = named("far");
    for id in 0..1500 {
        world.upsert(&format!("id-{id}"), id);
    }
    let live = world.open();
    // It may have applied all of it: nobody has told it yet that there is no more.
    eventually(DEADLINE, "its two threads to give way", || {
        let found = priorities("catch-up far/0");
        (found == [lower(CATCHING_UP); 2]).then_some(())
    });
    world.caught_up(&live);
    assert_eq!(priorities("catch-up far/0").len(), 2);
    assert_eq!(live.nearest(1234, 1), ["id-1234"]);

    tell_end(&world, &live);
    eventually(DEADLINE, "nothing to give way any more", || {
        priorities("catch-up far/0").is_empty().then_some(())
    });
    assert_eq!(priorities("builder far/0"), [lower(BUILDING)]);
    world.upsert("later", 5000);
    let progress = world.caught_up(&live);
    assert_eq!(progress.points, 1501);
    assert_eq!(live.nearest(5000, 1), ["later"]);
    live.close();
}

#[test]
fn a_shard_far_behind_closes_before_it_has_caught_up_and_goes_on() {
    let world = named("torn");
    for id in 0..20_000 {
        world.upsert(&format!("id-{id}"), id);
    }
    let live = world.open();
    eventually(DEADLINE, "a thread to give way", || {
        (!priorities("catch-up torn/0").is_empty()).then_some(())
    });
    live.close();
    assert!(priorities("catch-up torn/0").is_empty());
    let again = world.open();
    assert_eq!(world.caught_up(&again).points, 20_000);
    again.close();
}

#[test]
fn a_shard_a_few_records_behind_gives_way_to_nobody() {
    let world = named("near");
    for id in 0..200 {
        world.upsert(&format!("id-{id}"), id);
    }
    let live = world.open();
    let progress = world.caught_up(&live);
    assert_eq!(progress.points, 200);
    // Until it is told the end it would be at it.
    assert!(priorities("catch-up near/0").is_empty());
    eventually(DEADLINE, "the builder to run", || {
        (priorities("builder near/0") == [lower(BUILDING)]).then_some(())
    });
    live.close();
}
