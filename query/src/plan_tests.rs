//! Plans over small maps, with standings and chance as the tests say.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::Cell;

use proptest::{collection::vec, prelude::*};
use shoal_schemas::{Collection, Metric, Offset, Partition, control::Claim};

use super::{Choice, Plan, Rank, Standing, plan};
use crate::shard_map::{Replica, ShardMap, Shards};

const SETS: [Option<&str>; 3] = [None, Some("b"), Some("c")];

/// A map of shards, each with a node and its readiness for each set; 0 is nobody.
fn shards(claims: &[[(u8, bool); 3]]) -> Shards {
    let count = u32::try_from(claims.len()).unwrap();
    let dim = 3.try_into().unwrap();
    let docs = Collection::new("docs".parse().unwrap(), dim, Metric::L2, count);
    let mut shards = Shards::unclaimed(docs);
    for (shard, nodes) in (0..).map(Partition).zip(claims) {
        for (set, (node, ready)) in SETS.iter().zip(nodes) {
            let claim = Claim {
                node: format!("n{node}"),
                address: format!("n{node}:1"),
                ready: *ready,
                next_offset: None,
                early: false,
            };
            let replica = Replica {
                set: set.map(|set| set.parse().unwrap()),
                ..Replica::owner(claim, Offset(0))
            };
            if *node > 0 {
                shards.claim(shard, replica);
            }
        }
    }
    shards
}

/// A shard of node 1, which answers early, and of node 2, which has caught up.
fn one_is_early() -> Shards {
    let mut shards = twice(&[(1, 2)]);
    let mut early = shards.replicas(Partition(0))[0].clone();
    early.claim.early = true;
    early.epoch = Offset(1);
    shards.claim(Partition(0), early);
    shards
}

fn owned(nodes: &[u8]) -> Shards {
    let claims: Vec<_> = (nodes.iter())
        .map(|node| [(*node, true), (0, false), (0, false)])
        .collect();
    shards(&claims)
}

fn twice(nodes: &[(u8, u8)]) -> Shards {
    let claims: Vec<_> = (nodes.iter())
        .map(|(a, b)| [(*a, true), (*b, true), (0, false)])
        .collect();
    shards(&claims)
}

const IDLE: Standing = Standing {
    rank: Rank::Fit,
    load: 1.0,
};

fn planned(shards: &Shards, standing: &dyn Fn(&str) -> Standing, chance: usize) -> Plan {
    let choice = Choice {
        may_ask: &|_, _| true,
        standing,
        chance: &|below| chance % below,
    };
    plan(shards, shards.numbers(), &choice)
}

fn asked(plan: &Plan) -> Vec<(&str, Vec<u32>)> {
    let shards = |shards: &[Partition]| shards.iter().map(|shard| shard.0).collect();
    let asks = plan.asks.iter();
    asks.map(|ask| (ask.node.as_str(), shards(&ask.shards)))
        .collect()
}

#[test]
fn a_node_is_asked_once_for_all_its_shards() {
    let plan = planned(&owned(&[1, 2, 1]), &|_| IDLE, 0);
    assert_eq!(asked(&plan), [("n1", vec![0, 2]), ("n2", vec![1])]);
}

#[test]
fn a_shard_without_a_serving_replica_says_why() {
    let nobody = [(0, false); 3];
    let restoring = [(1, false), (2, false), (0, false)];
    let plan = planned(&shards(&[nobody, restoring]), &|_| IDLE, 0);
    assert!(plan.asks.is_empty());
    let [free, restoring] = plan.orphans.as_slice() else {
        panic!("{plan:?}");
    };
    assert!(free.why.contains("no indexer has claimed") && free.node.is_empty());
    assert!(restoring.why.contains("does not serve it now") && restoring.node == "n1");
}

#[test]
fn a_replica_serves_where_the_owner_does_not() {
    let plan = planned(
        &shards(&[[(1, false), (2, true), (0, false)]]),
        &|_| IDLE,
        0,
    );
    assert_eq!(asked(&plan), [("n2", vec![0])]);
}

#[test]
fn evenly_loaded_replicas_are_asked_in_as_few_calls_as_there_are_nodes_in_a_set() {
    // Cut differently: {0, 1}, {2, 3} and {0, 2}, {1, 3}.
    let shards = twice(&[(1, 3), (1, 4), (2, 3), (2, 4)]);
    for chance in 0..12 {
        let plan = planned(&shards, &|_| IDLE, chance);
        assert_eq!(plan.asks.len(), 2, "{plan:?}");
    }
}

#[test]
fn chance_decides_between_equal_replicas_and_load_between_unequal_ones() {
    let shards = twice(&[(1, 2)]);
    let nodes: Vec<String> = (0..2)
        .map(|chance| planned(&shards, &|_| IDLE, chance).asks[0].node.clone())
        .collect();
    assert_eq!(nodes, ["n1", "n2"]);
    let busy = |address: &str| Standing {
        load: if address == "n1:1" { 2.0 } else { 1.0 },
        ..IDLE
    };
    for chance in 0..2 {
        assert_eq!(planned(&shards, &busy, chance).asks[0].node, "n2");
    }
}

