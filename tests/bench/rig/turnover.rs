//! The ways a live set turns over: what is written, and which rows are live afterwards.
//!
//! About half of the data set is live at a time; the other half waits to take its place, so a
//! replacement is always another row of the data.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use anyhow::ensure;
use shoal_runtime::clock::{Clock, Manual, System};
use shoal_schemas::{Point, payload::Value};

use crate::{
    embeddings::Embeddings,
    engine::{Log, Running},
    random::Random,
};

/// How long a point that expires lives.
const LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Points are written that close behind what is applied, where time passes with them.
const NEAR: usize = 256;

/// How points are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Every point gets another row's vector, in an order drawn anew each turnover: updates.
    Random,
    /// The oldest point is deleted and a new one comes: deletes and new ids.
    Sliding,
    /// All points of a category are deleted, then another category comes.
    Clustered,
    /// The oldest point expires and a new one comes: new ids alone.
    Expiring,
}

/// A clock by hand that says what time it is in a run of `turnovers` of `size` points, so that it comes to now.
pub(crate) fn clock(size: usize, turnovers: usize) -> Arc<Manual> {
    let size = u32::try_from(size).unwrap_or(u32::MAX);
    let all = u32::try_from(turnovers + 1).unwrap_or(u32::MAX);
    let passes = step_of(size) * size * all;
    let passes = u64::try_from(passes.as_millis()).unwrap_or(u64::MAX);
    Manual::at(System::shared().now_ms().saturating_sub(passes))
}

/// What passes from one point to the next.
fn step_of(size: u32) -> Duration {
    Duration::from_millis(u64::try_from((LIFE / size.max(1)).as_millis()).unwrap_or(u64::MAX))
}

/// A live set that is being replaced.
pub(crate) struct Turnover<'a> {
    embeddings: &'a Embeddings,
    /// How many points are live, or a few more.
    pub(crate) size: usize,
    /// Groups of points that come and go together, oldest first: id and row.
    live: VecDeque<Vec<(String, usize)>>,
    /// Rows that are not live, in the groups they come in.
    waiting: VecDeque<Vec<usize>>,
    /// Points written so far; a new id for each.
    written: usize,
    pattern: Pattern,
    random: Random,
    clock: Arc<Manual>,
    /// What takes the points.
    shard: &'a Running,
}

impl Pattern {
    const ALL: [Self; 4] = [Self::Random, Self::Sliding, Self::Clustered, Self::Expiring];

    /// The one of that name, or all.
    pub(crate) fn asked_for(name: Option<&str>) -> anyhow::Result<Vec<Self>> {
        let wanted = |pattern: &Self| name.is_none_or(|name| pattern.name() == name);
        let patterns: Vec<_> = Self::ALL.into_iter().filter(wanted).collect();
        ensure!(!patterns.is_empty(), "no pattern of that name: {name:?}");
        Ok(patterns)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Sliding => "sliding",
            Self::Clustered => "clustered",
            Self::Expiring => "expiring",
        }
    }
}

impl<'a> Turnover<'a> {
    /// Writes the first live set.
    pub(crate) fn start(
        pattern: Pattern,
        embeddings: &'a Embeddings,
        (log, clock): (&mut Log, Arc<Manual>),
        shard: &'a Running,
    ) -> anyhow::Result<Self> {
        let mut random = Random::new(1);
        let rows = 0..embeddings.points.len();
        let mut turnover = Self {
            size: rows.len() / 2,
            waiting: match pattern {
                Pattern::Clustered => regions(embeddings, &mut random),
                _ => rows.map(|row| vec![row]).collect(),
            },
            embeddings,
            live: VecDeque::new(),
            written: 0,
            pattern,
            random,
            clock,
            shard,
        };
        turnover.fill(log)?;
        Ok(turnover)
    }

    /// Replaces so many points, or a few more where they go in groups.
    pub(crate) fn replace(&mut self, points: usize, log: &mut Log) -> anyhow::Result<()> {
        let mut replaced = 0;
        while replaced < points {
            // Each turnover in another order: the queue of the live ones holds one turnover.
            if self.pattern == Pattern::Random && self.written.is_multiple_of(self.size) {
                self.random.shuffle(self.live.make_contiguous());
            }
            let Some(oldest) = self.live.pop_front() else {
                break;
            };
            replaced += oldest.len();
            if self.pattern == Pattern::Random {
                self.re_embed(oldest, log)?;
                continue;
            }
            for (id, _) in oldest.iter().filter(|_| self.pattern != Pattern::Expiring) {
                log.delete(0, id)?;
            }
            let rows = oldest.into_iter().map(|(_, row)| row);
            self.waiting.push_back(rows.collect());
            self.fill(log)?;
        }
        Ok(())
    }

