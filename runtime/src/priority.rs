//! Threads that give way: work that may wait lets that go first which somebody waits for.
//!
//! Priority is counted as `nice` counts it, and Linux counts it for each thread. A thread begins with that of the one
//! that starts it. Any thread may give way, and none may take that back without privileges: so what gives way for a
//! time only is done on a thread of its own. Where processors are idle nothing of this takes any time.
//!
//! A lower priority decides how much a thread is given, and not when. One that wakes up takes the processor
//! from another at once in some cases only, and otherwise waits until that one's slice is over and a tick of the
//! system's clock finds it so, milliseconds later. So long work that may wait takes a [`Breath`] now and then.

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

/// The longest pause that puts the next one off by as much. A process that was stopped sees one of any length.
const LONGEST: Duration = Duration::from_millis(100);

/// Pauses of long work, for whoever waits for the processor it runs on.
///
/// With a pause a thread gives up what it may still claim of that processor (older kernels take a part of it only), and
/// where others never sleep that takes long. The next one comes no sooner than after as much time as the last one
/// took, a tenth of a second at most, so that breaths hardly take more than half of the time.
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
        if self.is_due(self.since.elapsed()) {
            let pause = Stopwatch::start();
            thread::yield_now();
            self.last = pause.elapsed();
            self.since = Stopwatch::start();
        }
    }

    /// Whether it is time, so long after the last one.
    fn is_due(&self, passed: Duration) -> bool {
        passed >= self.every.max(self.last.min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{panic::catch_unwind, thread, time::Duration};

    use rustix::process::getpriority_process;

    use super::{Breath, LEAST, LONGEST, giving_way};
    use crate::clock::Stopwatch;

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

    #[test]
    fn breaths_are_as_far_apart_as_the_last_was_long() {
        const EVERY: Duration = Duration::from_millis(1);
        let after = |last| Breath {
            every: EVERY,
            last,
            since: Stopwatch::start(),
        };
        assert!(after(Duration::ZERO).is_due(EVERY));
        assert!(!after(Duration::ZERO).is_due(EVERY / 2));
        assert!(after(5 * EVERY).is_due(5 * EVERY));
        assert!(!after(5 * EVERY).is_due(4 * EVERY));
        assert!(after(Duration::MAX).is_due(LONGEST), "it was stopped");
    }

    #[test]
    fn a_breath_is_taken_when_it_is_due_and_how_long_it_was_is_kept() {
        let mut due = Breath::every(Duration::ZERO);
        // A clock may stand still for one.
        assert!((0..1_000).any(|_| {
            due.take();
            due.last > Duration::ZERO
        }));
        let mut early = Breath::every(Duration::MAX);
        (0..1_000).for_each(|_| early.take());
        assert_eq!(early.last, Duration::ZERO);
    }

    #[cfg(target_os = "linux")]
    mod linux {
        use std::{fs, sync::Barrier, thread, time::Duration};

        use super::Breath;

        /// How often the calling thread was taken off its processor, or left it.
        fn switches() -> u64 {
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
            let counts = counts.map(|line| line.rsplit('\t').next().unwrap());
            counts.map(|count| count.parse::<u64>().unwrap()).sum()
        }

        /// Processors that this process may use.
        fn processors() -> usize {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let allowed = status
                .lines()
                .find_map(|line| line.strip_prefix("Cpus_allowed:"));
            let digits = allowed.unwrap().chars().filter_map(|one| one.to_digit(16));
            let count: u32 = digits.map(u32::count_ones).sum();
            usize::try_from(count).unwrap()
        }

        #[test]
        fn a_breath_lets_others_go_first_who_wait_for_the_same_processor() {
            // Some share one. Each breath is the first of its kind, so that how long others take puts none off.
            let threads = 2 * processors();
            let start = Barrier::new(threads);
            let is_put_off = || {
                start.wait();
                let before = switches();
                (0..10_000).any(|_| {
                    (0..100).for_each(|_| Breath::every(Duration::ZERO).take());
                    switches() - before > 1_000
                })
            };
            let any = thread::scope(|scope| {
                let all: Vec<_> = (0..threads).map(|_| scope.spawn(is_put_off)).collect();
                all.into_iter().any(|one| one.join().unwrap())
            });
            assert!(any, "a million breaths, and each thread kept its processor");
        }
    }
}
