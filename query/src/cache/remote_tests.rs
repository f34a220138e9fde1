//! Against a real Redis, which is started, stopped and killed here.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
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

/// What a Redis wants to hear from who asks it over TLS.
const PASSWORD: &str = "hunter2/@";

/// A Redis of a test, gone with it.
struct Server {
    process: Child,
    address: SocketAddr,
    is_safe: bool,
    folder: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        Self::start_at(free()).await
    }

    async fn start_at(address: SocketAddr) -> Self {
        let port = ["--port".to_owned(), address.port().to_string()];
        Self::start_with(address, false, tempfile::tempdir().unwrap(), &port).await
    }

    /// One that is over TLS alone and wants a password, with certificates made for it.
    async fn start_safe() -> Self {
        let (address, folder) = (free(), tempfile::tempdir().unwrap());
        certify(folder.path());
        let options = format!(
            "--port 0 --tls-port {} --tls-cert-file server.pem --tls-key-file server.key \
             --tls-ca-cert-file ca.pem --tls-auth-clients no --requirepass {PASSWORD}",
            address.port()
        );
        let options: Vec<String> = options.split_whitespace().map(str::to_owned).collect();
        Self::start_with(address, true, folder, &options).await
    }

    async fn start_with(
        address: SocketAddr,
        is_safe: bool,
        folder: tempfile::TempDir,
        options: &[String],
    ) -> Self {
        // The kernel ends it with the thread that started it.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "redis-server"])
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(options)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("setpriv and redis-server are installed: setup/packages");
        let server = Self {
            process,
            address,
            is_safe,
            folder,
        };
        let (redis, watch) = (server.client(LONG), Stopwatch::start());
        while let Err(error) = redis.find(KeyOf::new("test").finish()).await {
            assert!(watch.elapsed() < DEADLINE, "Redis does not answer: {error}");
            tokio::task::yield_now().await;
        }
        server
    }

    fn client(&self, patience: Duration) -> Redis {
        if !self.is_safe {
            return Redis::new(&format!("redis://{}", self.address), None, patience).unwrap();
        }
        let address = format!("rediss://:hunter2%2F%40@{}", self.address);
        let authority = self.folder.path().join("ca.pem");
        Redis::new(&address, Some(&authority), patience).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }
}

/// An address that was free a moment ago; a Redis that does not get it says nothing.
fn free() -> SocketAddr {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap()
}

/// Makes an authority, and a server's certificate that it vouches for.
fn certify(folder: &Path) {
    fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for line in [
        format!("req -x509 {key} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"),
        format!("req {key} -subj /CN=redis -keyout server.key -out server.csr"),
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -set_serial 2 -days 2 -extfile names \
         -out server.pem"
            .to_owned(),
    ] {
        let made = Command::new("openssl")
            .args(line.split_whitespace())
            .current_dir(folder)
            .output()
            .expect("openssl is installed: setup/packages");
        let told = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "openssl {line}: {told}");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_over_tls_with_a_password_is_a_store_for_who_trusts_it_and_has_it() {
    let server = Server::start_safe().await;
    conformance::all(&server.client(DEADLINE)).await;
    let (at, path) = (server.address, server.folder.path());
    let other = tempfile::tempdir().unwrap();
    certify(other.path());
    let key = KeyOf::new("test").finish();
    let password = "hunter2%2F%40";
    for (url, authority) in [
        // Another authority, that of the system, none, no password, a wrong one.
        (
            format!("rediss://:{password}@{at}"),
            Some(other.path().join("ca.pem")),
        ),
        (format!("rediss://:{password}@{at}"), None),
        (format!("redis://:{password}@{at}"), None),
        (format!("rediss://{at}"), Some(path.join("ca.pem"))),
        (format!("rediss://:wrong@{at}"), Some(path.join("ca.pem"))),
    ] {
        let redis = Redis::new(&url, authority.as_deref(), DEADLINE).unwrap();
        let refused = tokio::time::timeout(DEADLINE, redis.find(key)).await;
        let refused = refused.expect("an answer in time").unwrap_err();
        assert!(!refused.to_string().contains("hunter2"), "{url}: {refused}");
    }
}

#[test]
fn certificates_that_do_not_read_are_told_with_their_file() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.pem");
    let empty = folder.path().join("empty.pem");
    fs::write(&empty, "no certificate\n").unwrap();
    let broken = folder.path().join("broken.pem");
    fs::write(
        &broken,
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    for file in [missing, empty, broken] {
        let refused = Redis::new("rediss://127.0.0.1:1", Some(&file), DEADLINE).err();
        let Some(AddressError::Certificates { path, .. }) = refused else {
            panic!("{}: {refused:?}", file.display());
        };
        assert_eq!(path, file);
    }
}

#[test]
fn an_address_of_another_protocol_is_refused_without_its_password() {
    assert_eq!(check_address("redis://127.0.0.1:6379/3"), Ok(()));
    assert_eq!(check_address("rediss://me:secret@safe.example/1"), Ok(()));
    let refused = check_address("unix://me:secret@safe.example").unwrap_err();
    let AddressError::Scheme { address } = refused else {
        panic!("{refused}");
    };
    assert_eq!(address, "safe.example");
    assert!(check_address("redis://").is_err());
    assert!(check_address("redis://host:port").is_err());
}
