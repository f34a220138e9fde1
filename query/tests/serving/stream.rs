//! Searches over one stream: answered as they are done, so many at once, given up with the stream.

use std::time::Duration;

use futures::{FutureExt as _, Stream};
use shoal_query::{Config, admission};
use shoal_schemas::{
    Value,
    v1::{self, SearchStreamRequest, search_stream_request::Call, search_stream_response::Outcome},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Endpoint};

use crate::{
    indexer::Behaviour,
    world::{PATIENCE, Search, World, collection, fill, id, ids, near_origin, point, wait},
};

fn asked(request_id: u64, search: v1::SearchRequest) -> SearchStreamRequest {
    SearchStreamRequest {
        request_id,
        call: Some(Call::Search(search)),
        timeout_ms: 0,
    }
}

async fn open(
    world: &World,
    requests: impl Stream<Item = SearchStreamRequest> + Send + 'static,
) -> Streaming<v1::SearchStreamResponse> {
    let opened = world.search().search_stream(requests).await;
    opened.unwrap().into_inner()
}

/// The next answer: its request's id, and what it says.
pub(crate) async fn next(answers: &mut Streaming<v1::SearchStreamResponse>) -> (u64, Outcome) {
    let next = tokio::time::timeout(PATIENCE, answers.message()).await;
    let next = next.expect("an answer in time").unwrap().unwrap();
    (next.request_id, next.outcome.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_answered_under_its_id_and_failures_end_nothing() {
    let world = World::start().await;
    let docs = collection("docs", 2);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 12);
    let recommend = SearchStreamRequest {
        request_id: 7,
        call: Some(Call::Recommend(v1::RecommendRequest {
            collection: "docs".into(),
            positive: vec!["p3".into()],
            query: Some(v1::Query {
                k: 1,
                ..v1::Query::default()
            }),
            ..v1::RecommendRequest::default()
        })),
        timeout_ms: 5000,
    };
    let unknown = v1::SearchRequest {
        collection: "nothing".into(),
        ..near_origin(&docs, 1)
    };
    let requests = vec![
        asked(3, near_origin(&docs, 2)),
        recommend,
        asked(9, unknown),
        SearchStreamRequest {
            request_id: 11,
            call: None,
            timeout_ms: 0,
        },
        asked(3, near_origin(&docs, 1)),
    ];
    let mut answers = open(&world, futures::stream::iter(requests)).await;
    let mut found = Vec::new();
    for _ in 0..5 {
        let (request_id, outcome) = next(&mut answers).await;
        let text = match outcome {
            Outcome::Response(response) => ids(&response.hits).join(" "),
            Outcome::Failure(failure) => format!("{:?}", Code::from(failure.code)),
        };
        found.push((request_id, text));
    }
    assert_eq!(answers.message().await.unwrap(), None, "the stream ends");
    found.sort();
    let expected = [
        (3, "p0"),
        (3, "p0 p1"),
        (7, "p2"),
        (9, "NotFound"),
        (11, "InvalidArgument"),
    ];
    let found: Vec<(u64, &str)> = found
        .iter()
        .map(|(id, text)| (*id, text.as_str()))
        .collect();
    assert_eq!(found, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_search_holds_up_no_other() {
    let world = World::start().await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 5);
    let (release, released) = oneshot::channel::<()>();
    indexers[0].before_answer(released.map(drop).boxed());
    let (send, requests) = mpsc::channel(8);
    let mut answers = open(&world, ReceiverStream::new(requests)).await;
    send.send(asked(1, near_origin(&docs, 1))).await.unwrap();
    wait(
        || (indexers[0].seen().len() == 1).then_some(()),
        "the first to be asked",
    );
    send.send(asked(2, near_origin(&docs, 1))).await.unwrap();
    assert_eq!(next(&mut answers).await.0, 2);
    release.send(()).unwrap();
    assert_eq!(next(&mut answers).await.0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_set_number_is_under_way() {
    let config = Config {
        max_stream_searches: 2,
        // Nothing shall end by itself here.
        default_deadline: Duration::from_secs(600),
        ..Config::default()
    };
    let world = World::start_with(config, true).await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 5);
    indexers[0].behave(Behaviour::Hangs);
    let (send, requests) = mpsc::channel(64);
    for id in 0..50 {
        send.send(asked(id, near_origin(&docs, 1))).await.unwrap();
    }
    let answers = open(&world, ReceiverStream::new(requests)).await;
    wait(
        || (indexers[0].seen().len() == 2).then_some(()),
        "two to be asked",
    );
    // Another call has gone the whole way meanwhile, and still there are two.
    let mut other = world.search();
    let refused = crate::world::within(Duration::from_millis(500), near_origin(&docs, 1));
    other.search(refused).await.unwrap_err();
    assert_eq!(indexers[0].seen().len(), 3);
    drop(answers);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_answers_keeps_no_other_waiting() {
    let config = Config {
        // Who held the only place without an end would be seen at once.
        admission: admission::Config {
            concurrent: 1,
            queue: 64,
        },
        max_stream_searches: 4,
        default_deadline: Duration::from_secs(600),
        ..Config::default()
    };
    let world = World::start_with(config, true).await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    // More than the node keeps of answers that are not taken, so that the second one waits already.
    let mut large = point(&docs, 0.0);
    let text = Value::String("x".repeat(1 << 20));
    large.payload.0.insert("text".into(), text);
    indexers[0].node.upsert(&docs, &id("large"), &large);
    let endpoint = Endpoint::from_shared(format!("http://{}", world.addresses.grpc)).unwrap();
    let slow = endpoint.initial_stream_window_size(1 << 16).connect_lazy();
    let search = || v1::SearchRequest {
        with_payload: true,
        ..near_origin(&docs, 1)
    };
    let requests = (0..64).map(move |id| asked(id, search()));
    let requests: Vec<_> = requests.collect();
    let mut slow = Search::new(slow);
    let opened = slow.search_stream(futures::stream::iter(requests)).await;
    let untaken = opened.unwrap().into_inner();
    wait(
        || (indexers[0].seen().len() > 1).then_some(()),
        "the stream to be under way",
    );
    let mut other = world.search();
    let found = tokio::time::timeout(PATIENCE, other.search(near_origin(&docs, 1))).await;
    let found = found.expect("a turn in time").unwrap().into_inner();
    assert_eq!(ids(&found.hits), ["large"]);
    drop(untaken);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_takes_his_searches_along() {
    let config = Config {
        default_deadline: Duration::from_secs(600),
        ..Config::default()
    };
    let world = World::start_with(config, true).await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    // Dropped with the call it is part of, as the indexer's server gives up what nobody awaits.
    let (held, mut given_up) = mpsc::channel::<()>(1);
    indexers[0].before_answer(
        async move {
            let _held = held;
            std::future::pending::<()>().await;
        }
        .boxed(),
    );
    let (send, requests) = mpsc::channel(8);
    let answers = open(&world, ReceiverStream::new(requests)).await;
    send.send(asked(1, near_origin(&docs, 1))).await.unwrap();
    wait(
        || (indexers[0].seen().len() == 1).then_some(()),
        "the search to be under way",
    );
    drop((answers, send));
    let closed = tokio::time::timeout(PATIENCE, given_up.recv()).await;
    assert_eq!(closed, Ok(None), "the search is given up");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_ends_its_streams() {
    let world = World::start().await;
    let docs = collection("docs", 1);
    let indexers = world.spread(&docs).await;
    fill(&indexers, &docs, 5);
    let (send, requests) = mpsc::channel(8);
    let mut answers = open(&world, ReceiverStream::new(requests)).await;
    send.send(asked(1, near_origin(&docs, 1))).await.unwrap();
    assert_eq!(next(&mut answers).await.0, 1);
    world.tasks.cancel().cancel();
    let ended = tokio::time::timeout(PATIENCE, answers.message()).await;
    assert_eq!(ended.expect("in time").unwrap(), None);
}
