//! One child process that dies with us, and the thread that waits for it.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{
        Pid, Signal, WaitId, WaitIdOptions, getpid, getppid, kill_process,
        set_parent_process_death_signal, waitid,
    },
};

use super::{BrokerError, Launcher};

/// Tells the child who its parent is, so that one whose parent died at once does not stay.
const PARENT_VARIABLE: &str = "SHOAL_PARENT_PID";
/// How much of a log an error shows.
const TAIL_LINES: usize = 15;

/// Becomes `command`, to be killed by the kernel when the parent's thread ends.
///
/// The first word is the program. Returns only if that fails.
pub fn exec_as_child(command: &[OsString]) -> io::Error {
    let Some((program, arguments)) = command.split_first() else {
        return io::Error::new(io::ErrorKind::InvalidInput, "no command to run as a child");
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    // The parent may have died before the line above: then nobody would ever kill us.
    let parent = getppid()
        .map(Pid::as_raw_nonzero)
        .map(|pid| pid.to_string());
    if let Some(expected) = env::var_os(PARENT_VARIABLE)
        && parent.as_deref().map(OsStr::new) != Some(&expected)
    {
        return io::Error::other("the parent is gone already");
    }
    Command::new(program)
        .args(arguments)
        .env_remove(PARENT_VARIABLE)
        .exec()
}

/// A running child. Dropping it kills it.
pub(super) struct Child {
    pid: Pid,
    shared: Arc<Shared>,
    log: PathBuf,
}

#[derive(Default)]
struct Shared {
    ended: Mutex<Option<ExitStatus>>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<ExitStatus>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Child {
    /// Starts `command` with its output in `log`, on a thread that lives as long as it.
    pub(super) fn spawn(
        name: &str,
        launcher: Option<&Launcher>,
        command: &[OsString],
        log: &Path,
    ) -> Result<Self, BrokerError> {
        let default = || {
            ["setpriv", "--pdeathsig", "KILL"]
                .map(OsString::from)
                .to_vec()
        };
        let mut words = launcher.cloned().unwrap_or_else(default);
        words.extend_from_slice(command);
        let mut words = words.into_iter();
        let program = words.next().unwrap_or_default();
        let failed = {
            let command = program.to_string_lossy().into_owned();
            move |source| BrokerError::Spawn { command, source }
        };
        let file = |source| BrokerError::File {
            path: log.to_owned(),
            source,
        };
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(file)?;
        let err = out.try_clone().map_err(file)?;
        let mut start = Command::new(&program);
        start
            .args(words)
            .env(PARENT_VARIABLE, getpid().to_string())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            // A Ctrl-C on the terminal is the parent's to answer: it stops us in good order.
            .process_group(0);

        let shared = Arc::new(Shared::default());
        let waiter = Arc::clone(&shared);
        let (started, answer) = std::sync::mpsc::sync_channel(1);
        let body = move || match start.spawn() {
            Ok(child) => wait(child, &started, &waiter),
            Err(error) => {
                let _gone = started.send(Err(error));
            }
        };
        // A thread of its own and not a task: the kernel's order to kill is tied to it.
        if let Err(source) = thread::Builder::new().name(name.to_owned()).spawn(body) {
            return Err(failed(source));
        }
        match answer.recv() {
            Ok(Ok(pid)) => Ok(Self {
                pid,
                shared,
                log: log.to_owned(),
            }),
            Ok(Err(source)) => Err(failed(source)),
            Err(_) => Err(failed(io::Error::other("the thread that starts it ended"))),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    pub(super) fn ended(&self) -> Option<ExitStatus> {
        *self.shared.lock()
    }

    /// Waits up to `timeout` for its end.
    pub(super) fn wait(&self, timeout: Duration) -> Option<ExitStatus> {
        let ended = self.shared.lock();
        let (ended, _) = self
            .shared
            .changed
            .wait_timeout_while(ended, timeout, |ended| ended.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        *ended
    }

    /// Looks at `ready` until it holds or the child ends.
    pub(super) fn await_ready(
        &self,
        what: &'static str,
        timeout: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<(), BrokerError> {
        let watch = shoal_runtime::clock::Stopwatch::start();
        loop {
            if let Some(status) = self.wait(Duration::from_millis(20)) {
                return Err(BrokerError::Ended {
                    what,
                    status,
                    log: self.log.clone(),
                    tail: tail(&self.log),
                });
            }
            if ready() {
                return Ok(());
            }
            if watch.elapsed() >= timeout {
                return Err(BrokerError::NotReady {
                    what,
                    waited: timeout,
                    log: self.log.clone(),
                    tail: tail(&self.log),
                });
            }
        }
    }

    /// Asks it to end, and kills it if it has not after `patience`. True if it ended by itself.
    pub(super) fn stop(&self, patience: Duration) -> bool {
        self.signal(Signal::TERM);
        if self.wait(patience).is_some() {
            return true;
        }
        self.kill();
        false
    }

    /// Kills it and waits until it is gone.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
        while self.wait(Duration::from_secs(60)).is_none() {}
    }

    fn signal(&self, signal: Signal) {
        // Under the lock the pid is still ours: it is reaped under the same lock.
        let ended = self.shared.lock();
        if ended.is_none() {
            let _gone_meanwhile = kill_process(self.pid, signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
    }
}

fn wait(
    mut child: std::process::Child,
    started: &std::sync::mpsc::SyncSender<io::Result<Pid>>,
    shared: &Shared,
) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let Some(pid) = pid else {
        let _gone = started.send(Err(io::Error::other("the child has no pid")));
        return;
    };
    let _gone = started.send(Ok(pid));
    // Waits without reaping, so that the pid stays taken until the state says it has ended.
    let leave = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(waitid(WaitId::Pid(pid), leave), Err(Errno::INTR)) {}
    let mut ended = shared.lock();
    let status = child.wait().unwrap_or_default();
    *ended = Some(status);
    drop(ended);
    shared.changed.notify_all();
}

/// The last lines of a log, for an error.
pub(super) fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
