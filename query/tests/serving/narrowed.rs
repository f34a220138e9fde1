//! Filters, pages, groups, tenants and scrolls: what a query says, done over all shards, over
//! gRPC and HTTP alike.

use serde_json::{Value as Json, json};
use shoal_schemas::{Collection, FieldKind, Filter, Payload, Point, PointId, Value, Vector, v1};
use tonic::Code;

use crate::{
    indexer::{Behaviour, Indexer},
    world::{World, collection, ids, near_origin},
};

/// Points at 0, 1, 2, ..., each with a category, a year and words.
const POINTS: u16 = 60;

fn shop(partitions: u32) -> Collection {
    let mut shop = collection("shop", partitions);
    shop.fields = [
        ("category", FieldKind::Integer),
        ("words", FieldKind::Keyword),
        ("year", FieldKind::Integer),
        ("seen", FieldKind::Timestamp),
    ]
    .map(|(name, kind)| (name.to_owned(), kind))
    .into();
    shop
}

fn payload(n: u16) -> Payload {
    let words = ["red", "blue", "green"];
    let of = |at: u16| words[usize::from(at % 3)].to_owned();
    let mut fields = vec![
        ("year", Value::Integer(1990 + i64::from(n))),
        ("words", Value::Strings(vec![of(n), of(n / 3)])),
        ("seen", Value::Timestamp(i64::from(n) * 1000)),
        ("title", Value::String(format!("point {n}"))),
    ];
    // Every seventh has no category.
    if !n.is_multiple_of(7) {
        fields.push(("category", Value::Integer(i64::from(n * n % 5))));
    }
    Payload(
        fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

fn put(indexers: &[Indexer], shop: &Collection, id: &str, n: u16) {
    let point = Point {
        vector: Vector::new(&[f32::from(n), 0.0, 0.0], shop.dim, shop.metric).unwrap(),
        payload: payload(n),
        model: None,
        event_time_ms: None,
        expires_at_ms: None,
    };
    let id = PointId::new(id).unwrap();
    let mut put = indexers
        .iter()
        .map(|one| one.node.upsert(shop, &id, &point));
    assert!(put.any(|put| put.is_some()), "{id}");
}

async fn opened(world: &World, partitions: u32) -> (Collection, Vec<Indexer>) {
    let shop = shop(partitions);
    let indexers = world.spread(&shop).await;
    for n in 0..POINTS {
        put(&indexers, &shop, &format!("p{n}"), n);
    }
    (shop, indexers)
}

/// The numbers of the points that match, nearest to the origin first.
fn matching(filter: &Json) -> Vec<u16> {
    let filter = Filter::from_json(filter).unwrap();
    let filter = filter.resolve(&shop(1).fields).unwrap();
    (0..POINTS)
        .filter(|n| filter.matches(&payload(*n)))
        .collect()
}

fn size(number: impl Into<u64>) -> usize {
    usize::try_from(number.into()).unwrap()
}

fn named(numbers: &[u16]) -> Vec<String> {
    numbers.iter().map(|n| format!("p{n}")).collect()
}

fn proto(filter: &Json) -> Option<v1::Filter> {
    Some(Filter::from_json(filter).unwrap().to_proto())
}

async fn search(world: &World, request: v1::SearchRequest) -> v1::SearchResponse {
    world.search().search(request).await.unwrap().into_inner()
}

async fn post(world: &World, verb: &str, body: &Json) -> (u16, Json) {
    let url = world.url(&format!("/v1/collections/shop/{verb}"));
    let answer = world.http.post(url).json(body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

fn ids_of(list: &Json) -> Vec<String> {
    let hits = list.as_array().unwrap().iter();
    hits.map(|hit| hit["id"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_filter_finds_the_nearest_of_what_matches() {
    let world = World::start().await;
    let (shop, _indexers) = opened(&world, 3).await;
    for filter in [
        json!({"field": "category", "equals": 4}),
        json!({"field": "words", "in": ["red", "nothing"]}),
        json!({"not": {"field": "year", "range": {"gte": 1995, "lt": 2040}}}),
        json!({"field": "category", "exists": false}),
        json!({"field": "words", "prefix": "gr"}),
        json!({"field": "seen", "range": {"lt": "1970-01-01T00:00:10Z"}}),
        json!({"all": [
            {"field": "category", "equals": 1},
            {"any": [{"field": "words", "equals": "blue"}, {"field": "year", "equals": 1991}]},
        ]}),
        json!({"any": []}),
    ] {
        let mut expected = matching(&filter);
        let request = v1::CountRequest {
            collection: "shop".into(),
            filter: proto(&filter),
            ..v1::CountRequest::default()
        };
        let count = world.search().count(request).await.unwrap().into_inner();
        assert_eq!(size(count.points), expected.len(), "{filter}");
        let (_, told) = post(&world, "count", &json!({"filter": filter})).await;
        assert_eq!(told["points"], expected.len(), "{filter}");

        expected.truncate(7);
        let request = v1::SearchRequest {
            filter: proto(&filter),
            ..near_origin(&shop, 7)
        };
        let found = search(&world, request).await;
        assert_eq!(ids(&found.hits), named(&expected), "{filter}");
        let body = json!({"vector": [0.1, 0.0, 0.0], "k": 7, "filter": filter});
        let (status, told) = post(&world, "search", &body).await;
        assert_eq!((status, ids_of(&told["hits"])), (200, named(&expected)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_by_offset_and_pages_behind_the_last_hit_make_the_whole_list() {
    let world = World::start().await;
    let (shop, _indexers) = opened(&world, 3).await;
    let filter = json!({"field": "words", "equals": "red"});
    let expected = named(&matching(&filter));
    let mut by_offset = Vec::new();
    let mut by_after = Vec::new();
    let mut last: Option<v1::After> = None;
    for offset in (0..).step_by(5) {
        let request = v1::SearchRequest {
            filter: proto(&filter),
            offset,
            ..near_origin(&shop, 5)
        };
        let page = search(&world, request).await.hits;
        let request = v1::SearchRequest {
            filter: proto(&filter),
            after: last.clone(),
            ..near_origin(&shop, 5)
        };
        let behind = search(&world, request).await.hits;
        assert_eq!(page, behind);
        let Some(hit) = behind.last() else { break };
        last = Some(v1::After {
            distance: hit.distance,
            id: hit.id.clone(),
        });
        by_offset.extend(ids(&page).into_iter().map(str::to_owned));
        by_after.extend(ids(&behind).into_iter().map(str::to_owned));
    }
    assert_eq!((&by_offset, &by_after), (&expected, &expected));
    let hit = json!({"distance": 0.01, "id": "p0"});
    let body = json!({"vector": [0.1, 0.0, 0.0], "k": 2, "after": hit});
    // What JSON says of a distance reads back as the same distance.
    let (_, first) = post(&world, "search", &json!({"vector": [0.1, 0, 0], "k": 1})).await;
    assert_eq!(first["hits"][0]["distance"].to_string(), "0.010000001");
    let mut behind = body.clone();
    behind["after"]["distance"] = first["hits"][0]["distance"].clone();
    let (_, told) = post(&world, "search", &behind).await;
    assert_eq!(ids_of(&told["hits"]), ["p1", "p2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_farther_than_asked_comes_back() {
    let world = World::start().await;
    let (shop, _indexers) = opened(&world, 2).await;
    let request = v1::SearchRequest {
        vector: vec![0.0; 3],
        max_distance: Some(9.0),
        ..near_origin(&shop, 50)
    };
    // Squared distances: 0, 1, 4 and 9.
    assert_eq!(
        ids(&search(&world, request).await.hits),
        ["p0", "p1", "p2", "p3"]
    );
    let body = json!({"vector": [0, 0, 0], "k": 50, "max_distance": 3.9});
    let (_, told) = post(&world, "search", &body).await;
    assert_eq!(ids_of(&told["hits"]), ["p0", "p1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_whole_even_where_a_shard_has_nearer_groups() {
    let world = World::start().await;
    let (shop, indexers) = opened(&world, 3).await;
    let by_category = |k: usize, offset: usize, size: usize| {
        let mut groups: Vec<(i64, Vec<String>)> = Vec::new();
        for n in 0..POINTS {
            let Some(Value::Integer(category)) = payload(n).0.get("category").cloned() else {
                continue;
            };
            let id = format!("p{n}");
            match groups.iter_mut().find(|(held, _)| *held == category) {
                Some((_, ids)) => ids.push(id),
                None => groups.push((category, vec![id])),
            }
        }
        for (_, ids) in &mut groups {
            ids.truncate(size);
        }
        groups.into_iter().skip(offset).take(k).collect::<Vec<_>>()
    };
    let mut asked_again = false;
    for (k, offset, each) in [(1, 0, 4), (2, 0, 8), (1, 1, 9), (3, 0, 1), (9, 0, 3)] {
        let before: usize = indexers.iter().map(|one| one.seen().len()).sum();
        let request = v1::SearchRequest {
            group_by: Some(v1::GroupBy {
                field: "category".into(),
                group_size: each,
            }),
            offset,
            ..near_origin(&shop, k)
        };
        let found = search(&world, request).await;
        assert!(found.hits.is_empty());
        let told: Vec<(i64, Vec<String>)> = found
            .groups
            .iter()
            .map(|group| {
                let Some(v1::value::Kind::Integer(value)) = group.value.clone().unwrap().kind
                else {
                    panic!("{group:?}");
                };
                (
                    value,
                    ids(&group.hits).into_iter().map(str::to_owned).collect(),
                )
            })
            .collect();
        let expected = by_category(size(k), size(offset), size(each));
        assert_eq!(told, expected, "{k} {offset} {each}");
        let after: usize = indexers.iter().map(|one| one.seen().len()).sum();
        asked_again |= after - before > 3;

        let body = json!({
            "vector": [0.1, 0, 0], "k": k, "offset": offset,
            "group_by": {"field": "category", "group_size": each},
        });
        let (_, over_http) = post(&world, "search", &body).await;
        assert!(over_http.get("hits").is_none());
        let over_http: Vec<(i64, Vec<String>)> = over_http["groups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|group| (group["value"].as_i64().unwrap(), ids_of(&group["hits"])))
            .collect();
        assert_eq!(over_http, expected);
    }
    assert!(
        asked_again,
        "no shard was asked for a group it had not named"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_with_several_words_is_in_the_group_of_each() {
    let world = World::start().await;
    let (shop, _indexers) = opened(&world, 2).await;
    let request = v1::SearchRequest {
        group_by: Some(v1::GroupBy {
            field: "words".into(),
            group_size: 2,
        }),
        ..near_origin(&shop, 5)
    };
    let found = search(&world, request).await;
    let groups: Vec<_> = found.groups.iter().map(|group| ids(&group.hits)).collect();
    // p0 is red, p1 is blue and red, p2 is green and red, p3 is red and blue.
    assert_eq!(groups, [["p0", "p1"], ["p1", "p3"], ["p2", "p5"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_may_ask_differently_in_each_query() {
    let world = World::start().await;
    let (shop, _indexers) = opened(&world, 3).await;
    let grouped = json!({"field": "category", "group_size": 3});
    let body = json!({"queries": [
        {"vector": [0, 0, 0], "k": 1, "filter": {"field": "year", "equals": 2000}},
        {"vector": [0, 0, 0], "k": 1, "group_by": grouped},
        {"vector": [0, 0, 0], "k": 1, "offset": 3},
    ]});
    let (status, told) = post(&world, "search/batch", &body).await;
    assert_eq!(status, 200, "{told}");
    assert_eq!(ids_of(&told["results"][0]["hits"]), ["p10"]);
    assert_eq!(ids_of(&told["results"][2]["hits"]), ["p3"]);
    let single = json!({"vector": [0, 0, 0], "k": 1, "group_by": grouped});
    let (_, single) = post(&world, "search", &single).await;
    assert_eq!(told["results"][1]["groups"], single["groups"]);
    assert_eq!(single["groups"][0]["hits"].as_array().unwrap().len(), 3);
    assert_eq!(shop.partitions, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_fields_that_are_wanted_come_back() {
    let world = World::start().await;
    let (shop, _indexers) = opened(&world, 1).await;
    for (include, exclude, expected) in [
        (vec!["year", "none"], vec![], vec!["year"]),
        (
            vec![],
            vec!["title", "seen", "words"],
            vec!["category", "year"],
        ),
        (vec!["year", "title"], vec!["title"], vec!["year"]),
    ] {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let request = v1::SearchRequest {
            vector: vec![1.0, 0.0, 0.0],
            include_payload: owned(&include),
            exclude_payload: owned(&exclude),
            ..near_origin(&shop, 1)
        };
        let found = search(&world, request).await;
        let mut names: Vec<_> = found.hits[0].payload.keys().cloned().collect();
        names.sort();
        assert_eq!(names, expected);
        let body = json!({
            "vector": [1, 0, 0], "k": 1, "include_payload": include, "exclude_payload": exclude,
        });
        let (_, told) = post(&world, "search", &body).await;
        let payload = told["hits"][0]["payload"].as_object().unwrap();
        assert_eq!(payload.keys().collect::<Vec<_>>(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shard_explains_itself() {
    let world = World::start().await;
    let (shop, _indexers) = opened(&world, 3).await;
    let filter = json!({"field": "category", "equals": 1});
    let request = v1::SearchRequest {
        filter: proto(&filter),
        explain: true,
        ..near_origin(&shop, 2)
    };
    let told = search(&world, request).await.explain;
    let shards: Vec<u32> = told.iter().map(|one| one.shard).collect();
    assert_eq!(shards, [0, 1, 2]);
    let matches: u64 = told.iter().filter_map(|one| one.matches).sum();
    assert_eq!(size(matches), matching(&filter).len());
    let body = json!({"vector": [0, 0, 0], "k": 2, "filter": filter, "explain": true});
    let (_, over_http) = post(&world, "search", &body).await;
    assert_eq!(over_http["explain"][2]["plan"], "exact");
    let unasked = search(&world, near_origin(&shop, 2)).await;
    assert!(unasked.explain.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scroll_goes_through_everything_that_matches_once() {
    let world = World::start().await;
    let (_shop, _indexers) = opened(&world, 3).await;
    let filter = json!({"field": "year", "range": {"gte": 2000}});
    let mut expected = named(&matching(&filter));
    expected.sort();
    for limit in [1_u32, 7, 50, 51] {
        let mut request = v1::ScrollRequest {
            collection: "shop".into(),
            filter: proto(&filter),
            limit,
            exclude_payload: vec!["title".into()],
            ..v1::ScrollRequest::default()
        };
        let mut found = Vec::new();
        loop {
            let page = world
                .search()
                .scroll(request.clone())
                .await
                .unwrap()
                .into_inner();
            assert!(page.points.len() <= size(limit));
            for point in page
                .points
                .iter()
                .filter_map(|stored| stored.point.as_ref())
            {
                assert!(point.vector.is_empty() && !point.payload.contains_key("title"));
                found.push(point.id.clone());
            }
            if page.next_after_id.is_empty() {
                break;
            }
            request.after_id = page.next_after_id;
        }
        assert_eq!(found, expected, "{limit}");
    }
    let (_, first) = post(&world, "scroll", &json!({"filter": filter, "limit": 2})).await;
    let point = |at: usize| first["points"][at]["point"]["id"].as_str().unwrap();
    assert_eq!([point(0), point(1)], [&expected[0], &expected[1]]);
    let next = json!({"filter": filter, "limit": 100, "after_id": first["next_after_id"]});
    let (_, rest) = post(&world, "scroll", &next).await;
    assert_eq!(rest["points"].as_array().unwrap().len(), expected.len() - 2);
    assert_eq!(rest["next_after_id"], Json::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenants_calls_ask_its_shard_alone_and_find_nothing_of_others() {
    let world = World::start().await;
    let mut shop = shop(4);
    shop.route_by_key_prefix = true;
    let indexers = world.spread(&shop).await;
    for n in 0..POINTS {
        let tenant = ["ann", "bob", "an"][usize::from(n % 3)];
        put(&indexers, &shop, &format!("{tenant}/{n}"), n);
    }
    // Routed like the tenant's points, but not one of them.
    put(&indexers, &shop, "ann", 0);
    let asked = || -> usize { indexers.iter().map(|one| one.seen().len()).sum() };
    let before = asked();
    let request = v1::SearchRequest {
        tenant: "ann".into(),
        ..near_origin(&shop, 3)
    };
    let found = search(&world, request).await;
    assert_eq!(ids(&found.hits), ["ann/0", "ann/3", "ann/6"]);
    assert_eq!(found.coverage.unwrap().shards_asked, 1);
    let (_, told) = post(&world, "count", &json!({"tenant": "ann"})).await;
    assert_eq!(
        (
            told["points"].as_u64(),
            told["coverage"]["shards_asked"].as_u64()
        ),
        (Some(20), Some(1))
    );
    let (_, page) = post(&world, "scroll", &json!({"tenant": "an", "limit": 100})).await;
    assert_eq!(page["points"].as_array().unwrap().len(), 20);
    let (_, got) = post(&world, "get", &json!({"tenant": "bob", "ids": ["bob/1"]})).await;
    assert_eq!(got["points"].as_array().unwrap().len(), 1);
    assert_eq!(asked() - before, 4);
    let foreign = json!({"tenant": "bob", "ids": ["bob/1", "ann/0"]});
    let (status, refused) = post(&world, "get", &foreign).await;
    let message = refused["error"]["message"].as_str().unwrap();
    assert_eq!(status, 400);
    assert!(
        message.contains("id 1") && message.contains("`bob/`"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_with_what_to_do_over_both() {
    let world = World::start().await;
    let (shop, indexers) = opened(&world, 2).await;
    let mut cases = vec![
        (
            json!({"filter": {"field": "colour", "equals": 1}}),
            "`colour` is not declared; declared are category (integer)",
        ),
        (
            json!({"filter": {"all": [{"field": "year", "prefix": "19"}]}}),
            "filter.all[0]: `prefix` does not work",
        ),
        (
            json!({"filter": {"field": "seen", "equals": "soon"}}),
            "RFC 3339",
        ),
        (
            json!({"group_by": {"field": "title"}}),
            "group_by: filter: field `title` is not declared",
        ),
        (
            json!({"group_by": {"field": "year", "group_size": 1001}}),
            "group_size is 1001",
        ),
        (
            json!({"group_by": {"field": "year", "group_size": 1000}, "k": 11}),
            "(k + offset) * group_size is 11000",
        ),
        (json!({"offset": 10_000}), "k + offset is 10001"),
        (
            json!({"after": {"distance": 0, "id": "a"}, "offset": 1}),
            "leave offset out",
        ),
        (
            json!({"after": {"distance": 0, "id": "a"}, "group_by": {"field": "year"}}),
            "page through groups with offset",
        ),
        (
            json!({"after": {"distance": 0, "id": ""}}),
            "after has an id",
        ),
        (json!({"tenant": "ann"}), "route_by_key_prefix"),
    ];
    for (wrong, text) in &mut cases {
        let body = wrong.as_object_mut().unwrap();
        body.insert("vector".into(), json!([0, 0, 0]));
        body.entry("k").or_insert(json!(1));
        let (status, told) = post(&world, "search", wrong).await;
        let message = told["error"]["message"].as_str().unwrap();
        assert_eq!(
            (status, told["error"]["code"].as_str()),
            (400, Some("INVALID_ARGUMENT")),
            "{message}"
        );
        assert!(message.contains(*text), "{message}");
    }
    for verb in ["count", "scroll"] {
        let wrong = json!({"filter": {"field": "colour", "equals": 1}});
        let (status, told) = post(&world, verb, &wrong).await;
        let message = told["error"]["message"].as_str().unwrap();
        assert!(status == 400 && message.contains("`colour`"), "{message}");
        let (status, _) = post(&world, verb, &json!({"tenant": "ann"})).await;
        assert_eq!(status, 400);
    }
    let request = v1::SearchRequest {
        max_distance: Some(f32::NAN),
        ..near_origin(&shop, 1)
    };
    let refused = world.search().search(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("max_distance"), "{refused}");
    let request = v1::ScrollRequest {
        collection: "shop".into(),
        ..v1::ScrollRequest::default()
    };
    let refused = world.search().scroll(request).await.unwrap_err();
    assert!(refused.message().contains("limit is 0"), "{refused}");
    assert!(indexers.iter().all(|one| one.seen().is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_cannot_do_it_fails_the_call_instead_of_thinning_the_answer() {
    let world = World::start().await;
    let (shop, indexers) = opened(&world, 2).await;
    indexers[1].behave(Behaviour::FailsShards(Code::Unimplemented.into()));
    let request = v1::SearchRequest {
        filter: proto(&json!({"field": "year", "equals": 1990})),
        ..near_origin(&shop, 1)
    };
    let refused = world.search().search(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let (status, told) = post(&world, "count", &json!({"filter": {"all": []}})).await;
    assert_eq!(status, 501);
    assert_eq!(told["error"]["code"], "UNIMPLEMENTED");
}
