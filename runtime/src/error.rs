//! What a caller should do about an error, and how a chain of causes is printed once.

use std::{error::Error, fmt};

/// What the caller should do. Retry loops and gRPC codes read this, never the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Wait, then make the same call.
    Retry,
    /// Fix the input.
    Caller,
    /// It is shut down or poisoned; no call will do.
    Closed,
    /// Stored bytes are wrong.
    Corrupt,
    /// Ours.
    Bug,
}

/// Prints an error with its causes: `a: b: c`. For the one place that handles it.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

/// See [`chain`].
pub struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::chain;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open segment")]
    struct Open(#[source] io::Error);

    #[test]
    fn a_chain_names_every_cause_once() {
        let error = Open(io::Error::other("disk is gone"));
        assert_eq!(
            chain(&error).to_string(),
            "cannot open segment: disk is gone"
        );
    }
}
