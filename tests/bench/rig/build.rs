//! `build`: rows a second into a graph that is searched, beside usearch and hnswlib alone.
//!
//! Ours reads a log in memory that holds every record: it decodes, writes its own log, keeps its
//! catalog and builds the graph. Its clock starts when the shard is opened with an empty folder
//! and ends when every row is in the graph; sealing comes after, once nothing new has come for a
//! while. The references add the same vectors with one thread, same M and ef_construction, their
//! room reserved first: usearch with codes of one byte, hnswlib with f32.

use rustix::time::ClockId;
use serde_json::{Value, json};
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::Collection;

use crate::{
    arguments::Arguments,
    bare_index::{self, Bare},
    embeddings::{Embeddings, K, collection},
    engine::{self, Log, Running},
    figures::{Repeats, round, say},
    lost::{self, self_lost},
    references::{References, Sweep},
    timed::cpu_time,
};

const BEAMS: [usize; 3] = [32, 64, 96];
/// About so many rows look for themselves in the references.
const SAMPLE: usize = 10_000;

#[derive(Default)]
struct Side {
    rate: Repeats,
    cpu_us: Repeats,
    recalls: [Repeats; BEAMS.len()],
    lost: Repeats,
}

impl Side {
    fn recall(&mut self, recall: impl Fn(usize) -> anyhow::Result<f64>) -> anyhow::Result<()> {
        for (found, ef) in self.recalls.iter_mut().zip(BEAMS) {
            found.push(recall(ef)?);
        }
        Ok(())
    }

    fn figures(&self) -> Value {
        let recalls = BEAMS.iter().zip(&self.recalls);
        let recalls = recalls.map(|(ef, recall)| (ef.to_string(), json!(round(recall.median()))));
        json!({
            "rows_per_second": round(self.rate.median()),
            "spread": self.rate.spread(),
            "cpu_us_per_row": round(self.cpu_us.median()),
            "recall_at_10": round(self.recalls[1].median()),
            "recall_at_10_by_ef": Value::Object(recalls.collect()),
            "self_lost": self.lost.median(),
        })
    }

    fn say(&self, name: &str) -> anyhow::Result<()> {
        let recalls = self
            .recalls
            .iter()
            .map(|recall| format!("{:.4}", recall.median()));
        say(format!(
            "  {name:30} {}  processor {}  recall@{K} at ef {BEAMS:?}: {}  do not find themselves: {}",
            self.rate.text(""),
            self.cpu_us.text("us a row"),
            recalls.collect::<Vec<_>>().join(" "),
            self.lost.text(""),
        ))
    }
}

pub(crate) fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Embeddings::load(arguments)?;
    let repeats = arguments.repeats_or(3);
    let rows = embeddings.points.len();
    let collection = collection_of(arguments)?;
    let parameters = collection.index;
    let mut references = References::start(arguments, rows)?;
    let (mut ours, mut usearch, mut hnswlib) = (Side::default(), Side::default(), Side::default());
    let (mut sealed, mut sample_lost) = (Repeats::default(), Repeats::default());
    let every = rows.div_ceil(SAMPLE).max(1);
    let vectors: Vec<&[f32]> = embeddings.vectors().collect();
    let named = embeddings.points.iter().zip(&vectors);
    let points: Vec<(&str, &[f32])> = named
        .map(|((id, _), vector)| (id.as_str(), *vector))
        .collect();
    let sample: Vec<_> = points.iter().copied().step_by(every).collect();
    for repeat in 0..repeats {
        let folder = engine::folder()?;
        let (running, seconds) = ours_once(
            &embeddings,
            &collection,
            folder.path(),
            &mut ours,
            &mut sealed,
        )?;
        ours.recall(|ef| {
            mean(&embeddings, |number, query| {
                Ok(embeddings.recall(number, &running.search(query, K, ef)?))
            })
        })?;
        ours.lost.push(self_lost(&running, &points)? as f64);
        sample_lost.push(self_lost(&running, &sample)? as f64);
        running.close()?;

        let cpu = cpu_time(ClockId::ProcessCPUTime);
        let (bare, bare_seconds) = bare_index::build(&vectors, parameters)?;
        let cpu = cpu_time(ClockId::ProcessCPUTime).saturating_sub(cpu);
        usearch.rate.push(rows as f64 / bare_seconds);
        usearch.cpu_us.push(cpu.as_secs_f64() / rows as f64 * 1e6);
        usearch.recall(|ef| {
            mean(&embeddings, |number, query| {
                let found = bare.search(query, K, ef)?;
                Ok(embeddings.recall_of_rows(number, &found))
            })
        })?;
        usearch
            .lost
            .push(bare_lost(&embeddings, &bare, &vectors, every)?);
        drop(bare);

        let took = references.build("hnswlib", parameters, 1)?;
        hnswlib.rate.push(rows as f64 / took.seconds);
        hnswlib.cpu_us.push(took.cpu_seconds / rows as f64 * 1e6);
        hnswlib_once(&embeddings, &mut references, &mut hnswlib, every)?;
        say(format!(
            "repeat {repeat}: Shoal {:.0} rows/s, usearch {:.0}, hnswlib {:.0}",
            rows as f64 / seconds,
            rows as f64 / bare_seconds,
            rows as f64 / took.seconds
        ))?;
    }
    let to_usearch = ours.rate.median() / usearch.rate.median();
    let to_hnswlib = ours.rate.median() / hnswlib.rate.median();
    say(format!(
        "\nrows/s into a graph, more is better; median (lowest - highest) of {repeats}"
    ))?;
    ours.say("Shoal, everything included")?;
    usearch.say("usearch alone, one thread")?;
    hnswlib.say("hnswlib f32 alone, one thread")?;
    say(format!(
        "  x {to_usearch:.3} of usearch, x {to_hnswlib:.3} of hnswlib; sealed after {}; the \
         references' rows that do not find themselves are of {} sampled, ours of all {rows} \
         (of the same sample: {})",
        sealed.text("s"),
        sample.len(),
        sample_lost.median()
    ))?;
    let mut figures = ours.figures();
    figures["sealed_seconds"] = json!(round(sealed.median()));
    figures["self_lost_of_sample"] = json!(sample_lost.median());
    Ok(json!({
        "name": "build",
        "ours": figures,
        "reference": { "usearch": usearch.figures(), "hnswlib": hnswlib.figures() },
        "ratio": round(to_usearch.min(to_hnswlib)),
        "ratio_to_usearch": round(to_usearch),
        "ratio_to_hnswlib": round(to_hnswlib),
        "self_lost": ours.lost.median(),
        "settings": {
            "rows": rows,
            "sample": sample.len(),
            "m": parameters.m,
            "ef_construction": parameters.ef_construction,
            "quantization": format!("{:?}", parameters.quantization),
            "hnswlib_quantization": "F32",
            "self_lost_ef": lost::EF,
            "builder_threads": 1,
            "versions": references.versions,
        },
        "repeats": repeats,
    }))
}

