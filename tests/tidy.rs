//! The rules of the source tree that neither rustc nor clippy knows, run over the tree.
//!
//! One test prints every fault as `path:line`. The rules and their own tests are in `rules`. Standard library only, so
//! `make tidy` can build this alone in a second. It does not look at data (`tests/data`, `fixtures`), at files that are
//! not text, or at hidden and built folders.

#[path = "tidy/rules.rs"]
mod rules;

use std::fs;
use std::path::{Path, PathBuf};

use rules::{Fault, LINES_LIMIT, LONG_FILES, RULES, links_lead_somewhere, metrics_are_listed};

/// Folders whose files are data: kept byte for byte.
const DATA_FOLDERS: &[&str] = &["tests/data", "fixtures"];

/// Files nobody writes by hand.
const FOREIGN_FILES: &[&str] = &["Cargo.lock", "LICENSE"];

/// The root of the repository. Asked when it runs: clones that share what was built lie in different
/// folders.
fn root() -> PathBuf {
    let root = std::env::var_os("CARGO_MANIFEST_DIR");
    PathBuf::from(root.expect("run by cargo, or by make tidy"))
}

/// Whether a path, with `/` and from the root, is source that a person wrote.
fn is_source(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is_hidden =
        name.starts_with('.') && ![".cargo", ".ci", ".gitignore", ".dockerignore"].contains(&name);
    let is_built = ["target", "__pycache__", "node_modules"].contains(&name);
    let is_data = DATA_FOLDERS
        .iter()
        .any(|folder| path == *folder || path.ends_with(&format!("/{folder}")));
    !is_hidden && !is_built && !is_data && !FOREIGN_FILES.contains(&name)
}

/// Collects the source files under `folder` as paths from `root`, in order.
fn collect(root: &Path, folder: &Path, into: &mut Vec<String>) {
    let entries = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a listed folder can be read").path())
        .collect();
    paths.sort();
    for path in paths {
        let inside = path
            .strip_prefix(root)
            .expect("the walk starts at the root");
        let name = inside.to_string_lossy().replace('\\', "/");
        if !is_source(&name) || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, into);
        } else {
            into.push(name);
        }
    }
}

/// The text of a file; `None` where it is not text.
fn text_of(path: &Path) -> Option<String> {
    let bytes =
        fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    if bytes.contains(&0) {
        return None;
    }
    String::from_utf8(bytes).ok()
}

#[test]
fn source_tree_keeps_its_rules() {
    let root = root();
    let mut paths = Vec::new();
    collect(&root, &root, &mut paths);
    assert!(
        paths.iter().any(|path| path == "src/main.rs"),
        "the walk of {} found no source",
        root.display()
    );
    let listed = fs::read_to_string(root.join("docs/metrics.md")).ok();
    let mut faults = Vec::new();
    for path in &paths {
        let Some(text) = text_of(&root.join(path)) else {
            continue;
        };
        let mut found: Vec<Fault> = RULES.iter().flat_map(|rule| rule(path, &text)).collect();
        if let (true, Some(listed)) = (path.ends_with("src/metrics.rs"), &listed) {
            found.extend(metrics_are_listed(&text, listed));
        }
        if path.ends_with(".md") {
            found.extend(links_lead_somewhere(path, &text, |target| {
                root.join(target).exists()
            }));
        }
        faults.extend(found.iter().map(|fault| format!("{path}:{fault}")));
    }
    assert!(
        faults.is_empty(),
        "{} faults in {} files:\n{}",
        faults.len(),
        paths.len(),
        faults.join("\n")
    );
}

#[test]
fn every_long_file_is_there_is_long_and_has_its_reason() {
    for (path, reason) in LONG_FILES {
        let text =
            fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert!(
            text.lines().count() > LINES_LIMIT,
            "{path} is short enough: take it off the list"
        );
        assert!(
            reason.split_whitespace().count() >= 4,
            "{path} needs its reason"
        );
    }
}

#[test]
fn data_and_built_folders_are_not_source() {
    for path in [
        "target",
        "a/__pycache__",
        "tests/data",
        "a/tests/fixtures",
        ".git",
        "Cargo.lock",
    ] {
        assert!(!is_source(path), "{path}");
    }
    for path in [
        ".ci",
        "src",
        "tests/data_tests.rs",
        ".gitignore",
        "setup/kafka",
    ] {
        assert!(is_source(path), "{path}");
    }
}
