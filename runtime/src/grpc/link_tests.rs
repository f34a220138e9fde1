//! Calls over a [`Link`]: to a server that echoes, one that goes away, one that is silent.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    future::{Future as _, pending, poll_fn},
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::{Router, extract::DefaultBodyLimit, routing::post};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::{Notify, oneshot},
    task::JoinSet,
    time::{interval, timeout},
};
use tokio_stream::StreamExt as _;
use tonic::{body::Body, service::Routes, transport::server::TcpIncoming};
use tower::Service as _;

use super::{Answer, Link, LinkError};
use crate::grpc::{MAX_STREAMS, Ping, server};

const PATIENCE: Duration = Duration::from_secs(60);
/// HTTP/2's frames: settings that change nothing, and a byte more of the connection's window.
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
const WINDOW_UPDATE: &[u8] = b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01";

/// A server, until it is told to end.
struct Serving {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    end: oneshot::Sender<()>,
    tasks: JoinSet<()>,
}

impl Serving {
    /// On a port of its own for port 0.
    async fn start(address: SocketAddr, router: Router) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = accepted.clone();
        let incoming = TcpIncoming::from(listener).map(move |one| {
            counted.fetch_add(1, Ordering::Relaxed);
            one
        });
        let (end, ended) = oneshot::channel();
        let serving = server()
            .add_routes(Routes::from(router))
            .serve_with_incoming_shutdown(incoming, async { drop(ended.await) });
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { serving.await.unwrap() });
        Self {
            address,
            accepted,
            end,
            tasks,
        }
    }

    async fn echo() -> Self {
        let echo = Router::new().fallback(|body: Bytes| async { body });
        let router = echo.layer(DefaultBodyLimit::disable());
        Self::start("127.0.0.1:0".parse().unwrap(), router).await
    }

    fn link(&self) -> Link {
        Link::to(&self.address.to_string(), PATIENCE).unwrap()
    }

    async fn end(mut self) {
        self.end.send(()).unwrap();
        while self.tasks.join_next().await.is_some() {}
    }
}

async fn call(link: &Link, message: Bytes) -> Result<Response<Answer>, LinkError> {
    call_by(link, "a.Service/Verb", message).await
}

async fn call_by(link: &Link, path: &str, message: Bytes) -> Result<Response<Answer>, LinkError> {
    let request = Request::post(format!("{}{path}", link.origin()));
    let body = Body::new(axum::body::Body::from(message));
    let answer = link.clone().call(request.body(body).unwrap());
    timeout(PATIENCE, answer).await.expect("it is answered")
}

async fn said(answer: Response<Answer>) -> Vec<u8> {
    let mut body = pin!(answer.into_body());
    let mut said = Vec::new();
    loop {
        let next = poll_fn(|context| body.as_mut().poll_frame(context));
        let Some(frame) = timeout(PATIENCE, next).await.expect("it goes on") else {
            return said;
        };
        if let Ok(data) = frame.unwrap().into_data() {
            said.extend_from_slice(&data);
        }
    }
}

#[tokio::test]
async fn messages_larger_than_a_window_come_back_as_they_are() {
    let serving = Serving::echo().await;
    let link = serving.link();
    for length in [0, 1, 5 << 20, 5 << 20] {
        let message: Vec<u8> = (0..length).map(|at: u32| at.to_le_bytes()[0]).collect();
        let answer = call(&link, message.clone().into()).await.unwrap();
        assert!(said(answer).await == message, "{length} bytes");
    }
}

