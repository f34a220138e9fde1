//! The main job: create a collection, publish, search, read back, replace, delete.

use std::time::Duration;

use serde_json::json;
use shoal_schemas::v1;
use tonic::Code;

use crate::harness::{
    client::{self, at_least, ids},
    model::Model,
    seed::Random,
    wait, workload,
    world::{self, now_ms, shared},
};

fn proto(id: &str, vector: &[f32]) -> v1::Point {
    v1::Point {
        id: id.to_owned(),
        vector: vector.to_vec(),
        ..v1::Point::default()
    }
}

#[test]
fn what_is_published_is_found_read_counted_replaced_and_deleted() {
    let shared = shared();
    let collection = shared.collection("main", 16, 4);
    let publisher = shared.world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::of(1);
    let points = workload::points(&model, &mut random, "p", 400);
    let tokens: Vec<_> = world::publish(&publisher, &mut model, points.clone())
        .iter()
        .map(shoal_schemas::Token::to_proto)
        .collect();
    let partitions: std::collections::BTreeSet<_> =
        tokens.iter().map(|token| token.partition).collect();
    assert_eq!(partitions.len(), 4, "400 ids fall into every partition");

    // Search by the very vector of a point: over gRPC and HTTP it comes first, and both agree.
    for (id, point) in points.iter().step_by(37) {
        let ask = v1::SearchRequest {
            read: at_least(&tokens),
            with_payload: true,
            with_vector: true,
            ..client::search("main", point.vector.as_slice(), 5)
        };
        let answer = shared.query.search(ask).unwrap();
        assert_eq!(answer.hits.len(), 5);
        assert_eq!(answer.hits[0].id, id.as_str());
        assert!(answer.hits[0].distance.abs() < 1e-5, "{:?}", answer.hits[0]);
        assert_eq!(answer.hits[0].vector, point.vector.as_slice());
        assert_eq!(answer.hits[0].payload, point.payload.to_proto());
        let ordered = answer
            .hits
            .windows(2)
            .all(|pair| pair[0].distance <= pair[1].distance);
        assert!(ordered, "{:?}", answer.hits);
        let coverage = answer.coverage.unwrap();
        assert_eq!((coverage.shards_asked, coverage.shards_answered), (4, 4));

        let body = json!({"vector": point.vector.as_slice(), "k": 5, "with_payload": true});
        let (status, found) = shared.query.post("/v1/collections/main/search", &body);
        assert_eq!(status, 200, "{found}");
        let by_http: Vec<_> = found["hits"].as_array().unwrap().iter().collect();
        let found_ids: Vec<_> = by_http
            .iter()
            .map(|hit| hit["id"].as_str().unwrap())
            .collect();
        assert_eq!(found_ids, ids(&answer.hits));
        for (hit, other) in by_http.iter().zip(&answer.hits) {
            let distance = hit["distance"].as_f64().unwrap();
            assert!((distance - f64::from(other.distance)).abs() < 1e-6);
            assert_eq!(hit["version"], other.version.to_string());
        }
        assert_eq!(
            by_http[0]["payload"]["title"],
            json!(point.payload.to_json()["title"])
        );
    }

    // Read back by id, over both ways.
    let wanted: Vec<String> = points
        .iter()
        .map(|(id, _)| id.as_str().to_owned())
        .collect();
    let ask = v1::GetRequest {
        collection: "main".to_owned(),
        ids: wanted.clone(),
        with_vector: true,
        read: at_least(&tokens),
        ..v1::GetRequest::default()
    };
    let got = shared.query.get(ask).unwrap();
    assert_eq!(got.points.len(), 400);
    for (stored, token) in got.points.iter().zip(&tokens) {
        let point = stored.point.as_ref().unwrap();
        assert_eq!(point.id, token.key);
        assert_eq!(
            (stored.partition, stored.offset),
            (token.partition, token.offset)
        );
        assert_eq!(stored.version, token.version);
    }
    let (status, one) = client::json(
        reqwest::Method::GET,
        shared.query.http,
        "/v1/collections/main/points/p-7?with_vector=true",
        &json!({}),
    );
    assert_eq!((status, one["point"]["id"].as_str()), (200, Some("p-7")));
    let (status, gone) = client::json(
        reqwest::Method::GET,
        shared.query.http,
        "/v1/collections/main/points/nobody",
        &json!({}),
    );
    assert_eq!(
        (status, gone["error"]["code"].as_str()),
        (404, Some("NOT_FOUND"))
    );

    // An update replaces the point as a whole.
    let (id, _) = &points[3];
    let replaced = workload::point(&model, &mut random);
    let tokens = world::publish(&publisher, &mut model, vec![(id.clone(), replaced.clone())]);
    let ask = v1::GetRequest {
        collection: "main".to_owned(),
        ids: vec![id.as_str().to_owned()],
        with_vector: true,
        read: at_least(&[tokens[0].to_proto()]),
        ..v1::GetRequest::default()
    };
    let got = shared.query.get(ask).unwrap();
    assert_eq!(
        got.points[0].point.as_ref().unwrap().vector,
        replaced.vector.as_slice()
    );
    assert_eq!(count(&[tokens[0].to_proto()]), (400, 0));

    // A delete takes it out of searches, reads and the count.
    let tokens = world::delete(&publisher, &mut model, std::slice::from_ref(id));
    let read = at_least(&[tokens[0].to_proto()]);
    let ask = v1::SearchRequest {
        read: read.clone(),
        ..client::search("main", replaced.vector.as_slice(), 10)
    };
    let answer = shared.query.search(ask).unwrap();
    assert_eq!(answer.hits.len(), 10);
    assert!(!ids(&answer.hits).contains(&id.as_str()));
    let ask = v1::GetRequest {
        collection: "main".to_owned(),
        ids: vec![id.as_str().to_owned()],
        with_vector: false,
        read,
        ..v1::GetRequest::default()
    };
    assert_eq!(shared.query.get(ask).unwrap().points, []);
    assert_eq!(count(&[tokens[0].to_proto()]), (399, 0));

    // And the shards hold exactly what was written last.
    model.assert_is(&shared.settled(&collection), now_ms());
}

