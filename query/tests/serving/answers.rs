//! Good answers: hits, batches, points, counts, metrics, health, reflection.

use shoal_schemas::v1;

use crate::world::{World, collection, fill, ids, near_origin};

#[tokio::test(flavor = "multi_thread")]
async fn hits_of_all_shards_come_as_one_list() {
    let world = World::start().await;
    let docs = collection("docs", 3);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 40);
    let answer = world
        .search()
        .search(near_origin(&docs, 5))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ids(&answer.hits), ["p0", "p1", "p2", "p3", "p4"]);
    assert!(
        answer
            .hits
            .iter()
            .all(|hit| hit.payload.is_empty() && hit.vector.is_empty())
    );
    let coverage = answer.coverage.unwrap();
    assert_eq!((coverage.shards_asked, coverage.shards_answered), (3, 3));
    let nodes: Vec<_> = coverage
        .shards
        .iter()
        .map(|shard| (shard.shard, shard.node.as_str()))
        .collect();
    assert_eq!(nodes, [(0, "node-0"), (1, "node-1"), (2, "node-2")]);
    assert!(indexers.iter().all(|indexer| indexer.seen().len() == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn payload_and_vector_come_when_asked_for() {
    let world = World::start().await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 3);
    let request = v1::SearchRequest {
        with_payload: true,
        with_vector: true,
        ..near_origin(&docs, 1)
    };
    let answer = world.search().search(request).await.unwrap().into_inner();
    let hit = answer.hits.first().unwrap();
    assert_eq!(hit.vector, [0.0, 0.0, 0.0]);
    assert!(hit.payload.contains_key("at") && hit.payload.contains_key("tags"));
    assert!(hit.version > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn k_above_the_number_of_points_gives_them_all() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    let empty = world
        .search()
        .search(near_origin(&docs, 7))
        .await
        .unwrap()
        .into_inner();
    assert!(empty.hits.is_empty());
    fill(&indexers, &docs, 9);
    let answer = world
        .search()
        .search(near_origin(&docs, 10_000))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.hits.len(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_several_shards_is_asked_once() {
    let world = World::start().await;
    let docs = collection("docs", 4);
    world.define(&docs).await;
    let indexer = world.indexer("only").await;
    for shard in 0..4 {
        indexer.node.host(&docs, shoal_schemas::Partition(shard));
        world.claim(&docs, shard, &indexer, true).await;
    }
    fill(std::slice::from_ref(&indexer), &docs, 20);
    let answer = world
        .search()
        .search(near_origin(&docs, 20))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.hits.len(), 20);
    let [seen] = &indexer.seen()[..] else {
        panic!("{:?}", indexer.seen());
    };
    assert_eq!(seen.shards.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_answers_each_query_as_a_search_does() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 30);
    let query = |at: f32, k: u32| v1::Query {
        vector: vec![at, 0.0, 0.0],
        k,
        ..v1::Query::default()
    };
    let queries = vec![query(29.0, 2), query(0.0, 4), query(12.2, 1)];
    let request = v1::SearchBatchRequest {
        collection: "docs".into(),
        queries: queries.clone(),
        read: None,
    };
    let batch = world
        .search()
        .search_batch(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(batch.results.len(), 3);
    for (query, found) in queries.into_iter().zip(&batch.results) {
        let request = v1::SearchRequest {
            vector: query.vector,
            ..near_origin(&docs, query.k)
        };
        let single = world.search().search(request).await.unwrap().into_inner();
        assert_eq!(found.hits, single.hits);
    }
    assert_eq!(ids(&batch.results[0].hits), ["p29", "p28"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn points_come_by_id_and_counts_add_up() {
    let world = World::start().await;
    let docs = collection("docs", 3);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 25);
    let request = v1::GetRequest {
        collection: "docs".into(),
        ids: ["p7", "nobody", "p0", "p24"].map(String::from).to_vec(),
        with_vector: true,
        read: None,
        ..v1::GetRequest::default()
    };
    let answer = world.search().get(request).await.unwrap().into_inner();
    let points: Vec<_> = answer
        .points
        .iter()
        .filter_map(|stored| stored.point.as_ref())
        .collect();
    let found: Vec<_> = points
        .iter()
        .map(|point| (point.id.as_str(), point.vector[0]))
        .collect();
    assert_eq!(found, [("p7", 7.0), ("p0", 0.0), ("p24", 24.0)]);
    assert!(
        answer
            .points
            .iter()
            .all(|stored| stored.topic == "embeddings.docs")
    );
    let request = v1::CountRequest {
        collection: "docs".into(),
        read: None,
        ..v1::CountRequest::default()
    };
    let count = world.search().count(request).await.unwrap().into_inner();
    assert_eq!((count.points, count.contested), (25, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn health_reflection_and_metrics_are_served() {
    let world = World::start().await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 3);
    world.search().search(near_origin(&docs, 1)).await.unwrap();

    let mut health = tonic_health::pb::health_client::HealthClient::new(world.channel());
    for service in ["", "shoal.v1.Search", "shoal.v1.Collections"] {
        let request = tonic_health::pb::HealthCheckRequest {
            service: service.into(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(
            answer.status(),
            tonic_health::ServingStatus::Serving.into(),
            "{service}"
        );
    }

    use tonic_reflection::pb::v1 as reflection;
    let mut client =
        reflection::server_reflection_client::ServerReflectionClient::new(world.channel());
    let question = reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            reflection::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let mut answers = client
        .server_reflection_info(tokio_stream::once(question))
        .await
        .unwrap()
        .into_inner();
    let listed = format!("{:?}", answers.message().await.unwrap());
    for service in [
        "shoal.v1.Search",
        "shoal.v1.Collections",
        "grpc.health.v1.Health",
    ] {
        assert!(listed.contains(service), "{service}: {listed}");
    }

    let metrics = world
        .http
        .get(world.url("/metrics"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    for name in [
        "vector_search_latency_seconds_bucket{stage=\"total\"",
        "vector_search_latency_seconds_bucket{stage=\"shards\"",
        "query_requests_total{verb=\"search\",outcome=\"ok\"}",
        "query_coordinator_seconds_count",
        "query_vectors_total",
        "query_shards_unanswered_total",
    ] {
        assert!(metrics.contains(name), "{name}:\n{metrics}");
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(
            world
                .http
                .get(world.url(path))
                .send()
                .await
                .unwrap()
                .status(),
            200,
            "{path}"
        );
    }
}
