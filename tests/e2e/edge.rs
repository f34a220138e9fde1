//! Kept answers with a real Redis, and an edge node in front of two query nodes that stand for
//! regions: one is killed, then the other.

use std::{collections::BTreeSet, net::SocketAddr};

use shoal_runtime::eventually;
use shoal_schemas::{Collection, PointId, v1};
use tonic::Code;

use crate::harness::{
    DEADLINE,
    client::{self, Query},
    model::Model,
    redis::Redis,
    role::{Role, Settings},
    seed::Random,
    topic,
    world::{self, World},
};

const DIM: u32 = 16;
const PARTITIONS: u32 = 2;
const POINTS: usize = 200;

/// A world with one collection in it, and an indexer that serves it.
struct Stage {
    world: World,
    collection: Collection,
    model: Model,
    random: Random,
    indexer: Role,
}

impl Stage {
    fn new(name: &str) -> Self {
        let world = World::new(name);
        let collection = world.collection(name, DIM, PARTITIONS);
        let model = Model::new(&collection);
        let indexer = world.indexer("indexer").start();
        let mut stage = Self {
            world,
            collection,
            model,
            random: Random::of(18),
            indexer,
        };
        stage.publish(0..POINTS);
        stage.world.settled(&stage.indexer, &stage.collection);
        stage
    }

    fn publish(&mut self, numbers: std::ops::Range<usize>) -> Vec<v1::Token> {
        let publisher = self.world.publisher(&self.collection);
        let points = numbers.map(|number| {
            let id = PointId::new(&format!("p-{number}")).unwrap();
            let vector = self.random.vector(DIM);
            (id, topic::point(&self.collection, &vector))
        });
        let points = points.collect();
        let tokens = world::publish(&publisher, &mut self.model, points);
        tokens.iter().map(shoal_schemas::Token::to_proto).collect()
    }

    fn ask(&mut self) -> v1::SearchRequest {
        let vector = self.random.vector(DIM);
        client::search(self.collection.name.as_str(), &vector, 10)
    }

    /// Searches that shards have done.
    fn searched(&self) -> f64 {
        self.indexer.metrics().sum("indexer_searches_total", &[])
    }

    /// A node that answers searches of the collection.
    fn query(&self, settings: &Settings) -> (Role, Query) {
        let role = settings.start();
        let query = to(&role);
        let ask = v1::CountRequest {
            collection: self.collection.name.to_string(),
            read: client::at_least(&[]),
            ..v1::CountRequest::default()
        };
        eventually(DEADLINE, "every shard to serve", || {
            query.count(ask.clone()).ok()
        });
        (role, query)
    }
}

fn to(role: &Role) -> Query {
    Query::to(role.settings.grpc, role.settings.http)
}

fn coverage(answer: &v1::SearchResponse) -> &v1::Coverage {
    answer.coverage.as_ref().unwrap()
}

#[test]
fn nodes_share_kept_answers_through_redis_until_a_write_and_do_without_it() {
    let mut stage = Stage::new("edge-kept");
    let redis = Redis::start(&stage.world.folder);
    let node = |name: &str, memory: &str| {
        let settings = stage.world.query(name).with("QUERY__CACHE__MEMORY", memory);
        settings.with("QUERY__CACHE__REDIS", redis.url())
    };
    // Neither has what the other kept but through Redis; one has no memory at all.
    let (one_role, one) = stage.query(&node("one", "0 B"));
    let (other_role, other) = stage.query(&node("other", "8 MiB"));

    let asks: Vec<_> = (0..20).map(|_| stage.ask()).collect();
    let first: Vec<_> = asks
        .iter()
        .map(|ask| one.search(ask.clone()).unwrap())
        .collect();
    // What a node keeps is on its way for a moment.
    let is_there = || {
        let before = stage.searched();
        for (ask, first) in asks.iter().zip(&first) {
            assert_eq!(other.search(ask.clone()).unwrap().hits, first.hits);
        }
        (stage.searched() == before).then_some(())
    };
    eventually(DEADLINE, "the other node to find every answer", is_there);
    let of = |role: &Role, name: &str, label: &str| role.metrics().sum(name, &[label]);
    assert!(of(&other_role, "query_cache_lookups_total", "unchanged") >= 20.0);

    // A write, anywhere, and every shard that has it answers anew.
    let tokens = stage.publish(0..50);
    let read = client::at_least(&tokens);
    for ask in &asks {
        let with_token = v1::SearchRequest {
            read: read.clone(),
            ..ask.clone()
        };
        let exact = v1::SearchRequest {
            exact: true,
            ..ask.clone()
        };
        let shown: BTreeSet<_> = [with_token, ask.clone()]
            .map(|ask| {
                let answer = other.search(ask).unwrap();
                assert_eq!(coverage(&answer).age_ms, None);
                client::ids(&answer.hits).join(" ")
            })
            .into();
        let expected = one.search(exact).unwrap();
        assert_eq!(
            shown,
            BTreeSet::from([client::ids(&expected.hits).join(" ")])
        );
    }

    // A Redis that hangs, and one that is gone, fail nothing.
    redis.pause();
    for ask in &asks {
        one.search(ask.clone()).unwrap();
    }
    assert!(of(&one_role, "query_cache_store_failures_total", "") >= 20.0);
    redis.resume();
    let found = of(&one_role, "query_cache_found_total", "redis");
    eventually(DEADLINE, "Redis to be asked again", || {
        one.search(asks[0].clone()).unwrap();
        (of(&one_role, "query_cache_found_total", "redis") > found).then_some(())
    });
    drop(redis);
    for ask in &asks {
        one.search(ask.clone()).unwrap();
        other.search(ask.clone()).unwrap();
    }
    one_role.had_no_errors(&[]);
    other_role.had_no_errors(&[]);
}

