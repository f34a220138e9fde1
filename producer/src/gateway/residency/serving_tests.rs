//! Tests of two gateways in two regions, over real sockets, each on a log in memory of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use futures::stream;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde_json::{Value as Json, json};
use shoal_schemas::{
    Point, Record, Token,
    headers::{Meta, RESIDENCY},
    v1::{
        self, WriteStreamRequest, write_result::Outcome, write_stream_request::Call,
        write_stream_response,
    },
};
use tokio::task::JoinSet;
use tonic::{Code, Request};

use super::{FORWARDED_FROM, RegionConfig, ResidencyConfig, ResidencyError};
use crate::{
    gateway::{
        CallError, Config, QuotaConfig, Rate,
        http::measured,
        resolve_tests::{Owner, claim_of},
        tests::{World, upsert},
    },
    publisher::tests::{collection, point},
};

/// What a point holds that nobody else may see.
const SECRET: &str = "nobody-reads-this";

fn config(region: &str, others: &[(&str, Vec<String>)]) -> Config {
    let regions = others.iter().map(|(name, gateways)| {
        let gateways = gateways.clone();
        (name.parse().unwrap(), RegionConfig { gateways })
    });
    let residency = ResidencyConfig {
        region: Some(region.parse().unwrap()),
        regions: regions.collect(),
        tags: [("gdpr".to_owned(), "eu".parse().unwrap())].into(),
        collections: [("patients".parse().unwrap(), "gdpr".to_owned())].into(),
        tenants: [
            ("acme".to_owned(), "gdpr".to_owned()),
            ("apple".to_owned(), "us".to_owned()),
            ("zhang".to_owned(), "cn".to_owned()),
        ]
        .into(),
    };
    Config {
        residency,
        ..Config::default()
    }
}

/// A gateway in `us` that reaches one in `eu`, and that one. `cn` is known and cannot be reached.
struct Regions {
    us: World,
    eu: World,
}

impl Regions {
    async fn start() -> Self {
        Self::start_with(QuotaConfig::default()).await
    }

    /// The gateway in `eu` with quotas.
    async fn start_with(quota: QuotaConfig) -> Self {
        let known = |name| (name, Vec::new());
        let eu = Config {
            quota,
            ..config("eu", &[known("us"), known("cn")])
        };
        let eu = World::start_at("memory-eu", eu).await;
        // The first one of the region is gone.
        let gateways = vec!["127.0.0.1:1".to_owned(), eu.grpc_address()];
        let us = config("us", &[("eu", gateways), known("cn")]);
        let us = World::start_at("memory-us", us).await;
        for world in [&us, &eu] {
            world.with_tenants("shop").await;
            world.with_tenants("patients").await;
        }
        Self { us, eu }
    }

    fn ids(&self, collection: &str) -> [Vec<String>; 2] {
        [&self.us, &self.eu].map(|world| keys(&world.found_in(collection)))
    }

    fn is_empty(&self, collection: &str) -> bool {
        self.ids(collection).iter().all(Vec::is_empty)
    }
}

fn keys(records: &[Record]) -> Vec<String> {
    let keys = records.iter().map(|record| record.key.clone().unwrap());
    let keys = keys.map(|key| String::from_utf8(key.to_vec()).unwrap());
    let mut keys: Vec<String> = keys.collect();
    keys.sort();
    keys
}

fn residency(record: &Record) -> Option<String> {
    Meta::decode(record).unwrap().residency
}

fn tagged<T>(tag: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = tag.parse().unwrap();
    request.metadata_mut().insert(RESIDENCY, value);
    request
}

fn secret(id: &str) -> (&str, Point) {
    let mut point = point(1.0);
    let text = shoal_schemas::Value::String(SECRET.to_owned());
    point.payload.0.insert("text".to_owned(), text);
    (id, point)
}

fn request(collection: &str, ids: &[&str]) -> v1::UpsertRequest {
    let points: Vec<_> = ids.iter().map(|id| secret(id)).collect();
    let points: Vec<_> = points.iter().map(|(id, point)| (*id, point)).collect();
    upsert(collection, &points)
}