#[tokio::test]
async fn calls_that_begin_at_once_share_a_connection_and_wait_for_a_stream() {
    let serving = Serving::echo().await;
    let link = serving.link();
    let mut calls = JoinSet::new();
    let most = usize::try_from(MAX_STREAMS).unwrap();
    for number in 0..2 * most {
        let link = link.clone();
        calls.spawn(async move {
            let message = number.to_string();
            let answer = call(&link, message.clone().into()).await.unwrap();
            assert_eq!(said(answer).await, message.as_bytes());
        });
    }
    calls.join_all().await;
    assert_eq!(serving.accepted.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_server_that_went_away_and_came_back_is_connected_to_again() {
    let first = Serving::echo().await;
    let (address, link) = (first.address, first.link());
    said(call(&link, "first".into()).await.unwrap()).await;
    first.end().await;
    for _ in 0..2 {
        let error = call(&link, "nobody".into()).await.unwrap_err();
        assert!(matches!(error, LinkError::Connect { .. }), "{error:?}");
    }
    let router = Router::new().fallback(|| async { "back" });
    let _second = Serving::start(address, router).await;
    let answer = call(&link, Bytes::new()).await.unwrap();
    assert_eq!(said(answer).await, b"back");
}

#[tokio::test]
async fn a_server_without_a_sign_of_life_fails_its_calls() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let soon = Ping {
        every: Duration::from_millis(50),
        timeout: Duration::from_millis(50),
    };
    let link = Link::with_ping(&address, PATIENCE, soon).unwrap();
    let silent = async {
        let mut open = Vec::new();
        while let Ok((caller, _)) = listener.accept().await {
            open.push(caller);
        }
    };
    tokio::select! {
        () = silent => panic!("nobody listens"),
        answer = call(&link, Bytes::new()) => {
            let error = answer.unwrap_err();
            assert!(matches!(error, LinkError::Broken { .. }), "{error:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_comes_slowly_is_a_sign_of_life() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let soon = Ping {
        every: Duration::from_millis(20),
        timeout: Duration::from_secs(2),
    };
    let link = Link::with_ping(&address, PATIENCE, soon).unwrap();
    // Says something all along, and answers neither the call nor a ping.
    let slow = async {
        let (mut caller, _) = listener.accept().await.unwrap();
        let mut ticks = interval(Duration::from_millis(5));
        caller.write_all(SETTINGS).await.unwrap();
        for _ in 0..500 {
            ticks.tick().await;
            caller.write_all(WINDOW_UPDATE).await.unwrap();
        }
        caller
    };
    let calling = call(&link, Bytes::new());
    tokio::select! {
        answer = calling => panic!("{answer:?}"),
        _ = slow => {}
    }
}

#[tokio::test]
async fn a_failure_to_connect_is_for_those_who_waited_for_it() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let link = Link::to(&address.to_string(), PATIENCE).unwrap();
    // It is gone before it hears of it.
    let mut dropped = Box::pin(call(&link, Bytes::new()));
    poll_fn(|context| {
        assert!(dropped.as_mut().poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
    drop(dropped);
    let forgotten = async {
        while link.0.newest().is_some() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, forgotten).await.unwrap();
    let router = Router::new().fallback(|| async { "back" });
    let _second = Serving::start(address, router).await;
    let answer = call(&link, Bytes::new()).await.unwrap();
    assert_eq!(said(answer).await, b"back");
}

/// Tells when it is dropped.
struct Guard(Arc<Notify>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_ends_at_its_server() {
    let (begun, ended) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, guard) = (begun.clone(), ended.clone());
    let router = Router::new().route("/well", post(|| async { "well" }));
    let router = router.fallback(move || async move {
        let _guard = Guard(guard);
        tell.notify_one();
        pending::<()>().await;
    });
    let serving = Serving::start("127.0.0.1:0".parse().unwrap(), router).await;
    let link = serving.link();
    tokio::select! {
        _ = call(&link, Bytes::new()) => panic!("nobody answers"),
        () = begun.notified() => {}
    }
    timeout(PATIENCE, ended.notified()).await.unwrap();
    // The connection is still good.
    let answer = call_by(&link, "well", Bytes::new()).await.unwrap();
    assert_eq!(said(answer).await, b"well");
    assert_eq!(serving.accepted.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn calls_that_are_dropped_while_they_wait_for_a_place_leave_the_connection_as_it_is() {
    let (begun, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counted, held) = (begun.clone(), go_on.clone());
    let router = Router::new().fallback(move || async move {
        let going = held.notified();
        counted.fetch_add(1, Ordering::Relaxed);
        going.await;
        "done"
    });
    let serving = Serving::start("127.0.0.1:0".parse().unwrap(), router).await;
    let link = serving.link();
    let mut calls = JoinSet::new();
    let most = usize::try_from(MAX_STREAMS).unwrap();
    for _ in 0..most {
        let link = link.clone();
        calls.spawn(async move { said(call(&link, Bytes::new()).await.unwrap()).await });
    }
    let all_begun = async {
        while begun.load(Ordering::Relaxed) < most {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, all_begun).await.unwrap();
    // More than a server lets itself be told to forget at once.
    let mut waiting: Vec<_> = (0..100)
        .map(|_| Box::pin(call(&link, Bytes::new())))
        .collect();
    poll_fn(|context| {
        for one in &mut waiting {
            assert!(one.as_mut().poll(context).is_pending());
        }
        Poll::Ready(())
    })
    .await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    drop(waiting);
    go_on.notify_waiters();
    for answer in calls.join_all().await {
        assert_eq!(answer, b"done");
    }
    let last = call(&link, Bytes::new());
    let release = async {
        while begun.load(Ordering::Relaxed) <= most {
            tokio::task::yield_now().await;
        }
        go_on.notify_waiters();
    };
    let (answer, ()) = tokio::join!(last, release);
    assert_eq!(said(answer.unwrap()).await, b"done");
    assert_eq!(serving.accepted.load(Ordering::Relaxed), 1);
    assert_eq!(begun.load(Ordering::Relaxed), most + 1);
}

#[tokio::test]
async fn a_connection_closes_with_the_last_that_holds_it() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let never = Ping {
        every: Duration::from_secs(3600),
        timeout: PATIENCE,
    };
    let link = Link::with_ping(&address, PATIENCE, never).unwrap();
    let accepted = tokio::select! {
        _ = call(&link, Bytes::new()) => panic!("nobody answers"),
        accepted = listener.accept() => accepted,
    };
    let (mut caller, _) = accepted.unwrap();
    drop(link);
    let mut said = Vec::new();
    timeout(PATIENCE, caller.read_to_end(&mut said))
        .await
        .unwrap()
        .unwrap();
}
