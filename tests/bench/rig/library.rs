//! `library`: queries a second in process at equal recall, beside hnswlib and faiss.
//!
//! Ours is a shard fed by a log in memory, searched once all its segments are sealed by what the
//! gRPC service calls. The references run in one Python process and are asked in one call for all
//! queries, with as many threads. All sides sweep their beam width. Which widths are timed is
//! chosen on the first half of the queries; recall and rates are those of the second half.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    arguments::Arguments,
    curve::{At, BEAMS, Swept, at_recall, worth_timing},
    embeddings::{Embeddings, K, collection},
    engine::{self, Log, Running},
    figures::{Repeats, round, say},
    references::{LIBRARIES, References, Sweep},
    timed::{Timed, ask_for},
};

const TARGETS: [f64; 3] = [0.95, 0.98, 0.99];
const THREADS: [usize; 2] = [2, 1];

/// Everything that answers: number 0 is ours, the others are the libraries.
struct Sides<'a> {
    embeddings: &'a Embeddings,
    ours: &'a Running,
    references: References,
    half: usize,
}

impl Sides<'_> {
    fn name(side: usize) -> &'static str {
        let library = side.checked_sub(1).and_then(|at| LIBRARIES.get(at));
        library.copied().unwrap_or("Shoal")
    }

    fn queries(&self, is_second_half: bool) -> (usize, usize) {
        match is_second_half {
            false => (0, self.half),
            true => (self.half, self.embeddings.queries.len()),
        }
    }

    /// Mean recall over one half of the queries.
    fn recall(&mut self, side: usize, is_second_half: bool, ef: usize) -> anyhow::Result<f64> {
        let (first, end) = self.queries(is_second_half);
        let recalls: Vec<f64> = if side == 0 {
            let numbered = self.embeddings.queries.iter().enumerate();
            let asked = numbered
                .skip(first)
                .take(end - first)
                .map(|(number, query)| {
                    let hits = self.ours.search(query, K, ef)?;
                    Ok(self.embeddings.recall(number, &hits))
                });
            asked.collect::<anyhow::Result<_>>()?
        } else {
            let sweep = self.sweep(side, (first, end), ef, 1, Duration::ZERO);
            let (_, found) = self.references.search(sweep)?;
            let numbered = (first..).zip(&found);
            numbered
                .map(|(number, rows)| self.embeddings.recall_of_rows(number, rows))
                .collect()
        };
        Ok(recalls.iter().sum::<f64>() / recalls.len().max(1) as f64)
    }

    fn sweep(
        &self,
        side: usize,
        queries: (usize, usize),
        ef: usize,
        threads: usize,
        time: Duration,
    ) -> Sweep<'static> {
        Sweep {
            library: Self::name(side),
            queries,
            ef,
            threads,
            seconds: time.as_secs_f64(),
        }
    }

    /// Times the second half of the queries.
    fn time(
        &mut self,
        side: usize,
        ef: usize,
        threads: usize,
        time: Duration,
    ) -> anyhow::Result<Timed> {
        let (first, end) = self.queries(true);
        if side == 0 {
            let queries = self.embeddings.queries.get(first..end).unwrap_or_default();
            return ask_for(time, threads, queries, &|query| {
                self.ours.search(query, K, ef)?;
                Ok(())
            });
        }
        let sweep = self.sweep(side, (first, end), ef, threads, time);
        Ok(self.references.search(sweep)?.0)
    }
}

