//! The broker is away, at start and in the middle: every role waits, says so, and goes on.

use shoal_runtime::{clock::Stopwatch, eventually};
use shoal_schemas::v1;
use tonic::Code;

use crate::harness::{
    DEADLINE,
    client::{self, ids},
    model::Model,
    role::Role,
    seed::Random,
    wait, workload,
    world::{self, World, now_ms},
};

const DIM: u32 = 8;

fn waits(role: &mut Role) {
    let name = role.settings.name.clone();
    let told = eventually(DEADLINE, &format!("{name} to listen"), || {
        role.child.lives();
        let (status, text) = client::try_get(role.settings.http, "/readyz")?;
        assert_eq!(status, 503, "{name} is not ready without a broker: {text}");
        Some(text)
    });
    assert!(!told.trim().is_empty(), "{name} says what it waits for");
    assert_eq!(client::get(role.settings.http, "/healthz").0, 200);
    says_it_waits(role);
}

/// Waits until the role has warned that it waits for a broker.
fn says_it_waits(role: &mut Role) {
    let name = role.settings.name.clone();
    eventually(
        DEADLINE,
        &format!("{name} to log that it waits for a broker"),
        || {
            role.child.lives();
            let mut lines = role.child.logged().into_iter();
            lines.find(|line| line["level"] == "WARN" && line.to_string().contains("broker"))
        },
    );
}

#[test]
fn every_role_waits_for_a_broker_that_is_not_there_yet_and_goes_on_once_it_is() {
    let mut world = World::without_broker("late-broker");
    let mut indexer = world.indexer("indexer").launch();
    let mut query = world.query("query").launch();
    let mut gateway = world.gateway("gateway").launch();
    for role in [&mut indexer, &mut query, &mut gateway] {
        waits(role);
    }
    let asked = client::Query::to(query.settings.grpc, query.settings.http);
    let refused = asked
        .search(client::search("docs", &[1.0; 8], 1))
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");

    world.kafka.start();
    for role in [&mut indexer, &mut query, &mut gateway] {
        role.is_ready();
    }
    // The whole way works, from the definition on.
    let definition = v1::Collection {
        name: "docs".to_owned(),
        dim: DIM,
        metric: v1::Metric::Cosine.into(),
        partitions: 2,
        partitioner: v1::Partitioner::Murmur2.into(),
        ..v1::Collection::default()
    };
    let ask = v1::CreateCollectionRequest {
        collection: Some(definition),
    };
    assert!(
        wait(asked.collections.clone().create_collection(ask))
            .unwrap()
            .into_inner()
            .created
    );
    let writes = client::Gateway::to(gateway.settings.grpc, gateway.settings.http);
    let point = v1::Point {
        id: "first".to_owned(),
        vector: vec![1.0; 8],
        ..v1::Point::default()
    };
    // A gateway learns of the definition a moment after it was made.
    let tokens = eventually(DEADLINE, "the gateway to know the collection", || {
        writes.upsert("docs", vec![point.clone()]).ok()
    });
    let ask = v1::SearchRequest {
        read: client::at_least(&tokens),
        ..client::search("docs", &[1.0; 8], 1)
    };
    let answer = eventually(DEADLINE, "the shards to serve", || {
        asked.search(ask.clone()).ok()
    });
    assert_eq!(ids(&answer.hits), ["first"]);
    for role in [indexer, query, gateway] {
        role.had_no_errors(&[]);
        role.child.terminate();
    }
}

#[test]
fn while_the_broker_is_away_searches_go_on_and_lag_grows_and_then_all_is_caught_up() {
    let mut world = World::new("outage");
    let collection = world.collection("steady", DIM, 2);
    let mut indexer = world
        .indexer("indexer")
        .with("INDEXER__READY_LAG", "2s")
        .start();
    let mut query = world.query("query").start();
    let publisher = world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::of(21);
    let points = workload::points(&model, &mut random, "before", 200);
    world::publish(&publisher, &mut model, points.clone());
    world.settled(&indexer, &collection);
    let asked = client::Query::to(query.settings.grpc, query.settings.http);
    let ask = client::search("steady", points[0].1.vector.as_slice(), 10);
    let before = eventually(DEADLINE, "the shards to serve", || {
        asked.search(ask.clone()).ok().filter(|answer| {
            answer
                .coverage
                .as_ref()
                .is_some_and(|coverage| coverage.shards_answered == 2)
        })
    });
    assert_eq!(before.hits[0].id, "before-0");

    world.kafka.stop();
    // Lag is told from what the broker says, so it grows while nothing is heard.
    let lag = |answer: &v1::SearchResponse| {
        let shards = &answer.coverage.as_ref().unwrap().shards;
        shards
            .iter()
            .map(|shard| shard.lag_seconds)
            .fold(f64::INFINITY, f64::min)
    };
    let mut last = 0.0;
    eventually(DEADLINE, "lag of every shard to reach 4 s", || {
        let answer = asked.search(ask.clone()).unwrap();
        assert_eq!(
            answer.hits, before.hits,
            "searches go on, with the same answer"
        );
        let now = lag(&answer);
        assert!(
            now + 3.0 > last,
            "it grows and is never frozen: {last} then {now}"
        );
        last = now;
        (now >= 4.0).then_some(())
    });
    let told = eventually(DEADLINE, "the gauge to show it", || {
        let told = indexer
            .metrics()
            .samples("indexer_lag_seconds", &["steady"]);
        (told.len() == 2 && told.iter().all(|seconds| *seconds >= 4.0)).then_some(told)
    });
    assert!(told.iter().all(|seconds| *seconds < 600.0), "{told:?}");
    let (status, why) = client::get(indexer.settings.http, "/readyz");
    assert!(status == 503 && why.contains("behind"), "{status} {why}");
    says_it_waits(&mut indexer);
    assert_eq!(indexer.child.ended(), None);
    assert_eq!(query.child.ended(), None);

    world.kafka.start();
    let points = workload::points(&model, &mut random, "after", 100);
    world::publish(&publisher, &mut model, points);
    let state = world.settled(&indexer, &collection);
    model.assert_is(&state, now_ms());
    indexer.is_ready();
    query.is_ready();
    let answer = eventually(DEADLINE, "lag to be small again", || {
        let answer = asked.search(ask.clone()).unwrap();
        (lag(&answer) < 2.0).then_some(answer)
    });
    assert_eq!(answer.hits[0].id, "before-0");
    indexer.had_no_errors(&[]);
    query.had_no_errors(&[]);

    // And an indexer that is started while the broker is away comes back from its own disk.
    indexer.child.kill();
    world.kafka.stop();
    let mut alone = world.indexer("indexer").launch();
    waits(&mut alone);
    world.kafka.start();
    alone.is_ready();
    assert_eq!(world.settled(&alone, &collection), state);
}

#[test]
fn a_role_that_waits_for_its_broker_can_be_asked_to_end() {
    let world = World::without_broker("no-broker");
    for settings in [
        world.indexer("indexer"),
        world.query("query"),
        world.gateway("gateway"),
    ] {
        let mut role = settings.launch();
        waits(&mut role);
        let watch = Stopwatch::start();
        role.child.terminate();
        let seconds = watch.seconds();
        assert!(
            seconds < 10.0,
            "{} took {seconds:.1} s to end",
            settings.role
        );
    }
}