/// An edge node in front of regions; it is told of no Kafka that is there.
fn edge(stage: &Stage, name: &str, regions: &[(&str, SocketAddr)]) -> Settings {
    let regions = regions
        .iter()
        .map(|(name, address)| format!("{{name = \"{name}\", address = \"{address}\"}}"));
    let regions: Vec<String> = regions.collect();
    let settings = Settings::query(name, &stage.world.folder, "127.0.0.1:1");
    settings
        .with("QUERY__EDGE__REGIONS", format!("[{}]", regions.join(", ")))
        .with("QUERY__EDGE__PROBE_INTERVAL", "100ms")
}

#[test]
fn an_edge_node_outlives_its_regions_and_says_whose_answer_it_gives_and_how_old_it_is() {
    let mut stage = Stage::new("regions");
    let redis = Redis::start(&stage.world.folder);
    let settings = ["east", "west"].map(|name| stage.world.query(name));
    let [(east_role, east), (west_role, _west)] = settings.each_ref().map(|one| stage.query(one));
    let regions = [
        ("east", east_role.settings.grpc),
        ("west", west_role.settings.grpc),
    ];
    let kept = edge(&stage, "edge", &regions)
        .with("QUERY__CACHE__MEMORY", "8 MiB")
        .with("QUERY__CACHE__REDIS", redis.url())
        .with("QUERY__EDGE__MAX_STALE", "1h");
    let edge_role = kept.start();
    let near = to(&edge_role);

    let asks: Vec<_> = (0..10).map(|_| stage.ask()).collect();
    let mut given = Vec::new();
    for ask in &asks {
        let answer = near.search(ask.clone()).unwrap();
        assert_eq!(answer.hits, east.search(ask.clone()).unwrap().hits);
        assert!(["east", "west"].contains(&coverage(&answer).region.as_str()));
        assert_eq!(coverage(&answer).age_ms, None);
        given.push(answer);
    }
    // Over HTTP too, and tokens hold across the edge.
    let tokens = stage.publish(0..10);
    let with_token = v1::SearchRequest {
        read: client::at_least(&tokens),
        ..asks[0].clone()
    };
    assert_eq!(
        coverage(&near.search(with_token.clone()).unwrap()).age_ms,
        None
    );
    let name = stage.collection.name.as_str();
    let body = serde_json::json!({"vector": asks[0].vector, "k": 10});
    let (status, told) = near.post(&format!("/v1/collections/{name}/search"), &body);
    assert_eq!(status, 200, "{told}");
    assert!(told["coverage"]["region"].is_string(), "{told}");
    for ask in &asks {
        given.push(near.search(ask.clone()).unwrap());
    }

    // The one that answers dies; no call fails.
    let first = coverage(given.last().unwrap()).region.clone();
    let (mut dead, mut alive) = match first.as_str() {
        "east" => (Some(east_role), Some(west_role)),
        _ => (Some(west_role), Some(east_role)),
    };
    dead.take().unwrap().child.kill();
    for ask in asks.iter().cycle().take(100) {
        let answer = near.search(ask.clone()).unwrap();
        assert_ne!(coverage(&answer).region, first);
        assert_eq!(coverage(&answer).age_ms, None);
    }
    let up = |region: &str| {
        let label = format!("region=\"{region}\"");
        edge_role
            .metrics()
            .sum("query_edge_region_reachable", &[&label])
    };
    eventually(DEADLINE, "the edge node to leave it alone", || {
        (up(&first) == 0.0).then_some(())
    });
    let rtt = edge_role
        .metrics()
        .samples("network_cross_region_rtt_ms", &[]);
    assert_eq!(rtt.len(), 2);
    assert!(rtt.iter().all(|rtt| *rtt > 0.0));

    // So does the other one: what was kept is given, and says so.
    alive.take().unwrap().child.kill();
    for (ask, before) in asks.iter().zip(&given) {
        let answer = near.search(ask.clone()).unwrap();
        assert!(coverage(&answer).age_ms.is_some());
        assert_ne!(coverage(&answer).region, "");
        assert_eq!(answer.hits.len(), before.hits.len());
    }
    let unknown = near.search(stage.ask()).unwrap_err();
    assert_eq!(unknown.code(), Code::Unavailable, "{unknown:?}");
    let with_token = near.search(with_token).unwrap_err();
    assert_eq!(with_token.code(), Code::Unavailable, "{with_token:?}");
    // Also by an edge node that has seen none of it: Redis has.
    let second = kept_as(&kept, &stage, &regions).launch();
    let far = to(&second);
    let answer = eventually(DEADLINE, "the second edge node to listen", || {
        far.search(asks[0].clone()).ok()
    });
    assert!(coverage(&answer).age_ms.is_some());
    drop(redis);

    // One comes back, and so do fresh answers, without Redis.
    let back = settings
        .iter()
        .find(|one| one.name == first)
        .unwrap()
        .start();
    let answer = eventually(DEADLINE, "a fresh answer", || {
        let answer = near.search(asks[0].clone()).ok()?;
        coverage(&answer).age_ms.is_none().then_some(answer)
    });
    assert_eq!(coverage(&answer).region, first);
    edge_role.had_no_errors(&[]);
    second.had_no_errors(&[]);
    back.had_no_errors(&[]);
}

/// Another edge node with the same settings but its own addresses.
fn kept_as(settings: &Settings, stage: &Stage, regions: &[(&str, SocketAddr)]) -> Settings {
    let mut second = edge(stage, "second-edge", regions);
    for (name, value) in &settings.variables {
        if name.contains("CACHE") || name.contains("MAX_STALE") {
            second.variables.push((name.clone(), value.clone()));
        }
    }
    second
}
