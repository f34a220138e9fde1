//! How long a caller waits: until its deadline, and while it is there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use shoal_runtime::{clock::Stopwatch, timeout::grpc_timeout};
use tonic::Request;

/// What is left of a caller's deadline for the answer's way back.
const WAY_BACK: Duration = Duration::from_millis(5);
/// How long a token is waited for when the caller sets no deadline.
const DEFAULT_WAIT: Duration = Duration::from_secs(10);

/// When a call has to be answered, all its waits together.
#[derive(Clone, Copy)]
pub(super) struct Deadline {
    since: Stopwatch,
    told: Option<Duration>,
}

impl Deadline {
    /// What the caller allows, less the way back.
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        let told = request.metadata().get("grpc-timeout");
        let told = told.and_then(|value| grpc_timeout(value.to_str().ok()?));
        Self {
            since: Stopwatch::start(),
            told: told.map(|told| told.saturating_sub(WAY_BACK)),
        }
    }

    /// How long a wait may still take.
    pub(super) fn left(&self) -> Duration {
        let whole = self.told.unwrap_or(DEFAULT_WAIT);
        whole.saturating_sub(self.since.elapsed())
    }

    /// Whether nobody waits any more. A caller that named no time waits for ever.
    pub(super) fn is_over(&self) -> bool {
        self.told.is_some_and(|told| self.since.elapsed() >= told)
    }
}

/// Held by whoever waits for work; dropped with the call, it tells the work.
pub(super) struct Caller(Arc<AtomicBool>);

/// What work asks now and then: whether anybody still waits for it.
#[derive(Clone)]
pub(super) struct Patience {
    deadline: Deadline,
    gone: Arc<AtomicBool>,
}

/// Ties work to its caller.
pub(super) fn of(deadline: Deadline) -> (Caller, Patience) {
    let gone = Arc::new(AtomicBool::new(false));
    (Caller(gone.clone()), Patience { deadline, gone })
}

impl Patience {
    /// Whether the work is for nobody.
    pub(super) fn is_over(&self) -> bool {
        self.gone.load(Ordering::Relaxed) || self.deadline.is_over()
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Request;

    use super::{Deadline, of};

    fn within(time: Option<Duration>) -> Deadline {
        let mut request = Request::new(());
        if let Some(time) = time {
            request.set_timeout(time);
        }
        Deadline::of(&request)
    }

    #[test]
    fn work_is_for_nobody_once_the_deadline_is_over() {
        let (_caller, patience) = of(within(Some(Duration::from_secs(60))));
        assert!(!patience.is_over());
        // All of it is the way back.
        let (_caller, patience) = of(within(Some(Duration::from_millis(1))));
        assert!(patience.is_over());
        let (_caller, patience) = of(within(None));
        assert!(!patience.is_over());
    }

    #[test]
    fn work_is_for_nobody_once_the_caller_is_gone() {
        let (caller, patience) = of(within(None));
        let with_the_work = patience.clone();
        assert!(!with_the_work.is_over());
        drop(caller);
        assert!(with_the_work.is_over());
    }
}
