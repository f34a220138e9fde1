//! Whatever shards are asked for, the answer is the nearest of all of them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::{BoxFuture, FutureExt as _};
use proptest::{collection::vec, prelude::*};
use shoal_schemas::{
    Collection, FieldKind, Metric, Partition, Payload, Point, PointId, Value, Vector,
    control::Claim, route, v1,
};

use crate::{
    Coordinator,
    call::Call,
    client::{
        CallError, ShardCall, ShardClient,
        memory::{Node, Nodes},
    },
    coordinator::{
        HomeCluster, Limits,
        nearest::{GROUPS_AGAIN, of_groups},
    },
    merge::by_distance_then_id,
    shard_map::{Maps, Replica, ShardMap},
};

#[test]
fn what_is_told_of_a_group_later_keeps_its_expiry() {
    let list = |expires_at_ms| v1::HitList {
        expires_at_ms,
        ..v1::HitList::default()
    };
    let further = [0, 2, 2, 2].map(|at| (at, v1::Value::default()));
    let body = of_groups(vec![list(0), list(9), list(0), list(7)], &further, 3);
    let told: Vec<_> = body
        .iter()
        .map(|one| (one.groups.len(), one.expires_at_ms))
        .collect();
    assert_eq!(told, [(1, 0), (0, 0), (3, 7)]);
}

/// A coordinator over one node that has all shards of a collection.
fn over(docs: &Collection, node: &Arc<Node>) -> Coordinator {
    let claim = Claim {
        node: "a".into(),
        address: "a".into(),
        ready: true,
        next_offset: None,
        early: false,
    };
    let claims = (0..docs.partitions).map(|shard| {
        node.host(docs, Partition(shard));
        let owner = Replica::owner(claim.clone(), shoal_schemas::Offset(0));
        (docs.name.clone(), Partition(shard), owner)
    });
    let map = ShardMap::new([docs.clone()], claims, true);
    let (_keep, maps) = Maps::channel(map);
    let nodes = Arc::new(Nodes::default().with("a", node.clone()));
    Coordinator::new(Limits::default(), maps, nodes, HomeCluster::default())
}

#[tokio::test]
async fn the_nearest_groups_are_asked_for_again_and_the_others_say_that_they_may_lack_hits() {
    const GROUPS: u16 = 300;
    let mut docs = Collection::new(
        "docs".parse().unwrap(),
        2.try_into().unwrap(),
        Metric::L2,
        2,
    );
    docs.fields = [("group".to_owned(), FieldKind::Integer)].into();
    let node = Node::new("a");
    let coordinator = over(&docs, &node);
    let of = &docs;
    let mut ids = [0, 1].map(|shard| {
        let ids = (0..).map(|number| PointId::new(&format!("p{number}")).unwrap());
        ids.filter(move |id| route::partition_of(of, id).0 == shard)
    });
    let mut put = |shard: usize, place: u16, group: u16| {
        let value = Value::Integer(group.into());
        let point = Point {
            vector: Vector::new(&[f32::from(place), 0.0], docs.dim, Metric::L2).unwrap(),
            payload: Payload([("group".to_owned(), value)].into()),
            model: None,
            event_time_ms: None,
            expires_at_ms: None,
        };
        let id = ids[shard].next().unwrap();
        node.upsert(&docs, &id, &point).unwrap();
    };
    // One shard has the near hit of each group, the other the far one behind as many other groups.
    for group in 0..GROUPS {
        put(0, group, group);
        put(1, 10_000 + group, group);
        put(1, 5_000 + group, 1_000 + group);
    }
    let request = v1::SearchRequest {
        collection: "docs".into(),
        vector: vec![0.0, 0.0],
        k: GROUPS.into(),
        exact: true,
        group_by: Some(v1::GroupBy {
            field: "group".into(),
            group_size: 2,
        }),
        ..v1::SearchRequest::default()
    };
    let call = Call::within(Duration::from_secs(60));
    let groups = coordinator.search(request, call).await.unwrap().groups;
    assert_eq!(groups.len(), usize::from(GROUPS));
    for (at, group) in groups.iter().enumerate() {
        let is_asked_for = at < GROUPS_AGAIN;
        let told = (group.hits.len(), group.may_lack_hits);
        assert_eq!(told, (1 + usize::from(is_asked_for), !is_asked_for), "{at}");
    }
}

