//! Tests of writes that go on: streams over gRPC, NDJSON over HTTP, and quotas, which end both.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, time::Duration};

use axum::body::Bytes;
use futures::stream;
use serde_json::{Value as Json, json};
use shoal_schemas::{
    Condition, PointId, Token,
    v1::{self, WriteStreamRequest, write_stream_request::Call, write_stream_response::Outcome},
};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::{Code, Streaming};
use tonic_types::StatusExt as _;

use super::{
    Config, QuotaConfig, Rate,
    resolve_tests::{Owner, claim},
    tests::{World, upsert},
};
use crate::publisher::tests::point;

const PATIENCE: Duration = Duration::from_secs(20);

fn put(request_id: u64, ids: &[&str]) -> WriteStreamRequest {
    let good = point(1.0);
    let named: Vec<_> = ids.iter().map(|id| (*id, &good)).collect();
    WriteStreamRequest {
        request_id,
        call: Some(Call::Upsert(upsert("docs", &named))),
    }
}

fn delete(request_id: u64, ids: &[&str]) -> WriteStreamRequest {
    let call = v1::DeleteRequest {
        collection: "docs".into(),
        ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        conditions: Vec::new(),
    };
    WriteStreamRequest {
        request_id,
        call: Some(Call::Delete(call)),
    }
}

async fn next(answers: &mut Streaming<v1::WriteStreamResponse>) -> (u64, Outcome) {
    let next = tokio::time::timeout(PATIENCE, answers.message()).await;
    let next = next.expect("an answer in time").unwrap().unwrap();
    (next.request_id, next.outcome.unwrap())
}

fn keys(outcome: Outcome) -> Vec<String> {
    match outcome {
        Outcome::Written(written) => written.tokens.into_iter().map(|one| one.key).collect(),
        Outcome::Refusal(refusal) => panic!("{refusal:?}"),
    }
}

fn refusal(outcome: Outcome) -> v1::WriteRefusal {
    match outcome {
        Outcome::Refusal(refusal) => refusal,
        Outcome::Written(written) => panic!("{written:?}"),
    }
}

