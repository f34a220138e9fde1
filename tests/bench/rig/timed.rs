//! Questions asked in this process from several threads for a while, and what they cost.

use std::{ops::AddAssign, time::Duration};

use anyhow::anyhow;
use rustix::time::{ClockId, clock_gettime};
use shoal_runtime::clock::Stopwatch;

/// A timed part: how many queries, in how much time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timed {
    pub(crate) queries: f64,
    pub(crate) seconds: f64,
    /// Of the whole process.
    pub(crate) cpu_seconds: f64,
}

impl Timed {
    pub(crate) fn per_second(&self) -> f64 {
        self.queries / self.seconds
    }

    pub(crate) fn per_cpu_second(&self) -> f64 {
        self.queries / self.cpu_seconds
    }

    pub(crate) fn cpu_us(&self) -> f64 {
        self.cpu_seconds / self.queries * 1e6
    }
}

impl AddAssign for Timed {
    fn add_assign(&mut self, other: Self) {
        self.queries += other.queries;
        self.seconds += other.seconds;
        self.cpu_seconds += other.cpu_seconds;
    }
}

/// Asks `queries` over and over from `threads` threads, each one query after the other.
pub(crate) fn ask_for(
    time: Duration,
    threads: usize,
    queries: &[Vec<f32>],
    ask: &(dyn Fn(&[f32]) -> anyhow::Result<()> + Sync),
) -> anyhow::Result<Timed> {
    let (watch, cpu) = (Stopwatch::start(), cpu_time(ClockId::ProcessCPUTime));
    let asked = std::thread::scope(|scope| {
        let started: Vec<_> = (0..threads)
            .map(|thread| {
                // Each thread begins elsewhere, so that they do not ask the same at one time.
                let first = thread * queries.len() / threads;
                scope.spawn(move || {
                    let mut asked = 0usize;
                    for query in queries.iter().cycle().skip(first) {
                        ask(query)?;
                        asked += 1;
                        if watch.elapsed() >= time {
                            break;
                        }
                    }
                    anyhow::Ok(asked)
                })
            })
            .collect();
        let counts = started.into_iter().map(|thread| {
            let ended = thread.join().map_err(|_| anyhow!("a client panicked"))?;
            ended.map(|asked| asked as f64)
        });
        counts.sum::<anyhow::Result<f64>>()
    })?;
    Ok(Timed {
        queries: asked,
        seconds: watch.seconds(),
        cpu_seconds: (cpu_time(ClockId::ProcessCPUTime).saturating_sub(cpu)).as_secs_f64(),
    })
}

/// Processor time used so far: of this process, or of the thread that asks.
pub(crate) fn cpu_time(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or_default();
    Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds)
}
