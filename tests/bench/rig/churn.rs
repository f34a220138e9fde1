//! `churn`: what five turnovers of the live set leave of recall, cost and memory.
//!
//! One shard takes everything that was written, the other only what is live at the end; both run
//! with default settings and are looked at once they have nothing left to do by themselves. The
//! churned one comes to rest once before the last points: these leave it with about as many dead rows
//! as compaction tolerates, and not just compacted. Memory is that of a fresh process that opens the
//! shard's folder and asks every query.
//!
//! What compaction itself costs is told by both shards' bytes written, processor time and folders.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use rustix::time::ClockId;
use serde_json::{Value, json};
use shoal_runtime::clock::{Clock, System};

use crate::{
    arguments::Arguments,
    embeddings::{Embeddings, K, collection},
    engine::{self, Log, Running},
    figures::{Repeats, round, say},
    lost::self_lost,
    opened,
    process::{Written, disk_bytes},
    timed::{Timed, ask_for, cpu_time},
    truth::{TIE, distance, kth_distances},
    turnover::{self, Pattern, Turnover, write_live},
};

const BEAMS: [usize; 3] = [16, 32, 64];
/// Full turnovers of the live set.
const TURNOVERS: usize = 5;
/// The last points come after a rest: this part of the live set less than makes compaction begin.
const SHORT_OF: f64 = 0.01;
/// Parts in which a repeat's searches are asked, of the two shards in turns.
const TURNS: u32 = 8;
/// The beam at which the cost of a search is compared.
const COST_BEAM: usize = 64;

/// One shard's figures.
struct Found {
    recalls: Vec<f64>,
    /// Distances that a search computes at the beam whose cost is compared.
    distances: f64,
    lost: usize,
    bytes: f64,
    segments: String,
    spent: Spent,
}

/// What it took to get a shard to where it is looked at.
#[derive(Clone, Copy)]
struct Spent {
    /// Bytes sent towards a disk, and by write calls, for each byte of the records.
    written: f64,
    written_by_calls: f64,
    /// Processor microseconds a record, making it included.
    cpu_us: f64,
    /// Bytes of the folder.
    disk: f64,
}

/// A moment from which on spending counts.
struct Since {
    written: Written,
    cpu_seconds: f64,
}

impl Since {
    fn now() -> anyhow::Result<Self> {
        Ok(Self {
            written: Written::own()?,
            cpu_seconds: cpu_time(ClockId::ProcessCPUTime).as_secs_f64(),
        })
    }

    fn spent(self, log: &Log, running: &Running) -> anyhow::Result<Spent> {
        let (now, bytes) = (Self::now()?, log.record_bytes as f64);
        let records = running.next().0 as f64;
        Ok(Spent {
            written: (now.written.disk - self.written.disk) / bytes,
            written_by_calls: (now.written.calls - self.written.calls) / bytes,
            cpu_us: (now.cpu_seconds - self.cpu_seconds) / records * 1e6,
            disk: disk_bytes(&running.folder)?,
        })
    }
}

/// What is live at the end, with the distance of each query's farthest neighbour.
struct Live<'a> {
    embeddings: &'a Embeddings,
    rows: BTreeMap<String, usize>,
    farthest: Vec<f64>,
}

