//! Searches by examples: like some points, unlike others, themselves left out.

use serde_json::{Value as Json, json};
use shoal_schemas::{Collection, FieldKind, Payload, Point, PointId, Value, Vector, v1};
use tonic::Code;

use crate::{
    indexer::{Behaviour, Indexer},
    world::{World, collection, ids, point, read},
};

/// Points `acme/0`, `acme/1`, ... at 0, 1, ..., in one of three groups each, and one of another
/// tenant.
async fn opened(world: &World) -> (Collection, Vec<Indexer>) {
    let mut shop = collection("shop", 2);
    shop.route_by_key_prefix = true;
    shop.fields = [
        ("group".to_owned(), FieldKind::Integer),
        ("words".to_owned(), FieldKind::Keyword),
    ]
    .into();
    let indexers = world.spread(&shop).await;
    for n in 0..30u16 {
        put(&indexers, &shop, &format!("acme/{n}"), n);
    }
    put(&indexers, &shop, "other/1", 1);
    (shop, indexers)
}

fn put(indexers: &[Indexer], shop: &Collection, id: &str, n: u16) {
    let words = ["red", "blue", "green"];
    let of = |n: u16| words[usize::from(n % 3)].to_owned();
    let payload = Payload(
        [
            ("group".to_owned(), Value::Integer(i64::from(n / 10))),
            (
                "words".to_owned(),
                Value::Strings(vec![of(n), of(n / 3 + 1)]),
            ),
        ]
        .into(),
    );
    let point = Point {
        payload,
        vector: Vector::new(&[f32::from(n), 0.0, 0.0], shop.dim, shop.metric).unwrap(),
        ..point(shop, 0.0)
    };
    let id = PointId::new(id).unwrap();
    let mut put = (indexers.iter()).map(|one| one.node.upsert(shop, &id, &point));
    assert!(put.any(|put| put.is_some()), "{id}");
}

fn like(positive: &[&str], negative: &[&str], k: u32) -> v1::RecommendRequest {
    let owned = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
    v1::RecommendRequest {
        collection: "shop".into(),
        positive: owned(positive),
        negative: owned(negative),
        query: Some(v1::Query {
            k,
            ..v1::Query::default()
        }),
        read: None,
    }
}

fn with(
    mut request: v1::RecommendRequest,
    change: impl FnOnce(&mut v1::Query),
) -> v1::RecommendRequest {
    change(request.query.as_mut().unwrap());
    request
}

async fn recommend(world: &World, request: v1::RecommendRequest) -> v1::SearchResponse {
    let answer = world.search().recommend(request).await;
    answer.unwrap().into_inner()
}

