//! Partial and conditional changes: no update is lost, a condition is kept, and an owner that dies
//! in the middle leaves either the one or the other.

use std::{collections::HashMap, thread};

use reqwest::Method;
use serde_json::json;
use shoal_schemas::{
    Collection, Payload, PointId, Token, Value,
    avro::NoRegistry,
    event::decode_value,
    v1::{self, write_result::Outcome},
};
use tonic::Code;

use crate::harness::{
    DEADLINE, child, client,
    role::Role,
    topic::{home, read},
    wait,
    world::World,
};

const DIM: u32 = 8;

/// A query node and an indexer's way in, for one test.
struct Readers {
    _role: Role,
    query: client::Query,
    collection: String,
}

impl Readers {
    fn start(world: &World, collection: &Collection) -> Self {
        let role = world.query("query").start();
        Self {
            query: client::Query::to(role.settings.grpc, role.settings.http),
            _role: role,
            collection: collection.name.to_string(),
        }
    }

    /// A point with its version, as it is after everything that was answered.
    fn get(&self, id: &str) -> Option<v1::StoredPoint> {
        self.get_after(&[], id)
    }

    fn get_after(&self, tokens: &[v1::Token], id: &str) -> Option<v1::StoredPoint> {
        let ask = v1::GetRequest {
            collection: self.collection.clone(),
            ids: vec![id.to_owned()],
            with_vector: true,
            read: client::at_least(tokens),
            ..v1::GetRequest::default()
        };
        // An owner that was killed is asked as soon as it is back, and says so while it restores.
        let answer = shoal_runtime::eventually(DEADLINE, "an owner that serves", || {
            match self.query.get(ask.clone()) {
                Err(status) if status.code() == Code::Unavailable => None,
                answer => Some(answer),
            }
        });
        answer.unwrap().points.pop()
    }
}

fn gateway(role: &Role) -> client::Gateway {
    client::Gateway::to(role.settings.grpc, role.settings.http)
}

fn point(id: &str, seed: u8) -> v1::Point {
    let components = (0..DIM).map(|n| f32::from(seed) / 3.0 + if n == 1 { -0.1 } else { 1e-7 });
    v1::Point {
        id: id.to_owned(),
        vector: components.collect(),
        ..v1::Point::default()
    }
}

fn fields(set: &[(&str, i64)]) -> HashMap<String, v1::Value> {
    let set = set.iter();
    let fields = set.map(|(name, n)| ((*name).to_owned(), Value::Integer(*n)));
    Payload(fields.collect()).to_proto()
}

fn number(stored: &v1::StoredPoint, name: &str) -> i64 {
    let payload = stored.point.clone().unwrap().payload;
    match Payload::from_proto(payload).unwrap().0.get(name) {
        Some(Value::Integer(n)) => *n,
        None => 0,
        other => panic!("{other:?}"),
    }
}

fn patch(id: &str, set: &[(&str, i64)], if_version: Option<u64>) -> v1::PointPatch {
    v1::PointPatch {
        id: id.to_owned(),
        set: fields(set),
        if_version,
        ..v1::PointPatch::default()
    }
}

fn is(failure: &v1::WriteFailure, code: Code) -> bool {
    Code::from(failure.code) == code
}

#[test]
fn patches_of_one_point_through_two_gateways_lose_no_update() {
    const TASKS: usize = 6;
    const ROUNDS: i64 = 10;
    let world = World::new("patch");
    let collection = world.collection("patched", DIM, 2);
    let indexer = world.indexer("indexer").start();
    let readers = Readers::start(&world, &collection);
    let roles = ["gateway-a", "gateway-b"].map(|name| world.gateway(name).start());
    let gateways = [gateway(&roles[0]), gateway(&roles[1])];
    let name = collection.name.as_str();
    let start = point("a", 7);
    gateways[0].upsert(name, vec![start.clone()]).unwrap();
    // Through the other gateway, at once: what was acknowledged is seen.
    gateways[1]
        .patch(name, patch("a", &[("count", 0)], None))
        .unwrap();
    thread::scope(|scope| {
        for task in 0..TASKS {
            let (gateways, readers) = (&gateways, &readers);
            scope.spawn(move || {
                let own = format!("f{task}");
                for round in 1..=ROUNDS {
                    let at = &gateways[(task + usize::try_from(round).unwrap()) % 2];
                    at.patch(name, patch("a", &[(&own, round)], None)).unwrap();
                    loop {
                        let now = readers.get("a").unwrap();
                        assert_eq!(number(&now, &own), round, "an answer means that it is seen");
                        let count = number(&now, "count") + 1;
                        let counted = patch("a", &[("count", count)], Some(now.version));
                        match at.patch(name, counted) {
                            Ok(_) => break,
                            Err(failure) => {
                                assert!(is(&failure, Code::Aborted), "{failure:?}");
                                assert_ne!(failure.current_version, Some(now.version));
                            }
                        }
                    }
                }
            });
        }
    });
    let stored = readers.get("a").unwrap();
    for task in 0..TASKS {
        assert_eq!(number(&stored, &format!("f{task}")), ROUNDS);
    }
    let total = i64::try_from(TASKS).unwrap() * ROUNDS;
    assert_eq!(number(&stored, "count"), total);
    let bits = |vector: &[f32]| vector.iter().map(|one| one.to_bits()).collect::<Vec<_>>();
    assert_eq!(
        bits(&stored.point.as_ref().unwrap().vector),
        bits(&start.vector)
    );

    conditions_hold_over_grpc_and_http(&world, &gateways, &readers, name);
    commands_change_a_point(&world, &roles[0], &readers, name);
    let resolved = indexer.metrics();
    assert!(resolved.sum("indexer_resolves_total", &["written"]) >= 2.0 * 60.0);
    assert!(resolved.sum("indexer_resolves_total", &["condition"]) >= 1.0);
    let forwarded = roles[0].metrics();
    assert!(forwarded.sum("producer_gateway_forwarded_total", &["ABORTED"]) >= 1.0);
    for role in roles.iter().chain([&indexer]) {
        role.had_no_errors(&[]);
    }
}

