//! The ways a live set turns over: what is written, and which rows are live afterwards.
//!
//! About half of the data set is live at a time; the other half waits to take its place, so a
//! replacement is always another row of the data.

use std::collections::{BTreeMap, VecDeque};

use shoal_schemas::payload::Value;

use crate::{embeddings::Embeddings, engine::Log, random::Random};

/// Full turnovers of the live set.
pub(crate) const TURNOVERS: usize = 5;

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

impl Pattern {
    pub(crate) const ALL: [Self; 3] = [Self::Random, Self::Sliding, Self::Clustered];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Sliding => "sliding",
            Self::Clustered => "clustered",
        }
    }

    /// Writes the first live set and all turnovers of it; returns the live set: id to row.
    pub(crate) fn write(
        self,
        embeddings: &Embeddings,
        log: &mut Log,
    ) -> anyhow::Result<BTreeMap<String, usize>> {
        match self {
            Self::Random => re_embed(embeddings, log),
            Self::Sliding => slide(embeddings, log),
            Self::Clustered => move_regions(embeddings, log),
        }
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

fn re_embed(embeddings: &Embeddings, log: &mut Log) -> anyhow::Result<BTreeMap<String, usize>> {
    let half = embeddings.points.len() / 2;
    let mut waiting: VecDeque<usize> = (half..embeddings.points.len()).collect();
    let mut rows: Vec<usize> = (0..half).collect();
    let id = |slot: usize| format!("point-{slot}");
    for (slot, row) in rows.iter().enumerate() {
        upsert(embeddings, log, &id(slot), *row)?;
    }
    let mut random = Random::new(1);
    let mut order: Vec<usize> = (0..half).collect();
    for _ in 0..TURNOVERS {
        random.shuffle(&mut order);
        for slot in &order {
            let (Some(row), Some(new)) = (rows.get_mut(*slot), waiting.pop_front()) else {
                continue;
            };
            waiting.push_back(std::mem::replace(row, new));
            upsert(embeddings, log, &id(*slot), new)?;
        }
    }
    Ok((0..).map(id).zip(rows).collect())
}

fn slide(embeddings: &Embeddings, log: &mut Log) -> anyhow::Result<BTreeMap<String, usize>> {
    let rows = embeddings.points.len();
    let half = rows / 2;
    let mut live = VecDeque::<(String, usize)>::new();
    for number in 0..half * (1 + TURNOVERS) {
        if number >= half
            && let Some((oldest, _)) = live.pop_front()
        {
            log.delete(0, &oldest)?;
        }
        let (id, row) = (format!("point-{number}"), number % rows);
        upsert(embeddings, log, &id, row)?;
        live.push_back((id, row));
    }
    Ok(live.into_iter().collect())
}

fn move_regions(embeddings: &Embeddings, log: &mut Log) -> anyhow::Result<BTreeMap<String, usize>> {
    let half = embeddings.points.len() / 2;
    let mut regions: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (row, (_, point)) in embeddings.points.iter().enumerate() {
        let category = match point.payload.0.get("category") {
            Some(Value::Integer(category)) => *category,
            _ => -1,
        };
        regions.entry(category).or_default().push(row);
    }
    let mut regions: Vec<Vec<usize>> = regions.into_values().collect();
    Random::new(2).shuffle(&mut regions);
    let mut waiting: VecDeque<Vec<usize>> = regions.into();
    let mut live: VecDeque<Vec<(String, usize)>> = VecDeque::new();
    let (mut count, mut written) = (0, 0);
    while written < half * (1 + TURNOVERS) {
        if count >= half
            && let Some(region) = live.pop_front()
        {
            count -= region.len();
            for (id, _) in &region {
                log.delete(0, id)?;
            }
            waiting.push_back(region.into_iter().map(|(_, row)| row).collect());
        }
        while count < half {
            let Some(region) = waiting.pop_front() else {
                break;
            };
            let named = region.into_iter().map(|row| {
                written += 1;
                (format!("point-{written}"), row)
            });
            let named: Vec<(String, usize)> = named.collect();
            for (id, row) in &named {
                upsert(embeddings, log, id, *row)?;
            }
            count += named.len();
            live.push_back(named);
        }
    }
    Ok(live.into_iter().flatten().collect())
}
