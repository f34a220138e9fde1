//! Threads that give way: work that may wait lets that go first which somebody waits for.
//!
//! Priority is counted as `nice` counts it, and Linux counts it for each thread. A thread begins with that of the one
//! that starts it. Any thread may give way, and none may take that back without privileges: so what gives way for a
//! time only is done on a thread of its own. Where processors are idle nothing of this takes any time.
//!
//! A lower priority decides how much a thread is given, and not when. One that wakes up takes the processor from another
//! at once in some cases only, and otherwise waits for the next tick of the system's clock, milliseconds away. So long
//! work that may wait takes a [`Breath`] now and then.

use std::{io, panic, thread, time::Duration};

use rustix::process::{getpriority_process, setpriority_process};
use tracing::debug;

use crate::clock::Stopwatch;

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

/// Pauses of long work, for whoever waits for the processor it runs on.
///
/// A pause gives up what the thread may still claim of that processor (from Linux 6.18 on; some of it before), and so takes
/// long where others never sleep. The next one comes no sooner than after as much time as the last one took: work takes
/// at most twice as long for its breaths.
#[derive(Debug)]
pub struct Breath {
    every: Duration,
    last: Duration,
    since: Stopwatch,
}

impl Breath {
    /// Breaths that are so far from each other at least.
    pub fn every(time: Duration) -> Self {
        Self {
            every: time,
            last: Duration::ZERO,
            since: Stopwatch::start(),
        }
    }

    /// Lets others go first, if it is time. To be called between short steps.
    pub fn take(&mut self) {
        if self.since.elapsed() >= self.every.max(self.last) {
            let pause = Stopwatch::start();
            thread::yield_now();
            self.last = pause.elapsed();
            self.since = Stopwatch::start();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{fs, panic::catch_unwind, sync::Barrier, thread, time::Duration};

    use rustix::process::getpriority_process;

    use super::{Breath, LEAST, giving_way};

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

    /// How often the calling thread was taken off its processor, or left it.
    #[cfg(target_os = "linux")]
    fn switches() -> u64 {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
        let counts = counts.map(|line| line.rsplit('\t').next().unwrap());
        counts.map(|count| count.parse::<u64>().unwrap()).sum()
    }

    /// Of threads, two a processor, that each take so many breaths.
    #[cfg(target_os = "linux")]
    fn switches_of_breaths(every: Duration) -> u64 {
        let threads = 2 * thread::available_parallelism().unwrap().get();
        let start = Barrier::new(threads);
        thread::scope(|scope| {
            let body = || {
                let mut breath = Breath::every(every);
                start.wait();
                let before = switches();
                for _ in 0..20_000 {
                    breath.take();
                }
                switches() - before
            };
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(body)).collect();
            all.into_iter().map(|one| one.join().unwrap()).sum()
        })
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_breath_lets_others_go_first_who_wait_for_the_same_processor() {
        assert!(switches_of_breaths(Duration::ZERO) > 2_000);
        assert!(switches_of_breaths(Duration::MAX) < 2_000);
    }
}
