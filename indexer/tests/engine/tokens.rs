//! Tokens of another topic of the shard's own cluster, as the one that a generation's records were copied from. Its
//! offsets say nothing here: what such a token waits for is its key at its version.

use bytes::Bytes;
use futures::FutureExt;
use shoal_schemas::{ClusterId, Offset, Partition, PointId, Record, Token, Version, headers};

use crate::world::{Live, TOPIC, World};

/// A collection that another one's records were copied into.
fn world() -> World {
    let mut world = World::new();
    world.collection.fed_by = Some("older".parse().unwrap());
    world
}

fn version(counter: u16) -> Version {
    Version::from_parts(1_700_000_000_000, counter)
}

/// What a write to the topic that the collection was fed from gave.
fn token(world: &World, key: &str, version: Version) -> Token {
    let feeder = world.collection.fed_by.as_ref().unwrap();
    Token {
        cluster: ClusterId::from("test-cluster"),
        topic: feeder.topic().into(),
        partition: Partition(7),
        offset: Offset(1_000_000),
        key: PointId::new(key).unwrap(),
        version,
        region: None,
    }
}

/// A record as a re-indexing copies it: it keeps its version.
fn copied(world: &World, id: &str, seed: u64, version: Version) -> Record {
    let mut record = world.record(id, seed);
    let value = Bytes::from(version.raw().to_string());
    record.headers.push((headers::VERSION.to_owned(), value));
    record
}

/// Whether nothing is left to wait for.
fn is_shown(live: &Live, token: &Token) -> bool {
    let waited = live.shared.wait_for(token).now_or_never();
    waited.is_some_and(|waited| {
        waited.unwrap();
        true
    })
}

#[test]
fn a_token_of_the_topic_a_collection_was_fed_from_waits_for_its_key_at_its_version() {
    let world = world();
    let live = world.open();
    for seed in 0..20 {
        world.upsert(&format!("other-{seed}"), seed);
    }
    world.caught_up(&live);
    // Offsets that this shard has passed, and has not, in its own topic.
    let tokens = [0, 1_000_000].map(|offset| Token {
        offset: Offset(offset),
        ..token(&world, "a", version(5))
    });
    for token in &tokens {
        let mut waiting = Box::pin(live.shared.wait_for(token));
        assert!(
            waiting.as_mut().now_or_never().is_none(),
            "{}: not there",
            token.offset
        );
        world.send(&copied(&world, "a", 1, version(4)));
        world.caught_up(&live);
        assert!(
            waiting.as_mut().now_or_never().is_none(),
            "{}: an earlier version is",
            token.offset
        );
        world.send(&copied(&world, "b", 3, version(6)));
        world.caught_up(&live);
        assert!(
            waiting.as_mut().now_or_never().is_none(),
            "{}: another key is",
            token.offset
        );
        world.send(&copied(&world, "a", 2, version(5)));
        world.caught_up(&live);
        let waited = waiting.as_mut().now_or_never();
        waited.expect("it is there").unwrap();
        assert_eq!(live.nearest(2, 1), ["a"]);
        // The other one has to wait, too.
        world.send(&copied(&world, "a", 1, version(1)));
        world.caught_up(&live);
    }
    live.close();
}

#[test]
fn a_token_of_the_own_topic_waits_for_its_offset_where_one_of_another_topic_waits_for_its_key() {
    let world = world();
    let live = world.open();
    let written = world.send(&copied(&world, "a", 1, version(5)));
    world.caught_up(&live);
    let own = |key, offset| Token {
        topic: TOPIC.into(),
        partition: Partition(0),
        offset,
        ..token(&world, key, version(9))
    };
    assert!(is_shown(&live, &own("nobody", written)));
    assert!(!is_shown(&live, &own("a", world.end())));
    for (key, counter, expected) in [
        ("a", 5, true),
        ("a", 4, true),
        ("a", 6, false),
        ("nobody", 0, false),
    ] {
        let token = token(&world, key, version(counter));
        assert_eq!(is_shown(&live, &token), expected, "{key} {counter}");
    }
    live.close();
}

#[test]
fn a_token_of_another_topic_is_answered_by_a_later_delete_and_by_no_refused_record() {
    let world = world();
    let live = world.open();
    world.send(&copied(&world, "a", 1, version(1)));
    world.caught_up(&live);
    let token = token(&world, "a", version(3));
    assert!(!is_shown(&live, &token));
    world.send(&Record {
        value: Some(Bytes::from_static(b"no point")),
        ..copied(&world, "a", 1, version(4))
    });
    assert_eq!(world.caught_up(&live).contested, 1);
    assert!(!is_shown(&live, &token), "what was refused is not served");
    world.send(&Record {
        value: None,
        ..copied(&world, "a", 1, version(5))
    });
    let progress = world.caught_up(&live);
    assert_eq!((progress.contested, progress.points), (0, 0));
    assert!(is_shown(&live, &token));
    live.close();
}
