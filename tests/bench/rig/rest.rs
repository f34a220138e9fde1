//! When an indexer's process has nothing left to do by itself.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::Context as _;
use shoal_indexer::shard::checkpoint::{Kept, Manifest};
use shoal_schemas::{Collection, Partition};

use crate::{
    engine::settings,
    role::{Role, folder_of},
};

/// How often it is looked.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// So long it has to be idle: longer than the engine waits before it seals.
const QUIET: Duration = Duration::from_secs(5);
/// Share of one processor below which a process is idle.
pub(crate) const IDLE_SHARE: f64 = 0.05;
const PATIENCE: Duration = Duration::from_secs(1800);

/// Waits until a stored checkpoint has all rows in sealed segments, but for fewer than are sealed
/// by themselves, and the process is idle.
pub(crate) async fn at_rest(
    indexer: &mut Role,
    data: &Path,
    collection: &Collection,
    rows: usize,
) -> anyhow::Result<()> {
    all_at_rest(indexer, data, collection, &[(Partition(0), rows)].into()).await
}

/// The same for several shards, with the rows of each.
pub(crate) async fn all_at_rest(
    indexer: &mut Role,
    data: &Path,
    collection: &Collection,
    rows: &BTreeMap<Partition, usize>,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    let are_sealed = || {
        rows.iter()
            .all(|(shard, rows)| is_sealed(&folder_of(data, collection, *shard), *rows))
    };
    let sealed = async {
        while !are_sealed() {
            ticks.tick().await;
            indexer.lives()?;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, sealed)
        .await
        .with_context(|| format!("{rows:?} rows were not sealed within {PATIENCE:?}"))??;
    idle(indexer, QUIET).await
}

/// Waits until the process has used next to no processor time for so long.
pub(crate) async fn idle(indexer: &mut Role, quiet: Duration) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.tick().await;
    let rests = async {
        let (mut looks, mut before) = (0, indexer.cpu_seconds()?);
        while looks * LOOK_EVERY < quiet {
            ticks.tick().await;
            indexer.lives()?;
            let now = indexer.cpu_seconds()?;
            let is_idle = now - before < IDLE_SHARE * LOOK_EVERY.as_secs_f64();
            looks = if is_idle { looks + 1 } else { 0 };
            before = now;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, rests)
        .await
        .with_context(|| format!("the indexer was not idle within {PATIENCE:?}"))?
}

/// Reads the newest checkpoint of a shard. One that is not there, or is just being written, is
/// read at the next look.
fn is_sealed(folder: &Path, rows: usize) -> bool {
    let Ok(Some(newest)) = Manifest::newest(&folder.join("checkpoint")) else {
        return false;
    };
    let limit = settings(rows).idle_seal_rows;
    let kept = newest.segments.iter().all(|one| match one.kept {
        Kept::Growing { .. } => one.rows < limit,
        Kept::Sealed { .. } => true,
    });
    let live: u32 = newest.segments.iter().map(|one| one.rows - one.dead).sum();
    kept && live as usize >= rows
}
