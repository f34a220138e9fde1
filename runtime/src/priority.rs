//! Threads that give way: work that may wait lets that go first which somebody waits for.
//!
//! Priority is counted as `nice` counts it, and Linux counts it for each thread. A thread begins with that of the one
//! that starts it. Any thread may give way, and none may take that back without privileges: so what gives way for a
//! time only is done on a thread of its own. Where processors are idle nothing of this takes any time.

use std::{io, panic, thread};

use rustix::process::{getpriority_process, setpriority_process};
use tracing::debug;

/// The least priority there is.
const LEAST: i32 = 19;

/// Makes the calling thread, and those that it starts from now on, give way by so many steps more.
///
/// # Errors
/// The system's own.
pub fn give_way(steps: i32) -> io::Result<()> {
    // Of the calling thread alone, as Linux has it.
    let steps = getpriority_process(None)?.saturating_add(steps);
    setpriority_process(None, steps.min(LEAST))?;
    Ok(())
}

/// Does work on a thread of its own, which gives way by so many steps, and waits for its end.
///
/// A system that does not know priorities has the work done all the same.
///
/// # Errors
/// The system's own, when it has no more threads; nothing is done then.
/// # Panics
/// If the work panics, with its message.
pub fn giving_way<T: Send>(
    name: &str,
    steps: i32,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let body = || {
            if let Err(error) = give_way(steps) {
                debug!(%error, "a thread does not give way");
            }
            work()
        };
        let builder = thread::Builder::new().name(name.to_owned());
        match builder.spawn_scoped(scope, body)?.join() {
            Ok(done) => Ok(done),
            Err(panicked) => panic::resume_unwind(panicked),
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{panic::catch_unwind, thread};

    use rustix::process::getpriority_process;

    use super::{LEAST, giving_way};

    fn now() -> i32 {
        getpriority_process(None).unwrap()
    }

    #[test]
    fn work_that_gives_way_and_what_it_starts_is_behind_who_waits_for_it() {
        let before = now();
        let (inside, below) = giving_way("gives way", 3, || {
            let name = thread::current().name().map(str::to_owned);
            assert_eq!(name.as_deref(), Some("gives way"));
            let below = giving_way("more", 2, || thread::scope(|scope| scope.spawn(now).join()));
            (now(), below.unwrap().unwrap())
        })
        .unwrap();
        assert_eq!(inside, (before + 3).min(LEAST));
        assert_eq!(below, (before + 5).min(LEAST));
        assert_eq!(now(), before, "who waits is as it was");
    }

    #[test]
    fn a_panic_of_the_work_is_one_of_who_waits_for_it() {
        let panicked =
            catch_unwind(|| giving_way::<()>("panics", 1, || panic!("planted"))).unwrap_err();
        assert_eq!(panicked.downcast_ref::<&str>(), Some(&"planted"));
    }
}
