//! What the ring promises: few moves, even shares, labels kept, the same result for everybody.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Labels, Member, Wanted, assign};
use crate::{CollectionName, Partition};

type Given = BTreeMap<(CollectionName, Partition), Option<String>>;

fn member(name: &str) -> Member {
    Member {
        name: name.to_owned(),
        labels: Labels::new(),
        weight: 1,
    }
}

fn nodes(count: usize) -> Vec<Member> {
    (0..count)
        .map(|n| member(&format!("indexer-{n}")))
        .collect()
}

fn label(name: &str, value: &str) -> Labels {
    [(name.to_owned(), value.to_owned())].into()
}

fn shards(collection: &str, count: u32, required: &Labels) -> Vec<Wanted> {
    let wanted = |shard| Wanted {
        collection: collection.parse().unwrap(),
        shard: Partition(shard),
        required: required.clone(),
    };
    (0..count).map(wanted).collect()
}

fn load(given: &Given, node: &str) -> usize {
    let owners = given.values().flatten();
    owners.filter(|owner| *owner == node).count()
}

fn moved(before: &Given, after: &Given) -> usize {
    let pairs = before
        .iter()
        .filter(|(shard, owner)| after[*shard] != **owner);
    pairs.count()
}

#[test]
fn one_more_node_moves_about_its_own_share_and_one_less_gives_it_back() {
    let (mut all_moved, mut all_shares) = (0.0, 0.0);
    for collection in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        for count in 2..=12_usize {
            let wanted = shards(collection, 512, &Labels::new());
            let before = assign(&nodes(count), &wanted);
            let after = assign(&nodes(count + 1), &wanted);
            let number = |count: usize| f64::from(u32::try_from(count).unwrap());
            let share = 512.0 / number(count + 1);
            let moved = number(moved(&before, &after));
            assert!(
                moved <= 1.8 * share,
                "{collection}: {count} nodes, {moved} of {share}"
            );
            let new = load(&after, &format!("indexer-{count}"));
            assert!(
                new > 0 && number(new) <= 1.25 * share + 1.0,
                "{new} of {share}"
            );
            all_moved += moved;
            all_shares += share;
        }
    }
    let times = all_moved / all_shares;
    eprintln!("a node more moves {times:.2} times its share of 512 shards");
    assert!((0.8..1.25).contains(&times), "{times}");
}

#[test]
fn with_few_shards_a_node_more_moves_little_more_than_its_share() {
    let (mut all_moved, mut all_shares) = (0, 0.0);
    for collection in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        for count in 2..=8_u32 {
            let wanted = shards(collection, 16, &Labels::new());
            let count_of = |more| nodes(usize::try_from(count + more).unwrap());
            let before = assign(&count_of(0), &wanted);
            all_moved += moved(&before, &assign(&count_of(1), &wanted));
            all_shares += 16.0 / f64::from(count + 1);
        }
    }
    let times = f64::from(u32::try_from(all_moved).unwrap()) / all_shares;
    eprintln!("a node more moves {times:.2} times its share of 16 shards");
    assert!(times < 1.4, "{times}");
}

#[test]
fn a_collection_more_leaves_most_shards_where_they_are() {
    let nodes = nodes(6);
    let mut wanted = shards("docs", 200, &Labels::new());
    let before = assign(&nodes, &wanted);
    wanted.extend(shards("more", 200, &Labels::new()));
    let after = assign(&nodes, &wanted);
    assert!(moved(&before, &after) < 40, "{}", moved(&before, &after));
}

#[test]
fn labels_are_kept_and_what_nobody_may_serve_is_nobodys() {
    let mut nodes = nodes(6);
    for gpu in &mut nodes[..2] {
        gpu.labels = label("gpu", "true");
    }
    let mut wanted = shards("hot", 16, &label("gpu", "true"));
    wanted.extend(shards("plain", 48, &Labels::new()));
    wanted.extend(shards("far", 4, &label("region", "us")));
    let given = assign(&nodes, &wanted);
    for ((collection, _), owner) in &given {
        match collection.as_str() {
            "hot" => assert!(["indexer-0", "indexer-1"].contains(&owner.as_deref().unwrap())),
            "far" => assert_eq!(*owner, None),
            _ => assert!(owner.is_some()),
        }
    }
}

#[test]
fn a_heavier_node_is_given_more_and_one_without_weight_nothing() {
    let mut nodes = nodes(4);
    nodes[0].weight = 3;
    nodes[1].weight = 0;
    let given = assign(&nodes, &shards("docs", 500, &Labels::new()));
    let [heavy, none, light, other] =
        ["indexer-0", "indexer-1", "indexer-2", "indexer-3"].map(|name| load(&given, name));
    assert_eq!(none, 0);
    assert!(heavy > 240 && heavy <= 375, "{heavy}");
    assert!(light.max(other) <= 125, "{light}, {other}");
}

proptest! {
    #[test]
    fn nobody_is_given_more_than_a_quarter_above_the_mean(
        names in proptest::collection::btree_set("[a-z]{1,8}", 1..12),
        partitions in 1u32..200,
    ) {
        let nodes: Vec<_> = names.iter().map(|name| member(name)).collect();
        let wanted = shards("docs", partitions, &Labels::new());
        let given = assign(&nodes, &wanted);
        prop_assert!(given.values().all(Option::is_some));
        let bound = (5 * wanted.len()).div_ceil(4 * nodes.len());
        for node in &nodes {
            prop_assert!(load(&given, &node.name) <= bound);
        }
    }

    #[test]
    fn a_node_without_weight_is_placed_around_as_if_it_were_not_there(
        names in proptest::collection::btree_set("[a-z]{1,8}", 1..10),
        at in 0usize..10,
        partitions in 1u32..120,
    ) {
        let mut nodes: Vec<_> = names.iter().map(|name| member(name)).collect();
        let at = at % nodes.len();
        nodes[at].weight = 0;
        let wanted = shards("docs", partitions, &Labels::new());
        let given = assign(&nodes, &wanted);
        prop_assert_eq!(load(&given, &nodes[at].name), 0);
        nodes.remove(at);
        // Of a single one nothing is left, and every shard is nobody's.
        prop_assert_eq!(given.values().all(Option::is_some), !nodes.is_empty());
        prop_assert_eq!(assign(&nodes, &wanted), given);
    }

    #[test]
    fn everybody_comes_to_the_same_result_in_whatever_order(
        names in proptest::collection::btree_set("[a-z]{1,8}", 1..8),
        turn in 0usize..8,
    ) {
        let mut nodes: Vec<_> = names.iter().map(|name| member(name)).collect();
        let mut wanted = shards("docs", 40, &Labels::new());
        let given = assign(&nodes, &wanted);
        nodes.rotate_left(turn % names.len());
        wanted.reverse();
        prop_assert_eq!(assign(&nodes, &wanted), given);
    }
}
