//! How long a record takes from being published to being found, at a steady rate.
//!
//! The clock starts before the record is handed to the publisher and stops at the answer that
//! holds it: produce, acknowledgement, consume, apply, search, all over their real protocols.

use std::time::Duration;

use anyhow::{Context as _, bail};
use shoal_runtime::clock::Stopwatch;
use shoal_schemas::{Payload, Point, PointId, Token, Value};
use tokio::time::MissedTickBehavior;

use super::{
    data::{Data, Query},
    stage::Stage,
    voice::Voice,
};

/// Records that are measured.
const RECORDS: usize = 300;
/// From one to the next.
const EVERY: Duration = Duration::from_millis(25);
/// Longest a record may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was measured.
pub(super) struct Fresh {
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// Publishes held-out sentences one by one and finds each, then deletes them again.
pub(super) async fn measure(
    stage: &mut Stage,
    data: &Data,
    voice: &Voice,
) -> anyhow::Result<Fresh> {
    voice.say(&format!(
        "\npublishing {RECORDS} new records, 40 a second, and searching for each at once"
    ));
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut times = Vec::with_capacity(RECORDS);
    let mut ids = Vec::with_capacity(RECORDS);
    for (n, query) in data.queries.iter().take(RECORDS).enumerate() {
        ticks.tick().await;
        let id = PointId::new(&format!("fresh-{n}"))?;
        let watch = Stopwatch::start();
        found(stage, &id, query, &watch).await?;
        times.push(watch.seconds() * 1000.0);
        ids.push(id);
    }
    times.sort_by(f64::total_cmp);
    let fresh = Fresh {
        p50_ms: quantile(&times, 50).context("nothing was measured")?,
        p99_ms: quantile(&times, 99).context("nothing was measured")?,
    };
    voice.say(&format!(
        "from publish to found: p50 {:.1} ms, p99 {:.1} ms",
        fresh.p50_ms, fresh.p99_ms
    ));
    forget(stage, data, &ids).await?;
    voice.say(&format!(
        "deleted those {RECORDS} again: none is found any more"
    ));
    Ok(fresh)
}

async fn found(
    stage: &mut Stage,
    id: &PointId,
    query: &Query,
    watch: &Stopwatch,
) -> anyhow::Result<()> {
    let point = Point {
        vector: query.vector.clone(),
        payload: Payload([("text".to_owned(), Value::String(query.text.clone()))].into()),
        model: None,
        event_time_ms: None,
        expires_at_ms: None,
    };
    let token = stage.publisher.publish(id, &point).await?.await?;
    loop {
        let seen = std::slice::from_ref(&token);
        let hits = stage.search(query.vector.as_slice(), seen).await?;
        if hits.iter().any(|hit| hit.id == id.as_str()) {
            return Ok(());
        }
        if watch.elapsed() > PATIENCE {
            bail!("record `{id}` is not found {PATIENCE:?} after it was published");
        }
    }
}

/// Deletes the records, and fails if one of them is still answered.
async fn forget(stage: &mut Stage, data: &Data, ids: &[PointId]) -> anyhow::Result<()> {
    let mut deliveries = Vec::with_capacity(ids.len());
    for id in ids {
        deliveries.push(stage.publisher.delete(id).await?);
    }
    let mut tokens: Vec<Token> = Vec::with_capacity(ids.len());
    for delivery in deliveries {
        tokens.push(delivery.await?);
    }
    let count = stage.count(&tokens).await?;
    if count != u64::try_from(data.points.len())? {
        bail!(
            "after the deletes there are {count} points, not {}",
            data.points.len()
        );
    }
    for query in data.queries.iter().take(ids.len()) {
        let hits = stage.search(query.vector.as_slice(), &[]).await?;
        if let Some(hit) = hits.iter().find(|hit| hit.id.starts_with("fresh-")) {
            bail!("record `{}` is found after its delete", hit.id);
        }
    }
    Ok(())
}

/// The smallest value that so many percent do not exceed.
fn quantile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn a_quantile_is_a_value_that_was_measured() {
        let values: Vec<f64> = (1..=200_u32).map(f64::from).collect();
        assert_eq!(quantile(&values, 50), Some(100.0));
        assert_eq!(quantile(&values, 99), Some(198.0));
        assert_eq!(quantile(&[7.0], 99), Some(7.0));
        assert_eq!(quantile(&[], 50), None);
    }
}
