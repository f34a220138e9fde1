//! Servers that Shoal runs for itself: one Kafka node, one schema registry, as child processes.
//!
//! `shoal up` has a whole Kafka inside: the real one, started from its Java packages, on loopback,
//! with its data under one folder. It speaks the ordinary protocol to anybody. The tests use the
//! same code.
//!
//! A child never outlives its parent, however that ends: the kernel is told to kill it then. That
//! order is tied to the thread that starts the child, so each child has a thread of its own that
//! only waits for it.

mod child;
mod home;
mod kafka;
mod properties;
mod schema_registry;

use std::{ffi::OsString, io, path::PathBuf, process::ExitStatus, time::Duration};

use shoal_runtime::ErrorKind;

pub use child::exec_as_child;
pub use home::{KAFKA_HOME_VARIABLE, REGISTRY_HOME_VARIABLE, kafka_home, registry_home};
pub use kafka::{BrokerOptions, LocalBroker};
pub use schema_registry::{RegistryOptions, RegistryStorage, SchemaRegistry};

/// What runs before `java` so that the child dies with its parent: a command and its arguments.
///
/// The program passes its own verb that calls [`exec_as_child`]. Without one `setpriv` is used.
pub type Launcher = Vec<OsString>;

/// Why a server did not start or stop.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Its packages are not there.
    #[error(
        "there is no {what} in `{}`: run `make setup`, or set {variable} to where it is",
        .home.display()
    )]
    NotInstalled {
        /// Kafka or the registry.
        what: &'static str,
        /// Where it was looked for.
        home: PathBuf,
        /// Which variable names the place.
        variable: &'static str,
    },
    /// A file of it cannot be written or read.
    #[error("cannot use `{}`", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody listens there.
    #[error("port {port} on 127.0.0.1 cannot be listened on")]
    Port {
        /// The port.
        port: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The child was not started at all.
    #[error("cannot run `{command}`; is Java 17 or newer installed?")]
    Spawn {
        /// The first word of the command.
        command: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended before it was ready.
    #[error("{what} ended with {status} before it was ready; last lines of `{}`:\n{tail}", .log.display())]
    Ended {
        /// Kafka or the registry.
        what: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
    /// It runs but does not answer.
    #[error("{what} was not ready within {waited:?}; last lines of `{}`:\n{tail}", .log.display())]
    NotReady {
        /// Kafka or the registry.
        what: &'static str,
        /// How long.
        waited: Duration,
        /// Its log.
        log: PathBuf,
        /// The log's last lines.
        tail: String,
    },
}

impl BrokerError {
    /// What the caller should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotInstalled { .. } | Self::Port { .. } | Self::Spawn { .. } => ErrorKind::Caller,
            Self::File { .. } | Self::Ended { .. } | Self::NotReady { .. } => ErrorKind::Closed,
        }
    }
}
