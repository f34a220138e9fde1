//! The ways a live set turns over: what is written, and which rows are live afterwards.
//!
//! About half of the data set is live at a time; the other half waits to take its place, so a
//! replacement is always another row of the data.

use std::collections::{BTreeMap, VecDeque};

use shoal_schemas::payload::Value;

use crate::{embeddings::Embeddings, engine::Log, random::Random};

/// How points are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Every point gets another row's vector, in an order drawn anew each turnover: updates.
    Random,
    /// The oldest point is deleted and a new one comes: deletes and new ids.
    Sliding,
    /// All points of a category are deleted, then another category comes.
    Clustered,
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
}

impl Pattern {
    pub(crate) const ALL: [Self; 3] = [Self::Random, Self::Sliding, Self::Clustered];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Sliding => "sliding",
            Self::Clustered => "clustered",
        }
    }
}

impl<'a> Turnover<'a> {
    /// Writes the first live set.
    pub(crate) fn start(
        pattern: Pattern,
        embeddings: &'a Embeddings,
        log: &mut Log,
    ) -> anyhow::Result<Self> {
        let mut random = Random::new(1);
        let rows = 0..embeddings.points.len();
        let mut turnover = Self {
            size: rows.len() / 2,
            waiting: match pattern {
                Pattern::Clustered => regions(embeddings, &mut random),
                Pattern::Random | Pattern::Sliding => rows.map(|row| vec![row]).collect(),
            },
            embeddings,
            live: VecDeque::new(),
            written: 0,
            pattern,
            random,
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
            for (id, _) in &oldest {
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
                upsert(self.embeddings, log, id, new)?;
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
                upsert(self.embeddings, log, &id, row)?;
                group.push((id, row));
            }
            count += group.len();
            self.live.push_back(group);
        }
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
    log: &mut Log,
) -> anyhow::Result<()> {
    // By row, which is a random order: by id, points of one kind would come together.
    let mut rows: Vec<(usize, &String)> = live.iter().map(|(id, row)| (*row, id)).collect();
    rows.sort_unstable();
    rows.into_iter()
        .try_for_each(|(row, id)| upsert(embeddings, log, id, row))
}

fn upsert(embeddings: &Embeddings, log: &mut Log, id: &str, row: usize) -> anyhow::Result<()> {
    if let Some((_, point)) = embeddings.points.get(row) {
        log.upsert(0, id, point)?;
    }
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
