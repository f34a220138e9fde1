//! One real Kafka node: broker and controller in one process, data under one folder.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};

use super::{
    BrokerError, KAFKA_HOME_VARIABLE, Launcher,
    child::{Child, tail},
    home::kafka_home,
    properties,
};

const STARTED: &str = "Kafka Server started";
/// Longest the storage tool may take.
const FORMAT: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(30);

/// How the node is run.
#[derive(Clone, Debug)]
pub struct BrokerOptions {
    /// Everything of it is kept here: data, settings, logs.
    pub data_dir: PathBuf,
    /// Where it listens on 127.0.0.1; `None` = where it listened last time, else any free port.
    pub port: Option<u16>,
    /// Folder with Kafka's `libs`. Default: see [`kafka_home`].
    pub kafka_home: PathBuf,
    /// Largest heap, MiB. Default 512.
    pub heap_mib: u32,
    /// Settings of the broker by Kafka's names; they win over ours.
    pub settings: BTreeMap<String, String>,
    /// The Java program. Default `java`.
    pub java: PathBuf,
    /// See [`Launcher`].
    pub launcher: Option<Launcher>,
    /// Longest a start may take. Default 2 min: recovery after an abrupt end takes its time.
    pub start_timeout: Duration,
}

impl BrokerOptions {
    /// The defaults, with everything kept under `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            port: None,
            kafka_home: kafka_home(),
            heap_mib: 512,
            settings: BTreeMap::new(),
            java: "java".into(),
            launcher: None,
            start_timeout: Duration::from_secs(120),
        }
    }
}

/// A running node. Dropping it kills it; [`LocalBroker::stop`] ends it in good order.
pub struct LocalBroker {
    child: Child,
    port: u16,
    log: PathBuf,
}

impl LocalBroker {
    /// Starts the node and waits until it takes requests. The first start formats its storage.
    ///
    /// # Errors
    /// [`BrokerError`], with the last lines of the log where there is one.
    pub fn start(options: &BrokerOptions) -> Result<Self, BrokerError> {
        let libs = options.kafka_home.join("libs");
        if !has_broker(&libs) {
            return Err(BrokerError::NotInstalled {
                what: "Kafka",
                home: options.kafka_home.clone(),
                variable: KAFKA_HOME_VARIABLE,
            });
        }
        let dir = &options.data_dir;
        fs::create_dir_all(dir).map_err(failed(dir))?;
        // Kafka resolves its own paths from where it runs.
        let dir = &dir.canonicalize().map_err(failed(dir))?;
        write(&dir.join("log4j2.yaml"), properties::LOG4J)?;
        let (port, controller_port) = ports(options.port, &dir.join("port"))?;
        let data = dir.join("data");
        if !data.join("meta.properties").exists() {
            format(options, dir, &data, (port, controller_port))?;
        }
        let settings = dir.join("server.properties");
        let text = properties::server(port, controller_port, &data, &options.settings);
        write(&settings, &text)?;

        let log = dir.join("broker.log");
        if log.exists() {
            fs::rename(&log, dir.join("broker.log.1")).map_err(failed(&log))?;
        }
        let command = java(options, dir, &["kafka.Kafka".into(), settings.into()]);
        let child = Child::spawn("kafka-child", options.launcher.as_ref(), &command, &log)?;
        let mut seen = Seen::default();
        child.await_ready("Kafka", options.start_timeout, || {
            seen.says_started(&log) && TcpStream::connect(address(port)).is_ok()
        })?;
        write(&dir.join("port"), &port.to_string())?;
        Ok(Self { child, port, log })
    }

    /// `host:port` for clients.
    pub fn bootstrap(&self) -> String {
        address(self.port).to_string()
    }

