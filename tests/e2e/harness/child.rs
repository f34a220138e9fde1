//! The `shoal` binary as a child process: started, watched, killed; its output kept in a file.

use std::{
    fs::{self, File},
    io,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child as Process, Command, ExitStatus, Stdio},
    sync::{
        Mutex, OnceLock,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use shoal_runtime::{clock::Stopwatch, eventually};

use super::DEADLINE;

/// The binary under test.
pub(crate) const SHOAL: &str = env!("CARGO_BIN_EXE_shoal");

/// A running child. Dropping it kills it.
pub(crate) struct Child {
    name: String,
    process: Process,
    log: PathBuf,
}

impl Child {
    /// Starts `shoal` with these arguments and variables; whatever it prints goes to `log`.
    ///
    /// No variable of ours that the tests themselves were started with goes along.
    pub(crate) fn shoal(
        name: &str,
        arguments: &[&str],
        variables: &[(String, String)],
        log: &Path,
    ) -> Self {
        Self::shoal_through(name, &[], arguments, variables, log)
    }

    /// The same, started through another program: one that executes what its arguments end with.
    pub(crate) fn shoal_through(
        name: &str,
        entrance: &[String],
        arguments: &[&str],
        variables: &[(String, String)],
        log: &Path,
    ) -> Self {
        let out = File::create(log).unwrap();
        // The kernel kills it when the thread that started it ends, which lives as long as we do.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .args(entrance)
            .arg(SHOAL)
            .args(arguments);
        clean(&mut command);
        command
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .current_dir(log.parent().unwrap())
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out);
        Self {
            name: name.to_owned(),
            process: spawn(command).unwrap(),
            log: log.to_owned(),
        }
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// Watches it for a while; returns early if it ends.
    pub(crate) fn ends_within(&mut self, time: Duration) -> Option<ExitStatus> {
        let watch = Stopwatch::start();
        loop {
            let ended = self.ended();
            let left = time.saturating_sub(watch.elapsed());
            if ended.is_some() || left.is_zero() {
                return ended;
            }
            thread::park_timeout(left.min(Duration::from_millis(5)));
        }
    }

    /// Stops it in the middle of whatever it does, without its knowing.
    pub(crate) fn pause(&self) {
        kill_process(Pid::from_child(&self.process), Signal::STOP).unwrap();
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        kill_process(Pid::from_child(&self.process), Signal::CONT).unwrap();
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Asks it to end and waits until it has.
    #[track_caller]
    pub(crate) fn terminate(mut self) {
        let pid = Pid::from_child(&self.process);
        kill_process(pid, Signal::TERM).unwrap();
        let status = self.end();
        assert!(
            status.success(),
            "{} ended with {status}\n{}",
            self.name,
            self.tail()
        );
    }

    /// Asks it to end as a person at a terminal does.
    pub(crate) fn interrupt(&self) {
        kill_process(Pid::from_child(&self.process), Signal::INT).unwrap();
    }

    /// Asks it to end as an orchestrator does, without waiting.
    pub(crate) fn request_end(&self) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
    }

    /// Waits until it has died of `SIGKILL`, as an armed crash point makes it.
    #[track_caller]
    pub(crate) fn dies(mut self, why: &str) {
        let status = self.ends_within(DEADLINE);
        let Some(status) = status else {
            panic!("{} did not die: {why}\n{}", self.name, self.tail());
        };
        assert_eq!(
            status.signal(),
            Some(9),
            "{}: {why}\n{}",
            self.name,
            self.tail()
        );
    }

    /// Waits until it has ended.
    #[track_caller]
    pub(crate) fn end(&mut self) -> ExitStatus {
        let name = self.name.clone();
        eventually(DEADLINE, &format!("{name} to end"), || self.ended())
    }

    /// Fails the test if it has ended.
    #[track_caller]
    pub(crate) fn lives(&mut self) {
        if let Some(status) = self.ended() {
            panic!("{} ended with {status}\n{}", self.name, self.tail());
        }
    }

    /// Anonymous memory it holds, bytes: what only it can give back.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix("RssAnon:"));
        let kibibytes: u64 = (line.unwrap().trim().trim_end_matches(" kB"))
            .parse()
            .unwrap();
        kibibytes << 10
    }

    /// Everything it has printed.
    pub(crate) fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// The JSON lines it has logged.
    pub(crate) fn logged(&self) -> Vec<Value> {
        let output = self.output();
        let lines = output
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        lines.collect()
    }

    /// Lines of level `ERROR`, apart from those whose message is expected.
    pub(crate) fn errors(&self, expected: &[&str]) -> Vec<Value> {
        let mut lines = self.logged();
        lines.retain(|line| {
            let message = line["message"].as_str().unwrap_or_default();
            line["level"] == "ERROR" && !expected.contains(&message)
        });
        lines
    }

    fn tail(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!(
                "--- last lines of {} ({})\n{}",
                self.name,
                self.log.display(),
                self.tail()
            );
        }
        let _gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

/// Runs `shoal` to its end and returns its status and what it printed, as (stdout, stderr).
pub(crate) fn run(
    arguments: &[&str],
    variables: &[(String, String)],
) -> (ExitStatus, String, String) {
    let mut command = Command::new(SHOAL);
    clean(&mut command);
    let output = command
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status, text(&output.stdout), text(&output.stderr))
}

/// [`run`] that has to succeed; returns standard output.
#[track_caller]
pub(crate) fn succeed(arguments: &[&str], variables: &[(String, String)]) -> String {
    let (status, out, err) = run(arguments, variables);
    assert!(
        status.success(),
        "shoal {arguments:?} ended with {status}\n{out}\n{err}"
    );
    out
}

/// Settings of whoever runs the tests must not reach a role; where fetched things are kept must.
fn clean(command: &mut Command) {
    const KEPT: [&str; 3] = ["SHOAL_KAFKA_HOME", "SHOAL_REGISTRY_HOME", "SHOAL_CACHE"];
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("SHOAL_") && !KEPT.contains(&&*text) {
            command.env_remove(&name);
        }
    }
}

type Job = (Command, SyncSender<io::Result<Process>>);

/// Starts a process from the one thread that lives as long as this process.
pub(crate) fn spawn(command: Command) -> io::Result<Process> {
    static SPAWNER: OnceLock<Mutex<SyncSender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, taken): (SyncSender<Job>, Receiver<Job>) = sync_channel(0);
        thread::spawn(move || {
            for (mut command, answer) in taken {
                let _gone = answer.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    let (answer, answered) = sync_channel(1);
    spawner.lock().unwrap().send((command, answer)).unwrap();
    answered.recv().unwrap()
}
