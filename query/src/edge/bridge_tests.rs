//! What is given where no region answers, as time goes by.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytesize::ByteSize;
use prost::Message as _;
use shoal_runtime::{
    clock::{Clock as _, Manual},
    tasks::Tasks,
};
use shoal_schemas::v1;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Config, Edge, EdgeError, RegionConfig, probe::Place};
use crate::{
    cache::{self, Cache, KeptAnswer},
    call::Call,
    client::regions::Region,
    coordinator::QueryError,
};

const LONG: Duration = Duration::from_secs(60);
const MAX_STALE: Duration = Duration::from_secs(10);

/// Takes connections and drops them; so much time has passed by then.
async fn takes(listener: TcpListener, clock: &Manual, time: Duration) -> Infallible {
    let mut left = time;
    loop {
        let (_dropped, _) = listener.accept().await.unwrap();
        clock.advance(std::mem::take(&mut left));
    }
}

#[tokio::test]
async fn a_kept_answer_is_judged_by_its_age_when_the_regions_have_been_asked() {
    for (seconds, is_given) in [(9, true), (11, false)] {
        let clock = Manual::at(1_000_000);
        let tasks = Tasks::new(CancellationToken::new());
        let keeping = cache::Config {
            memory: ByteSize::mib(1),
            ..cache::Config::default()
        };
        let cache = Cache::start(&keeping, clock.clone(), &tasks);
        let cache = cache.unwrap().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let region = RegionConfig {
            name: "eu-1".into(),
            address: listener.local_addr().unwrap().to_string(),
        };
        let client = Region::new(&region.address, LONG, 1 << 20).unwrap();
        let place = Arc::new(Place::new(&region, client));
        place.note(|health| health.answered(Duration::from_millis(1)));
        let config = Config {
            regions: vec![region],
            max_stale: MAX_STALE,
            ..Config::default()
        };
        let edge = Edge::of(&config, vec![place], Some(cache.clone()), false);

        let request = v1::CountRequest {
            collection: "docs".into(),
            ..v1::CountRequest::default()
        };
        let answer = v1::CountResponse {
            points: 7,
            ..v1::CountResponse::default()
        };
        let kept = KeptAnswer {
            message: answer.encode_to_vec().into(),
            asked_ms: clock.now_ms(),
            ..KeptAnswer::default()
        };
        cache.keep(edge.name_of(&request), &kept);
        let answered = tokio::select! {
            answered = edge.ask(request, Call::within(LONG)) => answered,
            never = takes(listener, &clock, Duration::from_secs(seconds)) => match never {},
        };
        match answered {
            Ok(answer) => {
                assert!(is_given, "{answer:?}");
                let age_ms = answer.coverage.unwrap().age_ms;
                assert_eq!((answer.points, age_ms), (7, Some(seconds * 1000)));
            }
            Err(QueryError::Edge(EdgeError::Unreachable(_))) => assert!(!is_given),
            Err(other) => panic!("{other}"),
        }
    }
}
