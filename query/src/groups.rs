//! Merging the shards' groups into one list: pure, by each group's nearest hit.
//!
//! A shard answers with its own nearest `k` groups. That holds every group of the merged answer
//! with its nearest hit, for whatever is ahead of a group in its shard is ahead of it in the whole.
//! It may lack farther hits of such a group: in a shard where `k` other groups are nearer, the
//! group is not named. [`unnamed`] says which groups to ask for again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use shoal_schemas::v1;

use crate::merge::{by_distance_then_id, merge};

/// Merges lists of groups into the `k` groups with the nearest hits, each with its nearest
/// `group_size` hits; every id counts in its highest version alone. A group that may lack hits in
/// one list may in the whole.
///
/// # Shapes
/// Lists may have any length and may be empty. Groups without hits are left out.
pub fn merge_groups(
    mut lists: Vec<Vec<v1::HitGroup>>,
    k: usize,
    group_size: usize,
) -> Vec<v1::HitGroup> {
    drop_older_versions(&mut lists);
    let mut by_value: BTreeMap<Key, (Vec<Vec<v1::Hit>>, bool)> = BTreeMap::new();
    for group in lists.into_iter().flatten() {
        if let Some(key) = Key::of(group.value.as_ref()) {
            let (hits, may_lack_hits) = by_value.entry(key).or_default();
            hits.push(group.hits);
            *may_lack_hits |= group.may_lack_hits;
        }
    }
    let merged = by_value
        .into_iter()
        .filter_map(|(key, (hits, may_lack_hits))| {
            let hits = merge(hits, group_size);
            let nearest = hits.first()?.clone();
            Some((nearest, key, hits, may_lack_hits))
        });
    let mut merged: Vec<_> = merged.collect();
    // A hit with several values may lead several groups: then the value decides.
    merged.sort_unstable_by(|(a, a_key, ..), (b, b_key, ..)| {
        by_distance_then_id(a, b).then_with(|| a_key.cmp(b_key))
    });
    merged.truncate(k);
    let groups = merged
        .into_iter()
        .map(|(_, key, hits, may_lack_hits)| v1::HitGroup {
            value: Some(key.into_value()),
            hits,
            may_lack_hits,
        });
    groups.collect()
}

/// The places among merged groups of those of which a shard may have hits that it did not name and
/// that belong into the answer.
///
/// A shard that named fewer than `k` groups has named all it has. Of a group that it did not name
/// it holds nothing nearer than the last one that it named: one that is full of nearer hits lacks
/// none.
pub fn unnamed(
    merged: &[v1::HitGroup],
    named: &[v1::HitGroup],
    k: usize,
    group_size: usize,
) -> Vec<usize> {
    if named.len() < k {
        return Vec::new();
    }
    let keys = named
        .iter()
        .filter_map(|group| Key::of(group.value.as_ref()));
    let keys: BTreeSet<Key> = keys.collect();
    let leaders = named.iter().filter_map(|group| group.hits.first());
    let last_named = leaders.max_by(|a, b| by_distance_then_id(a, b));
    let is_full = |group: &v1::HitGroup| {
        let farthest = group.hits.last().filter(|_| group.hits.len() >= group_size);
        let ends = farthest.zip(last_named);
        ends.is_some_and(|(farthest, named)| by_distance_then_id(farthest, named).is_le())
    };
    let lacking = merged.iter().enumerate().filter_map(|(at, group)| {
        let key = Key::of(group.value.as_ref())?;
        (!keys.contains(&key) && !is_full(group)).then_some(at)
    });
    lacking.collect()
}

/// Takes out every hit whose id stands elsewhere, in whatever group, with a higher version.
fn drop_older_versions(lists: &mut [Vec<v1::HitGroup>]) {
    let mut newest: HashMap<String, u64> = HashMap::new();
    for hit in lists.iter().flatten().flat_map(|group| &group.hits) {
        match newest.get_mut(&hit.id) {
            Some(version) => *version = hit.version.max(*version),
            None => {
                newest.insert(hit.id.clone(), hit.version);
            }
        }
    }
    for group in lists.iter_mut().flatten() {
        let is_newest = |hit: &v1::Hit| newest.get(&hit.id) == Some(&hit.version);
        group.hits.retain(is_newest);
    }
}

