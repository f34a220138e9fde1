//! Tests of what is forwarded to owners, with owners that a test makes up.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{
    Collection, Partition,
    control::{Claim, Entry, Key},
    route,
    v1::{self, point_change::Kind, shard_server, write_result::Outcome},
};
use tokio::task::JoinSet;
use tonic::{Code, Request, Response, Status, transport::server::TcpIncoming};

use super::{
    Config,
    tests::{World, upsert},
};
use crate::publisher::tests::{id, point};

/// What an owner says to a request.
type Answers = dyn Fn(&v1::ResolveRequest) -> v1::ResolveResponse + Send + Sync;

/// An owner; `None` never answers.
#[derive(Clone)]
pub(super) struct Owner {
    answers: Option<Arc<Answers>>,
    asked: Arc<Mutex<Vec<v1::ResolveRequest>>>,
}

impl Owner {
    fn that(
        answers: impl Fn(&v1::ResolveRequest) -> v1::ResolveResponse + Send + Sync + 'static,
    ) -> Self {
        Self {
            answers: Some(Arc::new(answers)),
            asked: Arc::default(),
        }
    }

    /// One that does everything it is asked for.
    pub(super) fn willing() -> Self {
        Self::that(|request| v1::ResolveResponse {
            results: request.changes.iter().map(|one| made(&key(one))).collect(),
            ..v1::ResolveResponse::default()
        })
    }

    pub(super) fn times_asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// The ids of all changes that it was to write with this residency.
    pub(super) fn changes_to_stay_in(&self, region: &str) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let asked = asked.iter().filter(|one| one.residency == region);
        asked.flat_map(|one| one.changes.iter().map(key)).collect()
    }

    pub(super) fn start(&self, tasks: &mut JoinSet<()>) -> SocketAddr {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = incoming.local_addr().unwrap();
        let service = shard_server::ShardServer::new(self.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tasks.spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
        at
    }
}

#[tonic::async_trait]
impl shard_server::Shard for Owner {
    async fn search_shards(
        &self,
        _: Request<v1::SearchShardsRequest>,
    ) -> Result<Response<v1::SearchShardsResponse>, Status> {
        Err(Status::unimplemented("a gateway searches nothing"))
    }

    async fn get_points(
        &self,
        _: Request<v1::GetPointsRequest>,
    ) -> Result<Response<v1::GetPointsResponse>, Status> {
        Err(Status::unimplemented("a gateway reads nothing"))
    }

    async fn shard_status(
        &self,
        _: Request<v1::ShardStatusRequest>,
    ) -> Result<Response<v1::ShardStatusResponse>, Status> {
        Err(Status::unimplemented("a gateway asks for no status"))
    }

    async fn count_points(
        &self,
        _: Request<v1::CountPointsRequest>,
    ) -> Result<Response<v1::CountPointsResponse>, Status> {
        Err(Status::unimplemented("a gateway counts nothing"))
    }

    async fn shard_scroll(
        &self,
        _: Request<v1::ShardScrollRequest>,
    ) -> Result<Response<v1::ShardScrollResponse>, Status> {
        Err(Status::unimplemented("a gateway reads nothing"))
    }

