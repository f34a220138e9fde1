//! Merging the shards' hits into one list: pure, by (distance, id).
//!
//! Every shard's list is already its nearest `k`, nearest first, so the merge looks at the heads
//! only and stops at `k`. An id lives in one shard; where two answer with it all the same (its
//! record once went to a wrong partition), the higher version counts. Hits are moved, never
//! cloned.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap, hash_map::Entry},
};

use shoal_schemas::v1;

/// A merged list, and what became of the lists it was made of.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Merged {
    /// The nearest hits.
    pub hits: Vec<v1::Hit>,
    /// Of each list, whether the merge took all of it: then what its shard did not name might have
    /// been taken, too.
    pub used_up: Vec<bool>,
}

/// Merges `lists` into the nearest `k` hits, by (distance, id), each id once.
///
/// # Shapes
/// Lists may have any length and may be empty; the result holds at most `k`.
pub fn merge(lists: Vec<Vec<v1::Hit>>, k: usize) -> Vec<v1::Hit> {
    merge_noting(lists, k).hits
}

/// The same, noting which lists are used up.
pub fn merge_noting(mut lists: Vec<Vec<v1::Hit>>, k: usize) -> Merged {
    for list in &mut lists {
        // A shard keeps this order; the check costs one pass and saves trusting it.
        if !list.is_sorted_by(|a, b| by_distance_then_id(a, b).is_le()) {
            list.sort_unstable_by(by_distance_then_id);
        }
    }
    let mut used_up = vec![true; lists.len()];
    let filled = lists.iter_mut().zip(&mut used_up);
    let mut filled = filled.filter(|(list, _)| !list.is_empty());
    if let (Some((only, used_up_only)), None) = (filled.next(), filled.next()) {
        let mut hits = std::mem::take(only);
        *used_up_only = hits.len() <= k;
        hits.truncate(k);
        return Merged { hits, used_up };
    }
    drop_older_versions(&mut lists);
    let mut rests: Vec<std::vec::IntoIter<v1::Hit>> =
        lists.into_iter().map(Vec::into_iter).collect();
    let mut heads: BinaryHeap<Reverse<Head>> = BinaryHeap::with_capacity(rests.len());
    for (list, rest) in rests.iter_mut().enumerate() {
        heads.extend(rest.next().map(|hit| Reverse(Head { hit, list })));
    }
    let total: usize = heads.len() + rests.iter().map(ExactSizeIterator::len).sum::<usize>();
    let mut hits = Vec::with_capacity(k.min(total));
    while hits.len() < k
        && let Some(Reverse(Head { hit, list })) = heads.pop()
    {
        hits.push(hit);
        let next = rests.get_mut(list).and_then(Iterator::next);
        heads.extend(next.map(|hit| Reverse(Head { hit, list })));
    }
    for Reverse(Head { list, .. }) in heads {
        if let Some(used_up) = used_up.get_mut(list) {
            *used_up = false;
        }
    }
    Merged { hits, used_up }
}

/// Merges pages of points into one, by the bytes of their ids, each id once in its highest
/// version.
///
/// # Shapes
/// Lists may have any length and may be empty; the result holds at most `limit`.
pub fn merge_points(lists: Vec<Vec<v1::StoredPoint>>, limit: usize) -> Vec<v1::StoredPoint> {
    fn id(stored: &v1::StoredPoint) -> &str {
        stored.point.as_ref().map_or("", |point| point.id.as_str())
    }
    let mut all: Vec<v1::StoredPoint> = lists.into_iter().flatten().collect();
    all.sort_by(|a, b| id(a).cmp(id(b)).then_with(|| b.version.cmp(&a.version)));
    all.dedup_by(|later, kept| id(later) == id(kept));
    all.truncate(limit);
    all
}

/// The order of an answer. `total_cmp` gives even a NaN its place.
pub fn by_distance_then_id(a: &v1::Hit, b: &v1::Hit) -> Ordering {
    let by_distance = a.distance.total_cmp(&b.distance);
    by_distance.then_with(|| a.id.cmp(&b.id))
}

/// Takes out every hit whose id stands elsewhere with a higher version; of equal ones the nearer
/// stays.
fn drop_older_versions(lists: &mut [Vec<v1::Hit>]) {
    let total = lists.iter().map(Vec::len).sum();
    let mut newest: HashMap<&str, (&v1::Hit, usize, usize)> = HashMap::with_capacity(total);
    let mut older = Vec::new();
    for (list, hits) in lists.iter().enumerate() {
        for (at, hit) in hits.iter().enumerate() {
            match newest.entry(&hit.id) {
                Entry::Vacant(free) => {
                    free.insert((hit, list, at));
                }
                Entry::Occupied(mut held) => {
                    let (other, other_list, other_at) = *held.get();
                    let beats = (hit.version.cmp(&other.version))
                        .then_with(|| other.distance.total_cmp(&hit.distance));
                    if beats.is_gt() {
                        older.push((other_list, other_at));
                        held.insert((hit, list, at));
                    } else {
                        older.push((list, at));
                    }
                }
            }
        }
    }
    drop(newest);
    // From the back, so that the places before stay valid.
    older.sort_unstable_by(|a, b| b.cmp(a));
    for (list, at) in older {
        if let Some(hits) = lists.get_mut(list) {
            hits.remove(at);
        }
    }
}

