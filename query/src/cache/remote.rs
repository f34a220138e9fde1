//! Kept answers in a Redis, which several nodes may share: the only file that names its client.
//!
//! One connection carries all calls at once. It is opened when it is first needed and again after
//! it broke; how long that may take, and how often it is tried, [`super::guard`] says. A value goes
//! when its time is over, or earlier where Redis itself makes room (`maxmemory-policy`).

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, FromRedisValue,
    IntoConnectionInfo as _, RedisError, TlsCertificates, aio::MultiplexedConnection,
};
use shoal_runtime::clock::Stopwatch;
use tokio::sync::Mutex;

use super::{Key, Store, StoreError};

/// What every name in Redis begins with.
const PREFIX: &str = "shoal:answer:";
/// How a certificate begins.
const BEGIN: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Why an address is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Another protocol, or none.
    #[error(
        "address is `{address}`, wanted is redis://host:port or redis://host:port/number, or rediss:// over TLS"
    )]
    Scheme {
        /// As given, without a password.
        address: String,
    },
    /// The client does not read it.
    #[error("address does not read: {detail}")]
    Malformed {
        /// What it says.
        detail: String,
    },
    /// The certificates it is to be trusted by.
    #[error("certificates in `{}` do not read: {detail}", .path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        detail: String,
    },
}

/// Checks an address without going there.
///
/// # Errors
/// [`AddressError`].
pub(super) fn check_address(address: &str) -> Result<(), AddressError> {
    read(address).map(drop)
}

/// Whether the way there is over TLS.
pub(super) fn is_over_tls(address: &str) -> bool {
    address.starts_with("rediss://")
}

fn read(address: &str) -> Result<ConnectionInfo, AddressError> {
    if !address.starts_with("redis://") && !is_over_tls(address) {
        let behind_password = address.rsplit_once('@').map_or(address, |(_, host)| host);
        return Err(AddressError::Scheme {
            address: behind_password.to_owned(),
        });
    }
    address.into_connection_info().map_err(malformed)
}

fn malformed(error: RedisError) -> AddressError {
    AddressError::Malformed {
        detail: error.to_string(),
    }
}

/// A client that trusts the certificates in a file, or those of the system.
fn open(address: &str, certificates: Option<&Path>) -> Result<Client, AddressError> {
    let info = read(address)?;
    let Some(path) = certificates else {
        return Client::open(info).map_err(malformed);
    };
    let failed = |detail: String| AddressError::Certificates {
        path: path.to_owned(),
        detail,
    };
    let pem = fs::read(path).map_err(|error| failed(error.to_string()))?;
    // The client takes a file without any, and then trusts nobody.
    let has_one = pem.windows(BEGIN.len()).any(|window| window == BEGIN);
    if !has_one {
        return Err(failed("there is none in PEM".to_owned()));
    }
    let trusted = TlsCertificates {
        client_tls: None,
        root_cert: Some(pem),
    };
    Client::build_with_tls(info, trusted).map_err(|error| failed(error.to_string()))
}

/// A Redis.
pub(crate) struct Redis {
    client: Client,
    /// How long a call may take that is asked with all patience.
    patience: Duration,
    connection: Mutex<Option<Held>>,
}

/// A connection, and whether it is of no more use.
#[derive(Clone)]
struct Held {
    connection: MultiplexedConnection,
    is_broken: Arc<AtomicBool>,
}

/// A call under way. One that is given up may have met a peer that will never answer, so that the
/// next one connects anew; one whose caller had little time says nothing of the peer.
struct UnderWay {
    is_broken: Arc<AtomicBool>,
    since: Stopwatch,
    patience: Duration,
    is_over: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        // Half, since a part of the patience may have gone into the connection.
        if !self.is_over && self.since.elapsed() >= self.patience / 2 {
            self.is_broken.store(true, Ordering::Relaxed);
        }
    }
}

impl Redis {
    /// The one at an address, over TLS with the certificates it is to be trusted by, whose answers may take
    /// so long; nothing is connected yet.
    ///
    /// # Errors
    /// [`AddressError`].
    pub(crate) fn new(
        address: &str,
        certificates: Option<&Path>,
        patience: Duration,
    ) -> Result<Self, AddressError> {
        Ok(Self {
            client: open(address, certificates)?,
            patience,
            connection: Mutex::default(),
        })
    }

    async fn connection(&self) -> Result<Held, StoreError> {
        let mut held = self.connection.lock().await;
        if let Some(held) = &*held
            && !held.is_broken.load(Ordering::Relaxed)
        {
            return Ok(held.clone());
        }
        // Who asks sets the limits.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None);
        let opened = self
            .client
            .get_multiplexed_async_connection_with_config(&config);
        let new = Held {
            connection: opened.await.map_err(|error| failed(&error))?,
            is_broken: Arc::default(),
        };
        *held = Some(new.clone());
        Ok(new)
    }

    async fn ask<T: FromRedisValue>(&self, command: Cmd) -> Result<T, StoreError> {
        let Held {
            mut connection,
            is_broken,
        } = self.connection().await?;
        let mut under_way = UnderWay {
            is_broken,
            since: Stopwatch::start(),
            patience: self.patience,
            is_over: false,
        };
        let answered = command.query_async(&mut connection).await;
        under_way.is_over = true;
        if answered.as_ref().is_err_and(is_final) {
            under_way.is_broken.store(true, Ordering::Relaxed);
        }
        answered.map_err(|error| failed(&error))
    }
}

/// Whether the connection is of no more use, and not just that command.
fn is_final(error: &RedisError) -> bool {
    error.is_io_error() || error.is_unrecoverable_error() || error.kind() == ErrorKind::Parse
}

fn failed(error: &RedisError) -> StoreError {
    StoreError::Failed {
        detail: error.to_string(),
    }
}

fn name_of(key: Key) -> String {
    format!("{PREFIX}{key}")
}

impl Store for Redis {
    fn find(&self, key: Key) -> BoxFuture<'_, Result<Option<Bytes>, StoreError>> {
        async move {
            let mut get = Cmd::new();
            get.arg("GET").arg(name_of(key));
            let found: Option<Vec<u8>> = self.ask(get).await?;
            Ok(found.map(Bytes::from))
        }
        .boxed()
    }

    fn keep(
        &self,
        key: Key,
        value: Bytes,
        time: Duration,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
            let mut set = Cmd::new();
            set.arg("SET").arg(name_of(key)).arg(&*value);
            set.arg("PX").arg(millis);
            self.ask(set).await
        }
        .boxed()
    }
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