    async fn resolve(
        &self,
        request: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveResponse>, Status> {
        let request = request.into_inner();
        self.asked.lock().unwrap().push(request.clone());
        match &self.answers {
            Some(answers) => Ok(Response::new(answers(&request))),
            None => std::future::pending().await,
        }
    }
}

fn key(change: &v1::PointChange) -> String {
    match change.kind.as_ref().unwrap() {
        Kind::Write(write) => write.id.clone(),
        Kind::Patch(patch) => patch.id.clone(),
    }
}

fn made(key: &str) -> v1::WriteResult {
    let token = v1::Token {
        cluster_id: "memory".to_owned(),
        topic: "embeddings.docs".to_owned(),
        key: key.to_owned(),
        ..v1::Token::default()
    };
    v1::WriteResult {
        outcome: Some(Outcome::Token(token)),
    }
}

fn patch(ids: &[&str]) -> v1::PatchRequest {
    let patches = ids.iter().map(|id| v1::PointPatch {
        id: (*id).to_owned(),
        unset: vec!["x".to_owned()],
        ..v1::PointPatch::default()
    });
    v1::PatchRequest {
        collection: "docs".to_owned(),
        points: patches.collect(),
    }
}

fn shard(docs: &Collection, key: &str) -> u32 {
    route::partition_of(docs, &id(key)).0
}

pub(super) async fn claim(world: &World, shard: u32, at: SocketAddr, ready: bool) {
    claim_of(world, &world.docs, shard, at, ready).await;
}

pub(super) async fn claim_of(
    world: &World,
    of: &Collection,
    shard: u32,
    at: SocketAddr,
    ready: bool,
) {
    let key = Key::Shard(of.name.clone(), Partition(shard));
    let claim = Claim {
        node: at.to_string(),
        address: at.to_string(),
        ready,
        next_offset: None,
        early: false,
    };
    let put = world.control.put(&key, &Entry::Shard(claim)).await.unwrap();
    let read_back = world.control.wait_for(put, Duration::from_secs(20));
    read_back.await.unwrap();
}

fn within(time: Duration) -> Config {
    Config {
        deadline: time,
        ..Config::default()
    }
}

fn failures(results: Vec<v1::WriteResult>) -> Vec<v1::WriteFailure> {
    let failures = results.into_iter().map(|result| match result.outcome {
        Some(Outcome::Failure(failure)) => failure,
        other => panic!("{other:?}"),
    });
    failures.collect()
}

#[tokio::test]
async fn changes_go_to_the_owners_of_their_shards_and_results_come_back_in_order() {
    let world = World::start(Config::default()).await;
    let mut tasks = JoinSet::new();
    let owners = [Owner::willing(), Owner::willing()];
    for (number, owner) in (0..).zip(&owners) {
        let at = owner.start(&mut tasks);
        claim(&world, number, at, true).await;
    }
    let names: Vec<String> = (0..40).map(|n| format!("id-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut client = world.grpc().await;
    let answer = client.patch(patch(&names)).await.unwrap().into_inner();
    let keys = answer.results.iter().map(|result| match &result.outcome {
        Some(Outcome::Token(token)) => token.key.as_str(),
        other => panic!("{other:?}"),
    });
    assert_eq!(keys.collect::<Vec<_>>(), names);
    for (number, owner) in (0..).zip(&owners) {
        let asked = owner.asked.lock().unwrap();
        let [asked] = asked.as_slice() else {
            panic!("asked {} times", asked.len());
        };
        assert_eq!((asked.shard, asked.collection.as_str()), (number, "docs"));
        let mine = names
            .iter()
            .filter(|name| shard(&world.docs, name) == number);
        assert!(asked.changes.iter().map(key).eq(mine.copied()));
    }
    // Over HTTP, and with conditions; what a point holds is what the log would get.
    let body = json!({"points": [
        {"id": "a", "vector": [1, 2, 3, 4], "if_version": "77"},
        {"id": "b", "vector": [1, 2, 3, 4]},
    ]});
    let path = "/v1/collections/docs/points";
    let (status, answer) = world.http("PUT", path, body.to_string()).await;
    assert_eq!(
        (status, answer["results"].as_array().unwrap().len()),
        (200, 2)
    );
    let asked = owners
        .iter()
        .flat_map(|owner| owner.asked.lock().unwrap().clone());
    let writes = asked
        .flat_map(|asked| asked.changes)
        .filter_map(|one| match one.kind {
            Some(Kind::Write(write)) => Some((write.id, write.if_version, write.value.is_some())),
            _ => None,
        });
    let mut writes: Vec<_> = writes.collect();
    writes.sort();
    let expected = [("a", Some(77)), ("b", None)];
    assert_eq!(
        writes,
        expected.map(|(id, wanted)| (id.to_owned(), wanted, true))
    );
    assert!(
        world.found().is_empty(),
        "nothing of it went straight to the log"
    );
}

#[tokio::test]
async fn an_owner_that_is_none_any_more_is_left_for_the_next_claim() {
    let world = World::start(Config::default()).await;
    let mut tasks = JoinSet::new();
    let former = Owner::that(|_| v1::ResolveResponse {
        code: i32::from(Code::FailedPrecondition),
        error: "it moved".to_owned(),
        ..v1::ResolveResponse::default()
    });
    let owner = Owner::willing();
    let number = shard(&world.docs, "a");
    let (first, next) = (former.start(&mut tasks), owner.start(&mut tasks));
    claim(&world, number, first, true).await;
    let mut client = world.grpc().await;
    let call = tokio::join!(client.patch(patch(&["a"])), async {
        // Not asked while it is not ready.
        claim(&world, number, next, false).await;
        claim(&world, number, next, true).await;
    });
    let results = call.0.unwrap().into_inner().results;
    assert_eq!(results, [made("a")]);
    assert_eq!(owner.times_asked(), 1);
    assert!(former.times_asked() <= 1);
}

#[tokio::test]
async fn without_an_owner_nothing_is_written_and_it_says_so() {
    let world = World::start(within(Duration::from_millis(500))).await;
    let mut client = world.grpc().await;
    let answer = client.patch(patch(&["a"])).await.unwrap().into_inner();
    let [failure] = &failures(answer.results)[..] else {
        panic!("one result");
    };
    assert_eq!(Code::from(failure.code), Code::Unavailable);
    assert!(
        failure.message.contains("nothing was written"),
        "{failure:?}"
    );

    // Nobody listens where the claim says.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = free.local_addr().unwrap();
    drop(free);
    claim(&world, shard(&world.docs, "a"), at, true).await;
    let path = "/v1/collections/docs/points/a";
    let (status, answer) = world.http("PATCH", path, r#"{"unset": ["x"]}"#).await;
    assert_eq!(status, 503, "{answer}");
    let told = answer["error"]["message"].as_str().unwrap();
    assert!(told.contains("nothing was written"), "{answer}");
}

#[tokio::test]
async fn an_owner_that_does_not_answer_leaves_it_unknown_and_is_not_asked_twice() {
    let world = World::start(within(Duration::from_secs(60))).await;
    let silent = Owner {
        answers: None,
        asked: Arc::default(),
    };
    let number = shard(&world.docs, "a");
    // With a runtime of its own, so that its connections end with it.
    let own = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let owner = silent.clone();
    let started = own.spawn(async move {
        let mut tasks = JoinSet::new();
        (owner.start(&mut tasks), tasks)
    });
    let (at, _tasks) = started.await.unwrap();
    claim(&world, number, at, true).await;
    let mut client = world.grpc().await;
    // The caller's own deadline is the shorter one.
    let mut request = Request::new(patch(&["a"]));
    request.set_timeout(Duration::from_millis(800));
    let watch = Stopwatch::start();
    let answer = client.patch(request).await.unwrap().into_inner();
    assert!(watch.elapsed() < Duration::from_secs(20));
    let failed = failures(answer.results);
    assert_eq!(Code::from(failed[0].code), Code::Unknown, "{failed:?}");

    // Nor is one whose connection breaks while it is at it.
    let call = tokio::join!(client.patch(patch(&["a"])), async {
        while silent.times_asked() < 2 {
            tokio::task::yield_now().await;
        }
        own.shutdown_background();
    });
    assert!(watch.elapsed() < Duration::from_secs(40));
    let failed = failures(call.0.unwrap().into_inner().results);
    assert_eq!(Code::from(failed[0].code), Code::Unknown, "{failed:?}");
    assert_eq!(silent.times_asked(), 2);
}

#[tokio::test]
async fn what_does_not_read_fails_the_call_before_anything_is_forwarded() {
    let world = World::start(Config::default()).await;
    let mut tasks = JoinSet::new();
    let owner = Owner::willing();
    let at = owner.start(&mut tasks);
    for number in 0..2 {
        claim(&world, number, at, true).await;
    }
    let mut client = world.grpc().await;
    let mut faulty = patch(&["a", "b"]);
    faulty.points[1].unset.clear();
    let refused = client.patch(faulty).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("point 1"), "{refused}");

    let good = point(1.0);
    let mut uneven = upsert("docs", &[("a", &good), ("b", &good)]);
    uneven.conditions.push(v1::Condition { if_version: None });
    let refused = client.upsert(uneven).await.unwrap_err();
    assert!(
        refused.message().contains("1 conditions for 2 points"),
        "{refused}"
    );

    for (method, path, body, told) in [
        ("PATCH", "points/a", r#"{"set": {"n": null}}"#, "unset"),
        (
            "PATCH",
            "points/a?if_version=5",
            r#"{"unset": ["n"], "if_version": "6"}"#,
            "not the same",
        ),
        (
            "PATCH",
            "points/a?if_version=0",
            r#"{"unset": ["n"]}"#,
            "upsert it instead",
        ),
        (
            "PATCH",
            "points/a?if=5",
            r#"{"unset": ["n"]}"#,
            "if_version",
        ),
        (
            "PATCH",
            "points/delete",
            r#"{"id": "x", "unset": ["n"]}"#,
            "the path says `delete`",
        ),
        (
            "PUT",
            "points",
            r#"{"points": [{"id": "a", "vector": [1, 2, 3, 4], "if_version": "x"}]}"#,
            "if_version",
        ),
        (
            "POST",
            "points/delete",
            r#"{"ids": [{"id": "a", "if_version": "x"}]}"#,
            "if_version",
        ),
        ("DELETE", "points/a?if_version=x", "", "if_version"),
    ] {
        let path = format!("/v1/collections/docs/{path}");
        let (status, answer) = world.http(method, &path, body).await;
        assert_eq!(status, 400, "{path} {answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(told), "{told}: {answer}");
    }
    assert_eq!(owner.times_asked(), 0);
}