fn collection_of(arguments: &Arguments) -> anyhow::Result<Collection> {
    let mut collection = collection("build")?;
    if arguments.quantization.is_some() {
        collection.index.quantization = arguments.quantization;
    }
    Ok(collection)
}

fn ours_once(
    embeddings: &Embeddings,
    collection: &Collection,
    folder: &std::path::Path,
    side: &mut Side,
    sealed: &mut Repeats,
) -> anyhow::Result<(Running, f64)> {
    let rows = embeddings.points.len();
    let mut log = Log::new(collection.clone())?;
    for (id, point) in &embeddings.points {
        log.upsert(0, id.as_str(), point)?;
    }
    let (watch, cpu) = (Stopwatch::start(), cpu_time(ClockId::ProcessCPUTime));
    let running = log.open(0, &folder.join("shard"), engine::settings(rows))?;
    log.wait_folded(&running)?;
    let seconds = watch.seconds();
    let cpu = cpu_time(ClockId::ProcessCPUTime).saturating_sub(cpu);
    side.rate.push(rows as f64 / seconds);
    side.cpu_us.push(cpu.as_secs_f64() / rows as f64 * 1e6);
    log.wait_settled(&running)?;
    running.serves(rows)?;
    sealed.push(watch.seconds());
    Ok((running, seconds))
}

/// The mean of what every query gives.
fn mean(
    embeddings: &Embeddings,
    recall: impl Fn(usize, &[f32]) -> anyhow::Result<f64>,
) -> anyhow::Result<f64> {
    let numbered = embeddings.queries.iter().enumerate();
    let recalls = numbered.map(|(number, query)| recall(number, query));
    let sum: f64 = recalls.sum::<anyhow::Result<f64>>()?;
    Ok(sum / embeddings.queries.len().max(1) as f64)
}

fn bare_lost(
    embeddings: &Embeddings,
    bare: &Bare,
    vectors: &[&[f32]],
    every: usize,
) -> anyhow::Result<f64> {
    let mut lost = 0.0;
    for (row, vector) in vectors.iter().enumerate().step_by(every) {
        let found = bare.search(vector, 1, lost::EF)?;
        let is_found = found
            .first()
            .is_some_and(|found| embeddings.is_same_place(*found, row));
        lost += f64::from(!is_found);
    }
    Ok(lost)
}

fn hnswlib_once(
    embeddings: &Embeddings,
    references: &mut References,
    side: &mut Side,
    every: usize,
) -> anyhow::Result<()> {
    for (recalls, ef) in side.recalls.iter_mut().zip(BEAMS) {
        let (_, found) = references.search(Sweep {
            library: "hnswlib",
            queries: (0, embeddings.queries.len()),
            ef,
            threads: 1,
            seconds: 0.0,
        })?;
        recalls.push(mean(embeddings, |number, _| {
            let rows = found.get(number).map(Vec::as_slice).unwrap_or_default();
            Ok(embeddings.recall_of_rows(number, rows))
        })?);
    }
    let pairs = references.themselves("hnswlib", every, lost::EF, 1)?;
    let lost = pairs
        .iter()
        .filter(|(asked, found)| !embeddings.is_same_place(*asked, *found));
    side.lost.push(lost.count() as f64);
    Ok(())
}
