//! A small disk of a test: memory, mounted where only the roles that are told so see it.
//!
//! The mount lies in a namespace of its own, which a sleeping process keeps. Both end with the
//! test, however that ends, and nothing of it shows on the machine.

use std::{
    env,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
};

/// A mounted file system that may be filled.
pub(crate) struct Disk {
    keeper: Child,
    /// Closing it ends the keeper.
    _leash: ChildStdin,
    folder: PathBuf,
}

impl Disk {
    /// Mounts an empty disk of so many MiB at `folder`, which is made.
    ///
    /// `None` where this machine does not let us mount anything, and whoever runs the tests has said that
    /// they may do without: the test has shown nothing then.
    pub(crate) fn mount(folder: &Path, mebibytes: u64) -> Option<Self> {
        fs::create_dir_all(folder).unwrap();
        let script = format!(
            "mount -t tmpfs -o size={mebibytes}m,mode=700 tmpfs \"$1\" && echo mounted && exec cat"
        );
        let mut keeper = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .arg("sh")
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("setup/packages installs util-linux");
        let leash = keeper.stdin.take().unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(keeper.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        if line.trim() == "mounted" {
            return Some(Self {
                keeper,
                _leash: leash,
                folder: folder.to_owned(),
            });
        }
        drop(leash);
        let told = keeper.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&told.stderr);
        assert!(
            env::var_os("SHOAL_TEST_WITHOUT_MOUNTS").is_some(),
            "this machine lets no test mount a disk: {told}\n\
             run it as root, or set SHOAL_TEST_WITHOUT_MOUNTS=1 to go without the tests of a full disk"
        );
        None
    }

    /// What a command is started through so that it sees the disk.
    pub(crate) fn entrance(&self) -> Vec<String> {
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.keeper.id());
        vec!["nsenter".to_owned(), namespace, "--".to_owned()]
    }

    /// Makes it larger, or smaller, under whoever uses it.
    pub(crate) fn resize(&self, mebibytes: u64) {
        let entrance = self.entrance();
        let status = Command::new(&entrance[0])
            .args(&entrance[1..])
            .args(["mount", "-o", &format!("remount,size={mebibytes}m")])
            .arg(&self.folder)
            .status();
        assert!(status.unwrap().success());
    }

    /// Fills it up until only so many bytes are free, on top of what an earlier call has put there.
    pub(crate) fn fill_up(&self, left_bytes: u64) {
        let folder = self.seen_from_outside();
        let ballast = folder.join("ballast");
        let mut options = File::options();
        let mut ballast = options.create(true).append(true).open(ballast).unwrap();
        let block = vec![0u8; 4096];
        while self.free_bytes() > left_bytes {
            ballast.write_all(&block).unwrap();
        }
    }

    /// Free bytes.
    pub(crate) fn free_bytes(&self) -> u64 {
        let disk = rustix::fs::statvfs(self.seen_from_outside()).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    /// Whether it has such a file.
    pub(crate) fn has(&self, path: &str) -> bool {
        self.seen_from_outside().join(path).exists()
    }

    fn seen_from_outside(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.keeper.id()));
        root.join(self.folder.strip_prefix("/").unwrap())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _gone = self.keeper.kill();
        let _reaped = self.keeper.wait();
    }
}
