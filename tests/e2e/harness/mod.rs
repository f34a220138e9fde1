//! What every end-to-end test stands on: a real Kafka, the real binary as child processes, clients.
//!
//! A test is plain blocking code; async clients run on one runtime. Every wait is for a state and
//! has a deadline. What a test leaves behind (logs, data) lies under the target folder until the
//! next run, and no process outlives the test binary, however that ends.

pub(crate) mod child;
pub(crate) mod client;
pub(crate) mod disk;
pub(crate) mod etcd;
pub(crate) mod folder;
pub(crate) mod kafka;
pub(crate) mod model;
pub(crate) mod place;
pub(crate) mod python;
pub(crate) mod redis;
pub(crate) mod role;
pub(crate) mod seed;
pub(crate) mod state;
pub(crate) mod steady;
pub(crate) mod topic;
pub(crate) mod workload;
pub(crate) mod world;

use std::{path::PathBuf, sync::OnceLock, time::Duration};

use tokio::runtime::{Builder, Runtime};

/// Longest wait for anything: two processors may have a whole test suite to run.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// The repository's root. Asked when it runs: clones that share what was built lie in different folders.
pub(crate) fn root() -> PathBuf {
    let root = std::env::var_os("CARGO_MANIFEST_DIR");
    PathBuf::from(root.expect("run by cargo"))
}

/// Where async clients and the library's own tasks run.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let built = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        built.expect("the system has threads for a test")
    })
}

/// Runs an async call to its end, within the deadline.
#[track_caller]
pub(crate) fn wait<T>(call: impl Future<Output = T>) -> T {
    let bounded = async { tokio::time::timeout(DEADLINE, call).await };
    runtime()
        .block_on(bounded)
        .expect("the call ends within the deadline")
}
