//! The reference libraries: hnswlib and faiss in one long-lived Python process, spoken to in lines of JSON.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use shoal_schemas::IndexParameters;

use crate::{arguments::Arguments, embeddings::K, timed::Timed};

const SCRIPT: &str = include_str!("../references.py");
/// Settings for another program's linear algebra would be measured along.
const FOREIGN_SETTINGS: [&str; 4] = [
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
];

/// The libraries, in the order they take their turns.
pub(crate) const LIBRARIES: [&str; 2] = ["hnswlib", "faiss"];

/// The process. Dropping it ends it.
pub(crate) struct References {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Of the libraries, by name.
    pub(crate) versions: Value,
}

/// A search of a library.
#[derive(Clone, Copy)]
pub(crate) struct Sweep<'a> {
    pub(crate) library: &'a str,
    /// Numbers of the queries asked, end not included.
    pub(crate) queries: (usize, usize),
    pub(crate) ef: usize,
    pub(crate) threads: usize,
    pub(crate) seconds: f64,
}

/// Seconds of wall and processor time.
#[derive(Clone, Copy)]
pub(crate) struct Took {
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

impl References {
    /// Starts it and has it read the same rows and queries.
    pub(crate) fn start(arguments: &Arguments, rows: usize) -> anyhow::Result<Self> {
        let python = arguments
            .python
            .as_ref()
            .context("--python names the interpreter that has the reference libraries")?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(python)
            .args(["-c", SCRIPT]);
        for name in FOREIGN_SETTINGS {
            command.env_remove(name);
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run setpriv (package util-linux)")?;
        let requests = process.stdin.take().context("its input is ours")?;
        let answers = process.stdout.take().context("its output is ours")?;
        let mut references = Self {
            process,
            requests,
            answers: BufReader::new(answers),
            versions: Value::Null,
        };
        let loaded =
            references.ask(&json!({ "do": "load", "data": arguments.data, "rows": rows }))?;
        ensure!(
            loaded.get("rows").and_then(Value::as_u64) == u64::try_from(rows).ok(),
            "the references read other rows"
        );
        references.versions = loaded.get("versions").cloned().unwrap_or_default();
        Ok(references)
    }

    fn ask(&mut self, request: &Value) -> anyhow::Result<Value> {
        writeln!(self.requests, "{request}")?;
        self.requests.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the references ended at {request}");
        Ok(serde_json::from_str(&line)?)
    }

    /// Builds a library's graph from all rows.
    pub(crate) fn build(
        &mut self,
        library: &str,
        parameters: IndexParameters,
        threads: usize,
    ) -> anyhow::Result<Took> {
        let answer = self.ask(&json!({
            "do": "build",
            "library": library,
            "m": parameters.m,
            "ef_construction": parameters.ef_construction,
            "threads": threads,
        }))?;
        Ok(Took {
            seconds: number(&answer, "seconds")?,
            cpu_seconds: number(&answer, "cpu_seconds")?,
        })
    }

    /// Asks the queries of a sweep for its time; also the rows found for each.
    pub(crate) fn search(&mut self, sweep: Sweep<'_>) -> anyhow::Result<(Timed, Vec<Vec<usize>>)> {
        let (first, end) = sweep.queries;
        let answer = self.ask(&json!({
            "do": "search",
            "library": sweep.library,
            "first": first,
            "end": end,
            "k": K,
            "ef": sweep.ef,
            "threads": sweep.threads,
            "seconds": sweep.seconds,
        }))?;
        let timed = Timed {
            queries: number(&answer, "queries")?,
            seconds: number(&answer, "seconds")?,
            cpu_seconds: number(&answer, "cpu_seconds")?,
        };
        let rows = answer.get("rows").cloned().context("no rows")?;
        Ok((timed, serde_json::from_value(rows)?))
    }

    /// Pairs of every so many rows and the row a library says is nearest to it.
    pub(crate) fn themselves(
        &mut self,
        library: &str,
        every: usize,
        ef: usize,
        threads: usize,
    ) -> anyhow::Result<Vec<(usize, usize)>> {
        let answer = self.ask(&json!({
            "do": "themselves", "library": library, "every": every, "ef": ef, "threads": threads,
        }))?;
        let list = |name: &str| -> anyhow::Result<Vec<usize>> {
            let rows = answer.get(name).cloned().context("no rows")?;
            Ok(serde_json::from_value(rows)?)
        };
        Ok(list("asked")?.into_iter().zip(list("found")?).collect())
    }
}

impl Drop for References {
    fn drop(&mut self) {
        let _gone_already = self.process.kill();
        let _reaped = self.process.wait();
    }
}

fn number(answer: &Value, name: &str) -> anyhow::Result<f64> {
    let value = answer.get(name).and_then(Value::as_f64);
    value.with_context(|| format!("the references' answer has no {name}"))
}
