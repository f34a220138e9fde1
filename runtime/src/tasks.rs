//! Named tasks and threads under one shutdown.
//!
//! Every task has a name. One that fails or panics cancels its siblings, so a process never
//! limps on without a part it needs; being cancelled is success. Nothing else in Shoal spawns.

use std::{
    error::Error,
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::error::chain;

/// Any error a task may end with.
pub type TaskError = Box<dyn Error + Send + Sync>;

/// The tasks and threads of one process or role, with their common cancellation.
#[derive(Clone)]
pub struct Tasks {
    cancel: CancellationToken,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    tasks: JoinSet<()>,
    threads: Vec<JoinHandle<()>>,
    /// Names of those that have not ended.
    running: Vec<String>,
    first_failure: Option<Failure>,
}

/// The first task that failed, and how.
#[derive(Clone, Debug, thiserror::Error)]
#[error("task `{task}` failed: {detail}")]
pub struct Failure {
    /// The task's name.
    pub task: String,
    /// The chain of causes, or the panic's message.
    pub detail: String,
}

impl Tasks {
    /// An empty set that stops when `cancel` does, and cancels it when a task fails.
    pub fn new(cancel: CancellationToken) -> Self {
        Self {
            cancel,
            state: Arc::default(),
        }
    }

    /// The common cancellation.
    pub fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Starts an async task. Call within a tokio runtime.
    pub fn spawn<E>(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: Into<TaskError>,
    {
        let name = name.into();
        let running = name.clone();
        let tasks = self.clone();
        let guarded = async move {
            let guard = PanicGuard {
                tasks: tasks.clone(),
                name: name.clone(),
            };
            let outcome = task.await;
            std::mem::forget(guard);
            tasks.ended(&name, outcome.map_err(Into::into));
        };
        let mut state = self.lock();
        state.running.push(running);
        state.tasks.spawn(guarded);
    }

    /// Starts a thread that may block. It has to watch the cancellation itself.
    ///
    /// # Errors
    /// The system's own, when it has no more threads.
    pub fn spawn_thread<E>(
        &self,
        name: impl Into<String>,
        body: impl FnOnce() -> Result<(), E> + Send + 'static,
    ) -> io::Result<()>
    where
        E: Into<TaskError>,
    {
        let name = name.into();
        let tasks = self.clone();
        let thread_name = name.clone();
        // Held until it stands among those that run: the thread may be at its end at once.
        let mut state = self.lock();
        let handle =
            thread::Builder::new().name(name.clone()).spawn(move || {
                match catch_unwind(AssertUnwindSafe(body)) {
                    Ok(outcome) => tasks.ended(&thread_name, outcome.map_err(Into::into)),
                    Err(_) => tasks.ended(&thread_name, Err("it panicked".into())),
                }
            })?;
        state.threads.push(handle);
        state.running.push(name);
        Ok(())
    }

    fn ended(&self, name: &str, outcome: Result<(), TaskError>) {
        {
            let running = &mut self.lock().running;
            let at = running.iter().position(|one| one == name);
            at.map(|at| running.swap_remove(at));
        }
        match outcome {
            Ok(()) => debug!(task = name, "task ended"),
            Err(cause) => {
                let detail = chain(&*cause).to_string();
                error!(task = name, error = %detail, "task failed");
                self.lock().first_failure.get_or_insert(Failure {
                    task: name.to_owned(),
                    detail,
                });
                self.cancel.cancel();
            }
        }
    }

    /// Waits for the cancellation, then for every task, at most `grace`.
    ///
    /// # Errors
    /// The first [`Failure`], or one that names the tasks that did not end in time.
    pub async fn finish(&self, grace: Duration) -> Result<(), Failure> {
        self.cancel.cancelled().await;
        let all = async {
            loop {
                let mut tasks = std::mem::take(&mut self.lock().tasks);
                let threads = std::mem::take(&mut self.lock().threads);
                if tasks.is_empty() && threads.is_empty() {
                    break;
                }
                while tasks.join_next().await.is_some() {}
                for handle in threads {
                    // A panic was caught inside, so joining only waits.
                    let _ended = tokio::task::spawn_blocking(move || handle.join()).await;
                }
            }
        };
        let timed_out = tokio::time::timeout(grace, all).await.is_err();
        let state = self.lock();
        match &state.first_failure {
            Some(failure) => Err(failure.clone()),
            None if timed_out => Err(Failure {
                task: "shutdown".into(),
                detail: format!(
                    "still running {grace:?} after the end was asked for: {}",
                    state.running.join(", ")
                ),
            }),
            None => Ok(()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("nothing panics while it holds this lock")
    }
}

/// Turns a panic inside a task's future into a failure of that task.
struct PanicGuard {
    tasks: Tasks,
    name: String,
}

impl Drop for PanicGuard {
    fn drop(&mut self) {
        // Also dropped unfinished when the runtime goes away, which is no failure.
        if thread::panicking() {
            self.tasks.ended(&self.name, Err("it panicked".into()));
        }
    }
}

/// Runs blocking work on tokio's blocking threads and waits for it.
///
/// # Panics
/// If the work panics, with its message.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => unreachable!("blocking work is never aborted"),
    }
}

/// Cancels `cancel` at the first SIGINT or SIGTERM.
///
/// # Errors
/// The system's own, when the handlers cannot be set.
pub async fn cancel_on_signal(cancel: CancellationToken) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = cancel.cancelled() => {}
    }
    cancel.cancel();
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{convert::Infallible, io, time::Duration};

    use tokio_util::sync::CancellationToken;

    use super::Tasks;

    const GRACE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn one_failing_task_stops_its_siblings_and_is_named() {
        let tasks = Tasks::new(CancellationToken::new());
        let cancel = tasks.cancel().clone();
        tasks.spawn("waits", async move {
            cancel.cancelled().await;
            Ok::<_, Infallible>(())
        });
        tasks.spawn("fails", async { Err(io::Error::other("disk is gone")) });
        let failure = tasks.finish(GRACE).await.unwrap_err();
        assert_eq!(
            (failure.task.as_str(), failure.detail.as_str()),
            ("fails", "disk is gone")
        );
    }

    #[tokio::test]
    async fn a_panic_in_a_task_or_thread_is_a_failure() {
        for in_thread in [false, true] {
            let tasks = Tasks::new(CancellationToken::new());
            if in_thread {
                tasks
                    .spawn_thread("panics", || -> io::Result<()> { panic!("planted") })
                    .unwrap();
            } else {
                tasks.spawn("panics", async move {
                    assert!(in_thread, "planted");
                    Ok::<_, Infallible>(())
                });
            }
            let failure = tasks.finish(GRACE).await.unwrap_err();
            assert_eq!(failure.task, "panics");
        }
    }

    #[tokio::test]
    async fn what_does_not_end_in_time_is_named() {
        let tasks = Tasks::new(CancellationToken::new());
        let (let_go, held) = std::sync::mpsc::sync_channel::<()>(0);
        let wait = move || {
            // Until the test lets go.
            let _ended = held.recv();
            Ok::<_, Infallible>(())
        };
        tasks.spawn_thread("hangs", wait).unwrap();
        tasks.spawn("ends", async { Ok::<_, Infallible>(()) });
        tasks.cancel().cancel();
        let failure = tasks.finish(Duration::ZERO).await.unwrap_err();
        drop(let_go);
        assert_eq!(failure.task, "shutdown");
        assert!(failure.detail.ends_with(": hangs") || failure.detail.ends_with(", ends"));
        assert!(failure.detail.contains("hangs"), "{failure}");
    }

    #[tokio::test]
    async fn cancelled_is_success() {
        let tasks = Tasks::new(CancellationToken::new());
        let cancel = tasks.cancel().clone();
        tasks
            .spawn_thread("polls", move || {
                while !cancel.is_cancelled() {
                    std::thread::yield_now();
                }
                Ok::<_, Infallible>(())
            })
            .unwrap();
        tasks.cancel().cancel();
        assert!(tasks.finish(GRACE).await.is_ok());
    }
}