    /// Where it listens on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.child.ended().is_none()
    }

    /// Waits up to `timeout` for it to end by itself; the log's last lines if it did.
    pub fn ended_within(&self, timeout: Duration) -> Option<String> {
        self.child
            .wait(timeout)
            .map(|status| format!("{status}\n{}", tail(&self.log)))
    }

    /// Ends it in good order, and kills it if that takes over 30 s. True if it ended by itself.
    pub fn stop(self) -> bool {
        self.child.stop(STOP)
    }

    /// Kills it at once, as a crash would. What it acknowledged is in its data all the same.
    pub fn kill(self) {
        self.child.kill();
    }
}

fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn has_broker(libs: &Path) -> bool {
    fs::read_dir(libs).is_ok_and(|files| {
        files.flatten().any(|file| {
            file.file_name()
                .to_string_lossy()
                .starts_with("kafka_2.13-")
        })
    })
}

/// The Java command line. The class archive fits only this very class path and collector.
fn java(options: &BrokerOptions, dir: &Path, main: &[OsString]) -> Vec<OsString> {
    let mut command: Vec<OsString> = vec![
        options.java.clone().into(),
        format!("-Xms{}m", options.heap_mib.min(128)).into(),
        format!("-Xmx{}m", options.heap_mib).into(),
    ];
    command.extend(
        [
            "-XX:+UseG1GC",
            "-XX:MaxGCPauseMillis=20",
            "-XX:ParallelGCThreads=2",
            "-XX:ConcGCThreads=1",
            // Java's second compiler takes a good part of a processor for minutes, from what runs
            // beside this broker.
            "-XX:TieredStopAtLevel=1",
        ]
        .map(OsString::from),
    );
    let archive = options.kafka_home.join("cds/broker.jsa");
    if archive.exists() {
        command.push(joined("-XX:SharedArchiveFile=", &archive));
        command.push("-Xshare:auto".into());
    }
    command.push("-Djava.awt.headless=true".into());
    command.push(joined(
        "-Dlog4j2.configurationFile=",
        &dir.join("log4j2.yaml"),
    ));
    command.push("-cp".into());
    command.push(options.kafka_home.join("libs/*").into());
    command.extend_from_slice(main);
    command
}

fn joined(flag: &str, path: &Path) -> OsString {
    let mut whole = OsString::from(flag);
    whole.push(path);
    whole
}

/// Formats beside the place and moves the whole into it, so that half of it is never found.
fn format(
    options: &BrokerOptions,
    dir: &Path,
    data: &Path,
    (port, controller_port): (u16, u16),
) -> Result<(), BrokerError> {
    let partial = dir.join("data.partial");
    for stale in [&partial, data] {
        if stale.exists() {
            fs::remove_dir_all(stale).map_err(failed(stale))?;
        }
    }
    let settings = dir.join("format.properties");
    let text = properties::server(port, controller_port, &partial, &options.settings);
    write(&settings, &text)?;
    let log = dir.join("format.log");
    let tool = ["kafka.tools.StorageTool", "format", "-t"].map(OsString::from);
    let arguments = [cluster_id()?.into(), "-c".into(), settings.into()];
    let command = java(options, dir, &[tool, arguments].concat());
    let child = Child::spawn("kafka-format", options.launcher.as_ref(), &command, &log)?;
    match child.wait(FORMAT) {
        Some(status) if status.success() => {}
        Some(status) => {
            return Err(BrokerError::Ended {
                what: "Kafka's storage tool",
                status,
                tail: tail(&log),
                log,
            });
        }
        None => {
            return Err(BrokerError::NotReady {
                what: "Kafka's storage tool",
                waited: FORMAT,
                tail: tail(&log),
                log,
            });
        }
    }
    fs::rename(&partial, data).map_err(failed(data))
}

