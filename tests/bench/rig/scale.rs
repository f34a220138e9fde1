//! `scale`: a million vectors on four shards in this process, beside the first tenth of them.
//!
//! Records come from a log in memory that never holds more than a few thousand; what making them
//! costs is taken off. Ingest is looked at when a tenth of the rows is in the graphs, and when all
//! are. Memory and recall are those of the shards at rest; memory also of a fresh process that
//! opens them.

use anyhow::{Context as _, ensure};
use rustix::time::ClockId;
use serde_json::{Value, json};
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::v1;

use crate::{
    arguments::Arguments,
    embeddings::{Embeddings, K, partitioned},
    engine::{self, Log, Running},
    figures::{Repeats, round, say},
    jitter::{Jittered, NOISE},
    opened,
    process::{Memory, Written, disk_bytes, fresh},
    timed::{ask_for, cpu_time},
    truth::TIE,
};

const ROWS: usize = 1_000_000;
const SHARDS: u32 = 4;
const QUERIES: usize = 200;
/// Records that may wait in the log.
const AHEAD: u64 = 8192;
/// Records written between two looks at how far the shards are.
const SLICE: usize = 1024;

/// The figures whose medians and spreads are told where there are several repeats; all others are
/// the last one's.
const SPREAD: [&str; 7] = [
    "/cost_ratio",
    "/cost_ratio_last_tenth",
    "/ours/recall_at_10",
    "/ours/memory/bytes_per_vector",
    "/ours/memory_of_fresh_process/bytes_per_vector",
    "/ours/disk_bytes_per_vector",
    "/ours/write_amplification",
];

/// What ingest had cost at some moment.
#[derive(Clone, Copy)]
struct Cost {
    rows: f64,
    seconds: f64,
    cpu_seconds: f64,
}

impl Cost {
    fn cpu_us(self) -> f64 {
        self.cpu_seconds / self.rows * 1e6
    }

    fn since(self, earlier: Self) -> Self {
        Self {
            rows: self.rows - earlier.rows,
            seconds: self.seconds - earlier.seconds,
            cpu_seconds: self.cpu_seconds - earlier.cpu_seconds,
        }
    }

    fn figures(self) -> Value {
        json!({
            "rows": self.rows,
            "cpu_us_per_vector": round(self.cpu_us()),
            "rows_per_second": round(self.rows / self.seconds),
        })
    }
}

/// Each repeat in a process of its own, so that none inherits another's memory.
pub(crate) fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let repeats = arguments.repeats_or(1);
    let mut figures = Value::Null;
    let mut all: [Repeats; SPREAD.len()] = Default::default();
    for _ in 0..repeats {
        figures = fresh("scale-once", arguments, &[])?;
        for (values, place) in all.iter_mut().zip(SPREAD) {
            let value = figures.pointer(place).and_then(Value::as_f64);
            values.push(value.with_context(|| format!("no {place} was measured"))?);
        }
    }
    for (values, place) in all.iter().zip(SPREAD) {
        if let Some(value) = figures.pointer_mut(place) {
            *value = json!(round(values.median()));
        }
    }
    let spreads = SPREAD.iter().zip(&all);
    let spreads = spreads.map(|(place, values)| ((*place).to_owned(), values.spread()));
    figures["spreads"] = Value::Object(spreads.collect());
    figures["ratio"] = figures.get("cost_ratio").cloned().unwrap_or_default();
    figures["repeats"] = json!(repeats);
    Ok(figures)
}

