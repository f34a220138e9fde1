//! `recovery`: an indexer is killed, started again, and the seconds until its answers are right.
//!
//! The process gets SIGKILL twice a repeat: as soon as every record is applied, when much of it
//! stands only in the shard's own log; and once everything is sealed and checkpointed. The clock
//! starts with the new process and stops when the nearest point of each of 100 queries is right,
//! as an exhaustive scan in this program knows it. The same with a half and a quarter of the rows:
//! the second figure is to stay where it is, the first to follow the tail of the log.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use shoal_runtime::{clock::Stopwatch, tasks::blocking};
use shoal_schemas::{Collection, v1};
use tokio::task::block_in_place;

use crate::{
    arguments::Arguments,
    client::{Shard, is_folded},
    embeddings::{Embeddings, K, collection},
    figures::{Repeats, round, say},
    place::Place,
    rest::at_rest,
    role::Role,
    truth::{TIE, distance, kth_distances},
};

const QUERIES: usize = 100;
/// Rows are divided by these.
const PARTS: [usize; 3] = [4, 2, 1];
const ASK_EVERY: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(600);

/// One part of the rows, and where each query's nearest one is.
struct Part<'a> {
    embeddings: &'a Embeddings,
    rows: usize,
    nearest: Vec<f64>,
}

/// When the process was killed.
#[derive(Default)]
struct Kill {
    seconds: Repeats,
    /// Until the process listened.
    listens: Repeats,
    /// As the engine itself tells it: opening and replaying.
    engine: Repeats,
    /// Frames of the own log that were replayed.
    replayed: Repeats,
}

impl Kill {
    fn figures(&self) -> Value {
        json!({
            "seconds": round(self.seconds.median()),
            "spread": self.seconds.spread(),
            "listens_seconds": round(self.listens.median()),
            "engine_seconds": round(self.engine.median()),
            "replayed_frames": self.replayed.median(),
        })
    }

    fn text(&self) -> String {
        format!(
            "{}, engine {}, frames replayed {}",
            self.seconds.text("s"),
            self.engine.text("s"),
            self.replayed.text("")
        )
    }
}

pub(crate) async fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Embeddings::load(arguments)?;
    let repeats = arguments.repeats_or(3);
    let mut parts = Vec::new();
    for divisor in PARTS {
        let rows = embeddings.points.len() / divisor;
        let vectors: Vec<&[f32]> = embeddings.vectors().take(rows).collect();
        let queries = embeddings.queries.get(..QUERIES);
        let queries = queries.context("the data set has too few queries")?;
        let nearest = block_in_place(|| kth_distances(queries, &vectors, 1))?;
        let part = Part {
            embeddings: &embeddings,
            rows,
            nearest,
        };
        parts.push((part, Kill::default(), Kill::default()));
    }
    for repeat in 0..repeats {
        for (part, applied, rested) in &mut parts {
            part.once(arguments, applied, rested).await?;
            say(format!("repeat {repeat}: {} rows done", part.rows))?;
        }
    }
    say(format!(
        "\nseconds from the start of the process to right answers, less is better; median (lowest - highest) of {repeats}"
    ))?;
    let mut figures = Vec::new();
    for (part, applied, rested) in &parts {
        say(format!(
            "  {:7} rows  killed at once: {}\n                at rest:        {}",
            part.rows,
            applied.text(),
            rested.text()
        ))?;
        figures.push(json!({
            "rows": part.rows,
            "killed_at_once": applied.figures(),
            "killed_at_rest": rested.figures(),
        }));
    }
    let (Some((_, first, rested_first)), Some((whole, last, rested))) =
        (parts.first(), parts.last())
    else {
        anyhow::bail!("nothing was measured");
    };
    let growth = last.seconds.median() / first.seconds.median();
    let rested_growth = rested.seconds.median() / rested_first.seconds.median();
    say(format!(
        "  four times the rows: at once x {growth:.2}, at rest x {rested_growth:.2}"
    ))?;
    Ok(json!({
        "name": "recovery",
        "ours": last.figures(),
        "reference": { "what": "the same with a quarter of the rows", "seconds": round(first.seconds.median()) },
        "ratio": round(growth),
        "at_rest": rested.figures(),
        "ratio_at_rest": round(rested_growth),
        "parts": figures,
        "settings": { "rows": whole.rows, "queries": QUERIES, "partitions": 1 },
        "repeats": repeats,
    }))
}