/// `google.rpc.Code.UNAVAILABLE`.
const UNAVAILABLE: i32 = 14;

/// Nodes of which `a` loses its answer of shard 0 on the way, where it was asked for others, too.
struct Losing {
    nodes: Nodes,
    lost: AtomicUsize,
}

macro_rules! passed_on {
    ($($method:ident, $request:ident, $response:ident;)*) => {
        $(fn $method<'a>(
            &'a self,
            address: &'a str,
            request: v1::$request,
            call: ShardCall,
        ) -> BoxFuture<'a, Result<v1::$response, CallError>> {
            self.nodes.$method(address, request, call)
        })*
    };
}

impl ShardClient for Losing {
    fn search_shards<'a>(
        &'a self,
        address: &'a str,
        request: v1::SearchShardsRequest,
        call: ShardCall,
    ) -> BoxFuture<'a, Result<v1::SearchShardsResponse, CallError>> {
        let losing = async move {
            let is_lost = address == "a" && request.shards.len() > 1;
            let mut answer = self.nodes.search_shards(address, request, call).await?;
            for shard in answer.shards.iter_mut().filter(|_| is_lost) {
                let coverage = shard.coverage.as_mut().unwrap();
                if coverage.shard == 0 {
                    coverage.answered = false;
                    shard.code = UNAVAILABLE;
                    shard.results.clear();
                    self.lost.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(answer)
        };
        losing.boxed()
    }

    passed_on! {
        get_points, GetPointsRequest, GetPointsResponse;
        shard_status, ShardStatusRequest, ShardStatusResponse;
        count_points, CountPointsRequest, CountPointsResponse;
        shard_scroll, ShardScrollRequest, ShardScrollResponse;
    }

    fn retain(&self, addresses: &BTreeSet<String>) {
        self.nodes.retain(addresses);
    }
}

#[tokio::test]
async fn what_a_node_left_out_for_a_shard_that_another_answers_is_asked_for_again() {
    let docs = Collection::new(
        "docs".parse().unwrap(),
        2.try_into().unwrap(),
        Metric::L2,
        2,
    );
    let claim = |address: &str| Claim {
        node: address.into(),
        address: address.into(),
        ready: true,
        next_offset: None,
        early: false,
    };
    let owner = |address| Replica::owner(claim(address), shoal_schemas::Offset(0));
    let replica = |address| Replica {
        set: Some("second".parse().unwrap()),
        ..owner(address)
    };
    let [a, b] = ["a", "b"].map(Node::new);
    let put = |node: &Node, shard: u32, place: u16| {
        let ids = (0..).map(|number| PointId::new(&format!("p{place}-{number}")).unwrap());
        let id = ids
            .into_iter()
            .find(|id| route::partition_of(&docs, id).0 == shard);
        let point = v1::Point {
            id: id.unwrap().as_str().into(),
            vector: vec![f32::from(place), 0.0],
            ..v1::Point::default()
        };
        let (id, point) = Point::from_proto(point, &docs).unwrap();
        node.upsert(&docs, &id, &point).unwrap();
    };
    for shard in [0, 1] {
        a.host(&docs, Partition(shard));
    }
    b.host(&docs, Partition(0));
    for number in 0..5 {
        // What one copy of shard 0 has is not in the other yet.
        put(&a, 0, number);
        put(&a, 1, 10 + number);
        put(&b, 0, 100 + number);
    }
    let client = Arc::new(Losing {
        nodes: Nodes::default().with("a", a).with("b", b),
        lost: AtomicUsize::new(0),
    });
    // Which copy is asked is a matter of chance.
    for _ in 0..100 {
        let (of_zero, of_one) = ([owner("a"), replica("b")], [owner("a")]);
        let claims = of_zero
            .map(|one| (docs.name.clone(), Partition(0), one))
            .into_iter();
        let claims = claims.chain(of_one.map(|one| (docs.name.clone(), Partition(1), one)));
        let (_keep, maps) = Maps::channel(ShardMap::new([docs.clone()], claims, true));
        let home = HomeCluster::default();
        let coordinator = Coordinator::new(Limits::default(), maps, client.clone(), home);
        let before = client.lost.load(Ordering::Relaxed);
        let request = v1::SearchRequest {
            collection: "docs".into(),
            vector: vec![0.0, 0.0],
            k: 3,
            exact: true,
            ..v1::SearchRequest::default()
        };
        let call = Call::within(Duration::from_secs(60));
        let answer = coordinator.search(request, call).await.unwrap();
        let places: Vec<f32> = answer.hits.iter().map(|hit| hit.distance.sqrt()).collect();
        if client.lost.load(Ordering::Relaxed) > before {
            assert_eq!(places, [10.0, 11.0, 12.0]);
        }
    }
    assert!(client.lost.load(Ordering::Relaxed) > 0);
}

