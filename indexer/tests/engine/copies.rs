//! Two copies of a shard: where their digests differ, the points that do are named.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use shoal_indexer::{
    catalog::CatalogError,
    shard::{Shared, buckets::BucketsError, offline::open_offline, recover::OpenError},
};
use shoal_runtime::eventually;
use shoal_schemas::{
    PointId, Record, RowHash, Version,
    buckets::{Bucket, Buckets, Difference, How, Row, compare},
    v1,
};

use crate::world::{DEADLINE, Live, World, churn};

fn buckets(shared: &Shared) -> (Buckets, Vec<v1::SourcePosition>) {
    let found = shared.buckets().unwrap();
    (
        Buckets::from_bytes(&found.digests).unwrap(),
        found.positions,
    )
}

fn rows(shared: &Shared, wanted: &[Bucket], at: &[v1::SourcePosition]) -> BTreeMap<PointId, Row> {
    let wanted: HashSet<Bucket> = wanted.iter().copied().collect();
    let found = shared.bucket_ids(&wanted, at).unwrap().ids.into_iter();
    let rows = found.map(|one| {
        let id = PointId::new(&one.id).unwrap();
        assert!(wanted.contains(&Bucket::of(&id)));
        let row = if one.contested {
            Row::Contested
        } else {
            Row::Served {
                version: Version::from_raw(one.version),
                hash: RowHash::from_bytes(one.row_hash.as_ref().try_into().unwrap()),
            }
        };
        (id, row)
    });
    rows.collect()
}

fn differences(here: &Shared, there: &Shared) -> Vec<Difference> {
    let ((ours, at), (theirs, elsewhere)) = (buckets(here), buckets(there));
    let differing = ours.differing(&theirs);
    if differing.is_empty() {
        return Vec::new();
    }
    compare(
        &rows(here, &differing, &at),
        &rows(there, &differing, &elsewhere),
    )
}

/// A record that is refused and leaves its id contested.
fn refused(world: &World, id: &str) {
    world.send(&Record {
        key: Some(Bytes::copy_from_slice(id.as_bytes())),
        value: Some(Bytes::from_static(b"\xc3\x01 no event")),
        timestamp_ms: 1_700_000_000_000,
        ..Record::default()
    });
}

/// Two shards that were sent the same, but for what `differ` sends to each.
fn two_copies(differ: impl Fn(&World, bool)) -> [(World, Live); 2] {
    [true, false].map(|first| {
        let world = World::new();
        let live = world.open();
        churn(&world, 300, 4);
        refused(&world, "id-5");
        refused(&world, "never-served");
        differ(&world, first);
        churn(&world, 20, 1);
        world.caught_up(&live);
        (world, live)
    })
}

#[test]
fn equal_copies_have_no_difference_and_their_parts_add_up() {
    let copies = two_copies(|_, _| {});
    let [(_, a), (_, b)] = &copies;
    let (parts, at) = buckets(&a.shared);
    assert_eq!(parts.total(), a.shared.progress().borrow().digest);
    assert_eq!(at[0].next_offset, 4 * 300 + 2 + 20);
    assert_eq!(differences(&a.shared, &b.shared), []);
    let contested = [Bucket::of(&PointId::new("never-served").unwrap())];
    let rows = rows(&a.shared, &contested, &at);
    assert!(rows.values().any(|row| *row == Row::Contested));
    for (_, live) in copies {
        live.close();
    }
}

#[test]
fn every_id_that_differs_is_named_with_how() {
    let copies = two_copies(|world, first| {
        let either = |here: u64, there: u64| if first { here } else { there };
        world.upsert("id-100", either(1, 2));
        if first {
            world.upsert("only-here", 3);
            world.delete("id-200");
            refused(world, "id-250");
        } else {
            world.delete("only-here");
            world.upsert("id-200", 4);
            world.upsert("id-250", 5);
        }
    });
    let [(_, a), (_, b)] = &copies;
    let found = differences(&a.shared, &b.shared);
    let named: Vec<(&str, &How)> = found
        .iter()
        .map(|one| (one.id.as_str(), &one.how))
        .collect();
    assert!(
        matches!(named[0], ("id-100", How::Content { .. })),
        "{named:?}"
    );
    assert_eq!(
        named[1..],
        [
            ("id-200", &How::OnlyThere),
            ("id-250", &How::ContestedHere),
            ("only-here", &How::OnlyHere),
        ]
    );
    for (_, live) in copies {
        live.close();
    }
}

#[test]
fn ids_at_a_position_that_is_past_are_refused_by_name() {
    let world = World::new();
    let live = world.open();
    world.upsert("a", 1);
    world.caught_up(&live);
    let (_, at) = buckets(&live.shared);
    world.upsert("b", 2);
    world.caught_up(&live);
    let wanted = [Bucket::of(&PointId::new("a").unwrap())].into();
    let error = live.shared.bucket_ids(&wanted, &at).unwrap_err();
    assert!(matches!(error, BucketsError::Elsewhere { .. }), "{error}");
    assert!(error.to_string().contains("/0=2, wanted is"), "{error}");
    assert_eq!(live.shared.bucket_ids(&wanted, &[]).unwrap().ids.len(), 1);
    live.close();
}

#[test]
fn a_folder_of_a_stopped_shard_is_compared_with_a_running_one() {
    let [(_kept, live), (other, stopped)] = two_copies(|world, first| {
        // Before the last rounds are replayed from the shard's own log.
        world.upsert("id-111", if first { 7 } else { 8 });
    });
    stopped.close();
    let folder = other.folder.path().join("live");
    // Its catalog's own threads let go of it a moment later.
    let offline = eventually(DEADLINE, "the folder is let go", || {
        match open_offline(&folder, other.clock.clone()) {
            Err(OpenError::Catalog {
                source: CatalogError::Held,
                ..
            }) => None,
            opened => Some(opened.unwrap()),
        }
    });
    assert_eq!(buckets(&offline).1, buckets(&live.shared).1);
    let found = differences(&live.shared, &offline);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].id.as_str(), "id-111");
    drop(offline);
    // It is as it was.
    let again = other.open_in(&folder);
    other.caught_up(&again);
    assert_eq!(differences(&live.shared, &again.shared), found);
    again.close();
    live.close();
    let nothing = tempfile::tempdir().unwrap();
    let error = open_offline(nothing.path(), other.clock.clone())
        .map(drop)
        .unwrap_err();
    assert!(error.to_string().contains("shard.json"), "{error}");
}