impl Part<'_> {
    async fn once(
        &self,
        arguments: &Arguments,
        applied: &mut Kill,
        rested: &mut Kill,
    ) -> anyhow::Result<()> {
        let place = Place::start().await?;
        let collection = collection("recovery")?;
        let points = self.embeddings.points.get(..self.rows);
        place.create(&collection).await?;
        place
            .publish(&collection, points.unwrap_or_default())
            .await?;
        let data = place.folder().join("indexer");
        let start =
            || block_in_place(|| Role::sealing_indexer(arguments, &place, &data, self.rows));
        let mut indexer = start()?;
        let mut shard = Shard::connect(indexer.grpc, &collection).await?;
        shard.wait(&mut indexer, self.rows, |_| true).await?;
        blocking(move || indexer.kill()).await?;
        let mut indexer = self
            .restart(arguments, &place, &collection, &data, applied)
            .await?;
        let mut shard = Shard::connect(indexer.grpc, &collection).await?;
        shard.wait(&mut indexer, self.rows, is_folded).await?;
        at_rest(&mut indexer, &data, &collection, self.rows).await?;
        blocking(move || indexer.kill()).await?;
        let indexer = self
            .restart(arguments, &place, &collection, &data, rested)
            .await?;
        blocking(move || indexer.stop()).await?;
        Ok(())
    }

    async fn restart(
        &self,
        arguments: &Arguments,
        place: &Place,
        collection: &Collection,
        data: &Path,
        kill: &mut Kill,
    ) -> anyhow::Result<Role> {
        let watch = Stopwatch::start();
        let mut indexer =
            block_in_place(|| Role::sealing_indexer(arguments, place, data, self.rows))?;
        kill.listens.push(watch.seconds());
        let mut shard = Shard::connect(indexer.grpc, collection).await?;
        let mut ticks = tokio::time::interval(ASK_EVERY);
        while !self.is_right(&mut shard).await? {
            ticks.tick().await;
            indexer.lives()?;
            ensure!(
                watch.elapsed() < PATIENCE,
                "no right answers within {PATIENCE:?}"
            );
        }
        kill.seconds.push(watch.seconds());
        let (frames, seconds) = told(&indexer.log()?)?;
        kill.replayed.push(frames);
        kill.engine.push(seconds);
        Ok(indexer)
    }

    /// Whether every query's first answer is the nearest row.
    async fn is_right(&self, shard: &mut Shard) -> anyhow::Result<bool> {
        for (query, nearest) in self.embeddings.queries.iter().zip(&self.nearest) {
            let mut is_nearest = false;
            // A walk may miss the nearest one, before as well as after; a scan does not.
            for exact in [false, true] {
                let ask = v1::Query {
                    vector: query.clone(),
                    k: K as u32,
                    exact,
                    ..v1::Query::default()
                };
                let Ok(hits) = shard.ask(ask).await? else {
                    return Ok(false);
                };
                let first = hits.first().and_then(|hit| self.embeddings.row(&hit.id));
                let first = first.and_then(|row| self.embeddings.points.get(row));
                is_nearest = first.is_some_and(|(_, point)| {
                    distance(query, point.vector.as_slice()) <= nearest + TIE
                });
                if is_nearest {
                    break;
                }
            }
            if !is_nearest {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// What the engine logged of its last recovery: frames replayed, and the seconds it took.
fn told(log: &str) -> anyhow::Result<(f64, f64)> {
    let line = log
        .lines()
        .rev()
        .find(|line| line.contains("shard recovered"));
    let line = line.context("the indexer logged no recovery")?;
    let field = |name: &str| {
        let after = line.split_once(name).map(|(_, after)| after);
        let digits = |c: char| !c.is_ascii_digit() && c != '.';
        let word = after.and_then(|after| after.split(digits).find(|word| !word.is_empty()));
        word.with_context(|| format!("no {name} in `{line}`"))
    };
    Ok((field("replayed")?.parse()?, field("seconds")?.parse()?))
}