/// One repeat.
pub(crate) fn once(arguments: &Arguments) -> anyhow::Result<Value> {
    // The rows asked for are made of all the data there is, so that fewer are jittered too.
    let wanted = arguments.rows.unwrap_or(ROWS);
    let embeddings = Embeddings::load(&Arguments {
        rows: Some(wanted.div_ceil(2)).filter(|half| *half < ROWS / 10),
        ..arguments.clone()
    })?;
    let rows = wanted;
    let time = arguments.time_or(4);
    let set = Jittered {
        embeddings: &embeddings,
        rows,
    };
    let folder = engine::folder()?;
    let mut log = Log::new(partitioned("scale", SHARDS)?)?;
    let mut shards = Vec::new();
    let (memory_before, written_before) = (Memory::own()?, Written::own()?);
    for shard in 0..SHARDS {
        let home = folder.path().join(shard.to_string());
        shards.push(log.open(shard, &home, engine::settings(rows / SHARDS as usize / 2))?);
    }
    let mut feed = Feed {
        set: &set,
        watch: Stopwatch::start(),
        cpu: cpu_time(ClockId::ProcessCPUTime).as_secs_f64(),
        made: 0.0,
    };
    let mut marks = Vec::new();
    for (from, to) in [
        (0, rows / 10),
        (rows / 10, rows - rows / 10),
        (rows - rows / 10, rows),
    ] {
        feed.write(&mut log, &shards, from..to)?;
        marks.push(feed.cost(to)?);
        say(format!(
            "{to} rows: {:.0} us a vector so far",
            feed.cost(to)?.cpu_us()
        ))?;
    }
    for shard in &shards {
        log.wait_settled(shard)?;
    }
    let rested = feed.cost(rows)?;
    let served: u64 = shards.iter().map(|shard| shard.shared.live_points()).sum();
    ensure!(
        served == rows as u64,
        "the shards serve {served} points of {rows}"
    );
    let written = Written::own()?;
    let segments: Vec<String> = shards.iter().map(Running::segments).collect();

    let queries = embeddings
        .queries
        .get(..QUERIES)
        .unwrap_or(&embeddings.queries);
    let beam = usize::from(log.collection.index.ef_search);
    let farthest = set.farthest(queries)?;
    let recall = recall(&set, &shards, queries, &farthest, beam)?;
    let asked = ask_for(time, 2, &embeddings.queries, &|query| {
        search(&shards, query, beam)?;
        Ok(())
    })?;
    let memory = Memory::own()? - memory_before;
    let disk = disk_bytes(folder.path())?;
    let homes: Vec<_> = shards.iter().map(|shard| shard.folder.clone()).collect();
    shards.into_iter().try_for_each(Running::close)?;
    let homes: Vec<_> = homes.iter().map(std::path::PathBuf::as_path).collect();
    let again = opened::in_fresh_process(arguments, "scale", &homes)?;
    ensure!(
        again.points == served,
        "opened again, the shards serve {} points of {served}",
        again.points
    );

    let [tenth, before_last, all] = marks.as_slice() else {
        anyhow::bail!("three moments are looked at");
    };
    let last_tenth = all.since(*before_last);
    let count = rows as f64;
    let (cost_ratio, last_ratio) = (
        all.cpu_us() / tenth.cpu_us(),
        last_tenth.cpu_us() / tenth.cpu_us(),
    );
    let records = log.record_bytes as f64;
    let to_disk = (written.disk - written_before.disk) / records;
    let by_calls = (written.calls - written_before.calls) / records;
    say(format!(
        "\n{rows} rows on {SHARDS} shards: {}",
        segments.join("; ")
    ))?;
    say(format!(
        "  ingest, processor time a vector: {:.0} us at {:.0} rows, {:.0} us at {:.0} (x {cost_ratio:.2}, less is better); \
         the last tenth {:.0} us (x {last_ratio:.2}); with sealing {:.0} us",
        tenth.cpu_us(),
        tenth.rows,
        all.cpu_us(),
        all.rows,
        last_tenth.cpu_us(),
        rested.cpu_us(),
    ))?;
    say(format!(
        "  recall@{K} at ef {beam} {recall:.4}; {:.0} searches/s of all shards, two threads, {:.0} us of processor each",
        asked.per_second(),
        asked.cpu_us()
    ))?;
    say(format!(
        "  memory a vector: {:.0} bytes ({:.0} anonymous, {:.0} files); opened by a fresh process {:.0} ({:.0}, {:.0})",
        memory.sum() / count,
        memory.anon / count,
        memory.file / count,
        again.grown.sum() / count,
        again.grown.anon / count,
        again.grown.file / count,
    ))?;
    say(format!(
        "  disk a vector {:.0} bytes, {:.0} of it its record; written to disk x {to_disk:.2} of the records, by write calls x {by_calls:.2}",
        disk / count,
        records / count
    ))?;
    Ok(json!({
        "name": "scale",
        "ours": {
            "ingest": all.figures(),
            "ingest_last_tenth": last_tenth.figures(),
            "ingest_with_sealing": rested.figures(),
            "recall_at_10": round(recall),
            "queries_per_second": round(asked.per_second()),
            "cpu_us_per_query": round(asked.cpu_us()),
            "memory": memory.per_vector(count),
            "memory_of_fresh_process": again.grown.per_vector(count),
            "disk_bytes_per_vector": round(disk / count),
            "record_bytes_per_vector": round(records / count),
            "write_amplification": round(to_disk),
            "write_amplification_by_calls": round(by_calls),
        },
        "reference": { "what": "the first tenth of the same rows", "ingest": tenth.figures() },
        "cost_ratio": round(cost_ratio),
        "cost_ratio_last_tenth": round(last_ratio),
        "settings": {
            "rows": rows,
            "rows_of_data": embeddings.points.len(),
            "noise": NOISE,
            "shards": SHARDS,
            "queries": queries.len(),
            "ef_search": beam,
            "segments": segments,
        },
    }))
}

