//! Against a real Redis, which is started, stopped and killed here.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use shoal_runtime::clock::{Stopwatch, System};

use super::{AddressError, Redis, check_address};
use crate::cache::{KeyOf, Store as _, StoreError, conformance, guard::Guard};

const DEADLINE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(600);

/// A Redis of a test, gone with it.
struct Server {
    process: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        // A port that was free a moment ago; a Redis that does not get it says nothing.
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        Self::start_at(address).await
    }

    async fn start_at(address: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The kernel ends it with the thread that started it.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "redis-server"])
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--port", &address.port().to_string()])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("setpriv and redis-server are installed: setup/packages");
        let server = Self {
            process,
            address,
            _folder: folder,
        };
        let (redis, watch) = (server.client(LONG), Stopwatch::start());
        while redis.find(KeyOf::new("test").finish()).await.is_err() {
            assert!(watch.elapsed() < DEADLINE, "Redis does not answer");
            tokio::task::yield_now().await;
        }
        server
    }

    fn client(&self, patience: Duration) -> Redis {
        Redis::new(&format!("redis://{}", self.address), patience).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone_already = self.process.kill();
        let _reaped = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_is_a_store_also_behind_a_guard_and_for_two_clients() {
    let server = Server::start().await;
    conformance::all(&server.client(DEADLINE)).await;
    let guard = Guard::new(server.client(DEADLINE), DEADLINE, System::shared());
    conformance::all(&guard).await;
    let key = KeyOf::new("test").with("two").finish();
    server
        .client(DEADLINE)
        .keep(key, "shared".into(), LONG)
        .await
        .unwrap();
    let found = server.client(DEADLINE).find(key).await.unwrap();
    assert_eq!(found, Some("shared".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_stops_or_dies_fails_in_time_and_is_found_again() {
    let server = Server::start().await;
    let timeout = Duration::from_millis(50);
    let guard = Guard::new(server.client(timeout), timeout, System::shared());
    let key = KeyOf::new("test").finish();
    guard.keep(key, "a".into(), LONG).await.unwrap();
    server.signal(Signal::STOP);
    assert_eq!(
        guard.find(key).await,
        Err(StoreError::TimedOut { waited: timeout })
    );
    server.signal(Signal::CONT);
    found_again(&guard, Some("a")).await;
    let address = server.address;
    drop(server);
    assert!(matches!(
        guard.find(key).await,
        Err(StoreError::Failed { .. })
    ));
    let _server = Server::start_at(address).await;
    found_again(&guard, None).await;
    guard.keep(key, "b".into(), LONG).await.unwrap();
    found_again(&guard, Some("b")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_had_little_time_costs_the_others_no_connection() {
    let server = Server::start().await;
    let key = KeyOf::new("test").finish();
    for (patience, is_broken) in [(LONG, false), (Duration::ZERO, true)] {
        let redis = server.client(patience);
        assert_eq!(redis.find(key).await, Ok(None));
        server.signal(Signal::STOP);
        let hasty = tokio::time::timeout(Duration::from_millis(5), redis.find(key));
        assert!(hasty.await.is_err());
        server.signal(Signal::CONT);
        let held = redis.connection.lock().await.clone().unwrap();
        assert_eq!(held.is_broken.load(Ordering::Relaxed), is_broken);
        assert_eq!(redis.find(key).await, Ok(None));
    }
}

async fn found_again(guard: &Guard<Redis>, value: Option<&'static str>) {
    let (key, watch) = (KeyOf::new("test").finish(), Stopwatch::start());
    loop {
        assert!(watch.elapsed() < DEADLINE, "it is not found again");
        match guard.find(key).await {
            Ok(found) => {
                assert_eq!(found, value.map(Into::into));
                return;
            }
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

#[test]
fn an_address_of_another_protocol_is_refused_without_its_password() {
    assert_eq!(check_address("redis://127.0.0.1:6379/3"), Ok(()));
    let refused = check_address("rediss://me:secret@safe.example").unwrap_err();
    let AddressError::Scheme { address } = refused else {
        panic!("{refused}");
    };
    assert_eq!(address, "safe.example");
    assert!(check_address("redis://").is_err());
    assert!(check_address("redis://host:port").is_err());
}