/// Places of points; those of the first shard are drawn together by so much.
#[derive(Clone, Debug)]
struct Points {
    shards: u32,
    places: Vec<u16>,
    crowding: u16,
}

fn points() -> impl Strategy<Value = Points> {
    (2u32..12, vec(0u16..2000, 0..150), 1u16..50).prop_map(|(shards, places, crowding)| Points {
        shards,
        places,
        crowding,
    })
}

proptest! {
    // Each case is a whole coordinator.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn asking_shards_for_their_share_answers_what_asking_them_for_all_does(
        points in points(), k in 1u32..40, offset in 0u32..20, after in proptest::option::of(0u16..2000),
        most in proptest::option::of(0u16..2000),
    ) {
        let docs = Collection::new(
            "docs".parse().unwrap(), 2.try_into().unwrap(), Metric::L2, points.shards,
        );
        let node = Node::new("a");
        let coordinator = over(&docs, &node);
        let mut all = Vec::new();
        for (number, place) in points.places.iter().enumerate() {
            let id = PointId::new(&format!("p{number}")).unwrap();
            let is_crowded = route::partition_of(&docs, &id).0 == 0;
            let place = if is_crowded { place / points.crowding } else { *place };
            let point = v1::Point {
                id: id.as_str().into(),
                vector: vec![f32::from(place), 0.0],
                ..v1::Point::default()
            };
            let (id, point) = Point::from_proto(point, &docs).unwrap();
            node.upsert(&docs, &id, &point).unwrap();
            all.push(v1::Hit {
                id: id.as_str().into(),
                distance: f32::from(place) * f32::from(place),
                ..v1::Hit::default()
            });
        }
        let after = after.filter(|_| offset == 0).map(|at| v1::After {
            distance: f32::from(at) * f32::from(at),
            id: "p5".into(),
        });
        let most = most.map(|at| f32::from(at) * f32::from(at));
        all.sort_by(by_distance_then_id);
        all.retain(|hit| {
            let is_behind = after.as_ref().is_none_or(|after| {
                let last = v1::Hit {
                    id: after.id.clone(),
                    distance: after.distance,
                    ..v1::Hit::default()
                };
                by_distance_then_id(hit, &last).is_gt()
            });
            is_behind && most.is_none_or(|most| hit.distance <= most)
        });
        let expected: Vec<String> = all
            .into_iter()
            .skip(offset.try_into().unwrap())
            .take(k.try_into().unwrap())
            .map(|hit| hit.id)
            .collect();
        let request = v1::SearchRequest {
            collection: "docs".into(),
            vector: vec![0.0, 0.0],
            k,
            offset,
            after,
            max_distance: most,
            exact: true,
            ..v1::SearchRequest::default()
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let call = Call::within(Duration::from_secs(60));
        let answer = runtime.block_on(coordinator.search(request, call)).unwrap();
        let found: Vec<String> = answer.hits.into_iter().map(|hit| hit.id).collect();
        prop_assert_eq!(found, expected);
    }
}
