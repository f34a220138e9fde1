//! Files of checkpoints that nothing names any more, or not yet.
//!
//! A checkpoint's number is in the name of every file it writes, so what one that failed has left is known by name, and
//! what an earlier one had is whatever the newest manifest does not name.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    segment::{SegmentId, files::io_error, seal},
    shard::{
        Shared,
        checkpoint::{CheckpointError, Job, Kept, Manifest, manifests},
        make_folder,
    },
};

/// Removes manifests and segment files that the newest manifest does not name.
pub(super) fn remove_left_over(
    shared: &Shared,
    manifest: &Manifest,
) -> Result<(), CheckpointError> {
    let folder = shared.spec.checkpoint_folder();
    let own = Manifest::path(&folder, manifest.number);
    for path in manifests(&folder)?.into_iter().filter(|path| *path != own) {
        fs::remove_file(&path).map_err(io_error(&path))?;
    }
    let (mut growing, mut sealed) = (HashSet::new(), HashSet::new());
    for files in &manifest.segments {
        let id = SegmentId(files.id);
        match &files.kept {
            Kept::Growing {
                graph_file,
                rows_file,
                ..
            } => {
                let folder = shared.spec.growing_folder(id);
                let marks = graph_file.iter().chain([rows_file]);
                let marks = marks.chain(&files.riders_file);
                growing.extend(marks.map(|mark| folder.join(&mark.name)));
            }
            Kept::Sealed { mask_file, .. } => {
                let folder = shared.spec.segment_folder(id);
                let more = mask_file.iter().chain(&files.riders_file);
                let more = more.map(|mark| mark.name.as_str());
                let names = seal::FILES.into_iter().chain(more);
                sealed.extend(names.map(|name| folder.join(name)));
            }
        }
    }
    remove_unnamed(&shared.spec.growing_root(), &growing)?;
    remove_unnamed(&shared.spec.segments_root(), &sealed)
}

/// Removes what a checkpoint that failed has written. Its number is in all the names.
pub(super) fn remove_files_of(shared: &Shared, job: &Job) {
    let number = job.number;
    let mut paths = vec![Manifest::temporary(
        &shared.spec.checkpoint_folder(),
        number,
    )];
    for (segment, ..) in &job.segments {
        let growing = shared.spec.growing_folder(segment.id);
        paths.push(growing.join(graph_name(number)));
        paths.push(growing.join(rows_name(number)));
        let sealed = shared.spec.segment_folder(segment.id);
        paths.push(sealed.join(mask_name(number)));
        paths.push(growing.join(riders_name(number)));
        paths.push(sealed.join(riders_name(number)));
    }
    for path in paths {
        // Most of them were never made. One that stays goes with the next checkpoint that succeeds.
        drop(fs::remove_file(path));
    }
}

/// The name of a stored graph.
pub(super) fn graph_name(number: u64) -> String {
    format!("graph-{number}.bin")
}

/// The name of a growing segment's rows.
pub(super) fn rows_name(number: u64) -> String {
    format!("rows-{number}.bin")
}

/// The name of the file that says which rows have ended.
pub(super) fn mask_name(number: u64) -> String {
    format!("mask-{number}.bin")
}

/// The name of the file that says which rows ride.
pub(super) fn riders_name(number: u64) -> String {
    format!("riders-{number}.bin")
}

/// Removes the files of the folders in `root` that are not named, and folders left empty.
fn remove_unnamed(root: &Path, named: &HashSet<PathBuf>) -> Result<(), CheckpointError> {
    make_folder(root)?;
    for entry in fs::read_dir(root).map_err(io_error(root))? {
        let folder = entry.map_err(io_error(root))?.path();
        let mut kept = 0usize;
        for entry in fs::read_dir(&folder).map_err(io_error(&folder))? {
            let path = entry.map_err(io_error(&folder))?.path();
            if named.contains(&path) {
                kept += 1;
            } else {
                fs::remove_file(&path).map_err(io_error(&path))?;
            }
        }
        if kept == 0 {
            fs::remove_dir(&folder).map_err(io_error(&folder))?;
        }
    }
    Ok(())
}
