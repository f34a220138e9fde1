//! The guided tour (being assembled).

use std::path::PathBuf;

use crate::config::Loaded;

/// How the tour goes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Folder with the embeddings.
    pub data: PathBuf,
    /// Whether it stays up at the end.
    pub stay: bool,
    /// Whether only the last line is told.
    pub silent: bool,
}

/// Runs the tour.
///
/// # Errors
/// The first part that failed.
pub async fn run(loaded: Loaded, plan: &Plan) -> anyhow::Result<()> {
    let _ = (loaded, plan);
    anyhow::bail!("not assembled yet")
}