/// The nearest hit not taken yet of one list.
struct Head {
    hit: v1::Hit,
    list: usize,
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        by_distance_then_id(&self.hit, &other.hit).then_with(|| self.list.cmp(&other.list))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};
    use shoal_schemas::v1;

    use super::{by_distance_then_id, merge, merge_noting, merge_points};

    fn hit(id: impl ToString, distance: f32, version: u64) -> v1::Hit {
        v1::Hit {
            id: id.to_string(),
            distance,
            version,
            ..v1::Hit::default()
        }
    }

    fn ids(hits: &[v1::Hit]) -> Vec<&str> {
        hits.iter().map(|hit| hit.id.as_str()).collect()
    }

    #[test]
    fn equal_distances_are_in_order_of_their_ids() {
        let merged = merge(
            vec![
                vec![hit("b", 0.5, 1)],
                vec![hit("a", 0.5, 1), hit("c", 0.5, 1)],
            ],
            2,
        );
        assert_eq!(ids(&merged), ["a", "b"]);
    }

    #[test]
    fn an_id_of_two_shards_keeps_its_higher_version_even_if_that_is_farther() {
        let lists = vec![
            vec![hit("x", 0.1, 1), hit("a", 0.2, 1)],
            vec![hit("b", 0.3, 1), hit("x", 0.9, 2)],
        ];
        let merged = merge(lists, 10);
        assert_eq!(ids(&merged), ["a", "b", "x"]);
        assert_eq!(merged.last().map(|hit| hit.version), Some(2));
    }

    #[test]
    fn nothing_and_k_of_zero_give_nothing() {
        assert!(merge(vec![], 3).is_empty());
        assert!(merge(vec![vec![], vec![]], 3).is_empty());
        assert!(merge(vec![vec![hit("a", 0.0, 0)]], 0).is_empty());
    }

    #[test]
    fn a_list_out_of_order_is_put_in_order() {
        let merged = merge(
            vec![
                vec![hit("b", 2.0, 0), hit("a", 1.0, 0)],
                vec![hit("c", 1.5, 0)],
            ],
            9,
        );
        assert_eq!(ids(&merged), ["a", "c", "b"]);
    }

    #[test]
    fn pages_merge_by_id_and_an_id_of_two_shards_keeps_its_higher_version() {
        let stored = |id: &str, version: u64| v1::StoredPoint {
            point: Some(v1::Point {
                id: id.to_owned(),
                ..v1::Point::default()
            }),
            version,
            ..v1::StoredPoint::default()
        };
        let lists = vec![
            vec![stored("a", 1), stored("c", 1)],
            vec![stored("a", 2), stored("b", 1), stored("d", 1)],
        ];
        let merged = merge_points(lists, 3);
        let found: Vec<(&str, u64)> = merged
            .iter()
            .map(|stored| (stored.point.as_ref().unwrap().id.as_str(), stored.version))
            .collect();
        assert_eq!(found, [("a", 2), ("b", 1), ("c", 1)]);
    }

    /// What the merge stands for, said as slowly as possible.
    fn sort_everything(lists: &[Vec<v1::Hit>], k: usize) -> Vec<v1::Hit> {
        let mut newest: BTreeMap<String, v1::Hit> = BTreeMap::new();
        for hit in lists.iter().flatten() {
            let held = newest.entry(hit.id.clone()).or_insert_with(|| hit.clone());
            let wins = hit.version > held.version
                || hit.version == held.version && hit.distance.total_cmp(&held.distance).is_lt();
            if wins {
                *held = hit.clone();
            }
        }
        let mut all: Vec<v1::Hit> = newest.into_values().collect();
        all.sort_by(by_distance_then_id);
        all.truncate(k);
        all
    }

    prop_compose! {
        /// A shard's answer: ids once each, sorted; shards may share ids.
        fn sorted_hits()(
            hits in proptest::collection::btree_map(0u32..60, (0u8..12, 0u64..4), 0..25)
        ) -> Vec<v1::Hit> {
            let mut hits: Vec<_> = hits
                .into_iter()
                .map(|(id, (distance, version))| hit(id, f32::from(distance) / 4.0, version))
                .collect();
            hits.sort_by(by_distance_then_id);
            hits
        }
    }

    #[test]
    fn a_list_is_used_up_once_all_of_it_is_taken() {
        let lists = vec![
            vec![hit("a", 0.1, 0), hit("b", 0.4, 0)],
            vec![],
            vec![hit("c", 0.2, 0)],
        ];
        let used_up = |k| merge_noting(lists.clone(), k).used_up;
        assert_eq!(used_up(1), [false, true, false]);
        assert_eq!(used_up(2), [false, true, true]);
        assert_eq!(used_up(9), [true, true, true]);
        let alone = vec![vec![], vec![hit("a", 0.1, 0), hit("b", 0.4, 0)]];
        assert_eq!(merge_noting(alone.clone(), 1).used_up, [true, false]);
        assert_eq!(merge_noting(alone, 2).used_up, [true, true]);
    }

    proptest! {
        #[test]
        fn merge_equals_sorting_everything(lists in vec(sorted_hits(), 0..8), k in 0usize..50) {
            prop_assert_eq!(merge(lists.clone(), k), sort_everything(&lists, k));
        }
    }
}