fn delete(collection: &str, ids: &[&str]) -> v1::DeleteRequest {
    v1::DeleteRequest {
        collection: collection.into(),
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        conditions: Vec::new(),
    }
}

fn patch(collection: &str, ids: &[&str]) -> v1::PatchRequest {
    let points = ids.iter().map(|id| v1::PointPatch {
        id: (*id).to_owned(),
        unset: vec!["x".to_owned()],
        ..v1::PointPatch::default()
    });
    v1::PatchRequest {
        collection: collection.into(),
        points: points.collect(),
    }
}

fn said(tokens: &[v1::Token]) -> Vec<(&str, &str, &str)> {
    let said = tokens.iter().map(|token| {
        (
            token.key.as_str(),
            token.region.as_str(),
            token.cluster_id.as_str(),
        )
    });
    said.collect()
}

fn line(id: &str) -> String {
    json!({"id": id, "vector": [1, 0.5, 0, -1], "payload": {"text": SECRET}}).to_string() + "\n"
}

#[tokio::test]
async fn each_record_of_a_batch_is_written_in_its_own_region_and_tokens_say_which() {
    let regions = Regions::start().await;
    let mut client = regions.us.grpc().await;
    let ids = ["acme/1", "apple/1", "other/1", "acme/2"];
    let told = client.upsert(request("shop", &ids)).await.unwrap();
    let (us, eu) = (("us", "memory-us"), ("eu", "memory-eu"));
    let expected = [eu, us, us, eu];
    let expected = ids.iter().zip(expected);
    let expected: Vec<_> = expected.map(|(id, (at, of))| (*id, at, of)).collect();
    assert_eq!(said(&told.into_inner().tokens), expected);
    let [in_us, in_eu] = regions.ids("shop");
    assert_eq!(in_us, ["apple/1", "other/1"]);
    assert_eq!(in_eu, ["acme/1", "acme/2"]);
    for record in regions.eu.found_in("shop") {
        assert_eq!(residency(&record).as_deref(), Some("eu"));
    }
    let tags: Vec<_> = regions.us.found_in("shop").iter().map(residency).collect();
    assert_eq!(tags.iter().flatten().collect::<Vec<_>>(), ["us"]);

    let told = client.delete(delete("shop", &ids)).await.unwrap();
    assert_eq!(said(&told.into_inner().tokens), expected);
    let [in_us, in_eu] = regions.ids("shop");
    assert_eq!((in_us.len(), in_eu.len()), (4, 4));

    // A whole collection, and a call that says it.
    client.upsert(request("patients", &["a"])).await.unwrap();
    assert_eq!(regions.ids("patients"), [vec![], vec!["a".to_owned()]]);
    let call = tagged("gdpr", request("docs", &["b"]));
    client.upsert(call).await.unwrap();
    assert_eq!(regions.ids("docs"), [vec![], vec!["b".to_owned()]]);
}

