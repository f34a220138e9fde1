//! A real schema registry (Apicurio, by its Confluent API) as a child, for tests and trials.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{BrokerError, Launcher, REGISTRY_HOME_VARIABLE, child::Child, home::registry_home};

/// The part of its address that speaks as Confluent's registry does.
const API: &str = "/apis/ccompat/v7";

/// Where schemas are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegistryStorage {
    /// In memory: gone with the process.
    Memory,
    /// In a topic of that Kafka cluster.
    Kafka {
        /// Its brokers.
        bootstrap: String,
    },
}

/// How the registry is run.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Its log is kept here.
    pub data_dir: PathBuf,
    /// Where it listens on 127.0.0.1; `None` = any free port.
    pub port: Option<u16>,
    /// Folder with its runnable jar. Default: see [`registry_home`].
    pub home: PathBuf,
    /// Where schemas are kept. Default in memory.
    pub storage: RegistryStorage,
    /// The Java program. Default `java`.
    pub java: PathBuf,
    /// See [`Launcher`].
    pub launcher: Option<Launcher>,
    /// Longest a start may take. Default 2 min.
    pub start_timeout: Duration,
}

impl RegistryOptions {
    /// The defaults, with its log under `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            port: None,
            home: registry_home(),
            storage: RegistryStorage::Memory,
            java: "java".into(),
            launcher: None,
            start_timeout: Duration::from_secs(120),
        }
    }
}

/// A running registry. Dropping it kills it.
pub struct SchemaRegistry {
    child: Child,
    address: SocketAddr,
}

impl SchemaRegistry {
    /// Starts it and waits until it answers.
    ///
    /// # Errors
    /// [`BrokerError`], with the last lines of the log where there is one.
    pub fn start(options: &RegistryOptions) -> Result<Self, BrokerError> {
        let Some(jar) = runnable(&options.home) else {
            return Err(BrokerError::NotInstalled {
                what: "schema registry",
                home: options.home.clone(),
                variable: REGISTRY_HOME_VARIABLE,
            });
        };
        let dir = &options.data_dir;
        fs::create_dir_all(dir).map_err(|source| BrokerError::File {
            path: dir.clone(),
            source,
        })?;
        let port = options.port.unwrap_or(0);
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .and_then(|listener| listener.local_addr())
            .map_err(|source| BrokerError::Port { port, source })?;
        let mut command = vec![options.java.clone().into()];
        let mut flags = vec![
            "-Xms64m".to_owned(),
            "-Xmx256m".to_owned(),
            "-XX:+UseSerialGC".to_owned(),
            "-XX:TieredStopAtLevel=1".to_owned(),
            format!("-Dquarkus.http.host={}", address.ip()),
            format!("-Dquarkus.http.port={}", address.port()),
            "-Dquarkus.http.access-log.enabled=false".to_owned(),
        ];
        match &options.storage {
            RegistryStorage::Memory => flags.push("-Dapicurio.storage.kind=sql".to_owned()),
            RegistryStorage::Kafka { bootstrap } => {
                flags.push("-Dapicurio.storage.kind=kafkasql".to_owned());
                flags.push(format!("-Dapicurio.kafkasql.bootstrap.servers={bootstrap}"));
            }
        }
        command.extend(flags.into_iter().map(Into::into));
        command.push("-jar".into());
        command.push(jar.into());
        let log = dir.join("registry.log");
        let child = Child::spawn("registry-child", options.launcher.as_ref(), &command, &log)?;
        child.await_ready("schema registry", options.start_timeout, || {
            answers(address)
        })?;
        Ok(Self { child, address })
    }

    /// What a Confluent client is given, path included.
    pub fn url(&self) -> String {
        format!("http://{}{API}", self.address)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Kills it and waits until it is gone.
    pub fn kill(self) {
        self.child.kill();
    }
}

fn runnable(home: &Path) -> Option<PathBuf> {
    let plain = home.join("quarkus-run.jar");
    let mut files = fs::read_dir(home).ok()?.flatten().map(|file| file.path());
    let runner = files.find(|path| path.to_string_lossy().ends_with("-runner.jar"));
    runner.or_else(|| plain.exists().then_some(plain))
}

/// One request over a plain socket: a client library would be much for a yes or no.
fn answers(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let request =
            format!("GET {API}/subjects HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes())?;
        let mut status = [0; 12];
        socket.read_exact(&mut status)?;
        Ok(status == *b"HTTP/1.1 200")
    };
    ask().unwrap_or(false)
}
