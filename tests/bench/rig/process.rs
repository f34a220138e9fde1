//! What the kernel knows of a process: memory, bytes written; and the rig started again by itself.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    ops::Sub,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    arguments::Arguments,
    figures::{round, say},
};

/// Resident memory, bytes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// The process's own.
    pub(crate) anon: f64,
    /// Mapped files, the program itself among them.
    pub(crate) file: f64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> anyhow::Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Ok(Self {
            anon: field(&status, "RssAnon:")? * 1024.0,
            file: field(&status, "RssFile:")? * 1024.0,
        })
    }

    pub(crate) fn own() -> anyhow::Result<Self> {
        Self::of(std::process::id())
    }

    pub(crate) fn sum(self) -> f64 {
        self.anon + self.file
    }

    /// Both parts a vector, bytes.
    pub(crate) fn per_vector(self, rows: f64) -> Value {
        json!({
            "bytes_per_vector": round(self.sum() / rows),
            "anon_per_vector": round(self.anon / rows),
            "file_per_vector": round(self.file / rows),
        })
    }
}

impl Sub for Memory {
    type Output = Self;

    /// What came on top of an earlier moment.
    fn sub(self, before: Self) -> Self {
        Self {
            anon: self.anon - before.anon,
            file: self.file - before.file,
        }
    }
}

/// Bytes this process has written so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    /// Handed to the kernel by write calls; what is written through a map is not in it.
    pub(crate) calls: f64,
    /// Sent towards a disk.
    pub(crate) disk: f64,
}

impl Written {
    pub(crate) fn own() -> anyhow::Result<Self> {
        let io = fs::read_to_string("/proc/self/io")?;
        Ok(Self {
            calls: field(&io, "wchar:")?,
            disk: field(&io, "write_bytes:")?,
        })
    }
}

fn field(text: &str, name: &str) -> anyhow::Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|line| line.split_whitespace().next());
    let word = word.with_context(|| format!("the kernel tells no {name}"))?;
    Ok(word.parse()?)
}

/// Bytes that a folder takes on disk.
pub(crate) fn disk_bytes(folder: &Path) -> anyhow::Result<f64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0.0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += match metadata.is_dir() {
            true => disk_bytes(&entry.path())?,
            false => metadata.blocks() as f64 * 512.0,
        };
    }
    Ok(bytes)
}

/// Runs one of the rig's own parts in a fresh process, shows what it says, and returns the JSON
/// object it ends in.
pub(crate) fn fresh(name: &str, arguments: &Arguments, folders: &[&Path]) -> anyhow::Result<Value> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    command.arg(std::env::current_exe()?).arg(name);
    command.arg("--shoal").arg(&arguments.shoal);
    command.arg("--data").arg(&arguments.data);
    if let Some(rows) = arguments.rows {
        command.args(["--rows", &rows.to_string()]);
    }
    if let Some(seconds) = arguments.seconds {
        command.args(["--seconds", &seconds.to_string()]);
    }
    for folder in folders {
        command.arg("--folder").arg(folder);
    }
    let mut process = command.stdout(Stdio::piped()).spawn()?;
    let out = process.stdout.take().context("its output is ours")?;
    let mut last = String::new();
    for line in BufReader::new(out).lines() {
        let line = line?;
        if !line.starts_with('{') {
            say(&line)?;
        }
        last = line;
    }
    let ended = process.wait()?;
    ensure!(ended.success(), "{name} ended with {ended}");
    Ok(serde_json::from_str(&last)?)
}
