//! One etcd of a test, with a folder of its own, on loopback.

use std::{
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use shoal_runtime::eventually;

use super::{DEADLINE, child, client, place};

/// A real etcd that may be down.
pub(crate) struct Etcd {
    folder: PathBuf,
    port: u16,
    peer: u16,
    running: Option<Child>,
}

impl Etcd {
    /// One that runs.
    #[track_caller]
    pub(crate) fn start(folder: PathBuf) -> Self {
        std::fs::create_dir_all(&folder).unwrap();
        let mut etcd = Self {
            folder,
            port: place::free().port(),
            peer: place::free().port(),
            running: None,
        };
        etcd.again();
        etcd
    }

    /// Where clients find it.
    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut child = self.running.take().expect("etcd runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts it with what it held.
    #[track_caller]
    pub(crate) fn again(&mut self) {
        let home = std::env::var("SHOAL_ETCD_HOME").unwrap_or_else(|_| {
            let cache = std::env::var("SHOAL_CACHE");
            let home = || std::env::var("HOME").unwrap();
            let cache = cache.unwrap_or_else(|_| format!("{}/.cache/shoal", home()));
            format!("{cache}/etcd")
        });
        let log = File::create(self.folder.join("etcd.log")).unwrap();
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", &format!("{home}/etcd")])
            .arg("--data-dir")
            .arg(self.folder.join("data"))
            .args(["--listen-client-urls", &self.url()])
            .args(["--advertise-client-urls", &self.url()])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let started = child::spawn(command).expect("setup/etcd fetches etcd");
        self.running = Some(started);
        let at = format!("127.0.0.1:{}", self.port).parse().unwrap();
        eventually(DEADLINE, "etcd to be healthy", || {
            let child = self.running.as_mut().expect("etcd runs");
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "etcd ended with {ended:?}");
            client::try_get(at, "/health").filter(|(status, _)| *status == 200)
        });
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _gone = child.kill();
            let _reaped = child.wait();
        }
    }
}