#[tokio::test]
async fn a_stream_is_answered_in_order_whatever_the_region() {
    let regions = Regions::start().await;
    let calls = ["acme/same", "apple/1", "acme/same", "acme/2"];
    let mut requests: Vec<_> = (1..)
        .zip(calls)
        .map(|(request_id, id)| WriteStreamRequest {
            request_id,
            call: Some(Call::Upsert(request("shop", &[id]))),
        })
        .collect();
    requests.push(WriteStreamRequest {
        request_id: 5,
        call: Some(Call::Delete(delete("shop", &["acme/same", "zhang/1"]))),
    });
    requests.push(WriteStreamRequest {
        request_id: 6,
        call: Some(Call::Delete(delete("shop", &["acme/same"]))),
    });
    let mut client = regions.us.grpc().await;
    let answers = client.write_stream(stream::iter(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut offsets = Vec::new();
    for request_id in 1..=6 {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.request_id, request_id);
        match answer.outcome.unwrap() {
            write_stream_response::Outcome::Written(written) => {
                assert_ne!(request_id, 5);
                let same = written.tokens.iter().filter(|one| one.key == "acme/same");
                offsets.extend(same.map(|token| token.offset));
            }
            write_stream_response::Outcome::Refusal(refusal) => {
                assert_eq!(request_id, 5);
                assert_eq!(refusal.code, i32::from(Code::FailedPrecondition));
                assert!(refusal.message.contains("`cn`"), "{refusal:?}");
            }
        }
    }
    assert!(offsets.len() == 3 && offsets.is_sorted(), "{offsets:?}");
    let [in_us, in_eu] = regions.ids("shop");
    assert_eq!(in_us, ["apple/1"]);
    assert_eq!(in_eu, ["acme/2", "acme/same", "acme/same", "acme/same"]);

    // The tag of a stream is that of all its requests.
    let one = WriteStreamRequest {
        request_id: 1,
        call: Some(Call::Upsert(request("docs", &["a"]))),
    };
    let call = tagged("eu", stream::iter([one]));
    let mut answers = client.write_stream(call).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap();
    assert_eq!(regions.ids("docs"), [vec![], vec!["a".to_owned()]]);
}

#[tokio::test]
async fn lines_are_written_each_in_its_region_up_to_the_first_that_may_be_in_none() {
    let regions = Regions::start().await;
    let tenants = ["acme", "apple", "other"];
    let good: String = (0..900)
        .map(|n| line(&format!("{}/{n}", tenants[n % 3])))
        .collect();
    let path = "/v1/collections/shop/points";
    let (status, told) = regions.us.http("POST", path, good).await;
    assert_eq!((status, &told["points"]), (200, &json!(900)), "{told}");
    let [in_us, in_eu] = regions.ids("shop");
    assert_eq!((in_us.len(), in_eu.len()), (600, 300));
    assert!(in_eu.iter().all(|id| id.starts_with("acme/")));
    let tokens = told["tokens"].as_array().unwrap().iter();
    let tokens: Vec<Token> = tokens
        .map(|one| one.as_str().unwrap().parse().unwrap())
        .collect();
    let of = |region: &str| {
        let region = region.parse().unwrap();
        let all = tokens.iter();
        all.filter(|one| one.region.as_ref() == Some(&region))
            .count()
    };
    // A tenant has one partition.
    assert!((1..=2).contains(&of("us")) && of("eu") == 1, "{told}");

    let bad = line("acme/last") + &line("zhang/1") + &line("acme/behind");
    let (status, told) = regions.us.http("POST", path, bad).await;
    assert_eq!((status, &told["points"]), (409, &json!(1)), "{told}");
    let message = told["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("line 2 is refused"), "{message}");
    assert!(message.contains("`cn`") && !message.contains(SECRET));
    assert_eq!(regions.ids("shop")[1].len(), 301);
}

#[tokio::test]
async fn json_says_its_residency_in_a_header() {
    let regions = Regions::start().await;
    let put = |tag: &'static str| {
        let body = json!({"points": [{"id": "a", "vector": [1, 2, 3, 4]}]});
        let request = reqwest::Client::new()
            .put(regions.us.url("/v1/collections/docs/points"))
            .header(RESIDENCY, tag)
            .body(body.to_string());
        async move {
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            let told: Json = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
            (status, told)
        }
    };
    let (status, told) = put("gdpr").await;
    assert_eq!(status, 200, "{told}");
    let token: Token = told["tokens"][0].as_str().unwrap().parse().unwrap();
    assert_eq!(token.region.unwrap().as_str(), "eu");
    assert_eq!(regions.ids("docs"), [vec![], vec!["a".to_owned()]]);
    for (tag, status, code, told) in [
        ("mars", 409, "FAILED_PRECONDITION", "residency `mars`"),
        ("", 400, "INVALID_ARGUMENT", "`shoal-residency`"),
    ] {
        let (found, answer) = put(tag).await;
        let error = &answer["error"];
        assert_eq!((found, error["code"].as_str()), (status, Some(code)));
        assert!(error["message"].as_str().unwrap().contains(told), "{error}");
    }
    assert_eq!(regions.ids("docs"), [vec![], vec!["a".to_owned()]]);
}

#[tokio::test]
async fn what_may_be_written_nowhere_is_refused_as_a_whole() {
    let regions = Regions::start().await;
    let mut client = regions.us.grpc().await;
    for (call, told) in [
        (tagged("mars", request("docs", &["a"])), "residency `mars`"),
        (
            tagged("us", request("shop", &["other/1", "acme/1"])),
            "point 1 is refused, nothing was published: residency `us` (region `us`) is not allowed",
        ),
        (
            Request::new(request("shop", &["apple/1", "acme/1", "zhang/1"])),
            "residency `cn` is of region `cn`, this gateway writes in `us`",
        ),
    ] {
        let refused = client.upsert(call).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains(told), "{told}: {refused}");
        assert!(!refused.message().contains(SECRET), "{refused}");
    }
    // Deletes and patches likewise.
    let refused = client.delete(delete("shop", &["zhang/1"])).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    let refused = client.patch(patch("shop", &["zhang/1"])).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    // A gateway that was chosen by another one sends nothing on.
    let mut on = tagged("eu", request("docs", &["a"]));
    let from = "eu".parse().unwrap();
    on.metadata_mut().insert(FORWARDED_FROM, from);
    let refused = client.upsert(on).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("mend"), "{refused}");
    for collection in ["docs", "shop"] {
        assert!(regions.is_empty(collection), "{collection}");
    }
    // Without a region of its own a gateway keeps no promise.
    let nowhere = World::start(Config::default()).await;
    let mut client = nowhere.grpc().await;
    let refused = client.upsert(tagged("eu", request("docs", &["a"]))).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    assert!(nowhere.found().is_empty());
}

