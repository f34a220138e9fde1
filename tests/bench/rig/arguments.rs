//! What a measurement is told: which figure, on which data, how long, how often.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, bail};
use shoal_schemas::Quantization;

/// The command line, `NAME --option value ...`.
#[derive(Clone, Debug)]
pub(crate) struct Arguments {
    /// The figure.
    pub(crate) name: String,
    /// The `shoal` binary.
    pub(crate) shoal: PathBuf,
    /// Folder with the embeddings.
    pub(crate) data: PathBuf,
    /// Take only so many rows.
    pub(crate) rows: Option<usize>,
    /// How often each side is measured.
    pub(crate) repeats: Option<usize>,
    /// How long one timed part runs.
    pub(crate) seconds: Option<u64>,
    /// How graphs keep vectors, where that is not left to the default (`build`).
    pub(crate) quantization: Option<Quantization>,
    /// The one way in which the live set is to turn over (`churn`).
    pub(crate) pattern: Option<String>,
    /// The Python interpreter that has the reference libraries.
    pub(crate) python: Option<PathBuf>,
    /// What a process that the rig starts of itself works on.
    pub(crate) folders: Vec<PathBuf>,
}

impl Arguments {
    pub(crate) fn parse() -> anyhow::Result<Self> {
        // `cargo bench` adds a flag of its own.
        let mut given = std::env::args().skip(1).filter(|word| word != "--bench");
        let name = given
            .next()
            .context("the first argument is the figure's name")?;
        let (mut shoal, mut data) = (None, None);
        let (mut rows, mut repeats, mut seconds) = (None, None, None);
        let (mut python, mut folders) = (None, Vec::new());
        let (mut quantization, mut pattern) = (None, None);
        while let Some(option) = given.next() {
            let value = given
                .next()
                .with_context(|| format!("{option} needs a value"))?;
            match option.as_str() {
                "--shoal" => shoal = Some(value.into()),
                "--data" => data = Some(value.into()),
                "--rows" => rows = Some(value.parse()?),
                "--repeats" => repeats = Some(value.parse()?),
                "--seconds" => seconds = Some(value.parse()?),
                "--quantization" => quantization = Some(serde_json::from_value(value.into())?),
                "--pattern" => pattern = Some(value),
                "--python" => python = Some(value.into()),
                "--folder" => folders.push(value.into()),
                _ => bail!("unknown option {option}"),
            }
        }
        Ok(Self {
            name,
            shoal: shoal.context("--shoal names the binary to measure")?,
            data: data.context("--data names the folder with the embeddings")?,
            rows,
            repeats,
            seconds,
            quantization,
            pattern,
            python,
            folders,
        })
    }

    pub(crate) fn repeats_or(&self, usual: usize) -> usize {
        self.repeats.unwrap_or(usual).max(1)
    }

    pub(crate) fn time_or(&self, usual_seconds: u64) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(usual_seconds).max(1))
    }
}