#[test]
fn a_node_that_covers_more_is_left_only_if_it_is_clearly_busier_for_each_shard() {
    let shards = twice(&[(1, 2), (1, 3)]);
    let loaded = |load: f64| {
        move |address: &str| Standing {
            load: if address == "n1:1" { load } else { 1.0 },
            ..IDLE
        }
    };
    assert_eq!(planned(&shards, &loaded(2.0), 0).asks.len(), 1);
    assert_eq!(planned(&shards, &loaded(4.0), 0).asks.len(), 2);
}

#[test]
fn a_node_that_is_out_is_asked_only_where_there_is_no_other() {
    let shards = twice(&[(1, 2), (1, 0)]);
    let out = |address: &str| Standing {
        rank: if address == "n1:1" {
            Rank::Out
        } else {
            Rank::Fit
        },
        load: 0.0,
    };
    for chance in 0..2 {
        let plan = planned(&shards, &out, chance);
        let mut asked = asked(&plan);
        asked.sort();
        assert_eq!(asked, [("n1", vec![1]), ("n2", vec![0])]);
    }
}

#[test]
fn a_node_that_is_due_is_tried() {
    let shards = twice(&[(1, 2)]);
    let due = |address: &str| Standing {
        rank: if address == "n1:1" {
            Rank::Due
        } else {
            Rank::Fit
        },
        load: 9.0,
    };
    for chance in 0..2 {
        assert_eq!(asked(&planned(&shards, &due, chance)), [("n1", vec![0])]);
    }
}

proptest! {
    #[test]
    fn every_wanted_shard_is_asked_once_of_a_serving_node_or_named(
        claims in vec([(0u8..4, any::<bool>()), (4u8..8, any::<bool>()), (8u8..12, any::<bool>())], 1..30),
        loads in vec(0.1f64..9.0, 12),
        start in 0usize..9,
    ) {
        let shards = shards(&claims);
        let load = |address: &str| {
            let node: usize = address[1..].split(':').next().unwrap().parse().unwrap();
            Standing { load: loads[node], ..IDLE }
        };
        let turns = Cell::new(start);
        let choice = Choice {
            may_ask: &|_, replica| replica.claim.node != "n5",
            standing: &load,
            chance: &|below| turns.replace(turns.get() + 7) % below,
        };
        let plan = plan(&shards, shards.numbers(), &choice);
        for ask in &plan.asks {
            for shard in &ask.shards {
                let by = shards.replicas(*shard).iter().find(|one| one.claim.node == ask.node);
                prop_assert!(by.unwrap().claim.ready && ask.node != "n5");
            }
        }
        let mut seen: Vec<Partition> = plan.asks.iter().flat_map(|ask| ask.shards.clone())
            .chain(plan.orphans.iter().map(|orphan| orphan.shard))
            .collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, shards.numbers().collect::<Vec<_>>());
        let mut nodes: Vec<_> = plan.asks.iter().map(|ask| ask.node.clone()).collect();
        nodes.sort();
        nodes.dedup();
        prop_assert_eq!(nodes.len(), plan.asks.len());
    }
}

#[test]
fn a_shard_that_no_node_may_serve_says_which_labels_are_missing() {
    let dim = 3.try_into().unwrap();
    let mut docs = Collection::new("docs".parse().unwrap(), dim, Metric::L2, 1);
    docs.placement = [("gpu".to_owned(), "true".to_owned())].into();
    let told = |nodes: &[(&str, &str)]| {
        let nodes = nodes.iter().map(|(name, gpu)| {
            let labels = [("gpu".to_owned(), (*gpu).to_owned())].into();
            ((*name).to_owned(), labels)
        });
        let map = ShardMap::with_nodes([docs.clone()], [], nodes.collect(), true);
        let plan = planned(map.find("docs").unwrap(), &|_| IDLE, 0);
        plan.orphans[0].why.clone()
    };
    assert!(
        told(&[]).contains("needs gpu=true; is one"),
        "{}",
        told(&[])
    );
    let nobody = told(&[("a", "false"), ("b", "no")]);
    assert!(nobody.contains("none of the 2"), "{nobody}");
    let away = told(&[("a", "true")]);
    assert!(away.contains("is one with these labels running"), "{away}");
}

#[test]
fn a_node_that_has_not_caught_up_is_asked_where_nobody_else_can_answer() {
    let shards = one_is_early();
    let idle = |_: &str| IDLE;
    for chance in 0..2 {
        let plan = planned(&shards, &idle, chance);
        assert_eq!(asked(&plan), [("n2", vec![0])]);
        assert_eq!(plan.asks[0].rank, Rank::Fit);
    }
    // The claim of a node that died says that it serves.
    let one_died = |address: &str| Standing {
        rank: if address == "n2:1" {
            Rank::Out
        } else {
            Rank::Fit
        },
        ..IDLE
    };
    let plan = planned(&shards, &one_died, 0);
    assert_eq!(asked(&plan), [("n1", vec![0])]);
    assert_eq!(plan.asks[0].rank, Rank::Behind, "it is hedged with nobody");
}