pub(crate) fn measure(arguments: &Arguments) -> anyhow::Result<Value> {
    let embeddings = Embeddings::load(arguments)?;
    let (repeats, time) = (arguments.repeats_or(5), arguments.time_or(2));
    let mut patterns = serde_json::Map::new();
    let (mut recall_loss, mut memory_ratio, mut cost_ratio) = (f64::MIN, f64::MIN, f64::MIN);
    let mut lost = 0;
    say(format!(
        "recall@{K} at ef {BEAMS:?} after {TURNOVERS} turnovers, beside a fresh build of the same live set"
    ))?;
    for pattern in Pattern::asked_for(arguments.pattern.as_deref())? {
        let (churned, fresh, cost) = once(arguments, &embeddings, pattern, repeats, time)?;
        let losses: Vec<f64> = fresh
            .recalls
            .iter()
            .zip(&churned.recalls)
            .map(|(fresh, churned)| fresh - churned)
            .collect();
        let memory = churned.bytes / fresh.bytes;
        let disk = churned.spent.disk / fresh.spent.disk;
        let cpu = churned.spent.cpu_us / fresh.spent.cpu_us;
        recall_loss = losses.iter().copied().fold(recall_loss, f64::max);
        memory_ratio = memory_ratio.max(memory);
        cost_ratio = cost_ratio.max(cost.median());
        lost += churned.lost;
        say(format!(
            "  {:10} churned {:.4?}  fresh {:.4?}  a search costs x {} and computes x {:.2} distances ({:.0})  memory x {memory:.2}  \
             do not find themselves: {} ({} fresh)\n             written to disk x {:.2} of the records ({:.2}), \
             {:.0} us of processor a record ({:.0}), disk x {disk:.2}\n             {}",
            pattern.name(),
            churned.recalls,
            fresh.recalls,
            cost.text(""),
            churned.distances / fresh.distances,
            fresh.distances,
            churned.lost,
            fresh.lost,
            churned.spent.written,
            fresh.spent.written,
            churned.spent.cpu_us,
            fresh.spent.cpu_us,
            churned.segments
        ))?;
        patterns.insert(
            pattern.name().into(),
            json!({
                "ours": figures(&churned),
                "reference": figures(&fresh),
                "recall_loss": losses.iter().copied().map(round).collect::<Vec<_>>(),
                "search_cost_ratio": round(cost.median()),
                "search_cost_spread": cost.spread(),
                "memory_ratio": round(memory),
                "disk_ratio": round(disk),
                "ingest_cost_ratio": round(cpu),
                "write_amplification": round(churned.spent.written),
            }),
        );
    }
    say(format!(
        "largest loss of recall {recall_loss:.4}, dearest search x {cost_ratio:.2}, most memory x {memory_ratio:.2}; \
         points that do not find themselves: {lost}"
    ))?;
    let of = |side: &str| {
        let each = patterns.iter();
        let each =
            each.map(|(name, found)| (name.clone(), found.get(side).cloned().unwrap_or_default()));
        Value::Object(each.collect())
    };
    Ok(json!({
        "name": "churn",
        "ours": of("ours"),
        "reference": of("reference"),
        "ratio": round(cost_ratio),
        "recall_loss": round(recall_loss),
        "search_cost_ratio": round(cost_ratio),
        "memory_ratio": round(memory_ratio),
        "self_lost": lost,
        "patterns": patterns,
        "settings": {
            "rows": embeddings.points.len(),
            "live": embeddings.points.len() / 2,
            "turnovers": TURNOVERS,
            "ef": BEAMS,
            "search_cost": format!("processor time a query at ef {COST_BEAM}, one thread"),
            "seconds": time.as_secs(),
            "partitions": 1,
        },
        "repeats": repeats,
    }))
}

fn figures(found: &Found) -> Value {
    let recalls = BEAMS.iter().zip(&found.recalls);
    let recalls = recalls.map(|(ef, recall)| (ef.to_string(), json!(round(*recall))));
    json!({
        "recall_at_10_by_ef": Value::Object(recalls.collect()),
        "distances_per_search": round(found.distances),
        "self_lost": found.lost,
        "bytes": found.bytes,
        "segments": found.segments,
        "write_amplification": round(found.spent.written),
        "write_amplification_by_calls": round(found.spent.written_by_calls),
        "cpu_us_per_record": round(found.spent.cpu_us),
        "disk_bytes": found.spent.disk,
    })
}