fn conditions_hold_over_grpc_and_http(
    world: &World,
    gateways: &[client::Gateway; 2],
    readers: &Readers,
    name: &str,
) {
    // Of many that want to make a point, one does, whichever gateway they ask.
    let made: Vec<bool> = thread::scope(|scope| {
        let tasks: Vec<_> = (0..8)
            .map(|seed| {
                let mut publish = gateways[usize::from(seed) % 2].publish.clone();
                scope.spawn(move || {
                    let ask = v1::UpsertRequest {
                        collection: name.to_owned(),
                        points: vec![point("new", seed)],
                        conditions: vec![v1::Condition {
                            if_version: Some(0),
                        }],
                    };
                    let answer = wait(publish.upsert(ask)).unwrap().into_inner();
                    match answer.results[0].outcome.as_ref().unwrap() {
                        Outcome::Token(token) => {
                            assert_eq!(answer.tokens[0], *token);
                            true
                        }
                        Outcome::Failure(failure) => {
                            assert!(is(failure, Code::Aborted), "{failure:?}");
                            assert!(failure.current_version.unwrap() > 0);
                            false
                        }
                    }
                })
            })
            .collect();
        tasks.into_iter().map(|task| task.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|made| **made).count(), 1);

    let http = gateways[1].http;
    let base = format!("/v1/collections/{name}/points");
    let version = readers.get("new").unwrap().version;
    let body = json!({"set": {"title": "x", "n": 3}, "if_version": version.to_string()});
    let (status, answer) = client::json(Method::PATCH, http, &format!("{base}/new"), &body);
    assert_eq!(status, 200, "{answer}");
    assert!(answer["tokens"][0].is_string(), "{answer}");
    let now = readers.get("new").unwrap();
    assert_eq!(number(&now, "n"), 3);
    let (status, answer) = client::json(Method::PATCH, http, &format!("{base}/new"), &body);
    let told = &answer["error"];
    assert_eq!((status, told["code"].as_str()), (409, Some("ABORTED")));
    let current = now.version.to_string();
    assert_eq!(told["current_version"].as_str(), Some(current.as_str()));

    // Each of a batch by itself, in order.
    let batch = json!({"points": [
        {"id": "new", "unset": ["title"], "expires_at": "2100-01-01T00:00:00Z"},
        {"id": "nobody", "set": {"n": 1}},
        {"id": "new", "set": {"n": 4}, "if_version": version.to_string()},
    ]});
    let (status, answer) = client::json(Method::PATCH, http, &base, &batch);
    assert_eq!(status, 200, "{answer}");
    let results = answer["results"].as_array().unwrap();
    assert!(results[0]["token"].is_string(), "{answer}");
    assert_eq!(results[1]["error"]["code"], "NOT_FOUND", "{answer}");
    assert_eq!(results[2]["error"]["code"], "ABORTED", "{answer}");
    let now = readers.get("new").unwrap();
    let stored = now.point.clone().unwrap();
    assert_eq!((number(&now, "n"), stored.payload.len()), (3, 1));
    assert_eq!(stored.expires_at_ms, 4_102_444_800_000);

    // Mixed with points that have no condition.
    let upsert = json!({"points": [
        {"id": "plain", "vector": point("", 1).vector},
        {"id": "new", "vector": point("", 2).vector, "if_version": "1"},
    ]});
    let (status, answer) = client::json(Method::PUT, http, &base, &upsert);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["results"][1]["error"]["code"], "ABORTED", "{answer}");
    // What has no condition is answered when the log has it, as ever.
    let token: Token = answer["results"][0]["token"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(readers.get_after(&[token.to_proto()], "plain").is_some());

    let none = json!({});
    let doomed = |version: u64| format!("{base}/new?if_version={version}");
    let (status, _) = client::json(Method::DELETE, http, &doomed(1), &none);
    assert_eq!(status, 409);
    let (status, _) = client::json(Method::DELETE, http, &doomed(now.version), &none);
    assert_eq!((status, readers.get("new")), (200, None));
    for (path, body, told) in [
        (format!("{base}/new"), json!({"set": {"n": 1}}), 404),
        (format!("{base}/new"), json!({}), 400),
        (
            format!("{base}/new"),
            json!({"set": {"n": {"deep": 1}}}),
            400,
        ),
        (
            format!("{base}/new?if_version=x"),
            json!({"set": {"n": 1}}),
            400,
        ),
        (base.clone(), json!({"points": [{"set": {"n": 1}}]}), 400),
        (
            "/v1/collections/nope/points/a".to_owned(),
            json!({"set": {"n": 1}}),
            404,
        ),
    ] {
        let (status, answer) = client::json(Method::PATCH, http, &path, &body);
        assert_eq!(status, told, "{path} {body} {answer}");
    }
    assert!(world.control.snapshot().caught_up_at.is_some());
}

fn commands_change_a_point(world: &World, at: &Role, readers: &Readers, name: &str) {
    let mut variables = world.variables();
    let address = at.settings.grpc.to_string();
    variables.push(("SHOAL_GATEWAY__GRPC_LISTEN".to_owned(), address));
    let shoal = |arguments: &str| {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        child::run(&words, &variables)
    };
    let (status, token, told) = shoal(&format!(
        "patch {name} --id a --set n=5 --set title=five --unset count"
    ));
    assert!(status.success(), "{told}");
    assert!(token.trim().parse::<Token>().is_ok(), "{token}");
    let now = readers.get("a").unwrap();
    assert_eq!((number(&now, "n"), number(&now, "count")), (5, 0));
    let (status, _, told) = shoal(&format!("patch {name} --id a --set n=6 --if-version 1"));
    let version = now.version.to_string();
    assert!(!status.success() && told.contains(&version), "{told}");
    let (status, _, told) = shoal(&format!("delete {name} --id a --if-version 1"));
    assert!(!status.success() && told.contains(&version), "{told}");
    let (status, _, told) = shoal(&format!("delete {name} --id a --if-version {version}"));
    assert!(status.success(), "{told}");
    assert_eq!(readers.get("a"), None);
    let (status, _, told) = shoal(&format!("patch {name} --id a --set n=6"));
    assert!(!status.success() && told.contains("no point `a`"), "{told}");
}

#[test]
fn an_owner_that_dies_in_the_middle_of_a_change_leaves_it_made_or_not_made() {
    let world = World::new("patch-crash");
    let collection = world.collection("fragile", DIM, 1);
    let name = collection.name.as_str();
    let settings = world.indexer("victim");
    let mut owner = settings.start();
    let readers = Readers::start(&world, &collection);
    let gateway_role = world.gateway("gateway").start();
    let gateway = gateway(&gateway_role);
    gateway.upsert(name, vec![point("a", 3)]).unwrap();
    gateway
        .patch(name, patch("a", &[("n", 0), ("m", 0)], None))
        .unwrap();
    for (round, died_at) in (1..).zip(["resolve_sent", "resolve_acked", "resolve_sent"]) {
        let before = readers.get("a").unwrap();
        owner.child.kill();
        let armed = settings.clone().with("CRASH_POINT", format!("{died_at}:1"));
        let victim = armed.start();
        let wanted = patch("a", &[("n", round), ("m", round)], Some(before.version));
        let failure = gateway.patch(name, wanted.clone()).unwrap_err();
        assert!(is(&failure, Code::Unknown), "{died_at}: {failure:?}");
        victim.child.dies(died_at);
        owner = settings.start();
        // The same once more, with the version it was to be made on: who is refused has won before.
        let was_made = match gateway.patch(name, wanted) {
            Ok(_) => false,
            Err(failure) => {
                assert!(is(&failure, Code::Aborted), "{failure:?}");
                true
            }
        };
        assert!(was_made || died_at == "resolve_sent");
        let now = readers.get("a").unwrap();
        assert_eq!((number(&now, "n"), number(&now, "m")), (round, round));
        let id = PointId::new("a").unwrap();
        let records = read(&world.cluster, &home(&collection, "a"));
        let made = records.iter().filter(|(_, record)| {
            let value = record.value.as_deref().unwrap();
            let point = decode_value(&id, value, &collection, &NoRegistry).unwrap();
            point.payload.0.get("n") == Some(&Value::Integer(round))
        });
        assert_eq!(made.count(), 1, "made once");
    }
    owner.had_no_errors(&[]);
    gateway_role.had_no_errors(&[]);
}
