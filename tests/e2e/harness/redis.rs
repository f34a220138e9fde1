//! A real Redis of a test: paused, killed, and gone with it.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use shoal_runtime::eventually;

use super::{DEADLINE, place};

/// A running Redis. Dropping it kills it.
pub(crate) struct Redis {
    process: Child,
    address: SocketAddr,
}

impl Redis {
    /// Starts one that keeps everything in memory.
    #[track_caller]
    pub(crate) fn start(folder: &Path) -> Self {
        let address = place::free();
        // The kernel kills it when the thread that started it ends.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "redis-server"])
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--port", &address.port().to_string()])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("setpriv and redis-server are installed: setup/packages");
        eventually(DEADLINE, "Redis to listen", || {
            std::net::TcpStream::connect(address).ok()
        });
        Self { process, address }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Stops it in the middle of whatever it does; its connections stay.
    pub(crate) fn pause(&self) {
        kill_process(Pid::from_child(&self.process), Signal::STOP).unwrap();
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        kill_process(Pid::from_child(&self.process), Signal::CONT).unwrap();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _gone_already = self.process.kill();
        let _reaped = self.process.wait();
    }
}
