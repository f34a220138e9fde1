//! Points where a test may have the process die, as `kill -9` would.
//!
//! `SHOAL_CRASH_POINT=wal_written:3` ends the process the third time it passes `wal_written`.
//! Armed in builds with debug assertions only: in a release build every point is nothing.

use std::{
    process,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

/// The environment variable that arms one point.
pub const VARIABLE: &str = "SHOAL_CRASH_POINT";

struct Armed {
    point: String,
    passes_left: AtomicU64,
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED
        .get_or_init(|| {
            let text = std::env::var(VARIABLE).ok()?;
            let (point, passes) = text.split_once(':').unwrap_or((&text, "1"));
            Some(Armed {
                point: point.to_owned(),
                passes_left: AtomicU64::new(passes.parse().ok()?),
            })
        })
        .as_ref()
}

/// Dies here, at once and without any clean-up, if a test armed this point.
pub fn point(name: &str) {
    if !cfg!(debug_assertions) {
        return;
    }
    let Some(armed) = armed() else { return };
    if armed.point == name && armed.passes_left.fetch_sub(1, Ordering::SeqCst) == 1 {
        // SIGKILL to ourselves: no destructor, no flush, no exit handler runs.
        let own = rustix::process::getpid();
        if rustix::process::kill_process(own, rustix::process::Signal::KILL).is_err() {
            process::abort();
        }
        loop {
            std::hint::spin_loop();
        }
    }
}
