//! The bulk: every embedding published, watched until the last one is in the graph.

use std::{pin::pin, time::Duration};

use anyhow::bail;
use shoal_producer::{
    read::Rows,
    run::{self, Options},
};
use shoal_runtime::clock::Stopwatch;
use tokio_util::sync::CancellationToken;

use super::{
    data::Data,
    stage::{Progress, Stage},
    voice::Voice,
};

/// Between two looks on a terminal, and elsewhere.
const DRAW: Duration = Duration::from_millis(200);
const SAY: Duration = Duration::from_secs(2);
/// How often the shards are asked.
const LOOK: Duration = Duration::from_millis(50);
/// Longest the bulk may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Publishes all points and returns how many a second went the whole way.
pub(super) async fn publish(stage: &mut Stage, data: &Data, voice: &Voice) -> anyhow::Result<f64> {
    voice.say("\npublishing all of them into 4 partitions");
    let watch = Stopwatch::start();
    let total = u64::try_from(data.points.len())?;
    let points: Vec<_> = data.points.clone();
    let rows = Rows::new(Some(total), points.into_iter().map(Ok));
    let publisher = stage.publisher.clone();
    let cancel = CancellationToken::new();
    let options = Options::default();
    let mut publishing = pin!(run::publish_all(&publisher, rows, &options, &cancel));
    let mut acknowledged = false;
    let mut drawn = Duration::ZERO;
    let every = if voice.is_terminal() { DRAW } else { SAY };
    loop {
        tokio::select! {
            biased;
            summary = &mut publishing, if !acknowledged => {
                acknowledged = true;
                let summary = summary?;
                if summary.records != total {
                    bail!("{} of {total} records were acknowledged", summary.records);
                }
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        let progress = stage.progress().await?;
        let now = watch.elapsed();
        let done = acknowledged && progress.live == total && progress.memtable == 0;
        if done || now.saturating_sub(drawn) >= every {
            drawn = now;
            voice.draw(&line(now, &progress));
        }
        if done {
            break;
        }
        if now > PATIENCE {
            bail!("after {PATIENCE:?} the shards are at {progress:?} of {total} records");
        }
    }
    voice.settle();
    let rate = per_second(data.points.len(), watch.seconds());
    voice.say(&format!(
        "all searchable and in the graph: {rate:.0} records/s"
    ));
    Ok(rate)
}

fn line(now: Duration, progress: &Progress) -> String {
    let lag = progress.published.saturating_sub(progress.applied);
    let in_graph = progress.live.saturating_sub(progress.memtable);
    format!(
        "{:5.1} s   published {:6}   searchable {:6}   in the graph {in_graph:6}   lag {lag:6} records",
        now.as_secs_f64(),
        progress.published,
        progress.live
    )
}

/// A rate for people.
#[expect(clippy::as_conversions, reason = "exact up to 2^53")]
pub(super) fn per_second(count: usize, seconds: f64) -> f64 {
    count as f64 / seconds.max(1e-9)
}