#[tokio::test]
async fn a_stream_is_answered_in_order_with_tokens_and_a_bad_request_ends_nothing() {
    let world = World::start(Config::default()).await;
    let mut bad = put(3, &["x"]);
    if let Some(Call::Upsert(upsert)) = &mut bad.call {
        upsert.points[0].vector.pop();
    }
    let nothing = WriteStreamRequest {
        request_id: 4,
        call: None,
    };
    let requests = vec![
        put(1, &["a", "b"]),
        delete(2, &["a"]),
        bad,
        nothing,
        put(9, &["c"]),
    ];
    let mut client = world.grpc().await;
    let answers = client.write_stream(stream::iter(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    let (id, outcome) = next(&mut answers).await;
    assert_eq!((id, keys(outcome)), (1, vec!["a".into(), "b".into()]));
    let (id, outcome) = next(&mut answers).await;
    assert_eq!((id, keys(outcome)), (2, vec!["a".into()]));
    for (wanted, told) in [(3, "wrong_dimension"), (4, "call has no points")] {
        let (id, outcome) = next(&mut answers).await;
        let refusal = refusal(outcome);
        assert_eq!((id, refusal.code), (wanted, Code::InvalidArgument.into()));
        assert!(refusal.message.contains(told), "{refusal:?}");
    }
    let (id, outcome) = next(&mut answers).await;
    assert_eq!((id, keys(outcome)), (9, vec!["c".into()]));
    assert_eq!(answers.message().await.unwrap(), None);
    assert_eq!(world.found().len(), 4);
}

#[tokio::test]
async fn one_connection_holds_a_thousand_streams() {
    let world = World::start(Config::default()).await;
    let mut client = world.grpc().await;
    let mut open = Vec::new();
    for at in 0..1000_u64 {
        let (sender, requests) = mpsc::channel(1);
        let requests = stream::unfold(requests, |mut requests| async move {
            Some((requests.recv().await?, requests))
        });
        let opened = client.write_stream(requests);
        let opened = tokio::time::timeout(PATIENCE, opened).await;
        let answers = opened.expect("another stream").unwrap().into_inner();
        open.push((at, sender, answers));
    }
    // All of them are open, and each of them works.
    for (at, sender, answers) in &mut open {
        let id = at.to_string();
        sender.send(put(*at, &[&id])).await.unwrap();
        let (request, outcome) = next(answers).await;
        assert_eq!((request, keys(outcome)), (*at, vec![id]));
    }
}

#[tokio::test]
async fn writes_of_one_id_reach_the_log_in_the_order_of_the_stream() {
    let world = World::start(Config::default()).await;
    // Many points are checked off the thread that answers, few are not: neither overtakes.
    let filler: Vec<String> = (0..200).map(|n| format!("filler-{n}")).collect();
    let mut large: Vec<&str> = filler.iter().map(String::as_str).collect();
    large.push("same");
    let requests = (0..30_u64).map(|n| match n % 3 {
        0 => put(n, &large),
        1 => delete(n, &["same"]),
        _ => put(n, &["same"]),
    });
    let requests: Vec<_> = requests.collect();
    let mut client = world.grpc().await;
    let answers = client.write_stream(stream::iter(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut offsets = Vec::new();
    for n in 0..30 {
        let (id, outcome) = next(&mut answers).await;
        assert_eq!(id, n);
        let Outcome::Written(written) = outcome else {
            panic!("{outcome:?}");
        };
        let same = written.tokens.iter().find(|token| token.key == "same");
        offsets.push(same.unwrap().offset);
    }
    assert!(offsets.is_sorted(), "{offsets:?}");
    let same = world.found().into_iter().filter(|record| {
        PointId::from_key(record.key.as_deref()).is_ok_and(|id| id.as_str() == "same")
    });
    let is_delete: Vec<bool> = same.map(|record| record.value.is_none()).collect();
    let expected: Vec<bool> = (0..30).map(|n| n % 3 == 1).collect();
    assert_eq!(is_delete, expected);
}

#[tokio::test]
async fn a_stream_takes_conditions_too() {
    let world = World::start(Config::default()).await;
    let mut tasks = JoinSet::new();
    for shard in 0..2 {
        let at = Owner::willing().start(&mut tasks);
        claim(&world, shard, at, true).await;
    }
    let mut wanted = put(1, &["a"]);
    if let Some(Call::Upsert(upsert)) = &mut wanted.call {
        upsert.conditions = vec![v1::Condition {
            if_version: Condition::from_wire(Some(7)).to_wire(),
        }];
    }
    let mut client = world.grpc().await;
    let answers = client.write_stream(stream::iter([wanted])).await;
    let (_, outcome) = next(&mut answers.unwrap().into_inner()).await;
    let Outcome::Written(written) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!((written.tokens.len(), written.results.len()), (1, 1));
    assert!(world.found().is_empty(), "the owner writes it");
}

#[tokio::test]
async fn a_gateway_that_stops_ends_its_streams() {
    let world = World::start(Config::default()).await;
    let (send, requests) = mpsc::channel(4);
    let mut client = world.grpc().await;
    let requests = stream::unfold(requests, |mut requests| async move {
        let request = requests.recv().await?;
        Some((request, requests))
    });
    let answers = client.write_stream(requests).await;
    let mut answers = answers.unwrap().into_inner();
    send.send(put(1, &["a"])).await.unwrap();
    assert_eq!(next(&mut answers).await.0, 1);
    world.stop();
    let ended = tokio::time::timeout(PATIENCE, answers.message()).await;
    assert_eq!(ended.expect("in time").unwrap(), None);
}

fn line(id: &str) -> String {
    json!({"id": id, "vector": [1, 0.5, 0, -1]}).to_string() + "\n"
}

#[tokio::test]
async fn lines_are_written_in_parts_and_answered_with_the_last_token_of_each_partition() {
    let world = World::start(Config::default()).await;
    let body: String = (0..2500).map(|n| line(&format!("id-{n}"))).collect();
    let (status, told) = world
        .http("POST", "/v1/collections/docs/points", body)
        .await;
    assert_eq!((status, &told["points"]), (200, &json!(2500)));
    let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
    for text in told["tokens"].as_array().unwrap() {
        let token: Token = text.as_str().unwrap().parse().unwrap();
        ends.insert(token.partition.0, token.offset.0 + 1);
    }
    let written = world.found().len();
    assert_eq!(
        (written, ends.values().sum::<u64>()),
        (2500, 2500),
        "{ends:?}"
    );
}

#[tokio::test]
async fn the_first_line_that_is_refused_ends_a_batch_and_says_how_far_it_came() {
    let world = World::start(Config::default()).await;
    let good: String = (0..1200).map(|n| line(&format!("id-{n}"))).collect();
    let conditional = json!({"id": "a", "vector": [1, 0.5, 0, -1], "if_absent": true});
    for (bad, told) in [
        ("{\"id\": \"a\"", "EOF"),
        ("{\"id\": \"a\", \"vector\": [1]}", "wrong_dimension"),
        (&conditional.to_string(), "send the point with PUT"),
    ] {
        let before = world.found().len();
        let body = format!("{good}\n{bad}\n{}", line("behind"));
        let (status, answer) = world
            .http("POST", "/v1/collections/docs/points", body)
            .await;
        assert_eq!((status, &answer["points"]), (400, &json!(1200)), "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.starts_with("line 1202 is refused"), "{message}");
        assert!(message.contains(told), "{message}");
        assert_eq!(answer["tokens"].as_array().unwrap().len(), 2);
        assert_eq!(world.found().len() - before, 1200);
    }
    let (status, answer) = world
        .http("POST", "/v1/collections/dosc/points", good)
        .await;
    assert_eq!((status, &answer["points"]), (404, &json!(0)), "{answer}");
}

#[tokio::test]
async fn a_body_is_written_while_it_comes() {
    let world = World::start(Config::default()).await;
    let (send, pieces) = mpsc::channel::<Result<Bytes, std::io::Error>>(4);
    let body = stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        Some((piece, pieces))
    });
    let sent = reqwest::Client::new().post(world.url("/v1/collections/docs/points"));
    let sent = sent.body(reqwest::Body::wrap_stream(body)).send();
    let first: String = (0..7).map(|n| line(&format!("id-{n}"))).collect();
    let feed = async {
        send.send(Ok(first.into())).await.unwrap();
        let deadline = tokio::time::timeout(PATIENCE, async {
            while world.found().len() < 7 {
                tokio::task::yield_now().await;
            }
        });
        deadline
            .await
            .expect("the first part is in the log before the body ends");
        send.send(Ok(line("last").into())).await.unwrap();
        drop(send);
    };
    let (answer, ()) = tokio::join!(sent, feed);
    let told: Json = serde_json::from_str(&answer.unwrap().text().await.unwrap()).unwrap();
    assert_eq!(told["points"], 8);
}

/// `acme` may write 5 records a second; the rest has no limit.
fn with_quota() -> Config {
    let acme = Rate {
        records_per_second: 5.try_into().ok(),
        bytes_per_second: None,
    };
    Config {
        quota: QuotaConfig {
            tenants: [("acme".to_owned(), acme)].into(),
            ..QuotaConfig::default()
        },
        ..Config::default()
    }
}

#[tokio::test]
async fn a_tenant_over_its_quota_is_told_when_to_come_back() {
    let world = World::start(with_quota()).await;
    world.with_tenants("shop").await;
    let good = point(1.0);
    let ids: Vec<String> = (0..100).map(|n| format!("acme/{n}")).collect();
    let mine: Vec<_> = ids.iter().map(|id| (id.as_str(), &good)).collect();
    let mut client = world.grpc().await;
    client.upsert(upsert("shop", &mine)).await.unwrap();

    let refused = client.upsert(upsert("shop", &mine[..1])).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("tenant `acme`"), "{refused}");
    let retry = refused
        .get_details_retry_info()
        .unwrap()
        .retry_delay
        .unwrap();
    assert!(
        retry > Duration::from_secs(10) && retry < Duration::from_secs(20),
        "{retry:?}"
    );

    let body = json!({"points": [{"id": "acme/1", "vector": [1, 0.5, 0, -1]}]}).to_string();
    let sent = reqwest::Client::new().put(world.url("/v1/collections/shop/points"));
    let answer = sent.body(body).send().await.unwrap();
    assert_eq!(answer.status(), 429);
    let after: u64 = answer.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((10..=20).contains(&after), "{after}");

    // Every way to write counts, and none of them wrote.
    for (method, path, body) in [
        ("DELETE", "points/acme%2F1", String::new()),
        (
            "POST",
            "points/delete",
            json!({"ids": ["acme/1"]}).to_string(),
        ),
        (
            "POST",
            "points/delete",
            json!({"ids": [{"id": "acme/1", "if_version": 7}]}).to_string(),
        ),
        (
            "PATCH",
            "points/acme%2F1",
            json!({"unset": ["x"]}).to_string(),
        ),
        ("POST", "points", line("acme/1")),
    ] {
        let path = format!("/v1/collections/shop/{path}");
        let (status, told) = world.http(method, &path, body).await;
        assert_eq!(status, 429, "{method} {path}: {told}");
        assert_eq!(told["error"]["code"], "RESOURCE_EXHAUSTED");
    }
    let over = WriteStreamRequest {
        request_id: 1,
        call: Some(Call::Upsert(upsert("shop", &mine[..1]))),
    };
    let answers = client.write_stream(stream::iter([over])).await.unwrap();
    let refusal = refusal(next(&mut answers.into_inner()).await.1);
    assert_eq!(refusal.code, i32::from(Code::ResourceExhausted));
    assert!(refusal.retry_after_ms.unwrap() > 10_000, "{refusal:?}");
    assert_eq!(world.found_in("shop").len(), 100);

    // Others go on, and so do ids that have no tenant.
    let (status, _) = world
        .http("POST", "/v1/collections/shop/points", line("zoo/1"))
        .await;
    assert_eq!(status, 200);
    client.upsert(upsert("docs", &mine)).await.unwrap();
}
