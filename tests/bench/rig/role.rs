//! One role of Shoal as a process of its own, with its default settings.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{Collection, Partition};

use crate::{arguments::Arguments, engine::settings, place::Place};

const STOP: Duration = Duration::from_secs(60);
/// Linux tells processor time in hundredths of a second, on every architecture.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running role. Dropping it kills it.
pub(crate) struct Role {
    process: Child,
    pub(crate) grpc: SocketAddr,
    log: PathBuf,
}

impl Role {
    /// An indexer that serves every shard, keeping its files in `data`.
    pub(crate) fn indexer(
        arguments: &Arguments,
        place: &Place,
        data: &Path,
    ) -> anyhow::Result<Self> {
        Self::indexer_with(arguments, place, data, &[])
    }

    /// The same, but that a set smaller than what is sealed by itself is sealed too.
    pub(crate) fn sealing_indexer(
        arguments: &Arguments,
        place: &Place,
        data: &Path,
        rows: usize,
    ) -> anyhow::Result<Self> {
        let limit = settings(rows).idle_seal_rows.to_string();
        let more = [("SHOAL_INDEXER__ENGINE__IDLE_SEAL_ROWS", limit.as_str())];
        Self::indexer_with(arguments, place, data, &more)
    }

    /// One of several with every shard: the owner, or one of a replica set; it seals like
    /// [`Role::sealing_indexer`].
    pub(crate) fn replica(
        arguments: &Arguments,
        place: &Place,
        data: &Path,
        rows: usize,
        set: Option<&str>,
    ) -> anyhow::Result<Self> {
        let mut more = vec![("SHOAL_INDEXER__NODE", set.unwrap_or("owner"))];
        more.extend(set.map(|set| ("SHOAL_INDEXER__REPLICA_SET", set)));
        Self::named(arguments, place, data, rows, &more)
    }

    /// One of several, named and placed by these settings; it seals like [`Role::sealing_indexer`].
    pub(crate) fn named(
        arguments: &Arguments,
        place: &Place,
        data: &Path,
        rows: usize,
        more: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let limit = settings(rows).idle_seal_rows.to_string();
        let seals = [("SHOAL_INDEXER__ENGINE__IDLE_SEAL_ROWS", limit.as_str())];
        Self::indexer_with(arguments, place, data, &[&seals, more].concat())
    }

    /// One of several that share the shards: this one serves these. It seals like
    /// [`Role::sealing_indexer`], where a shard has so many rows.
    pub(crate) fn indexer_of(
        arguments: &Arguments,
        place: &Place,
        data: &Path,
        rows: usize,
        node: &str,
        shards: &[u32],
    ) -> anyhow::Result<Self> {
        let limit = settings(rows).idle_seal_rows.to_string();
        let shards = format!("{shards:?}");
        let more = [
            ("SHOAL_INDEXER__ENGINE__IDLE_SEAL_ROWS", limit.as_str()),
            ("SHOAL_INDEXER__NODE", node),
            ("SHOAL_INDEXER__OWNERSHIP__SHARDS", &shards),
        ];
        Self::indexer_with(arguments, place, data, &more)
    }

    /// The same with further settings; the last one of a name counts.
    pub(crate) fn indexer_with(
        arguments: &Arguments,
        place: &Place,
        data: &Path,
        more: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let data = data.display().to_string();
        let own = [
            ("SHOAL_INDEXER__GRPC_LISTEN", "127.0.0.1:0"),
            ("SHOAL_INDEXER__HTTP_LISTEN", "127.0.0.1:0"),
            ("SHOAL_INDEXER__DATA_DIR", &data),
            ("SHOAL_INDEXER__OWNERSHIP__KIND", "static"),
            ("SHOAL_INDEXER__OWNERSHIP__SHARDS", "[]"),
        ];
        Self::start("indexer", arguments, place, &[&own, more].concat())
    }

    pub(crate) fn query(arguments: &Arguments, place: &Place) -> anyhow::Result<Self> {
        let own = [
            ("SHOAL_QUERY__GRPC_LISTEN", "127.0.0.1:0"),
            ("SHOAL_QUERY__HTTP_LISTEN", "127.0.0.1:0"),
        ];
        Self::start("query", arguments, place, &own)
    }