pub(crate) fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Embeddings::load(arguments)?;
    let (repeats, time) = (arguments.repeats_or(5), arguments.time_or(1));
    let rows = embeddings.points.len();
    let mut references = References::start(arguments, rows)?;
    let versions = references.versions.clone();
    let mut log = Log::new(collection("library")?)?;
    let parameters = log.collection.index;
    for library in LIBRARIES {
        let took = references.build(library, parameters, 2)?;
        say(format!("{library} built in {:.1} s", took.seconds))?;
    }
    for (id, point) in &embeddings.points {
        log.upsert(0, id.as_str(), point)?;
    }
    let folder = engine::folder()?;
    let ours = log.open(0, &folder.path().join("shard"), engine::settings(rows))?;
    log.wait_settled(&ours)?;
    ours.serves(rows)?;
    let segments = ours.segments();
    say(format!("Shoal: {segments}"))?;
    let mut sides = Sides {
        half: embeddings.queries.len() / 2,
        embeddings: &embeddings,
        ours: &ours,
        references,
    };
    let numbers = 0..=LIBRARIES.len();
    let mut beams = Vec::new();
    for side in numbers.clone() {
        let recalls: anyhow::Result<Vec<f64>> = BEAMS
            .iter()
            .map(|ef| sides.recall(side, false, *ef))
            .collect();
        let chosen = worth_timing(&recalls?, TARGETS[0], TARGETS[2]);
        say(format!(
            "{:8} beams worth timing: {chosen:?}",
            Sides::name(side)
        ))?;
        beams.push(chosen);
    }
    let mut points = Vec::new();
    let mut swept = serde_json::Map::new();
    for threads in THREADS {
        let curves = sweep_all(&mut sides, &beams, threads, repeats, time)?;
        say(format!(
            "\n{threads} thread(s), queries/s at recall@{K}, more is better; medians of {repeats}"
        ))?;
        for target in TARGETS {
            let at: Vec<Option<At>> = curves
                .iter()
                .map(|curve| at_recall(curve, target))
                .collect();
            points.push(point(threads, target, &at)?);
        }
        for (side, curve) in curves.iter().enumerate() {
            let name = format!("{} {threads}", Sides::name(side));
            let each: Vec<Value> = curve.iter().map(Swept::figures).collect();
            swept.insert(name, Value::from(each));
        }
    }
    let smallest = |name: &str| {
        let ratios = points.iter().filter_map(|point| point.get(name)?.as_f64());
        let least = ratios.fold(f64::INFINITY, f64::min);
        least.is_finite().then(|| round(least))
    };
    let (ratio, cpu_ratio) = (smallest("ratio"), smallest("cpu_ratio"));
    say(format!(
        "smallest ratio to the best reference: x {}",
        ratio.unwrap_or(f64::NAN)
    ))?;
    drop(sides);
    ours.close()?;
    Ok(json!({
        "name": "library",
        "ours": best_of(&points, "ours"),
        "reference": best_of(&points, "best_reference"),
        "ratio": ratio,
        "cpu_ratio": cpu_ratio,
        "points": points,
        "swept": swept,
        "settings": {
            "rows": rows,
            "k": K,
            "m": parameters.m,
            "ef_construction": parameters.ef_construction,
            "quantization": format!("{:?}", parameters.quantization),
            "segments": segments,
            "queries": "beams chosen on the first half, reported on the second",
            "at_recall": "time a query interpolated linearly in recall between swept beams",
            "seconds": time.as_secs(),
            "versions": versions,
        },
        "repeats": repeats,
    }))
}

/// Times every chosen beam of every side, in turns.
fn sweep_all(
    sides: &mut Sides<'_>,
    beams: &[Vec<usize>],
    threads: usize,
    repeats: usize,
    time: Duration,
) -> anyhow::Result<Vec<Vec<Swept>>> {
    let mut curves = Vec::new();
    for (side, beams) in beams.iter().enumerate() {
        let curve: anyhow::Result<Vec<Swept>> = beams
            .iter()
            .map(|ef| {
                Ok(Swept {
                    ef: *ef,
                    recall: sides.recall(side, true, *ef)?,
                    rate: Repeats::default(),
                    cpu_rate: Repeats::default(),
                })
            })
            .collect();
        curves.push(curve?);
    }
    let longest = beams.iter().map(Vec::len).max().unwrap_or_default();
    for repeat in 0..repeats {
        for step in 0..longest {
            for (side, curve) in curves.iter_mut().enumerate() {
                if let Some(point) = curve.get_mut(step) {
                    let timed = sides.time(side, point.ef, threads, time)?;
                    point.rate.push(timed.per_second());
                    point.cpu_rate.push(timed.per_cpu_second());
                }
            }
        }
        say(format!("repeat {repeat}: {threads} thread(s) swept"))?;
    }
    Ok(curves)
}

/// One line of the table, and of the figures.
fn point(threads: usize, target: f64, at: &[Option<At>]) -> anyhow::Result<Value> {
    let [ours, others @ ..] = at else {
        anyhow::bail!("no side was swept");
    };
    let best = |rate: fn(&At) -> f64| {
        let rates = others.iter().flatten().map(rate);
        rates.fold(f64::NAN, f64::max)
    };
    let (reference, cpu_reference) = (best(|at| at.rate), best(|at| at.cpu_rate));
    let text = |at: &Option<At>| match at {
        None => "not reached".to_owned(),
        Some(at) => format!("{}{:.0}", if at.is_bound { ">= " } else { "" }, at.rate),
    };
    let rate = |at: &Option<At>| at.map(|at| round(at.rate));
    let ratio = ours.map(|ours| ours.rate / reference);
    let names = (1..).map(Sides::name).zip(others);
    let each: Vec<String> = names
        .clone()
        .map(|(name, at)| format!("{name} {}", text(at)))
        .collect();
    say(format!(
        "  recall {target:.2}: Shoal {}   {}   x {:.3}",
        text(ours),
        each.join("   "),
        ratio.unwrap_or(f64::NAN)
    ))?;
    let mut found = json!({
        "threads": threads,
        "recall_at_10": target,
        "ours": rate(ours),
        "best_reference": round(reference),
        "ratio": ratio.map(round),
        "cpu_ratio": ours.map(|ours| round(ours.cpu_rate / cpu_reference)),
        "is_bound": at.iter().flatten().any(|at| at.is_bound),
    });
    for (name, at) in names {
        found[name] = json!(rate(at));
    }
    Ok(found)
}

/// One side's rates, by threads and recall.
fn best_of(points: &[Value], side: &str) -> Value {
    let rates = points.iter().map(|point| {
        json!({
            "threads": point.get("threads"),
            "recall_at_10": point.get("recall_at_10"),
            "queries_per_second": point.get(side),
        })
    });
    Value::from(rates.collect::<Vec<_>>())
}