fn count(tokens: &[v1::Token]) -> (u64, u64) {
    let ask = v1::CountRequest {
        collection: "main".to_owned(),
        read: at_least(tokens),
        ..v1::CountRequest::default()
    };
    let counted = shared().query.count(ask).unwrap();
    (counted.points, counted.contested)
}

#[test]
fn a_search_with_its_token_sees_a_write_right_after_the_write() {
    let shared = shared();
    let collection = shared.collection("tokens", 8, 4);
    let mut random = Random::of(2);
    for number in 0..150 {
        let id = format!("t-{}", number % 40);
        let vector = random.vector(8);
        let tokens = shared
            .gateway
            .upsert("tokens", vec![proto(&id, &vector)])
            .unwrap();
        let ask = v1::SearchRequest {
            read: at_least(&tokens),
            with_vector: true,
            ..client::search("tokens", &vector, 1)
        };
        let answer = shared.query.search(ask).unwrap();
        assert_eq!(ids(&answer.hits), [id.as_str()], "write {number}");
        assert_eq!(answer.hits[0].vector, vector, "write {number}");
        if number % 10 == 9 {
            let tokens = shared.gateway.delete("tokens", &[&id]).unwrap();
            let ask = v1::SearchRequest {
                read: at_least(&tokens),
                ..client::search("tokens", &vector, 40)
            };
            let answer = shared.query.search(ask).unwrap();
            assert!(!ids(&answer.hits).contains(&id.as_str()), "delete {number}");
        }
    }
    // Over HTTP the token is a text, and the gateway's answer is what a search takes.
    let body = json!({"points": [{"id": "text", "vector": [9, 0, 0, 0, 0, 0, 0, 0.5]}]});
    let (status, written) = client::json(
        reqwest::Method::PUT,
        shared.gateway.http,
        "/v1/collections/tokens/points",
        &body,
    );
    assert_eq!(status, 200, "{written}");
    let body = json!({
        "vector": [9, 0, 0, 0, 0, 0, 0, 0.5], "k": 1, "at_least": written["tokens"],
    });
    let (status, found) = shared.query.post("/v1/collections/tokens/search", &body);
    assert_eq!(
        (status, found["hits"][0]["id"].as_str()),
        (200, Some("text")),
        "{found}"
    );
    shared.settled(&collection);
}

#[test]
fn a_token_that_cannot_be_honoured_is_refused_or_times_out_but_never_ignored() {
    let shared = shared();
    shared.collection("tokens-a", 8, 4);
    shared.collection("tokens-b", 8, 4);
    let vector = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
    let tokens = shared
        .gateway
        .upsert("tokens-a", vec![proto("x", &vector)])
        .unwrap();

    let other = v1::SearchRequest {
        read: at_least(&tokens),
        ..client::search("tokens-b", &vector, 1)
    };
    let refused = shared.query.search(other).unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.message().contains("embeddings.tokens-a"),
        "{refused}"
    );

    let future = v1::Token {
        offset: tokens[0].offset + 1000,
        ..tokens[0].clone()
    };
    let ask = v1::SearchRequest {
        read: at_least(std::slice::from_ref(&future)),
        ..client::search("tokens-a", &vector, 1)
    };
    let mut search = shared.query.search.clone();
    let request = client::within(Duration::from_millis(600), ask);
    let refused = wait(search.search(request)).unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");

    let text = shoal_schemas::Token::from_proto(future)
        .unwrap()
        .to_string();
    let body = json!({"vector": vector, "k": 1, "at_least": [text]});
    let path = "/v1/collections/tokens-a/search?timeout_ms=400";
    let (status, answer) = shared.query.post(path, &body);
    assert_eq!(
        (status, answer["error"]["code"].as_str()),
        (504, Some("DEADLINE_EXCEEDED")),
        "{answer}"
    );

    let elsewhere = v1::Token {
        partition: 77,
        ..tokens[0].clone()
    };
    let ask = v1::SearchRequest {
        read: at_least(&[elsewhere]),
        ..client::search("tokens-a", &vector, 1)
    };
    assert_eq!(
        shared.query.search(ask).unwrap_err().code(),
        Code::InvalidArgument
    );

    let body = json!({"vector": vector, "k": 1, "at_least": ["no token"]});
    let (status, answer) = shared.query.post("/v1/collections/tokens-a/search", &body);
    assert_eq!(
        (status, answer["error"]["code"].as_str()),
        (400, Some("INVALID_ARGUMENT")),
        "{answer}"
    );
}