    /// A query node with settings of its own, its HTTP at this address; `place`'s Kafka is told to it all
    /// the same.
    pub(crate) fn query_with(
        arguments: &Arguments,
        place: &Place,
        http: SocketAddr,
        more: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let http = http.to_string();
        let own = [
            ("SHOAL_QUERY__GRPC_LISTEN", "127.0.0.1:0"),
            ("SHOAL_QUERY__HTTP_LISTEN", http.as_str()),
        ];
        Self::start("query", arguments, place, &[&own, more].concat())
    }

    fn start(
        role: &str,
        arguments: &Arguments,
        place: &Place,
        own: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let log = place.folder().join(format!("{role}.log"));
        let shoal = arguments.shoal.as_os_str();
        // The kernel kills it when we end, however that comes about.
        let mut process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(shoal)
            .arg(role)
            .env("SHOAL_KAFKA__BOOTSTRAP", place.broker.bootstrap())
            .envs(own.iter().copied())
            .current_dir(place.folder())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(&log)?)
            .spawn()
            .context("cannot run setpriv (package util-linux)")?;
        let out = process.stdout.take().context("its output is ours")?;
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        let mut words = line.split_whitespace().skip_while(|word| *word != "grpc");
        let address = words.nth(1).and_then(|word| word.parse().ok());
        let Some(grpc) = address else {
            bail!(
                "`shoal {role}` said `{}` and not where it listens; its log:\n{}",
                line.trim(),
                fs::read_to_string(&log)?
            );
        };
        Ok(Self { process, grpc, log })
    }

    /// Fails if it has ended.
    pub(crate) fn lives(&mut self) -> anyhow::Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(_) => bail!("the role ended: {}", self.state()),
        }
    }

    /// Whether it has ended, and the last lines it logged: for errors.
    pub(crate) fn state(&mut self) -> String {
        // The kernel may not yet have told of an end that closed a connection.
        std::thread::park_timeout(Duration::from_millis(100));
        let ended = match self.process.try_wait() {
            Ok(Some(status)) => status.to_string(),
            Ok(None) => "still running".into(),
            Err(error) => error.to_string(),
        };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(20).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        format!("{ended}; its log:\n{}", lines.join("\n"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Ends it at once, as a power cut would end it but for what the kernel still writes.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Stops it in the middle of whatever it does; its connections stay.
    pub(crate) fn pause(&self) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.process), Signal::STOP)?)
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.process), Signal::CONT)?)
    }

    /// What it has logged so far, and those before it in this place.
    pub(crate) fn log(&self) -> anyhow::Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// Processor time used so far, seconds.
    pub(crate) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        cpu_seconds(self.process.id())
    }

    /// Processor time used so far by the threads whose names begin so, seconds.
    pub(crate) fn cpu_seconds_of(&self, threads: &str) -> anyhow::Result<f64> {
        let mut seconds = 0.0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            // One may end meanwhile.
            let Ok(stat) = fs::read_to_string(thread?.path().join("stat")) else {
                continue;
            };
            let (name, fields) = stat_fields(&stat)?;
            if name.starts_with(threads) {
                seconds += seconds_of(fields)?;
            }
        }
        Ok(seconds)
    }

    /// Ends it in good order.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.process), Signal::TERM)?;
        let watch = Stopwatch::start();
        while watch.elapsed() < STOP {
            if let Some(status) = self.process.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!("the role ended: {}", self.state());
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        bail!("did not stop within {STOP:?}")
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _gone_already = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// Processor time a process has used so far, seconds.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    seconds_of(stat_fields(&stat)?.1)
}

/// The name of a process or thread, and what its `stat` tells after it. The name may hold anything but ends at
/// the last parenthesis.
fn stat_fields(stat: &str) -> anyhow::Result<(&str, &str)> {
    let (head, fields) = stat.rsplit_once(')').context("stat names its program")?;
    let (_, name) = head.split_once('(').context("stat names its program")?;
    Ok((name, fields))
}

fn seconds_of(fields: &str) -> anyhow::Result<f64> {
    let ticks = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<f64>);
    Ok(ticks.sum::<Result<f64, _>>()? / TICKS_PER_SECOND)
}

/// Where an indexer keeps the only shard of a collection.
pub(crate) fn shard_folder(data: &Path, collection: &Collection) -> PathBuf {
    folder_of(data, collection, Partition(0))
}

/// Where an indexer keeps a shard.
pub(crate) fn folder_of(data: &Path, collection: &Collection, shard: Partition) -> PathBuf {
    let shards = data.join("shards").join(collection.name.as_str());
    shards.join(shard.0.to_string())
}