    /// Gives points the vectors of the rows that have waited longest.
    fn re_embed(&mut self, mut points: Vec<(String, usize)>, log: &mut Log) -> anyhow::Result<()> {
        for (id, row) in &mut points {
            if let Some(new) = self
                .waiting
                .pop_front()
                .and_then(|rows| rows.first().copied())
            {
                self.waiting.push_back(vec![std::mem::replace(row, new)]);
                upsert(self.embeddings, log, id, new, None)?;
                self.written += 1;
            }
        }
        self.live.push_back(points);
        Ok(())
    }

    /// Lets rows that wait come, under new ids, until enough are live.
    fn fill(&mut self, log: &mut Log) -> anyhow::Result<()> {
        let mut count: usize = self.live.iter().map(Vec::len).sum();
        while count < self.size {
            let Some(rows) = self.waiting.pop_front() else {
                break;
            };
            let mut group = Vec::with_capacity(rows.len());
            for row in rows {
                let id = format!("point-{}", self.written);
                self.written += 1;
                upsert(self.embeddings, log, &id, row, self.until_ms())?;
                self.pass(log)?;
                group.push((id, row));
            }
            count += group.len();
            self.live.push_back(group);
        }
        Ok(())
    }

    /// When a point that is written now expires, if it is to: when so many others have come as are live at a time.
    pub(crate) fn until_ms(&self) -> Option<u64> {
        // It is still there when the one before the one that takes its place has come.
        let lives = self.step() * u32::try_from(self.size).unwrap_or(u32::MAX) + self.step() / 2;
        let lives = u64::try_from(lives.as_millis()).unwrap_or(u64::MAX);
        let expires = self.pattern == Pattern::Expiring;
        expires.then(|| self.clock.now_ms().saturating_add(lives))
    }

    fn step(&self) -> Duration {
        step_of(u32::try_from(self.size).unwrap_or(u32::MAX))
    }

    /// Lets time pass, for what is applied.
    fn pass(&self, log: &Log) -> anyhow::Result<()> {
        if self.pattern != Pattern::Expiring {
            return Ok(());
        }
        if self.written.is_multiple_of(NEAR) {
            log.wait_near(self.shard, NEAR as u64)?;
        }
        self.clock.advance(self.step());
        Ok(())
    }

    /// What is live: id to row.
    pub(crate) fn live(&self) -> BTreeMap<String, usize> {
        self.live.iter().flatten().cloned().collect()
    }
}

/// Writes a live set as it is.
pub(crate) fn write_live(
    embeddings: &Embeddings,
    live: &BTreeMap<String, usize>,
    until_ms: Option<u64>,
    log: &mut Log,
) -> anyhow::Result<()> {
    // By row, which is a random order: by id, points of one kind would come together.
    let mut rows: Vec<(usize, &String)> = live.iter().map(|(id, row)| (*row, id)).collect();
    rows.sort_unstable();
    rows.into_iter()
        .try_for_each(|(row, id)| upsert(embeddings, log, id, row, until_ms))
}

fn upsert(
    embeddings: &Embeddings,
    log: &mut Log,
    id: &str,
    row: usize,
    until_ms: Option<u64>,
) -> anyhow::Result<()> {
    let Some((_, point)) = embeddings.points.get(row) else {
        return Ok(());
    };
    match until_ms {
        None => log.upsert(0, id, point)?,
        Some(until_ms) => {
            let point = Point {
                expires_at_ms: Some(i64::try_from(until_ms)?),
                ..point.clone()
            };
            log.upsert(0, id, &point)?
        }
    };
    Ok(())
}

/// The rows of each category, categories in a random order.
fn regions(embeddings: &Embeddings, random: &mut Random) -> VecDeque<Vec<usize>> {
    let mut regions: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (row, (_, point)) in embeddings.points.iter().enumerate() {
        let category = match point.payload.0.get("category") {
            Some(Value::Integer(category)) => *category,
            _ => -1,
        };
        regions.entry(category).or_default().push(row);
    }
    let mut regions: Vec<Vec<usize>> = regions.into_values().collect();
    random.shuffle(&mut regions);
    regions.into()
}