#[tokio::test]
async fn patches_and_conditions_are_resolved_in_the_region_of_the_point() {
    let regions = Regions::start().await;
    let shop = shoal_schemas::Collection {
        name: "shop".parse().unwrap(),
        route_by_key_prefix: true,
        ..collection(2)
    };
    let mut tasks = JoinSet::new();
    let [in_us, in_eu] = [Owner::willing(), Owner::willing()];
    for (world, owner) in [(&regions.us, &in_us), (&regions.eu, &in_eu)] {
        let at = owner.start(&mut tasks);
        for shard in 0..2 {
            claim_of(world, &shop, shard, at, true).await;
        }
    }
    let ids = ["acme/1", "apple/1", "acme/2", "other/1"];
    let mut client = regions.us.grpc().await;
    let wanted = vec![
        v1::Condition {
            if_version: Some(7)
        };
        4
    ];
    let patched = client.patch(patch("shop", &ids)).await.unwrap();
    let upserted = client.upsert(v1::UpsertRequest {
        conditions: wanted.clone(),
        ..request("shop", &ids)
    });
    let upserted = upserted.await.unwrap();
    let deleted = client.delete(v1::DeleteRequest {
        conditions: wanted,
        ..delete("shop", &ids)
    });
    let deleted = deleted.await.unwrap();
    for results in [
        patched.into_inner().results,
        upserted.into_inner().results,
        deleted.into_inner().results,
    ] {
        let found = results.into_iter().map(|one| match one.outcome.unwrap() {
            Outcome::Token(token) => (token.key, token.region),
            Outcome::Failure(failure) => panic!("{failure:?}"),
        });
        let expected = ids.iter().zip(["eu", "us", "eu", "us"]);
        assert!(found.eq(expected.map(|(id, region)| ((*id).to_owned(), region.to_owned()))));
    }
    // What an owner is to write, it is to tag, and nothing else.
    for (owner, region, mine) in [
        (&in_eu, "eu", &["acme/1", "acme/2"][..]),
        (&in_us, "us", &["apple/1"]),
        (&in_us, "", &["other/1"]),
    ] {
        let mut found = owner.changes_to_stay_in(region);
        found.sort();
        let thrice = mine.iter().flat_map(|id| [*id; 3]);
        assert!(
            found.iter().map(String::as_str).eq(thrice),
            "{region}: {found:?}"
        );
    }
    // One point over HTTP.
    let path = "/v1/collections/shop/points/acme%2F1";
    let body = json!({"unset": ["x"]}).to_string();
    let (status, told) = regions.us.http("PATCH", path, body).await;
    assert_eq!(status, 200, "{told}");
    let token: Token = told["tokens"][0].as_str().unwrap().parse().unwrap();
    assert_eq!(token.region.unwrap().as_str(), "eu");
    assert!(regions.is_empty("shop"), "the owners write it");
}