/// Writes rows as fast as the shards take them.
struct Feed<'a> {
    set: &'a Jittered<'a>,
    watch: Stopwatch,
    cpu: f64,
    /// Processor seconds of making and writing the records.
    made: f64,
}

impl Feed<'_> {
    /// Until the rows are in the graphs.
    fn write(
        &mut self,
        log: &mut Log,
        shards: &[Running],
        rows: std::ops::Range<usize>,
    ) -> anyhow::Result<()> {
        let mut scratch = Vec::new();
        let end = rows.end;
        for from in rows.step_by(SLICE) {
            let cpu = cpu_time(ClockId::ThreadCPUTime);
            for row in from..end.min(from + SLICE) {
                let point = self.set.publishable(row, &mut scratch)?;
                let id = row.to_string();
                let shard = log.shard_of(&id)?;
                log.upsert(shard, &id, &point)?;
            }
            self.made += cpu_time(ClockId::ThreadCPUTime)
                .saturating_sub(cpu)
                .as_secs_f64();
            for (number, shard) in (0..).zip(shards) {
                log.wait_near(shard, AHEAD / u64::from(SHARDS))?;
                log.trim(number, shard.next());
            }
        }
        for (number, shard) in (0..).zip(shards) {
            log.wait_folded(shard)?;
            log.trim(number, shard.next());
        }
        Ok(())
    }

    fn cost(&self, rows: usize) -> anyhow::Result<Cost> {
        let cpu = cpu_time(ClockId::ProcessCPUTime).as_secs_f64();
        Ok(Cost {
            rows: rows as f64,
            seconds: self.watch.seconds(),
            cpu_seconds: cpu - self.cpu - self.made,
        })
    }
}

/// The nearest of all shards.
fn search(shards: &[Running], query: &[f32], beam: usize) -> anyhow::Result<Vec<v1::Hit>> {
    let mut all = Vec::new();
    for shard in shards {
        all.extend(shard.search(query, K, beam)?);
    }
    all.sort_by(|a, b| a.distance.total_cmp(&b.distance));
    all.truncate(K);
    Ok(all)
}

fn recall(
    set: &Jittered<'_>,
    shards: &[Running],
    queries: &[Vec<f32>],
    farthest: &[f32],
    beam: usize,
) -> anyhow::Result<f64> {
    let mut vector = Vec::new();
    let mut found = 0usize;
    for (query, farthest) in queries.iter().zip(farthest) {
        for hit in search(shards, query, beam)? {
            set.vector(hit.id.parse()?, &mut vector);
            let distance = f64::from(Jittered::distance(query, &vector));
            found += usize::from(distance <= f64::from(*farthest) + TIE);
        }
    }
    Ok(found as f64 / (queries.len() * K) as f64)
}