#[test]
fn a_point_disappears_when_it_expires() {
    let shared = shared();
    let collection = shared.collection("expiring", 8, 4);
    let publisher = shared.world.publisher(&collection);
    let mut model = Model::new(&collection);
    let mut random = Random::of(3);
    let mut points = workload::points(&model, &mut random, "e", 40);
    let soon = now_ms() + 1500;
    for (_, point) in points.iter_mut().take(10) {
        point.expires_at_ms = Some(soon);
    }
    for (_, point) in points.iter_mut().skip(10).take(10) {
        point.expires_at_ms = Some(now_ms() + 3_600_000);
    }
    let tokens: Vec<_> = world::publish(&publisher, &mut model, points.clone())
        .iter()
        .map(shoal_schemas::Token::to_proto)
        .collect();
    let (id, gone) = &points[0];
    shoal_runtime::eventually(Duration::from_secs(30), "the points to expire", || {
        let ask = v1::CountRequest {
            collection: "expiring".to_owned(),
            read: at_least(&tokens),
            ..v1::CountRequest::default()
        };
        (shared.query.count(ask).unwrap().points == 30).then_some(())
    });
    assert!(now_ms() >= soon, "none expires early");
    let answer = shared
        .query
        .search(client::search("expiring", gone.vector.as_slice(), 40))
        .unwrap();
    assert_eq!(answer.hits.len(), 30);
    assert!(!ids(&answer.hits).contains(&id.as_str()));
    // Expiry only hides: the digest is that of everything written.
    model.assert_is(&shared.settled(&collection), now_ms());
}

#[test]
fn collections_are_made_listed_and_dropped_over_both_ways() {
    let shared = shared();
    let mut client = shared.query.collections.clone();
    let definition = v1::Collection {
        name: "verbs".to_owned(),
        dim: 8,
        metric: v1::Metric::L2.into(),
        partitions: 2,
        partitioner: v1::Partitioner::Murmur2.into(),
        ..v1::Collection::default()
    };
    let ask = |definition: &v1::Collection| v1::CreateCollectionRequest {
        collection: Some(definition.clone()),
    };
    let made = wait(client.create_collection(ask(&definition)))
        .unwrap()
        .into_inner();
    assert!(made.created);
    let again = wait(client.create_collection(ask(&definition)))
        .unwrap()
        .into_inner();
    assert!(!again.created);
    let other = v1::Collection {
        dim: 9,
        ..definition.clone()
    };
    let refused = wait(client.create_collection(ask(&other))).unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    assert!(refused.message().contains("dim"), "{refused}");

    let (status, found) = client::json(
        reqwest::Method::GET,
        shared.query.http,
        "/v1/collections/verbs",
        &json!({}),
    );
    assert_eq!(
        (status, found["collection"]["dim"].as_u64()),
        (200, Some(8)),
        "{found}"
    );

    let body = json!({"dim": 4, "metric": "cosine", "partitions": 1});
    let (status, made) = client::json(
        reqwest::Method::PUT,
        shared.query.http,
        "/v1/collections/verbs-http",
        &body,
    );
    assert!(
        matches!(status, 200 | 201) && made["created"] == true,
        "{status} {made}"
    );
    let listed = wait(client.list_collections(v1::ListCollectionsRequest {}))
        .unwrap()
        .into_inner();
    let names: Vec<_> = listed
        .collections
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert!(
        names.contains(&"verbs") && names.contains(&"verbs-http"),
        "{names:?}"
    );

    let drop = v1::DropCollectionRequest {
        name: "verbs".to_owned(),
        delete_topic: true,
    };
    wait(client.drop_collection(drop)).unwrap();
    let search = client::search("verbs", &[0.0; 8], 1);
    shoal_runtime::eventually(
        Duration::from_secs(30),
        "the dropped collection to be unknown",
        || {
            let refused = shared.query.search(search.clone()).err()?;
            (refused.code() == Code::NotFound).then_some(())
        },
    );
    assert!(
        shared
            .world
            .cluster
            .admin
            .describe_topic("embeddings.verbs")
            .unwrap()
            .is_none()
    );
}