/// A group's value, ordered so that groups of equal distance never swap.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Integer(i64),
    /// The bits of a float that is no whole number.
    Float(u64),
    Boolean(bool),
    Timestamp(i64),
    String(String),
}

impl Key {
    /// `None` for what no shard groups by: a list or nothing.
    fn of(value: Option<&v1::Value>) -> Option<Self> {
        use v1::value::Kind;
        Some(match value?.kind.as_ref()? {
            Kind::Integer(number) => Self::Integer(*number),
            Kind::Float(number) => Self::Float(number.to_bits()),
            Kind::Boolean(truth) => Self::Boolean(*truth),
            Kind::TimestampMs(millis) => Self::Timestamp(*millis),
            Kind::String(text) => Self::String(text.clone()),
            Kind::Strings(_) => return None,
        })
    }

    fn into_value(self) -> v1::Value {
        use v1::value::Kind;
        let kind = match self {
            Self::Integer(number) => Kind::Integer(number),
            Self::Float(bits) => Kind::Float(f64::from_bits(bits)),
            Self::Boolean(truth) => Kind::Boolean(truth),
            Self::Timestamp(millis) => Kind::TimestampMs(millis),
            Self::String(text) => Kind::String(text),
        };
        v1::Value { kind: Some(kind) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::btree_map, collection::vec, prelude::*};
    use shoal_schemas::v1;

    use super::{merge_groups, unnamed};
    use crate::merge::by_distance_then_id;

    /// Points of one shard by id: distance, version, groups.
    type Points = BTreeMap<u32, (u8, u64, Vec<i64>)>;

    fn value(number: i64) -> v1::Value {
        v1::Value {
            kind: Some(v1::value::Kind::Integer(number)),
        }
    }

    fn number(value: Option<&v1::Value>) -> i64 {
        match value.and_then(|value| value.kind.as_ref()) {
            Some(v1::value::Kind::Integer(number)) => *number,
            other => panic!("{other:?}"),
        }
    }

    /// What grouping stands for, said as slowly as possible: all points, sorted, by value.
    fn group_everything(points: &[Points], k: usize, group_size: usize) -> Vec<v1::HitGroup> {
        let mut newest: BTreeMap<u32, (u8, u64, Vec<i64>)> = BTreeMap::new();
        for (id, point) in points.iter().flatten() {
            let held = newest.entry(*id).or_insert_with(|| point.clone());
            if point.1 > held.1 {
                *held = point.clone();
            }
        }
        let mut hits: Vec<(v1::Hit, Vec<i64>)> = newest
            .into_iter()
            .map(|(id, (distance, version, groups))| {
                let hit = v1::Hit {
                    id: format!("{id:03}"),
                    distance: f32::from(distance),
                    version,
                    ..v1::Hit::default()
                };
                (hit, groups)
            })
            .collect();
        hits.sort_by(|(a, _), (b, _)| by_distance_then_id(a, b));
        let mut groups: Vec<(i64, Vec<v1::Hit>)> = Vec::new();
        for (hit, values) in hits {
            let mut values = values;
            values.sort_unstable();
            values.dedup();
            for value in values {
                match groups.iter_mut().find(|(held, _)| *held == value) {
                    Some((_, of_it)) => of_it.push(hit.clone()),
                    None => groups.push((value, vec![hit.clone()])),
                }
            }
        }
        groups.truncate(k);
        let groups = groups.into_iter().map(|(number, mut hits)| {
            hits.truncate(group_size);
            v1::HitGroup {
                value: Some(value(number)),
                hits,
                may_lack_hits: false,
            }
        });
        groups.collect()
    }

    fn shards() -> impl Strategy<Value = Vec<Points>> {
        // Ids of one shard are its own, but for a few that stray, with versions of their own.
        let shard = |own: u32| {
            let id = prop_oneof![9 => Just(own * 100), 1 => Just(900)];
            let id = (id, 0u32..30).prop_map(|(from, id)| from + id);
            // A point of no group is in no answer, so its version counts for nothing.
            let point = (0u8..30, vec(0i64..8, 1..3));
            btree_map(id, point, 0..40).prop_map(move |points| {
                let versioned = points
                    .into_iter()
                    .map(|(id, (distance, groups))| (id, (distance, u64::from(own) + 1, groups)));
                versioned.collect::<Points>()
            })
        };
        (shard(1), shard(2), shard(3)).prop_map(|(a, b, c)| vec![a, b, c])
    }

    fn group(number: i64, at: &[u8]) -> v1::HitGroup {
        let hit = |distance: &u8| v1::Hit {
            id: format!("{number}-{distance}"),
            distance: f32::from(*distance),
            ..v1::Hit::default()
        };
        v1::HitGroup {
            value: Some(value(number)),
            hits: at.iter().map(hit).collect(),
            may_lack_hits: false,
        }
    }

    #[test]
    fn a_group_that_is_full_of_nearer_hits_than_a_shard_may_have_is_not_asked_for() {
        let merged = [group(1, &[0, 4]), group(2, &[1, 6]), group(3, &[2])];
        let named = [group(7, &[3, 8]), group(8, &[5])];
        assert_eq!(unnamed(&merged, &named, 2, 2), [1, 2]);
        assert_eq!(unnamed(&merged, &named, 3, 2), Vec::<usize>::new());
    }

    #[test]
    fn a_group_that_may_lack_hits_in_one_list_may_in_the_whole() {
        let lacking = v1::HitGroup {
            may_lack_hits: true,
            ..group(1, &[])
        };
        let lists = vec![vec![group(1, &[0]), group(2, &[1])], vec![lacking]];
        let merged = merge_groups(lists, 9, 9);
        let told: Vec<_> = merged.iter().map(|one| one.may_lack_hits).collect();
        assert_eq!(told, [true, false]);
    }

    proptest! {
        #[test]
        fn merging_whole_lists_equals_grouping_everything(
            shards in shards(), k in 1usize..6, group_size in 1usize..5,
        ) {
            let lists = shards.iter().map(|points| {
                group_everything(std::slice::from_ref(points), usize::MAX, usize::MAX)
            });
            let merged = merge_groups(lists.collect(), k, group_size);
            prop_assert_eq!(merged, group_everything(&shards, k, group_size));
        }

        #[test]
        fn what_shards_name_and_what_they_are_asked_again_equals_grouping_everything(
            shards in shards(), k in 1usize..6, group_size in 1usize..5,
        ) {
            // Ids that stray may hide a group that is named for an older version of a point; a
            // shard does not know that. Here each shard keeps its own ids.
            let mut shards = shards;
            for points in &mut shards {
                points.retain(|id, _| *id < 900);
            }
            let named: Vec<Vec<v1::HitGroup>> = shards
                .iter()
                .map(|points| group_everything(std::slice::from_ref(points), k, group_size))
                .collect();
            let first = merge_groups(named.clone(), k, group_size);
            let expected = group_everything(&shards, k, group_size);
            let nearest = |groups: &[v1::HitGroup]| -> Vec<(i64, v1::Hit)> {
                let nearest = |group: &v1::HitGroup| {
                    (number(group.value.as_ref()), group.hits[0].clone())
                };
                groups.iter().map(nearest).collect()
            };
            prop_assert_eq!(nearest(&first), nearest(&expected));
            let mut lists = named.clone();
            for (points, named) in shards.iter().zip(&named) {
                let all = group_everything(std::slice::from_ref(points), usize::MAX, group_size);
                let again = unnamed(&first, named, k, group_size);
                lists.push(all.into_iter().filter(|group| {
                    again.iter().any(|at| first[*at].value == group.value)
                }).collect());
            }
            prop_assert_eq!(merge_groups(lists, k, group_size), expected);
        }
    }
}
