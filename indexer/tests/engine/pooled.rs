//! Several shards that answer together: what they say is what merging their own answers comes to.

use shoal_indexer::shard::{Shared, pooled, search::Ask};
use shoal_schemas::v1;

use crate::world::{Live, World, vector};

/// Points of each shard: one is scanned, one is walked, one waits for its graph in part.
const POINTS: [u64; 3] = [40, 5000, 700];
const QUERIES: u64 = 60;

fn shards() -> Vec<(World, Live)> {
    let mut begin = 0;
    let opened = POINTS.iter().map(|points| {
        let world = World::new();
        let live = world.open();
        for number in begin..begin + points {
            world.upsert(&format!("p{number}"), number);
        }
        begin += points;
        world.caught_up(&live);
        (world, live)
    });
    opened.collect()
}

fn by_distance_then_id(a: &v1::Hit, b: &v1::Hit) -> std::cmp::Ordering {
    let by_distance = a.distance.total_cmp(&b.distance);
    by_distance.then_with(|| a.id.cmp(&b.id))
}

fn ids(hits: &[v1::Hit]) -> Vec<&str> {
    hits.iter().map(|hit| hit.id.as_str()).collect()
}

fn merged(lists: &[v1::HitList], total: usize) -> Vec<v1::Hit> {
    let mut hits: Vec<v1::Hit> = lists.iter().flat_map(|list| list.hits.clone()).collect();
    hits.sort_unstable_by(by_distance_then_id);
    hits.truncate(total);
    hits
}

#[test]
fn shards_together_say_what_merging_their_own_answers_comes_to() {
    let opened = shards();
    let shards: Vec<&Shared> = opened.iter().map(|(_, live)| &*live.shared).collect();
    let together = |ask: &Ask, total| pooled::answer(&shards, ask, total, &|| false).unwrap();
    let (mut found, mut wanted) = (0, 0);
    for seed in 0..QUERIES {
        let ask = |k, exact| Ask {
            exact,
            ..Ask::nearest(vector(100_000 + seed), k)
        };
        for (k, total) in [(10, 10), (7, 10), (3, 9), (1, 40)] {
            let own = shards.iter().map(|shard| v1::HitList {
                hits: shard.search(&ask(k, true)).unwrap(),
                ..v1::HitList::default()
            });
            let own: Vec<v1::HitList> = own.collect();
            let told = together(&ask(k, true), total);
            let all = merged(&own, total);
            assert_eq!(ids(&merged(&told, total)), ids(&all), "{k} of {total}");
            let sum: usize = told.iter().map(|list| list.hits.len()).sum();
            assert_eq!(sum, all.len(), "more are named than are wanted");
            // Each shard has more points than that.
            let left_out_from = (sum == total).then(|| all.last().unwrap().distance);
            for (list, own) in told.iter().zip(&own) {
                assert_eq!(list.left_out_from, left_out_from, "{k} of {total}");
                assert!(own.hits.starts_with(&list.hits));
            }
        }
        let all = merged(&together(&ask(10, true), 10), 10);
        let walked = merged(&together(&ask(10, false), 10), 10);
        wanted += all.len();
        found += ids(&walked)
            .iter()
            .filter(|id| ids(&all).contains(id))
            .count();
    }
    assert!(found * 100 >= wanted * 98, "{found} of {wanted} are found");
}

#[test]
fn what_is_too_far_is_not_left_out_for_nearer_ones() {
    let opened = shards();
    let shards: Vec<&Shared> = opened.iter().map(|(_, live)| &*live.shared).collect();
    let ask = |max_distance| Ask {
        exact: true,
        explain: true,
        max_distance,
        ..Ask::nearest(vector(100_000), 10)
    };
    let together = |ask: &Ask| pooled::answer(&shards, ask, 10, &|| false).unwrap();
    let all = merged(&together(&ask(None)), 10);
    let near: Vec<v1::Hit> = all.iter().take(4).cloned().collect();
    let told = together(&ask(near.last().map(|hit| hit.distance)));
    assert_eq!(merged(&told, 10), near);
    assert!(told.iter().all(|list| list.left_out_from.is_none()));
    let looked_at = told
        .iter()
        .map(|list| list.explain.first().unwrap().rows_scanned);
    assert_eq!(looked_at.collect::<Vec<u64>>(), POINTS);
}
