//! What a person watching sees, on standard error.

use std::io::{self, IsTerminal, Write};

/// Tells, or is silent.
pub(super) struct Voice {
    silent: bool,
    terminal: bool,
}

impl Voice {
    pub(super) fn new(silent: bool) -> Self {
        Self {
            silent,
            terminal: io::stderr().is_terminal(),
        }
    }

    /// Whether lines may be drawn over.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal && !self.silent
    }

    /// A line that stays. Standard error may be closed, which is no reason to stop.
    pub(super) fn say(&self, line: &str) {
        if !self.silent {
            let _closed = writeln!(io::stderr(), "{line}");
        }
    }

    /// A line that the next one takes the place of; elsewhere than on a terminal a plain line.
    pub(super) fn draw(&self, line: &str) {
        if self.is_terminal() {
            let mut err = io::stderr().lock();
            let _closed = write!(err, "\r{line}\x1b[K").and_then(|()| err.flush());
        } else {
            self.say(line);
        }
    }

    /// Ends a line that was drawn.
    pub(super) fn settle(&self) {
        if self.is_terminal() {
            self.say("");
        }
    }
}
