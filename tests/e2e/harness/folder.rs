//! Folders of this run: one a cluster, kept until the next run so that a failure can be looked at.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::Once,
};

/// Makes an empty folder for `name`; folders of runs that have ended are removed first.
pub(crate) fn fresh(name: &str) -> PathBuf {
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e");
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| sweep(&all));
    let folder = all.join(process::id().to_string()).join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn sweep(all: &Path) {
    let Ok(runs) = fs::read_dir(all) else { return };
    for run in runs.flatten() {
        let pid = run.file_name();
        if !Path::new("/proc").join(&pid).exists() {
            // Somebody else's sweep may be faster.
            let _gone = fs::remove_dir_all(run.path());
        }
    }
}
