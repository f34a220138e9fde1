//! Processor time of a shard's own threads.

use std::time::Duration;

use metrics::gauge;
use shoal_runtime::clock::Stopwatch;

use crate::metrics as names;

/// Reports the processor time of the thread it is ticked on.
pub(super) struct CpuMeter {
    shard: String,
    thread: &'static str,
    since: Stopwatch,
    used: Duration,
}

impl CpuMeter {
    /// Starts on the calling thread.
    pub(super) fn start(shard: String, thread: &'static str) -> Self {
        Self {
            shard,
            thread,
            since: Stopwatch::start(),
            used: thread_cpu_time(),
        }
    }

    /// Reports about once a second; true if it did.
    pub(super) fn tick(&mut self) -> bool {
        let elapsed = self.since.elapsed();
        if elapsed < Duration::from_secs(1) {
            return false;
        }
        let used = thread_cpu_time();
        let share = used.saturating_sub(self.used).as_secs_f64() / elapsed.as_secs_f64();
        gauge!(names::SHARD_CPU, "shard" => self.shard.clone(), "thread" => self.thread).set(share);
        self.used = used;
        self.since = Stopwatch::start();
        true
    }
}

fn thread_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}