#[tokio::test]
async fn a_region_that_is_gone_is_told_and_nothing_goes_elsewhere() {
    let gone = config(
        "us",
        &[("eu", vec!["127.0.0.1:1".to_owned()]), ("cn", vec![])],
    );
    let us = World::start_at("memory-us", gone).await;
    us.with_tenants("shop").await;
    let mut client = us.grpc().await;
    let refused = client.upsert(request("shop", &["acme/1"])).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let told = "no gateway of region `eu` can be reached";
    assert!(refused.message().contains(told), "{refused}");
    assert!(!refused.message().contains(SECRET), "{refused}");
    let told = client.patch(patch("shop", &["acme/1"])).await.unwrap();
    match told.into_inner().results.pop().unwrap().outcome.unwrap() {
        Outcome::Failure(failure) => {
            assert_eq!(failure.code, i32::from(Code::Unavailable), "{failure:?}");
            assert!(failure.message.contains("nothing was written"));
        }
        Outcome::Token(token) => panic!("{token:?}"),
    }
    assert!(us.found_in("shop").is_empty());
    // What stays here goes on.
    client.upsert(request("shop", &["apple/1"])).await.unwrap();
}

#[tokio::test]
async fn a_region_that_has_not_answered_in_time_may_have_written() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = silent.local_addr().unwrap().to_string();
    let config = Config {
        deadline: Duration::from_millis(300),
        ..config("us", &[("eu", vec![gateway]), ("cn", vec![])])
    };
    let us = World::start_at("memory-us", config).await;
    us.with_tenants("shop").await;
    let mut client = us.grpc().await;
    let late = client.upsert(request("shop", &["acme/1"])).await;
    let late = late.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert!(late.message().contains("may still be written"), "{late}");
    let told = client.patch(patch("shop", &["acme/1"])).await.unwrap();
    match told.into_inner().results.pop().unwrap().outcome.unwrap() {
        Outcome::Failure(failure) => {
            assert_eq!(failure.code, i32::from(Code::Unknown), "{failure:?}");
        }
        Outcome::Token(token) => panic!("{token:?}"),
    }
    assert!(us.found_in("shop").is_empty());
}

#[tokio::test]
async fn what_the_other_region_refuses_comes_back_as_it_said_it() {
    let acme = Rate {
        records_per_second: 5.try_into().ok(),
        bytes_per_second: None,
    };
    let quota = QuotaConfig {
        tenants: [("acme".to_owned(), acme)].into(),
        ..QuotaConfig::default()
    };
    let regions = Regions::start_with(quota).await;
    let ids: Vec<String> = (0..100).map(|n| format!("acme/{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut client = regions.us.grpc().await;
    client.upsert(request("shop", &ids)).await.unwrap();
    let refused = client.upsert(request("shop", &ids[..1])).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(
        refused.message().contains("region `eu` refuses"),
        "{refused}"
    );
    let retry = tonic_types::StatusExt::get_details_retry_info(&refused);
    assert!(retry.unwrap().retry_delay.is_some(), "{refused}");
    let refused = client.patch(patch("shop", &ids[..1])).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
}

#[test]
fn a_refusal_is_counted_by_its_reason() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::with_local_recorder(&recorder, || {
        let no_way = || ResidencyError::NoWay {
            tag: "cn".to_owned(),
            region: "cn".parse().unwrap(),
            own: "us".parse().unwrap(),
        };
        let errors = [
            CallError::from(ResidencyError::Malformed),
            CallError::Residency {
                index: 3,
                source: Box::new(no_way()),
            },
            CallError::Line {
                line: 2,
                source: Box::new(CallError::from(no_way())),
            },
        ];
        for error in errors {
            let call = measured::<()>("upsert", async { Err(error) });
            futures::executor::block_on(call).unwrap_err();
        }
    });
    let text = handle.render();
    for (reason, count) in [("malformed", 1), ("no_way", 2)] {
        let wanted =
            format!("producer_gateway_residency_refusals_total{{reason=\"{reason}\"}} {count}\n");
        assert!(text.contains(&wanted), "{wanted}: {text}");
    }
}
