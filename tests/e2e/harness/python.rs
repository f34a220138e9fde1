//! Python programs of `tests/clients`: what only a foreign client can do, or should.

use std::process::{Command, Output};

use super::root;

/// The Python that has the tests' packages.
pub(crate) fn interpreter() -> String {
    std::env::var("SHOAL_PYTHON").unwrap_or_else(|_| {
        let cache = std::env::var("SHOAL_CACHE");
        let cache =
            cache.unwrap_or_else(|_| format!("{}/.cache/shoal", std::env::var("HOME").unwrap()));
        format!("{cache}/venv/bin/python3")
    })
}

/// A program of `tests/clients`, still without arguments.
pub(crate) fn client(name: &str) -> Command {
    let mut command = Command::new(interpreter());
    command.arg(root().join("tests/clients").join(name));
    command
}

/// Runs it to its end, which has to be a good one.
#[track_caller]
pub(crate) fn succeed(mut command: Command) -> Output {
    let output = command
        .output()
        .expect("make setup installs the Python clients");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