/// 16 random bytes as Kafka writes ids. One that starts with a dash would read as an option.
fn cluster_id() -> Result<String, BrokerError> {
    let random = Path::new("/dev/urandom");
    let mut bytes = [0; 16];
    let read = File::open(random).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(failed(random))?;
    bytes[0] &= 0x7f;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

/// The broker's and the controller's port, both free now.
fn ports(wanted: Option<u16>, last: &Path) -> Result<(u16, u16), BrokerError> {
    let stored = || fs::read_to_string(last).ok()?.trim().parse().ok();
    let listener = match (wanted, stored()) {
        (Some(port), _) => listen(port)?,
        (None, Some(port)) => listen(port).or_else(|_| listen(0))?,
        (None, None) => listen(0)?,
    };
    // Both are held at once, so that they differ.
    let controller = listen(0)?;
    let port = |listener: &TcpListener| {
        let address = listener.local_addr();
        address
            .map(|address| address.port())
            .map_err(|source| BrokerError::Port { port: 0, source })
    };
    Ok((port(&listener)?, port(&controller)?))
}

fn listen(port: u16) -> Result<TcpListener, BrokerError> {
    TcpListener::bind(address(port)).map_err(|source| BrokerError::Port { port, source })
}

fn write(path: &Path, text: &str) -> Result<(), BrokerError> {
    fs::write(path, text).map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> BrokerError + use<> {
    let path = path.to_owned();
    move |source| BrokerError::File {
        path: path.clone(),
        source,
    }
}

/// Looks for the line that says it has started, reading each byte of the log once.
#[derive(Default)]
struct Seen {
    read_bytes: u64,
    /// The end of what was read, where the line may have been cut.
    carried: String,
    started: bool,
}

impl Seen {
    fn says_started(&mut self, log: &Path) -> bool {
        if self.started {
            return true;
        }
        let mut new = Vec::new();
        let read = File::open(log).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.read_bytes))?;
            file.read_to_end(&mut new)
        });
        let count = read
            .ok()
            .and_then(|count| u64::try_from(count).ok())
            .unwrap_or(0);
        self.read_bytes += count;
        self.carried.push_str(&String::from_utf8_lossy(&new));
        self.started = self.carried.contains(STARTED);
        let last_line = self.carried.rfind('\n').map_or(0, |at| at + 1);
        self.carried.drain(..last_line);
        self.started
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::Write;

    use super::{BrokerError, BrokerOptions, LocalBroker, Seen, cluster_id, listen, ports};

    #[test]
    fn missing_packages_say_what_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let options = BrokerOptions {
            kafka_home: dir.path().join("nowhere"),
            ..BrokerOptions::new(dir.path())
        };
        let refused = LocalBroker::start(&options).err().unwrap();
        assert!(matches!(refused, BrokerError::NotInstalled { .. }));
        assert!(refused.to_string().contains("make setup"), "{refused}");
    }

    #[test]
    fn a_port_in_use_is_named() {
        let taken = listen(0).unwrap();
        let port = taken.local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let refused = ports(Some(port), &dir.path().join("port")).unwrap_err();
        assert!(refused.to_string().contains(&port.to_string()), "{refused}");
    }

    #[test]
    fn the_last_port_is_taken_again() {
        let dir = tempfile::tempdir().unwrap();
        let last = dir.path().join("port");
        let free = listen(0).unwrap().local_addr().unwrap().port();
        std::fs::write(&last, free.to_string()).unwrap();
        assert_eq!(ports(None, &last).unwrap().0, free);
    }

    #[test]
    fn cluster_ids_are_of_kafka_s_form_and_differ() {
        let (a, b) = (cluster_id().unwrap(), cluster_id().unwrap());
        assert_eq!(a.len(), 22);
        assert!(!a.starts_with('-'));
        assert_ne!(a, b);
    }

    #[test]
    fn a_line_cut_in_two_is_seen() {
        let mut log = tempfile::NamedTempFile::new().unwrap();
        let path = log.path().to_owned();
        let mut seen = Seen::default();
        log.write_all(b"starting\n[x] INFO Kafka Ser").unwrap();
        assert!(!seen.says_started(&path));
        log.write_all(b"ver started (kafka)\n").unwrap();
        assert!(seen.says_started(&path));
    }
}