/// Churned, fresh, and how much dearer a search of the churned one is.
fn once(
    arguments: &Arguments,
    embeddings: &Embeddings,
    pattern: Pattern,
    repeats: usize,
    time: Duration,
) -> anyhow::Result<(Found, Found, Repeats)> {
    let folder = engine::folder()?;
    let engine = engine::settings(embeddings.points.len() / 2);
    let by_hand = turnover::clock(embeddings.points.len() / 2, TURNOVERS);
    let clock: Arc<dyn Clock> = match pattern {
        Pattern::Expiring => by_hand.clone(),
        _ => System::shared(),
    };
    let mut log = Log::by(collection("churn")?, clock.clone())?;
    let since = Since::now()?;
    let churned = log.open(0, &folder.path().join("churned"), engine.clone())?;
    let mut turnover = Turnover::start(pattern, embeddings, (&mut log, by_hand), &churned)?;
    let after_rest = (turnover.size as f64 * (engine.compact_dead_share - SHORT_OF)) as usize;
    turnover.replace(turnover.size * TURNOVERS - after_rest, &mut log)?;
    log.wait_settled(&churned)?;
    turnover.replace(after_rest, &mut log)?;
    log.wait_settled(&churned)?;
    let (rows, until_ms) = (turnover.live(), turnover.until_ms());
    let churned_spent = since.spent(&log, &churned)?;
    let mut log = Log::by(collection("churn")?, clock)?;
    let since = Since::now()?;
    write_live(embeddings, &rows, until_ms, &mut log)?;
    let fresh = log.open(0, &folder.path().join("fresh"), engine)?;
    log.wait_settled(&fresh)?;
    let fresh_spent = since.spent(&log, &fresh)?;

    let vectors: Vec<&[f32]> = rows
        .values()
        .filter_map(|row| vector(embeddings, *row))
        .collect();
    let live = Live {
        farthest: kth_distances(&embeddings.queries, &vectors, K)?,
        embeddings,
        rows,
    };
    let both = [&churned, &fresh];
    let ask = |running: &Running, time| {
        ask_for(time, 1, &embeddings.queries, &|query| {
            running.search(query, K, COST_BEAM)?;
            Ok(())
        })
    };
    // What is looked at for the first time comes from files.
    for running in both {
        ask(running, time / TURNS)?;
    }
    let mut cost = Repeats::default();
    for _ in 0..repeats {
        let mut sums = [Timed::default(); 2];
        for _ in 0..TURNS {
            for (running, sum) in both.into_iter().zip(&mut sums) {
                *sum += ask(running, time / TURNS)?;
            }
        }
        let [churned, fresh] = sums.map(|sum| sum.cpu_us());
        cost.push(churned / fresh);
    }
    let churned = live.look_at(arguments, churned, churned_spent)?;
    let fresh = live.look_at(arguments, fresh, fresh_spent)?;
    Ok((churned, fresh, cost))
}

fn vector(embeddings: &Embeddings, row: usize) -> Option<&[f32]> {
    let (_, point) = embeddings.points.get(row)?;
    Some(point.vector.as_slice())
}

impl Live<'_> {
    /// Everything but the cost of a search; the shard is closed afterwards.
    fn look_at(
        &self,
        arguments: &Arguments,
        running: Running,
        spent: Spent,
    ) -> anyhow::Result<Found> {
        running.serves(self.rows.len())?;
        let recalls = BEAMS.iter().map(|ef| self.recall(&running, *ef));
        let recalls = recalls.collect::<anyhow::Result<_>>()?;
        let queries = self.embeddings.queries.iter();
        let distances = queries.map(|query| running.distances(query, K, COST_BEAM));
        let distances: u64 = distances.sum::<anyhow::Result<_>>()?;
        let distances = distances as f64 / self.embeddings.queries.len().max(1) as f64;
        let points = self.rows.iter();
        let points =
            points.filter_map(|(id, row)| Some((id.as_str(), vector(self.embeddings, *row)?)));
        let lost = self_lost(&running, &points.collect::<Vec<_>>())?;
        let (segments, folder) = (running.segments(), running.folder.clone());
        running.close()?;
        let memory = opened::in_fresh_process(arguments, "churn", &[&folder])?;
        Ok(Found {
            recalls,
            distances,
            lost,
            bytes: memory.grown.sum(),
            segments,
            spent,
        })
    }

    fn recall(&self, running: &Running, ef: usize) -> anyhow::Result<f64> {
        let mut sum = 0.0;
        for (query, farthest) in self.embeddings.queries.iter().zip(&self.farthest) {
            let hits = running.search(query, K, ef)?;
            let near = hits.iter().filter(|hit| {
                let row = self.rows.get(&hit.id);
                let vector = row.and_then(|row| vector(self.embeddings, *row));
                vector.is_some_and(|vector| distance(query, vector) <= farthest + TIE)
            });
            sum += near.count() as f64 / K as f64;
        }
        Ok(sum / self.embeddings.queries.len().max(1) as f64)
    }
}