async fn refusal(world: &World, request: v1::RecommendRequest) -> (Code, String) {
    let refused = world.search().recommend(request).await.unwrap_err();
    (refused.code(), refused.message().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn examples_are_searched_for_and_left_out() {
    let world = World::start().await;
    opened(&world).await;
    // Nearest to 10 are 10, 9 and 11, 8 and 12; of equal distances the smaller id comes first.
    let found = recommend(&world, like(&["acme/10"], &[], 4)).await;
    assert_eq!(ids(&found.hits), ["acme/11", "acme/9", "acme/12", "acme/8"]);
    assert_eq!(found.hits[0].distance, 1.0);
    assert_eq!(found.coverage.unwrap().shards_answered, 2);
    // The mean of 10 and 16 is 13.
    let found = recommend(&world, like(&["acme/10", "acme/16"], &[], 3)).await;
    assert_eq!(ids(&found.hits), ["acme/13", "acme/12", "acme/14"]);
    // Named twice, 10 counts twice: the mean is 12.
    let found = recommend(&world, like(&["acme/10", "acme/10", "acme/16"], &[], 1)).await;
    assert_eq!(ids(&found.hits), ["acme/12"]);
    // 10 + (10 - 8) is 12, and away from 8.
    let found = recommend(&world, like(&["acme/10"], &["acme/8"], 3)).await;
    assert_eq!(ids(&found.hits), ["acme/12", "acme/11", "acme/13"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_a_search_says_goes_with_examples() {
    let world = World::start().await;
    opened(&world).await;
    let ten = || like(&["acme/10"], &[], 3);
    let page = with(ten(), |query| query.offset = 2);
    let found = recommend(&world, page).await;
    assert_eq!(ids(&found.hits), ["acme/12", "acme/8", "acme/13"]);
    let behind = with(ten(), |query| {
        query.after = Some(v1::After {
            distance: 1.0,
            id: "acme/9".into(),
        });
    });
    let found = recommend(&world, behind).await;
    assert_eq!(ids(&found.hits), ["acme/12", "acme/8", "acme/13"]);
    let near = with(ten(), |query| query.max_distance = Some(1.0));
    let found = recommend(&world, near).await;
    assert_eq!(ids(&found.hits), ["acme/11", "acme/9"]);
    let all = with(like(&["acme/10"], &[], 100), |query| query.explain = true);
    let found = recommend(&world, all).await;
    assert_eq!((found.hits.len(), found.explain.len()), (30, 2));
    let mine = with(like(&["acme/10"], &[], 100), |query| {
        query.tenant = "acme".into();
        query.with_vector = true;
        query.include_payload = vec!["group".into()];
    });
    let found = recommend(&world, mine).await;
    assert_eq!(found.hits.len(), 29);
    assert_eq!(found.hits[0].vector, [11.0, 0.0, 0.0]);
    assert_eq!(found.hits[0].payload.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_as_if_the_examples_were_not_there() {
    let world = World::start().await;
    opened(&world).await;
    for field in ["group", "words"] {
        for (k, offset, group_size) in [(1, 0, 1), (2, 0, 3), (2, 1, 2), (3, 0, 40)] {
            let examples = ["acme/10", "acme/9", "acme/0"];
            let request = with(like(&examples, &["acme/11"], k), |query| {
                query.offset = offset;
                query.group_by = Some(v1::GroupBy {
                    field: field.into(),
                    group_size,
                });
            });
            let found = recommend(&world, request).await;
            // The same vector, all groups in full: mean 19/3, moved away from 11.
            let vector = vec![2.0 * 19.0 / 3.0 - 11.0, 0.0, 0.0];
            let all = v1::SearchRequest {
                collection: "shop".into(),
                vector,
                k: 10,
                group_by: Some(v1::GroupBy {
                    field: field.into(),
                    group_size: 100,
                }),
                ..v1::SearchRequest::default()
            };
            let all = world.search().search(all).await.unwrap().into_inner();
            let mut expected: Vec<(f32, Option<v1::Value>, Vec<String>)> = Vec::new();
            for group in all.groups {
                let mut hits = group.hits;
                hits.retain(|hit| hit.id != "acme/11" && !examples.contains(&hit.id.as_str()));
                let Some(nearest) = hits.first().map(|hit| hit.distance) else {
                    continue;
                };
                hits.truncate(usize::try_from(group_size).unwrap());
                let ids = hits.into_iter().map(|hit| hit.id).collect();
                expected.push((nearest, group.value, ids));
            }
            expected.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.2[0].cmp(&b.2[0])));
            let skipped = usize::try_from(offset).unwrap();
            let expected: Vec<Vec<String>> = (expected.into_iter().skip(skipped))
                .take(usize::try_from(k).unwrap())
                .map(|(_, _, ids)| ids)
                .collect();
            let found: Vec<Vec<String>> = (found.groups.iter())
                .map(|group| ids(&group.hits).iter().map(|id| (*id).to_owned()).collect())
                .collect();
            assert_eq!(found, expected, "{field} {k} {offset} {group_size}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_with_its_reason() {
    let world = World::start().await;
    let (_, indexers) = opened(&world).await;
    let invalid = [
        (like(&[], &["acme/1"], 3), "there is no positive id"),
        (like(&["acme/1"], &[], 0), "k is 0"),
        (
            like(&["acme/1"], &[], 10_000),
            "k + offset + examples is 10001",
        ),
        (
            with(like(&["acme/1"], &[], 3), |query| query.vector = vec![1.0]),
            "a vector and examples do not go together",
        ),
        (
            with(like(&["acme/1", "other/1"], &[], 3), |query| {
                query.tenant = "acme".into();
            }),
            "id 1 is not one of tenant `acme`",
        ),
        (
            with(like(&["acme/1"], &[], 3), |query| {
                query.group_by = Some(v1::GroupBy {
                    field: "group".into(),
                    group_size: 0,
                });
            }),
            "group_size is 0",
        ),
    ];
    for (request, wanted) in invalid {
        let (code, told) = refusal(&world, request).await;
        assert_eq!(code, Code::InvalidArgument, "{told}");
        assert!(told.contains(wanted), "{told}");
    }
    let unknown = like(&["acme/1", "acme/nobody"], &["acme/no-one"], 3);
    let (code, told) = refusal(&world, unknown).await;
    assert_eq!(code, Code::NotFound);
    assert_eq!(
        told,
        "collection `shop` has no point `acme/no-one`, `acme/nobody`"
    );
    // An example whose shard is silent is not unknown.
    for indexer in &indexers {
        indexer.behave(Behaviour::Fails(Code::Unavailable));
    }
    let (code, told) = refusal(&world, like(&["acme/1"], &[], 3)).await;
    assert_eq!(code, Code::Unavailable, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_hold_for_the_examples_and_for_the_answer() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    let tokens = crate::world::fill(&indexers, &docs, 10);
    let request = v1::RecommendRequest {
        collection: "docs".into(),
        read: read(&tokens[3..4], false),
        ..like(&["p3"], &[], 2)
    };
    recommend(&world, request).await;
    let indexer = &indexers[usize::try_from(tokens[3].partition.0).unwrap()];
    let asked = indexer.seen();
    assert_eq!(asked.len(), 2, "read, then searched");
    for seen in asked {
        assert_eq!(seen.shards[0].at_least, [tokens[3].to_proto()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_recommends_what_grpc_does() {
    let world = World::start().await;
    opened(&world).await;
    let post = async |body: Json| -> (u16, Json) {
        let url = world.url("/v1/collections/shop/recommend");
        let answer = world.http.post(url).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    };
    let (status, found) = post(json!({
        "positive": ["acme/10"], "negative": ["acme/8"], "k": 3, "tenant": "acme",
        "filter": {"field": "group", "equals": 1}, "with_payload": true,
    }))
    .await;
    assert_eq!(status, 200, "{found}");
    let found: Vec<&str> = (found["hits"].as_array().unwrap().iter())
        .map(|hit| hit["id"].as_str().unwrap())
        .collect();
    assert_eq!(found, ["acme/12", "acme/11", "acme/13"]);
    let (status, told) = post(json!({"positive": ["nobody"], "k": 3})).await;
    assert_eq!((status, &told["error"]["code"]), (404, &json!("NOT_FOUND")));
}
